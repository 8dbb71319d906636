"""Which pods of a DaemonSet are made and deleted next, and what its status says.

Law: pure, from values to values. Rules: Kubernetes, pkg/controller/daemon (daemon_controller.go, update.go).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kproxy.api.types import Object
from kproxy.cluster.controllers.endpoint_slices import is_pod_ready
from kproxy.cluster.controllers.owned_pods import Availability, has_ended, pod_from_template
from kproxy.cluster.controllers.placement import UNSCHEDULABLE, fits_affinity, untolerated
from kproxy.cluster.controllers.revisions import HASH_LABEL
from kproxy.cluster.controllers.rollouts import scaled

_TOLERATIONS = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    (UNSCHEDULABLE, "NoSchedule"),
)
_NETWORK = ("node.kubernetes.io/network-unavailable", "NoSchedule")


@dataclass
class Plan:
    """What is to be done now; the end of it brings the next look.

    Attributes:
        create: nodes that get a pod.
        delete: pods to delete.
    """

    create: list[str] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def new_pod(daemon_set: Object, node: str, revision_hash: str) -> Object:
    """The pod for a node; the scheduler puts it there because its node affinity asks for that node alone."""
    pod = pod_from_template(daemon_set)
    spec = pod["spec"]
    spec["tolerations"] = list(_tolerations(spec))
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    only = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]
    # What the template asks of nodes was looked at when the node was chosen (ReplaceDaemonSetPodNodeNameNodeAffinity).
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": only}
    labels = {**pod["metadata"]["labels"], HASH_LABEL: revision_hash}
    labels["pod-template-generation"] = str(daemon_set["metadata"].get("generation", 1))
    pod["metadata"]["labels"] = labels
    return pod


def node_of(pod: Object) -> str:
    """The node that a DaemonSet's pod is on, or is meant for."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for wanted in term.get("matchFields") or ():
            return str(wanted["values"][0])
    return ""


def has_place(daemon_set: Object, node: Object) -> tuple[bool, bool]:
    """Whether the node is to have a pod, and whether one that is there may stay (nodeShouldRunDaemonPod)."""
    spec = copy.copy(daemon_set["spec"]["template"]["spec"])
    if spec.get("nodeName") and spec["nodeName"] != node["metadata"]["name"]:
        return False, False
    if not fits_affinity(spec, node):
        return False, False
    spec["tolerations"] = list(_tolerations(spec))
    if any(untolerated(spec, node, ("NoExecute",))):
        return False, False
    return not any(untolerated(spec, node, ("NoSchedule",))), True


def _tolerations(spec: Object) -> Iterator[Object]:
    yield from spec.get("tolerations") or ()
    for key, effect in (*_TOLERATIONS, *([_NETWORK] if spec.get("hostNetwork") else ())):
        yield {"key": key, "operator": "Exists", "effect": effect}


def plan_pods(
    daemon_set: Object, nodes: Iterable[Object], pods: Sequence[Object], update: str, availability: Availability
) -> Plan:
    """What is to be done next.

    Args:
        daemon_set: defaulted.
        nodes: all of them.
        pods: all that it manages, also those that are being deleted.
        update: hash of the revision of its template.
        availability: which pods count as available.
    """
    plan = Plan()
    if daemon_set["metadata"].get("deletionTimestamp"):
        return plan
    by_node = _by_node(pods)
    updates: dict[str, list[Object]] = {}
    for node in nodes:
        name = node["metadata"]["name"]
        here = by_node.pop(name, [])
        is_wanted, may_stay = has_place(daemon_set, node)
        _place(plan, name, here, is_wanted=is_wanted, may_stay=may_stay)
        if is_wanted:
            updates[name] = [pod for pod in here if not _is_terminating(pod) and not has_ended(pod)]
    plan.delete += [pod for left in by_node.values() for pod in left if not _is_terminating(pod)]
    strategy = daemon_set["spec"].get("updateStrategy") or {}
    if strategy.get("type", "RollingUpdate") == "RollingUpdate":
        _roll(plan, updates, update, strategy.get("rollingUpdate") or {}, availability)
    return plan


