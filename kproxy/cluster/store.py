"""Objects, their revisions and the log of changes, durable in SQLite.

Law: one global revision counts every change; a change that was acknowledged is on disk; a transaction over several
objects happens whole or not at all. Objects that are handed out belong to the store and are never altered by anybody.

As in etcd there is one table of revisions: the newest row of a name is the object, the older ones are the log that
watches read, and compaction drops what is older than the log reaches.

What is in memory never runs ahead of the disk: a change is shown to nobody before its commit is on disk, and one that
the disk refuses leaves everything as it was, for the next one to be tried.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from kproxy.api.kinds import BY_API, Kind
from kproxy.api.types import Object
from kproxy.errors import HostError, KproxyError, UserError

SCHEMA_VERSION = 1
DEFAULT_HISTORY = 20_000
"""Changes that a watch may lag behind before it has to list again; about 60 MB of EndpointSlices at worst."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE revisions (
    revision  INTEGER PRIMARY KEY,
    type      TEXT NOT NULL,
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    previous  INTEGER NOT NULL,
    body      BLOB NOT NULL
);
"""

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Key = tuple[Kind, str, str]


class Compacted(KproxyError):
    """The log no longer reaches back to (or has never reached) the revision that was asked for."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        revision: the global revision that this change made.
        type: what happened to the object.
        kind: its kind.
        object: the object after the change; for DELETED its last state, with this revision.
        previous: the object before the change; None for ADDED.
        body: ``object`` as JSON.
    """

    revision: int
    type: EventType
    kind: Kind
    object: Object
    previous: Object | None
    body: bytes

    @property
    def key(self) -> Key:
        """Kind, namespace ("" for none) and name."""
        metadata = self.object["metadata"]
        return self.kind, metadata.get("namespace", ""), metadata["name"]


def state(kind: Kind, obj: Object) -> Event:
    """An object as it was at some time, as the change that made it so."""
    revision = int(obj["metadata"].get("resourceVersion") or 0)
    return Event(revision, "MODIFIED", kind, obj, None, msgspec.json.encode(obj))


class Transaction:
    """Reads and writes of one transaction; it sees its own writes.

    Made by ``Store.transact`` only, and of no use after it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[Kind, dict[tuple[str, str], Event]] = {}
        self.events: list[Event] = []

    @property
    def revision(self) -> int:
        """The revision that everything written so far will have."""
        return self._store.revision + len(self.events)

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object of that name, or None; ``namespace`` is "" for kinds without one."""
        event = self._pending.get(kind, {}).get((namespace, name))
        if event is not None:
            return None if event.type == "DELETED" else event.object
        return self._store.get(kind, namespace, name)

    def all_of(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """All objects of a kind by namespace and name; None means all namespaces."""
        objects = {_name_of(obj): obj for obj in self._store.all_of(kind, namespace)[0]}
        for name, event in self._pending.get(kind, {}).items():
            if namespace not in (None, name[0]):
                continue
            objects[name] = event.object
            if event.type == "DELETED":
                del objects[name]
        return [objects[name] for name in sorted(objects)]

    def put(self, kind: Kind, obj: Object) -> Object:
        """Stores the object and returns it with its new resourceVersion.

        The object needs metadata.name, and metadata.namespace if its kind has one.
        """
        key = (kind, *_name_of(obj))
        previous = self.get(*key)
        return self._record(key, "ADDED" if previous is None else "MODIFIED", obj, previous)

    def delete(self, kind: Kind, namespace: str, name: str) -> Object:
        """Removes the object and returns its last state.

        Raises:
            KeyError: there is none.
        """
        key = (kind, namespace, name)
        previous = self.get(*key)
        if previous is None:
            raise KeyError(key)
        return self._record(key, "DELETED", previous, previous)

    def _record(self, key: Key, event_type: EventType, obj: Object, previous: Object | None) -> Object:
        revision = self.revision + 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(revision)}}
        event = Event(revision, event_type, key[0], stored, previous, msgspec.json.encode(stored))
        self._pending.setdefault(key[0], {})[key[1:]] = event
        self.events.append(event)
        return stored


class Store:
    """The objects of one lab.

    Args:
        path: the database file; it is made when absent.
        history: how many changes the log keeps.

    Raises:
        UserError: the file was written by a newer version of this program.
        HostError: it cannot be opened, or is no database of ours.
    """

    def __init__(self, path: Path, *, history: int = DEFAULT_HISTORY) -> None:
        self._history = history
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._objects: dict[Kind, dict[tuple[str, str], Event]] = {}
        self._log: list[Event] = []
        self._compacted = 0
        self._listeners: list[Callable[[], object]] = []
        try:
            self._database = _open(path)
            self._load()
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise HostError(f"cannot open the lab's store {path}: {error}") from error

    @property
    def revision(self) -> int:
        """The revision of the newest change; 0 before the first."""
        return self._compacted + len(self._log)

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object of that name, or None; ``namespace`` is "" for kinds without one."""
        event = self._objects.get(kind, {}).get((namespace, name))
        return None if event is None else event.object

    def all_of(self, kind: Kind, namespace: str | None = None) -> tuple[list[Object], int]:
        """All objects of a kind by namespace and name, and the revision at which that is all of them."""
        events, revision = self.latest_of(kind, namespace)
        return [event.object for event in events], revision

    def latest_of(self, kind: Kind, namespace: str | None = None) -> tuple[list[Event], int]:
        """As ``all_of``, but each object as its latest change, which has its JSON at hand."""
        with self._reading:
            found = list(self._objects.get(kind, {}).items())
            revision = self.revision
        if namespace is not None:
            found = [item for item in found if item[0][0] == namespace]
        return [event for _, event in sorted(found, key=lambda item: item[0])], revision

    def events_after(self, revision: int) -> Sequence[Event]:
        """Every change after ``revision``, oldest first.

        Raises:
            Compacted: the log does not reach back so far, or that revision has not been yet (another store's).
        """
        with self._reading:
            if not self._compacted <= revision <= self.revision:
                raise Compacted(f"too old resource version: {revision} ({self._compacted})")
            return self._log[revision - self._compacted :]

    def transact(self, change: Callable[[Transaction], T], *, dry_run: bool = False) -> T:
        """Runs ``change`` alone and returns what it returned, once its writes are on disk.

        When it raises, or for a dry run, nothing is written. Listeners are called after the commit, in this thread.

        Raises:
            HostError: the disk refused the writes; nothing has changed.
        """
        with self._writing:
            transaction = Transaction(self)
            result = change(transaction)
            if dry_run or not transaction.events:
                return result
            self._write(transaction.events)
            with self._reading:
                for event in transaction.events:
                    self._remember(event)
            self._compact()
        for listener in tuple(self._listeners):
            listener()
        return result

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Has ``listener`` called after every commit; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def close(self) -> None:
        """Closes the file. Nothing is lost without it."""
        with self._writing:
            self._database.close()

    def _load(self) -> None:
        self._compacted = _meta(self._database, "compacted")
        rows = self._database.execute(
            "SELECT revision, type, kind, namespace, name, body FROM revisions ORDER BY revision"
        )
        bodies: dict[tuple[str, str, str], Object] = {}
        for revision, event_type, kind_name, namespace, name, body in rows:
            key = (kind_name, namespace, name)
            obj = msgspec.json.decode(body)
            event = Event(revision, event_type, _kind(kind_name), obj, bodies.get(key), body)
            bodies[key] = obj
            if event_type == "DELETED":
                del bodies[key]
            if revision > self._compacted:
                self._remember(event)
            elif event_type != "DELETED":
                self._objects.setdefault(event.kind, {})[(namespace, name)] = event

    def _remember(self, event: Event) -> None:
        self._log.append(event)
        objects = self._objects.setdefault(event.kind, {})
        if event.type == "DELETED":
            del objects[event.key[1:]]
        else:
            objects[event.key[1:]] = event

    def _write(self, events: Sequence[Event]) -> None:
        try:
            with _transaction(self._database):
                self._database.executemany("INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, events))
        except sqlite3.Error as error:
            raise HostError(
                f"the lab's store cannot be written: {error}", left="nothing of this request was done"
            ) from error

    def _compact(self) -> None:
        excess = len(self._log) - self._history
        if excess < self._history // 4 + 1:  # by quarters: one delete for many changes
            return
        compacted = self._compacted + excess
        try:
            self._drop_rows(compacted)
        except sqlite3.Error as error:
            # The change that led here is on disk all the same; the next one tries again.
            _LOG.warning("the lab's store cannot be compacted: %s", error)
            return
        with self._reading:
            del self._log[:excess]
            self._compacted = compacted

    def _drop_rows(self, compacted: int) -> None:
        with _transaction(self._database):
            self._database.execute(
                "DELETE FROM revisions WHERE revision IN (SELECT previous FROM revisions WHERE revision <= ?)",
                (compacted,),
            )
            self._database.execute("DELETE FROM revisions WHERE revision <= ? AND type = 'DELETED'", (compacted,))
            self._database.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (compacted,))


