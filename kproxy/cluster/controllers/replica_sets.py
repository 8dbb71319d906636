"""ReplicaSets: as many pods of one template as asked for (Kubernetes: pkg/controller/replicaset)."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from kproxy.api.kinds import POD, REPLICA_SET
from kproxy.api.labels import matches
from kproxy.api.types import LabelSelector, Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.endpoint_slices import is_pod_ready
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.ownership import controller_of, controller_reference
from kproxy.errors import Invalid, NotFound


def is_selected(workload: Object, obj: Object) -> bool:
    """Whether a workload's selector fits an object's labels."""
    selector = msgspec.convert(workload["spec"]["selector"], LabelSelector)
    return matches(selector, obj["metadata"].get("labels") or {})


def is_active(pod: Object) -> bool:
    """Whether a pod counts: it has not ended and is not being deleted."""
    has_ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return not has_ended and not pod["metadata"].get("deletionTimestamp")


def pod_from_template(owner: Object) -> Object:
    """A new pod of a workload's template."""
    template = copy.deepcopy(owner["spec"]["template"])
    metadata = template.get("metadata") or {}
    return {
        "apiVersion": POD.api_version,
        "kind": POD.name,
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "namespace": owner["metadata"]["namespace"],
            "labels": metadata.get("labels") or {},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": template["spec"],
    }


def pods_to_delete(pods: Sequence[Object], count: int) -> list[Object]:
    """Which pods go first (Kubernetes: controller_utils.go, ActivePodsWithRanks).

    Those without a node, not running, not ready, on nodes with more of them, and younger ones, in this order of weight.
    """
    per_node = Counter(pod["spec"].get("nodeName", "") for pod in pods)
    phases = {"Pending": 0, "Unknown": 1, "Running": 2}

    def staying_power(pod: Object) -> tuple[bool, int, bool, int]:
        status = pod.get("status") or {}
        node = pod["spec"].get("nodeName", "")
        return bool(node), phases.get(status.get("phase", ""), 0), is_pod_ready(pod), -per_node[node]

    youngest_first = sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
    return sorted(youngest_first, key=staying_power)[:count]


def replica_set_status(replica_set: Object, pods: Sequence[Object], failure: str) -> Object:
    """The status of a ReplicaSet with these active pods; ``failure`` is why pods could not be made, or empty."""
    template_labels = (replica_set["spec"]["template"].get("metadata") or {}).get("labels") or {}
    ready = sum(map(is_pod_ready, pods))
    counts = {
        "fullyLabeledReplicas": sum(matches(template_labels, pod["metadata"].get("labels") or {}) for pod in pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
    status: Object = {"replicas": len(pods), "observedGeneration": replica_set["metadata"].get("generation", 1)}
    status |= {field: count for field, count in counts.items() if count}
    if failure:
        condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}
        status["conditions"] = [condition]
    return status


class ReplicaSetController(Controller[Name]):
    """Makes and deletes pods until every ReplicaSet has as many as it asks for."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._replica_sets, self._pods = informers.of(REPLICA_SET), informers.of(POD)
        self._replica_sets.add_handler(self._on_replica_set)
        self._pods.add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Brings the ReplicaSet of that name to its number of pods, and its status to the truth."""
        replica_set = self._replica_sets.get(key)
        if replica_set is None:
            return
        failure = ""
        if not replica_set["metadata"].get("deletionTimestamp"):
            pods = [pod for pod in self._claimed(replica_set) if is_active(pod)]
            failure = self._scale(replica_set, pods)
        active = [pod for pod in self._owned(replica_set) if is_active(pod)]
        status = replica_set_status(replica_set, active, failure)
        if status != replica_set.get("status"):
            updated = self.client.update(REPLICA_SET, {**replica_set, "status": status}, "status")
            self._replica_sets.observe(updated)
        if failure:
            self.queue.retry(key)

    def _scale(self, replica_set: Object, pods: Sequence[Object]) -> str:
        wanted = replica_set["spec"].get("replicas", 1)
        for pod in pods_to_delete(pods, len(pods) - wanted) if len(pods) > wanted else ():
            self._delete(pod)
        try:
            for _ in range(wanted - len(pods)):
                self._pods.observe(self.client.create(POD, pod_from_template(replica_set)))
        except Invalid as error:
            return str(error)
        return ""

    def _delete(self, pod: Object) -> None:
        namespace, name = name_of(pod)
        with contextlib.suppress(NotFound):
            deleted = self.client.delete(POD, name, namespace, uid=pod["metadata"]["uid"])
            if deleted["metadata"].get("deletionTimestamp"):
                self._pods.observe(deleted)
                return
        self._pods.forget(pod)

    def _owned(self, replica_set: Object) -> Iterable[Object]:
        for pod in self._pods.all_of(replica_set["metadata"]["namespace"]):
            owner = controller_of(pod)
            if owner is not None and owner["uid"] == replica_set["metadata"]["uid"]:
                yield pod

    def _claimed(self, replica_set: Object) -> list[Object]:
        """The ReplicaSet's pods, after letting go those whose labels no longer fit and taking in orphans that do."""
        for pod in self._pods.all_of(replica_set["metadata"]["namespace"]):
            owner = controller_of(pod)
            is_own = owner is not None and owner["uid"] == replica_set["metadata"]["uid"]
            fits = is_selected(replica_set, pod)
            if is_own and not fits:
                self._set_owner(pod, None)
            elif owner is None and fits and is_active(pod):
                self._set_owner(pod, controller_reference(replica_set))
        return list(self._owned(replica_set))

    def _set_owner(self, pod: Object, owner: Object | None) -> None:
        metadata = pod["metadata"]
        others = [entry for entry in metadata.get("ownerReferences") or () if not entry.get("controller")]
        patch = {
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "ownerReferences": [*others, *([owner] if owner else [])] or None,
        }
        self._pods.observe(self.client.patch(POD, metadata["name"], {"metadata": patch}, metadata["namespace"]))

    def _on_replica_set(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        for pod in (before, after):
            if pod is None:
                continue
            namespace = pod["metadata"]["namespace"]
            owner = controller_of(pod)
            if owner is not None and owner["kind"] == REPLICA_SET.name:
                self.queue.add((namespace, owner["name"]))
            elif owner is None and pod is after:
                for replica_set in self._replica_sets.all_of(namespace):
                    if is_selected(replica_set, pod):
                        self.queue.add(name_of(replica_set))
