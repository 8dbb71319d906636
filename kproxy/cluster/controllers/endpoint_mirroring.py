"""EndpointSlices for Endpoints objects that people wrote by hand, for Services without a selector.

Rules: Kubernetes, pkg/controller/endpointslicemirroring.
"""

from __future__ import annotations

import ipaddress

from kproxy.api.kinds import ENDPOINT_SLICE, ENDPOINTS, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.endpoint_slices import (
    BY_SERVICE,
    MANAGED_BY_LABEL,
    SERVICE_NAME_LABEL,
    Group,
    SliceOwner,
    SlicePlan,
    carry_out,
    is_managed,
    plan_slices,
    service_of_slice,
)
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.ownership import controller_reference
from kproxy.cluster.controllers.trigger_times import ANNOTATION

MANAGED_BY = "endpointslicemirroring-controller.k8s.io"
MAX_ADDRESSES = 1000
"""Of one subset, which becomes one slice a family; what is beyond is left out."""
_SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
_LEADER = "control-plane.alpha.kubernetes.io/leader"
_OWN_ANNOTATIONS = (ANNOTATION, "kubectl.kubernetes.io/last-applied-configuration")


def is_mirrored(endpoints: Object | None, service: Object | None) -> bool:
    """Whether an Endpoints object gets slices: its Service exists without a selector, and nothing says no."""
    if endpoints is None or service is None or service["spec"].get("selector"):
        return False
    metadata = endpoints["metadata"]
    if (metadata.get("labels") or {}).get(_SKIP_MIRROR) == "true":
        return False
    return _LEADER not in (metadata.get("annotations") or {})


def mirrored_endpoints(endpoints: Object) -> dict[Group, list[Object]]:
    """The endpoints of an Endpoints object, grouped as slices are; serving and terminating are not known."""
    groups: dict[Group, list[Object]] = {}
    for subset in endpoints.get("subsets") or ():
        ports = tuple(
            tuple(sorted({"name": "", "protocol": "TCP", **port}.items())) for port in subset.get("ports") or ()
        )
        listed = [(entry, True) for entry in subset.get("addresses") or ()]
        listed += [(entry, False) for entry in subset.get("notReadyAddresses") or ()]
        for entry, is_ready in listed[:MAX_ADDRESSES]:
            group = Group(f"IPv{ipaddress.ip_address(entry['ip']).version}", ports)
            groups.setdefault(group, []).append(_endpoint(entry, is_ready=is_ready))
    return groups


class EndpointSliceMirroringController(Controller[Name]):
    """Keeps the slices of every Endpoints object that is not a mirror itself."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._services, self._endpoints = informers.of(SERVICE), informers.of(ENDPOINTS)
        self._slices = informers.of(ENDPOINT_SLICE)
        self._slices.add_index(BY_SERVICE, service_of_slice)
        self._services.add_handler(self._on_named)
        self._endpoints.add_handler(self._on_named)
        self._slices.add_handler(self._on_slice)

    def reconcile(self, key: Name) -> None:
        """Writes the slices of the Endpoints object of that name."""
        endpoints, service = self._endpoints.get(key), self._services.get(key)
        slices = [item for item in self._slices.indexed(BY_SERVICE, "/".join(key)) if is_managed(item, MANAGED_BY)]
        if endpoints is None or not is_mirrored(endpoints, service):
            carry_out(self.client, self._slices, SlicePlan(delete=slices))
            return
        plan = plan_slices(_owner(endpoints), slices, mirrored_endpoints(endpoints))
        carry_out(self.client, self._slices, plan)

    def _on_named(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        if obj is not None:
            self.queue.add(name_of(obj))

    def _on_slice(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        if obj is not None and is_managed(obj, MANAGED_BY):
            for value in service_of_slice(obj):
                namespace, _, name = value.partition("/")
                self.queue.add((namespace, name))


def _owner(endpoints: Object) -> SliceOwner:
    metadata = endpoints["metadata"]
    own = {SERVICE_NAME_LABEL: metadata["name"], MANAGED_BY_LABEL: MANAGED_BY}
    labels = {**(metadata.get("labels") or {}), **own}
    annotations = metadata.get("annotations") or {}
    return SliceOwner(
        metadata["namespace"],
        metadata["name"],
        labels,
        controller_reference(endpoints),
        ("IPv4", "IPv6"),
        keeps_empty=False,
        max_endpoints=MAX_ADDRESSES,
        annotations={key: value for key, value in annotations.items() if key not in _OWN_ANNOTATIONS},
    )


def _endpoint(entry: Object, *, is_ready: bool) -> Object:
    endpoint: Object = {"addresses": [str(ipaddress.ip_address(entry["ip"]))], "conditions": {"ready": is_ready}}
    endpoint |= {field: entry[field] for field in ("hostname", "nodeName", "targetRef") if entry.get(field)}
    return endpoint
