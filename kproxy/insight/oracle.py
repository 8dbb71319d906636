"""What Kubernetes promises a packet: verdict, endpoints, client address and hops, for one client and one frontend.

Law: values in, values out, written from Kubernetes' rules for Services and from the routes between the places. It never
sees a plan or a rule, so that comparing it with measured packets proves something.

Two facts of the kernel belong to the promise, because no rule of a node proxy can change them:

* A connection works only if the answer comes back through the node that rewrote the destination. With
  externalTrafficPolicy Local a pod that dials *another* node's address keeps its own, so an endpoint on a third node
  answers it directly, from an address that was never dialled: such endpoints are ``lost``.
* In mode iptables kube-proxy rejects external and load balancer addresses without endpoints in INPUT and FORWARD only.
  The node itself sends such a packet along its default route, and what happens there is what it gets.

What a load balancer of the lab's own promises from outside depends on its kind (`BalancerKind`); from inside, the
nodes' proxies take its address for their own, unless its ipMode is Proxy.

A node without a proxy has no frontends: a node port there is a port on which nobody listens, and packets for any other
frontend take its default route, pods' with the node's address, as packets to the outside do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from kproxy.api.types import EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort

KEPT = "kept"
"""The endpoint saw the address that the client sent from."""

ROUTER = "router/router"
"""The place of the nodes' default gateway."""

FAMILY_WITH_MARTIANS = 4
"""Linux drops IPv4 packets that come in with an address of its own as their source; IPv6 it takes."""

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"


class Verdict(enum.StrEnum):
    """What becomes of a connection.

    Attributes:
        ANSWERED: the dialled address answered.
        REFUSED: an ICMP port unreachable or a RST came back at once.
        DROPPED: nothing came back.
        NO_ROUTE: somebody on the way, or the client itself, has no route to the address.
    """

    ANSWERED = "answered"
    REFUSED = "refused"
    DROPPED = "dropped"
    NO_ROUTE = "no-route"


class FrontendKind(enum.StrEnum):
    """What kind of address is dialled."""

    POD = "pod"
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER = "LoadBalancer"


@dataclass(frozen=True)
class ProxyView:
    """How a node's proxy is configured, as kube-proxy's flags have it.

    Attributes:
        detect_local_mode: --detect-local-mode.
        cluster_cidrs: --cluster-cidr; of each family the first counts, and without one there is no detector.
        pod_bridge_interface: --pod-bridge-interface.
        pod_interface_name_prefix: --pod-interface-name-prefix.
        masquerade_all: --masquerade-all.
        node_port_addresses: --nodeport-addresses as networks; a family that has none answers on all addresses.
        mode: --proxy-mode, "iptables" or "nftables".
    """

    detect_local_mode: str = "ClusterCIDR"
    cluster_cidrs: tuple[str, ...] = ()
    pod_bridge_interface: str = ""
    pod_interface_name_prefix: str = ""
    masquerade_all: bool = False
    node_port_addresses: tuple[str, ...] = ()
    mode: str = "iptables"

    @property
    def is_nftables(self) -> bool:
        """Whether it works in mode nftables."""
        return self.mode == "nftables"


@dataclass(frozen=True)
class NodeView:
    """A node; of addresses and networks the first of a family counts.

    Attributes:
        zone: empty when it has none.
        tunnel_addresses: what it calls itself on the way to other nodes' pods, where that is not the node network.
        uplink: the interface by which packets from elsewhere come in.
        proxy: how its proxy is configured; None when it has none.
    """

    name: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    zone: str = ""
    tunnel_addresses: tuple[str, ...] = ()
    uplink: str = "eth0"
    proxy: ProxyView | None = field(default_factory=ProxyView)


@dataclass(frozen=True)
class PodView:
    """A pod that has addresses; with host_network these are its node's.

    Attributes:
        interface: the one at its node by which its packets come in.
    """

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]
    host_network: bool = False
    interface: str = ""


