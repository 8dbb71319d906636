"""kill -9 of the API at any moment: nothing acknowledged is lost, nothing is half done, and watches go on.

Each round: twenty writers, twenty watchers, one or two kills. Three rounds by default, fifty with KPROXY_SOAK.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from histories import Operation, Watched, contradictions, faults_of_watch

from kproxy.api.kinds import CONFIG_MAP
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.errors import AlreadyExists, ApiError, Conflict, Gone, NotFound, Unreachable

ROUNDS = 50 if os.environ.get("KPROXY_SOAK") else 3
WRITERS = WATCHERS = 20
REGISTERS = [f"register-{number}" for number in range(5)]


def config_map(name: str, value: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


def version_of(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


class Crowd:
    """Writers and watchers of one round, and everything that they were told."""

    def __init__(self, url: str, seed: int, begin: int) -> None:
        self.url = url
        self.seed = seed
        self.begin = begin
        self.operations: list[Operation] = []
        self.watched = [Watched() for _ in range(WATCHERS)]
        self.gaps = 0
        self.failures: list[BaseException] = []
        self._stop_writing = threading.Event()
        self._last: list[int] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        bodies: list[Callable[[], None]] = [lambda n=n: self._write(n) for n in range(WRITERS)]  # type: ignore[misc]
        bodies += [lambda n=n: self._watch(n) for n in range(WATCHERS)]  # type: ignore[misc]
        self._threads = [threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies]
        for thread in self._threads:
            thread.start()

    def wait_for_writes(self, count: int) -> None:
        """Returns when that many more writes have been acknowledged."""
        wanted = self._acknowledged() + count
        deadline = time.monotonic() + 60
        while self._acknowledged() < wanted and not self.failures:
            assert time.monotonic() < deadline, "the writers get nowhere"
            time.sleep(0.005)

    def _acknowledged(self) -> int:
        return sum(operation.outcome == "done" and operation.writes for operation in tuple(self.operations))

    def finish(self) -> int:
        """Ends the writers, waits until every watcher has seen everything, and returns the last version."""
        self._stop_writing.set()
        for thread in self._threads[:WRITERS]:
            thread.join(60)
            assert not thread.is_alive()
        client = Client(self.url)
        last = version_of(client.create(CONFIG_MAP, config_map("last", "last"), "default"))
        client.close()
        self._last.append(last)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a watcher has not seen the last change"
        return last

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # a thread's failure is the test's
            self.failures.append(error)
            raise

    # ----- writers

    def _write(self, number: int) -> None:
        client = Client(self.url, headers={"User-Agent": f"writer-{number}"})
        choices = random.Random(f"{self.seed} {number}")
        acts = (self._swap, self._swap, self._put, self._create_and_delete, self._write_pair)
        for count in range(10_000):
            if self._stop_writing.is_set():
                break
            try:
                choices.choice(acts)(client, choices, f"{number}-{count}")
            except Unreachable:
                time.sleep(0.01)
        client.close()

    def _do(self, operation: Operation, ask: Callable[[], Object], refusal: type[ApiError] = Conflict) -> Object | None:
        self.operations.append(operation)
        try:
            obj = ask()
        except refusal:
            operation.end("refused")
            return None
        operation.end("done", version_of(obj))
        return obj

    def _read(self, client: Client, name: str) -> Object | None:
        operation = Operation(name, "read")
        try:
            obj = client.get(CONFIG_MAP, name, "default")
        except NotFound:
            return None
        operation.value = obj["data"]["value"]
        operation.end("done", version_of(obj))
        self.operations.append(operation)
        return obj

    def _swap(self, client: Client, choices: random.Random, value: str) -> None:
        name = choices.choice(REGISTERS)
        obj = self._read(client, name)
        if obj is None:
            self._do(Operation(name, "write", value), lambda: self._create(client, name, value), AlreadyExists)
            return
        new = {**obj, "data": {"value": value}}
        self._do(Operation(name, "swap", value, version_of(obj)), lambda: client.update(CONFIG_MAP, new))

    def _put(self, client: Client, choices: random.Random, value: str) -> None:
        name = choices.choice(REGISTERS)
        patch = {"data": {"value": value}}
        self._do(Operation(name, "write", value), lambda: client.patch(CONFIG_MAP, name, patch, "default"), NotFound)

    def _create(self, client: Client, name: str, value: str) -> Object:
        return client.create(CONFIG_MAP, config_map(name, value), "default")

    def _create_and_delete(self, client: Client, choices: random.Random, value: str) -> None:
        name = f"own-{value}"
        made = self._do(Operation(name, "write", value), lambda: self._create(client, name, value))
        self._read(client, name)
        if made is not None and choices.random() < 0.5:
            operation = Operation(name, "delete")
            self.operations.append(operation)
            client.delete(CONFIG_MAP, name, "default")
            operation.end("done")

    def _write_pair(self, client: Client, choices: random.Random, value: str) -> None:
        """Two objects in one transaction; what its versions are, the watchers tell."""
        del choices
        documents = [{"object": config_map(name, value)} for name in ("left", "right")]
        result = client.apply(documents)
        outcomes = [(entry.name, entry.outcome) for entry in result.results]
        assert [name for name, _ in outcomes] == ["left", "right"]

    # ----- watchers

    def _watch(self, number: int) -> None:
        client = Client(self.url, headers={"User-Agent": f"watcher-{number}"})
        watched, position = self.watched[number], self.begin
        watched.begin(position)
        while not (self._last and position >= self._last[0]):
            try:
                for event in client.watch(
                    CONFIG_MAP, resource_version=str(position), bookmarks=False, timeout_seconds=1
                ):
                    value = None if event.type == "DELETED" else event.object["data"]["value"]
                    position = version_of(event.object)
                    watched.see(position, event.object["metadata"]["name"], value)
            except Unreachable:
                time.sleep(0.01)
            except Gone:
                self.gaps += 1
                position = self._list_again(client, watched)
        client.close()

    def _list_again(self, client: Client, watched: Watched) -> int:
        while True:
            try:
                position = int(client.list(CONFIG_MAP).resource_version)
            except Unreachable:
                time.sleep(0.01)
                continue
            watched.begin(position)
            return position


def changes_seen(crowd: Crowd) -> dict[int, tuple[str, str | None]]:
    """Every change that any watcher was told of."""
    told: dict[int, tuple[str, str | None]] = {}
    for watched in crowd.watched:
        for _, span in watched.spans:
            told.update({version: (name, value) for version, name, value in span})
    return told


def faults_of(crowd: Crowd, last: int, left: dict[str, Any]) -> list[str]:
    """Everything that is wrong with what a round has shown.

    Args:
        crowd: who took part.
        last: the last version.
        left: the objects that are there in the end, name to value.
    """
    changes = changes_seen(crowd)
    faults = list(contradictions(crowd.operations, changes))
    for watched in crowd.watched:
        faults += faults_of_watch(watched, changes, last)
    there: dict[str, Any] = {}
    for version in sorted(changes):
        name, value = changes[version]
        there[name] = value
    there = {name: value for name, value in there.items() if value is not None}
    if there != left:
        faults.append(f"what is left is not what the changes led to: {set(there.items()) ^ set(left.items())}")
    pairs = {name: {value for of, value in changes.values() if of == name} for name in ("left", "right")}
    if pairs["left"] != pairs["right"]:
        faults.append(f"half of a transaction: {pairs['left'] ^ pairs['right']}")
    return faults


def play(api: ApiProcess, number: int) -> tuple[Crowd, int, dict[str, Any]]:
    """One round: what the crowd saw, the last version, and what is there in the end."""
    choices = random.Random(number)
    with api:
        client = Client(api.url)
        begin = int(client.list(CONFIG_MAP).resource_version)
        crowd = Crowd(api.url, number, begin)
        crowd.start()
        for _ in range(1 + number % 2):
            crowd.wait_for_writes(choices.randrange(20, 120))
            time.sleep(choices.uniform(0, 0.05))
            api.kill()
            api.start()
        crowd.wait_for_writes(30)
        last = crowd.finish()
        left = {obj["metadata"]["name"]: obj["data"]["value"] for obj in client.list(CONFIG_MAP).items}
        client.close()
    return crowd, last, left


@pytest.mark.parametrize("number", range(ROUNDS))
def test_nothing_acknowledged_is_lost_and_watches_go_on(tmp_path: Path, number: int) -> None:
    # In every third round the log is so short that watchers may be told 410.
    history = 40 if number % 3 == 2 else 20_000
    crowd, last, left = play(ApiProcess(tmp_path, history=history), number)
    assert not crowd.failures
    faults = faults_of(crowd, last, left)
    assert not faults, faults[:10]
    assert crowd.gaps == 0 or history == 40


# ----- negative controls: the checkers see what is planted


def test_a_store_that_forgets_is_found_out(tmp_path: Path) -> None:
    crowd, last, left = play(ApiProcess(tmp_path, is_forgetful=True), 0)
    assert faults_of(crowd, last, left)


def a_round() -> tuple[Crowd, int, dict[str, Any]]:
    """A sound history of one register and one watcher's view of it."""
    crowd = Crowd("unix:///nowhere", 0, 0)
    crowd.operations = [
        Operation("r", "write", "a", 0, 1, "done", 0, 1),
        Operation("r", "read", "a", 0, 1, "done", 2, 3),
        Operation("r", "swap", "b", 1, 2, "done", 4, 5),
        Operation("r", "swap", "c", 1, 0, "refused", 4, 6),
        Operation("r", "write", "d", 0, 0, "unknown", 5, float("inf")),
        Operation("r", "read", "d", 0, 3, "done", 7, 8),
        Operation("r", "delete", None, 0, 4, "done", 9, 10),
        Operation("r", "write", "e", 0, 0, "unknown", 9, float("inf")),
    ]
    story = [(1, "r", "a"), (2, "r", "b"), (3, "r", "d"), (4, "r", None)]
    for watched in crowd.watched:
        watched.spans = [(0, list(story))]
    return crowd, 4, {}


