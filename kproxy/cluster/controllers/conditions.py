"""Conditions of workloads: how they change, and since when they are so."""

from __future__ import annotations

from kproxy.api.types import Object
from kproxy.cluster.identity import now


def found(obj: Object, name: str) -> Object | None:
    """The condition of that type in the object's status, or None."""
    return next((item for item in (obj.get("status") or {}).get("conditions") or () if item["type"] == name), None)


def merged(obj: Object, *conditions: Object) -> list[Object]:
    """The conditions with their times: one that has not changed is as it was.

    As Kubernetes has it, a condition has changed when its status or its reason has (deployment_util.go,
    SetDeploymentCondition); a new message alone is kept out.

    Args:
        obj: the object as it was.
        conditions: type, status, reason and message of each.
    """
    return [_with_times(found(obj, condition["type"]), condition) for condition in conditions]


def _with_times(before: Object | None, condition: Object) -> Object:
    if before is None:
        return {**condition, "lastTransitionTime": now()}
    if (before["status"], before.get("reason")) == (condition["status"], condition.get("reason")):
        return before
    since = before.get("lastTransitionTime") if before["status"] == condition["status"] else None
    return {**condition, "lastTransitionTime": since or now()}
