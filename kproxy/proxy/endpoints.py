"""Which endpoints may this node use: EndpointSlices in, the sets for each traffic policy out.

Law: pure; nothing here knows of rules, sockets or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from kproxy.api.types import EndpointSlice, SliceEndpoint, SlicePort
from kproxy.proxy.family import Family, canonical_address
from kproxy.proxy.services import PortSpec

HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


NOWHERE: frozenset[str] = frozenset()
"""One for all: an empty set of its own would take up more than the rest of an endpoint."""


class PortKey(NamedTuple):
    """How a slice's port finds the Service's port: by name and protocol, never by number."""

    name: str
    protocol: str


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One place that traffic can go to.

    Attributes:
        address: ``ip:port`` (IPv6 in brackets).
        is_local: it runs on this node; an endpoint without nodeName is remote.
        is_ready: may get traffic.
        is_serving: would be ready if it were not terminating.
        is_terminating: its pod is being deleted.
        zones: zones whose traffic it should get; empty when it carries no hint.
        nodes: nodes whose traffic it should get; empty when it carries no hint.
    """

    address: str
    is_local: bool = False
    is_ready: bool = True
    is_serving: bool = True
    is_terminating: bool = False
    zones: frozenset[str] = NOWHERE
    nodes: frozenset[str] = NOWHERE

    @property
    def is_fallback(self) -> bool:
        """Used only when nothing is ready: terminating, but still serving."""
        return self.is_serving and self.is_terminating


SliceEndpoints = Sequence[tuple[PortKey, Sequence[Endpoint]]]
"""The endpoints of one slice, for each of its ports."""


class NodeIdentity(NamedTuple):
    """What endpoint selection has to know of this node; an empty zone means the node has none."""

    name: str
    zone: str = ""


class Selection(NamedTuple):
    """Endpoints that one service port may use on this node, each sorted by the text ``ip:port``.

    Attributes:
        cluster: for policy Cluster; None when no traffic of this port uses it.
        local: for policy Local; None when no traffic of this port uses it.
        has_any: some endpoint is usable on some node (decides between refusing and dropping).
    """

    cluster: tuple[str, ...] | None
    local: tuple[str, ...] | None
    has_any: bool

    @property
    def reachable(self) -> tuple[str, ...]:
        """Both sets together, sorted."""
        return tuple(sorted({*(self.cluster or ()), *(self.local or ())}))


def service_of(slice_: EndpointSlice) -> str:
    """Name of the Service that a slice belongs to; empty when the proxy passes the slice over."""
    labels = slice_.metadata.labels
    return "" if HEADLESS_LABEL in labels else labels.get(SERVICE_NAME_LABEL, "")


def from_slices(slices: Iterable[EndpointSlice], family: Family, node_name: str) -> dict[PortKey, tuple[Endpoint, ...]]:
    """The endpoints of one Service, merged from its slices, per port; sorted by the text ``ip:port``.

    Ports without name or number are ignored. Of two entries with one ``ip:port`` the later stays, unless it is
    terminating (kube-proxy: endpointslicecache.go, addEndpoints).

    Args:
        slices: all slices of the Service, in a stable order; those of the other family are left out.
        family: the proxier's.
        node_name: this node; decides which endpoints are local.
    """
    return merged(of_slice(slice_, family, node_name) for slice_ in slices)


def of_slice(slice_: EndpointSlice, family: Family, node_name: str) -> SliceEndpoints:
    """What one slice adds to its Service, in order; nothing when it is of the other family."""
    if slice_.address_type != family.value:
        return ()
    found = []
    for port in slice_.ports or ():
        key = port_key(port)
        if key is not None and port.port is not None:
            entries = (_endpoint(entry, port.port, family, node_name) for entry in slice_.endpoints or ())
            found.append((key, [endpoint for endpoint in entries if endpoint is not None]))
    return tuple(found)


