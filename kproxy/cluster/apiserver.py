"""The Kubernetes HTTP API over the store: paths, verbs, selectors, watches.

Law: what an object may be is the registry's business; here HTTP becomes a call of it and its answer becomes HTTP.
Writes run one at a time in a thread of their own, so that the loop, which serves reads and watches, never waits for
the disk.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web

from kproxy.api.kinds import KINDS, POD, Kind
from kproxy.api.labels import parse_field_selector, parse_selector
from kproxy.api.types import Object
from kproxy.client import APPLIES_PATH, LAB_PATH
from kproxy.cluster import statuses
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.deletion import DeleteOptions
from kproxy.cluster.registry import Registry
from kproxy.cluster.store import Compacted, Event, Store
from kproxy.cluster.writes import Answer
from kproxy.errors import ApiError, HostError, UserError

OBJECT_LIMIT = 3 * 1024 * 1024
"""Bytes of one object, everywhere."""
REQUEST_LIMIT = 64 * 1024 * 1024
"""Bytes of one apply: several files of up to 16 MB."""

_BOOKMARK_DELAY = 0.004  # seconds: one bookmark then tells of a burst of commits
_SHUTDOWN_SECONDS = 1.0
_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
_RESOURCES = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """What a path names.

    Attributes:
        kind: the kind.
        namespace: "" for all of them, or for a kind without namespaces.
        name: "" for the collection.
        subresource: "" for the object itself.
    """

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name


@dataclass(frozen=True)
class Selection:
    """Which objects of a kind a list or watch is about."""

    namespace: str
    labels: Callable[[Mapping[str, str]], bool]
    fields: Callable[[Object], bool]

    def __call__(self, obj: Object | None) -> bool:
        """Whether the object is one of them; None is not."""
        if obj is None:
            return False
        metadata = obj["metadata"]
        if self.namespace and metadata.get("namespace") != self.namespace:
            return False
        return self.labels(metadata.get("labels") or {}) and self.fields(obj)


def resolve(path: str) -> Target | None:
    """What a request path names, or None when no resource is there.

    Args:
        path: the path as sent, percent-encoded.
    """
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case ["api", version, *rest] if rest:
            group = ""
        case ["apis", group, version, *rest] if rest:
            pass
        case _:
            return None
    if len(rest) >= 3 and rest[0] == "namespaces" and (kind := _RESOURCES.get((group, version, rest[2]))):
        return _target(kind, rest[1], rest[3:]) if kind.namespaced and rest[1] else None
    kind = _RESOURCES.get((group, version, rest[0]))
    if kind is None or (kind.namespaced and len(rest) > 1):
        return None
    return _target(kind, "", rest[1:])


def _target(kind: Kind, namespace: str, rest: list[str]) -> Target | None:
    if len(rest) > 2 or "" in rest:
        return None
    name, subresource = (*rest, "", "")[:2]
    known = {"", "status"} | ({"binding"} if kind is POD else set())
    return Target(kind, namespace, name, subresource) if subresource in known else None


def make_app(store: Store, *, cluster: ClusterSettings, lab_status: Callable[[], Any]) -> web.Application:
    """The API as an aiohttp application.

    Args:
        store: where the objects are.
        cluster: its ranges and families.
        lab_status: what ``GET /apis/kproxy.dev/v1alpha1/lab`` answers, as msgspec encodes it; called in a thread.
    """
    registry = Registry(store, cluster)
    registry.bootstrap()
    api = _Api(store, registry, lab_status)
    app = web.Application(client_max_size=REQUEST_LIMIT)
    app.on_startup.append(api.start)
    app.on_shutdown.append(api.stop)
    app.router.add_route("*", "/{path:.*}", api.handle)
    return app


class _Api:
    """The handlers; everything but the registry's writes happens in the loop's thread."""

    def __init__(self, store: Store, registry: Registry, lab_status: Callable[[], Any]) -> None:
        self._store = store
        self._registry = registry
        self._lab_status = lab_status
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="api-writer")
        self._is_stopping = False
        self._changed: asyncio.Future[None]
        self._end_listening: Callable[[], None]

    async def start(self, _: web.Application) -> None:
        """Begins to pass commits on to the watches."""
        loop = asyncio.get_running_loop()
        self._changed = loop.create_future()
        self._end_listening = self._store.listen(lambda: loop.call_soon_threadsafe(self._wake))

    async def stop(self, _: web.Application) -> None:
        """Ends every watch, and waits for the write that is under way."""
        self._end_listening()
        self._is_stopping = True
        self._wake()
        await asyncio.to_thread(self._writer.shutdown)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request."""
        try:
            return await self._answer(request)
        except ApiError as error:
            return _failure(error)
        except UserError as error:
            return _failure(statuses.bad_request(str(error)))
        except web.HTTPRequestEntityTooLarge:
            return _failure(statuses.too_large(REQUEST_LIMIT))
        except HostError as error:
            _LOG.error("%s %s: %s", request.method, request.path, error)
            return _failure(statuses.internal(str(error)))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a bug of ours: the client hears of it, the server goes on
            _LOG.exception("%s %s", request.method, request.path)
            return _failure(statuses.internal(f"{type(error).__name__}: {error}"))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        own = _OWN_PATHS.get((request.method, path))
        if own is not None:
            return await own(self, request)
        target = resolve(path)
        if target is None:
            raise statuses.no_such_path()
        verb = _VERBS.get((request.method, bool(target.name), target.subresource))
        if verb is None:
            raise statuses.method_not_allowed()
        return await verb(self, request, target)

    # ----- reading

    async def _get(self, _: web.Request, target: Target) -> web.StreamResponse:
        return _json(self._registry.get(target.kind, *target.key))

    async def _list(self, request: web.Request, target: Target) -> web.StreamResponse:
        selection = _selection(request, target)
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, target.kind, selection)
        events, revision = self._store.latest_of(target.kind, target.namespace or None)
        bodies = b",".join(event.body for event in events if selection(event.object))
        head = {"kind": f"{target.kind.name}List", "apiVersion": target.kind.api_version}
        start = msgspec.json.encode(head | {"metadata": {"resourceVersion": str(revision)}})
        return web.Response(body=start[:-1] + b',"items":[' + bodies + b"]}", content_type=_JSON)

    async def _watch(self, request: web.Request, kind: Kind, selection: Selection) -> web.StreamResponse:
        position, first = self._start_of_watch(request, kind, selection)
        seconds = _number(request, "timeoutSeconds")
        wants_bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        response = web.StreamResponse(headers={"Content-Type": _JSON})
        response.enable_chunked_encoding()
        await response.prepare(request)
        stream = _WatchStream(self, kind, selection, position, wants_bookmarks=wants_bookmarks)
        try:
            async with asyncio.timeout(seconds or None):
                await response.write(b"".join(first))
                await stream.send_to(response)
        except TimeoutError:
            pass
        await response.write_eof()
        return response

    def _start_of_watch(self, request: web.Request, kind: Kind, selection: Selection) -> tuple[int, list[bytes]]:
        """Where the watch begins, and what it sends before: without a resourceVersion, all objects there are."""
        position = _number(request, "resourceVersion")
        if position:
            try:
                self._store.events_after(position)
            except Compacted as error:
                raise statuses.expired(str(error)) from error
            return position, []
        events, revision = self._store.latest_of(kind, selection.namespace or None)
        return revision, [_line("ADDED", event.body) for event in events if selection(event.object)]

    async def _show_lab(self, _: web.Request) -> web.StreamResponse:
        return _json(await asyncio.to_thread(self._lab_status))

    async def _show_health(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    # ----- writing

    async def _write(self, change: Callable[..., T], *args: Any, **options: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, functools.partial(change, *args, **options))

    async def _create(self, request: web.Request, target: Target) -> web.StreamResponse:
        obj = await _body(request)
        metadata = obj.get("metadata")
        namespace = target.namespace
        if target.kind.namespaced and not namespace:
            raise statuses.method_not_allowed()
        if metadata is None:
            obj["metadata"] = {}
        answer = await self._write(self._registry.create, target.kind, namespace, obj, dry_run=_is_dry_run(request))
        return _answered(answer, 201)

    async def _bind(self, request: web.Request, target: Target) -> web.StreamResponse:
        binding = await _body(request)
        bound_to = binding.get("target")
        node = bound_to.get("name") if isinstance(bound_to, dict) else None
        if not isinstance(node, str) or not node:
            raise statuses.bad_request("target.name: Required value")
        await self._write(self._registry.bind, *target.key, node)
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    async def _update(self, request: web.Request, target: Target) -> web.StreamResponse:
        obj = await _body(request)
        answer = await self._write(
            self._registry.update, target.kind, target.key, obj, target.subresource, dry_run=_is_dry_run(request)
        )
        return _answered(answer)

    async def _patch(self, request: web.Request, target: Target) -> web.StreamResponse:
        if request.content_type != _MERGE_PATCH:
            raise statuses.unsupported_media_type(request.content_type, _MERGE_PATCH)
        patch = await _body(request)
        answer = await self._write(
            self._registry.patch, target.kind, target.key, patch, target.subresource, dry_run=_is_dry_run(request)
        )
        return _answered(answer)

    async def _delete(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = _delete_options(request, await _body(request) if request.can_read_body else {})
        deleted = await self._write(
            self._registry.delete, target.kind, target.key, options, dry_run=_is_dry_run(request)
        )
        return _json(deleted)

    async def _apply(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, REQUEST_LIMIT)
        documents = body.get("documents")
        if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
            raise statuses.bad_request("documents: a list of objects is needed")
        for index, document in enumerate(documents):
            if len(msgspec.json.encode(document)) > OBJECT_LIMIT:
                raise statuses.bad_request(f"document {index} is larger than {OBJECT_LIMIT} bytes")
        options = {"dry_run": body.get("dryRun") is True, "delete": body.get("delete") is True}
        return _json(await self._write(self._registry.apply, documents, **options))

    # ----- what a watch needs

    @property
    def is_stopping(self) -> bool:
        """Whether the server is going away."""
        return self._is_stopping

    @property
    def changed(self) -> asyncio.Future[None]:
        """Done at the next commit; take it before reading the log, so that no commit is missed."""
        return self._changed

    def events_after(self, position: int) -> list[Event]:
        """See Store."""
        return list(self._store.events_after(position))


class _WatchStream:
    """One watch: a place in the log that moves on, and what the client has been told of it."""

    def __init__(self, api: _Api, kind: Kind, selection: Selection, position: int, *, wants_bookmarks: bool) -> None:
        self._api = api
        self._kind = kind
        self._selection = selection
        self._position = position
        self._told = position
        self._wants_bookmarks = wants_bookmarks

    async def send_to(self, response: web.StreamResponse) -> None:
        """Sends events as they happen, until the server stops or the log has gone on too far.

        A client that takes bookmarks has been told of the newest revision, by an event or by a bookmark, a few
        milliseconds after every commit.
        """
        is_bookmark_due = False
        while not self._api.is_stopping:
            changed = self._api.changed
            try:
                lines = list(self._next_lines())
            except Compacted as error:
                await response.write(_line("ERROR", msgspec.json.encode(statuses.expired(str(error)).status)))
                return
            if is_bookmark_due and self._told < self._position:
                lines.append(self._bookmark())
            if lines:
                await response.write(b"".join(lines))
            is_bookmark_due = self._wants_bookmarks and self._told < self._position
            if is_bookmark_due:
                await asyncio.sleep(_BOOKMARK_DELAY)
            else:
                await asyncio.shield(changed)

    def _next_lines(self) -> Iterator[bytes]:
        for event in self._api.events_after(self._position):
            self._position = event.revision
            if event.kind is not self._kind:
                continue
            line = _event_line(event, self._selection)
            if line:
                self._told = event.revision
                yield line

    def _bookmark(self) -> bytes:
        self._told = self._position
        head = {"kind": self._kind.name, "apiVersion": self._kind.api_version}
        return _line("BOOKMARK", msgspec.json.encode(head | {"metadata": {"resourceVersion": str(self._position)}}))


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
        self._stopping = asyncio.Event()
        self._is_ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self) -> None:
        """Serves from now on.

        Raises:
            HostError: the socket cannot be made.
        """
        self._thread.start()
        self._is_ready.wait()
        if self._failure is not None:
            raise HostError(f"cannot serve the API at {self._path}: {self._failure}") from self._failure

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
            self._app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        try:
            await runner.setup()
            await web.SockSite(runner, _listen(self._path)).start()
        except OSError as error:
            self._failure = error
            return
        finally:
            self._is_ready.set()
        await self._stopping.wait()
        await runner.cleanup()
        self._path.unlink(missing_ok=True)


def serve(store: Store, path: Path, *, cluster: ClusterSettings, lab_status: Callable[[], Any]) -> Server:
    """A running server of the API; ``stop`` ends it.

    Raises:
        HostError: the socket cannot be made.
    """
    server = Server(make_app(store, cluster=cluster, lab_status=lab_status), path)
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


def _event_line(event: Event, selection: Selection) -> bytes | None:
    """What a watch of that selection sends about an event; an object that leaves the selection counts as deleted."""
    was, is_now = selection(event.previous), event.type != "DELETED" and selection(event.object)
    if not was and not is_now:
        return None
    event_type = "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED"
    return _line(event_type, event.body)


def _line(event_type: str, body: bytes) -> bytes:
    return b'{"type":"' + event_type.encode() + b'","object":' + body + b"}\n"


def _selection(request: web.Request, target: Target) -> Selection:
    query = request.query
    labels = parse_selector(query.get("labelSelector", ""))
    return Selection(target.namespace, labels, parse_field_selector(query.get("fieldSelector", "")))


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name) or "0"
    if not text.isdecimal() or len(text) > 18:
        raise statuses.bad_request(f"{name}: Invalid value: {text!r}: must be a number")
    return int(text)


