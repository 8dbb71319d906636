"""Network namespaces: made in a thread of our own, kept by a bind mount, published by name.

A namespace is kept alive by a bind mount in a private directory. Its public name in /run/netns is a symbolic link to
that mount, not a second mount: `ip netns exec NAME`, `ip -n NAME` and pyroute2 follow it; making a link is atomic and
exclusive, the link itself says whose it is, and a later `ip netns add` by somebody else, which mounts /run/netns over
itself, cannot hide a mount of ours beneath it.

Law: nothing here moves the calling thread; /run/netns is never remounted; a name that is not ours is never removed.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from netns import libc
from netns.errors import NetnsError

PUBLIC_DIR = Path("/run/netns")

# From linux/asm-generic/socket.h, kernel 5.14: a number that no other namespace gets until the next boot.
SO_NETNS_COOKIE = 71

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Namespace:
    """A network namespace that this package made, or is about to make.

    Attributes:
        name: as in /run/netns.
        path: the bind mount that keeps it alive, in a directory of the maker's own.
    """

    name: str
    path: Path

    @property
    def public_path(self) -> Path:
        """Where `ip netns` looks for it."""
        return PUBLIC_DIR / self.name


def named(name: str, private_dir: Path) -> Namespace:
    """The namespace of that name below `private_dir`, whether or not it exists yet.

    Raises:
        NetnsError: the name cannot be a file name (a path, empty, longer than 255 characters).
    """
    if not _NAME.fullmatch(name):
        raise NetnsError(f"{name!r} is no name for a network namespace")
    return Namespace(name, private_dir / name)


def in_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `function`, called in a fresh thread that may change namespaces as it likes.

    It is also how pyroute2's synchronous API can be used below a running asyncio loop. What `function` raises is raised
    here.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as failure:  # noqa: BLE001 - raised again in the calling thread
            failures.append(failure)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def enter(namespace: Namespace) -> None:
    """Moves the calling thread into `namespace`. Only for threads and processes that were started for it.

    Raises:
        NetnsError: there is no such namespace.
    """
    if not exists(namespace):
        raise NetnsError(f"network namespace {namespace.name} does not exist", call=f"open {namespace.path}")
    fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(fd)
    finally:
        os.close(fd)


def run_in(namespace: Namespace, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `function`, called in a fresh thread inside `namespace`.

    Sockets it opens and threads or processes it starts belong to the namespace; the caller stays where it is.

    Raises:
        NetnsError: there is no such namespace.
    """

    def body() -> T:
        enter(namespace)
        return function(*args, **kwargs)

    return in_own_thread(body)


def socket_in(namespace: Namespace, family: int, type: int, proto: int = 0) -> socket.socket:  # noqa: A002 - socket's own word
    """A socket that lives in `namespace` and can be used from anywhere.

    Raises:
        NetnsError: there is no such namespace.
    """
    return run_in(namespace, socket.socket, family, type, proto)


def exists(namespace: Namespace) -> bool:
    """Whether a network namespace is mounted at the private path."""
    return _is_namespace(namespace.path)


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: equal for two paths if and only if they lead to the same namespace.

    Raises:
        OSError: there is nothing at `path`.
    """
    status = path.stat()
    return status.st_dev, status.st_ino


def inode(namespace: Namespace) -> int:
    """The namespace's inode, as in the `net:[4026531840]` of /proc/PID/ns/net.

    The kernel may use it again once the namespace is gone: compare it only while the namespace is held.

    Raises:
        NetnsError: there is no such namespace.
    """
    if not exists(namespace):
        raise NetnsError(f"network namespace {namespace.name} does not exist", call=f"stat {namespace.path}")
    return identity(namespace.path)[1]


def cookie() -> int:
    """The number of the calling thread's namespace that no other gets until the next boot; 0 before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        except OSError:
            return 0


def check_name_is_free(namespace: Namespace) -> None:
    """Returns when the public name is unused or already ours.

    Raises:
        NetnsError: somebody else has a namespace of that name.
    """
    try:
        if namespace.public_path.readlink() == namespace.path:
            return
    except FileNotFoundError:
        return
    except OSError:
        pass  # a file or a mount: not a link, so not ours
    raise NetnsError(
        f"a network namespace named {namespace.name} exists already and was made by somebody else",
        call=f"readlink {namespace.public_path}",
        left="nothing of it was touched; choose another name, or remove it with `ip netns del` if nobody needs it",
    )


def create(name: str, private_dir: Path, step: Callable[[str], None] = lambda what: None) -> Namespace:
    """A network namespace kept at `private_dir`/`name` and published as /run/netns/`name`; one that is there stays.

    Args:
        name: its public name.
        private_dir: a directory of the caller's own; made (0700) if missing.
        step: is called after each change to the system with what was changed.

    Raises:
        NetnsError: the name is taken by somebody else's namespace, or is no name; nothing was made.
        OSError: the kernel refused.
    """
    namespace = named(name, private_dir)
    check_name_is_free(namespace)
    private_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not namespace.path.exists():
        os.close(os.open(namespace.path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
        step(f"file {namespace.path}")
    if not exists(namespace):
        in_own_thread(_make_and_mount, namespace.path)
        step(f"namespace {name}")
    _publish(namespace, step)
    return namespace


def remove(namespace: Namespace) -> None:
    """Takes down the public name, if it is ours, and the mount that keeps the namespace alive. Twice is fine.

    Processes and sockets inside keep it alive without a name: end them first.

    Raises:
        OSError: the kernel refused.
    """
    try:
        if namespace.public_path.readlink() == namespace.path:
            namespace.public_path.unlink()
    except OSError:
        pass  # not there, or not a link: not ours
    while _is_namespace(namespace.path):
        libc.unmount(str(namespace.path))
    namespace.path.unlink(missing_ok=True)


def _is_namespace(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_dev == Path("/proc/self/ns/net").stat().st_dev


def _make_and_mount(path: Path) -> None:
    libc.unshare(libc.CLONE_NEWNET)
    libc.mount("/proc/thread-self/ns/net", str(path), None, libc.MS_BIND)


def _publish(namespace: Namespace, step: Callable[[str], None]) -> None:
    PUBLIC_DIR.mkdir(mode=0o755, exist_ok=True)
    try:
        namespace.public_path.symlink_to(namespace.path)
    except FileExistsError:
        check_name_is_free(namespace)  # somebody may have been faster
    else:
        step(f"name {namespace.public_path}")
