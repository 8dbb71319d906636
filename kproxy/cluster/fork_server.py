"""The process that echo servers are forked from, so that each starts in a few milliseconds and shares its memory.

Run as `python -m kproxy.cluster.fork_server FD`; FD is a SEQPACKET socket whose other end the control plane holds.
One request a message, one answer each (`Request`); it ends with its last client. Its children live on: they are found
by their network namespace, and through their control sockets by whoever comes next.

A child has mount, PID, UTS and IPC namespaces of its own beside the pod's network namespace, an empty read-only root
folder, no capability, and no way to get one.

Law: few imports, one thread, no state; what it is asked to make it has not to remember.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from kproxy.cluster import echo
from netns import libc

POD_UID: Final = 64999
"""Who pods run as; nobody has an account of this number (Debian policy 9.2.2 reserves 60000 to 64999)."""
LOG_LIMIT: Final = 10 * 1024 * 1024
"""Bytes of one log file; beside the one that is written there is at most one older (see `logs`)."""
MESSAGE: Final = 64 * 1024

_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWPID: Final = 0x20000000
_MS_RDONLY: Final = 0x1
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_NOEXEC: Final = 0x8
_MS_REMOUNT: Final = 0x20
_MS_PRIVATE: Final = 0x40000
_PR_SET_NO_NEW_PRIVS: Final = 38
_PIVOT_ROOT: Final = {"x86_64": 155}.get(platform.machine(), 41)
"""Number of the system call, which glibc has no function for; 41 on every architecture with the generic table."""

_LIBC = ctypes.CDLL(None, use_errno=True)


class Request(NamedTuple):
    """One echo server to be forked.

    Attributes:
        netns: path of the network namespace to enter.
        control: path at which its control socket is made.
        log: path of the file its lines are appended to.
        scratch: an existing folder; the child mounts its empty root there, seen by itself alone.
        hostname: what the child's UTS namespace is called.
        groups: the doors of its control groups (see `netns.cgroup.Group.doors`).
    """

    netns: str
    control: str
    log: str
    scratch: str
    hostname: str
    pod: str
    namespace: str
    node: str
    groups: tuple[str, ...] = ()


def main() -> None:
    """Serves requests until the other end of the socket is closed."""
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        serve(requests)


def serve(requests: socket.socket) -> None:
    """Answers each request with `{"pid": N}`, or `{"error": "..."}`, once its control socket is there."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are watched by pidfd, from elsewhere
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    gc.collect()
    gc.freeze()
    while message := requests.recv(MESSAGE):
        try:
            answer: dict[str, object] = {"pid": _fork(Request(**json.loads(message)), own_pid_namespace)}
        except OSError as error:
            answer = {"error": str(error)}
        requests.send(json.dumps(answer).encode())


def _fork(request: Request, own_pid_namespace: int) -> int:
    """The process of a new echo server.

    The control socket is made here, before the fork: whoever has the answer can connect.

    Raises:
        OSError: the kernel refused; nothing was forked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        Path(request.control).unlink(missing_ok=True)
        control.bind(request.control)
        control.listen(8)
        libc.unshare(_CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                _become_pod(request, control)
            return pid
        finally:
            # Back, so that the next unshare is allowed: a process may be one level away from its own PID namespace.
            libc.setns(own_pid_namespace, _CLONE_NEWPID)


def _become_pod(request: Request, control: socket.socket) -> NoReturn:
    """The child's whole life; it never returns into the server."""
    status = 1
    try:
        server = echo.EchoServer(echo.Identity(request.pod, request.namespace, request.node), enclose(request, control))
        server.run()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the last stop: what escapes here would go on as a second fork server
        sys.stderr.write(f"echo server: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def enclose(request: Request, control: socket.socket) -> socket.socket:
    """The control socket, in a process that is in its pod, sees nothing of the host, and can do nothing but serve.

    Raises:
        OSError: the kernel refused a step.
    """
    os.setsid()
    libc.join_groups(request.groups)
    _redirect(request.log)
    os.dup2(control.detach(), 3)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    namespace = os.open(request.netns, os.O_RDONLY | os.O_CLOEXEC)
    libc.setns(namespace, libc.CLONE_NEWNET)
    os.close(namespace)
    libc.unshare(libc.CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC)
    socket.sethostname(request.hostname)
    _empty_root(request.scratch)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_LIMIT, LOG_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])
    os.setresgid(POD_UID, POD_UID, POD_UID)
    os.setresuid(POD_UID, POD_UID, POD_UID)
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return socket.socket(fileno=3)


def _redirect(log: str) -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _empty_root(scratch: str) -> None:
    """Ensures that this process's root is an empty folder and that none of the host's mounts is left to it."""
    libc.mount("none", "/", None, libc.MS_REC | _MS_PRIVATE)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    libc.mount("none", scratch, "tmpfs", flags)
    os.chdir(scratch)
    _check(_LIBC.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    libc.unmount(".")
    os.chdir("/")
    libc.mount("none", "/", None, _MS_REMOUNT | _MS_RDONLY | flags)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
