"""Pods as kubelet would run them: restarts, phases, init containers, polite ends; and a lab after a reboot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import apply, assert_nothing_is_left, get, is_ready, pod, ready_pods, running, until

from kproxy.api.kinds import POD
from kproxy.client import Client
from kproxy.cluster import clusterfile, lab, sandbox
from kproxy.cluster.layout import Layout
from kproxy.cluster.logs import older
from kproxy.errors import NotFound
from netns import process
from netns.build import tear_down
from netns.journal import Journal
from netns.namespace import named

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Layout, Client]]:
    with running(f"ep{os.getpid() % 10000}", nodes=1) as both:
        yield both


def deployment(name: str, command: list[str]) -> dict[str, Any]:
    template = pod("ignored", command=command)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


def status_of(client: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(POD, name, "default").get("status") or {}
    return found


def container_of(client: Client, name: str) -> dict[str, Any]:
    statuses = status_of(client, name).get("containerStatuses") or [{}]
    found: dict[str, Any] = statuses[0]
    return found


def is_gone(client: Client, name: str) -> bool:
    try:
        client.get(POD, name, "default")
    except NotFound:
        return True
    return False


def test_a_command_that_ends_is_started_again_at_once_and_then_later(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, pod("crash", command=["sh", "-c", "echo run; exit 3"]))
    until(lambda: container_of(client, "crash").get("restartCount") == 2, "second restart")
    waiting = container_of(client, "crash")["state"]["waiting"]
    assert waiting == {"reason": "CrashLoopBackOff", "message": "it ended with exit code 3"}
    log = layout.log("default.crash.main")
    assert (log.read_text(), older(log).read_text()) == ("run\n", "run\n")
    last = container_of(client, "crash")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error")
    assert last["startedAt"] <= last["finishedAt"]
    assert status_of(client, "crash")["phase"] == "Running"


def test_a_program_that_is_not_there_is_named_in_the_log(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, pod("missing", command=["no-such-program"], restartPolicy="Never"))
    until(lambda: status_of(client, "missing").get("phase") == "Failed", "failure")
    assert "no-such-program: No such file or directory" in layout.log("default.missing.main").read_text()


def test_a_program_that_is_not_there_never_counts_as_running(up: tuple[Layout, Client]) -> None:
    _, client = up
    version = client.list(POD).resource_version
    apply(client, pod("typo", command=["no-such-program"]))
    seen = []
    for event in client.watch(POD, resource_version=version, field_selector="metadata.name=typo", timeout_seconds=15):
        if event.type == "BOOKMARK" or not (statuses := (event.object.get("status") or {}).get("containerStatuses")):
            continue
        seen.append(statuses[0])
        assert not is_ready(event.object)
        if statuses[0]["restartCount"] == 2:
            break
    assert [status["state"] for status in seen if "running" in status["state"]] == []
    assert not any(status["ready"] or status["started"] for status in seen)
    assert seen[-1]["state"]["waiting"] == {
        "reason": "CrashLoopBackOff",
        "message": "exec failed: no-such-program: No such file or directory",
    }


def test_apply_does_not_wait_for_a_program_that_is_not_there(up: tuple[Layout, Client]) -> None:
    layout, _ = up
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kproxy", "apply", "--lab", layout.lab, "-f", "-"],
        input=json.dumps(deployment("typos", ["no-such-program"])), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "programmed" not in done.stdout
    assert 'Deployment "default/typos": 0 of 1 pods ready\n    Pod "default/typos-' in done.stderr
    why = "main: CrashLoopBackOff: exec failed: no-such-program: No such file or directory"
    assert done.stderr.rstrip().endswith(why)
    assert time.monotonic() - began < 29, "it does not wait until its limit of 30 s"


@pytest.mark.parametrize(
    ("argv", "has_begun"),
    [(["sleep", "600"], True), (["bash", "-c", "exec -a bwrap sleep 600"], True), (["no-such"], False)],
)
def test_a_command_has_begun_when_its_program_runs_and_no_longer_bubblewrap(
    up: tuple[Layout, Client], tmp_path: Path, argv: list[str], has_begun: bool
) -> None:
    layout, _ = up
    ns = named(layout.netns("node1"), layout.namespaces)
    outer = sandbox.start(
        sandbox.Container(argv, "h", env={"KPROXY_TEST": layout.lab}), ns, log=tmp_path / "log", status=tmp_path / "s"
    )
    try:
        until(lambda: sandbox.has_begun(outer, tmp_path / "s") or process.exit_status(outer) is not None, "an outcome")
        assert sandbox.has_begun(outer, tmp_path / "s") is has_begun
        assert bool(sandbox.complaint(tmp_path / "log")) is not has_begun
    finally:
        inner = sandbox.inner_process(tmp_path / "s", ns)
        process.kill_all([one for one in (outer, inner) if one is not None], grace=0)


def test_a_hosts_file_may_be_longer_than_a_pipe_holds(up: tuple[Layout, Client]) -> None:
    layout, client = up
    aliases = [{"ip": "192.0.2.1", "hostnames": [f"alias-{number}.example" for number in range(5000)]}]
    command = ["tail", "-c", "19", "/etc/hosts"]
    apply(client, pod("aliases", command=command, restartPolicy="Never", hostAliases=aliases))
    until(lambda: status_of(client, "aliases").get("phase") == "Succeeded", "success")
    assert layout.log("default.aliases.main").read_text() == "alias-4999.example\n"


def test_a_log_that_cannot_be_turned_over_does_not_stop_the_others(up: tuple[Layout, Client]) -> None:
    layout, client = up
    stuck, other = (layout.log(f"default.{name}.main") for name in ("stuck", "other"))
    older(stuck).mkdir()
    for name in ("stuck", "other"):
        apply(client, pod(name, command=["sh", "-c", "head -c 9000000 /dev/zero; sleep 1000"]))
        until(lambda name=name: is_ready(client.get(POD, name, "default")), "ready")  # type: ignore[misc]
    until(lambda: stuck.stat().st_size == 9000000, "all of it")
    until(lambda: older(other).exists(), "turning over")
    assert stuck.stat().st_size == 9000000
    older(stuck).rmdir()
    until(lambda: older(stuck).is_file(), "another try")


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (5, "Failed")])
def test_a_pod_that_is_not_started_again_ends(up: tuple[Layout, Client], code: int, phase: str) -> None:
    _, client = up
    apply(client, pod(f"once-{code}", command=["sh", "-c", f"exit {code}"], restartPolicy="Never"))
    until(lambda: status_of(client, f"once-{code}").get("phase") == phase, phase)
    assert container_of(client, f"once-{code}")["state"]["terminated"]["exitCode"] == code


def test_init_containers_run_in_order_before_the_others(up: tuple[Layout, Client]) -> None:
    layout, client = up
    init = [{"name": f"init-{n}", "image": "x", "command": ["sh", "-c", f"sleep 0.1; echo {n}"]} for n in (1, 2)]
    apply(client, pod("prepared", command=["sh", "-c", "echo main; sleep 1000"], initContainers=init))
    until(lambda: is_ready(client.get(POD, "prepared", "default")), "ready")
    times = [layout.log(f"default.prepared.{name}").stat().st_mtime_ns for name in ("init-1", "init-2", "main")]
    assert times == sorted(times)
    assert layout.log("default.prepared.init-2").read_text() == "2\n"


def test_two_containers_share_the_pods_network(up: tuple[Layout, Client]) -> None:
    layout, client = up
    both = pod("both")
    both["spec"]["containers"].append({"name": "beside", "image": "x", "command": ["sleep", "1000"]})
    apply(client, both)
    until(lambda: is_ready(client.get(POD, "both", "default")), "ready")
    assert get(layout, "node1", status_of(client, "both")["podIP"], 8080, "/hostname") == "both\n"
    statuses = status_of(client, "both")["containerStatuses"]
    assert [(entry["name"], entry["ready"]) for entry in statuses] == [("main", True), ("beside", True)]


def test_a_command_is_asked_to_end_and_may_take_its_time(up: tuple[Layout, Client]) -> None:
    layout, client = up
    script = "trap 'echo asked; sleep 0.3; echo ended; exit 0' TERM; echo started; while :; do sleep 0.05; done"
    apply(client, pod("polite", command=["sh", "-c", script]))
    log = layout.log("default.polite.main")
    until(lambda: log.exists() and "started" in log.read_text(), "start")
    client.delete(POD, "polite", "default")
    assert client.get(POD, "polite", "default")["metadata"]["deletionTimestamp"]
    until(lambda: is_gone(client, "polite"), "end")
    assert log.read_text() == "started\nasked\nended\n"


def test_a_command_that_does_not_listen_is_killed_when_its_time_is_over(up: tuple[Layout, Client]) -> None:
    _, client = up
    apply(client, pod("deaf", command=["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]))
    until(lambda: is_ready(client.get(POD, "deaf", "default")), "ready")
    client.delete(POD, "deaf", "default", grace_seconds=1)
    until(lambda: is_gone(client, "deaf"), "end", 5)


def test_what_is_deleted_by_force_is_taken_down_all_the_same(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, pod("forced", hostNetwork=True, ports=(7000,)))
    until(lambda: is_ready(client.get(POD, "forced", "default")), "ready")
    client.delete(POD, "forced", "default", grace_seconds=0)
    until(lambda: not any(entry.where == "default/forced" for entry in lab.status(layout.lab).processes), "end")
    with pytest.raises(ConnectionRefusedError):
        get(layout, "node1", "192.168.1.2", 7000)


def test_a_pod_on_a_node_that_is_none_goes_when_it_is_deleted(up: tuple[Layout, Client]) -> None:
    _, client = up
    client.create(POD, pod("lost", nodeName="nowhere"), "default")
    assert client.get(POD, "lost", "default")["status"]["phase"] == "Pending"
    client.delete(POD, "lost", "default")
    until(lambda: is_gone(client, "lost"), "the pod is gone")


def test_a_name_as_long_as_kubernetes_allows_gets_a_namespace(up: tuple[Layout, Client]) -> None:
    layout, client = up
    name = ".".join(["a" * 60] * 4)
    apply(client, pod(name))
    until(lambda: is_ready(client.get(POD, name, "default")), "ready")
    assert get(layout, "node1", status_of(client, name)["podIP"], 8080, "/hostname") == f"{name}\n"
    client.delete(POD, name, "default")
    until(lambda: is_gone(client, name), "end")


def test_after_a_reboot_the_same_lab_is_built_again() -> None:
    name = f"er{os.getpid() % 10000}"
    with running(name, nodes=2, iptables_variant="nft") as (layout, client):
        apply(client, pod("web-1"), pod("web-2"), pod("job", command=["sleep", "1000"]))
        addresses = ready_pods(client, 3)
        client.close()
        # What a reboot leaves: nothing of /run, nothing that ran, and the state on disk.
        for entry in lab.status(name).processes:
            os.kill(entry.pid, signal.SIGKILL)
        tear_down(Journal(layout.journal, "test"), grace=0)
        shutil.rmtree(layout.run)
        assert not lab.up(clusterfile.read([], clusterfile.Overrides(lab=name))).was_up
        client = Client(layout.api_url)
        found = lab.status(name)
        assert (len(found.nodes), found.proxy.variant) == (2, "nft")
        assert ready_pods(client, 3) == addresses
        assert get(layout, "node2", addresses["web-1"], 8080, "/hostname") == "web-1\n"
        client.close()
    assert_nothing_is_left(name)


def test_a_node_may_be_left_to_another_proxy() -> None:
    name = f"eo{os.getpid() % 10000}"
    cluster = clusterfile.read([], clusterfile.Overrides(lab=name, nodes=1, proxy_mode="none"))
    try:
        found = lab.up(cluster).status
        assert [(node.proxy, node.ready) for node in found.nodes] == [("none", True)]
        assert [entry.role for entry in found.processes if entry.role != "pod"] == ["control-plane", "fork-server"]
        assert "has no names" not in Layout(name).log("control-plane").read_text(), "it waited for what cannot be yet"
        apply(Client(Layout(name).api_url), pod("web-1"))
        lab.resync(name)
    finally:
        lab.down(name)
    assert_nothing_is_left(name)


def test_what_a_lab_remembers_is_for_root_alone(up: tuple[Layout, Client]) -> None:
    layout, _ = up
    modes = {path.name: path.stat().st_mode & 0o777 for path in layout.state.iterdir()}
    assert {"cluster.json", "state.db", "state.db-wal", "state.db-shm", "tokens.json"} <= set(modes)
    assert modes == {name: 0o700 if (layout.state / name).is_dir() else 0o600 for name in modes}
