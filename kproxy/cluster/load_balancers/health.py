"""Asking nodes whether they may serve: real HTTP and TCP, from the router's network namespace.

Law: a node that is cut off is known within `LIMIT` seconds; a slow one is not mistaken for it: it is the node's kernel
that accepts a connection, however busy its processes are.
"""

from __future__ import annotations

import enum
import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kproxy.cluster.controllers.node_proxy import HEALTH_PORT

INTERVAL: Final = 0.3
"""Seconds between two looks at a target."""
DOUBT: Final = 0.1
"""Seconds until a target that did not answer is asked again."""
CONNECT: Final = 0.45
"""Seconds that a connection may take. Below the first retransmission of a SYN, which comes after a second."""
ANSWER: Final = 5.0
"""Seconds that a health page may take while its node is there."""
FAILURES: Final = 2
"""Misses in a row that make a target unhealthy. A page that answers 503 makes it so at once: it is certain."""
PORT_FAILURES: Final = 3
"""The same for a bare node port, where the connection may have met one bad pod of several."""
LIMIT: Final = INTERVAL + FAILURES * (CONNECT + DOUBT) + CONNECT
"""Seconds in which a cut is noticed; the last part is the answer that was being waited for when it came."""


@dataclass(frozen=True)
class Target:
    """One thing to ask of a node.

    Attributes:
        path: of the page that must answer 200; empty: a TCP connection will do.
    """

    address: str
    port: int
    path: str = ""


class Answer(enum.Enum):
    """What came of asking once.

    Attributes:
        NOTHING: nobody listens, or what listens broke off.
        CUT_OFF: not even a refusal came.
    """

    YES = enum.auto()
    NO = enum.auto()
    NOTHING = enum.auto()
    CUT_OFF = enum.auto()


@dataclass
class _Seen:
    is_healthy: bool | None = None
    failures: int = 0


class Checker:
    """Watches targets, each node's in a thread of its own.

    Args:
        on_change: told from those threads that a target became healthy or unhealthy, or said its first word.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Condition()
        self._seen: dict[Target, _Seen] = {}
        self._threads: set[str] = set()

    def watch(self, targets: Collection[Target]) -> None:
        """Watches these targets and no others."""
        with self._lock:
            for target in self._seen.keys() - set(targets):
                del self._seen[target]
            for target in targets:
                self._seen.setdefault(target, _Seen())
            for address in {target.address for target in self._seen} - self._threads:
                self._threads.add(address)
                threading.Thread(target=self._run, args=(address,), name=f"check-{address}", daemon=True).start()
            self._lock.notify_all()

    def is_healthy(self, target: Target) -> bool | None:
        """What the last answers said; None before there was any."""
        with self._lock:
            seen = self._seen.get(target)
            return seen.is_healthy if seen else None

    def _run(self, address: str) -> None:
        while targets := self._due(address):
            is_certain = [self._take(*answered) for answered in _ask_all(address, targets)]
            with self._lock:
                self._lock.wait(INTERVAL if all(is_certain) else DOUBT)

    def _due(self, address: str) -> list[Target]:
        """The node's targets; none ends its thread."""
        with self._lock:
            # Pages first: their silence says more.
            found = sorted((one for one in self._seen if one.address == address), key=lambda one: not one.path)
            if not found:
                self._threads.discard(address)
            return found

    def _take(self, target: Target, answer: Answer) -> bool:
        """Takes an answer in; false when the target has to be asked again soon to be sure."""
        failures = PORT_FAILURES if not target.path and answer is not Answer.CUT_OFF else FAILURES
        with self._lock:
            seen = self._seen.get(target)
            if seen is None:
                return True
            before = seen.is_healthy
            is_answered = answer in (Answer.YES, Answer.NO)
            seen.failures = 0 if is_answered else seen.failures + 1
            is_certain = is_answered or seen.failures >= failures
            if is_certain:
                seen.is_healthy = answer is Answer.YES
            has_changed = seen.is_healthy is not before
        if has_changed:
            self._on_change()
        return is_certain


def _ask_all(address: str, targets: Iterable[Target]) -> Iterator[tuple[Target, Answer]]:
    """What a node says to each question; once it is known to be cut off, it is not asked any more."""
    is_cut_off = False
    for target in targets:
        answer = Answer.CUT_OFF if is_cut_off else ask(target)
        if answer is Answer.CUT_OFF and not target.path and not is_cut_off and is_reachable(address):
            answer = Answer.NOTHING  # the pod behind the node port is silent, and perhaps on another node
        is_cut_off = answer is Answer.CUT_OFF
        yield target, answer


def is_reachable(address: str) -> bool:
    """Whether a node's kernel takes or refuses a connection; a node that is cut off does neither."""
    try:
        socket.create_connection((address, HEALTH_PORT), timeout=CONNECT).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def ask(target: Target) -> Answer:
    """What a node says."""
    try:
        with socket.create_connection((target.address, target.port), timeout=CONNECT) as sock:
            return _read_page(sock, target) if target.path else Answer.YES
    except ConnectionError:
        return Answer.NOTHING
    except OSError:
        return Answer.CUT_OFF


def _read_page(sock: socket.socket, target: Target) -> Answer:
    connection = http.client.HTTPConnection(target.address, target.port)
    connection.sock = sock
    try:
        connection.request("GET", target.path, headers={"Connection": "close"})
        deadline = time.monotonic() + ANSWER
        while not select.select([sock], [], [], CONNECT)[0]:
            if time.monotonic() > deadline:
                return Answer.NOTHING
            if not is_reachable(target.address):
                return Answer.CUT_OFF  # after it had taken the question
        return Answer.YES if connection.getresponse().status == http.client.OK else Answer.NO
    except (OSError, http.client.HTTPException):
        return Answer.NOTHING
