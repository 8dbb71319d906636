"""The sockets on which the API is served."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web

from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver.dispatch import make_app
from kproxy.cluster.apiserver.entrance import Entrance, Limits, default_limits
from kproxy.cluster.apiserver.pods import PodAccess
from kproxy.cluster.store import Store
from kproxy.cluster.tokens import Tokens
from kproxy.errors import HostError

_SHUTDOWN_SECONDS = 1.0
_TURNS = 10  # of the loop, of which accepting a connection takes three
IDLE_SECONDS: Final = 90.0
"""How long a connection may be open without a whole request; kube-apiserver's IdleTimeout."""


class Server:
    """The API on a unix socket that only root can open, in a thread of its own.

    Args:
        app: from ``make_app``.
        path: the socket; what is there is replaced.
        limits: what connections by TLS may take; None means ``default_limits``.
        idle_seconds: how long a connection may wait for its first request, and then for each other one.
    """

    def __init__(
        self, app: web.Application, path: Path, *, limits: Limits | None = None, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._app = app
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._limits = limits or default_limits()
        self._idle_seconds = idle_seconds
        self._stopping = asyncio.Event()
        self._is_ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._entrance: Entrance

    def start(self) -> None:
        """Serves from now on.

        Raises:
            HostError: the socket cannot be made.
        """
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise HostError(f"cannot serve the API at {self._path}: {self._failure}") from self._failure

    def open_door(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Serves by TLS on one more socket, which listens already and is closed by ``stop``.

        Args:
            listener: whoever connected to it before waits until now.
            context: what to show them.
        """

        async def begin() -> None:
            self._entrance.open(listener, context)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def stop(self) -> None:
        """Ends watches, answers what is under way and closes the socket."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        runner = web.AppRunner(
            self._app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_SECONDS,
            keepalive_timeout=self._idle_seconds,
        )
        try:
            await runner.setup()
            self._entrance = Entrance(cast("Callable[[], asyncio.Protocol]", runner.server), self._limits)
            listener = _listen(self._path)
            await web.SockSite(runner, listener).start()
        except OSError as error:
            self._failure = error
            return
        finally:
            self._is_ready.set()
        await self._stopping.wait()
        # Python 3.11's asyncio leaks a connection that was accepted but not taken over when the listener is closed: so
        # nobody is let in any more, and then whoever came in before is taken over.
        asyncio.get_running_loop().remove_reader(listener)
        await self._entrance.close()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await runner.cleanup()
        await self._entrance.hang_up()
        self._path.unlink(missing_ok=True)


def serve(  # noqa: PLR0913 - what the API stands on, all by name
    store: Store,
    path: Path,
    *,
    cluster: ClusterSettings,
    lab_status: Callable[[], Any],
    tokens: Tokens | None = None,
    pods: PodAccess | None = None,
) -> Server:
    """A running server of the API; ``stop`` ends it.

    Raises:
        HostError: the socket cannot be made.
    """
    server = Server(make_app(store, cluster=cluster, lab_status=lab_status, tokens=tokens, pods=pods), path)
    server.start()
    return server


def _listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, put there whole: who finds it can connect, and only its owner can."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(128)
        fresh.rename(path)
    except OSError:
        listener.close()
        raise
    return listener
