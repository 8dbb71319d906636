"""StatefulSets: pods with numbers and names of their own, made, updated and taken away in order.

Law: ``stateful_plans`` decides; this carries out. Rules: Kubernetes, pkg/controller/statefulset.
"""

from __future__ import annotations

from collections.abc import Sequence

from kproxy.api.kinds import POD, STATEFUL_SET
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.owned_pods import Availability, OwnedPods, pod_from_template
from kproxy.cluster.controllers.revisions import HASH_LABEL, Revision, Revisions
from kproxy.cluster.controllers.stateful_plans import (
    POD_INDEX_LABEL,
    POD_NAME_LABEL,
    plan_pods,
    revision_of,
    stateful_set_status,
)
from kproxy.cluster.events import Recorder
from kproxy.errors import AlreadyExists


def new_pod(stateful_set: Object, number: int, revision: Revision) -> Object:
    """The pod of that number: its name, hostname and labels say which it is (stateful_set_utils.go, initIdentity)."""
    name = f"{stateful_set['metadata']['name']}-{number}"
    templated = {**stateful_set, "spec": {**stateful_set["spec"], "template": revision.template}}
    pod = pod_from_template(templated, name=name)
    labels = {**pod["metadata"]["labels"], POD_NAME_LABEL: name, POD_INDEX_LABEL: str(number)}
    pod["metadata"]["labels"] = {**labels, HASH_LABEL: revision.name}
    pod["spec"]["hostname"] = name
    if stateful_set["spec"].get("serviceName"):
        pod["spec"]["subdomain"] = stateful_set["spec"]["serviceName"]
    return pod


class StatefulSetController(Controller[Name]):
    """Keeps the pods of every StatefulSet."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._sets = informers.of(STATEFUL_SET)
        self._pods = OwnedPods(client, informers, STATEFUL_SET, recorder)
        self._revisions = Revisions(client, informers)
        self._recorder = recorder
        self._sets.add_handler(self._on_set)
        informers.of(POD).add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Takes the next steps of the StatefulSet of that name."""
        stateful_set = self._sets.get(key)
        if stateful_set is None:
            return
        update = self._revisions.current(stateful_set)
        named = (stateful_set.get("status") or {}).get("currentRevision", "")
        current = self._revisions.named(stateful_set, named) or update
        availability = Availability(stateful_set["spec"].get("minReadySeconds", 0))
        if not stateful_set["metadata"].get("deletionTimestamp"):
            pods = self._pods.claim(stateful_set)
            plan = plan_pods(stateful_set, pods, current.name, update.name, availability)
            revisions = {revision.name: revision for revision in (update, current)}
            for pod in plan.delete:
                self._pods.delete(stateful_set, pod)
            for number, revision in plan.create:
                self._create(stateful_set, new_pod(stateful_set, number, revisions[revision]))
        pods = self._pods.owned(stateful_set)
        self._tell(stateful_set, pods, (current.name, update.name), availability)
        if availability.next_look is not None:
            self.queue.add_later(key, availability.next_look)

    def _create(self, stateful_set: Object, pod: Object) -> None:
        try:
            self._pods.create(stateful_set, pod)
        except AlreadyExists:
            message = f"create Pod {pod['metadata']['name']} in StatefulSet {stateful_set['metadata']['name']} failed"
            self._recorder.warning(stateful_set, "FailedCreate", f"{message}: the name is taken")
            raise

    def _tell(
        self, stateful_set: Object, pods: Sequence[Object], revisions: tuple[str, str], availability: Availability
    ) -> None:
        status = stateful_set_status(stateful_set, pods, *revisions, availability)
        if status != stateful_set.get("status"):
            stateful_set = self.client.update(STATEFUL_SET, {**stateful_set, "status": status}, "status")
            self._sets.observe(stateful_set)
        in_use = {status["currentRevision"], status["updateRevision"], *map(revision_of, pods)}
        self._revisions.trim(stateful_set, in_use)

    def _on_set(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        for pod in (before, after):
            if pod is not None:
                for name in self._pods.managers(pod, self._sets):
                    self.queue.add(name)
