"""Deployments: one ReplicaSet per template, and the way from one template to the next.

Law: ``plan_rollout`` decides, from values to values. Rules: Kubernetes, pkg/controller/deployment (rolling.go,
recreate.go, sync.go).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kproxy.api.kinds import DEPLOYMENT, POD, REPLICA_SET
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.ownership import controller_of, controller_reference
from kproxy.cluster.controllers.replica_sets import is_selected
from kproxy.cluster.identity import NAME_ALPHABET, now
from kproxy.errors import AlreadyExists

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
_HASH_LENGTH = 10
_COPIED_ANNOTATIONS_EXCEPT = ("kubectl.kubernetes.io/last-applied-configuration", REVISION)


@dataclass(frozen=True)
class Rollout:
    """How many pods each ReplicaSet shall have next, by name; ``new`` is for the one of the current template."""

    new: int
    old: Mapping[str, int]


def template_hash(template: Object) -> str:
    """A short name for a template, in Kubernetes' letters (by another hash: Kubernetes' is of a Go struct)."""
    digest = hashlib.sha256(msgspec.json.encode(template, order="sorted")).digest()
    return "".join(NAME_ALPHABET[byte % len(NAME_ALPHABET)] for byte in digest[:_HASH_LENGTH])


def is_template_of(replica_set: Object, deployment: Object) -> bool:
    """Whether a ReplicaSet was made from the Deployment's current template."""
    own = copy.deepcopy(replica_set["spec"]["template"])
    (own.get("metadata", {}).get("labels") or {}).pop(HASH_LABEL, None)
    return bool(own == deployment["spec"]["template"])


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
    strategy = spec.get("strategy") or {}
    has_new = 0 if new is None else _replicas(new)
    if strategy.get("type") == "Recreate":
        is_clear = not old_pods_left and not any(map(_replicas, old))
        return Rollout(wanted if is_clear else min(has_new, wanted), {item["metadata"]["name"]: 0 for item in old})
    surge, unavailable = _limits(strategy.get("rollingUpdate") or {}, wanted)
    total = has_new + sum(map(_replicas, old))
    next_new = min(has_new, wanted) + max(0, min(wanted + surge - total, wanted - has_new))
    return Rollout(next_new, _scaled_down(new, old, total=total, min_available=wanted - unavailable))


def deployment_status(deployment: Object, new: Object | None, old: Sequence[Object]) -> Object:
    """The status of a Deployment with these ReplicaSets."""
    every = [*([new] if new else []), *old]
    wanted = deployment["spec"].get("replicas", 1)
    available = sum(_counted(item, "availableReplicas") for item in every)
    total = sum(_counted(item, "replicas") for item in every)
    updated = 0 if new is None else _counted(new, "replicas")
    counts = {
        "replicas": total,
        "updatedReplicas": updated,
        "readyReplicas": sum(_counted(item, "readyReplicas") for item in every),
        "availableReplicas": available,
        "unavailableReplicas": max(0, max(total, wanted) - available),
    }
    status: Object = {"observedGeneration": deployment["metadata"].get("generation", 1)}
    status |= {field: count for field, count in counts.items() if count}
    _, unavailable = _limits((deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}, wanted)
    is_available = available >= wanted - unavailable
    is_complete = updated == wanted == available and total == wanted
    status["conditions"] = _conditions(deployment, is_available=is_available, is_complete=is_complete)
    return status


