"""Deployments: one ReplicaSet per template, and the way from one template to the next.

Law: ``rollouts`` and ``deployment_status`` decide; this carries out. Rules: Kubernetes, pkg/controller/deployment.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from kproxy.api.kinds import DEPLOYMENT, POD, REPLICA_SET
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.deployment_status import deployment_status, is_complete, seconds_until_late
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.owned_pods import OwnedPods, has_ended, is_selected, managers_of
from kproxy.cluster.controllers.ownership import controller_change, controller_of, controller_reference
from kproxy.cluster.controllers.rollouts import (
    DESIRED,
    MOST,
    Rollout,
    counted,
    is_scaled,
    limits,
    plan_rollout,
    plan_scaling,
    replicas_of,
)
from kproxy.cluster.events import Recorder
from kproxy.cluster.identity import NAME_ALPHABET
from kproxy.errors import AlreadyExists

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
"""On a ReplicaSet that was returned to: the revisions that it had before."""
_BY_CONTROLLER = "by-controller"
_ORPHANS = "orphans"
"""The index of ReplicaSets that nobody manages by their namespace."""
_HASH_LENGTH = 10
_OWN_ANNOTATIONS = (
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
)
"""Annotations of a Deployment that its ReplicaSets do not get (deployment_util.go, annotationsToSkip)."""


def template_hash(template: Object) -> str:
    """A short name for a template, in Kubernetes' letters (by another hash: Kubernetes' is of a Go struct)."""
    digest = hashlib.sha256(msgspec.json.encode(template, order="sorted")).digest()
    return "".join(NAME_ALPHABET[byte % len(NAME_ALPHABET)] for byte in digest[:_HASH_LENGTH])


def is_template_of(replica_set: Object, deployment: Object) -> bool:
    """Whether a ReplicaSet was made from the Deployment's current template."""
    return without_hash(replica_set["spec"]["template"]) == without_hash(deployment["spec"]["template"])


def without_hash(template: Object) -> Object:
    """The template without the label that a ReplicaSet's has; `kubectl rollout undo` may leave it in a Deployment's."""
    own = copy.deepcopy(template)
    metadata = own.get("metadata") or {}
    (metadata.get("labels") or {}).pop(HASH_LABEL, None)
    return own


