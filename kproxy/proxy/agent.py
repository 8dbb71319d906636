"""The loop: changes -> plans -> backend -> conntrack, health.

Law: one thread, and time comes from outside: ``Agent.handle`` and ``Agent.work`` are told what time it is, so that a
test can run an hour in a moment. Sources run in threads of their own and hand over immutable batches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from kproxy.api.types import EndpointSlice, Node, ServiceCIDR
from kproxy.errors import HostError, TransactionError
from kproxy.proxy import metrics as names
from kproxy.proxy.backends import Backend, Condition
from kproxy.proxy.changes import Batch, Change, HealthCheck, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.plan import NodePortScope
from kproxy.proxy.progress import Progress
from kproxy.proxy.runner import MAX_INTERVAL, Runner
from kproxy.proxy.services import ServiceName
from kproxy.proxy.setup import circumstances, node_port_scope, service_cidrs
from kproxy.proxy.stale_flows import UdpPorts

_LOG = logging.getLogger(__name__)

CANARY_PATIENCE = 5.0
"""Seconds to wait for the rest of our chains to go once some have gone (kube-proxy: iptables.Monitor)."""
CANARY_RECHECK = 0.1
"""Seconds between looks while waiting so."""
TOLD_AT_ONCE = 20
"""How many Services are looked through for what has no effect, at a stretch."""
TELLING_PAUSE = 0.01
"""Seconds between such stretches."""


class Command(Enum):
    """What the agent can be told beside changes."""

    RESYNC = "resync"
    STOP = "stop"
    FAIL = "fail"
    """End with an error: something that cannot be mended while running has happened."""


class Conntrack(Protocol):
    """Something that forgets UDP flows which no longer go where they should."""

    def reconcile(self, changed: Mapping[ServiceName, UdpPorts]) -> int:
        """Delete the stale entries of Services that changed; returns how many.

        Args:
            changed: the UDP ports, as they are now, of each Service where they or their endpoints are different.

        Raises:
            HostError: conntrack could not be read or written; what had to be done is remembered for the next time.
        """


class HealthChecks(Protocol):
    """The health check node ports of Services."""

    def sync(self, wanted: Mapping[ServiceName, HealthCheck]) -> bool:
        """Listen on exactly these ports; returns whether all of them could be opened."""


class Proxier(msgspec.Struct, kw_only=True):
    """One address family of the node.

    Attributes:
        family: its family.
        tracker: its Services.
        backend: where its plans go.
        runner: when it syncs.
        conntrack: who cleans up after it.
        health_checks: who answers load balancers.
        node_ports: where node ports answer, as of the last sync that looked.
        needs_full_sync: the next sync has to write everything.
        last_full_sync: when that last happened.
        programmed: the resourceVersion that the kernel holds.
        canary_due: when to look at the canary next.
        telling_due: when to tell next of objects that have no effect.
        losing_since: when it was first seen that somebody deletes our chains; None when nobody does.
        may_have_stale_flows: UDP flows have to be looked at: not done since the start, or it failed.
        misses_health_checks: some health check port could not be opened.
        last_fault: what made the last sync fail, but for its place in the input; empty when it succeeded.
    """

    family: Family
    tracker: Tracker
    backend: Backend
    runner: Runner
    conntrack: Conntrack
    health_checks: HealthChecks
    node_ports: NodePortScope = NodePortScope()
    needs_full_sync: bool = True
    last_full_sync: float = -math.inf
    programmed: int = 0
    canary_due: float = math.inf
    telling_due: float = math.inf
    losing_since: float | None = None
    may_have_stale_flows: bool = True
    misses_health_checks: bool = False
    last_fault: str = ""

    def due(self) -> tuple[float, float, float]:
        """When the next sync is due, the next look at the canary, and the next words."""
        return self.runner.due(), self.canary_due, self.telling_due


class Reports(NamedTuple):
    """Where the agent says how it goes."""

    progress: Progress
    health: Health
    metrics: Metrics


class Agent:
    """A node's proxiers and what they share.

    Args:
        config: the configuration.
        node_name: this node.
        proxiers: one per family.
        reports: told what is in the kernel and who is up to date.
        local_addresses: lists the host's addresses; asked only where node ports answer on some of them.
    """

    def __init__(
        self,
        config: ProxyConfig,
        node_name: str,
        proxiers: Sequence[Proxier],
        reports: Reports,
        local_addresses: Callable[[], Iterable[str]],
    ) -> None:
        self._config = config
        self._node_name = node_name
        self._proxiers = tuple(proxiers)
        self._local_addresses = local_addresses
        self._progress, self._health, self._metrics = reports
        self._node = NodeFacts()
        self._reached: dict[str, int] = {}
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._has_started = False

    # what comes in

    def handle(self, event: Batch | Command, now: float) -> None:
        """Take in what a source or a person says; nothing is written here."""
        if isinstance(event, Batch):
            self._take(event, now)
        elif event is Command.RESYNC:
            for proxier in self._proxiers:
                proxier.needs_full_sync = True
                self._trigger(proxier, now)

    def _take(self, batch: Batch, now: float) -> None:
        self._reached.update(batch.reached)
        for change in batch.changes:
            self._take_surroundings(change, now)
        for proxier in self._proxiers:
            proxier.tracker.take(batch.changes)
        self._count_changes(batch.changes)
        if not self._has_started:
            self._has_started = {"Service", "EndpointSlice"} <= self._reached.keys()
            if self._has_started:
                for proxier in self._proxiers:
                    self._trigger(proxier, now)
            return
        for proxier in self._proxiers:
            if proxier.tracker.is_dirty:
                self._trigger(proxier, now)
            elif proxier.runner.is_settled:
                proxier.programmed = self._resource_version
        self._report()

    def _take_surroundings(self, change: Change, now: float) -> None:
        if change.key.kind == "Node" and change.key.name == self._node_name:
            self._take_node(change.new if isinstance(change.new, Node) else None, now)
        elif change.key.kind == "ServiceCIDR" and self._config.is_nftables:
            self._take_service_cidr(change.key.name, change.new if isinstance(change.new, ServiceCIDR) else None, now)

    def _count_changes(self, changes: Iterable[Change]) -> None:
        """Every proxier sees every Service; a slice is for the one proxier of its family."""
        for change in changes:
            if change.key.kind == "Service":
                self._metrics.add(names.SERVICE_CHANGES, amount=len(self._proxiers))
            elif isinstance(slice_ := change.new or change.old, EndpointSlice):
                count = sum(proxier.family.value == slice_.address_type for proxier in self._proxiers)
                self._metrics.add(names.ENDPOINT_CHANGES, amount=count)
        self._tell_pending()

    def _tell_pending(self) -> None:
        pending = [proxier.tracker.pending for proxier in self._proxiers]
        self._metrics.set(names.SERVICE_CHANGES_PENDING, value=sum(each.services for each in pending))
        self._metrics.set(names.ENDPOINT_CHANGES_PENDING, value=sum(each.slices for each in pending))

    def _take_node(self, node: Node | None, now: float) -> None:
        known = facts(node)
        self._health.node_is_eligible(known.is_eligible)
        if node is None:
            _LOG.warning("the Node object %r is gone; going on with what it said", self._node_name)
            return
        if known.ips != self._node.ips and self._node.ips:
            _LOG.warning("the node's addresses changed to %s; rules go on with the ones seen at start", known.addresses)
        if known.zone != self._node.zone and self._has_started:
            _LOG.info("the node's zone changed to %r", known.zone)
            for proxier in self._proxiers:
                proxier.needs_full_sync = True
                self._trigger(proxier, now)
        self._node = NodeFacts(
            zone=known.zone,
            ips=self._node.ips or known.ips,
            addresses=known.addresses,
            pod_cidrs=self._node.pod_cidrs or known.pod_cidrs,
            is_eligible=known.is_eligible,
        )

    def _take_service_cidr(self, name: str, found: ServiceCIDR | None, now: float) -> None:
        """Unlike kube-proxy's, they take effect at once, not within the hour."""
        self._service_cidrs.pop(name, None)
        if found is not None:
            self._service_cidrs[name] = found
        for proxier in self._proxiers:
            self._trigger(proxier, now)

    def _trigger(self, proxier: Proxier, now: float) -> None:
        if self._has_started:
            proxier.runner.trigger(now)
            self._health.queued(proxier.family, now)
            self._metrics.set_to_now(names.LAST_QUEUED, proxier.family.value)

    @property
    def _resource_version(self) -> int:
        return min(self._reached.get("Service", 0), self._reached.get("EndpointSlice", 0))

    def _report(self) -> None:
        self._progress.reached(min((proxier.programmed for proxier in self._proxiers), default=0))

    # what goes out

    def next_due(self) -> float:
        """When ``work`` has something to do next, unless an event comes first."""
        return min((time for proxier in self._proxiers for time in proxier.due()), default=math.inf)

    def work(self, clock: Callable[[], float]) -> None:
        """Do everything that is due: syncs first, then looks at the canaries."""
        for proxier in self._proxiers:
            if proxier.runner.due() <= clock():
                self._sync(proxier, clock)
        for proxier in self._proxiers:
            if proxier.canary_due <= clock():
                self._look_at_canary(proxier, clock)
            if proxier.telling_due <= clock():
                self._tell_oddities(proxier, clock())

    def _sync(self, proxier: Proxier, clock: Callable[[], float]) -> None:
        started = clock()
        is_full = proxier.needs_full_sync or started >= proxier.last_full_sync + MAX_INTERVAL
        try:
            self._write(proxier, is_full=is_full)
        except HostError as error:
            self._has_failed(proxier, error, clock(), is_full=is_full)
        else:
            self._has_succeeded(proxier, clock, is_full=is_full)
        self._tell_pending()
        family, seconds = proxier.family.value, clock() - started
        self._metrics.observe(names.SYNC_DURATION, family, value=seconds)
        kind = names.FULL_SYNC_DURATION if is_full else names.PARTIAL_SYNC_DURATION
        self._metrics.observe(kind, family, value=seconds)

    def _write(self, proxier: Proxier, *, is_full: bool) -> None:
        around = circumstances(self._config, self._node_name, self._node, proxier.family)
        if is_full or not self._config.is_nftables:  # kube-proxy looks for addresses at each sync in one mode only
            addresses = self._local_addresses() if self._config.has_chosen_node_ports else ()
            proxier.node_ports = node_port_scope(self._config, self._node, proxier.family, addresses)
        delta = proxier.tracker.delta(around, proxier.node_ports, is_full=is_full)
        if self._config.is_nftables:
            delta = msgspec.structs.replace(
                delta, service_cidrs=service_cidrs(self._service_cidrs.values(), proxier.family)
            )
        proxier.backend.apply(delta)

    def _has_succeeded(self, proxier: Proxier, clock: Callable[[], float], *, is_full: bool) -> None:
        """The order is kube-proxy's: metrics, health, health check ports, endpoint counts, conntrack."""
        now, family = clock(), proxier.family.value
        if proxier.last_fault:
            _LOG.info("%s: syncs work again", family)
            proxier.last_fault = ""
        proxier.runner.finish(now, succeeded=True)
        proxier.needs_full_sync = False
        if is_full:
            proxier.last_full_sync = now
        proxier.canary_due = min(proxier.canary_due, now + self._config.sync_period)
        proxier.programmed = self._resource_version
        self._metrics.programmed(family, proxier.tracker.pop_triggers())
        self._metrics.set_to_now(names.LAST_SYNC, family)
        self._health.updated(proxier.family)
        if proxier.tracker.pop_health_check_changes() or proxier.misses_health_checks:
            proxier.misses_health_checks = not proxier.health_checks.sync(proxier.tracker.health_checks)
        without = proxier.tracker.without_local_endpoints
        self._metrics.set(names.NO_LOCAL_ENDPOINTS, "internal", family, value=without.internal)
        self._metrics.set(names.NO_LOCAL_ENDPOINTS, "external", family, value=without.external)
        self._reconcile_flows(proxier, proxier.tracker.pop_udp_changes(), clock)
        self._progress.synced(is_full=is_full)
        self._report()
        _LOG.debug("%s: %s sync up to %d", family, "full" if is_full else "partial", proxier.programmed)

    def _has_failed(self, proxier: Proxier, error: HostError, now: float, *, is_full: bool) -> None:
        """What the kernel holds is unknown now, so the next try writes everything."""
        family = proxier.family.value
        proxier.needs_full_sync = True
        proxier.runner.finish(now, succeeded=False)
        self._progress.failed(str(error))
        if self._config.is_nftables:
            self._metrics.add(names.NFTABLES_SYNC_FAILURES, family)
        else:
            self._metrics.add(names.RESTORE_FAILURES, family)
            if not is_full:
                self._metrics.add(names.PARTIAL_RESTORE_FAILURES, family)
        # a fault that lasts is told once, not every time it is met again
        fault = f"{error.reason}: {error.text}" if isinstance(error, TransactionError) else str(error)
        level = logging.DEBUG if fault == proxier.last_fault else logging.ERROR
        proxier.last_fault = fault
        retry = self._config.sync_period
        _LOG.log(level, "%s: sync failed; everything is written again within %g s: %s", family, retry, error)

    def _reconcile_flows(
        self, proxier: Proxier, changed: Mapping[ServiceName, UdpPorts], clock: Callable[[], float]
    ) -> None:
        """Cannot make a sync fail; what could not be done is tried again, within a sync period."""
        if not changed and not proxier.may_have_stale_flows:
            return
        proxier.may_have_stale_flows = True
        started, family = clock(), proxier.family.value
        try:
            deleted = proxier.conntrack.reconcile(changed)
        except HostError as error:
            _LOG.error("%s: stale UDP flows stay for now: %s", family, error)
            return
        proxier.may_have_stale_flows = False
        self._metrics.observe(names.CONNTRACK_DURATION, family, value=clock() - started)
        self._metrics.add(names.CONNTRACK_DELETED, family, amount=deleted)
        if deleted:
            _LOG.info("%s: deleted %d stale UDP flows", family, deleted)

    def _tell_oddities(self, proxier: Proxier, now: float) -> None:
        """A few at a time, so that no change has to wait."""
        for words in proxier.tracker.pop_oddities(TOLD_AT_ONCE):
            _LOG.warning("%s", words)
        proxier.telling_due = now + TELLING_PAUSE if proxier.tracker.may_have_oddities else math.inf

    def _look_at_canary(self, proxier: Proxier, clock: Callable[[], float]) -> None:
        now = clock()
        proxier.canary_due = now + self._config.sync_period
        self._reconcile_flows(proxier, {}, clock)  # if that failed after a sync
        proxier.telling_due = now  # only here, for by now it has lasted: a change may come in pieces
        try:
            condition = proxier.backend.condition()
        except HostError as error:
            _LOG.error("%s: cannot look at the canary: %s", proxier.family.value, error)
            return
        if condition is Condition.INTACT:
            proxier.losing_since = None
            return
        proxier.losing_since = now if proxier.losing_since is None else proxier.losing_since
        if condition is Condition.BEING_LOST and now - proxier.losing_since < CANARY_PATIENCE:
            proxier.canary_due = now + CANARY_RECHECK
            return
        _LOG.warning("%s: somebody deleted our chains: writing everything again", proxier.family.value)
        proxier.losing_since = None
        proxier.needs_full_sync = True
        self._trigger(proxier, now)
