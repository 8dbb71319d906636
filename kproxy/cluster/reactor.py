"""One thread that waits for descriptors, for moments, and for what other threads hand it.

Law: everything runs in the thread that calls `turn`, one after the other; `post` alone may be called from elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

Action = Callable[[], None]


class HasFileno(Protocol):
    """A socket or file."""

    def fileno(self) -> int:
        """Its descriptor."""


class Reactor:
    """Descriptors with their readers, timers, and an inbox."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._inbox: deque[Action] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._bell, selectors.EVENT_READ, lambda: os.eventfd_read(self._bell))

    def watch(self, source: int | HasFileno, reader: Action) -> None:
        """Calls `reader` whenever there is something to be read, until `forget`."""
        self._selector.register(source, selectors.EVENT_READ, reader)

    def forget(self, source: int | HasFileno) -> None:
        """Stops watching; to be called before the descriptor is closed."""
        self._selector.unregister(source)

    def later(self, seconds: float, action: Action) -> None:
        """Calls `action` once, after that time."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def post(self, action: Action) -> None:
        """Has `action` called soon; from whatever thread."""
        self._inbox.append(action)
        os.eventfd_write(self._bell, 1)

    def turn(self) -> None:
        """Waits until there is something to do, and does all that there is.

        An action that fails ends the turn; the others keep their place.
        """
        for key, _ in self._selector.select(self._until_next_timer()):
            key.data()
        while self._inbox:
            self._inbox.popleft()()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _until_next_timer(self) -> float | None:
        if self._inbox:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
