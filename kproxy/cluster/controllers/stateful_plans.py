"""Which pods of a StatefulSet are made and deleted next, and what its status says.

Law: pure, from values to values. Rules: Kubernetes, pkg/controller/statefulset/stateful_set_control.go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kproxy.api.types import Object
from kproxy.cluster.controllers.endpoint_slices import is_pod_ready
from kproxy.cluster.controllers.owned_pods import Availability, has_ended
from kproxy.cluster.controllers.revisions import HASH_LABEL
from kproxy.cluster.controllers.rollouts import scaled

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"


@dataclass
class Plan:
    """What is to be done now; the end of it brings the next look.

    Attributes:
        create: ordinals of pods to make, with the name of the revision that each is made of.
        delete: pods to delete.
    """

    create: list[tuple[int, str]] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def ordinal_of(stateful_set: Object, pod: Object) -> int:
    """The number at the end of the pod's name; -1 if the name is not one of the StatefulSet's."""
    match = re.fullmatch(re.escape(stateful_set["metadata"]["name"]) + r"-(\d+)", pod["metadata"]["name"])
    return int(match[1]) if match else -1


def ordinals(stateful_set: Object) -> range:
    """The numbers of the pods that it is to have."""
    spec = stateful_set["spec"]
    start = (spec.get("ordinals") or {}).get("start", 0)
    return range(start, start + spec.get("replicas", 1))


def plan_pods(
    stateful_set: Object, pods: Sequence[Object], current: str, update: str, availability: Availability
) -> Plan:
    """What is to be done next.

    Args:
        stateful_set: defaulted, with its status.
        pods: all that it manages, also those that are being deleted.
        current: name of the revision that pods had before the update.
        update: name of that of its template now.
        availability: which pods count as available.
    """
    return _Planning(stateful_set, pods, (current, update), availability).plan()


class _Planning:
    """One look at a StatefulSet."""

    def __init__(
        self, stateful_set: Object, pods: Sequence[Object], revisions: tuple[str, str], availability: Availability
    ) -> None:
        self._set = stateful_set
        self._current, self._update = revisions
        self._availability = availability
        self._is_ordered = stateful_set["spec"].get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        wanted = ordinals(stateful_set)
        found = {ordinal_of(stateful_set, pod): pod for pod in pods}
        self._slots = [(number, found.get(number)) for number in wanted]
        surplus = [number for number in found if number not in wanted and number >= 0]
        self._surplus = [found[number] for number in sorted(surplus, reverse=True)]

    def plan(self) -> Plan:
        """See `plan_pods`."""
        plan = Plan()
        if self._set["metadata"].get("deletionTimestamp"):
            return plan
        if self._fill(plan) and self._shrink(plan) and not plan.create:
            self._roll(plan)
        return plan

    def _fill(self, plan: Plan) -> bool:
        """Makes what is missing; whether the others' turn has come."""
        for number, pod in self._slots:
            if pod is None:
                plan.create.append((number, self._revision_for(number)))
            elif has_ended(pod) and not _is_terminating(pod):
                plan.delete.append(pod)
            elif self._is_available(pod):
                continue
            if self._is_ordered:
                return False
        return True

    def _shrink(self, plan: Plan) -> bool:
        """Takes away what is too many, from the highest number down; whether the update's turn has come."""
        unhealthy = next((pod for _, pod in self._slots if pod is None or not self._is_healthy(pod)), None)
        lowest = unhealthy or next((pod for pod in reversed(self._surplus) if not self._is_healthy(pod)), None)
        for pod in self._surplus:
            if not _is_terminating(pod):
                if self._is_ordered and not self._is_healthy(pod) and pod is not lowest:
                    return False
                plan.delete.append(pod)
            if self._is_ordered:
                return False
        return True

    def _roll(self, plan: Plan) -> None:
        """Replaces pods of earlier revisions, from the highest number down, a few at a time."""
        strategy = self._set["spec"].get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return
        rolling = strategy.get("rollingUpdate") or {}
        partition = rolling.get("partition", 0)
        most = max(1, scaled(rolling.get("maxUnavailable", 1), len(self._slots), round_up=False))
        present = [(number, pod) for number, pod in self._slots if pod is not None]
        away = sum(not self._is_available(pod) for _, pod in present)
        for number, pod in reversed(present):
            if number < partition or away >= most:
                return
            if revision_of(pod) != self._update and not _is_terminating(pod):
                plan.delete.append(pod)
                away += self._is_available(pod)

    def _revision_for(self, number: int) -> str:
        """Which revision a new pod gets (newVersionedStatefulSetPod)."""
        strategy = self._set["spec"].get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return self._update
        partition = (strategy.get("rollingUpdate") or {}).get("partition", 0)
        return self._current if number < partition else self._update

    def _is_healthy(self, pod: Object) -> bool:
        is_running = (pod.get("status") or {}).get("phase") == "Running"
        return is_running and is_pod_ready(pod) and not _is_terminating(pod)

    def _is_available(self, pod: Object) -> bool:
        return self._is_healthy(pod) and self._availability.is_available(pod)


def stateful_set_status(
    stateful_set: Object, pods: Sequence[Object], current: str, update: str, availability: Availability
) -> Object:
    """The status; arguments as for `plan_pods`."""
    there = [pod for pod in pods if ordinal_of(stateful_set, pod) >= 0]
    lasting = [pod for pod in there if not _is_terminating(pod)]
    running = [pod for pod in there if (pod.get("status") or {}).get("phase") == "Running" and is_pod_ready(pod)]
    updated = sum(revision_of(pod) == update for pod in lasting)
    wanted = stateful_set["spec"].get("replicas", 1)
    if updated == len(there) == len(running) == wanted:
        current = update
    counts = {
        "readyReplicas": len(running),
        "currentReplicas": sum(revision_of(pod) == current for pod in lasting),
        "updatedReplicas": updated,
    }
    return {
        "observedGeneration": stateful_set["metadata"].get("generation", 1),
        "replicas": len(there),
        **{name: count for name, count in counts.items() if count},
        "availableReplicas": sum(map(availability.is_available, running)),
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": 0,
    }


def revision_of(pod: Object) -> str:
    """The name of the revision that a pod was made of."""
    return str((pod["metadata"].get("labels") or {}).get(HASH_LABEL, ""))


def _is_terminating(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))
