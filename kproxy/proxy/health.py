"""Whether this node's proxy is up to date, and the answers that say so.

``/healthz`` and ``/livez`` are kube-proxy's, to the byte; ``/programmed`` is ours, and tells (or waits) how far the
kernel is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from kproxy.proxy.family import Family
from kproxy.proxy.progress import Progress
from kproxy.proxy.serving import NO_SNIFF, Answer

MAX_WAIT_SECONDS = 300.0

_NEVER = "0001-01-01T00:00:00Z"
"""How Go writes a time that was never set."""


class Health:
    """Which proxiers are up to date; safe to use from any thread (kube-proxy: healthcheck/proxy_health.go).

    A proxier is unhealthy when a change has waited longer than ``timeout`` for a successful sync. One that is idle, or
    that has not synced for the first time yet, is healthy.

    Args:
        timeout: seconds, twice the sync period.
        clock: seconds that never go back.
        wall: nanoseconds since the epoch.
        on_answer: told the path and the status of every answer.
    """

    def __init__(
        self,
        timeout: float,
        clock: Callable[[], float],
        wall: Callable[[], int] = time.time_ns,
        on_answer: Callable[[str, int], None] = lambda _path, _status: None,
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._wall = wall
        self._on_answer = on_answer
        self._lock = threading.Lock()
        self._queued: dict[Family, float] = {}
        self._updated: dict[Family, int] = {}
        self._is_eligible = False

    def queued(self, family: Family, now: float) -> None:
        """A change waits for a sync."""
        with self._lock:
            self._queued.setdefault(family, now)

    def updated(self, family: Family) -> None:
        """A sync succeeded."""
        with self._lock:
            self._updated[family] = self._wall()
            self._queued.pop(family, None)

    def node_is_eligible(self, is_eligible: bool) -> None:
        """Whether load balancers may send traffic to this node."""
        with self._lock:
            self._is_eligible = is_eligible

    def is_healthy(self) -> bool:
        """Whether every proxier is up to date (what /livez says)."""
        with self._lock:
            return all(self._is_up_to_date(family) for family in self._updated)

    def livez(self) -> Answer:
        """The answer to /livez."""
        return self._answer("/livez", with_eligibility=False)

    def healthz(self) -> Answer:
        """The answer to /healthz: /livez, and the node may get traffic."""
        return self._answer("/healthz", with_eligibility=True)

    def _is_up_to_date(self, family: Family) -> bool:
        queued = self._queued.get(family)
        return queued is None or self._clock() - queued < self._timeout

    def _answer(self, path: str, *, with_eligibility: bool) -> Answer:
        with self._lock:
            today = self._wall()
            status = {
                family.value: {"lastUpdated": rfc3339(self._updated[family]), "healthy": self._is_up_to_date(family)}
                for family in Family
                if family in self._updated
            }
            is_eligible = self._is_eligible
            last = max(self._updated.values(), default=None)
        is_healthy = all(proxier["healthy"] for proxier in status.values())
        is_ok = is_healthy and (is_eligible or not with_eligibility)
        last = today if is_ok else last
        body: dict[str, Any] = {
            "lastUpdated": _NEVER if last is None else rfc3339(last),
            "currentTime": rfc3339(today),
            **({"nodeEligible": is_eligible} if with_eligibility else {}),
            "healthy": is_healthy,
            **({"status": status} if status else {}),
        }
        code = 200 if is_ok else 503
        self._on_answer(path, code)
        return Answer(code, json.dumps(body, separators=(",", ":")), NO_SNIFF)


def rfc3339(nanoseconds: int) -> str:
    """A time since the epoch in UTC as Go writes it: with nanoseconds, without trailing zeros."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def programmed(progress: Progress, query: str) -> Answer:
    """The answer to /programmed.

    Args:
        progress: how far the kernel is.
        query: ``resourceVersion=N`` waits until the kernel holds N, at most ``timeoutSeconds`` (default 30).
    """
    given = parse_qs(query)
    try:
        wanted = int(given.get("resourceVersion", ["0"])[0])
        seconds = float(given.get("timeoutSeconds", ["30"])[0])
    except ValueError:
        return Answer(400, json.dumps({"error": "resourceVersion and timeoutSeconds have to be numbers"}))
    is_there = progress.wait_for(wanted, min(max(seconds, 0.0), MAX_WAIT_SECONDS))
    return Answer(200 if is_there else 503, json.dumps(progress.as_json()))
