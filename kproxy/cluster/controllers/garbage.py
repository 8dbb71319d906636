"""What goes along with what was deleted: objects whose owners are gone, and everything in a namespace that is ending.

Rules: Kubernetes, pkg/controller/garbagecollector (background deletion) and pkg/controller/namespace.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from kproxy.api.kinds import BY_API, KINDS, NAMESPACE, Kind
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.errors import NotFound

Key = tuple[Kind, Name]


class GarbageCollector(Controller[Key]):
    """Deletes objects none of whose owners exists any more."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._lock = threading.Lock()
        self._dependents: dict[str, set[Key]] = {}  # by the owner's uid
        for kind in KINDS:
            informers.of(kind).add_handler(self._handler(kind))

    def reconcile(self, key: Key) -> None:
        """Deletes the object of that name if its owners are gone; asks the API itself before it does."""
        kind, name = key
        obj = self.informers.of(kind).get(name)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            return
        owners = obj["metadata"].get("ownerReferences") or ()
        if not owners or any(self._exists(owner, name[0]) for owner in owners):
            return
        with contextlib.suppress(NotFound):
            self.client.delete(kind, name[1], name[0] or None, uid=obj["metadata"]["uid"])

    def _exists(self, owner: Object, namespace: str) -> bool:
        kind = BY_API.get((owner["apiVersion"], owner["kind"]))
        if kind is None:
            return True  # nothing that this API could have deleted
        where = namespace if kind.namespaced else ""
        known = self.informers.of(kind).get((where, owner["name"]))
        if known is not None and known["metadata"]["uid"] == owner["uid"]:
            return True
        try:
            found = self.client.get(kind, owner["name"], where or None)
        except NotFound:
            return False
        return bool(found["metadata"]["uid"] == owner["uid"])

    def _handler(self, kind: Kind) -> Callable[[Object | None, Object | None], None]:
        def on_change(before: Object | None, after: Object | None) -> None:
            with self._lock:
                self._file(kind, before, after)
                gone = before["metadata"]["uid"] if before is not None and after is None else ""
                waiting = tuple(self._dependents.get(gone, ()))
            for key in waiting:
                self.queue.add(key)
            if before is None and after is not None and after["metadata"].get("ownerReferences"):
                self.queue.add((kind, name_of(after)))  # its owner may have gone before it came

        return on_change

    def _file(self, kind: Kind, before: Object | None, after: Object | None) -> None:
        if before is not None:
            for owner in before["metadata"].get("ownerReferences") or ():
                keys = self._dependents.get(owner["uid"], set())
                keys.discard((kind, name_of(before)))
                if not keys:
                    self._dependents.pop(owner["uid"], None)
        if after is not None:
            for owner in after["metadata"].get("ownerReferences") or ():
                self._dependents.setdefault(owner["uid"], set()).add((kind, name_of(after)))


class NamespaceController(Controller[str]):
    """Empties namespaces that are being deleted, and lets them go when they are empty."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._namespaces = informers.of(NAMESPACE)
        self._namespaces.add_handler(self._on_namespace)
        for kind in KINDS:
            if kind.namespaced:
                informers.of(kind).add_handler(self._on_content)

    def reconcile(self, key: str) -> None:
        """Deletes what is in the namespace of that name; then, as nothing is left, the namespace."""
        namespace = self._namespaces.get(("", key))
        if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
            return
        for kind in KINDS:
            for obj in self.informers.of(kind).all_of(key) if kind.namespaced else ():
                if not obj["metadata"].get("deletionTimestamp"):
                    with contextlib.suppress(NotFound):
                        self.client.delete(kind, obj["metadata"]["name"], key, uid=obj["metadata"]["uid"])
        with contextlib.suppress(NotFound):  # while something is left, this changes nothing
            self.client.delete(NAMESPACE, key, uid=namespace["metadata"]["uid"])

    def _on_namespace(self, before: Object | None, after: Object | None) -> None:
        del before
        if after is not None and after["metadata"].get("deletionTimestamp"):
            self.queue.add(after["metadata"]["name"])

    def _on_content(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        if obj is None:
            return
        namespace = obj["metadata"]["namespace"]
        ending = self._namespaces.get(("", namespace))
        if ending is not None and ending["metadata"].get("deletionTimestamp"):
            self.queue.add(namespace)
