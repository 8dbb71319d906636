"""What the API last said about the objects of a kind, shared by all controllers of this process.

Law: one watch per kind, however many controllers look at it; handlers run in the watch's thread and only take notes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot, WatchEvent

Handler = Callable[[Object | None, Object | None], None]
"""Called with an object before and after a change; None before it was there, None after it is gone."""

Indexer = Callable[[Object], Iterable[str]]
"""The values under which an object is found by ``Informer.indexed``."""

Name = tuple[str, str]
"""Namespace ("" for none) and name."""

_REMEMBERED_ENDS = 10_000  # far more than there are writes under way at any time
_LOG = logging.getLogger(__name__)


class Informer:
    """The objects of one kind.

    A controller that writes calls ``observe`` with what the API answered, so that its next look sees its own writes
    also before the watch has told of them.

    Args:
        client: where to look.
        kind: what to look at.
        lock: held while objects change and handlers run.
    """

    def __init__(self, client: Client, kind: Kind, lock: threading.RLock) -> None:
        self.kind = kind
        self.is_synced = threading.Event()
        self._client = client
        self._lock = lock
        self._objects: dict[Name, Object] = {}
        self._indexers: dict[str, Indexer] = {}
        self._indexes: dict[str, dict[str, set[Name]]] = {}
        self._forgotten: set[str] = set()
        self._gone: dict[str, None] = {}  # uids of which the watch has told the end, oldest first
        self._handlers: list[Handler] = []

    def add_handler(self, handler: Handler) -> None:
        """Has ``handler`` told of every change, beginning with all that is there; to be called before ``run``."""
        self._handlers.append(handler)

    def add_index(self, index: str, indexer: Indexer) -> None:
        """Makes objects findable by ``indexed(index, value)``; to be called before ``run``."""
        self._indexers[index] = indexer
        self._indexes[index] = {}

    def get(self, name: Name) -> Object | None:
        """The object of that name, or None."""
        with self._lock:
            return self._objects.get(name)

    def all_of(self, namespace: str | None = None) -> list[Object]:
        """All objects by namespace and name; None means all namespaces."""
        with self._lock:
            found = [item for item in self._objects.items() if namespace in (None, item[0][0])]
        return [obj for _, obj in sorted(found, key=lambda item: item[0])]

    def indexed(self, index: str, value: str) -> list[Object]:
        """All objects that the index files under ``value``, by namespace and name."""
        with self._lock:
            return [self._objects[name] for name in sorted(self._indexes[index].get(value, ()))]

    def observe(self, obj: Object) -> None:
        """Takes over what the API answered to a write, unless something newer is known already.

        The object's end may be among that: the answer can be overtaken by the watch.
        """
        with self._lock:
            uid = obj["metadata"]["uid"]
            if obj.get("kind") == self.kind.name and uid not in self._forgotten and uid not in self._gone:
                self._set(obj)

    def forget(self, obj: Object) -> None:
        """Counts the object as gone, since the API said so; the watch will confirm it."""
        with self._lock:
            present = self._objects.get(name_of(obj))
            if present is not None and present["metadata"]["uid"] == obj["metadata"]["uid"]:
                self._forgotten.add(obj["metadata"]["uid"])
                self._remove(present)

    def run(self, stop: threading.Event) -> None:
        """Follows the API until ``stop`` is set or the client is closed."""
        for item in self._client.follow(self.kind, bookmarks=False, stop=stop, on_error=self._log):
            with self._lock:
                if isinstance(item, Snapshot):
                    self._replace(item.items)
                    self.is_synced.set()
                else:
                    self._take(item)

    def _log(self, error: Exception) -> None:
        _LOG.warning("%s: %s", self.kind.plural, error)

    def _take(self, event: WatchEvent) -> None:
        obj = event.object
        uid = obj["metadata"]["uid"]
        if event.type == "DELETED":
            self._forgotten.discard(uid)
            self._bury(uid)
            present = self._objects.get(name_of(obj))
            if present is not None and present["metadata"]["uid"] == uid:
                self._remove(present)
        elif uid not in self._forgotten:
            self._gone.pop(uid, None)
            self._set(obj)

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        if len(self._gone) > _REMEMBERED_ENDS:
            del self._gone[next(iter(self._gone))]

    def _replace(self, objects: list[Object]) -> None:
        self._forgotten.clear()
        there = {name_of(obj) for obj in objects}
        for name in self._objects.keys() - there:
            self._bury(self._objects[name]["metadata"]["uid"])
            self._remove(self._objects[name])
        for obj in objects:
            self._set(obj)

    def _set(self, obj: Object) -> None:
        name = name_of(obj)
        before = self._objects.get(name)
        if before is not None and _revision(before) >= _revision(obj):
            return
        if before is not None and before["metadata"]["uid"] != obj["metadata"]["uid"]:
            self._remove(before)  # another object of that name: its own end comes before the new one's beginning
            before = None
        self._unfile(name)
        self._objects[name] = obj
        for index, indexer in self._indexers.items():
            for value in indexer(obj):
                self._indexes[index].setdefault(value, set()).add(name)
        self._tell(before, obj)

    def _remove(self, obj: Object) -> None:
        name = name_of(obj)
        self._unfile(name)
        del self._objects[name]
        self._tell(obj, None)

    def _unfile(self, name: Name) -> None:
        before = self._objects.get(name)
        if before is None:
            return
        for index, indexer in self._indexers.items():
            for value in indexer(before):
                names = self._indexes[index][value]
                names.discard(name)
                if not names:
                    del self._indexes[index][value]

    def _tell(self, before: Object | None, after: Object | None) -> None:
        for handler in self._handlers:
            handler(before, after)


class Informers:
    """One informer per kind, made when first asked for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._informers: dict[Kind, Informer] = {}
        # One for all: a handler of one kind looks at the objects of another.
        self._lock = threading.RLock()

    def of(self, kind: Kind) -> Informer:
        """The informer of that kind."""
        return self._informers.setdefault(kind, Informer(self._client, kind, self._lock))

    def start(self, stop: threading.Event) -> list[threading.Thread]:
        """Runs every informer that was asked for, each in a thread, and returns these."""
        threads = [
            threading.Thread(target=informer.run, args=(stop,), name=f"inform-{informer.kind.plural}", daemon=True)
            for informer in self._informers.values()
        ]
        for thread in threads:
            thread.start()
        return threads

    def wait_until_synced(self, stop: threading.Event) -> bool:
        """Waits until every informer has its first full list; False when ``stop`` came first."""
        for informer in self._informers.values():
            while not informer.is_synced.wait(0.2):
                if stop.is_set():
                    return False
        return True


def name_of(obj: Object) -> Name:
    """Namespace ("" for none) and name of an object."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _revision(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