@dataclass(frozen=True)
class ClientView:
    """A client outside; routes are the networks that it can send to."""

    name: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


@dataclass(frozen=True)
class ExternalRoute:
    """The outside reaches network ``to`` through node ``via``."""

    to: str
    via: str


class BalancerKind(enum.StrEnum):
    """How packets for a load balancer address come to the nodes.

    Attributes:
        L2: one node answers ARP and NDP for the address, and takes them in as they are.
        NLB: the router spreads them over the node ports of nodes that may serve, as they are but for that.
        CLASSIC: the router ends connections itself, and begins others to node ports.
    """

    L2 = "l2"
    NLB = "nlb"
    CLASSIC = "classic"


@dataclass(frozen=True)
class BalancerView:
    """A load balancer of the lab's own.

    Attributes:
        service: ``default/web``.
        serves_cluster: packets from inside the cluster come to it too (ipMode Proxy).
        announcers: the node that says it has each address, ``L2`` only.
    """

    service: str
    kind: BalancerKind
    addresses: tuple[str, ...]
    serves_cluster: bool = False
    announcers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterView:
    """Everything that a promise depends on.

    Attributes:
        router_addresses: those of the nodes' default gateway, the one on their network first in each family.
    """

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    nodes: tuple[NodeView, ...]
    pods: tuple[PodView, ...]
    clients: tuple[ClientView, ...] = ()
    external_routes: tuple[ExternalRoute, ...] = ()
    balancers: tuple[BalancerView, ...] = ()
    router_addresses: tuple[str, ...] = ()

    @cached_property
    def node_by_name(self) -> dict[str, NodeView]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def node_by_address(self) -> dict[str, NodeView]:
        """The nodes by each of their addresses."""
        return {address: node for node in self.nodes for address in node.addresses}

    @cached_property
    def pod_by_address(self) -> dict[str, PodView]:
        """The pods with a network of their own, by each of their addresses."""
        return {address: pod for pod in self.pods if not pod.host_network for address in pod.addresses}


@dataclass(frozen=True)
class Place:
    """Where a client stands.

    Attributes:
        client: ``node/node1``, ``pod/default/web-0`` or ``client/client``.
        node: the node it is or runs on; None outside.
        is_pod: it has a network of its own behind ``node``.
        addresses: what it sends from, one a family.
        routes: what it can send to, outside only.
        interface: the one at its node by which its packets come in, pods only.
        is_router: it is the nodes' default gateway, on their own network.
    """

    client: str
    node: str | None
    is_pod: bool
    addresses: tuple[str, ...]
    routes: tuple[str, ...] = ()
    interface: str = ""
    is_router: bool = False

    def address(self, family: int) -> str | None:
        """The address of that IP version (4 or 6), or None."""
        return first_of_family(self.addresses, family)


