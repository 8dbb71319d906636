"""Processes in namespaces: recorded before they run, found by namespace, ended only if they are who we think.

A pid alone names nobody: the kernel gives it to the next process when its owner is gone. Here a process is its pid and
its start time, and a signal goes through a pidfd that was opened before the start time was compared.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from netns import libc
from netns.errors import NetnsError
from netns.journal import PROCESS, Journal
from netns.namespace import Namespace, cookie, enter, in_own_thread, inode

_PROC = Path("/proc")

_STDERR = 2

# How often the processes of a namespace may refill it while they are being killed.
_ROUNDS = 20

# What the shell says for a program that cannot be run.
_EXIT_CANNOT_RUN = 127


@dataclass(frozen=True)
class Process:
    """One process, and no later one with the same number.

    Attributes:
        pid: in the host's pid namespace.
        start_time: clock ticks since boot, field 22 of /proc/PID/stat.
    """

    pid: int
    start_time: int


def find(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none, or only what its parent has not waited for."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, parentheses too: what follows the last one is state, parent, ...
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else Process(pid, int(numbers[18]))


def is_alive(process: Process) -> bool:
    """Whether it still runs; a zombie and another process with its pid do not count."""
    return find(process.pid) == process


def open_pidfd(process: Process) -> int:
    """A descriptor that stays with this very process and becomes readable when it ends; the caller closes it.

    Raises:
        ProcessLookupError: it has ended.
    """
    fd = os.pidfd_open(process.pid)
    if not is_alive(process):
        os.close(fd)
        raise ProcessLookupError(f"process {process.pid} has ended")
    return fd


def exit_status(process: Process) -> int | None:
    """The exit status of a child that has ended, and lets go of it; negative: the signal that ended it; None: it runs.

    Raises:
        ChildProcessError: it is no child of ours, or was let go of before.
    """
    pid, status = os.waitpid(process.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def spawn(  # noqa: PLR0913 - each is one property of a process
    argv: Sequence[str],
    *,
    ns: Namespace | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path = Path("/"),
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    setup: Callable[[], None] | None = None,
    pass_fds: Collection[int] = (),
    journal: Journal | None = None,
    role: str = "",
) -> Process:
    """Starts a program in a session of its own and returns when it runs.

    It is a child of the calling thread: with `PR_SET_PDEATHSIG` it would die with that thread, not with the process.

    Args:
        argv: the program, looked up in the PATH of `env`, and its arguments.
        ns: its network namespace; None leaves it in the caller's.
        env: its whole environment; None: the caller's.
        cwd: its working directory.
        stdin: descriptors for its standard streams; None is /dev/null.
        stdout: see stdin.
        stderr: see stdin.
        uid: user to become, without other groups; None stays.
        gid: group to become; None stays.
        setup: called in the child as root inside `ns`, last thing before it drops to `uid`.
        pass_fds: descriptors it keeps beside the standard streams, under their numbers.
        journal: where it is recorded before the program runs. If we die before that, the program never runs.
        role: what it is, for the record.

    Raises:
        NetnsError: the program cannot be run; nothing is left.
    """
    gate_read, gate_write = os.pipe()
    failure_read, failure_write = os.pipe()
    start = _Start(argv, ns, env, cwd, (stdin, stdout, stderr), uid, gid, setup, pass_fds)
    pid = os.fork()
    if pid == 0:
        os.close(gate_write)
        _child(start, gate_read, failure_write)
    os.close(gate_read)
    os.close(failure_write)
    try:
        process = _let_run(pid, gate_write, journal, role)
    finally:
        os.close(gate_write)
        failure = _read_all(failure_read)
    if failure:
        os.waitpid(pid, 0)
        if journal is not None:
            forget(process, journal)
        raise NetnsError(f"cannot start {argv[0]}: {failure}", call=" ".join(argv))
    return process


def forget(process: Process, journal: Journal) -> None:
    """Strikes an ended process off the record."""
    journal.gone(PROCESS, f"{process.pid}:{process.start_time}")


def kill(process: Process, grace: float) -> None:
    """Ends the process: SIGTERM, after `grace` seconds SIGKILL. One that has ended already is fine.

    Raises:
        NetnsError: it is still there some seconds after SIGKILL.
    """
    kill_all([process], grace)


def kill_all(processes: Iterable[Process], grace: float) -> None:
    """Ends all of them side by side: SIGTERM to each, SIGKILL to those that are left after `grace` seconds.

    Raises:
        NetnsError: one is still there some seconds after SIGKILL.
    """
    fds: dict[int, Process] = {}
    for process in processes:
        try:
            fds[open_pidfd(process)] = process
        except ProcessLookupError:
            continue
    try:
        if grace > 0:
            _signal(fds, signal.SIGTERM)
        left = _wait(fds, grace)
        _signal(left, signal.SIGKILL)
        stuck = _wait(left, 10.0)
    finally:
        for fd in fds:
            os.close(fd)
    if stuck:
        pids = ", ".join(str(fds[fd].pid) for fd in stuck)
        raise NetnsError("processes do not end although they were killed", call=f"SIGKILL {pids}", left=f"left: {pids}")


def find_in(ns: Namespace) -> list[int]:
    """The pids of all processes in the network namespace, whoever started them.

    Raises:
        NetnsError: there is no such namespace.
    """
    return by_namespace().get(inode(ns), [])


def by_namespace() -> dict[int, list[int]]:
    """All pids of the system by the inode of the network namespace they are in; zombies are in none."""
    found: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (number := _namespace_of(int(entry.name))):
            found.setdefault(number, []).append(int(entry.name))
    return found


def kill_all_in(ns: Namespace, grace: float) -> None:
    """Ends every process in the namespace, also those that are started meanwhile; we and our ancestors are spared.

    Raises:
        NetnsError: there is no such namespace, or it cannot be emptied.
    """
    kill_all_in_each([ns], grace)


def kill_all_in_each(namespaces: Sequence[Namespace], grace: float) -> None:
    """Ends every process in any of the namespaces, side by side; we and our ancestors are spared.

    Raises:
        NetnsError: one of the namespaces does not exist, or they cannot be emptied.
    """
    wanted = {inode(ns) for ns in namespaces}
    _empty(lambda: [pid for number, pids in by_namespace().items() if number in wanted for pid in pids], grace)


def kill_all_with_cookies(cookies: Collection[int], grace: float) -> None:
    """Ends every process in namespaces with these cookies (see `namespace.cookie`), which need not be mounted any more.

    Raises:
        NetnsError: they cannot be emptied.
    """
    _empty(
        lambda: [pid for pids in by_namespace().values() if _cookie_of(pids[0]) in cookies for pid in pids],
        grace,
    )


def exec_in(ns: Namespace, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Becomes the program `argv` inside `ns`, with a /sys that shows the namespace's interfaces (as `ip netns exec`).

    Only for a process of one thread that has nothing left to do.

    Raises:
        NetnsError: there is no such namespace, or the program cannot be run.
    """
    enter(ns)
    _show_sys()
    try:
        os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        raise NetnsError(f"cannot start {argv[0]}: {error.strerror}", call=" ".join(argv)) from error


