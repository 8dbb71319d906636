"""Pods leave nodes whose NoExecute taints they do not tolerate (Kubernetes: pkg/controller/tainteviction)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime

from kproxy.api.kinds import NODE, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.placement import seconds_tolerated
from kproxy.cluster.events import Recorder
from kproxy.errors import NotFound

_BY_NODE = "by-node"


class TaintEvictionController(Controller[Name]):
    """Deletes pods that may not stay where they are."""

    def __init__(self, client: Client, informers: Informers, recorder: Recorder) -> None:
        super().__init__(client, informers)
        self._pods, self._nodes = informers.of(POD), informers.of(NODE)
        self._recorder = recorder
        self._since: dict[str, datetime] = {}  # by a pod's uid, when it was first seen on a tainted node
        self._pods.add_index(_BY_NODE, _node)
        self._pods.add_handler(self._on_pod)
        self._nodes.add_handler(self._on_node)

    def reconcile(self, key: Name) -> None:
        """Deletes the pod of that name, at once or when the time is over that it tolerates."""
        pod = self._pods.get(key)
        node = None if pod is None else self._nodes.get(("", pod["spec"].get("nodeName", "")))
        if pod is None or node is None or pod["metadata"].get("deletionTimestamp"):
            return
        uid = pod["metadata"]["uid"]
        tolerated = seconds_tolerated(pod["spec"], node)
        if tolerated is None:
            self._since.pop(uid, None)
            return
        now = datetime.now(UTC)
        left = tolerated - (now - self._since.setdefault(uid, now)).total_seconds()
        if left > 0:
            self.queue.add_later(key, left)
            return
        self._recorder.normal(pod, "TaintManagerEviction", f"Marking for deletion Pod {key[0]}/{key[1]}")
        with contextlib.suppress(NotFound):
            self.client.delete(POD, key[1], key[0], uid=uid)

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        if after is None:
            if before is not None:
                self._since.pop(before["metadata"]["uid"], None)
            return
        node = self._nodes.get(("", after["spec"].get("nodeName", "")))
        if node is not None and _evicts(node):
            self.queue.add(name_of(after))

    def _on_node(self, before: Object | None, after: Object | None) -> None:
        if after is None or (not _evicts(after) and (before is None or not _evicts(before))):
            return
        for pod in self._pods.indexed(_BY_NODE, after["metadata"]["name"]):
            self.queue.add(name_of(pod))


def _node(pod: Object) -> Iterable[str]:
    name = pod["spec"].get("nodeName")
    return (name,) if name else ()


def _evicts(node: Object) -> bool:
    return any(taint["effect"] == "NoExecute" for taint in (node.get("spec") or {}).get("taints") or ())