@dataclass(frozen=True)
class Frontend:
    """One address and port that a Service port is reached at.

    Attributes:
        node: the node whose address this is, for a NodePort; else empty.
    """

    kind: FrontendKind
    address: str
    port: int
    protocol: str
    service: Service
    service_port: ServicePort
    node: str = ""

    @property
    def family(self) -> int:
        """4 or 6."""
        return ip_address(self.address).version

    @property
    def text(self) -> str:
        """``10.96.0.5:80``, ``[fd00::5]:80``."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, order=True)
class Answer:
    """How one endpoint sees the client.

    Attributes:
        endpoint: ``10.244.1.2:8080``.
        source: ``kept``, or the address that the client's was rewritten to.
        hops: routers on the way, counted by the TTL at the endpoint.
    """

    endpoint: str
    source: str
    hops: int


@dataclass(frozen=True)
class Promise:
    """What must be seen.

    Attributes:
        answers: every endpoint that a connection may end at, each of which must be seen unless ``is_sticky``.
        lost: endpoints that get packets but whose answers never arrive as answers.
        unreached: endpoints that are chosen too, but whose node takes no packets of this source from elsewhere.
        is_sticky: session affinity: one client sees one endpoint of ``answers``.
        is_closed: refused because nobody listens, and not by a rule: TCP gets a RST.
        is_unclaimed: nobody says that he has the address. The router gives up after three seconds of silence, or gets
            from a node that had the address before what that makes of it; `answers` are those it may still give.
    """

    verdict: Verdict
    answers: tuple[Answer, ...] = ()
    lost: tuple[str, ...] = ()
    is_sticky: bool = False
    is_closed: bool = False
    unreached: tuple[str, ...] = ()
    is_unclaimed: bool = False


@dataclass(frozen=True)
class Backend:
    """One usable or unusable endpoint of a Service port, as the slices give it; hints None means none given."""

    address: str
    port: int
    node: str | None
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    @property
    def text(self) -> str:
        """``10.244.1.2:8080``."""
        return host_port(self.address, self.port)


@dataclass(frozen=True)
class Selection:
    """The endpoints that one node may use for one Service port.

    Attributes:
        cluster: for traffic under a cluster policy.
        local: for traffic under a local policy.
        has_any: the Service has a usable endpoint on some node.
    """

    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    has_any: bool


def host_port(address: str, port: int) -> str:
    """Address and port as Kubernetes writes them; IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def first_of_family(addresses: Iterable[str], family: int) -> str | None:
    """The first address of that IP version, or None."""
    return next((address for address in addresses if ip_address(address).version == family), None)


def is_proxied(service: Service) -> bool:
    """Whether kube-proxy serves this Service at all: it has a cluster IP and no other proxy is named for it."""
    return (
        service.spec.type != "ExternalName"
        and service.spec.cluster_ip not in ("", "None")
        and SERVICE_PROXY_NAME_LABEL not in service.metadata.labels
    )


def backends(view: ClusterView, service: Service, port: ServicePort, family: int) -> tuple[Backend, ...]:
    """All endpoints of a Service port that its slices name, in the order of their text.

    Of two entries with one address and port the later one counts, unless it is terminating (kube-proxy:
    endpointslicecache.go, addEndpoints).
    """
    found: dict[str, Backend] = {}
    for part in view.slices:
        if not _belongs(part, service, family):
            continue
        for slice_port in part.ports or ():
            if not _serves(slice_port, port):
                continue
            for endpoint in part.endpoints or ():
                backend = _backend(endpoint, slice_port.port or 0)
                if backend.text not in found or not backend.terminating:
                    found[backend.text] = backend
    return tuple(found[text] for text in sorted(found))


def select(candidates: Iterable[Backend], node: NodeView) -> Selection:
    """What one node may use (kube-proxy: topology.go, CategorizeEndpoints)."""
    everything = tuple(candidates)
    ready = tuple(backend for backend in everything if backend.ready)
    terminating = tuple(backend for backend in everything if backend.serving and backend.terminating)
    local_ready = tuple(backend for backend in ready if backend.node == node.name)
    local_terminating = tuple(backend for backend in terminating if backend.node == node.name)
    return Selection(
        cluster=_near(ready, node) or terminating,
        local=local_ready or local_terminating,
        has_any=bool(ready or terminating),
    )


def promise(view: ClusterView, place: Place, frontend: Frontend) -> Promise:
    """What a connection from ``place`` to ``frontend`` must come to.

    Raises:
        ValueError: the place has no address of the frontend's family.
    """
    source = place.address(frontend.family)
    if source is None:
        raise ValueError(f"{place.client} has no address of the family of {frontend.text}")
    if place.node is None and not _covers(place.routes, frontend.address):
        return Promise(Verdict.NO_ROUTE)
    if frontend.kind is FrontendKind.POD:
        return _direct(view, place, frontend)
    node = translator(view, place, frontend)
    if node is None:
        balancer = balancer_of(view, frontend)
        return Promise(Verdict.NO_ROUTE) if balancer is None else _balanced(view, place, source, frontend, balancer)
    if node.proxy is None:
        return _unserved(node, frontend)
    return _served(view, _flow(view, place, source, node, frontend), node.proxy)


