"""How much work a change is, counted: what one Service costs does not depend on how many others there are."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.api.types import EndpointSlice, ObjectMeta, Service, ServicePort, ServiceSpec, SliceEndpoint, SlicePort
from kproxy.proxy import changes, collector
from kproxy.proxy.backends.iptables.render import Found, RuleSet
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracker, joined
from kproxy.proxy.collector import MANY, OFTEN, SELDOM, Collector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope
from kproxy.proxy.services import ServiceName
from kproxy.proxy.stale_flows import UdpFrontends

AROUND = Circumstances(NodeIdentity("node1"))
SCOPE = NodePortScope()
SIZES = (20, 300)
"""Both below the 1,000 endpoints at which the rules lose their comments."""


class Counted(dict[Any, Any]):
    """A dictionary that counts how many of its items are looked at."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        Counted.touched += 1
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        Counted.touched += 1
        return super().get(key, default)

    def __iter__(self) -> Iterator[Any]:
        for key in super().__iter__():
            Counted.touched += 1
            yield key

    def items(self) -> Any:
        Counted.touched += len(self)
        return super().items()

    def values(self) -> Any:
        Counted.touched += len(self)
        return super().values()


def service(number: int, protocol: str) -> Service:
    return Service(
        metadata=ObjectMeta(name=f"s{number}", namespace="default"),
        spec=ServiceSpec(
            type="LoadBalancer",
            cluster_ip=f"10.96.{number // 256}.{number % 256}",
            external_traffic_policy="Local",
            health_check_node_port=10000 + number,
            ports=(ServicePort(port=80, protocol=protocol, node_port=30000 + number),),
        ),
    )


def slice_(number: int, first: int, protocol: str) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"s{number}-1", namespace="default", labels={"kubernetes.io/service-name": f"s{number}"}
        ),
        endpoints=tuple(
            SliceEndpoint(addresses=(f"10.244.{number % 256}.{host}",), node_name="node1") for host in (first, 2, 3)
        ),
        ports=(SlicePort(name="", port=8080, protocol=protocol),),
    )


def told(number: int, first: int, protocol: str) -> Change:
    value = slice_(number, first, protocol)
    return Change(ObjectKey("EndpointSlice", "default", value.metadata.name), None, value)


def loaded(services: int, protocol: str) -> Tracker:
    tracker = Tracker(Family.IPV4, "node1")
    tracker.take(
        Change(ObjectKey("Service", "default", f"s{number}"), None, service(number, protocol))
        for number in range(services)
    )
    tracker.take(told(number, 1, protocol) for number in range(services))
    return tracker


def work_of_a_change(services: int, protocol: str) -> tuple[int, int]:
    """Items touched, and bytes of rules, for one endpoint of one Service among so many."""
    tracker = loaded(services, protocol)
    rules = RuleSet(Settings(Family.IPV4))
    rules.take(tracker.delta(AROUND, SCOPE, is_full=True))
    assert list(rules.restore_all(Found()))
    tracker.pop_udp_changes()
    tracker.pop_triggers()
    for holder in (tracker, rules):
        for name, value in vars(holder).items():
            if type(value) is dict:
                setattr(holder, name, Counted(value))
    Counted.touched = 0
    tracker.take([told(7, 9, protocol)])
    delta = tracker.delta(AROUND, SCOPE)
    written = "".join(rules.restore_changed(rules.take(delta)))
    assert (len(delta.written), len(tracker.pop_udp_changes())) == (1, protocol == "UDP")
    assert tracker.without_local_endpoints == (0, 0)
    assert tracker.pop_triggers() == []
    assert tracker.pop_health_check_changes()
    assert tracker.pending == (0, 0)
    return Counted.touched, len(written)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_change_to_one_service_touches_as_much_among_many_as_among_few(protocol: str) -> None:
    few, many = (work_of_a_change(size, protocol) for size in SIZES)

    assert few == many
    assert few[0] < 100


