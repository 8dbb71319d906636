"""What has changed since the last sync: objects in, the delta of plans out.

Law: pure. A change to one Service costs work for that Service alone, and an edit without effect costs nothing below.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from kproxy.api.types import EndpointSlice, Node, Service, ServiceCIDR
from kproxy.proxy import passed_over
from kproxy.proxy.endpoints import (
    Endpoint,
    PortKey,
    SliceEndpoints,
    from_slices,
    local_ready_addresses,
    merged,
    of_slice,
    service_of,
)
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope, PlanDelta, PortPlan, Refusal, plan_port
from kproxy.proxy.services import PortSpec, ServiceName, ServicePortName, port_specs
from kproxy.proxy.stale_flows import UdpPorts

Tracked = Service | EndpointSlice | Node | ServiceCIDR

TRIGGER_TIME_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
"""When the change happened that made the EndpointSlice controller write a slice."""


class ObjectKey(NamedTuple):
    """Which object; the namespace of a cluster-scoped one is empty."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.kind} "{self.namespace}/{self.name}"' if self.namespace else f'{self.kind} "{self.name}"'


class Change(msgspec.Struct, frozen=True):
    """One object is different now; old is None when it is new, new is None when it is gone."""

    key: ObjectKey
    old: Tracked | None
    new: Tracked | None


class Batch(msgspec.Struct, frozen=True):
    """Changes that a source saw together.

    Attributes:
        changes: in the order in which they happened.
        reached: per kind, the resourceVersion up to which the source has now told everything. A kind that is named has
            its first full list in.
    """

    changes: tuple[Change, ...]
    reached: Mapping[str, int]


def joined(batches: Sequence[Batch]) -> Batch:
    """What several batches tell, one after the other, as one: the work that they have in common is then done once."""
    changes = tuple(change for batch in batches for change in batch.changes)
    reached: dict[str, int] = {}
    for batch in batches:
        reached.update(batch.reached)
    return Batch(changes, reached)


class _Touched(msgspec.Struct):
    """What happened to a Service's slices in one batch.

    Attributes:
        slices: names of those that changed.
        moments: when the changes happened that made the controller write them, since a slice went last.
        has_lost: a slice went, or went to another Service.
    """

    slices: set[str]
    moments: list[float]
    has_lost: bool = False


class HealthCheck(NamedTuple):
    """A Service's health check node port, and how many ready endpoints it has on this node."""

    port: int
    local_endpoints: int


class Pending(NamedTuple):
    """How many changes no sync has answered yet."""

    services: int
    slices: int


class WithoutLocal(NamedTuple):
    """Service ports with policy Local that have endpoints, but none on this node."""

    internal: int
    external: int


