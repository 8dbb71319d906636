"""Looks at containers as kubelet does: from their node, again and again, until told to stop.

Law: it runs in a thread of its own and keeps nothing but its running tasks; what a look means is `probing`'s business.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kproxy.cluster import probing
from kproxy.cluster.probing import Exec, HttpGet, Impossible, Look, Plan, Result, TcpSocket, joined
from kproxy.errors import HostError
from netns.errors import NetnsError
from netns.namespace import Namespace, socket_in
from netns.process import Process

if TYPE_CHECKING:
    import ssl

_LOG = logging.getLogger(__name__)
REDIRECTS: Final = 10
"""Redirects that are followed, as Go's client does."""
_OUTPUT: Final = 1024
"""Bytes of a failing command's output that are told."""

Run = Callable[[tuple[str, ...], int], Process]
"""Starts a command in the container, with that descriptor for its output."""
Report = Callable[["Found"], None]
"""Told from the prober's thread, after each look that failed and whenever what the looks come to has changed."""


class Found(NamedTuple):
    """What the looks at a container have come to.

    Attributes:
        is_success: see `probing.Result`.
        has_failed: as many failures in a row as count.
        message: what was wrong at the last look; empty: nothing.
    """

    is_success: bool
    has_failed: bool
    message: str


class ProbeFailure(Exception):
    """A look at a container that did not succeed, with what a person should know about it."""


@dataclass(frozen=True)
class Target:
    """Where a probe goes.

    Attributes:
        node: the network namespace that requests and connections leave from.
        run: for commands.
    """

    node: Namespace
    run: Run


class Watch:
    """One container's probe while it runs."""

    def __init__(self, future: concurrent.futures.Future[None]) -> None:
        self._future = future

    def stop(self) -> None:
        """No look is begun any more; a report may still be on its way."""
        self._future.cancel()


