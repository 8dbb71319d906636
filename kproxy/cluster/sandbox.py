"""The sandbox that a pod's commands run in: bubblewrap, as an unprivileged user inside the pod's network namespace.

Inside there are a user, mount, PID, UTS, IPC and cgroup namespace of its own; the host's programs and libraries
read-only, a few generated files in /etc, an empty /tmp; nothing of /root, /home, /run and /var. The command is root to
itself and nobody to the kernel: no capability over its network namespace, no new privileges, no more user namespaces.

Law: what is in the sandbox is decided here and nowhere else, for containers and for `kproxy exec` alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from kproxy.cluster.fork_server import LOG_LIMIT, POD_UID
from kproxy.errors import HostError
from netns import libc
from netns.journal import Journal
from netns.namespace import Namespace, enter, identity
from netns.process import Process, find, is_alive, spawn

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TMP_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that a container may keep in /tmp and in /dev/shm each; they are the host's memory."""
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_READABLE: Final = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
"""What programs look up in /etc; everything else there is the host's own business."""
_STAGE: Final = "/mnt"
"""Where folders are shown to bubblewrap; every host has this one (FHS), and nothing of ours."""
_COMMANDS_PID: Final = 2
"""Number of the container's command in its PID namespace."""
_SPEAKER: Final = "bwrap: "
"""What bubblewrap's own lines begin with."""
_LAST_WORDS: Final = 8192
"""Bytes of a log that its last line is looked for in; a path has 4096 at most."""
_NAMESPACES: Final = {"user": "user", "mount": "mnt", "pid": "pid", "uts": "uts", "ipc": "ipc", "cgroup": "cgroup"}
"""nsenter's options for the namespaces that a sandbox is made of, and their names in /proc."""


@dataclass(frozen=True)
class Container:
    """One command and what it sees.

    Attributes:
        argv: the program, looked up in `PATH` or in the container's own, and its arguments.
        hostname: the pod's, at most 63 characters.
        env: environment variables beside PATH, HOME and HOSTNAME.
        working_dir: an absolute path; empty is `/`.
        files: files by path, with their text; /etc/hosts and /etc/resolv.conf among them.
        groups: the doors of its control groups (see `netns.cgroup.Group.doors`).
        folders: folders of the host's by the path at which they are seen, read-only; pods' users need not be able to
            reach them where they are. Only for a container's own command (`start`).
    """

    argv: Sequence[str]
    hostname: str
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    groups: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """How a container's command ended; code None when nobody saw it (the sandbox itself was killed)."""

    code: int | None


