"""EndpointSlices and Endpoints. Kubernetes: pkg/apis/discovery/validation and ValidateEndpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, duplicate, invalid, not_supported, required, too_many
from kproxy.api.types import Object
from kproxy.api.validation.metadata import IMMUTABLE, said
from kproxy.api.validation.services import check_port_name, check_protocol

ADDRESS_TYPES: Final = ("FQDN", "IPv4", "IPv6")
MAX_ENDPOINTS: Final = 1000
MAX_ADDRESSES: Final = 100
MAX_PORTS: Final = 20000
MAX_HINTS: Final = 8


def check_slice(obj: Object) -> Iterator[FieldError]:
    """Errors in an EndpointSlice; the number of a port is not looked at, as in Kubernetes."""
    address_type = obj.get("addressType") or ""
    if not address_type:
        yield required("addressType")
    elif address_type not in ADDRESS_TYPES:
        yield not_supported("addressType", address_type, ADDRESS_TYPES)
    endpoints = obj.get("endpoints") or []
    if len(endpoints) > MAX_ENDPOINTS:
        yield too_many("endpoints", len(endpoints), MAX_ENDPOINTS)
    else:
        for index, endpoint in enumerate(endpoints):
            yield from _check_endpoint(endpoint, address_type, f"endpoints[{index}]")
    yield from _check_slice_ports(obj.get("ports") or [])


def check_slice_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """The address type of a slice stays as it is."""
    if obj.get("addressType") != old.get("addressType"):
        yield invalid("addressType", obj.get("addressType"), IMMUTABLE)


def check_endpoints(obj: Object) -> Iterator[FieldError]:
    """Errors in an Endpoints object."""
    for index, subset in enumerate(obj.get("subsets") or []):
        path = f"subsets[{index}]"
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            yield required(path, "must specify `addresses` or `notReadyAddresses`")
        for key in ("addresses", "notReadyAddresses"):
            for position, address in enumerate(subset.get(key) or []):
                yield from _check_endpoint_address(address, f"{path}.{key}[{position}]")
        ports = subset.get("ports") or []
        for position, port in enumerate(ports):
            below, number = f"{path}.ports[{position}]", port.get("port") or 0
            yield from check_port_name(port.get("name") or "", below, set(), is_required=len(ports) > 1)
            yield from said(f"{below}.port", number, formats.port_number(number))
            yield from check_protocol(port.get("protocol") or "", below)


def _check_endpoint(endpoint: Object, address_type: str, path: str) -> Iterator[FieldError]:
    addresses = endpoint.get("addresses") or []
    if not addresses:
        yield required(f"{path}.addresses", "must contain at least 1 address")
    elif len(addresses) > MAX_ADDRESSES:
        yield too_many(f"{path}.addresses", len(addresses), MAX_ADDRESSES)
    for index, address in enumerate(addresses):
        if complaints := _address_complaints(address, address_type):
            yield from said(f"{path}.addresses[{index}]", address, complaints)
    for key, name_format in (("nodeName", formats.dns_subdomain), ("hostname", formats.dns_label)):
        if (value := endpoint.get(key)) is not None and (complaints := name_format(value)):
            yield from said(f"{path}.{key}", value, complaints)
    if hints := endpoint.get("hints"):
        for key in ("forZones", "forNodes"):
            yield from _check_hints(hints.get(key) or [], f"{path}.hints.{key}")


def _address_complaints(address: str, address_type: str) -> list[str]:
    if address_type == "FQDN":
        return formats.full_domain(address)
    if address_type not in ("IPv4", "IPv6"):
        return []
    return formats.ip_of_family(address, address_type) or formats.ordinary_ip(address)


def _check_hints(hints: list[Object], path: str) -> Iterator[FieldError]:
    if len(hints) > MAX_HINTS:
        yield too_many(path, len(hints), MAX_HINTS)
        return
    names: set[str] = set()
    for index, hint in enumerate(hints):
        name = hint.get("name") or ""
        if name in names:
            yield duplicate(f"{path}[{index}].name", name)
        names.add(name)
        name_format = formats.label_value if path.endswith("forZones") else formats.dns_subdomain
        yield from said(f"{path}[{index}].name", name, name_format(name))


def _check_slice_ports(ports: list[Object]) -> Iterator[FieldError]:
    if len(ports) > MAX_PORTS:
        yield too_many("ports", len(ports), MAX_PORTS)
        return
    names: set[str] = set()
    for index, port in enumerate(ports):
        path, name = f"ports[{index}]", port.get("name") or ""
        if name:
            yield from said(f"{path}.name", name, formats.dns_label(name))
        if name in names:
            yield duplicate(f"{path}.name", name)
        names.add(name)
        yield from check_protocol(port.get("protocol") or "", path)
        if (app_protocol := port.get("appProtocol")) is not None:
            yield from said(f"{path}.appProtocol", app_protocol, formats.qualified_name(app_protocol))


def _check_endpoint_address(address: Object, path: str) -> Iterator[FieldError]:
    text = address.get("ip") or ""
    yield from said(f"{path}.ip", text, formats.ip_address(text) or formats.ordinary_ip(text))
    for key, name_format in (("nodeName", formats.dns_subdomain), ("hostname", formats.dns_label)):
        if address.get(key):
            yield from said(f"{path}.{key}", address[key], name_format(address[key]))