def _served(view: ClusterView, flow: _Flow, proxy: ProxyView) -> Promise:
    """What a node with a proxy makes of a packet."""
    frontend = flow.frontend
    candidates = backends(view, frontend.service, frontend.service_port, frontend.family)
    selection = select(candidates, flow.node)
    is_no_node_port = frontend.kind is FrontendKind.NODE_PORT and not _has_node_ports(proxy, frontend)
    if is_no_node_port and proxy.is_nftables:
        return Promise(Verdict.REFUSED, is_closed=True)
    is_filtered = frontend.kind is FrontendKind.LOAD_BALANCER and not _in_source_ranges(frontend.service, flow.source)
    if not selection.has_any and not (is_filtered and proxy.is_nftables):
        return Promise(Verdict.REFUSED) if proxy.is_nftables else _no_endpoints(view, flow)
    if is_filtered:
        return Promise(Verdict.DROPPED)
    if is_no_node_port:
        # What drops packets under a local policy goes by the port alone, on whichever of the node's addresses.
        is_dropped = frontend.service.spec.external_traffic_policy == "Local" and not selection.local
        return Promise(Verdict.DROPPED) if is_dropped else Promise(Verdict.REFUSED, is_closed=True)
    chosen, masquerades = _traffic_policy(flow, proxy, selection)
    if not chosen:
        return Promise(Verdict.DROPPED)
    return _through(view, flow, chosen, masquerades=masquerades)


def _unserved(node: NodeView, frontend: Frontend) -> Promise:
    """Its own address has nobody on the port; any other packet it and the router send to each other until it dies."""
    if frontend.address in node.addresses:
        return Promise(Verdict.REFUSED, is_closed=True)
    return Promise(Verdict.DROPPED)


# -- which endpoints ---------------------------------------------------------------------------------------------


def _belongs(part: EndpointSlice, service: Service, family: int) -> bool:
    return (
        part.metadata.namespace == service.metadata.namespace
        and part.metadata.labels.get(SERVICE_NAME_LABEL) == service.metadata.name
        and part.address_type == f"IPv{family}"
    )


def _serves(slice_port: SlicePort, port: ServicePort) -> bool:
    return bool(slice_port.port) and slice_port.name == port.name and (slice_port.protocol or "TCP") == port.protocol


def _backend(endpoint: SliceEndpoint, port: int) -> Backend:
    conditions, hints = endpoint.conditions, endpoint.hints
    return Backend(
        address=endpoint.addresses[0],
        port=port,
        node=endpoint.node_name,
        ready=conditions.ready is not False,
        serving=conditions.serving is not False,
        terminating=conditions.terminating is True,
        zones=frozenset(zone.name for zone in hints.for_zones) if hints else frozenset(),
        nodes=frozenset(node.name for node in hints.for_nodes) if hints else frozenset(),
    )


def _near(ready: tuple[Backend, ...], node: NodeView) -> tuple[Backend, ...]:
    """The ready endpoints that the hints leave to this node: its own, else its zone's, else all."""
    by_node = tuple(backend for backend in ready if node.name in backend.nodes)
    if by_node and all(backend.nodes for backend in ready):
        return by_node
    by_zone = tuple(backend for backend in ready if node.zone and node.zone in backend.zones)
    if by_zone and all(backend.zones for backend in ready):
        return by_zone
    return ready