def test_a_loop_over_all_services_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tracker.delta

    def delta(self: Tracker, *arguments: Any, **options: Any) -> Any:
        assert sum(1 for _ in self._specs)
        return original(self, *arguments, **options)

    monkeypatch.setattr(changes.Tracker, "delta", delta)

    few, many = (work_of_a_change(size, "TCP") for size in SIZES)

    assert few != many


@pytest.mark.parametrize("services", SIZES)
def test_udp_change_makes_the_frontends_of_one_service_due(services: int) -> None:
    tracker, frontends = loaded(services, "UDP"), UdpFrontends()
    frontends.take(tracker.pop_udp_changes())
    assert len(frontends.due) == 2 * services
    frontends.done()

    tracker.take([told(7, 9, "UDP")])
    frontends.take(tracker.pop_udp_changes())

    assert frontends.due == {("10.96.0.7", 80), ("", 30007)}
    now = frozenset((f"10.244.7.{host}", 8080) for host in (9, 2, 3))
    assert frontends.allowed(["192.168.1.2"]) == {("10.96.0.7", 80): now, ("192.168.1.2", 30007): now}


def test_frontend_that_two_services_claim_keeps_the_other_ones_endpoints() -> None:
    tracker, frontends = loaded(2, "UDP"), UdpFrontends()
    both = tracker.pop_udp_changes()
    ((spec, serving),) = both[ServiceName("default", "s1")]
    ((first, _),) = both[ServiceName("default", "s0")]
    one, other = ServiceName("default", "one"), ServiceName("default", "other")
    frontends.take({one: ((first, frozenset({"10.244.0.1:8080"})),), other: ((first, serving),)})
    frontends.done()

    frontends.take({one: ()})

    assert frontends.allowed([])[(first.cluster_ip, 80)] == frozenset((f"10.244.1.{host}", 8080) for host in (1, 2, 3))
    assert spec.cluster_ip not in {address for address, _ in frontends.due}


class Calls:
    """What is asked of the garbage collector."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        for name in ("disable", "freeze", "unfreeze"):
            monkeypatch.setattr(gc, name, lambda name=name: self.made.append(name))
        monkeypatch.setattr(gc, "collect", lambda generation=2: self.made.append(f"collect {generation}"))

    def pop(self) -> list[str]:
        made, self.made = self.made, []
        return made


def test_garbage_is_collected_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    resting = Collector(0.0)
    assert calls.pop() == ["disable"]

    resting.rest(MANY, 1.0, is_idle=True)
    assert calls.pop() == ["freeze"]
    for _ in range(OFTEN - 1):
        resting.rest(1, 2.0, is_idle=True)
    assert calls.pop() == []
    resting.rest(1, 2.0, is_idle=False)
    assert calls.pop() == ["collect 0", "freeze"]
    resting.rest(1, 2.0 + SELDOM, is_idle=True)
    assert calls.pop() == ["collect 0", "freeze"]
    resting.rest(0, collector.EVERYTHING, is_idle=False)
    assert calls.pop() == ["collect 0", "freeze"]
    resting.rest(0, collector.EVERYTHING + 1, is_idle=True)
    assert calls.pop() == ["unfreeze", "collect 2", "freeze"]


def test_slices_that_change_together_are_merged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = loaded(2, "TCP")
    tracker.delta(AROUND, SCOPE, is_full=True)
    merges: list[int] = []
    original = changes.from_slices

    def counting(*arguments: Any) -> Any:
        merges.append(1)
        return original(*arguments)

    monkeypatch.setattr(changes, "from_slices", counting)
    batches = [Batch((told(1, first, "TCP"),), {"EndpointSlice": first}) for first in range(10, 60)]

    tracker.take(joined(batches).changes)

    assert (len(merges), joined(batches).reached) == (1, {"EndpointSlice": 59})
    (plan,) = tracker.delta(AROUND, SCOPE).written.values()
    assert "10.244.1.59:8080" in plan.local
