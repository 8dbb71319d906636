"""The scheduler: gives every pod a node, or says why it has none.

Law: ``scheduling`` decides; this carries out, and looks again when something has changed.
"""

from __future__ import annotations

import threading

from kproxy.api.kinds import NAMESPACE, NODE, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.conditions import found
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.owned_pods import has_ended
from kproxy.cluster.controllers.scheduling import Choice, Picture
from kproxy.cluster.events import Recorder
from kproxy.cluster.identity import now
from kproxy.errors import NotFound

NAME = "default-scheduler"


def needs_node(pod: Object) -> bool:
    """Whether the pod waits for a node from us."""
    spec = pod["spec"]
    is_ours = spec.get("schedulerName", NAME) in ("", NAME) and not spec.get("schedulingGates")
    return is_ours and not spec.get("nodeName") and not pod["metadata"].get("deletionTimestamp")


class Scheduler(Controller[Name]):
    """Gives every pod a node."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._pods = informers.of(POD)
        self._recorder = recorder
        self._lock = threading.Lock()
        self._picture = Picture()
        self._assumed: set[str] = set()  # uids of pods that we have bound and the watch has not told of
        self._waiting: set[Name] = set()
        self._pods.add_handler(self._on_pod)
        informers.of(NODE).add_handler(self._on_node)
        informers.of(NAMESPACE).add_handler(self._on_namespace)

    def reconcile(self, key: Name) -> None:
        """Binds the pod of that name to a node, or says in its status why it cannot be."""
        pod = self._pods.get(key)
        if pod is None or not needs_node(pod):
            self._waiting.discard(key)
            return
        uid = pod["metadata"]["uid"]
        with self._lock:
            if uid in self._assumed:
                return
            choice = self._picture.choose(pod)
            if choice.node is not None:
                self._picture.put(pod, choice.node)
                self._assumed.add(uid)
                self._waiting.discard(key)
            else:
                self._waiting.add(key)
        if choice.node is None:
            self._say_unschedulable(pod, choice)
            return
        self._bind(pod, choice.node)

    def _bind(self, pod: Object, node: str) -> None:
        namespace, name = name_of(pod)
        binding = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": node}}
        try:
            self.client.create(POD, binding, namespace, name=name, subresource="binding")
        except NotFound:
            return  # deleted meanwhile
        except Exception:
            with self._lock:
                self._assumed.discard(pod["metadata"]["uid"])
                self._picture.remove(pod["metadata"]["uid"])
            raise
        self._recorder.normal(pod, "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")

    def _say_unschedulable(self, pod: Object, choice: Choice) -> None:
        before = found(pod, "PodScheduled") or {}
        if before.get("message") == choice.why_not:
            return
        self._recorder.warning(pod, "FailedScheduling", choice.why_not)
        conditions = (pod.get("status") or {}).get("conditions") or []
        others = [condition for condition in conditions if condition["type"] != "PodScheduled"]
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": choice.why_not,
            "lastTransitionTime": before.get("lastTransitionTime") or now(),
        }
        namespace, name = name_of(pod)
        self.client.patch(POD, name, {"status": {"conditions": [*others, condition]}}, namespace, "status")

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        pod = after or before
        if pod is None:
            return
        uid = pod["metadata"]["uid"]
        if after is not None and needs_node(after):
            self.queue.add(name_of(after))
            return
        with self._lock:
            self._assumed.discard(uid)
            if after is not None and after["spec"].get("nodeName") and not has_ended(after):
                is_news = before is None or not before["spec"].get("nodeName")
                self._picture.put(after, after["spec"]["nodeName"])
            else:
                is_news = self._picture.remove(uid)
        if is_news:
            self._look_again()

    def _on_node(self, before: Object | None, after: Object | None) -> None:
        with self._lock:
            if after is not None:
                self._picture.nodes[after["metadata"]["name"]] = after
            elif before is not None:
                self._picture.nodes.pop(before["metadata"]["name"], None)
        self._look_again()

    def _on_namespace(self, before: Object | None, after: Object | None) -> None:
        with self._lock:
            if after is not None:
                self._picture.namespaces[after["metadata"]["name"]] = after["metadata"].get("labels") or {}
            elif before is not None:
                self._picture.namespaces.pop(before["metadata"]["name"], None)

    def _look_again(self) -> None:
        """Has every pod looked at again that found no node."""
        for name in tuple(self._waiting):
            self.queue.add(name)
