"""Whether an object may exist: Kubernetes' validation of every kind, in its words.

Law: pure; the object has passed ``known_fields.check`` and ``defaults.default`` before. All errors are given at once.
Rules that need other objects (taken addresses and ports, namespaces that must exist) belong to admission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from kproxy.api import formats, known_fields
from kproxy.api.defaults import default
from kproxy.api.field_errors import INVALID, FieldError, required
from kproxy.api.kinds import BY_API, NODE, Kind
from kproxy.api.types import Object
from kproxy.api.validation import cluster_scoped, endpoints, metadata, pods, records, services, workloads

__all__ = ["prepare", "validate"]

Check = Callable[[Object], Iterator[FieldError]]
UpdateCheck = Callable[[Object, Object], Iterator[FieldError]]


@dataclass(frozen=True)
class _Rules:
    """What is asked of one kind: the format of its names, its own checks, and what an update may not change."""

    name: metadata.NameFormat
    check: Check
    check_update: UpdateCheck | None = None


_RULES: Final[dict[str, _Rules]] = {
    "Namespace": _Rules(formats.dns_label, cluster_scoped.check_namespace),
    "Node": _Rules(formats.dns_subdomain, cluster_scoped.check_node, cluster_scoped.check_node_update),
    "ServiceCIDR": _Rules(
        formats.dns_subdomain, cluster_scoped.check_service_cidr, cluster_scoped.check_service_cidr_update
    ),
    "Service": _Rules(formats.dns_label, services.check, services.check_update),
    "EndpointSlice": _Rules(formats.dns_subdomain, endpoints.check_slice, endpoints.check_slice_update),
    "Endpoints": _Rules(formats.dns_subdomain, endpoints.check_endpoints),
    "Pod": _Rules(formats.dns_subdomain, pods.check, pods.check_update),
    "Deployment": _Rules(formats.dns_subdomain, workloads.check_deployment, workloads.check_update),
    "ReplicaSet": _Rules(formats.dns_subdomain, workloads.check_replica_set, workloads.check_update),
    "StatefulSet": _Rules(formats.dns_label, workloads.check_stateful_set, workloads.check_stateful_set_update),
    "DaemonSet": _Rules(formats.dns_subdomain, workloads.check_daemon_set, workloads.check_update),
    "ConfigMap": _Rules(formats.dns_subdomain, records.check_config_map, records.check_config_map_update),
    "Event": _Rules(formats.dns_subdomain, records.check_event),
    "Lease": _Rules(formats.dns_subdomain, records.check_lease),
}


def validate(
    obj: Object, old: Object | None = None, *, is_complete: bool = True, is_strict: bool = True
) -> list[FieldError]:
    """Everything that is wrong with an object's values.

    Args:
        obj: checked and defaulted; a Service with its addresses and ports allocated and, on create, its status cleared.
        old: the stored object that it is to replace; None when it is new.
        is_complete: False for a manifest that no API server has completed: a missing namespace, a ``generateName``
            without a name, and a missing healthCheckNodePort are then no errors.
        is_strict: False for what somebody else has admitted: addresses in the spellings that older Kubernetes took, and
            any names of nodes, which are only compared, are then no errors.

    Returns:
        All errors; empty when the object is valid. Kinds without rules have none.

    Raises:
        TypeError, AttributeError: the object would not have passed ``known_fields.check``.
    """
    kind = BY_API.get((str(obj.get("apiVersion")), str(obj.get("kind"))))
    rules = _RULES.get(kind.name) if kind else None
    if kind is None or rules is None:
        return []
    errors: list[FieldError] = []
    if old is not None:
        errors += metadata.check_update(obj, old)
        if rules.check_update is not None:
            errors += rules.check_update(obj, old)
    errors += metadata.check(obj, rules.name, is_namespaced=kind.namespaced)
    errors += rules.check(obj)
    if not is_complete:
        errors = [error for error in errors if error not in _COMPLETED_BY_SERVER]
        if (obj.get("metadata") or {}).get("generateName"):
            errors = [error for error in errors if error != metadata.NAME_REQUIRED]
    if not is_strict:
        errors = [error for error in errors if not _is_understood(error, kind)]
    return errors


def _is_understood(error: FieldError, kind: Kind) -> bool:
    is_node_name = error.field.endswith(".nodeName") or (kind is NODE and error.field == "metadata.name")
    return error.kind is INVALID and (is_node_name or formats.is_about_spelling(error.detail))


def prepare(obj: Object, *, is_complete: bool = False, is_strict: bool = True) -> tuple[Object, list[FieldError]]:
    """An object as its author wrote it, made ready for use: its fields checked, defaults filled in, values validated.

    Args:
        obj: any mapping.
        is_complete: as for ``validate``.
        is_strict: as for ``validate``.

    Returns:
        The defaulted object and no errors; or the object as it was and all of its errors.
    """
    errors = known_fields.check(obj)
    if errors:
        return obj, errors
    defaulted = default(obj)
    errors = validate(defaulted, is_complete=is_complete, is_strict=is_strict)
    return (obj, errors) if errors else (defaulted, [])


# What an API server fills in between defaulting and validation.
_COMPLETED_BY_SERVER: Final = (
    required("metadata.namespace"),
    required("spec.healthCheckNodePort"),
    required("spec.clusterIPs"),
)