class DeploymentController(Controller[Name]):
    """Makes a ReplicaSet for every template and moves the pods over."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._deployments, self._replica_sets = informers.of(DEPLOYMENT), informers.of(REPLICA_SET)
        self._pods = informers.of(POD)
        self._deployments.add_handler(self._on_deployment)
        self._replica_sets.add_handler(self._on_replica_set)
        self._pods.add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Takes the next step of the Deployment of that name."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return
        if not deployment["metadata"].get("deletionTimestamp"):
            self._roll(deployment)
        new, old = self._split(deployment)
        status = deployment_status(deployment, new, old)
        if status != deployment.get("status"):
            updated = self.client.update(DEPLOYMENT, {**deployment, "status": status}, "status")
            self._deployments.observe(updated)

    def _roll(self, deployment: Object) -> None:
        new, old = self._split(deployment)
        rollout = plan_rollout(deployment, new, old, old_pods_left=self._pods_of(old))
        if new is None:
            self._make(deployment, rollout.new, old)
        elif _replicas(new) != rollout.new:
            self._scale(new, rollout.new)
        for item in old:
            replicas = rollout.old[item["metadata"]["name"]]
            if _replicas(item) != replicas:
                self._scale(item, replicas)
        self._forget_history(deployment, old)

    def _make(self, deployment: Object, replicas: int, old: Sequence[Object]) -> None:
        revision = 1 + max((_revision(item) for item in old), default=0)
        made = new_replica_set(deployment, replicas, revision)
        try:
            self._replica_sets.observe(self.client.create(REPLICA_SET, made))
        except AlreadyExists:  # made by us before a restart, and not seen yet
            namespace, name = name_of(made)
            self._replica_sets.observe(self.client.get(REPLICA_SET, name, namespace))

    def _scale(self, replica_set: Object, replicas: int) -> None:
        scaled = {**replica_set, "spec": {**replica_set["spec"], "replicas": replicas}}
        self._replica_sets.observe(self.client.update(REPLICA_SET, scaled))

    def _split(self, deployment: Object) -> tuple[Object | None, list[Object]]:
        """The ReplicaSet of the current template, and the others, oldest first."""
        own = []
        for item in self._replica_sets.all_of(deployment["metadata"]["namespace"]):
            owner = controller_of(item)
            if owner is not None and owner["uid"] == deployment["metadata"]["uid"] and is_selected(deployment, item):
                own.append(item)
        own.sort(key=_revision)
        new = next((item for item in own if is_template_of(item, deployment)), None)
        return new, [item for item in own if item is not new]

    def _pods_of(self, replica_sets: Sequence[Object]) -> int:
        uids = {item["metadata"]["uid"] for item in replica_sets}
        if not uids:
            return 0
        pods = self._pods.all_of(replica_sets[0]["metadata"]["namespace"])
        return sum((controller_of(pod) or {}).get("uid") in uids for pod in pods)

    def _forget_history(self, deployment: Object, old: Sequence[Object]) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        idle = [item for item in old if not _replicas(item) and not _counted(item, "replicas")]
        for item in idle[: max(0, len(idle) - limit)]:
            namespace, name = name_of(item)
            self.client.delete(REPLICA_SET, name, namespace, uid=item["metadata"]["uid"])
            self._replica_sets.forget(item)

    def _on_deployment(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_replica_set(self, before: Object | None, after: Object | None) -> None:
        owner = controller_of(after or before or {"metadata": {}})
        obj = after or before
        if obj is not None and owner is not None and owner["kind"] == DEPLOYMENT.name:
            self.queue.add((obj["metadata"]["namespace"], owner["name"]))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        """The end of an old pod is what Recreate waits for."""
        owner = None if before is None or after is not None else controller_of(before)
        if before is None or owner is None or owner["kind"] != REPLICA_SET.name:
            return
        replica_set = self._replica_sets.get((before["metadata"]["namespace"], owner["name"]))
        if replica_set is not None:
            self._on_replica_set(None, replica_set)


def new_replica_set(deployment: Object, replicas: int, revision: int) -> Object:
    """The ReplicaSet for the Deployment's current template."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    template = copy.deepcopy(spec["template"])
    name_hash = template_hash(spec["template"])
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = name_hash
    selector = copy.deepcopy(spec["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = name_hash
    own = metadata.get("annotations") or {}
    annotations = {key: value for key, value in own.items() if key not in _COPIED_ANNOTATIONS_EXCEPT}
    return {
        "apiVersion": REPLICA_SET.api_version,
        "kind": REPLICA_SET.name,
        "metadata": {
            "name": f"{metadata['name']}-{name_hash}",
            "namespace": metadata["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "annotations": {**annotations, REVISION: str(revision)},
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    }


def _replicas(replica_set: Object) -> int:
    return int(replica_set["spec"].get("replicas", 1))


def _counted(replica_set: Object, field: str) -> int:
    return int((replica_set.get("status") or {}).get(field, 0))


def _revision(replica_set: Object) -> int:
    text = (replica_set["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def _limits(rolling: Mapping[str, object], wanted: int) -> tuple[int, int]:
    """How many pods there may be too many (rounded up) and too few (rounded down); never 0 for both."""
    surge = _of(rolling.get("maxSurge", "25%"), wanted, round_up=True)
    unavailable = _of(rolling.get("maxUnavailable", "25%"), wanted, round_up=False)
    if not surge and not unavailable:
        unavailable = 1
    return surge, min(unavailable, wanted)


def _of(value: object, total: int, *, round_up: bool) -> int:
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    product = total * int(text[:-1])
    return -(-product // 100) if round_up else product // 100


def _scaled_down(new: Object | None, old: Sequence[Object], *, total: int, min_available: int) -> dict[str, int]:
    """Old ReplicaSets' next sizes: first what is not available anyway, then as much as the new one makes up for."""
    sizes = {item["metadata"]["name"]: _replicas(item) for item in old}
    unavailable_new = 0 if new is None else max(0, _replicas(new) - _counted(new, "availableReplicas"))
    room = total - min_available - unavailable_new
    for item in old:
        unhealthy = max(0, sizes[item["metadata"]["name"]] - _counted(item, "availableReplicas"))
        step = max(0, min(room, unhealthy))
        sizes[item["metadata"]["name"]] -= step
        room -= step
    available = sum(_counted(item, "availableReplicas") for item in [*([new] if new else []), *old])
    spare = min(room, available - min_available)
    for item in old:
        step = max(0, min(spare, sizes[item["metadata"]["name"]]))
        sizes[item["metadata"]["name"]] -= step
        spare -= step
    return sizes


def _conditions(deployment: Object, *, is_available: bool, is_complete: bool) -> list[Object]:
    available = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    unavailable = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    complete = ("NewReplicaSetAvailable", "The ReplicaSet of the current template has all its pods available.")
    going = ("ReplicaSetUpdated", "The ReplicaSet of the current template is progressing.")
    before = {item["type"]: item for item in (deployment.get("status") or {}).get("conditions") or ()}
    return [
        _condition(before, "Available", is_true=is_available, because=available if is_available else unavailable),
        _condition(before, "Progressing", is_true=True, because=complete if is_complete else going),
    ]


def _condition(before: Mapping[str, Object], name: str, *, is_true: bool, because: tuple[str, str]) -> Object:
    reason, message = because
    made: Object = {"type": name, "status": "True" if is_true else "False", "reason": reason, "message": message}
    old = before.get(name, {})
    if all(old.get(field) == value for field, value in made.items()):
        return old
    moment = now()
    unchanged = old.get("status") == made["status"]
    made["lastTransitionTime"] = old.get("lastTransitionTime", moment) if unchanged else moment
    made["lastUpdateTime"] = moment
    return made
