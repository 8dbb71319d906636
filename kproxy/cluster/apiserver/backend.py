"""What every handler works on: the store, the registry, the thread that writes, and news of commits.

Law: writes run one at a time in a thread of their own, so that the loop, which serves reads and watches, never waits
for the disk.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from kproxy.cluster import statuses
from kproxy.cluster.apiserver.pods import PodAccess
from kproxy.cluster.registry import Registry
from kproxy.cluster.store import Store

T = TypeVar("T")


class Backend:
    """The handlers' common ground; everything but the registry's writes happens in the loop's thread.

    Args:
        store: where the objects are.
        registry: what becomes of writes.
        lab_status: what ``GET /apis/kproxy.dev/v1alpha1/lab`` answers, as msgspec encodes it; called in a thread.
        pods: the way into pods; None when there is none.
    """

    def __init__(
        self, store: Store, registry: Registry, lab_status: Callable[[], Any], pods: PodAccess | None = None
    ) -> None:
        self.store = store
        self.registry = registry
        self.lab_status = lab_status
        self._pods = pods
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="api-writer")
        self._is_stopping = False
        self._changed: asyncio.Future[None]
        self._end_listening: Callable[[], None]

    async def start(self, _: web.Application) -> None:
        """Begins to pass commits on to the watches."""
        loop = asyncio.get_running_loop()
        self._changed = loop.create_future()
        self._end_listening = self.store.listen(lambda: loop.call_soon_threadsafe(self._wake))

    async def stop(self, _: web.Application) -> None:
        """Ends every watch, and waits for the write that is under way."""
        self._end_listening()
        self._is_stopping = True
        self._wake()
        await asyncio.to_thread(self._writer.shutdown)

    async def write(self, change: Callable[..., T], *args: Any, **options: Any) -> T:
        """Runs ``change`` in the thread that writes and returns what it returned."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, functools.partial(change, *args, **options))

    @property
    def pods(self) -> PodAccess:
        """The way into pods.

        Raises:
            ApiError: there is none.
        """
        if self._pods is None:
            raise statuses.bad_request("this API server has no way into pods")
        return self._pods

    @property
    def is_stopping(self) -> bool:
        """Whether the server is going away."""
        return self._is_stopping

    @property
    def changed(self) -> asyncio.Future[None]:
        """Done at the next commit; take it before reading the log, so that no commit is missed."""
        return self._changed

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)