def _place(plan: Plan, node: str, here: Sequence[Object], *, is_wanted: bool, may_stay: bool) -> None:
    """One pod for a node that is to have one, none for one that is not (podsShouldBeOnNode)."""
    lasting = [pod for pod in here if not _is_terminating(pod)]
    plan.delete += [pod for pod in lasting if has_ended(pod)]
    running = [pod for pod in lasting if not has_ended(pod)]
    if not may_stay:
        plan.delete += running
    elif is_wanted and not here:
        plan.create.append(node)


def _roll(
    plan: Plan, by_node: Mapping[str, list[Object]], update: str, rolling: Object, availability: Availability
) -> None:
    """Replaces pods of earlier revisions, a few at a time; with maxSurge the new one comes first."""
    wanted = len(by_node)
    surge = scaled(rolling.get("maxSurge", 0), wanted, round_up=True)
    unavailable = scaled(rolling.get("maxUnavailable", 1), wanted, round_up=True)
    if not surge and not unavailable:
        unavailable = 1
    if surge:
        _roll_with_surge(plan, by_node, update, surge, availability)
        return
    away = 0
    waiting: list[Object] = []
    for pods in by_node.values():
        old = [pod for pod in pods if hash_of(pod) != update]
        if not any(map(availability.is_available, pods)):
            away += 1
            plan.delete += [pod for pod in old if pod not in plan.delete]  # it is of no use to anybody
        else:
            waiting += old
    plan.delete += waiting[: max(0, unavailable - away)]


def _roll_with_surge(
    plan: Plan, by_node: Mapping[str, list[Object]], update: str, surge: int, availability: Availability
) -> None:
    surging = 0
    waiting: list[str] = []
    for node, pods in by_node.items():
        old = [pod for pod in pods if hash_of(pod) != update]
        new = [pod for pod in pods if hash_of(pod) == update]
        if old and new:
            if any(map(availability.is_available, new)):
                plan.delete += old
            else:
                surging += 1
        elif old and not any(map(availability.is_available, old)):
            plan.delete += old
        elif old:
            waiting.append(node)
    plan.create += waiting[: max(0, surge - surging)]


def daemon_set_status(
    daemon_set: Object, nodes: Iterable[Object], pods: Sequence[Object], update: str, availability: Availability
) -> Object:
    """The status; arguments as for `plan_pods` (updateDaemonSetStatus)."""
    by_node = _by_node(pods)
    counts = dict.fromkeys(
        ("desiredNumberScheduled", "currentNumberScheduled", "numberMisscheduled", "numberReady"), 0
    ) | {"updatedNumberScheduled": 0, "numberAvailable": 0}
    for node in nodes:
        here = [pod for pod in by_node.get(node["metadata"]["name"], []) if not has_ended(pod)]
        if not has_place(daemon_set, node)[0]:
            counts["numberMisscheduled"] += bool(here)
            continue
        counts["desiredNumberScheduled"] += 1
        counts["currentNumberScheduled"] += bool(here)
        ready = [pod for pod in here if is_pod_ready(pod)]
        counts["numberReady"] += bool(ready)
        counts["numberAvailable"] += any(map(availability.is_available, ready))
        counts["updatedNumberScheduled"] += any(hash_of(pod) == update for pod in here)
    missing = counts["desiredNumberScheduled"] - counts["numberAvailable"]
    kept = ("desiredNumberScheduled", "currentNumberScheduled", "numberMisscheduled", "numberReady")
    status = {name: count for name, count in counts.items() if count or name in kept}
    status["observedGeneration"] = daemon_set["metadata"].get("generation", 1)
    return status | ({"numberUnavailable": missing} if missing else {})


def hash_of(pod: Object) -> str:
    """The hash of the revision that a pod was made of."""
    return str((pod["metadata"].get("labels") or {}).get(HASH_LABEL, ""))


def _by_node(pods: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for pod in pods:
        found.setdefault(node_of(pod), []).append(pod)
    return found


def _is_terminating(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))