class DeploymentController(Controller[Name]):
    """Makes a ReplicaSet for every template and moves the pods over."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._deployments, self._replica_sets = informers.of(DEPLOYMENT), informers.of(REPLICA_SET)
        self._pods = OwnedPods(client, informers, REPLICA_SET, recorder)
        self._recorder = recorder
        self._replica_sets.add_index(_BY_CONTROLLER, _controllers_uid)
        self._replica_sets.add_index(_ORPHANS, _namespace_of_orphan)
        self._deployments.add_handler(self._on_deployment)
        self._replica_sets.add_handler(self._on_replica_set)
        informers.of(POD).add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Takes the next step of the Deployment of that name."""
        deployment = self._deployments.get(key)
        if deployment is None:
            return
        if not deployment["metadata"].get("deletionTimestamp"):
            if not self._adopt(deployment):
                return
            deployment = self._roll(deployment)
        new, old = self._split(deployment)
        now = datetime.now(UTC)
        status = deployment_status(deployment, new, old, now)
        if status != deployment.get("status"):
            deployment = self.client.update(DEPLOYMENT, {**deployment, "status": status}, "status")
            self._deployments.observe(deployment)
        late = seconds_until_late(deployment, now)
        if late is not None:
            self.queue.add_later(key, max(late, 1.0))
        if is_complete(deployment, status):
            self._forget_history(deployment, old)

    def _adopt(self, deployment: Object) -> bool:
        """Takes in the ReplicaSets that nobody manages and the selector fits (controller_ref_manager.go).

        Returns False when the Deployment is no longer what was seen: then what it would have taken in may be what it
        has just let go, and the watch will tell.
        """
        namespace, name = name_of(deployment)
        orphans = [
            item
            for item in self._replica_sets.indexed(_ORPHANS, namespace)
            if not item["metadata"].get("deletionTimestamp") and is_selected(deployment, item)
        ]
        if not orphans:
            return True
        now = self.client.get(DEPLOYMENT, name, namespace)["metadata"]
        if now["uid"] != deployment["metadata"]["uid"] or now.get("deletionTimestamp"):
            return False
        for item in orphans:
            change = controller_change(item, deployment)
            self._replica_sets.observe(self.client.patch(REPLICA_SET, item["metadata"]["name"], change, namespace))
        return True

    def _roll(self, deployment: Object) -> Object:
        """One step; returns the Deployment as it is afterwards."""
        new, old = self._split(deployment)
        is_paused = bool(deployment["spec"].get("paused"))
        if new is not None or not is_paused:
            revision = self._revision_now(new, old)
            deployment = self._with_revision(deployment, revision)
            if new is not None:
                new = self._kept_up(deployment, new, revision)
        if is_paused or is_scaled(deployment, [*([new] if new else []), *old]):
            rollout = plan_scaling(deployment, new, old)
        else:
            rollout = plan_rollout(deployment, new, old, old_pods_left=self._pods_of(old))
        if new is None and not is_paused:
            self._make(deployment, rollout.new, old)
        self._scale_all(deployment, rollout, new, old)
        return deployment

    def _scale_all(self, deployment: Object, rollout: Rollout, new: Object | None, old: Sequence[Object]) -> None:
        sizes = {**rollout.old} | ({} if new is None else {new["metadata"]["name"]: rollout.new})
        for item in [*([new] if new else []), *old]:
            size = sizes[item["metadata"]["name"]]
            if replicas_of(item) != size or (size and is_scaled(deployment, [item])):
                self._scale(deployment, item, size)

    def _revision_now(self, new: Object | None, old: Sequence[Object]) -> int:
        """The number of the current template: one above all others."""
        others = max((_revision(item) for item in old), default=0)
        return max(others + 1, 0 if new is None else _revision(new))

    def _with_revision(self, deployment: Object, revision: int) -> Object:
        """The Deployment with the revision that it is at now as an annotation."""
        if _revision(deployment) == revision:
            return deployment
        metadata = deployment["metadata"]
        annotations = {REVISION: str(revision)}
        change = {"metadata": {"annotations": annotations, "resourceVersion": metadata["resourceVersion"]}}
        updated = self.client.patch(DEPLOYMENT, metadata["name"], change, metadata["namespace"])
        self._deployments.observe(updated)
        return updated

    def _kept_up(self, deployment: Object, new: Object, revision: int) -> Object:
        """The current ReplicaSet with what it takes over from its Deployment beside its size."""
        annotations = {**(new["metadata"].get("annotations") or {}), **_taken_over(deployment)}
        before = _revision(new)
        if before != revision:
            annotations[REVISION] = str(revision)
            history = annotations.get(REVISION_HISTORY, "")
            annotations[REVISION_HISTORY] = f"{history},{before}" if history else str(before)
        pause = deployment["spec"].get("minReadySeconds", 0)
        if annotations == new["metadata"].get("annotations") and new["spec"].get("minReadySeconds", 0) == pause:
            return new
        changed = {**new, "metadata": {**new["metadata"], "annotations": annotations}}
        changed["spec"] = {**new["spec"], "minReadySeconds": pause}
        updated = self.client.update(REPLICA_SET, changed)
        self._replica_sets.observe(updated)
        return updated

    def _make(self, deployment: Object, replicas: int, old: Sequence[Object]) -> None:
        made = new_replica_set(deployment, replicas, self._revision_now(None, old))
        try:
            self._replica_sets.observe(self.client.create(REPLICA_SET, made))
        except AlreadyExists:
            namespace, name = name_of(made)
            present = self.client.get(REPLICA_SET, name, namespace)
            self._replica_sets.observe(present)
            owner = controller_of(present)
            if owner is None or owner["uid"] != deployment["metadata"]["uid"]:
                raise
            return  # made by us before a restart, and not seen yet
        if replicas:
            self._tell_scaled(deployment, made, 0, replicas)

    def _scale(self, deployment: Object, replica_set: Object, replicas: int) -> None:
        before = replicas_of(replica_set)
        annotations = {**(replica_set["metadata"].get("annotations") or {}), **_sizes(deployment)}
        scaled = {**replica_set, "metadata": {**replica_set["metadata"], "annotations": annotations}}
        scaled["spec"] = {**replica_set["spec"], "replicas": replicas}
        self._replica_sets.observe(self.client.update(REPLICA_SET, scaled))
        if before != replicas:
            self._tell_scaled(deployment, replica_set, before, replicas)

    def _tell_scaled(self, deployment: Object, replica_set: Object, before: int, after: int) -> None:
        way = "up" if after > before else "down"
        message = f"Scaled {way} replica set {replica_set['metadata']['name']} from {before} to {after}"
        self._recorder.normal(deployment, "ScalingReplicaSet", message)

    def _split(self, deployment: Object) -> tuple[Object | None, list[Object]]:
        """The ReplicaSet of the current template, and the others, oldest first."""
        own = [
            item
            for item in self._replica_sets.indexed(_BY_CONTROLLER, deployment["metadata"]["uid"])
            if is_selected(deployment, item)
        ]
        own.sort(key=_revision)
        new = next((item for item in own if is_template_of(item, deployment)), None)
        return new, [item for item in own if item is not new]

    def _pods_of(self, replica_sets: Sequence[Object]) -> int:
        return sum(not has_ended(pod) for item in replica_sets for pod in self._pods.owned(item))

    def _forget_history(self, deployment: Object, old: Sequence[Object]) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        idle = [item for item in old if not replicas_of(item) and not counted(item, "replicas")]
        for item in idle[: max(0, len(idle) - limit)]:
            namespace, name = name_of(item)
            self.client.delete(REPLICA_SET, name, namespace, uid=item["metadata"]["uid"])
            self._replica_sets.forget(item)

    def _on_deployment(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_replica_set(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        for name in () if obj is None else managers_of(obj, DEPLOYMENT, self._deployments):
            self.queue.add(name)

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        """The end of an old pod is what Recreate waits for."""
        is_end = before is not None and (after is None or (has_ended(after) and not has_ended(before)))
        owner = controller_of(before) if before is not None and is_end else None
        if before is None or owner is None or owner["kind"] != REPLICA_SET.name:
            return
        replica_set = self._replica_sets.get((before["metadata"]["namespace"], owner["name"]))
        if replica_set is not None:
            self._on_replica_set(None, replica_set)


def new_replica_set(deployment: Object, replicas: int, revision: int) -> Object:
    """The ReplicaSet for the Deployment's current template."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    template = without_hash(spec["template"])
    name_hash = template_hash(template)
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = name_hash
    selector = copy.deepcopy(spec["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = name_hash
    return {
        "apiVersion": REPLICA_SET.api_version,
        "kind": REPLICA_SET.name,
        "metadata": {
            "name": f"{metadata['name']}-{name_hash}",
            "namespace": metadata["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "annotations": {**_taken_over(deployment), **_sizes(deployment), REVISION: str(revision)},
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": spec.get("minReadySeconds", 0),
            "selector": selector,
            "template": template,
        },
    }


def _taken_over(deployment: Object) -> dict[str, str]:
    own = deployment["metadata"].get("annotations") or {}
    return {key: value for key, value in own.items() if key not in _OWN_ANNOTATIONS}


def _sizes(deployment: Object) -> dict[str, str]:
    wanted = deployment["spec"].get("replicas", 1)
    return {DESIRED: str(wanted), MOST: str(wanted + limits(deployment)[0])}


def _revision(obj: Object) -> int:
    text = (obj["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdecimal() else 0


def _controllers_uid(obj: Object) -> Iterable[str]:
    owner = controller_of(obj)
    return () if owner is None else (owner["uid"],)


def _namespace_of_orphan(obj: Object) -> Iterable[str]:
    return (obj["metadata"]["namespace"],) if controller_of(obj) is None else ()
