"""Control groups: so many processes and so much memory for a group of processes, and no more.

Both of the kernel's interfaces: one hierarchy for everything (version 2), and one a controller (version 1), which hosts
have that mount it for somebody else's sake. Nothing above our own groups is written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from netns.errors import NetnsError
from netns.journal import Journal

_MOUNTS = Path("/proc/self/mountinfo")
_CONTROLLERS = ("pids", "memory")

# How long the processes of a group may take to disappear once they have been killed.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Hierarchies:
    """Where groups are made.

    Attributes:
        pids: the folder whose groups limit processes.
        memory: that whose groups limit memory; the same one in version 2.
    """

    pids: Path
    memory: Path

    @property
    def is_unified(self) -> bool:
        """Whether this is version 2."""
        return self.pids == self.memory

    @property
    def roots(self) -> tuple[Path, ...]:
        """Each folder once."""
        return tuple(dict.fromkeys((self.pids, self.memory)))


@dataclass(frozen=True)
class Group:
    """One group, of the same name in each hierarchy.

    Attributes:
        hierarchies: where.
        name: its path below them.
    """

    hierarchies: Hierarchies
    name: str

    @property
    def folders(self) -> tuple[Path, ...]:
        """Its folder in each hierarchy."""
        return tuple(root / self.name for root in self.hierarchies.roots)

    @property
    def doors(self) -> tuple[str, ...]:
        """Files by which a process gets into the group, and its children with it (see `libc.join_groups`)."""
        return tuple(str(folder / "cgroup.procs") for folder in self.folders)

    def limit(self, processes: int, memory: int) -> None:
        """Ensures that the group is there and has these limits.

        Args:
            processes: threads count as processes.
            memory: bytes, with what it keeps in tmpfs; none of it is swapped out where the kernel can see to that.

        Raises:
            OSError: the kernel refused.
        """
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
        (self.hierarchies.pids / self.name / "pids.max").write_text(str(processes), encoding="ascii")
        place = self.hierarchies.memory / self.name
        if self.hierarchies.is_unified:
            (place / "memory.max").write_text(str(memory), encoding="ascii")
            swap, limit = place / "memory.swap.max", 0
        else:
            (place / "memory.limit_in_bytes").write_text(str(memory), encoding="ascii")
            swap, limit = place / "memory.memsw.limit_in_bytes", memory
        with contextlib.suppress(OSError):  # a kernel that does not count swap
            if swap.exists():
                swap.write_text(str(limit), encoding="ascii")

    def killed_for_memory(self) -> int:
        """How many processes of the group the kernel has killed because it had no more memory."""
        name = "memory.events" if self.hierarchies.is_unified else "memory.oom_control"
        try:
            lines = (self.hierarchies.memory / self.name / name).read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def remove(self) -> bool:
        """Removes the group if no process is left in it; whether it is gone."""
        gone = [_remove(folder) for folder in self.folders]
        return all(gone)


def find() -> Hierarchies:
    """Where groups can be made on this host.

    Raises:
        NetnsError: nowhere, and why.
    """
    unified: Path | None = None
    older: dict[str, Path] = {}
    for place, kind, options in _mounts():
        if kind == "cgroup2":
            unified = place
        elif kind == "cgroup":
            older |= {name: place for name in _CONTROLLERS if name in options}
    if set(older) == set(_CONTROLLERS):
        return Hierarchies(older["pids"], older["memory"])
    if unified is None:
        raise NetnsError("no control groups are mounted", call=f"read {_MOUNTS}")
    enabled = (unified / "cgroup.subtree_control").read_text(encoding="ascii").split()
    missing = [name for name in _CONTROLLERS if name not in enabled]
    if missing:
        what = " and ".join(missing)
        raise NetnsError(f"{what} not enabled for groups below {unified}", call="read cgroup.subtree_control")
    return Hierarchies(unified, unified)


def make_root(hierarchies: Hierarchies, name: str, journal: Journal) -> None:
    """Ensures that there is a group that others are made in, on record first.

    Raises:
        NetnsError: one of that name is there that is not of this record.
        OSError: the kernel refused.
    """
    for folder in Group(hierarchies, name).folders:
        journal.cgroup(folder)
        folder.mkdir(exist_ok=True)
        journal.step(f"control group {folder}")
        if hierarchies.is_unified:
            wanted = " ".join(f"+{controller}" for controller in _CONTROLLERS)
            (folder / "cgroup.subtree_control").write_text(wanted, encoding="ascii")


def members(hierarchies: Hierarchies, name: str) -> list[str]:
    """The names of the groups in a group."""
    found: set[str] = set()
    for folder in Group(hierarchies, name).folders:
        with contextlib.suppress(OSError):
            found |= {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    return sorted(found)


def remove_tree(folder: Path) -> None:
    """Removes a group and all below it, whose processes have been killed.

    Raises:
        OSError: a process is left after some seconds.
    """
    deadline = time.monotonic() + _PATIENCE
    for place in _bottom_up(folder):
        while not _remove(place):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(place))
            time.sleep(0.01)


def _bottom_up(folder: Path) -> Sequence[Path]:
    return [Path(place) for place, _, _ in os.walk(folder, topdown=False)]


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _mounts() -> Iterator[tuple[Path, str, Sequence[str]]]:
    """Mount point, file system and its options of each mount."""
    for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")[:3]
        yield Path(before.split(" ")[4]), kind, options.split(",")
