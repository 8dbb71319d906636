"""What goes along with what was deleted: objects whose owners are gone, and everything in a namespace that is ending.

Rules: Kubernetes, pkg/controller/garbagecollector and pkg/controller/namespace.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

from kproxy.api.kinds import BY_API, KINDS, NAMESPACE, Kind
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.deletion import FOREGROUND_DELETION, ORPHAN_DEPENDENTS
from kproxy.errors import NotFound

Key = tuple[Kind, Name]


class GarbageCollector(Controller[Key]):
    """Deletes objects none of whose owners exists any more, and lets owners go that wait for what they own."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._lock = threading.Lock()
        self._dependents: dict[str, set[Key]] = {}  # by the owner's uid
        self._owners: dict[str, Key] = {}  # owners that wait for their dependents, by uid
        for kind in KINDS:
            informers.of(kind).add_handler(self._handler(kind))

    def reconcile(self, key: Key) -> None:
        """Does what the object of that name is waiting for; asks the API itself before anything is deleted."""
        kind, name = key
        obj = self.informers.of(kind).get(name)
        if obj is None:
            return
        if obj["metadata"].get("deletionTimestamp"):
            self._let_go(kind, obj)
            return
        references = obj["metadata"].get("ownerReferences") or ()
        if not references:
            return
        owners = [(reference, self._owner(reference, name[0])) for reference in references]
        solid = [reference for reference, owner in owners if owner is not None and not _waits(owner)]
        if solid:
            if len(solid) < len(references):
                self._patch(kind, obj, {"ownerReferences": solid})
            return
        # Who waits for this object waits for all that hangs on it.
        is_awaited = any(owner is not None for _, owner in owners) and self._known_dependents(obj)
        with contextlib.suppress(NotFound):
            self.client.delete(
                kind,
                name[1],
                name[0] or None,
                uid=obj["metadata"]["uid"],
                propagation="Foreground" if is_awaited else "",
            )

    def _let_go(self, kind: Kind, obj: Object) -> None:
        """Takes away the finalizer of an object that is being deleted, once nothing hangs on it that counts."""
        finalizers = obj["metadata"].get("finalizers") or ()
        for finalizer, settle in ((ORPHAN_DEPENDENTS, self._release), (FOREGROUND_DELETION, self._await)):
            if finalizer in finalizers and settle(obj):
                self._patch(kind, obj, {"finalizers": [other for other in finalizers if other != finalizer]})
                return

    def _release(self, owner: Object) -> bool:
        """Takes the owner out of its dependents' references; True when all of them are released."""
        uid = owner["metadata"]["uid"]
        for kind, dependent in self._all_dependents(owner):
            left = [other for other in dependent["metadata"]["ownerReferences"] if other["uid"] != uid]
            self._patch(kind, dependent, {"ownerReferences": left})
        return True

    def _await(self, owner: Object) -> bool:
        """Has the owner's dependents deleted; True when none is left that keeps it."""
        uid = owner["metadata"]["uid"]
        waiting = self._known_dependents(owner)
        for key in waiting:
            self.queue.add(key)
        if any(_blocks(self.informers.of(kind).get(name), uid) for kind, name in waiting):
            return False
        # An informer may not have told yet of what came just before.
        return not any(_blocks(dependent, uid) for _, dependent in self._all_dependents(owner))

    def _known_dependents(self, owner: Object) -> tuple[Key, ...]:
        with self._lock:
            return tuple(self._dependents.get(owner["metadata"]["uid"], ()))

    def _all_dependents(self, owner: Object) -> Iterator[tuple[Kind, Object]]:
        uid, namespace = owner["metadata"]["uid"], owner["metadata"].get("namespace")
        for kind in KINDS:
            if kind.namespaced or not namespace:
                for obj in self.client.list(kind, namespace if kind.namespaced else None).items:
                    if any(other["uid"] == uid for other in obj["metadata"].get("ownerReferences") or ()):
                        yield kind, obj

    def _patch(self, kind: Kind, obj: Object, metadata: Object) -> None:
        version = {"resourceVersion": obj["metadata"]["resourceVersion"], "uid": obj["metadata"]["uid"]}
        with contextlib.suppress(NotFound):
            self.client.patch(
                kind, obj["metadata"]["name"], {"metadata": metadata | version}, obj["metadata"].get("namespace")
            )

    def _owner(self, reference: Object, namespace: str) -> Object | None:
        """The owner as it is, or None when it is gone."""
        kind = BY_API.get((reference["apiVersion"], reference["kind"]))
        if kind is None:
            return reference  # nothing that this API could have deleted
        where = namespace if kind.namespaced else ""
        known = self.informers.of(kind).get((where, reference["name"]))
        if known is not None and known["metadata"]["uid"] == reference["uid"]:
            return known
        try:
            found = self.client.get(kind, reference["name"], where or None)
        except NotFound:
            return None
        return found if found["metadata"]["uid"] == reference["uid"] else None

    def _handler(self, kind: Kind) -> Callable[[Object | None, Object | None], None]:
        def on_change(before: Object | None, after: Object | None) -> None:
            with self._lock:
                self._file(kind, before, after)
                keys = {*self._touched_dependents(before, after), *self._touched_owners(before)}
            for key in keys:
                self.queue.add(key)
            if after is None:
                return
            # Its owner may have gone before it came; or it is an owner that waits.
            if (before is None and after["metadata"].get("ownerReferences")) or _is_finalized(after):
                self.queue.add((kind, name_of(after)))

        return on_change

    def _touched_dependents(self, before: Object | None, after: Object | None) -> Iterable[Key]:
        if before is None or (after is not None and not (_is_finalized(after) and not _is_finalized(before))):
            return ()
        return tuple(self._dependents.get(before["metadata"]["uid"], ()))

    def _touched_owners(self, before: Object | None) -> Iterable[Key]:
        references = before["metadata"].get("ownerReferences") or () if before is not None else ()
        return [self._owners[reference["uid"]] for reference in references if reference["uid"] in self._owners]

    def _file(self, kind: Kind, before: Object | None, after: Object | None) -> None:
        if before is not None:
            self._owners.pop(before["metadata"]["uid"], None)
            for owner in before["metadata"].get("ownerReferences") or ():
                keys = self._dependents.get(owner["uid"], set())
                keys.discard((kind, name_of(before)))
                if not keys:
                    self._dependents.pop(owner["uid"], None)
        if after is not None:
            if _is_finalized(after):
                self._owners[after["metadata"]["uid"]] = (kind, name_of(after))
            for owner in after["metadata"].get("ownerReferences") or ():
                self._dependents.setdefault(owner["uid"], set()).add((kind, name_of(after)))


def _is_finalized(obj: Object) -> bool:
    """Whether the object is being deleted, and the garbage collector has to do something first."""
    finalizers = obj["metadata"].get("finalizers") or ()
    has_own = FOREGROUND_DELETION in finalizers or ORPHAN_DEPENDENTS in finalizers
    return has_own and bool(obj["metadata"].get("deletionTimestamp"))


def _waits(owner: Object) -> bool:
    """Whether the owner waits for the end of its dependents; one that is only referred to does not."""
    metadata = owner.get("metadata") or {}
    return bool(metadata.get("deletionTimestamp")) and FOREGROUND_DELETION in (metadata.get("finalizers") or ())


def _blocks(dependent: Object | None, uid: str) -> bool:
    """Whether the object keeps its owner in a foreground deletion."""
    references = dependent["metadata"].get("ownerReferences") or () if dependent is not None else ()
    return any(reference["uid"] == uid and reference.get("blockOwnerDeletion") for reference in references)


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
