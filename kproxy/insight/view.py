"""The running lab as the oracle wants to see it: objects from the API, addresses and routes from the lab's status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from kproxy.api.kinds import ENDPOINT_SLICE, SERVICE
from kproxy.api.types import EndpointSlice, Service
from kproxy.api.types import view as typed
from kproxy.client import Client
from kproxy.cluster.status import LabStatus
from kproxy.insight.oracle import ClientView, ClusterView, ExternalRoute, NodeView, PodView

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
    return Surroundings(status, cluster_view(status, services, slices), namespaces(status))


def cluster_view(status: LabStatus, services: tuple[Service, ...], slices: tuple[EndpointSlice, ...]) -> ClusterView:
    """The oracle's view; pods without an address yet are left out.

    A tunnel's end carries its node's own address (`kproxy.cluster.topology`), so nodes have no other one to tell of.
    """
    proxy = status.proxy
    return ClusterView(
        services=tuple(sorted(services, key=lambda service: (service.metadata.namespace, service.metadata.name))),
        slices=slices,
        nodes=tuple(NodeView(node.name, node.addresses, node.pod_cidrs, node.zone) for node in status.nodes),
        pods=tuple(
            PodView(pod.namespace_, pod.name, pod.node, pod.addresses, pod.host_network)
            for pod in status.pods
            if pod.addresses and pod.namespace
        ),
        clients=tuple(ClientView(client.name, client.addresses, client.routes) for client in status.clients),
        external_routes=tuple(ExternalRoute(route.to, route.via) for route in status.external_routes),
        detect_local_mode=proxy.detect_local_mode,
        cluster_cidrs=proxy.cluster_cidrs,
        masquerade_all=proxy.masquerade_all,
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
