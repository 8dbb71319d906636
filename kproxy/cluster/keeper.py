"""Keeps processes running: found again by their record, started when there is none, and again when one has ended.

Law: what is kept outlives its keeper; whoever keeps it next goes on where the last one was.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kproxy.cluster.pod_processes import reap, recorded
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.process import Process

_LOG = logging.getLogger(__name__)
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before a process that died is started again: doubled each time, from the first again after a longer life."""
STOP_LATENCY: Final = 0.5
"""Seconds until an idle keeper looks at its stop event."""


class Kept:
    """One process that is to run.

    Args:
        role: what it is, for the record.
        words: what it is, for people: `the proxy of node1`.
        start: starts it and records it under `role`; NetnsError and OSError mean that it is tried again.
    """

    def __init__(self, role: str, words: str, start: Callable[[], Process]) -> None:
        self.role = role
        self.words = words
        self.start = start
        self.process: Process | None = None
        self.watched = -1
        self.started = 0.0
        self.pause = FIRST_PAUSE
        self.due: float | None = 0.0


class Keeper:
    """Keeps a few processes running, in the thread that calls `run`.

    Args:
        journal: where they are recorded.
        prefix: what the roles of all of them begin with.
        kept: the processes.
    """

    def __init__(self, journal: Journal, prefix: str, kept: Iterable[Kept]) -> None:
        self._journal = journal
        self._prefix = prefix
        self._selector = selectors.DefaultSelector()
        self.kept: Sequence[Kept] = tuple(kept)

    def start(self) -> None:
        """Ensures that every process has been started, or found again."""
        alive = recorded(self._journal, self._prefix)
        for one in self.kept:
            if found := alive.get(one.role):
                self._watch(one, found[0])
            else:
                self._start(one)

    def run(self, stop: threading.Event) -> None:
        """Starts those that die again, until `stop` is set; the processes live on."""
        while not stop.is_set():
            for key, _ in self._selector.select(self._next_due()):
                key.data()
            for one in self.kept:
                if one.due is not None and one.due <= time.monotonic():
                    self._start(one)

    def _next_due(self) -> float:
        times = [one.due for one in self.kept if one.due is not None]
        return min(STOP_LATENCY, max(0.0, min(times, default=math.inf) - time.monotonic()))

    def _start(self, one: Kept) -> None:
        one.due = None
        try:
            started = one.start()
        except (NetnsError, OSError) as error:
            _LOG.warning("%s cannot be started: %s", one.words, error)
            self._try_again(one)
            return
        one.started = time.monotonic()
        self._watch(one, started)

    def _watch(self, one: Kept, found: Process) -> None:
        one.due = None
        one.process = found
        try:
            one.watched = process.open_pidfd(found)
        except ProcessLookupError:
            self._ended(one)
            return
        self._selector.register(one.watched, selectors.EVENT_READ, lambda: self._ended(one))

    def _ended(self, one: Kept) -> None:
        if one.watched >= 0:
            self._selector.unregister(one.watched)
            os.close(one.watched)
            one.watched = -1
        if one.process is not None:
            reap(one.process)
            process.forget(one.process, self._journal)
            one.process = None
        _LOG.warning("%s has ended; it is started again", one.words)
        self._try_again(one)

    def _try_again(self, one: Kept) -> None:
        if time.monotonic() - one.started > LONGEST_PAUSE:
            one.pause = FIRST_PAUSE
        one.due = time.monotonic() + one.pause
        one.pause = min(2 * one.pause, LONGEST_PAUSE)
