"""The sockets on which the API is served."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver.dispatch import make_app
from kproxy.cluster.apiserver.pods import PodAccess
from kproxy.cluster.store import Store
from kproxy.cluster.tokens import Tokens
from kproxy.errors import HostError

_SHUTDOWN_SECONDS = 1.0
_TURNS = 10  # of the loop, of which accepting a connection takes three


class Server:
    """The API on a unix socket that only root can open, in a thread of its own.

    Args:
        app: from ``make_app``.
        path: the socket; what is there is replaced.
    """

    def __init__(self, app: web.Application, path: Path) -> None:
        self._app = app
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._listeners: list[socket.socket] = []
        self._stopping = asyncio.Event()
        self._is_ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._runner: web.AppRunner

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
            self._listeners.append(listener)
            await web.SockSite(self._runner, listener, ssl_context=context).start()

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
        runner = self._runner = web.AppRunner(
            self._app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        try:
            await runner.setup()
            self._listeners.append(_listen(self._path))
            await web.SockSite(runner, self._listeners[0]).start()
        except OSError as error:
            self._failure = error
            return
        finally:
            self._is_ready.set()
        await self._stopping.wait()
        # Python 3.11's asyncio leaks a connection that was accepted but not taken over when the listener is closed: so
        # nobody is let in any more, and then whoever came in before is taken over.
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await runner.cleanup()
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
