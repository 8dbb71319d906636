"""How a Deployment gets from one template to the next: how many pods each of its ReplicaSets has next.

Law: pure, from values to values. Rules: Kubernetes, pkg/controller/deployment (rolling.go, recreate.go, sync.go) and
util/deployment_util.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kproxy.api.types import Object

DESIRED = "deployment.kubernetes.io/desired-replicas"
"""On a ReplicaSet: how many pods its Deployment wanted when it was last scaled."""
MOST = "deployment.kubernetes.io/max-replicas"
"""On a ReplicaSet: how many pods its Deployment might have had then."""


@dataclass(frozen=True)
class Rollout:
    """How many pods each ReplicaSet shall have next, by name; ``new`` is for the one of the current template."""

    new: int
    old: Mapping[str, int]


def replicas_of(replica_set: Object) -> int:
    """How many pods a ReplicaSet is to have."""
    return int(replica_set["spec"].get("replicas", 1))


def counted(replica_set: Object, field: str) -> int:
    """A count of its status."""
    return int((replica_set.get("status") or {}).get(field, 0))


def limits(deployment: Object) -> tuple[int, int]:
    """How many pods there may be too many (rounded up) and too few (rounded down); never 0 for both.

    A Deployment that recreates its pods has neither.
    """
    spec = deployment["spec"]
    wanted = spec.get("replicas", 1)
    strategy = spec.get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    surge = scaled(rolling.get("maxSurge", "25%"), wanted, round_up=True)
    unavailable = scaled(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    if not surge and not unavailable:
        unavailable = 1
    return surge, min(unavailable, wanted)


def scaled(value: object, total: int, *, round_up: bool) -> int:
    """A number, or a percentage of ``total`` (intstr.GetScaledValueFromIntOrPercent)."""
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    product = total * int(text[:-1])
    return -(-product // 100) if round_up else product // 100


def plan_rollout(deployment: Object, new: Object | None, old: Sequence[Object], *, old_pods_left: int = 0) -> Rollout:
    """The next step of a rollout.

    Args:
        deployment: defaulted.
        new: the ReplicaSet of the current template; None before it is made.
        old: those of earlier templates, oldest first.
        old_pods_left: pods of ``old`` that still exist, also those that are being deleted (for Recreate).
    """
    spec = deployment["spec"]
    wanted = spec.get("replicas", 1)
    has_new = 0 if new is None else replicas_of(new)
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        is_clear = not old_pods_left and not any(map(replicas_of, old))
        return Rollout(wanted if is_clear else min(has_new, wanted), {item["metadata"]["name"]: 0 for item in old})
    surge, unavailable = limits(deployment)
    total = has_new + sum(map(replicas_of, old))
    next_new = min(has_new, wanted) + max(0, min(wanted + surge - total, wanted - has_new))
    return Rollout(next_new, _scaled_down(new, old, total=total, min_available=wanted - unavailable))


def is_scaled(deployment: Object, replica_sets: Sequence[Object]) -> bool:
    """Whether the Deployment's number of pods was changed since its ReplicaSets were last scaled (isScalingEvent)."""
    return any(
        replicas_of(item) and _annotated(item, DESIRED) not in (None, deployment["spec"].get("replicas", 1))
        for item in replica_sets
    )


def plan_scaling(deployment: Object, new: Object | None, old: Sequence[Object]) -> Rollout:
    """The ReplicaSets' next sizes when only the Deployment's number of pods has changed, or it is paused.

    In the middle of a rollout every ReplicaSet grows or shrinks in proportion to its size (sync.go, scale).
    """
    wanted = deployment["spec"].get("replicas", 1)
    every = [*([new] if new else []), *old]
    sizes = {item["metadata"]["name"]: replicas_of(item) for item in every}
    active = [item for item in every if replicas_of(item)]
    only = active[0] if len(active) == 1 else (new or (old[-1] if old else None)) if not active else None
    if only is not None:
        sizes[only["metadata"]["name"]] = wanted
    elif new is not None and _is_saturated(deployment, new):
        sizes |= {item["metadata"]["name"]: 0 for item in old}
    elif (deployment["spec"].get("strategy") or {}).get("type") != "Recreate":
        sizes |= _in_proportion(deployment, active, new)
    new_size = 0 if new is None else sizes[new["metadata"]["name"]]
    return Rollout(new_size, {item["metadata"]["name"]: sizes[item["metadata"]["name"]] for item in old})


def _is_saturated(deployment: Object, replica_set: Object) -> bool:
    wanted = deployment["spec"].get("replicas", 1)
    return (
        replicas_of(replica_set) == _annotated(replica_set, DESIRED) == counted(replica_set, "availableReplicas")
        and replicas_of(replica_set) == wanted
    )


def _in_proportion(deployment: Object, active: Sequence[Object], new: Object | None) -> dict[str, int]:
    """Larger ReplicaSets take more of the change, and of equal ones newer when growing, older when shrinking."""
    wanted = deployment["spec"].get("replicas", 1)
    allowed = wanted + limits(deployment)[0] if wanted else 0
    change = allowed - sum(map(replicas_of, active))
    newest_first = change > 0
    order = [*([new] if new is not None and replicas_of(new) else []), *reversed([i for i in active if i is not new])]
    order = sorted(order if newest_first else order[::-1], key=replicas_of, reverse=True)
    left, sizes = change, {}
    for item in order:
        step = _fraction(item, allowed, change) if change else 0
        step = min(step, left) if change > 0 else max(step, left)
        sizes[item["metadata"]["name"]] = replicas_of(item) + step
        left -= step
    if order and left:  # what rounding has left goes to the largest
        name = order[0]["metadata"]["name"]
        sizes[name] = max(0, sizes[name] + left)
    return sizes


def _fraction(replica_set: Object, allowed: int, change: int) -> int:
    """A ReplicaSet's part of a change (getReplicaSetFraction)."""
    size = replicas_of(replica_set)
    if not allowed:
        return -size
    before = _annotated(replica_set, MOST) or allowed - change
    return int(size * allowed / before + 0.5) - size if before else 0


def _annotated(replica_set: Object, name: str) -> int | None:
    text = (replica_set["metadata"].get("annotations") or {}).get(name, "")
    return int(text) if text.isdecimal() else None


def _scaled_down(new: Object | None, old: Sequence[Object], *, total: int, min_available: int) -> dict[str, int]:
    """Old ReplicaSets' next sizes: first what is not available anyway, then as much as the new one makes up for."""
    sizes = {item["metadata"]["name"]: replicas_of(item) for item in old}
    unavailable_new = 0 if new is None else max(0, replicas_of(new) - counted(new, "availableReplicas"))
    room = total - min_available - unavailable_new
    for item in old:
        unhealthy = max(0, sizes[item["metadata"]["name"]] - counted(item, "availableReplicas"))
        step = max(0, min(room, unhealthy))
        sizes[item["metadata"]["name"]] -= step
        room -= step
    available = sum(counted(item, "availableReplicas") for item in [*([new] if new else []), *old])
    spare = min(room, available - min_available)
    for item in old:
        step = max(0, min(spare, sizes[item["metadata"]["name"]]))
        sizes[item["metadata"]["name"]] -= step
        spare -= step
    return sizes
