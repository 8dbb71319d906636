"""Kinds that only keep something: ConfigMap, Event, Lease.

Kubernetes: pkg/apis/core/validation/validation.go and events.go, pkg/apis/coordination/validation/validation.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, forbidden, invalid, required, too_long
from kproxy.api.types import Object
from kproxy.api.validation.metadata import said
from kproxy.api.validation.pods import NOT_NEGATIVE

_MAX_DATA: Final = 1024 * 1024
_MAX_INSTANCE, _MAX_ACTION, _MAX_REASON, _MAX_NOTE = 128, 128, 128, 1024
_OF_CLUSTER: Final = ("default", "kube-system")
"""Where events about objects without a namespace may be."""


def check_config_map(obj: Object) -> Iterator[FieldError]:
    """Errors in a ConfigMap's keys, and its size."""
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for path, values in (("data", data), ("binaryData", binary)):
        for key in values:
            yield from said(f"{path}[{key}]", key, formats.config_key(key))
    for key in sorted(data.keys() & binary.keys()):
        yield invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    size = sum(len((value or "").encode()) for value in data.values())
    size += sum(_decoded_size(value or "") for value in binary.values())
    if size > _MAX_DATA:
        yield too_long("", _MAX_DATA)


def check_config_map_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """An immutable ConfigMap stays as it is."""
    if not old.get("immutable"):
        return
    reason = "field is immutable when `immutable` is set"
    if not obj.get("immutable"):
        yield forbidden("immutable", reason)
    for key in ("data", "binaryData"):
        if (obj.get(key) or {}) != (old.get(key) or {}):
            yield forbidden(key, reason)


def check_event(obj: Object) -> Iterator[FieldError]:
    """Errors in an Event, by the core group's names; one with an eventTime is of the newer kind and has to say more."""
    namespace = (obj.get("metadata") or {}).get("namespace") or ""
    about = (obj.get("involvedObject") or {}).get("namespace") or ""
    is_new = bool(obj.get("eventTime"))
    if about:
        is_elsewhere = not is_new and namespace != about
    else:
        is_elsewhere = namespace not in (_OF_CLUSTER if is_new else _OF_CLUSTER[:1])
    if is_elsewhere:
        yield invalid("involvedObject.namespace", about, "does not match event.namespace")
    if is_new:
        yield from _check_new_event(obj)


def _check_new_event(obj: Object) -> Iterator[FieldError]:
    controller = obj.get("reportingComponent") or ""
    if not controller:
        yield required("reportingComponent")
    yield from said("reportingComponent", controller, formats.qualified_name(controller))
    for field, limit in (("reportingInstance", _MAX_INSTANCE), ("action", _MAX_ACTION), ("reason", _MAX_REASON)):
        text = obj.get(field) or ""
        if not text:
            yield required(field)
        if len(text.encode()) > limit:
            yield invalid(field, "", f"can have at most {limit} characters")
    if len((obj.get("message") or "").encode()) > _MAX_NOTE:
        yield invalid("message", "", f"can have at most {_MAX_NOTE} characters")


def check_lease(obj: Object) -> Iterator[FieldError]:
    """Errors in a Lease's spec."""
    spec = obj.get("spec") or {}
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        yield invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    if transitions is not None and transitions < 0:
        yield invalid("spec.leaseTransitions", transitions, NOT_NEGATIVE)
    if spec.get("preferredHolder") and not spec.get("strategy"):
        yield forbidden("spec.preferredHolder", "may only be specified if `strategy` is defined")


def _decoded_size(text: str) -> int:
    return len(text.rstrip("=")) * 3 // 4