def start(  # noqa: PLR0913 - what runs, where, and its three records
    container: Container, ns: Namespace, *, log: Path, status: Path, journal: Journal | None = None, role: str = "pod"
) -> Process:
    """Starts the container's command; returns the sandbox's outer process, which ends when the command has ended.

    Args:
        container: what runs.
        ns: network namespace it runs in.
        log: file that its output is appended to, up to `LOG_LIMIT` bytes.
        status: file in which the sandbox writes down its inner process, and the command's exit code; begun anew.
        journal: where the process is recorded before it runs.
        role: what the record calls it.

    Raises:
        HostError: bubblewrap is not installed.
        NetnsError: it cannot be started.
    """
    with contextlib.ExitStack() as opened:
        output = _opened(opened, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        report = _opened(opened, status, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
        files = opened.enter_context(_files(container))
        argv = [_bubblewrap(), "--json-status-fd", str(report)]
        argv += _arguments(container, files, folders=range(len(container.folders)))
        return spawn(
            argv,
            ns=ns,
            env={},
            stdout=output,
            stderr=output,
            uid=POD_UID,
            gid=POD_UID,
            setup=partial(_prepare, container.groups, list(container.folders.values())),
            pass_fds=[report, *files.values()],
            journal=journal,
            role=role,
        )


def run_once(container: Container, ns: Namespace, output: int) -> Process:
    """Starts a command in a sandbox of its own; returns a process that ends with the command's exit status.

    Args:
        container: what runs.
        ns: network namespace it runs in.
        output: descriptor that its output goes to, up to `LOG_LIMIT` bytes.

    Raises:
        HostError: bubblewrap is not installed.
        NetnsError: it cannot be started.
    """
    with _files(container) as files:
        return spawn(
            [_bubblewrap(), *_arguments(container, files)],
            ns=ns,
            env={},
            stdout=output,
            stderr=output,
            uid=POD_UID,
            gid=POD_UID,
            setup=partial(_prepare, container.groups),
            pass_fds=list(files.values()),
        )


def become(container: Container, ns: Namespace) -> NoReturn:
    """Becomes the container's command, with the terminal and standard streams of the calling process.

    Only for a process of one thread that has nothing left to do. The command dies with the caller's parent.

    Raises:
        HostError: bubblewrap is not installed.
        NetnsError: there is no such namespace.
    """
    program = _bubblewrap()
    with _files(container) as files:
        for fd in files.values():
            os.set_inheritable(fd, True)
        libc.join_groups(container.groups)
        enter(ns)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(POD_UID, POD_UID, POD_UID)
        os.setresuid(POD_UID, POD_UID, POD_UID)
        os.execve(program, [program, "--die-with-parent", *_arguments(container, files)], {})  # noqa: S606


def inner_process(status: Path, ns: Namespace) -> Process | None:
    """The sandbox's first process, whose end takes everything in it along; None when it is gone or not there yet.

    Its number alone might be somebody else's by now: it must be a pod's process in this very network namespace.
    """
    pid = _report(status).get("child-pid")
    if not isinstance(pid, int):
        return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        is_here = identity(Path(f"/proc/{pid}/ns/net")) == identity(ns.path)
    except OSError:
        return None
    is_pods = any(line.split()[:2] == ["Uid:", str(POD_UID)] for line in lines)
    return find(pid) if is_here and is_pods else None


def main_process(outer: Process) -> Process | None:
    """The process that the container's command was started as, which a polite end is asked of; None when there is none.

    It is the second of its PID namespace: the first is bubblewrap's own, which takes in orphans and passes nothing on.
    It is there when everything else of the sandbox is.
    Read from /proc: its `children` files are not in every kernel.
    """
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, no paths
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                children.setdefault(_parent(int(name)), []).append(int(name))
    for first in children.get(outer.pid, []):
        for pid in children.get(first, []):
            if _number_inside(pid) == _COMMANDS_PID:
                return find(pid)
    return None


def has_begun(outer: Process, status: Path) -> bool:
    """Whether the command itself runs, and no longer the sandbox that is made for it.

    Until its program is executed, the command's process is a copy of bubblewrap, with bubblewrap's command line.

    Args:
        outer: from `start`.
        status: the file that was told there.
    """
    try:
        try:
            line = _line_inside(_report(status).get("child-pid"))
        except PermissionError:  # no CAP_SYS_PTRACE: the long way
            main = main_process(outer)
            line = Path(f"/proc/{main.pid}/cmdline").read_bytes() if main else b""
        return line not in (b"", Path(f"/proc/{outer.pid}/cmdline").read_bytes())
    except OSError:
        return False


def complaint(log: Path) -> str:
    """Why the sandbox could not start the command, in bubblewrap's words; empty if the log does not end in such a line.

    Args:
        log: the file that was told to `start`.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
            last = file.read().decode(errors="replace").rstrip("\n").rpartition("\n")[2]
    except OSError:
        return ""
    return last.removeprefix(_SPEAKER).removeprefix("execvp ") if last.startswith(_SPEAKER) else ""


def join(container: Container, main: Process, ns: Namespace, output: int) -> Process:
    """Starts one more command in a container that runs; returns a process that ends with the command's exit status.

    The command sees what the container's own processes see, and is as confined as they are. It holds descriptors of
    its own namespaces, which it has not the right to use.

    Args:
        container: the command, with the variables and the working directory of the container's own.
        main: from `main_process`; the sandbox's first process may still see the host.
        ns: the container's network namespace.
        output: descriptor that its output goes to, up to `LOG_LIMIT` bytes.

    Raises:
        HostError: util-linux is not complete.
        NetnsError: it cannot be started.
        OSError: the container has ended.
    """
    with contextlib.ExitStack() as opened:
        argv, namespaces = _joining(opened, container, main)
        return spawn(
            argv,
            ns=ns,
            env={},
            stdout=output,
            stderr=output,
            setup=partial(_limit_without_groups, container.groups),
            pass_fds=namespaces,
        )


def become_beside(container: Container, main: Process, ns: Namespace) -> NoReturn:
    """Becomes one more command in a container that runs, with the terminal and standard streams of the caller.

    Only for a process of one thread that has nothing left to do. The command ends with the caller.

    Args:
        container: the command, all its variables, and its working directory.
        main: from `main_process`.
        ns: the container's network namespace.

    Raises:
        HostError: util-linux is not complete.
        NetnsError: there is no such namespace.
        OSError: the container has ended.
    """
    with contextlib.ExitStack() as opened:
        argv, namespaces = _joining(opened, container, main)
        for fd in namespaces:
            os.set_inheritable(fd, True)
        libc.join_groups(container.groups)
        enter(ns)
        os.chdir("/")
        os.setgroups([])
        os.execve(argv[0], argv, {})  # noqa: S606 - no shell is what is wanted


def _joining(opened: contextlib.ExitStack, container: Container, main: Process) -> tuple[list[str], list[int]]:
    """The command line that enters a container, and the descriptors of its namespaces that it needs."""
    variables = [f"{name}={value}" for name, value in _environment(container).items()]
    namespaces = {}
    for option, name in _NAMESPACES.items():
        fd = os.open(f"/proc/{main.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        namespaces[f"--{option}=/proc/self/fd/{fd}"] = fd
    if not is_alive(main):
        raise ProcessLookupError("the container has ended")
    # Nothing of the manifest's is in the environment or the path of a program before it has become a pod's user.
    argv = [_program("nsenter", "util-linux"), *namespaces, "--"]
    argv += [_program("setpriv", "util-linux"), "--reuid=0", "--regid=0", "--keep-groups", "--pdeathsig=KILL"]
    argv += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    argv += [_program("env", "coreutils"), "-i", f"--chdir={container.working_dir or '/'}", *variables]
    return [*argv, *container.argv], list(namespaces.values())


def ended(status: Path) -> Ended:
    """How the command of a sandbox that has ended did end."""
    code = _report(status).get("exit-code")
    return Ended(code if isinstance(code, int) else None)


def _report(status: Path) -> dict[str, object]:
    """All that a sandbox has reported in its status file."""
    found: dict[str, object] = {}
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError):
            found.update(json.loads(line))
    return found


def _line_inside(first: object) -> bytes:
    """The command line of the command's process, from the /proc of the sandbox whose first process that is.

    Empty while there is no such /proc or process.

    Raises:
        OSError: the same.
        PermissionError: we may not look there.
    """
    proc = os.open(f"/proc/{first}/root/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(proc).st_dev == Path("/proc").stat().st_dev:  # the sandbox still sees the host's
            return b""
        line = os.open(f"{_COMMANDS_PID}/cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    finally:
        os.close(proc)
    with os.fdopen(line, "rb") as file:
        return file.read()


def _parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[1])


def _number_inside(pid: int) -> int:
    """The process's number in the innermost PID namespace that it is in; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _bubblewrap() -> str:
    return _program("bwrap", "bubblewrap")


def _program(name: str, package: str) -> str:
    program = shutil.which(name, path=PATH)
    if program is None:
        raise HostError(f"{name} is not installed; `apt-get install {package}` mends that", command=[name])
    return program


def _prepare(groups: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Sets the limits, and shows folders where any user can reach them, to this process and its children alone."""
    libc.join_groups(groups)
    _limit()
    if not folders:
        return
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    # Bound while the stage is still what it was: it may be the folder's own place.
    opened = [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders]
    libc.mount("none", _STAGE, "tmpfs", 0)
    for number, fd in enumerate(opened):
        place = f"{_STAGE}/{number}"
        Path(place).mkdir()
        libc.mount(f"/proc/self/fd/{fd}", place, None, libc.MS_BIND)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_LIMIT, LOG_LIMIT))
    # A log that is full before it has been turned over loses lines; the program goes on.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_without_groups(groups: Sequence[str]) -> None:
    libc.join_groups(groups)
    os.setgroups([])  # inside the user namespace that is forbidden
    _limit()


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _files(container: Container) -> Iterator[dict[str, int]]:
    """Descriptors that the generated files are read from, by path."""
    with contextlib.ExitStack() as opened:
        fds = {}
        for path, text in _contents(container).items():
            # Not a pipe: nobody reads it yet, and a manifest may have more in it than a pipe holds.
            fds[path] = os.memfd_create("file", os.MFD_CLOEXEC)
            opened.callback(os.close, fds[path])
            with os.fdopen(fds[path], "wb", closefd=False) as file:
                file.write(text.encode())
            os.lseek(fds[path], 0, os.SEEK_SET)
        yield fds


def _contents(container: Container) -> dict[str, str]:
    return {
        "/etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "/etc/hostname": f"{container.hostname}\n",
        "/etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "/etc/resolv.conf": "",
        **container.files,
    }


def _arguments(container: Container, files: Mapping[str, int], folders: Sequence[int] = ()) -> list[str]:
    """Bubblewrap's arguments, the container's command last; of its folders, those whose numbers are on the stage."""
    arguments = ["--unshare-user", "--uid", "0", "--gid", "0", "--disable-userns"]
    arguments += ["--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup-try"]
    arguments += ["--hostname", container.hostname, "--ro-bind", "/usr", "/usr"]
    for name in _MERGED:
        host = Path("/", name)
        if host.is_symlink():
            arguments += ["--symlink", str(host.readlink()), str(host)]
        elif host.is_dir():
            arguments += ["--ro-bind", str(host), str(host)]
    arguments += ["--perms", "0755", "--dir", "/etc"]
    for path in _READABLE:
        arguments += ["--ro-bind-try", path, path]
    for path, fd in files.items():
        arguments += ["--perms", "0444", "--file", str(fd), path]
    for number, path in zip(folders, container.folders, strict=False):
        arguments += ["--ro-bind", f"{_STAGE}/{number}", path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):  # noqa: S108 - the sandbox's own
        arguments += ["--size", str(TMP_LIMIT), "--perms", "1777", "--tmpfs", folder]
    arguments += ["--dir", "/var", "--remount-ro", "/dev", "--remount-ro", "/"]
    arguments += ["--chdir", container.working_dir or "/", "--clearenv"]
    for name, value in _environment(container).items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--", *container.argv]


def _environment(container: Container) -> dict[str, str]:
    return {"PATH": PATH, "HOME": "/", "HOSTNAME": container.hostname, **container.env}
