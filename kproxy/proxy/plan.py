"""What becomes of packets to each frontend: every decision that kube-proxy makes, in no backend's language.

Law: pure. Endpoints, policies, masquerading, affinity and source ranges are decided here; a backend only encodes.
One rule holds for every packet and is therefore in no plan: a packet that goes to the endpoint it came from is
masqueraded, or the answer would never pass the node again (hairpin).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from kproxy.proxy.endpoints import Endpoint, NodeIdentity, Selection, select
from kproxy.proxy.family import contains
from kproxy.proxy.services import PortSpec, ServicePortName


class Clients(Enum):
    """Where packets come from, as far as the way they go depends on it."""

    ALL = "all"
    PODS = "pods"
    """What the local detector (detectLocalMode) calls local."""
    NOT_PODS = "not pods"
    NODE = "node"
    """This node's own addresses."""


class EndpointSet(Enum):
    """Which of a port's two sets of endpoints."""

    CLUSTER = "cluster"
    LOCAL = "local"


class Refusal(Enum):
    """What happens to packets that no branch takes."""

    REJECT = "reject"
    """Refused at once with ICMP port unreachable: no usable endpoint on any node."""
    DROP = "drop"
    """Silence: endpoints exist, but the policy is Local and none is on this node."""


class Branch(msgspec.Struct, frozen=True, gc=False):
    """Packets of some clients go to one set of endpoints.

    Attributes:
        clients: whose packets.
        to: which endpoints.
        masqueraded: whose source address is replaced by the node's; None means nobody's.
    """

    clients: Clients
    to: EndpointSet
    masqueraded: Clients | None = None


class Traffic(msgspec.Struct, frozen=True, gc=False):
    """What becomes of packets: the first branch that fits takes them, the rest is refused.

    Attributes:
        branches: in order; empty when nothing is let through.
        refusal: None when some branch takes everybody.
    """

    branches: tuple[Branch, ...] = ()
    refusal: Refusal | None = None


class PortPlan(msgspec.Struct, frozen=True, gc=False):
    """All that a backend needs to know of one service port in one family.

    Attributes:
        name: the port's key.
        cluster_ip: frontend of internal traffic, at ``port``.
        port: port of all frontends but the node port.
        external_ips: frontends of external traffic, at ``port``.
        load_balancer_ips: likewise, filtered by ``allowed_sources``.
        node_port: frontend of external traffic on the node's own addresses; 0 means none.
        internal: what becomes of packets to the cluster IP.
        external: what becomes of packets to all other frontends.
        allowed_sources: CIDRs that may use the load balancer IPs; empty means everyone.
        cluster: endpoints ("ip:port", sorted) of EndpointSet.CLUSTER.
        local: endpoints of EndpointSet.LOCAL.
        affinity_seconds: how long a client stays with its endpoint after its last new connection; 0 means no affinity.
        health_check_node_port: port to accept for the health check server; 0 means none.
        known_endpoints: how many endpoints the port has in all, usable or not (decides about large clusters).
        on_this_node: endpoints of either set that run on this node, sorted: they may connect to themselves.
    """

    name: ServicePortName
    cluster_ip: str
    port: int
    external_ips: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    node_port: int
    internal: Traffic
    external: Traffic
    allowed_sources: tuple[str, ...]
    cluster: tuple[str, ...]
    local: tuple[str, ...]
    affinity_seconds: int
    health_check_node_port: int
    known_endpoints: int
    on_this_node: tuple[str, ...] = ()

    def endpoints(self, which: EndpointSet) -> tuple[str, ...]:
        """The endpoints of a set."""
        return self.cluster if which is EndpointSet.CLUSTER else self.local

    @property
    def is_externally_accessible(self) -> bool:
        """Whether there is any frontend of external traffic."""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)


class Circumstances(msgspec.Struct, frozen=True):
    """What plans depend on beside the Service and its endpoints.

    Attributes:
        node: this node.
        node_ips: its addresses of this family.
        has_detector: pods can be told from others (detectLocalMode, and what it needs, is set).
        masquerade_all: --masquerade-all.
    """

    node: NodeIdentity
    node_ips: tuple[str, ...] = ()
    has_detector: bool = False
    masquerade_all: bool = False


