"""DaemonSets: a pod on every node that fits.

Law: ``daemon_plans`` decides; this carries out. Rules: Kubernetes, pkg/controller/daemon.
"""

from __future__ import annotations

from kproxy.api.kinds import DAEMON_SET, NODE, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.daemon_plans import daemon_set_status, hash_of, new_pod, plan_pods
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.owned_pods import Availability, OwnedPods, has_ended
from kproxy.cluster.controllers.revisions import Revisions
from kproxy.cluster.events import Recorder


class DaemonSetController(Controller[Name]):
    """Keeps the pods of every DaemonSet."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._sets, self._nodes = informers.of(DAEMON_SET), informers.of(NODE)
        self._pods = OwnedPods(client, informers, DAEMON_SET, recorder)
        self._revisions = Revisions(client, informers)
        self._recorder = recorder
        self._sets.add_handler(self._on_set)
        self._nodes.add_handler(self._on_node)
        informers.of(POD).add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Takes the next steps of the DaemonSet of that name."""
        daemon_set = self._sets.get(key)
        if daemon_set is None:
            return
        update = self._revisions.current(daemon_set)
        nodes = self._nodes.all_of()
        availability = Availability(daemon_set["spec"].get("minReadySeconds", 0))
        if not daemon_set["metadata"].get("deletionTimestamp"):
            plan = plan_pods(daemon_set, nodes, self._pods.claim(daemon_set), update.hash, availability)
            for pod in plan.delete:
                self._remove(daemon_set, pod)
            for node in plan.create:
                self._pods.create(daemon_set, new_pod(daemon_set, node, update.hash))
        pods = self._pods.owned(daemon_set)
        status = daemon_set_status(daemon_set, nodes, pods, update.hash, availability)
        if status != daemon_set.get("status"):
            daemon_set = self.client.update(DAEMON_SET, {**daemon_set, "status": status}, "status")
            self._sets.observe(daemon_set)
        hashes = {update.hash, *map(hash_of, pods)}
        self._revisions.trim(daemon_set, {f"{key[1]}-{name_hash}" for name_hash in hashes})
        if availability.next_look is not None:
            self.queue.add_later(key, availability.next_look)

    def _remove(self, daemon_set: Object, pod: Object) -> None:
        if has_ended(pod):
            message = f"Found failed daemon pod {'/'.join(name_of(pod))} on node {pod['spec'].get('nodeName', '')}"
            self._recorder.warning(daemon_set, "FailedDaemonPod", f"{message}, will try to kill it")
        self._pods.delete(daemon_set, pod)

    def _on_set(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            self.queue.add(name_of(after))

    def _on_node(self, before: Object | None, after: Object | None) -> None:
        if before is not None and after is not None and _place(before) == _place(after):
            return
        for daemon_set in self._sets.all_of():
            self.queue.add(name_of(daemon_set))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        for pod in (before, after):
            if pod is not None:
                for name in self._pods.managers(pod, self._sets):
                    self.queue.add(name)


def _place(node: Object) -> tuple[Object, Object]:
    """What of a node decides whether a pod may be there."""
    return node["metadata"].get("labels") or {}, node.get("spec") or {}
