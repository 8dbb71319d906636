"""The loop that every controller shares: names of what has changed, each brought to what it should be.

Law: a key is worked on by one thread at a time and looked at again when it changed meanwhile; a failure is tried again
at growing intervals; a key that took long rests in proportion, so that what grows with the cluster is done less often,
not more; nothing is decided here.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from kproxy.client import Client
from kproxy.cluster.controllers.informer import Informers
from kproxy.errors import ApiError, Conflict, KproxyError, NotFound

_FIRST_RETRY, _LONGEST_RETRY = 0.005, 10.0  # seconds; client-go's workqueue begins at 5 ms too
_REST = 4.0
"""A key rests so many times as long as the work on it took: it gets a fifth of the time at most."""
_REMEMBERED_RESTS = 1000
_STOP_LATENCY = 0.5  # seconds until an idle queue looks at its stop event
_LOG = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys that wait for work, each at most once, in the order in which they came."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._ready: dict[K, None] = {}
        self._later: list[tuple[float, int, K]] = []
        self._failures: dict[K, int] = {}
        self._resting: dict[K, float] = {}
        self._awoken: set[K] = set()
        self._count = 0

    def add(self, key: K) -> None:
        """Has the key worked on as soon as possible; one that rests when its rest is over."""
        with self._condition:
            until = self._resting.get(key, 0.0)
            if until <= time.monotonic():
                self._resting.pop(key, None)
                self._ready[key] = None
            elif key not in self._awoken:
                self._awoken.add(key)
                self._count += 1
                heapq.heappush(self._later, (until, self._count, key))
            self._condition.notify()

    def rest(self, key: K, seconds: float) -> None:
        """Lets the key rest: if it is added meanwhile, it is worked on after that time."""
        with self._condition:
            self._resting[key] = time.monotonic() + seconds
            if len(self._resting) > _REMEMBERED_RESTS:
                now = time.monotonic()
                self._resting = {one: until for one, until in self._resting.items() if until > now}

    def add_later(self, key: K, seconds: float) -> None:
        """Has the key worked on after a while."""
        with self._condition:
            self._count += 1
            heapq.heappush(self._later, (time.monotonic() + seconds, self._count, key))
            self._condition.notify()

    def retry(self, key: K) -> None:
        """Has the key worked on again, the later the more often it has failed."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_later(key, min(_FIRST_RETRY * 2**failures, _LONGEST_RETRY))

    def succeed(self, key: K) -> None:
        """Forgets the failures of the key."""
        self._failures.pop(key, None)

    def wake(self) -> None:
        """Has a waiting ``take`` look at its stop event now."""
        with self._condition:
            self._condition.notify_all()

    def take(self, stop: threading.Event) -> K | None:
        """The next key; None when ``stop`` is set."""
        with self._condition:
            while not stop.is_set():
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    key = heapq.heappop(self._later)[2]
                    self._awoken.discard(key)
                    self._ready[key] = None
                if self._ready:
                    key = next(iter(self._ready))
                    del self._ready[key]
                    return key
                wait = min(self._later[0][0] - now, _STOP_LATENCY) if self._later else _STOP_LATENCY
                self._condition.wait(wait)
        return None


class Controller(ABC, Generic[K]):
    """Brings the cluster to what it should be, one key at a time.

    A subclass asks for its informers in its constructor, adds keys from their handlers, and reconciles a key.

    Args:
        client: for writes.
        informers: for reads.
    """

    def __init__(self, client: Client, informers: Informers) -> None:
        self.client = client
        self.informers = informers
        self.queue: WorkQueue[K] = WorkQueue()

    @abstractmethod
    def reconcile(self, key: K) -> None:
        """Makes what the key stands for so.

        Raises:
            KproxyError: it could not be done now; it is tried again.
        """

    def initial_keys(self) -> Iterable[K]:
        """Keys to begin with beside those that the informers' handlers add."""
        return ()

    def run(self, stop: threading.Event) -> None:
        """Works until ``stop`` is set, once the informers have their first full lists."""
        if not self.informers.wait_until_synced(stop):
            return
        for key in self.initial_keys():
            self.queue.add(key)
        while (key_or_none := self.queue.take(stop)) is not None:
            began = time.monotonic()
            self._work_on(key_or_none)
            self.queue.rest(key_or_none, _REST * (time.monotonic() - began))

    def _work_on(self, key: K) -> None:
        try:
            self.reconcile(key)
        except Conflict:
            self.queue.retry(key)  # the object is newer than what we have seen: the watch will tell
        except (ApiError, KproxyError) as error:
            level = logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
            _LOG.log(level, "%s %s: %s", type(self).__name__, key, error)
            self.queue.retry(key)
        except Exception:  # noqa: BLE001 - a bug in one object's handling does not stop the others'
            _LOG.exception("%s %s", type(self).__name__, key)
            self.queue.retry(key)
        else:
            self.queue.succeed(key)
