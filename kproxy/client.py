"""The one Kubernetes client: list, watch, create, update, patch, delete, over a unix socket or TCP.

Law: it knows Kubernetes' HTTP conventions and nothing of what the objects mean. It is synchronous and light to import,
for a node proxy starts with it; what runs side by side runs in threads (docs/decisions/0030-http-client.md).
"""

from __future__ import annotations

import http.client
import io
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

import msgspec

from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.errors import AlreadyExists, ApiError, Conflict, Gone, Invalid, NotFound, Unreachable, UserError

APPLIES_PATH = "/apis/kproxy.dev/v1alpha1/applies"
LAB_PATH = "/apis/kproxy.dev/v1alpha1/lab"

_REQUEST_TIMEOUT = 60.0  # seconds; an apply of 10,000 objects takes a few
_STOP_LATENCY = 0.5  # seconds until a quiet watch looks at its stop event
_WATCH_SECONDS = (300, 600)  # as client-go's reflector: a watch is renewed after 5 to 10 minutes
_WATCH_GRACE = 30.0  # seconds that a server may be late in ending a watch before the connection counts as dead
_SHORT_WATCH = 1.0  # seconds; a watch that ends sooner and told nothing counts as a failure, as in client-go
_PAGE = 500  # objects, client-go's pager
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.05, 5.0  # seconds; a restarted control plane is back within a second

_UNAUTHORIZED = 401

_ERRORS: Mapping[str, type[ApiError]] = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Expired": Gone,
    "Gone": Gone,
    "Invalid": Invalid,
}


@dataclass(frozen=True)
class Listing:
    """All objects of a kind, and the resourceVersion at which that was all of them."""

    items: list[Object]
    resource_version: str


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


class Credentials(Protocol):
    """Whom a client trusts and what it shows; both may change while it lives. Called from any thread."""

    def ssl_context(self) -> Any:
        """For a new connection by https: an ssl.SSLContext, or None for the system's authorities."""

    def headers(self) -> Mapping[str, str]:
        """Sent with every request, such as Authorization."""

    def renew(self) -> bool:
        """After the server said 401: whether there is something else to show now."""


@dataclass(frozen=True)
class _FixedCredentials:
    """Credentials that never change."""

    context: Any
    shown: Mapping[str, str]

    def ssl_context(self) -> Any:
        """See Credentials."""
        return self.context

    def headers(self) -> Mapping[str, str]:
        """See Credentials."""
        return self.shown

    def renew(self) -> bool:
        """See Credentials."""
        return False


class Applied(msgspec.Struct, frozen=True, rename="camel"):
    """What became of one document; ``object`` is what is stored, or for a dry run would be."""

    index: int
    kind: str
    name: str
    outcome: Literal["created", "configured", "unchanged", "deleted"]
    namespace: str = ""
    object: dict[str, Any] = {}


class ApplyWarning(msgspec.Struct, frozen=True, rename="camel"):
    """Something about one document that a person should know and that is no error."""

    index: int
    message: str


class ApplyResult(msgspec.Struct, frozen=True, rename="camel"):
    """What became of an apply; resource_version is the revision at which all of it is visible."""

    results: tuple[Applied, ...] = ()
    warnings: tuple[ApplyWarning, ...] = ()
    resource_version: str = "0"


