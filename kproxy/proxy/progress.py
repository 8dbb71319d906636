"""How far this node is programmed, for whoever waits for it."""

from __future__ import annotations

import threading
from typing import Any


class Progress:
    """What the last successful sync brought into the kernel; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._resource_version = 0
        self._syncs = 0
        self._full_syncs = 0
        self._last_error = ""

    def reached(self, resource_version: int) -> None:
        """The kernel now holds everything up to a resourceVersion."""
        with self._changed:
            if resource_version != self._resource_version:
                self._resource_version = resource_version
                self._changed.notify_all()

    def synced(self, *, is_full: bool) -> None:
        """One proxier's sync succeeded."""
        with self._changed:
            self._syncs += 1
            self._full_syncs += is_full
            self._last_error = ""

    def failed(self, error: str) -> None:
        """One proxier's sync failed."""
        with self._changed:
            self._last_error = error

    def wait_for(self, resource_version: int, seconds: float) -> bool:
        """Wait until the kernel holds a resourceVersion; False when it does not within ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: self._resource_version >= resource_version, timeout=seconds)

    def as_json(self) -> dict[str, Any]:
        """What ``GET /programmed`` answers."""
        with self._changed:
            return {
                "resourceVersion": str(self._resource_version),
                "syncs": self._syncs,
                "fullSyncs": self._full_syncs,
                "lastError": self._last_error,
            }
