"""What comes without an end: the lines of a watch, and pauses before it is asked for again."""

from __future__ import annotations

import http.client
import io
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from kproxy.api.types import Object
from kproxy.client.answers import decode_head, error_of

_STOP_LATENCY = 0.5  # seconds until a quiet watch looks at its stop event
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.05, 5.0  # seconds; a restarted control plane is back within a second


@dataclass(frozen=True)
class Snapshot:
    """What ``follow`` yields first, and after each gap in the watch: all objects there are."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True)
class WatchEvent:
    """One line of a watch; a BOOKMARK's object holds nothing but metadata.resourceVersion."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object

    @property
    def resource_version(self) -> str:
        """The revision up to which this watch has now seen everything."""
        return str(self.object["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class RawSnapshot:
    """A Snapshot as JSON: the lists that the server answered, page by page."""

    pages: list[bytes]
    resource_version: str


@dataclass(frozen=True)
class RawEvent:
    """A WatchEvent whose object is still JSON."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: bytes
    resource_version: str


class _EventLine(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


_decode_event = msgspec.json.Decoder(_EventLine).decode


class Stream:
    """The lines of an endless answer, read so that a time-out in the middle of one loses nothing.

    (http.client cannot go on after a time-out, and a watch has to look at its stop event now and then.)
    """

    def __init__(self, source: socket.socket, has_ended: Callable[[], bool], deadline: float | None) -> None:
        self._source = source
        self._source.settimeout(_STOP_LATENCY)
        self.has_ended = has_ended
        self._deadline = deadline
        self._buffer = bytearray()

    def lines(self) -> Iterator[bytes]:
        """Each line of the body without its end.

        Raises:
            ApiError: the answer is a failure.
            OSError, HTTPException: the connection broke.
        """
        head = self._until(b"\r\n\r\n")
        if head is None:
            return
        status_line, _, fields = head.partition(b"\r\n")
        status = int(status_line.split(None, 2)[1])
        headers = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
        is_chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        parts = self._chunks() if is_chunked else self._rest(int(headers.get("Content-Length", -1)))
        if status >= 400:
            raise error_of(b"".join(parts), status)
        line = bytearray()
        for part in parts:
            *complete, rest = part.split(b"\n")
            for piece in complete:
                yield bytes(line + piece)
                line.clear()
            line += rest

    def _chunks(self) -> Iterator[bytes]:
        while (size := self._until(b"\r\n")) is not None:
            length = int(size.split(b";")[0], 16)
            chunk = self._take(length + 2)
            if not length or chunk is None:
                return
            yield chunk[:-2]

    def _rest(self, length: int) -> Iterator[bytes]:
        if length >= 0:
            yield self._take(length) or b""
            return
        while self._buffer or self._fill():
            yield self._take(len(self._buffer)) or b""

    def _until(self, end: bytes) -> bytes | None:
        searched = 0
        while (found := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end))
            if not self._fill():
                return None
        taken = self._take(found + len(end))
        return taken and taken[: -len(end)]

    def _take(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            if not self._fill():
                return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> bool:
        """Waits for more; False when there will be none."""
        while not self.has_ended():
            try:
                data = self._source.recv(65536)
            except TimeoutError:
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise
                continue
            if not data and self._buffer:
                raise http.client.IncompleteRead(bytes(self._buffer))
            self._buffer += data
            return bool(data)
        return False


class Backoff:
    """Growing pauses with jitter, cut short when there is no more reason to wait."""

    def __init__(self, closed: threading.Event, stop: threading.Event | None) -> None:
        self.closed = closed
        self._stop = stop
        self._seconds = _FIRST_BACKOFF

    def reset(self) -> None:
        """Begins with short pauses again."""
        self._seconds = _FIRST_BACKOFF

    def wait(self) -> None:
        """Waits; the next pause is longer."""
        until = time.monotonic() + self._seconds * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        self._seconds = min(2 * self._seconds, _LONGEST_BACKOFF)
        while (left := until - time.monotonic()) > 0 and not (self._stop is not None and self._stop.is_set()):
            if self.closed.wait(min(left, _STOP_LATENCY)):
                return


def raw_event(line: bytes) -> RawEvent:
    """The event that a line of a watch is.

    Raises:
        Gone: the log no longer reaches back.
        ApiError: the server cannot go on.
    """
    decoded = _decode_event(line)
    body = bytes(decoded.object)
    if decoded.type == "ERROR":
        raise error_of(body, msgspec.json.decode(body).get("code", 500))
    return RawEvent(decoded.type, body, decode_head(body).metadata.resource_version)