class Client:
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
        self._credentials = credentials or _FixedCredentials(ssl_context, headers or {})
        self._connect = _connector(url, self._credentials, by_way_of, server_name)
        self._prefix = "" if url.startswith("unix:") else urlsplit(url).path.rstrip("/")
        self._threads = threading.local()
        self._closed = threading.Event()
        self._watches: set[socket.socket] = set()

    # ----- one object, one answer

    def list(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> Listing:
        """All objects of a kind; namespace None means all namespaces.

        Raises:
            Unreachable: nobody answers.
            ApiError: the server refused.
        """
        body = msgspec.json.decode(
            self.list_raw(kind, namespace, label_selector=label_selector, field_selector=field_selector)
        )
        # Items of a list come without kind and apiVersion from a real API server.
        named = {"apiVersion": kind.api_version, "kind": kind.name}
        items = [named | item for item in body.get("items") or ()]
        return Listing(items, body["metadata"]["resourceVersion"])

    def list_raw(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> bytes:
        """The same as JSON, for callers that decode into types of their own.

        Raises:
            Unreachable: nobody answers.
            ApiError: the server refused.
        """
        return self.request("GET", kind.path(namespace), query=_selectors(label_selector, field_selector))

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """The object of that name.

        Raises:
            NotFound: there is none.
            Unreachable: nobody answers.
        """
        return _object(self.request("GET", kind.path(namespace, quote(name, safe=""))))

    def create(
        self, kind: Kind, obj: Object, namespace: str | None = None, *, name: str = "", subresource: str = ""
    ) -> Object:
        """Creates the object and returns it as stored.

        Args:
            kind: its kind.
            obj: the object; its own metadata.namespace counts when ``namespace`` is None.
            namespace: where to create it.
            name: with ``subresource``, the object whose subresource is posted to (a pod's ``binding``).
            subresource: see ``name``.

        Raises:
            AlreadyExists: the name is taken.
            Invalid: it was refused.
            Unreachable: nobody answers; whether it was created is unknown.
        """
        path = kind.path(namespace or _namespace(obj), name or None) + (f"/{subresource}" if subresource else "")
        return _object(self.request("POST", path, body=obj))

    def update(self, kind: Kind, obj: Object, subresource: str = "") -> Object:
        """Replaces the object, or one subresource of it (``status``), and returns it as stored.

        Raises:
            Conflict: its metadata.resourceVersion is no longer the stored one's.
            NotFound: there is none.
            Invalid: it was refused.
            Unreachable: nobody answers; whether it was replaced is unknown.
        """
        path = kind.path(_namespace(obj), quote(obj["metadata"]["name"], safe=""))
        return _object(self.request("PUT", path + (f"/{subresource}" if subresource else ""), body=obj))

    def patch(
        self, kind: Kind, name: str, patch: Object, namespace: str | None = None, subresource: str = ""
    ) -> Object:
        """Merges ``patch`` into the object (RFC 7386) and returns it as stored.

        Raises:
            Conflict: the patch names a resourceVersion that is no longer the stored one's.
            NotFound: there is none.
            Invalid: the result was refused.
            Unreachable: nobody answers; whether it was changed is unknown.
        """
        path = kind.path(namespace, quote(name, safe="")) + (f"/{subresource}" if subresource else "")
        return _object(self.request("PATCH", path, body=patch, content_type="application/merge-patch+json"))

    def delete(  # noqa: PLR0913 - Kubernetes' own options, all by name
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        grace_seconds: int | None = None,
        uid: str = "",
        propagation: str = "",
    ) -> Object:
        """Deletes the object, or begins to; returns its last state, or the Status.

        Args:
            kind: its kind.
            name: its name.
            namespace: None for kinds without namespaces.
            grace_seconds: for pods, how long their processes may take to end; 0 removes the object at once.
            uid: when given, only the object with this uid is meant, not a later one of the same name.
            propagation: what becomes of objects that it owns: "Background", "Foreground", "Orphan"; "" leaves it open.

        Raises:
            NotFound: there is none.
            Conflict: the uid is another.
            Unreachable: nobody answers; whether it was deleted is unknown.
        """
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid:
            options["preconditions"] = {"uid": uid}
        if propagation:
            options["propagationPolicy"] = propagation
        return _object(self.request("DELETE", kind.path(namespace, quote(name, safe="")), body=options))

    def apply(
        self, documents: Sequence[Mapping[str, Any]], *, dry_run: bool = False, delete: bool = False
    ) -> ApplyResult:
        """Makes all documents so, or none of them (the lab's own addition to Kubernetes' API).

        Args:
            documents: ``{"object": {...}}`` each; errors name them by their place in this list.
            dry_run: only say what would come of it.
            delete: delete the objects that the documents name instead.

        Raises:
            Invalid: at least one was refused; ``status["details"]["causes"]`` has ``index`` beside field and message.
            Unreachable: nobody answers; whether it was done is unknown.
        """
        request = {"documents": list(documents), "dryRun": dry_run, "delete": delete}
        return msgspec.json.decode(self.request("POST", APPLIES_PATH, body=request), type=ApplyResult)

    def lab_status(self) -> Object:
        """The lab's own status: nodes, clients, pods, processes (the lab's own addition to Kubernetes' API).

        Raises:
            Unreachable: nobody answers.
        """
        return _object(self.request("GET", LAB_PATH))

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
        status, answer = self._ask(method, _with_query(path, query), content, more)
        if status == _UNAUTHORIZED and self._credentials.renew():
            self._threads.held = None
            status, answer = self._ask(method, _with_query(path, query), content, more)
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
        return {"Accept": "application/json", "User-Agent": "kproxy", **self._credentials.headers()}

    def close(self) -> None:
        """Ends every watch and ``follow`` of this client, in whatever thread; forgets idle connections."""
        self._closed.set()
        for watched in tuple(self._watches):
            _hang_up(watched)
        self._threads = threading.local()

    # ----- streams

    def watch(  # noqa: PLR0913 - Kubernetes' own options, all by name
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 0,
        bookmarks: bool = True,
        stop: threading.Event | None = None,
    ) -> Iterator[WatchEvent]:
        """What happens to objects of a kind after ``resource_version``, as it happens.

        Ends when the server ends it (``timeout_seconds``, 0 for no limit), when ``stop`` is set (within half a second)
        or when the client is closed (at once).

        Raises:
            Gone: that resourceVersion is no longer (or not yet) known: list again.
            Unreachable: nobody answers, or the connection broke.
            ApiError: the server refused.
        """
        query = _selectors(label_selector, field_selector) | {"resourceVersion": resource_version}
        if bookmarks:
            query["allowWatchBookmarks"] = "true"
        for event in self._watch_raw(kind.path(namespace), query, timeout_seconds, stop):
            yield WatchEvent(event.type, _object(event.object))

    def _watch_raw(
        self, path: str, query: Mapping[str, str], timeout_seconds: int, stop: threading.Event | None
    ) -> Iterator[RawEvent]:
        limit = {"timeoutSeconds": str(timeout_seconds)} if timeout_seconds else {}
        connection = self._connect()
        try:
            whole = self._prefix + _with_query(path, {**query, "watch": "1", **limit})
            connection.request("GET", whole, headers=self._headers())
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        watched = connection.sock
        self._watches.add(watched)
        try:
            deadline = time.monotonic() + timeout_seconds + _WATCH_GRACE if timeout_seconds else None
            for line in _Stream(watched, lambda: self._has_ended(stop), deadline).lines():
                yield _raw_event(line)
        except (OSError, http.client.HTTPException) as error:
            if not self._has_ended(stop):
                raise self._unreachable(error) from error
        finally:
            self._watches.discard(watched)
            connection.close()

    def follow(  # noqa: PLR0913 - Kubernetes' own options, all by name
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        bookmarks: bool = True,
        stop: threading.Event | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Iterator[Snapshot | WatchEvent]:
        """All objects of a kind, then what happens to them, for as long as it takes: see ``follow_raw``."""
        named = {"apiVersion": kind.api_version, "kind": kind.name}
        for told in self.follow_raw(
            kind,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            bookmarks=bookmarks,
            stop=stop,
            on_error=on_error,
        ):
            if isinstance(told, RawSnapshot):
                items = [named | item for page in told.pages for item in msgspec.json.decode(page).get("items") or ()]
                yield Snapshot(items, told.resource_version)
            else:
                yield WatchEvent(told.type, _object(told.object))

    def follow_raw(  # noqa: PLR0913 - Kubernetes' own options, all by name
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        bookmarks: bool = True,
        stop: threading.Event | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Iterator[RawSnapshot | RawEvent]:
        """All objects of a kind, then what happens to them, for as long as it takes, as JSON.

        A watch that ends is resumed where it was; one that cannot be (410 Gone) begins again with a snapshot. A server
        that is away is tried again, at growing intervals of up to five seconds. Ends only with ``stop`` or ``close``.

        As client-go's reflector does it: the first list may be as old as the server likes (resourceVersion 0, which it
        answers from memory), one after a gap may not; lists come in pages where the server wants it so.

        Args:
            kind: what to follow.
            namespace: None means all namespaces.
            label_selector: only objects that match.
            field_selector: only objects that match.
            bookmarks: also yield BOOKMARK events.
            stop: ends it within half a second.
            on_error: told of each failure that is being waited out, for a log.
        """
        path, selection = kind.path(namespace), _selectors(label_selector, field_selector)
        changes = selection | ({"allowWatchBookmarks": "true"} if bookmarks else {})
        age, position = {"resourceVersion": "0"}, ""
        backoff = _Backoff(self._closed, stop)
        while not self._has_ended(stop):
            began, is_news = time.monotonic(), False
            try:
                if not position:
                    snapshot = self._list_pages(path, selection, age)
                    position = snapshot.resource_version
                    yield snapshot
                seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - spreads load, guards nothing
                for event in self._watch_raw(path, {**changes, "resourceVersion": position}, seconds, stop):
                    position, is_news = event.resource_version, True
                    backoff.reset()
                    yield event
            except Gone:
                position, age = "", {}
            except (Unreachable, ApiError) as error:
                if on_error is not None and not self._has_ended(stop):
                    on_error(error)
                if isinstance(error, ApiError) and error.code == _UNAUTHORIZED:
                    self._credentials.renew()
                backoff.wait()
            else:
                if not is_news and time.monotonic() - began < _SHORT_WATCH:
                    backoff.wait()

    def _list_pages(self, path: str, selection: Mapping[str, str], age: Mapping[str, str]) -> RawSnapshot:
        """A whole list; if its next page is no longer to be had, all of it anew in one."""
        query = {**selection, **age, "limit": str(_PAGE)}
        pages = [self.request("GET", path, query=query)]
        head = msgspec.json.decode(pages[0], type=_ListHead).metadata
        more = head.continue_
        while more:
            try:
                pages.append(self.request("GET", path, query={**selection, "limit": str(_PAGE), "continue": more}))
            except Gone:
                return self._list_pages_in_one(path, selection)
            more = msgspec.json.decode(pages[-1], type=_ListHead).metadata.continue_
        return RawSnapshot(pages, head.resource_version)

    def _list_pages_in_one(self, path: str, selection: Mapping[str, str]) -> RawSnapshot:
        page = self.request("GET", path, query=selection)
        return RawSnapshot([page], msgspec.json.decode(page, type=_ListHead).metadata.resource_version)

    def _has_ended(self, stop: threading.Event | None) -> bool:
        return self._closed.is_set() or (stop is not None and stop.is_set())

    def _held(self) -> _ThreadConnection:
        held: _ThreadConnection | None = getattr(self._threads, "held", None)
        if held is None:
            held = self._threads.held = _ThreadConnection(self._connect())
        connection = held.connection
        if connection.sock is not None and _is_readable(connection.sock):
            connection.close()  # the server hung up while it was idle; http.client connects again by itself
        return held

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"the Kubernetes API at {self.url} does not answer: {error or type(error).__name__}")


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _ListHead(msgspec.Struct):
    """What is read of a list to go on; the rest is passed over."""

    metadata: _Metadata


class _EventLine(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_REQUEST_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS to a server whose certificate may bear another name."""

    def __init__(self, host: str, port: int | None, context: Any, server_name: str) -> None:
        super().__init__(host, port, timeout=_REQUEST_TIMEOUT, context=context)
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        if not self._server_name or self._tls is None:
            super().connect()
            return
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


class _ThreadConnection:
    """A connection that is closed when its thread ends."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class _Stream:
    """The lines of an endless answer, read so that a time-out in the middle of one loses nothing.

    (http.client cannot go on after a time-out, and a watch has to look at its stop event now and then.)
    """

    def __init__(self, source: socket.socket, has_ended: Callable[[], bool], deadline: float | None) -> None:
        self._source = source
        self._source.settimeout(_STOP_LATENCY)
        self._has_ended = has_ended
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
        while not self._has_ended():
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


class _Backoff:
    """Growing pauses with jitter, cut short when there is no more reason to wait."""

    def __init__(self, closed: threading.Event, stop: threading.Event | None) -> None:
        self._closed = closed
        self._stop = stop
        self._seconds = _FIRST_BACKOFF

    def reset(self) -> None:
        self._seconds = _FIRST_BACKOFF

    def wait(self) -> None:
        until = time.monotonic() + self._seconds * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        self._seconds = min(2 * self._seconds, _LONGEST_BACKOFF)
        while (left := until - time.monotonic()) > 0 and not (self._stop is not None and self._stop.is_set()):
            if self._closed.wait(min(left, _STOP_LATENCY)):
                return


def error_of(answer: bytes, code: int) -> ApiError:
    """The error that a failed answer means; its body is a Status, or whatever a proxy on the way made of it."""
    try:
        status = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        text = answer.decode(errors="replace").strip()
        status = {"kind": "Status", "status": "Failure", "code": code, "message": text or f"HTTP status {code}"}
    return _ERRORS.get(str(status.get("reason")), ApiError)(status)


def _raw_event(line: bytes) -> RawEvent:
    decoded = _decode_event(line)
    body = bytes(decoded.object)
    if decoded.type == "ERROR":
        raise error_of(body, msgspec.json.decode(body).get("code", 500))
    return RawEvent(decoded.type, body, _decode_head(body).metadata.resource_version)


_decode_event = msgspec.json.Decoder(_EventLine).decode
_decode_head = msgspec.json.Decoder(_ListHead).decode


def _connector(
    url: str, credentials: Credentials, by_way_of: str, server_name: str
) -> Callable[[], http.client.HTTPConnection]:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        path = unquote(parts.path)
        return lambda: _UnixConnection(path)
    if parts.hostname and parts.scheme in ("http", "https") and not (parts.query or parts.fragment):
        return lambda: _tcp_connection(parts, credentials, by_way_of, server_name)
    raise UserError(f"{url!r} is no address of a Kubernetes API: unix:///path, http://host:port or https://host:port")


def _tcp_connection(
    parts: SplitResult, credentials: Credentials, by_way_of: str, server_name: str
) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_REQUEST_TIMEOUT)
    if not by_way_of:
        return _TlsConnection(host, port, credentials.ssl_context(), server_name)
    proxy = urlsplit(by_way_of)
    connection = _TlsConnection(proxy.hostname or "", proxy.port or 80, credentials.ssl_context(), server_name or host)
    connection.set_tunnel(host, port or 443)
    return connection


def _object(body: bytes) -> Object:
    decoded: Object = msgspec.json.decode(body)
    return decoded


def _namespace(obj: Object) -> str | None:
    namespace: str | None = obj.get("metadata", {}).get("namespace")
    return namespace


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    given = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in given.items() if value}


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _is_readable(idle: socket.socket) -> bool:
    poll = select.poll()
    poll.register(idle, select.POLLIN)
    return bool(poll.poll(0))


def _hang_up(watched: socket.socket) -> None:
    try:
        watched.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return