def rewrite(crowd: Crowd, index: int, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(crowd.operations[index], name, value)


def for_all(crowd: Crowd, change: Callable[[list[tuple[int, str, str | None]]], Any]) -> None:
    for watched in crowd.watched:
        change(watched.spans[0][1])


PLANTED: list[tuple[str, Callable[[Crowd], Any], str]] = [
    ("a lost write", lambda c: for_all(c, lambda told: told.remove((2, "r", "b"))), "is lost"),
    ("a changed value", lambda c: for_all(c, lambda told: told.__setitem__(1, (2, "r", "x"))), "not b as acknowledged"),
    ("a stale read", lambda c: rewrite(c, 5, value="b", version=2, began=11, ended=12), "began after version 4"),
    ("a read of another value", lambda c: rewrite(c, 1, value="z"), "was read as z"),
    ("a read of the future", lambda c: rewrite(c, 5, began=1, ended=2), "read before it was written"),
    ("a write into the past", lambda c: rewrite(c, 0, began=6.5, ended=6.6), "began after version"),
    ("a swap that overwrote", lambda c: rewrite(c, 2, expected=0), r"overwrote \[1\]"),
    ("a swap refused for nothing", lambda c: rewrite(c, 3, expected=9), "refused without a reason"),
    ("two writes of one version", lambda c: rewrite(c, 6, version=3), "two writes made version 3"),
    ("a change told twice", lambda c: c.watched[3].spans[0][1].insert(0, (1, "r", "a")), "twice or out of order"),
    ("changes out of order", lambda c: c.watched[3].spans[0][1].reverse(), "twice or out of order"),
    ("a change not told", lambda c: c.watched[3].spans[0][1].pop(1), "not told of"),
    ("the last change not told", lambda c: c.watched[3].spans[0][1].pop(), "not told of"),
    (
        "a change from before the watch",
        lambda c: c.watched[3].begin(4) or c.watched[3].see(4, "r", None),
        "after 4 was",
    ),
    ("an invented change", lambda c: c.watched[3].see(5, "r", "y"), "what is left|not told of"),
    (
        "half of a transaction",
        lambda c: for_all(c, lambda told: told.insert(0, (0, "left", "v"))),
        "half of a transaction",
    ),
]


def test_a_sound_history_has_no_faults() -> None:
    assert faults_of(*a_round()) == []


@pytest.mark.parametrize(("plant", "words"), [case[1:] for case in PLANTED], ids=[case[0] for case in PLANTED])
def test_planted_faults_are_found(plant: Callable[[Crowd], Any], words: str) -> None:
    crowd, last, left = a_round()
    plant(crowd)
    faults = "\n".join(faults_of(crowd, last, left))
    assert re.search(words, faults), faults
