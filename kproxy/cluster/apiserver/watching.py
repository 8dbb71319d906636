"""Watches: a place in the store's log that moves on, and what the client has been told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
from aiohttp import web

from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.representations import Representation
from kproxy.cluster.apiserver.requests import Selection
from kproxy.cluster.store import Compacted, Event

_BOOKMARK_DELAY = 0.004  # seconds: one bookmark then tells of a burst of commits


async def watch(
    backend: Backend, request: web.Request, target: Target, chosen: Selection, form: Representation
) -> web.StreamResponse:
    """Sends changes as they happen until the client goes, its time is over or the log has gone on too far."""
    position, first = _start(backend, request, target, chosen)
    seconds = requests.number(request, "timeoutSeconds")
    response = web.StreamResponse(headers={"Content-Type": form.content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    stream = _Stream(backend, target, chosen, form, position)
    try:
        async with asyncio.timeout(seconds or None):
            await response.write(b"".join(_line("ADDED", form.of_change(event)) for event in first))
            await stream.send_to(response, wants_bookmarks=requests.is_true(request, "allowWatchBookmarks"))
    except TimeoutError:
        pass
    await response.write_eof()
    return response


def _start(backend: Backend, request: web.Request, target: Target, chosen: Selection) -> tuple[int, list[Event]]:
    """Where the watch begins, and what it sends before: without a resourceVersion, all objects there are."""
    position = requests.number(request, "resourceVersion")
    if position:
        try:
            backend.store.events_after(position)
        except Compacted as error:
            raise statuses.expired(str(error)) from error
        return position, []
    events, revision = backend.store.latest_of(target.kind, target.namespace or None)
    return revision, [event for event in events if chosen(event.object)]


class _Stream:
    """One watch."""

    def __init__(
        self, backend: Backend, target: Target, chosen: Selection, form: Representation, position: int
    ) -> None:
        self._backend = backend
        self._kind = target.kind
        self._chosen = chosen
        self._form = form
        self._position = position
        self._told = position

    async def send_to(self, response: web.StreamResponse, *, wants_bookmarks: bool) -> None:
        """Sends events as they happen, until the server stops or the log has gone on too far.

        A client that takes bookmarks has been told of the newest revision, by an event or by a bookmark, a few
        milliseconds after every commit.
        """
        is_bookmark_due = False
        while not self._backend.is_stopping:
            changed = self._backend.changed
            try:
                lines = list(self._next_lines())
            except Compacted as error:
                await response.write(_line("ERROR", msgspec.json.encode(statuses.expired(str(error)).status)))
                return
            if is_bookmark_due and self._told < self._position:
                lines.append(self._bookmark())
            if lines:
                await response.write(b"".join(lines))
            is_bookmark_due = wants_bookmarks and self._told < self._position
            if is_bookmark_due:
                await asyncio.sleep(_BOOKMARK_DELAY)
            else:
                await asyncio.shield(changed)

    def _next_lines(self) -> Iterator[bytes]:
        for event in self._backend.store.events_after(self._position):
            self._position = event.revision
            if event.kind is not self._kind:
                continue
            event_type = _type_of(event, self._chosen)
            if event_type:
                self._told = event.revision
                yield _line(event_type, self._form.of_change(event))

    def _bookmark(self) -> bytes:
        self._told = self._position
        return _line("BOOKMARK", self._form.of_bookmark({"resourceVersion": str(self._position)}))


def _type_of(event: Event, chosen: Selection) -> str:
    """What the event is to a watch of that selection; an object that leaves it counts as deleted; "" is nothing."""
    was, is_now = chosen(event.previous), event.type != "DELETED" and chosen(event.object)
    if not was and not is_now:
        return ""
    return "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED"


def _line(event_type: str, body: bytes) -> bytes:
    return b'{"type":"' + event_type.encode() + b'","object":' + body + b"}\n"
