"""Watches: a place in the store's log that moves on, and what the client has been told of it.

Law: what waits for a client is bounded: a watch is a place in the log and at most one write under way. Who does not
take that is hung up on (``sending``); who falls behind the log is told 410 and lists again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from aiohttp import web

from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import sending
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.list_options import WatchOptions
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.representations import Representation
from kproxy.cluster.apiserver.requests import Selection
from kproxy.cluster.store import Compacted, Event, state
from kproxy.errors import Gone

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
"""The annotation of the bookmark behind the objects that were there at the beginning."""

_BOOKMARK_DELAY = 0.004  # seconds: one bookmark then tells of a burst of commits


async def watch(
    backend: Backend, request: web.Request, target: Target, options: WatchOptions, form: Representation
) -> web.StreamResponse:
    """Sends changes as they happen until the client goes, its time is over or the log has gone on too far."""
    if options.version and int(options.version) > backend.store.revision and options.sends_initial:
        raise statuses.too_large_revision(int(options.version), backend.store.revision)
    response = web.StreamResponse(headers={"Content-Type": form.content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    stream = _Stream(backend, target, options, form, response)
    try:
        try:
            async with asyncio.timeout(options.seconds or None):
                await stream.run()
        except TimeoutError:
            pass
        await sending.end(response)
    except sending.HasStalled:
        sending.hang_up(request)
    return response


class _Stream:
    """One watch."""

    def __init__(
        self,
        backend: Backend,
        target: Target,
        options: WatchOptions,
        form: Representation,
        response: web.StreamResponse,
    ) -> None:
        self._backend = backend
        self._target = target
        self._options = options
        self._form = form
        self._response = response
        self._position = 0
        self._told = 0

    async def run(self) -> None:
        """Sends what there is and events as they happen, until the server stops or the log has gone on too far."""
        try:
            await self._begin()
            await self._go_on()
        except Compacted as error:
            await self._fail(statuses.expired(str(error)))

    async def _begin(self) -> None:
        options = self._options
        if not options.begins_with_all:
            self._position = self._told = int(options.version or 0) or self._backend.store.revision
            return
        events, revision = self._backend.store.latest_of(self._target.kind, self._target.namespace or None)
        self._position = self._told = revision
        chosen = options.chosen
        await self._send(_line("ADDED", self._form.of_change(event)) for event in events if chosen(event.object))
        if options.sends_initial and options.wants_bookmarks:
            await self._send([self._bookmark({INITIAL_EVENTS_END: "true"})])

    async def _go_on(self) -> None:
        """Sends events as they happen.

        A client that takes bookmarks has been told of the newest revision, by an event or by a bookmark, a few
        milliseconds after every commit.
        """
        is_bookmark_due = False
        while not self._backend.is_stopping:
            changed = self._backend.changed
            await self._send(self._next_lines())
            if is_bookmark_due and self._told < self._position:
                await self._send([self._bookmark()])
            is_bookmark_due = self._options.wants_bookmarks and self._told < self._position
            if is_bookmark_due:
                await asyncio.sleep(_BOOKMARK_DELAY)
            else:
                await asyncio.shield(changed)

    async def _fail(self, error: Gone) -> None:
        await self._send([_line("ERROR", msgspec.json.encode(error.status))])

    async def _send(self, lines: Iterable[bytes]) -> None:
        """Writes the lines, some at a time.

        Raises:
            HasStalled: the client does not take them.
        """
        piece: list[bytes] = []
        size = 0
        for line in lines:
            piece.append(line)
            size += len(line)
            if size >= sending.PIECE:
                await sending.write(self._response, b"".join(piece))
                piece, size = [], 0
        if piece:
            await sending.write(self._response, b"".join(piece))

    def _next_lines(self) -> Iterator[bytes]:
        for event in self._backend.store.events_after(self._position):
            self._position = event.revision
            if event.kind is not self._target.kind:
                continue
            told = _as_chosen(event, self._options.chosen)
            if told is not None:
                self._told = event.revision
                yield _line(told[0], self._form.of_change(told[1]))

    def _bookmark(self, annotations: Object | None = None) -> bytes:
        self._told = self._position
        metadata: Object = {"resourceVersion": str(self._position)}
        if annotations:
            metadata["annotations"] = annotations
        return _line("BOOKMARK", self._form.of_bookmark(metadata))


def _as_chosen(event: Event, chosen: Selection) -> tuple[str, Event] | None:
    """What the event is to a watch of that selection; an object that leaves it is deleted, in its last state there."""
    was, is_now = chosen(event.previous), event.type != "DELETED" and chosen(event.object)
    if was and not is_now and event.type != "DELETED" and event.previous is not None:
        metadata = {**event.previous["metadata"], "resourceVersion": str(event.revision)}
        return "DELETED", state(event.kind, {**event.previous, "metadata": metadata})
    if not was and not is_now:
        return None
    return "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED", event


def _line(event_type: str, body: bytes) -> bytes:
    return b'{"type":"' + event_type.encode() + b'","object":' + body + b"}\n"
