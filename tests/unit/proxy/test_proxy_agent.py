"""The agent's loop, with time and backend in the test's hands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kproxy.api.types import (
    EndpointSlice,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    SliceEndpoint,
    SlicePort,
)
from kproxy.errors import HostError, TransactionError
from kproxy.proxy import metrics as names
from kproxy.proxy.agent import Agent, Command, Proxier, Reports
from kproxy.proxy.backends import Condition
from kproxy.proxy.changes import Batch, Change, HealthCheck, ObjectKey, Tracked, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.node import ZONE_LABEL
from kproxy.proxy.plan import PlanDelta
from kproxy.proxy.progress import Progress
from kproxy.proxy.runner import Runner
from kproxy.proxy.services import ServiceName


class FakeBackend:
    def __init__(self) -> None:
        self.deltas: list[PlanDelta] = []
        self.error: HostError | None = None
        self.canary = Condition.INTACT

    def apply(self, delta: PlanDelta) -> None:
        if self.error:
            raise self.error
        self.deltas.append(delta)

    def condition(self) -> Condition:
        return self.canary


class Nothing:
    def __init__(self) -> None:
        self.udp_passes = 0
        self.error: HostError | None = None
        self.health_checks: dict[ServiceName, HealthCheck] = {}

    def reconcile(self, changed: Any) -> int:
        self.udp_passes += 1
        if self.error:
            raise self.error
        return 0

    def sync(self, wanted: Mapping[ServiceName, HealthCheck]) -> bool:
        self.health_checks = dict(wanted)
        return True


class World:
    """One IPv4 proxier, its agent, and a clock that only the test moves."""

    def __init__(self, **config: Any) -> None:
        self.now = 1000.0
        self.config = ProxyConfig(**config)
        self.backend, self.other = FakeBackend(), Nothing()
        runner = Runner(self.config.iptables_min_sync_period, self.config.iptables_sync_period)
        proxier = Proxier(
            family=Family.IPV4,
            tracker=Tracker(Family.IPV4, "node1"),
            backend=self.backend,
            runner=runner,
            conntrack=self.other,
            health_checks=self.other,
        )
        self.progress = Progress()
        self.health = Health(2 * self.config.iptables_sync_period, lambda: self.now)
        self.metrics = Metrics(lambda: self.now)
        reports = Reports(self.progress, self.health, self.metrics)
        self.agent = Agent(self.config, "node1", [proxier], reports, lambda: ())
        self.objects: dict[ObjectKey, Tracked] = {}

    def tell(self, *values: Tracked, rv: int = 1, kinds: tuple[str, ...] = ("Service", "EndpointSlice")) -> None:
        changes = []
        for value in values:
            key = ObjectKey(type(value).__name__, value.metadata.namespace, value.metadata.name)
            changes.append(Change(key, self.objects.get(key), value))
            self.objects[key] = value
        self.agent.handle(Batch(tuple(changes), dict.fromkeys(kinds, rv)), self.now)
        self.work()

    def work(self) -> None:
        self.agent.work(lambda: self.now)

    def sleep(self, seconds: float) -> None:
        """Let time pass, waking the agent whenever it wants to be woken."""
        end = self.now + seconds
        while (due := self.agent.next_due()) <= end:
            self.now = max(self.now, due)
            self.work()
        self.now = end

    @property
    def resource_version(self) -> str:
        return str(self.progress.as_json()["resourceVersion"])


def service(name: str = "web", *, port: int = 80, protocol: str = "TCP") -> Service:
    spec = ServiceSpec(cluster_ip="10.96.0.50", ports=(ServicePort(port=port, name="http", protocol=protocol),))
    return Service(metadata=ObjectMeta(name=name, namespace="default"), spec=spec)


def endpoints(*addresses: str, protocol: str = "TCP") -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="default", labels={"kubernetes.io/service-name": "web"}),
        endpoints=tuple(SliceEndpoint(addresses=(address,)) for address in addresses),
        ports=(SlicePort(name="http", port=8080, protocol=protocol),),
    )


def node(zone: str) -> Node:
    addresses = (NodeAddress("InternalIP", "192.168.1.2"),)
    return Node(metadata=ObjectMeta(name="node1", labels={ZONE_LABEL: zone}), status=NodeStatus(addresses))


def test_nothing_is_written_before_both_lists_are_in() -> None:
    world = World()

    world.tell(service(), kinds=("Service",))
    assert world.backend.deltas == []
    world.tell(kinds=("EndpointSlice",))

    assert [delta.is_full for delta in world.backend.deltas] == [True]
    assert world.resource_version == "1"


def test_changes_within_the_minimum_period_are_one_sync() -> None:
    world = World(iptables_min_sync_period=1.0)
    world.tell(service())

    for number in (2, 3, 4):
        world.tell(endpoints(f"10.244.0.{number}"), rv=number)
    assert world.resource_version == "1"
    world.sleep(1.0)

    assert [delta.is_full for delta in world.backend.deltas] == [True, False]
    assert [plan.cluster for plan in world.backend.deltas[-1].written.values()] == [("10.244.0.4:8080",)]
    assert world.resource_version == "4"


def test_bookmark_advances_what_is_programmed_without_a_sync() -> None:
    world = World()
    world.tell(service())

    world.tell(rv=7)

    assert world.resource_version == "7"
    assert len(world.backend.deltas) == 1


def test_bookmark_does_not_overtake_a_change_that_waits() -> None:
    world = World(iptables_min_sync_period=1.0)
    world.tell(service())

    world.tell(endpoints("10.244.0.2"), rv=2)
    world.tell(rv=3)
    assert world.resource_version == "1"
    world.sleep(1.0)

    assert world.resource_version == "3"


def test_edit_without_effect_writes_nothing() -> None:
    world = World(iptables_min_sync_period=0.0)
    world.tell(service())
    relabelled = service()

    world.tell(
        Service(metadata=ObjectMeta(name="web", namespace="default", labels={"a": "b"}), spec=relabelled.spec), rv=2
    )

    assert len(world.backend.deltas) == 1
    assert world.resource_version == "2"


def test_what_has_no_effect_is_told_once_when_it_has_lasted(caplog: pytest.LogCaptureFixture) -> None:
    world = World(iptables_sync_period=30.0)
    world.tell(service(), endpoints("10.244.0.2"))
    world.tell(endpoints("10.244.0.2", protocol="UDP"), rv=2)
    world.sleep(3.0)
    assert caplog.messages == []

    world.sleep(100.0)
    world.tell(endpoints("10.244.0.3", protocol="UDP"), rv=3)
    world.sleep(100.0)

    assert caplog.messages == [
        'EndpointSlice "default/web-1": ports[0]: Service "default/web" has no UDP port named "http": '
        "no traffic comes here"
    ]


def test_failed_sync_is_repeated_in_full_after_the_sync_period() -> None:
    world = World(iptables_min_sync_period=0.0, iptables_sync_period=30.0)
    world.tell(service())
    world.backend.error = TransactionError("refused", line=3, text="-A X")

    world.tell(endpoints("10.244.0.2"), rv=2)
    assert world.resource_version == "1"
    assert "refused" in world.progress.as_json()["lastError"]
    world.backend.error = None
    world.sleep(29.0)
    assert len(world.backend.deltas) == 1
    world.sleep(1.0)

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]
    assert world.resource_version == "2"
    assert world.progress.as_json()["lastError"] == ""


def test_change_after_a_failure_does_not_wait_for_the_retry() -> None:
    world = World(iptables_min_sync_period=1.0)
    world.backend.error = HostError("no tools")
    world.tell(service())
    world.backend.error = None

    world.tell(endpoints("10.244.0.2"), rv=2)
    world.sleep(1.0)

    assert [delta.is_full for delta in world.backend.deltas] == [True]


def test_proxier_is_unhealthy_when_a_change_waits_too_long() -> None:
    world = World(iptables_sync_period=30.0)
    world.tell(service())
    assert world.health.livez().status == 200
    world.backend.error = HostError("no tools")

    world.tell(endpoints("10.244.0.2"), rv=2)
    world.sleep(59.0)
    assert world.health.livez().status == 200
    world.sleep(2.0)

    assert world.health.livez().status == 503
    world.backend.error = None
    world.sleep(30.0)
    assert world.health.livez().status == 200


def test_everything_is_written_again_every_hour() -> None:
    world = World()
    world.tell(service())

    world.sleep(3601.0)

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]


def test_hour_is_an_hour_whatever_its_fractions() -> None:
    world = World()
    world.now = 1000.06  # in binary, (1000.06 + 3600) - 1000.06 is less than 3600
    world.tell(service())

    world.sleep(3600.0)

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]


def test_resync_is_a_full_sync_now() -> None:
    world = World(iptables_min_sync_period=0.0)
    world.tell(service())

    world.agent.handle(Command.RESYNC, world.now)
    world.work()

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]


@pytest.mark.parametrize(("condition", "syncs_soon"), [(Condition.LOST, 2), (Condition.BEING_LOST, 1)])
def test_lost_canary_is_a_full_sync_once_the_others_are_gone(condition: Condition, syncs_soon: int) -> None:
    world = World(iptables_sync_period=30.0)
    world.tell(service())
    world.backend.canary = condition

    world.sleep(31.0)
    assert len(world.backend.deltas) == syncs_soon
    world.backend.canary = Condition.INTACT if condition is Condition.LOST else condition
    world.sleep(5.5)

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]


def test_new_zone_is_a_full_sync() -> None:
    world = World(iptables_min_sync_period=0.0)
    world.tell(node("a"), service())

    world.tell(node("b"), kinds=("Node",))

    assert [delta.is_full for delta in world.backend.deltas] == [True, True]


def test_udp_flows_are_looked_at_at_the_start_and_after_udp_changes_only() -> None:
    world = World(iptables_min_sync_period=0.0)
    world.tell(service(), endpoints("10.244.0.2"))
    assert world.other.udp_passes == 1
    world.tell(service(port=81), endpoints("10.244.0.3"), rv=2)
    assert world.other.udp_passes == 1

    world.tell(service(protocol="UDP"), endpoints("10.244.0.2", protocol="UDP"), rv=3)
    assert world.other.udp_passes == 2
    world.tell(rv=4)

    assert world.other.udp_passes == 2


def test_flows_that_could_not_be_looked_at_are_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World(iptables_sync_period=30.0)
    world.other.error = HostError("no conntrack")
    world.tell(service())
    assert "stale UDP flows stay for now: no conntrack" in caplog.text

    world.other.error = None
    world.sleep(31.0)
    world.sleep(31.0)

    assert world.other.udp_passes == 2


def test_agent_counts_and_times_what_kube_proxy_does() -> None:
    world = World(iptables_min_sync_period=1.0)
    world.tell(service(), endpoints("10.244.0.2"))

    world.tell(service(port=81), endpoints("10.244.0.3"), rv=2)
    waiting = world.metrics.snapshot()
    world.backend.error = HostError("no tools")
    world.sleep(1.0)
    found = world.metrics.snapshot()

    assert (waiting[names.SERVICE_CHANGES_PENDING], waiting[names.ENDPOINT_CHANGES_PENDING]) == ({(): 1}, {(): 1})
    assert (found[names.SERVICE_CHANGES_PENDING], found[names.ENDPOINT_CHANGES_PENDING]) == ({(): 0}, {(): 0})
    assert (found[names.SERVICE_CHANGES], found[names.ENDPOINT_CHANGES]) == ({(): 2}, {(): 2})
    assert found[names.LAST_SYNC] == found[names.LAST_QUEUED] == {("IPv4",): 1000.0}
    counts = {
        metric: sum(value.counts)
        for metric in (names.SYNC_DURATION, names.FULL_SYNC_DURATION, names.PARTIAL_SYNC_DURATION)
        if isinstance(value := found[metric][("IPv4",)], names.Distribution)
    }
    assert counts == {names.SYNC_DURATION: 2, names.FULL_SYNC_DURATION: 1, names.PARTIAL_SYNC_DURATION: 1}
    assert found[names.RESTORE_FAILURES] == found[names.PARTIAL_RESTORE_FAILURES] == {("IPv4",): 1}
    world.sleep(30.0)
    assert world.metrics.snapshot()[names.PARTIAL_RESTORE_FAILURES] == {("IPv4",): 1}


def test_fault_that_lasts_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(iptables_sync_period=30.0)
    world.backend.error = TransactionError("refused", line=3, text="-A X")

    with caplog.at_level("INFO"):
        world.tell(service())
        world.sleep(100.0)
        world.backend.error = None
        world.sleep(30.0)

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "line 3: -A X" in told[0]
    assert "work again" in told[1]
