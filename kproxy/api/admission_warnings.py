"""What is legal but will not do what its author may think: the text of Kubernetes' Warning headers.

Kubernetes: pkg/api/service/warnings.go. Warnings never refuse anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api import formats
from kproxy.api.field_errors import quoted
from kproxy.api.types import Object

_TOPOLOGY_HINTS: Final = "service.kubernetes.io/topology-aware-hints"
_TOPOLOGY_MODE: Final = "service.kubernetes.io/topology-mode"


def admission_warnings(obj: Object) -> list[str]:
    """Warnings about one object, for the person who creates or changes it.

    Args:
        obj: defaulted and valid. Kinds other than Service have none.
    """
    return list(_service(obj)) if obj.get("kind") == "Service" else []


def _service(obj: Object) -> Iterator[str]:
    spec = obj.get("spec") or {}
    if _TOPOLOGY_HINTS in ((obj.get("metadata") or {}).get("annotations") or {}):
        yield f"annotation {_TOPOLOGY_HINTS} is deprecated, please use {_TOPOLOGY_MODE} instead"
    if spec.get("clusterIP") == "None":
        if spec.get("loadBalancerIP"):
            yield "spec.loadBalancerIP is ignored for headless services"
        if spec.get("externalIPs"):
            yield "spec.externalIPs is ignored for headless services"
        if spec.get("sessionAffinity", "None") != "None":
            yield "spec.SessionAffinity is ignored for headless services"
    if spec.get("externalIPs"):
        yield "spec.externalIPs is deprecated"
    is_external_name = spec.get("type") == "ExternalName"
    if is_external_name and spec.get("externalIPs"):
        yield 'spec.externalIPs is ignored when spec.type is "ExternalName"'
    if not is_external_name and spec.get("externalName"):
        yield 'spec.externalName is ignored when spec.type is not "ExternalName"'
    if spec.get("trafficDistribution") == "PreferClose":
        yield 'spec.trafficDistribution: "PreferClose" is deprecated, please use "PreferSameZone" instead'
    yield from _uncanonical(spec)


def _uncanonical(spec: Object) -> Iterator[str]:
    for key in ("clusterIPs", "externalIPs"):
        for index, text in enumerate(spec.get(key) or []):
            address = formats.parse_ip(text)
            if address is not None and address.version == 6 and str(address) != text:
                canonical = quoted(str(address))
                yield (
                    f"spec.{key}[{index}]: IPv6 address {quoted(text)} "
                    f"should be in RFC 5952 canonical format ({canonical})"
                )
    for index, text in enumerate(spec.get("loadBalancerSourceRanges") or []):
        network = formats.parse_cidr(text.strip())
        if network is not None and network.version == 6 and str(network) != text.strip():
            canonical = quoted(str(network))
            yield (
                f"spec.loadBalancerSourceRanges[{index}]: IPv6 CIDR value {quoted(text)} "
                f"should be in RFC 5952 canonical format ({canonical})"
            )
