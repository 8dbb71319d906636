"""What an informer believes when answers and the watch come in any order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.api.kinds import POD
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster.controllers.informer import Informer


class Scripted(Client):
    """A client whose watch tells what it was given."""

    def __init__(self, items: list[Snapshot | WatchEvent]) -> None:
        super().__init__("unix:///nowhere")
        self.items = items

    def follow(self, *_: Any, **__: Any) -> Iterator[Snapshot | WatchEvent]:  # type: ignore[override]
        yield from self.items


def pod(revision: int, uid: str = "u", name: str = "p") -> Object:
    metadata = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(revision)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def told(*items: Snapshot | WatchEvent) -> Informer:
    informer = Informer(Scripted([Snapshot([], "1"), *items]), POD, threading.RLock())
    informer.run(threading.Event())
    return informer


def event(kind: str, obj: Object) -> WatchEvent:
    return WatchEvent(kind, obj)


ADDED, DELETED = event("ADDED", pod(2)), event("DELETED", pod(4))


def revisions(informer: Informer) -> list[str]:
    return [item["metadata"]["resourceVersion"] for item in informer.all_of()]


@pytest.mark.parametrize(
    ("items", "answer", "expected"),
    [
        ((), pod(2), ["2"]),
        ((ADDED,), pod(3), ["3"]),
        ((event("ADDED", pod(4)),), pod(3), ["4"]),
        ((ADDED, DELETED), pod(3), []),
        ((ADDED, Snapshot([], "9")), pod(3), []),
        ((ADDED, DELETED), pod(5, uid="another"), ["5"]),
        ((ADDED, Snapshot([], "1"), event("MODIFIED", pod(3))), pod(5), ["5"]),
    ],
    ids=[
        "first",
        "newer",
        "older",
        "its end overtook it",
        "a new list overtook it",
        "another of its name",
        "it is back",
    ],
)
def test_an_answer_is_taken_over_unless_the_watch_knows_better(
    items: tuple[Snapshot | WatchEvent, ...], answer: Object, expected: list[str]
) -> None:
    informer = told(*items)
    informer.observe(answer)
    assert revisions(informer) == expected


def test_what_the_api_said_is_gone_stays_gone_until_the_watch_confirms_it() -> None:
    informer = told(ADDED)
    informer.forget(pod(2))
    informer.observe(pod(3))
    assert revisions(informer) == []
