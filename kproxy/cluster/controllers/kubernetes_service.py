"""``default/kubernetes``: the Service by which pods would reach the API, with endpoints written by the API itself.

Rules: Kubernetes, pkg/controlplane/controller/kubernetesservice and pkg/controlplane/reconcilers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from kproxy.api.kinds import ENDPOINT_SLICE, ENDPOINTS, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.endpoint_slices import SERVICE_NAME_LABEL
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.errors import AlreadyExists

NAME: Name = ("default", "kubernetes")
_LABELS = {"component": "apiserver", "provider": "kubernetes"}
_SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"


def kubernetes_service(settings: ClusterSettings) -> Object:
    """The Service: first address of the primary range, https 443, no selector."""
    network = ipaddress.ip_network(settings.service_cidrs[0])
    address = str(network.network_address + 1)
    return _named(
        SERVICE,
        _LABELS,
        spec={
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [f"IPv{network.version}"],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": settings.api_port}],
            "sessionAffinity": "None",
        },
    )


def kubernetes_slice(settings: ClusterSettings) -> Object:
    """The EndpointSlice: where the API answers, in the primary family."""
    version = ipaddress.ip_network(settings.service_cidrs[0]).version
    endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in _addresses(settings)]
    return _named(
        ENDPOINT_SLICE,
        {SERVICE_NAME_LABEL: NAME[1]},
        addressType=f"IPv{version}",
        endpoints=endpoints,
        ports=[_port(settings)],
    )


def kubernetes_endpoints(settings: ClusterSettings) -> Object:
    """The Endpoints object, which no controller mirrors."""
    addresses = [{"ip": address} for address in _addresses(settings)]
    subsets = [{"addresses": addresses, "ports": [_port(settings)]}] if addresses else []
    return _named(ENDPOINTS, {_SKIP_MIRROR: "true"}, **({"subsets": subsets} if subsets else {}))


class KubernetesServiceController(Controller[Kind]):
    """Makes the three objects, and again when somebody removes one."""

    def __init__(self, client: Client, informers: Informers, settings: ClusterSettings) -> None:
        super().__init__(client, informers)
        self._settings = settings
        for kind in _MAKERS:
            informers.of(kind).add_handler(self._handler(kind))

    def initial_keys(self) -> Iterable[Kind]:
        """All three kinds."""
        return _MAKERS

    def reconcile(self, key: Kind) -> None:
        """Makes the object of that kind, unless it is there; mends its endpoints when the API moved."""
        informer, wanted = self.informers.of(key), _MAKERS[key](self._settings)
        present = informer.get(NAME)
        if present is None:
            try:
                informer.observe(self.client.create(key, wanted))
            except AlreadyExists:
                informer.observe(self.client.get(key, NAME[1], NAME[0]))
        elif any(present.get(name, []) != wanted.get(name, []) for name in ("endpoints", "ports", "subsets")):
            informer.observe(self.client.update(key, {**wanted, "metadata": present["metadata"]}))

    def _handler(self, kind: Kind) -> Callable[[Object | None, Object | None], None]:
        def on_change(before: Object | None, after: Object | None) -> None:
            obj = after or before
            if obj is not None and name_of(obj) == NAME:
                self.queue.add(kind)

        return on_change


_MAKERS: dict[Kind, Callable[[ClusterSettings], Object]] = {
    SERVICE: kubernetes_service,
    ENDPOINT_SLICE: kubernetes_slice,
    ENDPOINTS: kubernetes_endpoints,
}


def _named(kind: Kind, labels: dict[str, str], **rest: object) -> Object:
    metadata = {"name": NAME[1], "namespace": NAME[0], "labels": labels}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **rest}


def _addresses(settings: ClusterSettings) -> list[str]:
    version = ipaddress.ip_network(settings.service_cidrs[0]).version
    return sorted(text for text in settings.api_addresses if ipaddress.ip_address(text).version == version)


def _port(settings: ClusterSettings) -> Object:
    return {"name": "https", "port": settings.api_port, "protocol": "TCP"}
