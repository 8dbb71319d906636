"""Kinds without a namespace: Namespace, Node, ServiceCIDR.

Kubernetes: pkg/apis/core/validation/validation.go and pkg/apis/networking/validation/validation.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, forbidden, invalid, not_supported, required
from kproxy.api.types import Object
from kproxy.api.validation.metadata import IMMUTABLE, said

_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NODE_IMMUTABLE: Final = 'node updates may not change podCIDR except from "" to valid'


def check_namespace(obj: Object) -> Iterator[FieldError]:
    """Errors in a Namespace's finalizers."""
    for finalizer in (obj.get("spec") or {}).get("finalizers") or []:
        yield from said("spec.finalizers", finalizer, formats.qualified_name(finalizer))


def check_node(obj: Object) -> Iterator[FieldError]:
    """Errors in a Node's pod CIDRs and taints."""
    spec = obj.get("spec") or {}
    yield from _check_cidrs(
        spec.get("podCIDRs") or [], "spec.podCIDRs", "may specify no more than one CIDR for each IP family"
    )
    for index, taint in enumerate(spec.get("taints") or []):
        path, key = f"spec.taints[{index}]", taint.get("key") or ""
        yield from said(f"{path}.key", key, formats.qualified_name(key))
        if taint.get("value"):
            yield from said(f"{path}.value", taint["value"], formats.label_value(taint["value"]))
        if not taint.get("effect"):
            yield required(f"{path}.effect")
        elif taint["effect"] not in _EFFECTS:
            yield not_supported(f"{path}.effect", taint["effect"], _EFFECTS)


def check_node_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """A node keeps the pod CIDRs it has."""
    old_cidrs = (old.get("spec") or {}).get("podCIDRs")
    if old_cidrs and (obj.get("spec") or {}).get("podCIDRs") != old_cidrs:
        yield forbidden("spec.podCIDRs", _NODE_IMMUTABLE)


def check_service_cidr(obj: Object) -> Iterator[FieldError]:
    """Errors in the ranges of a ServiceCIDR."""
    cidrs = (obj.get("spec") or {}).get("cidrs") or []
    if not cidrs:
        yield required("spec.cidrs", "at least one CIDR required")
    reason = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
    yield from _check_cidrs(cidrs, "spec.cidrs", reason)


def check_service_cidr_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """The ranges of a ServiceCIDR stay as they are."""
    cidrs = (obj.get("spec") or {}).get("cidrs") or []
    if cidrs != ((old.get("spec") or {}).get("cidrs") or []):
        yield invalid("spec.cidrs", cidrs, IMMUTABLE)


def _check_cidrs(cidrs: list[str], path: str, one_of_each: str) -> Iterator[FieldError]:
    for index, text in enumerate(cidrs):
        yield from said(f"{path}[{index}]", text, formats.cidr(text))
    if len(cidrs) > 2:
        yield invalid(path, cidrs, "may only hold up to 2 values")
    versions = [network.version for text in cidrs if (network := formats.parse_cidr(text)) is not None]
    if len(cidrs) == 2 == len(versions) and versions[0] == versions[1]:
        yield invalid(path, cidrs, one_of_each)
