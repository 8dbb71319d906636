"""The subresource ``scale``: how many pods a workload has, apart from everything else about it.

Source: Kubernetes, pkg/registry/apps/deployment/storage/storage.go (scaleFromDeployment, ScaleREST).
"""

from __future__ import annotations

from kproxy.api import columns, known_fields
from kproxy.api.field_errors import FieldError, invalid
from kproxy.api.kinds import SCALE
from kproxy.api.types import Object

_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def of(workload: Object) -> Object:
    """The Scale of a workload."""
    metadata, spec = workload["metadata"], workload["spec"]
    status: Object = {"replicas": (workload.get("status") or {}).get("replicas", 0)}
    if spec.get("selector"):
        status["selector"] = columns.selector(spec["selector"])
    return {
        "kind": SCALE.name,
        "apiVersion": SCALE.api_version,
        "metadata": {key: metadata[key] for key in _METADATA if key in metadata},
        "spec": {"replicas": spec.get("replicas", 0)},
        "status": status,
    }


def check(scale: Object) -> list[FieldError]:
    """What is wrong with a Scale."""
    errors = known_fields.check(scale)
    replicas = 0 if errors else replicas_of(scale)
    return errors or (
        [invalid("spec.replicas", replicas, "must be greater than or equal to 0")] if replicas < 0 else []
    )


def replicas_of(scale: Object) -> int:
    """How many pods it wants; none when it does not say."""
    return int((scale.get("spec") or {}).get("replicas") or 0)


def applied(workload: Object, scale: Object) -> Object:
    """The workload with as many pods as the Scale wants; its resourceVersion is the one that the Scale states."""
    metadata = dict(workload["metadata"])
    stated = scale.get("metadata") or {}
    for key in ("resourceVersion", "uid"):
        if stated.get(key):
            metadata[key] = stated[key]
    return {**workload, "metadata": metadata, "spec": {**workload["spec"], "replicas": replicas_of(scale)}}
