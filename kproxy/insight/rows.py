"""Which rows a proof has: every client place that says something about a Service port, times every frontend of it.

Law: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kproxy.api.types import Service, ServicePort
from kproxy.insight.oracle import (
    ROUTER,
    Backend,
    BalancerKind,
    ClusterView,
    Frontend,
    FrontendKind,
    Place,
    PodView,
    Promise,
    backends,
    balancer_of,
    first_of_family,
    is_proxied,
    promise,
)

FAMILIES = {"IPv4": 4, "IPv6": 6}
PROTOCOLS = ("TCP", "UDP")
"""What packets are sent of; ports of another protocol have no rows."""


@dataclass(frozen=True)
class Standing:
    """A client place and what it is to the Service: ``the pod itself``, ``pod, same node``, ``outside``, ..."""

    place: Place
    role: str


@dataclass(frozen=True)
class Row:
    """One line of the proof, before any packet is sent.

    Attributes:
        role: see `Standing`.
    """

    place: Place
    role: str
    frontend: Frontend
    promise: Promise

    @property
    def service(self) -> str:
        """``default/web:http``; the port's number where it has no name."""
        metadata, port = self.frontend.service.metadata, self.frontend.service_port
        return f"{metadata.namespace}/{metadata.name}:{port.name or port.port}"


def rows(view: ClusterView, services: Iterable[Service]) -> tuple[Row, ...]:
    """All rows of these Services, Service by Service, port by port, family by family, client by client."""
    return tuple(
        Row(standing.place, standing.role, frontend, promise(view, standing.place, frontend))
        for service in services
        if is_proxied(service)
        for port in service.spec.ports
        if port.protocol in PROTOCOLS
        for family in families(service)
        for standing in (
            *standings(view, backends(view, service, port, family), family),
            *_proxying_balancer(view, service, family),
        )
        for frontend in frontends(view, service, port, family)
        if frontend.kind is FrontendKind.NODE_PORT or not standing.place.is_router
    )


def families(service: Service) -> tuple[int, ...]:
    """The IP versions in which a Service has a cluster IP, its first one first."""
    if service.spec.ip_families:
        return tuple(FAMILIES[family] for family in service.spec.ip_families)
    return (6,) if ":" in service.spec.cluster_ip else (4,)


def frontends(view: ClusterView, service: Service, port: ServicePort, family: int) -> tuple[Frontend, ...]:
    """Every address of that family at which a Service port can be dialled; first the bare address of one endpoint."""

    def at(kind: FrontendKind, address: str, number: int, node: str = "") -> Frontend:
        return Frontend(kind, address, number, port.protocol, service, port, node)

    spec = service.spec
    found: list[Frontend] = []
    reference = reference_of(view, backends(view, service, port, family))
    if reference is not None:
        found.append(at(FrontendKind.POD, reference.address, reference.port))
    cluster_ip = first_of_family(spec.cluster_ips or (spec.cluster_ip,), family)
    if cluster_ip:
        found.append(at(FrontendKind.CLUSTER_IP, cluster_ip, port.port))
    if port.node_port:
        for node in view.nodes:
            address = first_of_family(node.addresses, family)
            if address:
                found.append(at(FrontendKind.NODE_PORT, address, port.node_port, node.name))
    found += [at(FrontendKind.EXTERNAL_IP, ip, port.port) for ip in _of_family(spec.external_ips, family)]
    ingress = [entry for entry in service.status.load_balancer.ingress if entry.ip]
    balanced = [(at(FrontendKind.LOAD_BALANCER, entry.ip, port.port), entry.ip_mode) for entry in ingress]
    found += [
        frontend
        for frontend, ip_mode in balanced
        if frontend.family == family and (ip_mode != "Proxy" or balancer_of(view, frontend) is not None)
    ]
    return tuple(found)


def reference_of(view: ClusterView, candidates: Sequence[Backend]) -> Backend | None:
    """The endpoint that the places are chosen around: a ready pod, if possible one with another pod beside it."""
    ready = [backend for backend in candidates if backend.ready and backend.address in view.pod_by_address]
    for backend in ready:
        pod = view.pod_by_address[backend.address]
        if any(other.node == pod.node and other != pod for other in _pods(view)):
            return backend
    return ready[0] if ready else None


def standings(view: ClusterView, candidates: Sequence[Backend], family: int) -> tuple[Standing, ...]:
    """The client places for one Service port; those that the lab has nobody for are left out.

    The pod itself, a pod on the same node, a pod on another node, a node with and one without an endpoint, and every
    client outside. A Service without a ready pod has one pod and one node to dial it.
    """
    found = [*_pod_standings(view, candidates), *_node_standings(view, candidates)]
    found += [
        Standing(Place(f"client/{client.name}", None, False, client.addresses, client.routes), "outside")
        for client in view.clients
    ]
    return tuple(standing for standing in found if standing.place.address(family))


def _proxying_balancer(view: ClusterView, service: Service, family: int) -> Iterator[Standing]:
    """The router, if it is this Service's classic balancer: then it is who dials the node ports."""
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    if any(one.service == name and one.kind is BalancerKind.CLASSIC for one in view.balancers):
        networks = tuple(address for node in view.nodes for address in node.addresses)
        place = Place(ROUTER, None, False, view.router_addresses, networks, is_router=True)
        if place.address(family):
            yield Standing(place, "the balancer")


def _pod_standings(view: ClusterView, candidates: Sequence[Backend]) -> Iterator[Standing]:
    reference = reference_of(view, candidates)
    addresses = {backend.address for backend in candidates}
    # Pods that are no endpoints themselves come first: they tell more, as no hairpin is in the way.
    others = sorted(_pods(view), key=lambda pod: bool(addresses.intersection(pod.addresses)))
    if reference is None:
        yield from (Standing(_pod_place(pod), "a pod") for pod in others[:1])
        return
    itself = view.pod_by_address[reference.address]
    yield Standing(_pod_place(itself), "the pod itself")
    same = [pod for pod in others if pod.node == itself.node and pod != itself]
    yield from (Standing(_pod_place(pod), "pod, same node") for pod in same[:1])
    elsewhere = [pod for pod in others if pod.node != itself.node]
    yield from (Standing(_pod_place(pod), "pod, other node") for pod in elsewhere[:1])


def _node_standings(view: ClusterView, candidates: Sequence[Backend]) -> Iterator[Standing]:
    usable = {backend.node for backend in candidates if backend.ready or (backend.serving and backend.terminating)}
    reference = reference_of(view, candidates)
    preferred = view.pod_by_address[reference.address].node if reference else ""
    having = sorted((node for node in view.nodes if node.name in usable), key=lambda node: node.name != preferred)
    lacking = [node for node in view.nodes if node.name not in usable]
    for nodes, role in ((having, "node with endpoint"), (lacking, "node without")):
        for node in nodes[:1]:
            yield Standing(Place(f"node/{node.name}", node.name, False, node.addresses), role)


def _pods(view: ClusterView) -> list[PodView]:
    return [pod for pod in view.pods if not pod.host_network]


def _pod_place(pod: PodView) -> Place:
    return Place(f"pod/{pod.namespace}/{pod.name}", pod.node, True, pod.addresses, interface=pod.interface)


def _of_family(addresses: Iterable[str], family: int) -> list[str]:
    return [address for address in addresses if (":" in address) == (family == 6)]