class Prober:
    """All probes of a lab; its thread is started with the first of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, plan: Plan, target: Target, result: Result, report: Report) -> Watch:
        """Looks at one run of a container, from now on.

        Args:
            plan: how.
            target: where.
            result: what is known so far; nobody else may change it until the watch is stopped.
            report: see `Report`.
        """
        return self._run(_follow(plan, target, result, report))

    def once(self, action: Look | Impossible, target: Target, seconds: float, done: Callable[[str], None]) -> Watch:
        """Does something in or to a container once, as a hook.

        Args:
            action: what.
            target: where.
            seconds: that it may take.
            done: told from the prober's thread what was wrong with it; empty: nothing.
        """

        async def act() -> None:
            done(await look(Plan(action, 0, 0, seconds, 1, 1), target))

        return self._run(act())

    def _run(self, work: Coroutine[Any, Any, None]) -> Watch:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="prober", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(work, loop)
        future.add_done_callback(_complain)
        return Watch(future)


def _complain(future: concurrent.futures.Future[None]) -> None:
    """Says what a task did not expect; without that, a probe would just stop."""
    if not future.cancelled() and (error := future.exception()) is not None:
        _LOG.error("a probe has stopped", exc_info=error)


async def _follow(plan: Plan, target: Target, result: Result, report: Report) -> None:
    told = result.is_success
    pauses = probing.pauses(plan)
    has_answered = result.is_success
    await asyncio.sleep(plan.delay)
    next_count = time.monotonic()
    while True:
        began = time.monotonic()
        message = await look(plan, target)
        # The looks in between, at one that has never answered, can only succeed.
        is_counted = not message or began >= next_count
        if is_counted:
            next_count = began + plan.period
            result.take(success=not message)
        if message or result.is_success != told:
            report(Found(result.is_success, result.has_failed and is_counted, message))
        told = result.is_success
        has_answered = has_answered or not message
        pause = plan.period if has_answered else next(pauses)
        await asyncio.sleep(max(0.0, began + pause - time.monotonic()))


async def look(plan: Plan, target: Target) -> str:
    """Looks once; empty if all is well, else what is not."""
    try:
        async with asyncio.timeout(plan.timeout):
            await _looking(plan, target)
    except TimeoutError:
        return f"{_name(plan)}: timed out after {plan.timeout:g} s"
    except ProbeFailure as failure:
        return str(failure)
    except OSError as error:
        # asyncio words some of them by itself, with the address in it once more.
        return f"{_name(plan)}: {os.strerror(error.errno) if error.errno else error}"
    except (HostError, NetnsError, ValueError) as error:
        return f"{_name(plan)}: {error}"
    return ""


def _looking(plan: Plan, target: Target) -> Coroutine[Any, Any, None]:
    match plan.look:
        case HttpGet() as request:
            return _get(request, target.node)
        case TcpSocket(address, port):
            return _connect(address, port, target.node)
        case Exec(command):
            return _run(command, target.run)
        case Impossible(reason):
            raise ProbeFailure(reason)


def _name(plan: Plan) -> str:
    match plan.look:
        case HttpGet() as request:
            return f"GET {request.url}"
        case TcpSocket(address, port):
            return f"connection to {joined(address, port)}"
        case Exec(command):
            return f"command {' '.join(command)}"
        case Impossible():
            return "probe"


# ----- connections and requests


async def _connected(address: str, port: int, node: Namespace) -> socket.socket:
    """A connection from the node, as kubelet's; the caller closes it."""
    try:
        ((family, kind, protocol, _, where),) = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, OverflowError) as error:
        raise ProbeFailure(f"{joined(address, port)} is no address to probe (names are not looked up)") from error
    sock = socket_in(node, family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(address: str, port: int, node: Namespace) -> None:
    (await _connected(address, port, node)).close()


async def _get(request: HttpGet, node: Namespace) -> None:
    for _ in range(REDIRECTS + 1):
        status, location = await _answer(request, node)
        following = request.redirected(location) if location else None
        if following is None:
            if not 200 <= status < 400:
                raise ProbeFailure(f"HTTP probe failed with statuscode: {status}")
            return
        request = following
    raise ProbeFailure(f"GET {request.url}: stopped after {REDIRECTS} redirects")


async def _answer(request: HttpGet, node: Namespace) -> tuple[int, str]:
    """Status of the answer, and where it sends us if that is somewhere."""
    context = _tls() if request.is_tls else None
    sock = await _connected(request.address, request.port, node)
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname="" if context is not None else None
        )
    except BaseException:
        sock.close()
        raise
    try:
        head = [f"GET {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers)]
        writer.write("\r\n".join([*head, "Connection: close", "", ""]).encode("latin-1"))
        status = await _status(reader, request)
        return status, await _location(reader) if status in (301, 302, 303, 307, 308) else ""
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader, request: HttpGet) -> int:
    line = await reader.readline()
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        said = line[:60].decode("latin-1").strip()
        raise ProbeFailure(f"GET {request.url}: {f'this is no HTTP: {said!r}' if said else 'no answer'}")
    return int(words[1])


async def _location(reader: asyncio.StreamReader) -> str:
    while line := (await reader.readline()).rstrip(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"location":
            return value.strip().decode("latin-1")
    return ""


def _tls() -> ssl.SSLContext:
    """Whoever answers is taken, as by kubelet: the probe asks whether it serves, not who it is."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# ----- commands


async def _run(command: tuple[str, ...], run: Run) -> None:
    output = os.memfd_create("probe")
    try:
        started = run(command, output)
        status = await _ended(started)
        if status != 0:
            said = os.pread(output, _OUTPUT, 0).decode(errors="replace").strip()
            raise ProbeFailure(said or f"command {' '.join(command)}: exit status {status}")
    finally:
        os.close(output)


async def _ended(started: Process) -> int:
    """The exit status of a child, once it has ended; it and its session are killed when nobody waits any longer."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    fd = os.pidfd_open(started.pid)  # a child of ours that nobody else waits for: the number is still its own
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])
    return status