class Tracker:
    """The state of all Services of one family, and which of them have to be looked at again."""

    def __init__(self, family: Family, node_name: str) -> None:
        self._family = family
        self._node_name = node_name
        self._services: dict[ServiceName, Service] = {}
        self._specs: dict[ServiceName, dict[ServicePortName, PortSpec]] = {}
        self._slices: dict[ServiceName, dict[str, EndpointSlice]] = {}
        self._slice_owner: dict[ServiceName, ServiceName] = {}
        # of Services with several slices, so that a change to one of them is no work for the others
        self._parts: dict[ServiceName, dict[str, SliceEndpoints]] = {}
        self._endpoints: dict[ServiceName, dict[PortKey, tuple[Endpoint, ...]]] = {}
        self._plans: dict[ServicePortName, PortPlan] = {}
        self._ports_of_plans: dict[ServiceName, tuple[ServicePortName, ...]] = {}
        self._planned_for: Circumstances | None = None
        self._dirty: set[ServiceName] = set()
        self._udp_changes: set[ServiceName] = set()
        self._changed_services: set[ServiceName] = set()
        self._changed_slices = 0
        self._triggers: dict[ServiceName, list[float]] = {}
        self._without_local: dict[ServiceName, WithoutLocal] = {}
        self._without_local_sum = WithoutLocal(0, 0)
        self._health_checks: dict[ServiceName, HealthCheck] = {}
        self._has_health_check_changes = True
        self._unread: set[ServiceName] = set()
        self._told: dict[ServiceName, frozenset[str]] = {}

    @property
    def is_dirty(self) -> bool:
        """Whether there is anything that the last delta did not hold."""
        return bool(self._dirty)

    def take(self, changes: Iterable[Change]) -> None:
        """Take changes in; those of kinds that no plan depends on are passed over.

        The slices of a Service are merged once, however many of them changed.
        """
        touched: dict[ServiceName, _Touched] = {}
        for change in changes:
            name = ServiceName(change.key.namespace, change.key.name)
            if change.key.kind == "Service":
                self._take_service(name, change.new if isinstance(change.new, Service) else None)
            elif change.key.kind == "EndpointSlice":
                self._take_slice(name, change.new if isinstance(change.new, EndpointSlice) else None, touched)
        for service, told in touched.items():
            if not self._refresh(service, told.slices):
                continue
            if told.has_lost:
                self._triggers.pop(service, None)
            if told.moments:
                self._triggers.setdefault(service, []).extend(told.moments)

    def _take_service(self, name: ServiceName, service: Service | None) -> None:
        before = self._specs.get(name, {})
        after = port_specs(service, self._family) if service else {}
        self._unread.add(name)
        if service and after:
            self._services[name] = service
        else:
            self._services.pop(name, None)
        if before == after:
            return
        self._mark(name, (*before, *after))
        self._changed_services.add(name)
        if after:
            self._specs[name] = after
        else:
            del self._specs[name]
        self._check_health(name)

    def _take_slice(
        self, slice_name: ServiceName, slice_: EndpointSlice | None, touched: dict[ServiceName, _Touched]
    ) -> None:
        """A slice may move to another Service by its label; both are then looked at again."""
        owner = service_of(slice_) if slice_ and slice_.address_type == self._family.value else ""
        before = self._slice_owner.pop(slice_name, None)
        after = ServiceName(slice_name.namespace, owner) if owner else None
        if before is not None and before != after:
            self._slices[before].pop(slice_name.name, None)
            told = touched.setdefault(before, _Touched(set(), []))
            told.slices.add(slice_name.name)
            told.moments.clear()
            told.has_lost = True
        if after is not None and slice_ is not None:
            self._slice_owner[slice_name] = after
            self._slices.setdefault(after, {})[slice_name.name] = slice_
            told = touched.setdefault(after, _Touched(set(), []))
            told.slices.add(slice_name.name)
            if (moment := _trigger_time(slice_)) is not None:
                told.moments.append(moment)

    def _refresh(self, service: ServiceName, changed: Collection[str]) -> bool:
        """Merge a Service's slices, of which some have changed, anew; returns whether that made a difference."""
        self._unread.add(service)
        slices = self._slices[service]
        before = self._endpoints.get(service, {})
        after = self._merged(service, changed)
        if not slices:
            del self._slices[service]
        if before == after:
            return False
        self._mark(service, (*before, *after))
        self._changed_slices += 1
        if after:
            self._endpoints[service] = after
        else:
            del self._endpoints[service]
        self._check_health(service)
        return True

    def _merged(self, service: ServiceName, changed: Collection[str]) -> dict[PortKey, tuple[Endpoint, ...]]:
        slices = self._slices[service]
        if len(slices) < 2:
            self._parts.pop(service, None)
            return from_slices(slices.values(), self._family, self._node_name)
        parts = self._parts.setdefault(service, {})
        for name in changed:
            parts.pop(name, None)
        for name in slices.keys() - parts.keys():
            parts[name] = of_slice(slices[name], self._family, self._node_name)
        return merged(parts[name] for name in sorted(slices))

    def _mark(self, service: ServiceName, ports: Iterable[PortKey | ServicePortName]) -> None:
        self._dirty.add(service)
        if any(port.protocol == "UDP" for port in ports):
            self._udp_changes.add(service)

    def _check_health(self, service: ServiceName) -> None:
        port = next((spec.health_check_node_port for spec in self._specs.get(service, {}).values()), 0)
        before = self._health_checks.pop(service, None)
        after = HealthCheck(port, local_ready_addresses(self._endpoints.get(service, {}))) if port else None
        if after:
            self._health_checks[service] = after
        self._has_health_check_changes |= before != after

    def delta(self, around: Circumstances, node_ports: NodePortScope, *, is_full: bool = False) -> PlanDelta:
        """What has changed since the last delta; with ``is_full`` everything there is, as a delta from nothing.

        Args:
            around: what plans depend on beside Services; when it is not what it was, every Service is planned anew.
            node_ports: the node port scope as of now.
            is_full: make a full delta.
        """
        if around != self._planned_for:
            self._planned_for = around
            self._dirty.update(self._specs)
        before = {name: self._plans.get(name) for service in self._dirty for name in self._planned_ports(service)}
        for service in self._dirty:
            self._plan(service, around)
        self._dirty.clear()
        self._changed_services.clear()
        self._changed_slices = 0
        if is_full:
            return PlanDelta(dict(self._plans), node_ports=node_ports, is_full=True)
        return PlanDelta(
            {name: plan for name, old in before.items() if (plan := self._plans.get(name)) and plan != old},
            frozenset(name for name, old in before.items() if old and name not in self._plans),
            node_ports,
        )

    def _planned_ports(self, service: ServiceName) -> Iterator[ServicePortName]:
        yield from self._specs.get(service, ())
        yield from self._ports_of_plans.get(service, ())

    def _plan(self, service: ServiceName, around: Circumstances) -> None:
        for name in self._ports_of_plans.pop(service, ()):
            del self._plans[name]
        self._set_without_local(service, WithoutLocal(0, 0))
        specs = self._specs.get(service, {})
        if not specs:
            return
        plans = {name: plan_port(spec, self._endpoints_of(service, spec), around) for name, spec in specs.items()}
        self._plans.update(plans)
        self._ports_of_plans[service] = tuple(specs)
        internal = sum(plan.internal.refusal is Refusal.DROP for plan in plans.values())
        external = sum(plan.external.refusal is Refusal.DROP for plan in plans.values())
        self._set_without_local(service, WithoutLocal(internal, external))

    def _set_without_local(self, service: ServiceName, now: WithoutLocal) -> None:
        before = self._without_local.pop(service, WithoutLocal(0, 0))
        if any(now):
            self._without_local[service] = now
        total = self._without_local_sum
        internal, external = (all_ - old + new for all_, old, new in zip(total, before, now, strict=True))
        self._without_local_sum = WithoutLocal(internal, external)

    def _endpoints_of(self, service: ServiceName, spec: PortSpec) -> Sequence[Endpoint]:
        return self._endpoints.get(service, {}).get(PortKey(spec.name.port, spec.name.protocol), ())

    # what is told and done after a sync

    @property
    def pending(self) -> Pending:
        """Changes since the last delta, as far as they make a difference."""
        return Pending(len(self._changed_services), self._changed_slices)

    @property
    def without_local_endpoints(self) -> WithoutLocal:
        """Ports whose traffic is dropped on this node for want of a local endpoint, as of the last delta."""
        return self._without_local_sum

    def pop_triggers(self) -> list[float]:
        """When the endpoint changes happened that were taken in since this was asked last; seconds since the epoch."""
        moments = [moment for each in self._triggers.values() for moment in each]
        self._triggers.clear()
        return moments

    def pop_udp_changes(self) -> dict[ServiceName, UdpPorts]:
        """The Services whose UDP ports, or their endpoints, changed since this was asked last, as they are now."""
        changed = {service: self._udp_ports_of(service) for service in self._udp_changes}
        self._udp_changes.clear()
        return changed

    @property
    def may_have_oddities(self) -> bool:
        """Whether ``pop_oddities`` has anything left to look at."""
        return bool(self._unread)

    def pop_oddities(self, limit: int) -> list[str]:
        """What has no effect here and was not told before, a sentence each; a Service that is put right may tell again.

        What a proxier of another family handles is not looked at, nor slices of which there is no Service (yet).

        Args:
            limit: look at so many Services that changed; the rest is for the next call.
        """
        found: list[str] = []
        for _ in range(min(limit, len(self._unread))):
            service = self._unread.pop()
            now = frozenset(self._oddities(service))
            found += sorted(now - self._told.pop(service, frozenset()))
            if now:
                self._told[service] = now
        return found

    def _oddities(self, service: ServiceName) -> Iterator[str]:
        if service not in self._services:
            return
        yield from (f'Service "{service}": {words}' for words in passed_over.in_service(self._services[service]))
        ports = {PortKey(name.port, name.protocol) for name in self._specs[service]}
        for name, slice_ in self._slices.get(service, {}).items():
            for words in passed_over.in_slice(slice_, self._family, ports):
                yield f'EndpointSlice "{service.namespace}/{name}": {words}'

    def udp_ports(self) -> Iterator[tuple[PortSpec, frozenset[str]]]:
        """Every UDP service port and its serving endpoints ("ip:port"), whatever policies say."""
        for service in self._specs:
            yield from self._udp_ports_of(service)

    def _udp_ports_of(self, service: ServiceName) -> UdpPorts:
        return tuple(
            (spec, frozenset(each.address for each in self._endpoints_of(service, spec) if each.is_serving))
            for spec in self._specs.get(service, {}).values()
            if spec.name.protocol == "UDP"
        )

    @property
    def health_checks(self) -> Mapping[ServiceName, HealthCheck]:
        """The Services that have a health check node port."""
        return self._health_checks

    def pop_health_check_changes(self) -> bool:
        """Whether any of ``health_checks`` changed since this was asked last."""
        had, self._has_health_check_changes = self._has_health_check_changes, False
        return had


def _trigger_time(slice_: EndpointSlice) -> float | None:
    """Seconds since the epoch; None where the slice does not tell, or not in RFC 3339."""
    try:
        return datetime.fromisoformat(slice_.metadata.annotations.get(TRIGGER_TIME_ANNOTATION, "")).timestamp()
    except ValueError:
        return None