def _traffic_policy(flow: _Flow, proxy: ProxyView, selection: Selection) -> tuple[tuple[Backend, ...], bool]:
    """The endpoints for this traffic, and whether the client's address is rewritten for all of them."""
    spec = flow.frontend.service.spec
    is_internal = _is_known_as_local(flow, proxy)
    if flow.frontend.kind is FrontendKind.CLUSTER_IP:
        chosen = selection.local if spec.internal_traffic_policy == "Local" else selection.cluster
        return chosen, proxy.masquerade_all or is_internal is False
    if spec.external_traffic_policy != "Local":
        return selection.cluster, True
    if is_internal:
        return selection.cluster, False
    if _is_the_node(flow.place, flow.node):
        return selection.cluster, True
    return selection.local, False


def _is_known_as_local(flow: _Flow, proxy: ProxyView) -> bool | None:
    """Whether the node's local detector takes the client for a pod; None without a detector."""
    interface = _came_in_by(flow.place, flow.node)
    match proxy.detect_local_mode:
        case "BridgeInterface":
            return interface == proxy.pod_bridge_interface
        case "InterfaceNamePrefix":
            return interface is not None and interface.startswith(proxy.pod_interface_name_prefix)
        case "NodeCIDR":
            cidrs = flow.node.pod_cidrs
        case _:
            cidrs = proxy.cluster_cidrs
    cidr = next((cidr for cidr in cidrs if ip_network(cidr).version == flow.frontend.family), None)
    return None if cidr is None else _in(flow.source, cidr)


def _has_node_ports(proxy: ProxyView, frontend: Frontend) -> bool:
    """Whether node ports answer on the dialled address."""
    chosen = [cidr for cidr in proxy.node_port_addresses if ip_network(cidr).version == frontend.family]
    return not chosen or _covers(chosen, frontend.address)


def _in_source_ranges(service: Service, source: str) -> bool:
    version = ip_address(source).version
    ranges = [cidr for cidr in service.spec.load_balancer_source_ranges if ip_network(cidr.strip()).version == version]
    return not ranges or any(_in(source, cidr.strip()) for cidr in ranges)


# -- load balancers ----------------------------------------------------------------------------------------------


def _balanced(view: ClusterView, place: Place, sent_from: str, frontend: Frontend, balancer: BalancerView) -> Promise:
    """What a balancer makes of a packet that no node of its own rewrites."""
    if balancer.kind is BalancerKind.L2:
        # The router may remember for a while who had the address, and send there still.
        flows = [_flow(view, place, sent_from, node, frontend) for node in view.nodes]
        stale = [_served(view, flow, flow.node.proxy) for flow in flows if flow.node.proxy is not None]
        last = {answer for part in stale for answer in part.answers}
        return replace(_unclaimed(balancer), answers=tuple(sorted(last)))
    # What pods send to the outside leaves with their node's address.
    source, hops = sent_from, 0
    if place.is_pod and place.node is not None:
        source, hops = first_of_family(view.node_by_name[place.node].addresses, frontend.family) or sent_from, 1
    # Behind the balancer source ranges are known no more: a node port has none.
    if not _in_source_ranges(frontend.service, source):
        return Promise(Verdict.DROPPED)
    able = [node for node in view.nodes if _may_serve(view, frontend.service, node, frontend.family)]
    if not able:
        return Promise(Verdict.REFUSED, is_closed=True)
    if balancer.kind is BalancerKind.CLASSIC:
        seen = KEPT if source == sent_from else source
        return Promise(Verdict.ANSWERED, (Answer(frontend.text, seen, hops),))
    if place.node is not None:
        # The answer to a node would not come back by the router, but that the router takes its own address.
        source = first_of_family(view.router_addresses, frontend.family) or source
    outside = replace(place, node=None, is_pod=False, interface="")
    parts = [
        _served(view, _Flow(outside, sent_from, source, hops + 1, node, _at_node(frontend, node)), node.proxy)
        for node in able
        if node.proxy is not None
    ]
    answers = {answer for part in parts for answer in part.answers}
    return Promise(
        verdict=Verdict.ANSWERED if answers else parts[0].verdict,
        answers=tuple(sorted(answers)),
        lost=tuple(sorted({lost for part in parts for lost in part.lost})),
        is_sticky=frontend.service.spec.session_affinity == "ClientIP" and bool(answers),
    )


