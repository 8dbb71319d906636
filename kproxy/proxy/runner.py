"""When to sync: as soon as something changed, yet not too often, again after a failure, and now and then anyway.

Law: pure; time is an argument, in seconds of any clock that never goes back (kube-proxy: pkg/proxy/runner).
"""

from __future__ import annotations

import math

MAX_INTERVAL = 3600.0
"""Seconds after which a sync happens without any trigger."""


class Runner:
    """The schedule of one proxier.

    Args:
        min_interval: seconds between the end of a run and the start of the next.
        retry_interval: seconds after which a failed run is repeated, unless triggered earlier.
        max_interval: seconds after which a run is due without any trigger.
    """

    def __init__(self, min_interval: float, retry_interval: float, max_interval: float = MAX_INTERVAL) -> None:
        self._min = min_interval
        self._retry = min(retry_interval, max_interval)
        self._max = max_interval
        self._wanted_since: float | None = None
        self._ended: float | None = None
        self._has_failed = False

    @property
    def wanted_since(self) -> float | None:
        """When the oldest trigger came that no successful run has answered; None when there is none."""
        return self._wanted_since

    @property
    def is_settled(self) -> bool:
        """Whether the last run succeeded and nothing was triggered since."""
        return self._ended is not None and self._wanted_since is None

    def trigger(self, now: float) -> None:
        """Ask for a run; further triggers until then change nothing."""
        if self._wanted_since is None or self._has_failed:
            self._wanted_since = now if self._wanted_since is None else self._wanted_since
            self._has_failed = False

    def due(self) -> float:
        """When the next run is due; infinite before the first trigger."""
        if self._ended is None:
            return math.inf if self._wanted_since is None else self._wanted_since
        if self._has_failed:
            return self._ended + self._retry
        if self._wanted_since is not None:
            return max(self._wanted_since, self._ended + self._min)
        return self._ended + self._max

    def finish(self, now: float, *, succeeded: bool) -> None:
        """A run has just ended; after a failure the triggers that it should have answered still stand."""
        self._ended = now
        self._has_failed = not succeeded
        if succeeded:
            self._wanted_since = None
        elif self._wanted_since is None:
            self._wanted_since = now
