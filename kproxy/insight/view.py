"""The running lab as the oracle wants to see it: objects from the API, addresses and routes from the lab's status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from kproxy.api.kinds import ENDPOINT_SLICE, SERVICE
from kproxy.api.types import EndpointSlice, Service
from kproxy.api.types import view as typed
from kproxy.client import Client
from kproxy.cluster.status import LabStatus, ProxySettings
from kproxy.cluster.topology import UPLINK, pod_port
from kproxy.insight.oracle import (
    ROUTER,
    BalancerKind,
    BalancerView,
    ClientView,
    ClusterView,
    ExternalRoute,
    NodeView,
    PodView,
    ProxyView,
)

PUBLISHED = Path("/run/netns")


@dataclass(frozen=True)
class Surroundings:
    """A lab at one moment.

    Attributes:
        namespaces: path of the network namespace per client place (``node/node1``, ``pod/default/web-0``, ...).
    """

    status: LabStatus
    view: ClusterView
    namespaces: dict[str, Path]


def look(client: Client) -> Surroundings:
    """What the lab behind this API consists of now."""
    status = msgspec.convert(client.lab_status(), LabStatus)
    services = tuple(typed(obj, Service) for obj in client.list(SERVICE).items)
    slices = tuple(typed(obj, EndpointSlice) for obj in client.list(ENDPOINT_SLICE).items)
    places = {**namespaces(status), ROUTER: PUBLISHED / status.router.namespace}
    return Surroundings(status, cluster_view(status, services, slices), places)


def cluster_view(status: LabStatus, services: tuple[Service, ...], slices: tuple[EndpointSlice, ...]) -> ClusterView:
    """The oracle's view; pods without an address yet are left out.

    A tunnel's end carries its node's own address (`kproxy.cluster.topology`), so nodes have no other one to tell of.
    """
    return ClusterView(
        services=tuple(sorted(services, key=lambda service: (service.metadata.namespace, service.metadata.name))),
        slices=slices,
        nodes=tuple(
            NodeView(
                *(node.name, node.addresses, node.pod_cidrs, node.zone),
                uplink=UPLINK,
                proxy=proxy_view(node.proxy_settings),
            )
            for node in status.nodes
        ),
        pods=tuple(
            PodView(
                *(pod.namespace_, pod.name, pod.node, pod.addresses, pod.host_network),
                interface=pod_port(pod.namespace_, pod.name),
            )
            for pod in status.pods
            if pod.addresses and pod.namespace
        ),
        clients=tuple(ClientView(client.name, client.addresses, client.routes) for client in status.clients),
        external_routes=tuple(ExternalRoute(route.to, route.via) for route in status.external_routes),
        balancers=tuple(
            BalancerView(
                *(one.service, BalancerKind(one.kind), one.addresses),
                serves_cluster=one.ip_mode == "Proxy",
                announcers=one.announcers,
            )
            for one in status.load_balancers.services
        ),
        router_addresses=status.router.addresses,
    )


def proxy_view(settings: ProxySettings | None) -> ProxyView | None:
    """A proxy's settings as far as promises depend on them; None for a node without a proxy."""
    if settings is None:
        return None
    return ProxyView(
        mode=settings.mode,
        detect_local_mode=settings.detect_local_mode,
        cluster_cidrs=settings.cluster_cidrs,
        pod_bridge_interface=settings.pod_bridge_interface,
        pod_interface_name_prefix=settings.pod_interface_name_prefix,
        masquerade_all=settings.masquerade_all,
        node_port_addresses=settings.node_port_addresses,
    )


def namespaces(status: LabStatus) -> dict[str, Path]:
    """The network namespace of every client place."""
    found = {f"node/{node.name}": PUBLISHED / node.namespace for node in status.nodes}
    found |= {f"client/{client.name}": PUBLISHED / client.namespace for client in status.clients}
    found |= {
        f"pod/{pod.namespace_}/{pod.name}": PUBLISHED / pod.namespace
        for pod in status.pods
        if pod.namespace and not pod.host_network
    }
    return found