class NodePortScope(msgspec.Struct, frozen=True):
    """On which of the node's addresses node ports answer.

    Attributes:
        addresses: exactly these, sorted; None means every local address.
        includes_loopback: node ports answer on the loopback addresses too.
    """

    addresses: tuple[str, ...] | None = None
    includes_loopback: bool = False


class PlanDelta(msgspec.Struct, frozen=True):
    """What a backend has to change.

    Attributes:
        written: plans that are new or different.
        removed: ports that are no more; none of them is in ``written``.
        node_ports: the node port scope as of now.
        service_cidrs: where cluster IPs are taken from, canonical, of the proxier's family; empty when not known.
        is_full: ``written`` is everything there is: whatever else the kernel holds of ours has to go.
    """

    written: Mapping[ServicePortName, PortPlan]
    removed: frozenset[ServicePortName] = frozenset()
    node_ports: NodePortScope = NodePortScope()
    service_cidrs: tuple[str, ...] = ()
    is_full: bool = False


def plan_port(port: PortSpec, endpoints: Sequence[Endpoint], around: Circumstances) -> PortPlan:
    """The plan for one service port on this node (decision table: kube-proxy, iptables/proxier.go, syncProxyRules)."""
    selection = select(port, endpoints, around.node)
    return PortPlan(
        name=port.name,
        cluster_ip=port.cluster_ip,
        port=port.port,
        external_ips=port.external_ips,
        load_balancer_ips=port.load_balancer_ips,
        node_port=port.node_port,
        internal=_internal(port, selection, around),
        external=_external(port, selection, around) if port.is_externally_accessible else Traffic(),
        allowed_sources=_allowed_sources(port, around),
        cluster=selection.cluster or (),
        local=selection.local or (),
        affinity_seconds=port.affinity_seconds,
        health_check_node_port=port.health_check_node_port,
        known_endpoints=len(endpoints),
        on_this_node=_on_this_node(selection, endpoints),
    )


def _on_this_node(selection: Selection, endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    here = {endpoint.address for endpoint in endpoints if endpoint.is_local}
    return tuple(sorted(here.intersection((*(selection.cluster or ()), *(selection.local or ()))))) if here else ()


def _internal(port: PortSpec, selection: Selection, around: Circumstances) -> Traffic:
    if not selection.has_any:
        return Traffic(refusal=Refusal.REJECT)
    if port.is_internal_local and not selection.local:
        return Traffic(refusal=Refusal.DROP)
    masqueraded = None
    if around.masquerade_all:
        masqueraded = Clients.ALL
    elif around.has_detector:
        masqueraded = Clients.NOT_PODS
    to = EndpointSet.LOCAL if port.is_internal_local else EndpointSet.CLUSTER
    return Traffic((Branch(Clients.ALL, to, masqueraded),))


def _external(port: PortSpec, selection: Selection, around: Circumstances) -> Traffic:
    """Policy Local is for strangers: pods and the node itself would reach any endpoint anyway, and do."""
    if not selection.has_any:
        return Traffic(refusal=Refusal.REJECT)
    if not port.is_external_local:
        return Traffic((Branch(Clients.ALL, EndpointSet.CLUSTER, masqueraded=Clients.ALL),))
    branches = [Branch(Clients.NODE, EndpointSet.CLUSTER, masqueraded=Clients.NODE)]
    if around.has_detector:
        branches.insert(0, Branch(Clients.PODS, EndpointSet.CLUSTER))
    if not selection.local:
        return Traffic(tuple(branches), Refusal.DROP)
    return Traffic((*branches, Branch(Clients.ALL, EndpointSet.LOCAL)))


def _allowed_sources(port: PortSpec, around: Circumstances) -> tuple[str, ...]:
    """The Service's ranges; where they let the node in, the load balancer IPs too.

    The node may talk to a load balancer IP that is configured on itself: such packets have that IP as their source.
    """
    if not port.load_balancer_ips or not port.source_ranges:
        return ()
    if any(contains(cidr, address) for cidr in port.source_ranges for address in around.node_ips):
        return (*port.source_ranges, *port.load_balancer_ips)
    return port.source_ranges