def _at_node(frontend: Frontend, node: NodeView) -> Frontend:
    """Where the router sends what was dialled at a balancer: a node port."""
    address = first_of_family(node.addresses, frontend.family) or ""
    return replace(
        frontend,
        kind=FrontendKind.NODE_PORT,
        address=address,
        port=frontend.service_port.node_port,
        node=node.name,
    )


def _announcer(view: ClusterView, frontend: Frontend, balancer: BalancerView) -> NodeView | None:
    """The node that takes in packets for an address: the one that says so, if it may; else one that may."""
    if balancer.kind is not BalancerKind.L2:
        return None
    able = [node for node in view.nodes if _may_serve(view, frontend.service, node, frontend.family)]
    named = balancer.announcers.get(frontend.address)
    return next((node for node in able if node.name == named), able[0] if able else None)


def _may_serve(view: ClusterView, service: Service, node: NodeView, family: int) -> bool:
    """Whether a node tells balancers that it may serve a Service.

    With a local policy if a ready endpoint is on it (kube-proxy: service_health.go); else if its proxy is there and,
    for a balancer that asks the node port, somebody answers on that.
    """
    if node.proxy is None:
        return False
    ports = service.spec.ports
    if service.spec.external_traffic_policy == "Local":
        found = [backend for port in ports for backend in backends(view, service, port, family)]
        return any(backend.ready and backend.node == node.name for backend in found)
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    is_asked_by_l2 = any(one.service == name and one.kind is BalancerKind.L2 for one in view.balancers)
    asked = next((port for port in ports if port.protocol == "TCP"), None)
    return is_asked_by_l2 or asked is None or select(backends(view, service, asked, family), node).has_any


def _unclaimed(balancer: BalancerView | None) -> Promise:
    return Promise(Verdict.NO_ROUTE, is_unclaimed=balancer is not None)


# -- which way ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Flow:
    """A connection that ``node`` rewrites.

    Attributes:
        sent_from: the client's address.
        source: what is in its place when the packet comes to the node.
        hops: routers before the packet enters the node.
    """

    place: Place
    sent_from: str
    source: str
    hops: int
    node: NodeView
    frontend: Frontend


def _flow(view: ClusterView, place: Place, sent_from: str, node: NodeView, frontend: Frontend) -> _Flow:
    """How a packet comes to the node that rewrites it."""
    hops = _hops_to_node(place, node)
    is_own = place.node is None or place.node == node.name
    if is_own or frontend.address in node.addresses:
        return _Flow(place, sent_from, sent_from, hops, node, frontend)
    # By the default route of a node without a proxy, as packets to the outside go.
    egress = first_of_family(view.node_by_name[place.node or ""].addresses, frontend.family) if place.is_pod else None
    return _Flow(place, sent_from, egress or sent_from, hops + 1, node, frontend)


def _came_in_by(place: Place, node: NodeView) -> str | None:
    """The node's interface by which packets from ``place`` come in; None for its own packets."""
    if place.node != node.name:
        return node.uplink
    return place.interface if place.is_pod else None


def _is_the_node(place: Place, node: NodeView) -> bool:
    return not place.is_pod and place.node == node.name


def _arrival(view: ClusterView, frontend: Frontend) -> NodeView | None:
    """The node at which a packet from elsewhere arrives: the owner of the address, else where the outside routes it."""
    address = frontend.address
    owner = view.node_by_address.get(address)
    if owner is not None:
        return owner
    balancer = balancer_of(view, frontend)
    if balancer is not None:
        return _announcer(view, frontend, balancer)
    routes = [route for route in view.external_routes if _in(address, route.to)]
    if not routes:
        return None
    return view.node_by_name[max(routes, key=lambda route: ip_network(route.to).prefixlen).via]