@dataclass(frozen=True)
class _Start:
    """What the child has to do, in one value."""

    argv: Sequence[str]
    ns: Namespace | None
    env: Mapping[str, str] | None
    cwd: Path
    streams: tuple[int | None, int | None, int | None]
    uid: int | None
    gid: int | None
    setup: Callable[[], None] | None
    pass_fds: Collection[int]


def _let_run(pid: int, gate: int, journal: Journal | None, role: str) -> Process:
    """Records the child that waits at its gate, then opens it."""
    process = find(pid)
    if process is None:
        os.waitpid(pid, 0)
        raise NetnsError("a new process ended before its program was started", call="fork")
    if journal is not None:
        journal.process(process.pid, process.start_time, role)
        journal.step(f"process {role or pid}")
    os.write(gate, b"!")
    return process


def _child(start: _Start, gate: int, failure: int) -> NoReturn:
    """The new process, from fork to its program."""
    try:
        if os.read(gate, 1) != b"!":
            os._exit(_EXIT_CANNOT_RUN)  # who started us died before we were on record
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _let_signals_be_heard()
        if start.ns is not None:
            enter(start.ns)
        _arrange_descriptors(start)
        os.chdir(start.cwd)
        if start.setup is not None:
            start.setup()
        _become(start.uid, start.gid)
        environment = os.environ if start.env is None else start.env
        os.execvpe(start.argv[0], list(start.argv), dict(environment))  # noqa: S606 - no shell is what is wanted
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        os.write(failure, str(error).encode()[:4096] or type(error).__name__.encode())
    finally:
        os._exit(_EXIT_CANNOT_RUN)


