"""What pods run, listen on and say of themselves, as values."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.types import Pod, Service, view
from kproxy.cluster import clusterfile, egress, pod_files, pods
from kproxy.cluster.clusterfile import ImageCommand, Overrides
from kproxy.cluster.pods import Backoff, ContainerState, Observed

CONFIG = clusterfile.read([])
RUNNING = ContainerState(is_ready=True, started_at="2026-01-01T00:00:00Z", waiting="")


def pod(*containers: dict[str, Any], **spec: Any) -> Pod:
    given = [{"name": f"c{number}", "image": "any", **container} for number, container in enumerate(containers)]
    return view({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"containers": given, **spec}}, Pod)


def service(*ports: dict[str, Any], **selector: str) -> Service:
    return view({"spec": {"selector": selector, "ports": list(ports)}}, Service)


def test_a_container_without_a_command_is_an_echo_server() -> None:
    plan = pods.plan(pod({}, {"command": ["sleep"], "args": ["1"]}), CONFIG)
    assert plan.echoes == ("c0",)
    (command,) = plan.commands
    assert (command.container, command.argv) == ("c1", ("sleep", "1"))


def test_an_image_may_stand_for_a_local_command() -> None:
    config = clusterfile.read([])
    config = type(config)(
        **{name: getattr(config, name) for name in config.__struct_fields__ if name != "images"},
        images=(ImageCommand("nginx*", ("python3", "-m", "http.server")),),
    )
    plan = pods.plan(pod({"image": "nginx:1", "args": ["80"]}, {"image": "redis"}), config)
    assert [command.argv for command in plan.commands] == [("python3", "-m", "http.server", "80")]
    assert plan.echoes == ("c1",)


def test_init_containers_come_first_and_sidecars_stay() -> None:
    given = pod(
        {},
        initContainers=[
            {"name": "prepare", "command": ["true"]},
            {"name": "nothing"},
            {"name": "beside", "command": ["sleep"], "restartPolicy": "Always"},
        ],
    )
    plan = pods.plan(given, CONFIG)
    assert [command.container for command in plan.init] == ["prepare"]
    assert [command.container for command in plan.commands] == ["beside"]


WEB = service(
    {"port": 80, "targetPort": 9376}, {"port": 53, "protocol": "UDP"}, {"port": 1, "targetPort": "http"}, app="web"
)
DECLARED = {"ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]}
LISTENING = {
    "declared ports": (pod(DECLARED), [], [("TCP", 80), ("UDP", 53)]),
    "declared ports stand above Services": (pod({"ports": [{"containerPort": 80}]}), [WEB], [("TCP", 80)]),
    "no declared ports": (pod({}), [WEB], [("TCP", 9376), ("UDP", 53)]),
    "another's Service": (pod({}), [service({"port": 80}, app="other")], []),
    "a Service without selector": (pod({}), [service({"port": 80})], []),
    "SCTP": (pod({"ports": [{"containerPort": 80, "protocol": "SCTP"}]}), [], []),
}  # fmt: skip


@pytest.mark.parametrize(("given", "services", "ports"), LISTENING.values(), ids=LISTENING)
def test_the_echo_server_listens_on(given: Pod, services: list[Service], ports: list[tuple[str, int]]) -> None:
    assert sorted(pods.echo_ports(given, pods.plan(given, CONFIG).echoes, services)) == ports


def observed(*states: ContainerState, initialized: bool = True) -> Observed:
    return Observed(("10.244.1.2",), ("192.168.1.2",), initialized, {f"c{n}": state for n, state in enumerate(states)})


def ended(code: int | None) -> ContainerState:
    return ContainerState(exit_code=code, waiting="")


CRASHED = ContainerState(waiting="CrashLoopBackOff", exit_code=1, restarts=3)
PHASES = {
    "nothing runs yet": ("Always", [ContainerState()], "Pending"),
    "one runs": ("Always", [RUNNING, ContainerState()], "Running"),
    "waits to be started again": ("Always", [CRASHED], "Running"),
    "all done": ("Never", [ended(0), ended(0)], "Succeeded"),
    "one failed": ("Never", [ended(0), ended(2)], "Failed"),
    "nobody saw how it ended": ("Never", [ended(None)], "Failed"),
    "done on failure only": ("OnFailure", [ended(0)], "Succeeded"),
    "one still runs": ("Never", [ended(0), RUNNING], "Running"),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "states", "phase"), PHASES.values(), ids=PHASES)
def test_phase_when(policy: str, states: list[ContainerState], phase: str) -> None:
    assert pods.phase(pod(*({} for _ in states), restartPolicy=policy), observed(*states)) == phase


def test_status_of_a_ready_pod() -> None:
    status = pods.status(pod({}), {}, observed(RUNNING), "2026-01-01T00:00:01Z")
    assert (status["phase"], status["podIP"], status["hostIP"]) == ("Running", "10.244.1.2", "192.168.1.2")
    assert status["podIPs"] == [{"ip": "10.244.1.2"}]
    assert {condition["type"]: condition["status"] for condition in status["conditions"]} == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
    }
    assert status["containerStatuses"][0]["state"] == {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    assert (status["reason"], status["message"]) == (None, None)


def test_a_condition_keeps_the_time_at_which_it_became_so() -> None:
    before = pods.status(pod({}), {}, observed(RUNNING), "t1")
    same = pods.status(pod({}), before, observed(RUNNING), "t2")
    assert same == before
    after = pods.status(pod({}), same, observed(ended(1)), "t3")
    times = {condition["type"]: condition["lastTransitionTime"] for condition in after["conditions"]}
    assert {name for name, time in times.items() if time == "t3"} == {"ContainersReady", "Ready"}
    assert {time for name, time in times.items() if name not in ("ContainersReady", "Ready")} == {"t1"}


def test_back_off_doubles_up_to_five_minutes() -> None:
    backoff = Backoff()
    assert [backoff.next() for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]


def test_a_hostname_fits_into_a_label() -> None:
    assert pod_files.hostname(pod({})) == "web"
    assert pod_files.hostname(pod({}, hostname="other")) == "other"
    long = view({"metadata": {"name": "a" * 62 + ".b" * 20}}, Pod)
    assert pod_files.hostname(long) == "a" * 62


def test_egress_masquerades_what_leaves_the_cluster_alone() -> None:
    text = egress.rules(clusterfile.read([], Overrides(nodes=1, ip_families=("IPv4", "IPv6"))), 6)
    assert text.splitlines() == [
        "*nat",
        ":CNI-EGRESS - [0:0]",
        "-A CNI-EGRESS ! -s fd00:10:244::/48 -j RETURN",
        "-A CNI-EGRESS -d fd00:10:244::/48 -j RETURN",
        "-A CNI-EGRESS -d fd00:1::2 -j RETURN",
        "-A CNI-EGRESS -j MASQUERADE",
        "COMMIT",
    ]
    assert egress.rules(CONFIG, 6) == ""