def merged(slices: Iterable[SliceEndpoints]) -> dict[PortKey, tuple[Endpoint, ...]]:
    """As `from_slices`, of slices that have been read."""
    by_port: dict[PortKey, dict[str, Endpoint]] = {}
    for ports in slices:
        for key, endpoints in ports:
            found = by_port.setdefault(key, {})
            for endpoint in endpoints:
                if not (endpoint.is_terminating and endpoint.address in found):
                    found[endpoint.address] = endpoint
    return {key: tuple(found[address] for address in sorted(found)) for key, found in by_port.items()}


def port_key(port: SlicePort) -> PortKey | None:
    """How a slice's port finds the Service's; None when it has no name or no number, and is passed over."""
    return PortKey(port.name, port.protocol or "TCP") if port.name is not None and port.port else None


def first_address(entry: SliceEndpoint, family: Family) -> str:
    """An endpoint's first address, the only one read, canonical; empty when there is none of the family."""
    text = entry.addresses[0] if entry.addresses else ""
    return canonical_address(text) if family.has(text) else ""


def _endpoint(entry: SliceEndpoint, port: int, family: Family, node_name: str) -> Endpoint | None:
    """One endpoint; None when it has no address of the family."""
    address = first_address(entry, family)
    if not address:
        return None
    conditions = entry.conditions
    hints = entry.hints
    return Endpoint(
        address=family.join(address, port),
        is_local=bool(entry.node_name) and entry.node_name == node_name,
        is_ready=conditions.ready is not False,
        is_serving=conditions.serving is not False,
        is_terminating=conditions.terminating is True,
        zones=frozenset(zone.name for zone in hints.for_zones) if hints else NOWHERE,
        nodes=frozenset(node.name for node in hints.for_nodes) if hints else NOWHERE,
    )


def select(port: PortSpec, endpoints: Sequence[Endpoint], node: NodeIdentity) -> Selection:
    """What kube-proxy's CategorizeEndpoints (topology.go) chooses.

    Policy Cluster takes the ready endpoints that the topology hints leave, else every one that serves while
    terminating. Policy Local takes this node's ready endpoints, else this node's serving ones, and never looks at
    hints. The two fall back independently.
    """
    ready = [endpoint for endpoint in endpoints if endpoint.is_ready]
    fallback = [endpoint for endpoint in endpoints if endpoint.is_fallback]
    uses_cluster = not port.is_internal_local or port.is_externally_accessible
    uses_local = port.is_internal_local or (port.is_external_local and port.is_externally_accessible)
    cluster = local = None
    if uses_cluster:
        cluster = _addresses(_preferred(ready, node) or fallback)
    if uses_local:
        local_ready = [endpoint for endpoint in ready if endpoint.is_local]
        local = _addresses(local_ready or [endpoint for endpoint in fallback if endpoint.is_local])
    return Selection(cluster, local, has_any=bool(ready or fallback))


def _preferred(ready: Sequence[Endpoint], node: NodeIdentity) -> Sequence[Endpoint]:
    """Ready endpoints that the hints leave to this node; all of them unless every single one carries a hint."""
    for hinted, own in (
        ([endpoint.nodes for endpoint in ready], node.name),
        ([endpoint.zones for endpoint in ready], node.zone),
    ):
        if own and all(hinted) and any(own in hints for hints in hinted):
            return [endpoint for endpoint, hints in zip(ready, hinted, strict=True) if own in hints]
    return ready


def _addresses(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    return tuple(sorted(endpoint.address for endpoint in endpoints))


def local_ready_addresses(endpoints_by_port: Mapping[PortKey, Sequence[Endpoint]]) -> int:
    """Number of distinct addresses of ready endpoints on this node: the health check node port's count."""
    return len(
        {
            endpoint.address.rpartition(":")[0]
            for endpoints in endpoints_by_port.values()
            for endpoint in endpoints
            if endpoint.is_local and endpoint.is_ready
        }
    )
