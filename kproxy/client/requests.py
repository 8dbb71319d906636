"""Requests: one question and its answer, or a stream of lines until somebody has had enough."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from kproxy.client.answers import error_of
from kproxy.client.connections import (
    Credentials,
    FixedCredentials,
    ThreadConnection,
    connector,
    hang_up,
    is_readable,
)
from kproxy.client.streams import RawEvent, Stream, raw_event
from kproxy.errors import Unreachable

_WATCH_GRACE = 30.0  # seconds that a server may be late in ending a watch before the connection counts as dead
UNAUTHORIZED = 401


class Requester:
    """A Kubernetes API; usable from several threads, each of which has a connection of its own.

    Args:
        url: ``unix:///path/to/socket``, ``http://host:port`` or ``https://host:port``, with a path before Kubernetes'
            own if need be.
        ssl_context: for https, whom to trust and what to show; None means the system's authorities.
        headers: sent with every request, such as Authorization.
        credentials: instead of the two, where they may change.
        by_way_of: ``http://host:port`` of a proxy for https; empty for none.
        server_name: the name in the server's certificate where it is another than the URL's host.

    Raises:
        UserError: the URL is none of these.
    """

    def __init__(  # noqa: PLR0913 - each is a thing of its own that a kubeconfig may say, all by name
        self,
        url: str,
        *,
        ssl_context: Any = None,
        headers: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        by_way_of: str = "",
        server_name: str = "",
    ) -> None:
        self.url = url
        self.credentials = credentials or FixedCredentials(ssl_context, headers or {})
        self._connect = connector(url, self.credentials, by_way_of, server_name)
        self._prefix = "" if url.startswith("unix:") else urlsplit(url).path.rstrip("/")
        self._threads = threading.local()
        self.closed = threading.Event()
        self._watches: set[socket.socket] = set()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request, and the body of its answer.

        Raises:
            Unreachable: nobody answers, or not to the end.
            ApiError: the answer is a failure.
        """
        content = None if body is None else msgspec.json.encode(body)
        more = {} if content is None else {"Content-Type": content_type}
        status, answer = self._ask(method, with_query(path, query), content, more)
        if status == UNAUTHORIZED and self.credentials.renew():
            self._threads.held = None
            status, answer = self._ask(method, with_query(path, query), content, more)
        if status >= 400:
            raise error_of(answer, status)
        return answer

    def _ask(self, method: str, path: str, content: bytes | None, more: Mapping[str, str]) -> tuple[int, bytes]:
        held = self._held()  # and thereby kept from being closed by ``close`` while it is in use
        connection = held.connection
        try:
            connection.request(method, self._prefix + path, content, {**self._headers(), **more})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error

    def _headers(self) -> dict[str, str]:
        return {"Accept": "application/json", "User-Agent": "kproxy", **self.credentials.headers()}

    def close(self) -> None:
        """Ends every watch and ``follow`` of this client, in whatever thread; forgets idle connections."""
        self.closed.set()
        for watched in tuple(self._watches):
            hang_up(watched)
        self._threads = threading.local()

    def stream(
        self, path: str, query: Mapping[str, str], timeout_seconds: int, stop: threading.Event | None
    ) -> Iterator[RawEvent]:
        """The events of one watch: see ``Client.watch``."""
        limit = {"timeoutSeconds": str(timeout_seconds)} if timeout_seconds else {}
        connection = self._connect()
        try:
            whole = self._prefix + with_query(path, {**query, "watch": "1", **limit})
            connection.request("GET", whole, headers=self._headers())
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        watched = connection.sock
        self._watches.add(watched)
        try:
            deadline = time.monotonic() + timeout_seconds + _WATCH_GRACE if timeout_seconds else None
            for line in Stream(watched, lambda: self.has_ended(stop), deadline).lines():
                yield raw_event(line)
        except (OSError, http.client.HTTPException) as error:
            if not self.has_ended(stop):
                raise self._unreachable(error) from error
        finally:
            self._watches.discard(watched)
            connection.close()

    def has_ended(self, stop: threading.Event | None) -> bool:
        """Whether the client is closed, or ``stop`` is set."""
        return self.closed.is_set() or (stop is not None and stop.is_set())

    def _held(self) -> ThreadConnection:
        held: ThreadConnection | None = getattr(self._threads, "held", None)
        if held is None:
            held = self._threads.held = ThreadConnection(self._connect())
        connection = held.connection
        if connection.sock is not None and is_readable(connection.sock):
            connection.close()  # the server hung up while it was idle; http.client connects again by itself
        return held

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"the Kubernetes API at {self.url} does not answer: {error or type(error).__name__}")


def with_query(path: str, query: Mapping[str, str] | None) -> str:
    """The path with the query behind it."""
    return f"{path}?{urlencode(query)}" if query else path
