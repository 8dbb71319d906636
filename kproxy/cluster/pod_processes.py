"""The processes of pods at arm's length: asking the fork server, talking to an echo server, signalling.

Law: whoever restarts the control plane finds all of this again: an echo server by its control socket, a command by the
record of its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kproxy.cluster import sandbox
from kproxy.cluster.echo import CONTROL_MESSAGE, Port
from kproxy.cluster.fork_server import MESSAGE, Request
from kproxy.cluster.layout import Layout, python, python_environment
from kproxy.errors import HostError
from netns import process
from netns.journal import Journal
from netns.namespace import Namespace
from netns.process import Process

PATIENCE: Final = 10.0
"""Seconds that the fork server gets for one answer."""
_CREDENTIALS: Final = struct.Struct("3i")
ROLE: Final = "fork-server"
ECHO_SOCKET: Final = "echo.sock"
"""Name of an echo server's control socket in its pod's folder."""


class ForkServer:
    """The process that echo servers are forked from; started when first needed and again when it has died.

    Args:
        layout: where its log goes.
        journal: where it is recorded.
    """

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self._layout = layout
        self._journal = journal
        self._requests: socket.socket | None = None
        self._process: Process | None = None

    @property
    def process(self) -> Process | None:
        """Who it is; None while there is none."""
        if self._process is not None and process.is_alive(self._process):
            return self._process
        return None

    def start(self) -> None:
        """Ensures that it runs.

        Raises:
            NetnsError: it cannot be started.
        """
        if self._requests is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._layout.log(ROLE).open("ab") as log:
            self._process = process.spawn(
                python("kproxy.cluster.fork_server", str(theirs.fileno())),
                env=python_environment(),
                stdout=log.fileno(),
                stderr=log.fileno(),
                pass_fds=[theirs.fileno()],
                journal=self._journal,
                role=ROLE,
            )
        ours.settimeout(PATIENCE)
        self._requests = ours

    def fork(self, request: Request) -> None:
        """Ensures that the echo server runs and can be talked to at `request.control`.

        Raises:
            HostError: the fork server failed twice, or the kernel refused.
        """
        failure = ""
        for _ in range(2):
            try:
                answer = self._ask(request)
            except OSError as error:
                failure = str(error) or type(error).__name__
                self._let_go()
                continue
            if "error" in answer:
                raise HostError(f"the echo server of pod {request.pod} cannot be started", stderr=str(answer["error"]))
            return
        raise HostError("the fork server does not answer", stderr=failure)

    def _ask(self, request: Request) -> dict[str, object]:
        self.start()
        if self._requests is None:
            raise HostError("the fork server does not start")
        self._requests.send(json.dumps(request._asdict()).encode())
        message = self._requests.recv(MESSAGE)
        if not message:
            raise ConnectionResetError("it has ended")
        answer: dict[str, object] = json.loads(message)
        return answer

    def _let_go(self) -> None:
        if self._requests is not None:
            self._requests.close()
        self._requests = None
        if self._process is not None:
            process.kill(self._process, grace=0)
            reap(self._process)
            process.forget(self._process, self._journal)
        self._process = None


@dataclass(frozen=True)
class EchoReport:
    """What an echo server says of itself."""

    process: Process | None
    listening: frozenset[Port]
    failed: tuple[tuple[str, int, str], ...]


class EchoControl:
    """The control plane's end of an echo server's control socket; readable when there is a report, or its end.

    Args:
        path: where the socket is.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.sock.connect(str(path))
            self.sock.setblocking(False)
        except OSError:
            self.sock.close()
            raise

    def tell(self, ports: Iterable[Port]) -> None:
        """Tells the ports to listen on; a report follows. One that has ended is noticed when its end is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(json.dumps({"ports": sorted(ports)}).encode())

    def report(self) -> EchoReport | None:
        """What it has to say; None when it has ended."""
        try:
            message, ancillary, _, _ = self.sock.recvmsg(CONTROL_MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size))
        except ConnectionResetError:
            return None
        if not message:
            return None
        said = json.loads(message)
        pids = [
            _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        return EchoReport(
            process.find(pids[0]) if pids and pids[0] else None,
            frozenset((str(protocol), int(number)) for protocol, number in said["listening"]),
            tuple((str(protocol), int(number), str(why)) for protocol, number, why in said["failed"]),
        )

    def close(self) -> None:
        """Lets go of it; the echo server goes on."""
        self.sock.close()


def echo_process(path: Path) -> Process | None:
    """The echo server behind a control socket, which loses its ports; None when there is none."""
    try:
        control = EchoControl(path)
    except OSError:
        return None
    try:
        control.sock.settimeout(PATIENCE)
        control.tell(())
        report = control.report()
    except OSError:
        return None
    finally:
        control.close()
    return report.process if report is not None else None


def send_signal(processes: Iterable[Process], number: signal.Signals) -> None:
    """Sends a signal to each that still runs."""
    for one in processes:
        try:
            fd = process.open_pidfd(one)
        except ProcessLookupError:
            continue
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        os.close(fd)


def reap(one: Process) -> None:
    """Lets go of a process that has ended, if it is a child of ours."""
    with contextlib.suppress(ChildProcessError):
        process.exit_status(one)


def recorded(journal: Journal, prefix: str) -> dict[str, list[Process]]:
    """All processes on record that still run, newest first, by their roles; only roles that begin with `prefix`."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    found: dict[str, list[Process]] = {}
    for entry in reversed(journal.entries()):
        role = str(entry.details.get("role", ""))
        if entry.kind != "process" or not role.startswith(prefix) or entry.details.get("boot") != boot:
            continue
        one = Process(int(entry.details["pid"]), int(entry.details["start"]))
        if process.is_alive(one):
            found.setdefault(role, []).append(one)
    return found


def kill_strays(
    layout: Layout, journal: Journal, uid: str, places: Iterable[Namespace], *, has_commands: bool = True
) -> None:
    """Ends what a pod's folder and the record tell of: processes that nobody here has started, or that were left.

    Those in namespaces of pods would go with them; on a node's network there are others beside them.

    Args:
        layout: where the folder is.
        journal: the record.
        uid: the pod's.
        places: the network namespaces where its processes may be.
        has_commands: whether it may have others than the echo server: the record, which is long, is read for them.

    Raises:
        NetnsError: one does not end.
    """
    folder = layout.pod(uid)
    known = recorded(journal, f"pod:{uid}:") if has_commands else {}
    outer = [one for found in known.values() for one in found]
    reports = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    inner = [sandbox.inner_process(path, ns) for path in reports for ns in places]
    echo = echo_process(folder / ECHO_SOCKET)
    process.kill_all([one for one in (*outer, *inner, echo) if one is not None], grace=0)
    for one in outer:
        reap(one)
        process.forget(one, journal)
