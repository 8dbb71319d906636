"""What a delete does to one object: it goes at once, or is marked as going while something still has to end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kproxy.api.kinds import KINDS, NAMESPACE, POD, Kind
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.identity import timestamp
from kproxy.cluster.store import Transaction

FOREGROUND_DELETION = "foregroundDeletion"
"""The finalizer of an object that waits for the end of those it owns."""
ORPHAN_DEPENDENTS = "orphan"
"""The finalizer of an object whose dependents have to be released first."""

_FINALIZERS = {"Foreground": FOREGROUND_DELETION, "Orphan": ORPHAN_DEPENDENTS}
_LONGEST_GRACE = 2**31 - 1  # seconds; more than a date can hold is a mistake anyway


@dataclass(frozen=True)
class DeleteOptions:
    """How to delete.

    Attributes:
        grace_seconds: for pods; None means the pod's own period, 0 removes the object at once.
        uid: when not empty, the only uid that is meant.
        resource_version: when not empty, the only resourceVersion that is meant.
        propagation: what becomes of objects that it owns: "Background", "Foreground" or "Orphan"; "" leaves it to what
            the object says, and that is Background.
    """

    grace_seconds: int | None = None
    uid: str = ""
    resource_version: str = ""
    propagation: str = ""


def check_preconditions(kind: Kind, old: Object, options: DeleteOptions) -> None:
    """Ensures that the stored object is the one that is meant.

    Raises:
        Conflict: it has another uid or resourceVersion.
    """
    for field, wanted in (("uid", options.uid), ("resourceVersion", options.resource_version)):
        has = old["metadata"][field]
        if wanted and wanted != has:
            label = "UID" if field == "uid" else "ResourceVersion"
            raise statuses.conflict(kind, old["metadata"]["name"], precondition_failed(label, wanted, has))


def precondition_failed(label: str, wanted: str, has: str) -> str:
    """Kubernetes' words for an object that is not the one that is meant."""
    return f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {has}"


def grace_seconds(kind: Kind, old: Object, options: DeleteOptions) -> int:
    """Seconds that the object stays marked before it goes (Kubernetes: podStrategy.CheckGracefulDelete)."""
    if kind is not POD:
        return 0
    if not old["spec"].get("nodeName") or old.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    grace = options.grace_seconds
    if grace is None:
        grace = old["spec"].get("terminationGracePeriodSeconds", 30)
    return min(max(0, int(grace)), _LONGEST_GRACE)


def finalizers_of(old: Object, options: DeleteOptions) -> list[str]:
    """The finalizers of an object that is being deleted so (Kubernetes: deletionFinalizersForGarbageCollection)."""
    has: list[str] = old["metadata"].get("finalizers") or []
    if not options.propagation:
        return has
    others = [finalizer for finalizer in has if finalizer not in _FINALIZERS.values()]
    own = _FINALIZERS.get(options.propagation)
    return [*others, own] if own else others


def dying(kind: Kind, old: Object, grace: int, finalizers: list[str]) -> Object:
    """The object marked as being deleted; a second delete can only shorten its grace."""
    metadata = dict(old["metadata"])
    if finalizers != (metadata.get("finalizers") or []):
        metadata["finalizers"] = finalizers
    if "deletionTimestamp" not in metadata and metadata.get("generation"):
        metadata["generation"] += 1
    before = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata or (before is not None and grace < before):
        metadata["deletionTimestamp"] = timestamp(datetime.now(UTC) + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
    dying = {**old, "metadata": metadata}
    if kind is NAMESPACE:
        dying["status"] = {**old.get("status", {}), "phase": "Terminating"}
    return dying


def may_go(kind: Kind, old: Object, updated: Object) -> bool:
    """Whether the last thing that kept a dying object is gone."""
    had, has = (bool(obj["metadata"].get("finalizers")) for obj in (old, updated))
    return had and not has and not (kind is POD and updated["metadata"].get("deletionGracePeriodSeconds"))


def has_content(transaction: Transaction, namespace: str) -> bool:
    """Whether anything is left in the namespace."""
    return any(transaction.all_of(kind, namespace) for kind in KINDS if kind.namespaced)
