"""Logs of containers: one file that is written, one older, and never more than `LOG_LIMIT` bytes of each.

Law: whoever writes holds the file open for appending, so it is emptied, never replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from kproxy.cluster.fork_server import LOG_LIMIT

TURN_AT: Final = LOG_LIMIT * 4 // 5
"""Bytes from which a log is turned over; what is written until somebody looks again still has room."""


def older(log: Path) -> Path:
    """Where the output of the run before is, or the beginning of this one's if that was much."""
    return log.with_name(f"{log.name}.1")


def turn_over(log: Path) -> None:
    """Moves what the log holds aside, in place of what was there; an empty or missing log stays as it is."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size:
            shutil.copyfile(log, older(log))
            older(log).chmod(0o600)
            os.truncate(log, 0)


def is_full(log: Path) -> bool:
    """Whether it is time to turn the log over."""
    try:
        return log.stat().st_size >= TURN_AT
    except OSError:
        return False
