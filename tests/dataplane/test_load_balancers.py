"""Load balancers of every kind in one lab: addresses, what verify says, and that they outlive who started them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from balancer_world import ADDRESSES, DEADLINE, ask, fill, healed, pid_of, serving
from lab_support import apply, assert_nothing_is_left, pod, until

from kproxy.api.kinds import EVENT, SERVICE
from kproxy.api.types import Object
from kproxy.testing.labs import Lab, fresh_lab, run_kproxy
from netns.process import find

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab("--ip-family", "dual") as one:
        fill(one)
        yield one


def service(name: str, *, annotations: dict[str, str] | None = None, app: str = "web", **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"type": "LoadBalancer", "selector": {"app": app}, "ports": [{"port": 80}], **spec},
    }


def ingress(lab: Lab, name: str) -> list[Object]:
    found: list[Object] = lab.client.get(SERVICE, name, "default")["status"]["loadBalancer"].get("ingress") or []
    return found


def messages(lab: Lab, name: str) -> list[str]:
    return [event["message"] for event in lab.client.list(EVENT).items if event["involvedObject"].get("name") == name]


@pytest.fixture
def made(lab: Lab) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        lab.client.delete(SERVICE, name, "default")


# What is special beside the plain ones that `fill` makes.
SPECIAL: tuple[Object, ...] = (
    service("ranged-l2", loadBalancerSourceRanges=["203.0.113.0/24"], externalTrafficPolicy="Local"),
    service(
        "ranged-nlb",
        annotations={"kproxy.dev/load-balancer-ip-mode": "Proxy"},
        loadBalancerClass="kproxy.dev/nlb",
        loadBalancerSourceRanges=["192.168.1.0/24"],
    ),
    service("ranged-classic", loadBalancerClass="kproxy.dev/classic", loadBalancerSourceRanges=["192.168.1.2/32"]),
    service(
        "sticky-nlb",
        annotations={"kproxy.dev/load-balancer-ip-mode": "Proxy"},
        loadBalancerClass="kproxy.dev/nlb",
        sessionAffinity="ClientIP",
        externalTrafficPolicy="Local",
        ipFamilyPolicy="RequireDualStack",
    ),
    service(
        "vip-classic", annotations={"kproxy.dev/load-balancer-ip-mode": "VIP"}, loadBalancerClass="kproxy.dev/classic"
    ),
    service("no-node-ports", allocateLoadBalancerNodePorts=False),
    service("empty-l2", app="nobody"),
    service("empty-local-l2", app="nobody", externalTrafficPolicy="Local"),
    service("empty-nlb", app="nobody", loadBalancerClass="kproxy.dev/nlb"),
    service("empty-classic", app="nobody", loadBalancerClass="kproxy.dev/classic"),
)


def test_every_kind_does_what_verify_promises(lab: Lab, made: list[str]) -> None:
    for obj in SPECIAL:
        made.append(obj["metadata"]["name"])
    lab.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(SPECIAL)}))
    rows = json.loads(lab.run("verify", "--no-why", "-o", "json", expected=(0, 1)))
    assert [row for row in rows if not row["ok"]] == []
    balanced = [row for row in rows if row["kind"] == "LoadBalancer"]
    assert {row["service"].partition(":")[0] for row in balanced} == {
        *(f"default/{name}" for name in ADDRESSES),
        *(f"default/{name}" for name in made),
    }
    # The answers that tell the kinds apart, seen from the client.
    seen = {row["service"]: row["seen"] for row in balanced if row["client"] == "client/client"}
    assert seen["default/nlb-local:80"]["source"] == "kept"
    assert set(seen["default/nlb-local:80"]["endpoints"]) == {"10.244.1.2:80", "10.244.2.2:80"}
    assert len(seen["default/l2-local:80"]["endpoints"]) == 1
    assert seen["default/classic-local:80"]["endpoints"] == [f"{ADDRESSES['classic-local']}:80"]
    assert {seen[f"default/ranged-{kind}:80"]["verdict"] for kind in ("nlb", "classic")} == {"dropped"}
    assert seen["default/ranged-l2:80"]["verdict"] == "answered"
    balancers = {
        row["seen"]["source"] for row in rows if row["client"] == "router/router" and "local" in row["service"]
    }
    assert "kept" in balancers


def test_a_service_is_pending_until_it_has_an_address_and_says_why_not(lab: Lab, made: list[str]) -> None:
    made += ["elsewhere", "taken", "portless"]
    apply(
        lab.client,
        service("elsewhere", loadBalancerIP="192.0.2.1"),
        service("taken", annotations={"kproxy.dev/load-balancer-ips": ADDRESSES["nlb"]}),
        service("portless", loadBalancerClass="kproxy.dev/nlb", allocateLoadBalancerNodePorts=False),
    )
    expected = {
        "elsewhere": "192.0.2.1 is not in the pool (198.51.100.0/24, 2001:db8:198::/112)",
        "taken": f"{ADDRESSES['nlb']} belongs to default/nlb: they have no sharing key in common",
        "portless": "nlb sends to node ports, and allocateLoadBalancerNodePorts is false",
    }
    for name, reason in expected.items():
        told = f"Error syncing load balancer: {reason}"
        until(lambda name=name, told=told: told in messages(lab, name), f"{name}: {told}", DEADLINE)
        assert ingress(lab, name) == []
    assert lab.run("get", "service", "taken", "--no-headers").split()[3] == "<pending>"
    # What was in the way goes: the Service that waits is served.
    lab.client.patch(SERVICE, "taken", {"metadata": {"annotations": {"kproxy.dev/load-balancer-ips": None}}}, "default")
    until(lambda: ingress(lab, "taken"), "an address after all", DEADLINE)


def test_services_share_an_address_by_key(lab: Lab, made: list[str]) -> None:
    made += ["one", "two"]
    key = {"metallb.universe.tf/allow-shared-ip": "us"}
    apply(
        lab.client,
        service("one", annotations=key),
        service("two", annotations=key, ports=[{"port": 81, "targetPort": 80}]),
    )
    first, second = (until(lambda name=name: ingress(lab, name), name, DEADLINE)[0]["ip"] for name in ("one", "two"))
    assert first == second
    until(lambda: serving(lab, "two").announcers, "it is announced", DEADLINE)
    assert serving(lab, "one").announcers == serving(lab, "two").announcers


OTHERS = {
    "annotation": service("others", annotations={"kproxy.dev/load-balancer": "none"}),
    "class": service("others", loadBalancerClass="example.com/theirs"),
}


@pytest.mark.parametrize("obj", OTHERS.values(), ids=OTHERS)
def test_somebody_elses_service_is_left_alone(lab: Lab, made: list[str], obj: Object) -> None:
    apply(lab.client, obj)
    made.append("others")
    status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    lab.client.patch(SERVICE, "others", status, "default", subresource="status")
    # When one that came later is served, this one has been looked at.
    apply(lab.client, service("later"))
    made.append("later")
    until(lambda: ingress(lab, "later"), "the later one is served", DEADLINE)
    assert ingress(lab, "others") == [{"ip": "192.0.2.7", "ipMode": "VIP"}]


def test_who_dies_is_started_again_and_who_need_not_lives_on(lab: Lab) -> None:
    before = {role: pid_of(lab.status, role) for role in ("load-balancer", "haproxy", "control-plane")}
    os.kill(before["load-balancer"], signal.SIGKILL)
    # What is in the kernel and in HAProxy goes on meanwhile.
    assert all(until(lambda name=name: ask(lab, ADDRESSES[name]), name, 5) for name in ("nlb", "classic"))
    until(lambda: pids(lab, "load-balancer") not in ([], [before["load-balancer"]]), "another balancer", DEADLINE)
    healed(lab)
    balancer = pid_of(lab.status, "load-balancer")
    os.kill(before["control-plane"], signal.SIGKILL)
    until(lambda: ask(lab, ADDRESSES["l2"].partition(",")[0]), "an answer without a control plane", DEADLINE)
    assert run_kproxy(["lab", "up", "--lab", lab.name], lab=lab.name).returncode == 0
    assert pid_of(lab.status, "load-balancer") == balancer
    assert pid_of(lab.status, "haproxy") == before["haproxy"]
    os.kill(before["haproxy"], signal.SIGKILL)
    until(lambda: pids(lab, "haproxy") not in ([], [before["haproxy"]]), "another HAProxy", DEADLINE)
    until(lambda: ask(lab, ADDRESSES["classic"]), "it answers", DEADLINE)
    apply(lab.client, service("afterwards"))
    until(lambda: ingress(lab, "afterwards"), "a Service that came afterwards has an address", DEADLINE)
    lab.client.delete(SERVICE, "afterwards", "default")


def pids(lab: Lab, role: str) -> list[int]:
    return [one.pid for one in lab.status.processes if one.role == role]


def test_a_lab_without_such_services_has_no_balancer_and_down_leaves_none() -> None:
    with fresh_lab() as small:
        assert not pids(small, "load-balancer")
        apply(small.client, pod("web-1", ports=(80,)), service("one", loadBalancerClass="kproxy.dev/classic"))
        until(lambda: ingress(small, "one"), "an address", DEADLINE)
        until(lambda: pids(small, "haproxy"), "HAProxy runs", DEADLINE)
        found = [*pids(small, "load-balancer"), *pids(small, "haproxy")]
        for one in (*found, pid_of(small.status, "control-plane")):
            os.kill(one, signal.SIGSTOP)
        assert run_kproxy(["lab", "down", "--lab", small.name], lab=small.name).returncode == 0
        assert_nothing_is_left(small.name)
        assert [find(pid) for pid in found] == [None, None]
