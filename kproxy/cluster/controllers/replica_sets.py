"""ReplicaSets: as many pods of one template as asked for (Kubernetes: pkg/controller/replicaset)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kproxy.api.kinds import POD, REPLICA_SET
from kproxy.api.labels import matches
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.conditions import merged
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.endpoint_slices import is_pod_ready
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.owned_pods import Availability, OwnedPods, is_active, pod_from_template
from kproxy.cluster.events import Recorder
from kproxy.errors import ApiError


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


def replica_set_status(
    replica_set: Object, pods: Sequence[Object], failure: str, availability: Availability | None = None
) -> Object:
    """The status of a ReplicaSet.

    Args:
        replica_set: the ReplicaSet.
        pods: those that are active.
        failure: why pods could not be made or deleted, or empty.
        availability: told of every pod; None begins anew.
    """
    availability = availability or Availability(replica_set["spec"].get("minReadySeconds", 0))
    template_labels = (replica_set["spec"]["template"].get("metadata") or {}).get("labels") or {}
    counts = {
        "fullyLabeledReplicas": sum(matches(template_labels, pod["metadata"].get("labels") or {}) for pod in pods),
        "readyReplicas": sum(map(is_pod_ready, pods)),
        "availableReplicas": sum(map(availability.is_available, pods)),
    }
    status: Object = {"replicas": len(pods), "observedGeneration": replica_set["metadata"].get("generation", 1)}
    status |= {field: count for field, count in counts.items() if count}
    if failure:
        reason = "FailedCreate" if len(pods) < replica_set["spec"].get("replicas", 1) else "FailedDelete"
        failed = {"type": "ReplicaFailure", "status": "True", "reason": reason, "message": failure}
        status["conditions"] = merged(replica_set, failed)
    return status


class ReplicaSetController(Controller[Name]):
    """Makes and deletes pods until every ReplicaSet has as many as it asks for."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._replica_sets = informers.of(REPLICA_SET)
        self._pods = OwnedPods(client, informers, REPLICA_SET, recorder)
        self._replica_sets.add_handler(self._on_replica_set)
        informers.of(POD).add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Brings the ReplicaSet of that name to its number of pods, and its status to the truth."""
        replica_set = self._replica_sets.get(key)
        if replica_set is None:
            return
        failure: ApiError | None = None
        if not replica_set["metadata"].get("deletionTimestamp"):
            failure = self._scale(replica_set, [pod for pod in self._pods.claim(replica_set) if is_active(pod)])
        availability = Availability(replica_set["spec"].get("minReadySeconds", 0))
        active = [pod for pod in self._pods.owned(replica_set) if is_active(pod)]
        status = replica_set_status(replica_set, active, str(failure or ""), availability)
        if status != replica_set.get("status"):
            updated = self.client.update(REPLICA_SET, {**replica_set, "status": status}, "status")
            self._replica_sets.observe(updated)
        if availability.next_look is not None:
            self.queue.add_later(key, availability.next_look)
        if failure is not None:
            raise failure

    def _scale(self, replica_set: Object, pods: Sequence[Object]) -> ApiError | None:
        """Makes or deletes what is too few or too many; returns why that could not be done to its end."""
        wanted = replica_set["spec"].get("replicas", 1)
        try:
            for pod in pods_to_delete(pods, len(pods) - wanted) if len(pods) > wanted else ():
                self._pods.delete(replica_set, pod)
            for _ in range(wanted - len(pods)):
                self._pods.create(replica_set, pod_from_template(replica_set))
        except ApiError as error:
            return error
        return None

    def _on_replica_set(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        for pod in (before, after):
            if pod is not None:
                for name in self._pods.managers(pod, self._replica_sets):
                    self.queue.add(name)