def _arrange_descriptors(start: _Start) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    # Copies first, above the standard streams: one of them may be 0, 1 or 2 itself.
    copies = [_copy_above_streams(null if stream is None else stream) for stream in start.streams]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    for entry in Path("/proc/self/fd").iterdir():
        fd = int(entry.name)
        if fd > _STDERR and _is_open(fd):
            os.set_inheritable(fd, fd in start.pass_fds)


def _copy_above_streams(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _become(uid: int | None, gid: int | None) -> None:
    if gid is not None:
        os.setgroups([])
        os.setgid(gid)
    if uid is not None:
        os.setuid(uid)


def _read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        return file.read().decode(errors="replace")


def _let_signals_be_heard() -> None:
    """Ignored signals stay ignored in a program: Python ignores some, nohup and a shell's background jobs others."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _signal(fds: Iterable[int], number: signal.Signals) -> None:
    for fd in fds:
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            continue


def _wait(fds: Iterable[int], seconds: float) -> list[int]:
    """Those whose process has not ended after `seconds`."""
    left = set(fds)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while left and (remaining := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(remaining * 1000):
            poll.unregister(fd)
            left.discard(fd)
    return list(left)


def _namespace_of(pid: int) -> int:
    """The inode of the network namespace of a process; 0 when it has ended."""
    try:
        text = str((_PROC / str(pid) / "ns/net").readlink())
    except OSError:
        return 0
    return int(text[len("net:[") : -1])


def _empty(look: Callable[[], list[int]], grace: float) -> None:
    """Ends all processes that `look` finds, until it finds none."""
    spared = _ourselves()
    for _ in range(_ROUNDS):
        processes = [one for pid in look() if pid not in spared and (one := find(pid))]
        if not processes:
            return
        # The second look makes sure that the start times belong to the processes that were seen.
        confirmed = set(look())
        kill_all([one for one in processes if one.pid in confirmed], grace)
        grace = 0
    raise NetnsError("processes in the namespaces are replaced faster than they can be killed", call="kill")


def _cookie_of(pid: int) -> int:
    """The cookie of the network namespace of a process; 0 when it has ended."""

    def look() -> int:
        fd = os.open(_PROC / str(pid) / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.setns(fd)
        finally:
            os.close(fd)
        return cookie()

    try:
        return in_own_thread(look)
    except OSError:
        return 0


def _ourselves() -> frozenset[int]:
    """This process and its ancestors."""
    pids = []
    pid = os.getpid()
    while pid > 0:
        pids.append(pid)
        try:
            text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
    return frozenset(pids)


def _show_sys() -> None:
    """Mounts a sysfs of the namespace over /sys, for this process alone; where that is forbidden, /sys stays."""
    try:
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", None, libc.MS_SLAVE | libc.MS_REC)
        libc.mount("sysfs", "/sys", "sysfs", 0)
    except OSError:
        return
