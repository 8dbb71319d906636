"""What a Deployment's status says: its counts, and whether it is available and moves on.

Law: pure but for the clock that its caller passes in. Rules: Kubernetes, pkg/controller/deployment (progress.go,
sync.go) and util/deployment_util.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kproxy.api.types import Object
from kproxy.cluster.controllers.conditions import found
from kproxy.cluster.controllers.rollouts import counted, limits
from kproxy.cluster.identity import timestamp

PROGRESSING = "Progressing"
COMPLETE = "NewReplicaSetAvailable"
MOVING = "ReplicaSetUpdated"
TIMED_OUT = "ProgressDeadlineExceeded"
PAUSED, RESUMED = "DeploymentPaused", "DeploymentResumed"


def deployment_status(deployment: Object, new: Object | None, old: Sequence[Object], now: datetime) -> Object:
    """The status of a Deployment with these ReplicaSets.

    Args:
        deployment: as it was, with its status.
        new: the ReplicaSet of the current template, if there is one.
        old: the others.
        now: the time, with its zone.
    """
    status = _counts(deployment, new, old)
    has_moved = _has_moved(deployment.get("status") or {}, status)
    conditions = [_available(deployment, status), _progressing(deployment, new, status, now), _failure(new, old)]
    status["conditions"] = [
        _with_times(deployment, item, now, is_news=has_moved and item["reason"] == MOVING)
        for item in conditions
        if item is not None
    ]
    return status


def _counts(deployment: Object, new: Object | None, old: Sequence[Object]) -> Object:
    every = [*([new] if new else []), *old]
    wanted = deployment["spec"].get("replicas", 1)
    available = sum(counted(item, "availableReplicas") for item in every)
    total = sum(counted(item, "replicas") for item in every)
    counts = {
        "replicas": total,
        "updatedReplicas": 0 if new is None else counted(new, "replicas"),
        "readyReplicas": sum(counted(item, "readyReplicas") for item in every),
        "availableReplicas": available,
        "unavailableReplicas": max(0, max(total, wanted) - available),
    }
    status: Object = {"observedGeneration": deployment["metadata"].get("generation", 1)}
    return status | {field: count for field, count in counts.items() if count}


def is_complete(deployment: Object, status: Object) -> bool:
    """Whether all pods are of the current template and available."""
    wanted = deployment["spec"].get("replicas", 1)
    return all(status.get(field, 0) == wanted for field in ("updatedReplicas", "replicas", "availableReplicas"))


def seconds_until_late(deployment: Object, now: datetime) -> float | None:
    """Seconds until the Deployment counts as stuck if nothing moves; None when it is done, paused or stuck."""
    condition = found(deployment, PROGRESSING)
    deadline = deployment["spec"].get("progressDeadlineSeconds")
    is_settled = condition is None or condition["reason"] in (COMPLETE, TIMED_OUT, PAUSED)
    if condition is None or is_settled or deadline is None or deployment["spec"].get("paused"):
        return None
    return float(deadline) - (now - datetime.fromisoformat(condition["lastUpdateTime"])).total_seconds()


def _available(deployment: Object, status: Object) -> Object:
    _, unavailable = limits(deployment)
    if status.get("availableReplicas", 0) >= deployment["spec"].get("replicas", 1) - unavailable:
        because = ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    else:
        because = ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    return _condition("Available", *because)


def _progressing(deployment: Object, new: Object | None, status: Object, now: datetime) -> Object | None:
    before = found(deployment, PROGRESSING)
    spec = deployment["spec"]
    if spec.get("progressDeadlineSeconds") is None:
        return None
    reason = "" if before is None else before["reason"]
    if spec.get("paused"):
        if reason in (PAUSED, TIMED_OUT):
            return before
        return _condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused")
    is_settled = reason == COMPLETE and status.get("replicas", 0) == status.get("updatedReplicas", 0)
    if is_settled and new is not None:
        return before
    return _on_the_way(deployment, new, status, now)


def _on_the_way(deployment: Object, new: Object | None, status: Object, now: datetime) -> Object | None:
    before = found(deployment, PROGRESSING)
    name = deployment["metadata"]["name"]
    what = f'Deployment "{name}"' if new is None else f'ReplicaSet "{new["metadata"]["name"]}"'
    if is_complete(deployment, status):
        return _condition(PROGRESSING, "True", COMPLETE, f"{what} has successfully progressed.")
    if before is not None and before["reason"] == PAUSED:
        return _condition(PROGRESSING, "Unknown", RESUMED, "Deployment is resumed")
    if before is None and new is not None:
        return _condition(
            PROGRESSING, "True", "NewReplicaSetCreated", f'Created new replica set "{new["metadata"]["name"]}"'
        )
    if _has_moved(deployment.get("status") or {}, status):
        return _condition(PROGRESSING, "True", MOVING, f"{what} is progressing.")
    late = seconds_until_late(deployment, now)
    if late is not None and late <= 0:
        return _condition(PROGRESSING, "False", TIMED_OUT, f"{what} has timed out progressing.")
    return before


def _has_moved(before: Object, after: Object) -> bool:
    """DeploymentProgressing: more new pods, fewer old ones, more ready, more available."""

    def old_pods(status: Object) -> int:
        return int(status.get("replicas", 0) - status.get("updatedReplicas", 0))

    grown = ("updatedReplicas", "readyReplicas", "availableReplicas")
    return old_pods(after) < old_pods(before) or any(after.get(name, 0) > before.get(name, 0) for name in grown)


def _failure(new: Object | None, old: Sequence[Object]) -> Object | None:
    """What a ReplicaSet complains of, that of the current template first."""
    for item in [*([new] if new else []), *old]:
        failed = found(item, "ReplicaFailure")
        if failed is not None:
            return _condition("ReplicaFailure", failed["status"], failed["reason"], failed["message"])
    return None


def _condition(name: str, status: str, reason: str, message: str) -> Object:
    return {"type": name, "status": status, "reason": reason, "message": message}


def _with_times(deployment: Object, condition: Object, now: datetime, *, is_news: bool) -> Object:
    """The condition with its times; what is news has a new time of update, though it says what it said before."""
    before = found(deployment, condition["type"])
    if before is not None and not is_news and _says_the_same(before, condition):
        return before
    moment = timestamp(now)
    since = moment
    if before is not None and before["status"] == condition["status"]:
        since = before.get("lastTransitionTime", moment)
    return {**condition, "lastTransitionTime": since, "lastUpdateTime": moment}


def _says_the_same(before: Object, after: Object) -> bool:
    return bool((before["status"], before["reason"]) == (after["status"], after["reason"]))
