"""What was made, written down before it is made, so that it can be unmade after `kill -9` at any moment.

The file holds one JSON object a line:

    {"make": "namespace", "key": "/run/x/netns/a", "name": "a"}   about to be made (or more is known about it)
    {"gone": "namespace", "key": "/run/x/netns/a"}                taken down
    {"step": 7, "role": "builder", "what": "namespace a"}         one change to the system (while crashes are tried)

Law: an entry is in the kernel's page cache before the thing is made, so `kill -9` cannot lose it; a reboot takes the
things and the file (below /run) alike. A last line cut short is passed over: what it announced was never made.

`KPROXY_CRASH_AT=ROLE:N` makes the process of that role kill itself right after its N-th step, and every process write
its steps down; `ROLE:0` never strikes and is how a test learns how many steps there are.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netns.errors import NetnsError
from netns.namespace import Namespace

CRASH_AT = "KPROXY_CRASH_AT"

NAMESPACE = "namespace"
PROCESS = "process"
MOUNT = "mount"
FILE = "file"
DIRECTORY = "directory"
TREE = "tree"
CGROUP = "cgroup"

# Bytes: some 5,000 pods made and removed. What is there at once takes far less.
_COMPACT_ABOVE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One thing that was made, or was about to be.

    Attributes:
        kind: one of this module's constants.
        key: its path, or `PID:START` for a process.
        details: what else is known of it.
    """

    kind: str
    key: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The record at `path`, opened for appending; made, with its folder, if missing.

    Several threads and processes may write to one record.

    Args:
        path: the file.
        role: which process this is, for `KPROXY_CRASH_AT`.
    """

    def __init__(self, path: Path, role: str = "control-plane") -> None:
        self.path = path
        self.role = role
        self.steps = 0
        self._crash_at = _crash_step(role)
        self._records_steps = CRASH_AT in os.environ
        self._lock = threading.Lock()
        self._fd = self._open()
        if os.fstat(self._fd).st_size > _COMPACT_ABOVE:
            self._compact()

    def close(self) -> None:
        """Closes the file; the record stays."""
        os.close(self._fd)

    def entries(self) -> tuple[Entry, ...]:
        """What is there as far as the file knows, oldest first; written by whichever process."""
        return tuple(_live(self._lines()))

    def namespace(self, namespace: Namespace, cookie: int = 0) -> None:
        """Says that this namespace is about to be made or, with its cookie (see `namespace.cookie`), is there."""
        line = {"make": NAMESPACE, "key": str(namespace.path), "name": namespace.name}
        self._write({**line, "cookie": cookie, "boot": boot_id()})

    def process(self, pid: int, start_time: int, role: str) -> None:
        """Says that this process is about to run its program."""
        line = {"make": PROCESS, "key": f"{pid}:{start_time}", "pid": pid, "start": start_time}
        self._write({**line, "role": role, "boot": boot_id()})

    def mount(self, path: Path) -> None:
        """Says that something is about to be mounted at `path`."""
        self._write({"make": MOUNT, "key": str(path)})

    def file(self, path: Path) -> None:
        """Says that this file, link or socket is about to be made.

        Raises:
            NetnsError: it is there already and is not of this record: it would be deleted one day.
        """
        self._write_path(FILE, path)

    def directory(self, path: Path) -> None:
        """Says that this folder is about to be made; it is removed if empty by then.

        Raises:
            NetnsError: it is there already and is not of this record.
        """
        self._write_path(DIRECTORY, path)

    def tree(self, path: Path) -> None:
        """Says that this folder is about to be made; it is removed with all it holds, but never across a mount.

        Raises:
            NetnsError: it is there already and is not of this record.
        """
        self._write_path(TREE, path)

    def cgroup(self, path: Path) -> None:
        """Says that this control group is about to be made; it is removed with all groups below it.

        Raises:
            NetnsError: it is there already and is not of this record.
        """
        self._write_path(CGROUP, path)

    def gone(self, kind: str, key: str) -> None:
        """Says that this thing has been taken down."""
        self._write({"gone": kind, "key": key})

    def step(self, what: str) -> None:
        """Counts one change to the system, just made; the place where `KPROXY_CRASH_AT` strikes."""
        with self._lock:
            self.steps += 1
            number = self.steps
        if self._records_steps:
            self._write({"step": number, "role": self.role, "what": what})
        if number == self._crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def recorded_steps(self, role: str) -> tuple[str, ...]:
        """What each step of `role` was, in order, as far as the file knows (see `KPROXY_CRASH_AT`)."""
        return tuple(str(line["what"]) for line in self._lines() if "step" in line and line.get("role") == role)

    def _compact(self) -> None:
        """Rewrites the file with only what is still there, at once or not at all."""
        with self._lock:
            fd = self._locked()
            lines = list(self._lines())
            kept: list[Mapping[str, Any]] = [
                {"make": entry.kind, "key": entry.key, **entry.details} for entry in _live(lines)
            ]
            kept += [line for line in lines if "step" in line]
            fresh = self._scratch_path()
            fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            fresh.replace(self.path)
            os.close(fd)  # and with it the lock; whoever waited for it sees that the file was replaced
            self._fd = self._open()

    def delete(self) -> None:
        """Removes the file itself: nothing that it recorded is left."""
        self._scratch_path().unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _scratch_path(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _write_path(self, kind: str, path: Path) -> None:
        known = any(entry.kind == kind and entry.key == str(path) for entry in self.entries())
        if not known and os.path.lexists(path):
            raise NetnsError(f"{path} is there already and was not made by us", call=f"lstat {path}")
        if not known:
            self._write({"make": kind, "key": str(path)})

    def _open(self) -> int:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # a line cut short must not swallow the next one
        return fd

    def _locked(self) -> int:
        """The file's descriptor, locked; opened again if another process replaced the file meanwhile."""
        while True:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.fstat(self._fd).st_nlink:
                return self._fd
            os.close(self._fd)
            self._fd = self._open()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            fd = self._locked()
            try:
                written = os.write(fd, data)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        if written != len(data):
            raise NetnsError(f"the record {self.path} cannot grow: is the disk full?", call=f"write {self.path}")

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue  # cut short: what it announced was never made
            if isinstance(value, dict):
                yield value


def boot_id() -> str:
    """Names the time since the kernel was started: process ids, start times and cookies mean nothing beyond it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _live(lines: Iterable[Mapping[str, Any]]) -> Iterator[Entry]:
    live: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        if "make" in line:
            details = {name: value for name, value in line.items() if name not in ("make", "key")}
            live.setdefault((line["make"], line["key"]), {}).update(details)
        elif "gone" in line:
            live.pop((line["gone"], line["key"]), None)
    return (Entry(kind, key, details) for (kind, key), details in live.items())


def _crash_step(role: str) -> int:
    wanted, _, number = os.environ.get(CRASH_AT, "").rpartition(":")
    return int(number) if wanted == role and number.isdigit() else 0
