"""The store: revisions, transactions, the log, and what survives a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.api.kinds import NAMESPACE, POD, SERVICE
from kproxy.api.types import Object
from kproxy.cluster.store import Compacted, Store, Transaction
from kproxy.errors import HostError, UserError


def named(name: str, **rest: object) -> Object:
    return {"metadata": {"name": name, "namespace": "default"}, **rest}


def put(store: Store, name: str, **rest: object) -> Object:
    return store.transact(lambda transaction: transaction.put(POD, named(name, **rest)))


def delete(store: Store, name: str) -> Object:
    return store.transact(lambda transaction: transaction.delete(POD, "default", name))


def test_every_change_has_the_next_revision_and_is_in_the_log(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    put(store, "a")
    put(store, "a", spec=1)
    delete(store, "a")
    events = store.events_after(0)
    assert [(event.revision, event.type) for event in events] == [(1, "ADDED"), (2, "MODIFIED"), (3, "DELETED")]
    assert events[2].object == named("a", spec=1) | {"metadata": {**named("a")["metadata"], "resourceVersion": "3"}}
    assert events[1].previous == events[0].object
    assert store.get(POD, "default", "a") is None
    store.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")

    def change(transaction: Transaction) -> None:
        transaction.put(POD, named("a"))
        assert transaction.get(POD, "default", "a") is not None
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.transact(change)
    assert store.revision == 0
    assert store.all_of(POD) == ([], 0)
    store.close()


def test_a_dry_run_sees_its_writes_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    put(store, "a")

    def change(transaction: Transaction) -> list[str]:
        transaction.put(POD, named("b"))
        transaction.delete(POD, "default", "a")
        return [obj["metadata"]["name"] for obj in transaction.all_of(POD)]

    assert store.transact(change, dry_run=True) == ["b"]
    assert [obj["metadata"]["name"] for obj in store.all_of(POD)[0]] == ["a"]
    store.close()


def test_a_store_that_is_opened_again_knows_everything(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    put(store, "a", spec=1)
    put(store, "b")
    put(store, "a", spec=2)
    delete(store, "b")
    before = (store.revision, store.all_of(POD), list(store.events_after(0)))
    store.close()
    again = Store(tmp_path / "db")
    assert (again.revision, again.all_of(POD), list(again.events_after(0))) == before
    again.close()


def test_compaction_keeps_the_objects_and_the_newest_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", history=8)
    put(store, "old")
    for number in range(40):
        put(store, "a", spec=number)
        put(store, "b")
        delete(store, "b")
    with pytest.raises(Compacted):
        store.events_after(1)
    newest = store.revision
    tail = list(store.events_after(newest - 8))
    store.close()
    again = Store(tmp_path / "db", history=8)
    assert again.revision == newest
    assert [obj["metadata"]["name"] for obj in again.all_of(POD)[0]] == ["a", "old"]
    assert list(again.events_after(newest - 8)) == tail
    put(again, "c")
    assert again.revision == newest + 1
    again.close()


def test_a_revision_of_the_future_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(Compacted):
        store.events_after(1)
    store.close()


def test_listings_are_sorted_and_by_namespace(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for namespace, name in (("b", "x"), ("a", "y"), ("a", "x")):
        obj = {"metadata": {"name": name, "namespace": namespace}}
        store.transact(lambda transaction, obj=obj: transaction.put(SERVICE, obj))
    store.transact(lambda transaction: transaction.put(NAMESPACE, {"metadata": {"name": "a"}}))
    keys = [(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in store.all_of(SERVICE)[0]]
    assert keys == [("a", "x"), ("a", "y"), ("b", "x")]
    assert len(store.all_of(SERVICE, "a")[0]) == 2
    assert len(store.all_of(NAMESPACE)[0]) == 1
    store.close()


@pytest.mark.parametrize("content", [b"this is no database, whatever its name says" * 100])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(HostError, match="cannot open"):
        Store(tmp_path / "db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "db").close()
    database = sqlite3.connect(tmp_path / "db")
    database.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    database.commit()
    database.close()
    with pytest.raises(UserError, match=r"schema version 99.*take the lab down"):
        Store(tmp_path / "db")


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "db")
    database.execute("CREATE TABLE meta (name TEXT, value INTEGER)")
    database.commit()
    database.close()
    with pytest.raises(HostError, match="it has no schema"):
        Store(tmp_path / "db")


class RefusingDisk:
    """A database whose statements fail from the one on that begins with these words."""

    def __init__(self, database: Any, words: str) -> None:
        self._database = database
        self._words = words

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement.startswith(self._words):
            raise sqlite3.OperationalError("disk I/O error")
        return self._database.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@pytest.mark.parametrize("words", ["BEGIN", "COMMIT", "ROLLBACK", "DELETE"])
def test_a_change_that_the_disk_refuses_leaves_everything_as_it_was(tmp_path: Path, words: str) -> None:
    store = Store(tmp_path / "db", history=4)
    told: list[int] = []
    store.listen(lambda: told.append(store.revision))
    put(store, "a", spec=0)
    sound = store._database
    store._database = RefusingDisk(RefusingDisk(sound, words), "COMMIT" if words == "ROLLBACK" else words)
    outcomes = []
    for number in range(1, 9):
        try:
            put(store, "a", spec=number)
        except HostError:
            outcomes.append(False)
        else:
            outcomes.append(True)
    # A log that cannot be cut short is no reason to refuse a change.
    assert outcomes == [words == "DELETE"] * 8
    assert [obj["spec"] for obj in store.all_of(POD)[0]] == [8 if words == "DELETE" else 0]
    assert len(told) == store.revision == (9 if words == "DELETE" else 1)
    store._database = sound
    put(store, "b")
    before = (store.revision, store.all_of(POD))
    store.close()
    again = Store(tmp_path / "db", history=4)
    assert (again.revision, again.all_of(POD)) == before
    again.close()


CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abc"), st.integers(0, 3)), max_size=60
)


@given(changes=CHANGES, history=st.integers(1, 10))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_opened_again_it_equals_what_it_was(tmp_path: Path, changes: list[tuple[str, str, int]], history: int) -> None:
    path = tmp_path / os.urandom(8).hex()
    store = Store(path, history=history)
    expected: dict[str, int] = {}
    for verb, name, value in changes:
        if verb == "put":
            put(store, name, spec=value)
            expected[name] = value
        elif name in expected:
            delete(store, name)
            del expected[name]
    revision = store.revision
    tail = list(store.events_after(max(0, revision - history)))
    store.close()
    again = Store(path, history=history)
    assert {obj["metadata"]["name"]: obj["spec"] for obj in again.all_of(POD)[0]} == expected
    assert again.revision == revision
    assert list(again.events_after(max(0, revision - history))) == tail
    again.close()


WRITER = """
import sys
from pathlib import Path
from kproxy.api.kinds import POD
from kproxy.cluster.store import Store

store = Store(Path(sys.argv[1]), history=20)
for number in range(1_000_000):
    def change(transaction, number=number):
        # Two objects that only ever change together.
        for name in ("left", "right"):
            transaction.put(POD, {"metadata": {"name": name, "namespace": "default"}, "spec": number})
    store.transact(change)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "db")], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().splitlines()
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()
    # The line that the kill cut short was written after its commit, but may be only half there.
    last = max([last, *(int(line) for line in rest[:-1])])
    store = Store(tmp_path / "db", history=20)
    (left, right), revision = store.all_of(POD)
    assert left["spec"] == right["spec"] >= last
    assert revision == 2 * (left["spec"] + 1)
    store.close()


def test_its_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "db").touch(mode=0o644)
    store = Store(tmp_path / "db")
    put(store, "a")
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("db", "db-wal", "db-shm"), 0o600
    )
    store.close()