def _is_dry_run(request: web.Request) -> bool:
    return request.query.get("dryRun") == "All"


async def _body(request: web.Request, limit: int = OBJECT_LIMIT) -> Object:
    """The body as an object of JSON.

    Raises:
        ApiError: it is none, or larger than ``limit`` bytes.
    """
    content = await request.read()
    if len(content) > limit:
        raise statuses.too_large(limit)
    try:
        decoded = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise statuses.bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise statuses.bad_request("the body is not a JSON object")
    return decoded


def _delete_options(request: web.Request, body: Object) -> DeleteOptions:
    grace = body.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    if grace is not None:
        if not str(grace).isdecimal():
            raise statuses.bad_request(f"gracePeriodSeconds: Invalid value: {grace!r}: must be a number, 0 or greater")
        grace = int(grace)
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise statuses.bad_request("preconditions is not an object")
    return DeleteOptions(grace, str(preconditions.get("uid") or ""), str(preconditions.get("resourceVersion") or ""))


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=_JSON)


def _failure(error: ApiError) -> web.Response:
    return _json(error.status, error.code)


def _answered(answer: Answer, status: int = 200) -> web.Response:
    response = _json(answer.object, status)
    for warning in answer.warnings:
        response.headers.add("Warning", f'299 - "{_header_text(warning)}"')
    return response


def _header_text(text: str) -> str:
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return printable.replace("\\", "\\\\").replace('"', '\\"')


_Verb = Callable[[_Api, web.Request, Target], Awaitable[web.StreamResponse]]
_VERBS: Mapping[tuple[str, bool, str], _Verb] = {
    ("GET", False, ""): _Api._list,
    ("POST", False, ""): _Api._create,
    ("GET", True, ""): _Api._get,
    ("GET", True, "status"): _Api._get,
    ("PUT", True, ""): _Api._update,
    ("PUT", True, "status"): _Api._update,
    ("PATCH", True, ""): _Api._patch,
    ("PATCH", True, "status"): _Api._patch,
    ("DELETE", True, ""): _Api._delete,
    ("POST", True, "binding"): _Api._bind,
}
_OWN_PATHS: Mapping[tuple[str, str], Callable[[_Api, web.Request], Awaitable[web.StreamResponse]]] = {
    ("POST", APPLIES_PATH): _Api._apply,
    ("GET", LAB_PATH): _Api._show_lab,
    ("GET", "/healthz"): _Api._show_health,
    ("GET", "/livez"): _Api._show_health,
    ("GET", "/readyz"): _Api._show_health,
}
