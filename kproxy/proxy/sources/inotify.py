"""Hears which files of a directory have just been put in place, written to their end, or removed.

Python has no inotify of its own, so this calls libc. What it cannot hear (another machine's writes to a network file
system, the far end of a link) a look at the directory finds.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_DELETE = 0x200
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

_AT_REST = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE
_HEAD = struct.Struct("iIII")
_BUFFER = 1 << 16


class DirectoryWatch:
    """Watches one directory, not what lies below it.

    Raises:
        OSError: the directory is not there, or the kernel has no watch to give.
    """

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _AT_REST | IN_ONLYDIR) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(directory))
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self.is_lost = False
        """The directory itself has gone: nothing will be heard any more."""

    def wait(self, seconds: float) -> list[str]:
        """Names of files that have come to rest or gone, each once; empty when nothing happened for ``seconds``."""
        if not self._poll.poll(seconds * 1000):
            return []
        heard = os.read(self._fd, _BUFFER)
        names: dict[str, None] = {}
        position = 0
        while position < len(heard):
            _, mask, _, length = _HEAD.unpack_from(heard, position)
            position += _HEAD.size + length
            self.is_lost |= bool(mask & IN_IGNORED)
            if length:
                names[os.fsdecode(heard[position - length : position].rstrip(b"\0"))] = None
        return list(names)

    def close(self) -> None:
        """Stop listening; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