def _name_of(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _kind_name(kind: Kind) -> str:
    return f"{kind.api_version}/{kind.name}"


def _kind(name: str) -> Kind:
    api_version, _, kind = name.rpartition("/")
    try:
        return BY_API[(api_version, kind)]
    except KeyError as error:
        raise UserError(f"the lab's store holds a {name}, which this version of kproxy does not know") from error


def _row(event: Event) -> tuple[int, str, str, str, str, int, bytes]:
    kind, namespace, name = event.key
    previous = 0 if event.previous is None else int(event.previous["metadata"]["resourceVersion"])
    return event.revision, event.type, _kind_name(kind), namespace, name, previous, event.body


def _open(path: Path) -> sqlite3.Connection:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor):
            os.fchmod(descriptor, 0o600)  # SQLite gives its -wal and -shm the mode of the file
    except OSError as error:
        raise HostError(f"cannot open the lab's store {path}: {error.strerror}") from error
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # NORMAL would lose acknowledged writes when the machine stops
    with _transaction(database):
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO meta VALUES ('schema', ?), ('compacted', 0)", (SCHEMA_VERSION,))
    version = _meta(database, "schema")
    if version != SCHEMA_VERSION:
        database.close()
        raise UserError(
            f"{path} has schema version {version}; this version of kproxy reads {SCHEMA_VERSION}: go on with the "
            "kproxy that wrote it, or take the lab down (its objects go with it) and bring it up again"
        )
    return database


def _meta(database: sqlite3.Connection, name: str) -> int:
    row = database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise sqlite3.DatabaseError(f"it has no {name}")
    return int(row[0])


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    if database.in_transaction:  # the disk refused even the end of the last one
        database.execute("ROLLBACK")
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite ends it by itself when the disk is full
            database.execute("ROLLBACK")
        raise