def translator(view: ClusterView, place: Place, frontend: Frontend) -> NodeView | None:
    """The node whose proxy, if any, rewrites a packet from ``place`` to ``frontend``; None if it comes to no node.

    None also where any node may be the one: behind a balancer in the router.
    """
    if frontend.kind is FrontendKind.NODE_PORT:
        return view.node_by_name[frontend.node]
    own = view.node_by_name[place.node] if place.node else None
    balancer = balancer_of(view, frontend)
    is_proxied_there = balancer is None or not balancer.serves_cluster
    return own if own is not None and own.proxy is not None and is_proxied_there else _arrival(view, frontend)


def balancer_of(view: ClusterView, frontend: Frontend) -> BalancerView | None:
    """The lab's load balancer that serves a frontend, if it is one's."""
    if frontend.kind is not FrontendKind.LOAD_BALANCER:
        return None
    metadata = frontend.service.metadata
    name = f"{metadata.namespace}/{metadata.name}"
    return next((one for one in view.balancers if one.service == name and frontend.address in one.addresses), None)


def _no_endpoints(view: ClusterView, flow: _Flow) -> Promise:
    """Refused; the node itself asks its default route about addresses that are neither cluster IPs nor its own."""
    frontend, node = flow.frontend, flow.node
    is_own = frontend.kind is FrontendKind.CLUSTER_IP or frontend.address in node.addresses
    if is_own or not _is_the_node(flow.place, node):
        return Promise(Verdict.REFUSED)
    next_node = _arrival(view, frontend)
    if next_node is None:
        balancer = balancer_of(view, frontend)
        is_routers = balancer is not None and balancer.kind is not BalancerKind.L2
        return Promise(Verdict.REFUSED, is_closed=True) if is_routers else _unclaimed(balancer)
    if next_node.name == node.name and frontend.family == FAMILY_WITH_MARTIANS:
        return Promise(Verdict.DROPPED)
    return Promise(Verdict.REFUSED) if next_node.proxy is not None else _unserved(next_node, frontend)


def _direct(view: ClusterView, place: Place, frontend: Frontend) -> Promise:
    """The bare address of an endpoint, with nothing rewritten."""
    where = _where(view, frontend.address)
    if where is None:
        return Promise(Verdict.NO_ROUTE)
    node, is_pod = where
    hops = _hops_to_node(place, node) + (1 if is_pod and not _is_the_node(place, node) else 0)
    if frontend.address in place.addresses:
        hops = 0
    return Promise(Verdict.ANSWERED, (Answer(frontend.text, KEPT, hops),))


def _through(view: ClusterView, flow: _Flow, chosen: tuple[Backend, ...], *, masquerades: bool) -> Promise:
    answers: list[Answer] = []
    lost: list[str] = []
    unreached: list[str] = []
    for backend in chosen:
        where = _where(view, backend.address)
        if where is None:
            answers += _answers_outside(view, flow, backend, masquerades=masquerades)
            continue
        source = _source_seen(flow, backend, *where, masquerades=masquerades)
        if source == flow.source and _is_martian(flow, backend, where[0]):
            unreached.append(backend.text)
            continue
        if source == flow.source and not _returns(flow, where[0]):
            lost.append(backend.text)
            continue
        seen = KEPT if source == flow.sent_from else source
        answers.append(Answer(backend.text, seen, _hops(flow, *where)))
    is_sticky = flow.frontend.service.spec.session_affinity == "ClientIP"
    silent = Verdict.DROPPED if lost or unreached else Verdict.NO_ROUTE
    return Promise(
        verdict=Verdict.ANSWERED if answers else silent,
        answers=tuple(sorted(answers)),
        lost=tuple(lost),
        is_sticky=is_sticky and bool(answers),
        unreached=tuple(unreached),
    )


