"""Which node a pod runs on: the one with the fewest pods, among those that may have it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from kproxy.api.kinds import NODE, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.errors import NotFound


def choose_node(pod: Object, nodes: Sequence[Object], pod_counts: Mapping[str, int]) -> str | None:
    """The name of the node with the fewest pods that may run this one; None when there is none.

    A node that is unschedulable or lacks a label of the pod's nodeSelector may not. Equal nodes come in the order of
    their names, ``node2`` before ``node10``, so that the same manifests give the same cluster.
    """
    wanted = (pod["spec"].get("nodeSelector") or {}).items()
    fitting = [
        node["metadata"]["name"]
        for node in nodes
        if not node.get("spec", {}).get("unschedulable") and wanted <= (node["metadata"].get("labels") or {}).items()
    ]
    return min(fitting, key=lambda name: (pod_counts.get(name, 0), _natural(name)), default=None)


def needs_node(pod: Object) -> bool:
    """Whether the pod waits for a node."""
    return not pod["spec"].get("nodeName") and not pod["metadata"].get("deletionTimestamp")


class Scheduler(Controller[Name]):
    """Gives every pod a node."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._pods, self._nodes = informers.of(POD), informers.of(NODE)
        self._assumed: dict[str, str] = {}  # pod uid -> node, until the watch tells of it
        self._pods.add_handler(self._on_pod)
        self._nodes.add_handler(self._on_node)

    def reconcile(self, key: Name) -> None:
        """Binds the pod of that name to a node, or says in its status why it cannot be."""
        pod = self._pods.get(key)
        if pod is None or not needs_node(pod) or pod["metadata"]["uid"] in self._assumed:
            return
        nodes = self._nodes.all_of()
        node = choose_node(pod, nodes, self._pod_counts())
        if node is None:
            self._say_unschedulable(pod, len(nodes))
            return
        self._assumed[pod["metadata"]["uid"]] = node
        try:
            binding = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": node}}
            self.client.create(POD, binding, key[0], name=key[1], subresource="binding")
        except NotFound:
            return  # deleted meanwhile
        except Exception:
            del self._assumed[pod["metadata"]["uid"]]
            raise

    def _pod_counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for pod in self._pods.all_of():
            node = pod["spec"].get("nodeName") or self._assumed.get(pod["metadata"]["uid"])
            if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                counts[node] += 1
        return counts

    def _say_unschedulable(self, pod: Object, node_count: int) -> None:
        message = (
            f"0/{node_count} nodes are available: none is schedulable and has the labels of the pod's nodeSelector."
        )
        conditions = pod.get("status", {}).get("conditions") or []
        if any(condition.get("message") == message for condition in conditions):
            return
        others = [condition for condition in conditions if condition["type"] != "PodScheduled"]
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        namespace, name = name_of(pod)
        self.client.patch(POD, name, {"status": {"conditions": [*others, condition]}}, namespace, "status")

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        pod = after or before
        if pod is None:
            return
        if after is None or not needs_node(after):
            self._assumed.pop(pod["metadata"]["uid"], None)
        if after is not None and needs_node(after):
            self.queue.add(name_of(after))

    def _on_node(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None:
            for pod in self._pods.all_of():
                if needs_node(pod):
                    self.queue.add(name_of(pod))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which numbers in a name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
