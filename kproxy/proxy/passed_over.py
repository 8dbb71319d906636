"""What of Services and EndpointSlices has no effect on any node, in sentences for the log and for `kproxy describe`.

Law: pure, and only words: what counts is decided where it is read, in ``endpoints`` and ``services``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kproxy.api.types import EndpointSlice, Service
from kproxy.proxy.endpoints import HEADLESS_LABEL, SERVICE_NAME_LABEL, PortKey, first_address, port_key, service_of
from kproxy.proxy.family import Family
from kproxy.proxy.services import cluster_ip_of, port_specs

SHOWN = 5
"""So many places are named one by one; a slice may have a thousand."""


def in_service(service: Service) -> Iterator[str]:
    """Addresses of a Service in a family in which it has no cluster IP: no proxier of that family handles it.

    (kube-proxy: servicechangetracker.go, newBaseServiceInfo, which tells of an "incorrect IP version".)
    """
    spec = service.spec
    families = [family for family in Family if cluster_ip_of(spec, family)]
    if len(families) != 1 or not port_specs(service, families[0]):
        return
    has = families[0].has
    ingress = tuple(entry.ip for entry in service.status.load_balancer.ingress)
    for path, texts in (
        ("spec.externalIPs", spec.external_ips),
        ("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges),
        ("status.loadBalancer.ingress", ingress),
    ):
        wrong = [f'{path}[{index}] ("{text}")' for index, text in enumerate(texts) if text and not has(text)]
        if wrong:
            yield f"{_some(wrong)}: without effect, as every cluster IP of the Service is {families[0].value}"


def in_slice(slice_: EndpointSlice, family: Family, ports: Collection[PortKey]) -> Iterator[str]:
    """Ports and endpoints of a slice that proxies pass over.

    Args:
        slice_: the slice.
        family: the one that its addressType names.
        ports: those of its Service.
    """
    owner = f'Service "{slice_.metadata.namespace}/{service_of(slice_)}"'
    for index, port in enumerate(slice_.ports or ()):
        key = port_key(port)
        if key is None:
            lacks = "name" if port.name is None else "number"
            yield f"ports[{index}] has no {lacks}: passed over"
        elif key not in ports:
            wanted = f'{key.protocol} port named "{key.name}"' if key.name else f"{key.protocol} port without a name"
            yield f"ports[{index}]: {owner} has no {wanted}: no traffic comes here"
    endpoints = slice_.endpoints or ()
    wrong = [
        f"endpoints[{index}] ({', '.join(entry.addresses[:1]) or 'none'})"
        for index, entry in enumerate(endpoints)
        if not first_address(entry, family)
    ]
    if wrong:
        yield f"the address is not {family.value}, the endpoint passed over: {_some(wrong)}"
    several = [f"endpoints[{index}]" for index, entry in enumerate(endpoints) if len(entry.addresses) > 1]
    if several:
        yield f"only the first address is used: {_some(several)}"


def around_slice(slice_: EndpointSlice, service: Service | None, nodes: Collection[str]) -> Iterator[str]:
    """All that keeps parts of a slice from getting traffic, or from counting as somewhere.

    Args:
        slice_: the slice.
        service: the one that it belongs to; None when there is none.
        nodes: the names of all Nodes.
    """
    if HEADLESS_LABEL in slice_.metadata.labels:
        return
    name = service_of(slice_)
    family = next((family for family in Family if family.value == slice_.address_type), None)
    if not name:
        yield f"no label {SERVICE_NAME_LABEL}: it belongs to no Service"
    elif service is None:
        yield f'there is no Service "{slice_.metadata.namespace}/{name}"'
    elif family is None:
        yield f"no proxy handles addressType {slice_.address_type}"
    elif specs := port_specs(service, family):
        yield from in_slice(slice_, family, {PortKey(spec.port, spec.protocol) for spec in specs})
    elif any(cluster_ip_of(service.spec, other) for other in Family) and service.spec.type != "ExternalName":
        yield f'Service "{slice_.metadata.namespace}/{name}" is not handled for {family.value}: no traffic comes here'
    for unknown in dict.fromkeys(entry.node_name for entry in slice_.endpoints or ()):
        if unknown and unknown not in nodes:
            yield f'there is no Node "{unknown}": {_some(_places_on(slice_, unknown))} remote everywhere'


def _places_on(slice_: EndpointSlice, node: str) -> list[str]:
    return [f"endpoints[{index}]" for index, entry in enumerate(slice_.endpoints or ()) if entry.node_name == node]


def _some(places: Sequence[str]) -> str:
    more = len(places) - SHOWN
    return ", ".join(places[:SHOWN]) + (f" and {more} more" if more > 0 else "")
