"""What Python 3.11 has no function for: setns, unshare, mount, umount2; and what a process sets itself.

That is the way into a cgroup, and how many files it may have open.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

OPEN_FILES = 1 << 16
"""No more: there are programs that close all that they may have open, one by one."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Moves the calling thread into the namespace that `fd` refers to.

    Raises:
        OSError: the kernel refused.
    """
    _check(_LIBC.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Gives the calling thread namespaces of its own.

    Raises:
        OSError: the kernel refused.
    """
    _check(_LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mounts `source` at `target`, without options of the file system's own.

    Raises:
        OSError: the kernel refused.
    """
    encoded = None if kind is None else kind.encode()
    _check(_LIBC.mount(os.fsencode(source), os.fsencode(target), encoded, flags, None), f"mount {target}")


def unmount(target: str) -> None:
    """Detaches the topmost mount at `target` now; whoever still uses it keeps it until they let go.

    Raises:
        OSError: nothing is mounted there (EINVAL), or the kernel refused.
    """
    _check(_LIBC.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW), f"umount2 {target}")


def join_groups(doors: Iterable[str]) -> None:
    """Puts this process into control groups (see `cgroup.Group.doors`); for a child before it drops its rights.

    Raises:
        OSError: the kernel refused.
    """
    for door in doors:
        fd = os.open(door, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


def allow_open_files() -> None:
    """Lets this process and its children have `OPEN_FILES` open, or what root has set as the most; 1024 is usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, OPEN_FILES), most))