def _answers_outside(view: ClusterView, flow: _Flow, backend: Backend, *, masquerades: bool) -> Iterator[Answer]:
    """What an endpoint answers that is a client outside, whose packets come and go by the router."""
    if not any(backend.address in client.addresses for client in view.clients):
        return
    own = first_of_family(flow.node.addresses, ip_address(backend.address).version) or flow.source
    is_pods = any(_covers(node.pod_cidrs, flow.source) for node in view.nodes)
    source = own if masquerades or is_pods else flow.source
    hops = flow.hops + (0 if _is_the_node(flow.place, flow.node) else 1) + 1
    yield Answer(backend.text, KEPT if source == flow.sent_from else source, hops)


def _where(view: ClusterView, address: str) -> tuple[NodeView, bool] | None:
    """The node that an endpoint is on, and whether it is a pod behind it; None if the cluster has no such address."""
    pod = view.pod_by_address.get(address)
    if pod is not None:
        return view.node_by_name[pod.node], True
    node = view.node_by_address.get(address)
    return None if node is None else (node, False)


def _source_seen(flow: _Flow, backend: Backend, node: NodeView, is_pod: bool, *, masquerades: bool) -> str:
    """The address that the endpoint sees the client at."""
    is_hairpin = flow.source == backend.address and _hides_hairpins(flow, node)
    if not (masquerades or is_hairpin):
        return flow.source
    family = ip_address(backend.address).version
    if node.name == flow.node.name:
        if is_pod:
            return _pod_gateway(node, family)
        # An address of the node itself is delivered through INPUT, which no masquerading rule sees.
        return flow.source
    towards_pods = first_of_family(flow.node.tunnel_addresses, family) if is_pod else None
    return towards_pods or first_of_family(flow.node.addresses, family) or flow.source


def _hides_hairpins(flow: _Flow, endpoint_node: NodeView) -> bool:
    """Whether an endpoint that reaches itself sees another address; in mode nftables only where it runs."""
    proxy = flow.node.proxy
    return proxy is None or not proxy.is_nftables or flow.node.name == endpoint_node.name


def _is_martian(flow: _Flow, backend: Backend, endpoint_node: NodeView) -> bool:
    """Whether the endpoint, or its node, sees its own address as the source of a packet from another node."""
    own = (backend.address, *endpoint_node.addresses)
    is_own = flow.node.name != endpoint_node.name and flow.source in own
    return is_own and flow.frontend.family == FAMILY_WITH_MARTIANS


def _returns(flow: _Flow, endpoint_node: NodeView) -> bool:
    """Whether the answer of an endpoint that saw the client's own address passes the node that rewrote the packet."""
    return flow.node.name in (endpoint_node.name, flow.place.node)


def _hops(flow: _Flow, endpoint_node: NodeView, is_pod: bool) -> int:
    """Routers between the client and an endpoint, by way of the node that rewrites the destination."""
    hops = flow.hops
    if not is_pod and endpoint_node.name == flow.node.name:
        return hops
    if not _is_the_node(flow.place, flow.node):
        hops += 1
    return hops + (1 if is_pod and endpoint_node.name != flow.node.name else 0)


def _hops_to_node(place: Place, node: NodeView) -> int:
    """Routers before the packet enters the node: the client's own node or the outside router, if any."""
    if place.node is None:
        return 0 if place.is_router else 1
    return 1 if place.is_pod and place.node != node.name else 0


def _pod_gateway(node: NodeView, family: int) -> str:
    """The node's address on the veths of its pods: the first one of its pod CIDR.

    Raises:
        ValueError: the node has no pod CIDR of that family, so there can be no such pod.
    """
    for network in map(ip_network, node.pod_cidrs):
        if network.version == family:
            return str(network[1])
    raise ValueError(f"{node.name} has no IPv{family} pod CIDR")


def _covers(networks: Iterable[str], address: str) -> bool:
    return any(_in(address, network) for network in networks)


def _in(address: str, network: str) -> bool:
    parsed: IPv4Address | IPv6Address = ip_address(address)
    around = ip_network(network, strict=False)
    return parsed.version == around.version and parsed in around
