"""Kubernetes' verbs: list, get, create, update, patch, delete, watch, and following a kind for as long as it takes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.client.answers import ApplyResult, Listing, decode_head
from kproxy.client.requests import UNAUTHORIZED, Requester
from kproxy.client.streams import Backoff, RawEvent, RawSnapshot, Snapshot, WatchEvent
from kproxy.errors import ApiError, Gone, Unreachable

APPLIES_PATH = "/apis/kproxy.dev/v1alpha1/applies"
LAB_PATH = "/apis/kproxy.dev/v1alpha1/lab"

_WATCH_SECONDS = (300, 600)  # as client-go's reflector: a watch is renewed after 5 to 10 minutes
_SHORT_WATCH = 1.0  # seconds; a watch that ends sooner and told nothing counts as a failure, as in client-go
_PAGE = 500  # objects, client-go's pager


class Client(Requester):
    """A Kubernetes API; usable from several threads, each of which has a connection of its own.

    Args and errors: see ``Requester``.
    """

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
        for event in self.stream(kind.path(namespace), query, timeout_seconds, stop):
            yield WatchEvent(event.type, _object(event.object))

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
        backoff = Backoff(self.closed, stop)
        while not self.has_ended(stop):
            began, is_news = time.monotonic(), False
            try:
                if not position:
                    snapshot = self._list_pages(path, selection, age)
                    position = snapshot.resource_version
                    yield snapshot
                seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - spreads load, guards nothing
                for event in self.stream(path, {**changes, "resourceVersion": position}, seconds, stop):
                    position, is_news = event.resource_version, True
                    backoff.reset()
                    yield event
            except Gone:
                position, age = "", {}
            except (Unreachable, ApiError) as error:
                if on_error is not None and not self.has_ended(stop):
                    on_error(error)
                if isinstance(error, ApiError) and error.code == UNAUTHORIZED:
                    self.credentials.renew()
                backoff.wait()
            else:
                if not is_news and time.monotonic() - began < _SHORT_WATCH:
                    backoff.wait()

    def _list_pages(self, path: str, selection: Mapping[str, str], age: Mapping[str, str]) -> RawSnapshot:
        """A whole list; if its next page is no longer to be had, all of it anew in one."""
        query = {**selection, **age, "limit": str(_PAGE)}
        pages = [self.request("GET", path, query=query)]
        head = decode_head(pages[0]).metadata
        more = head.continue_
        while more:
            try:
                pages.append(self.request("GET", path, query={**selection, "limit": str(_PAGE), "continue": more}))
            except Gone:
                return self._list_pages_in_one(path, selection)
            more = decode_head(pages[-1]).metadata.continue_
        return RawSnapshot(pages, head.resource_version)

    def _list_pages_in_one(self, path: str, selection: Mapping[str, str]) -> RawSnapshot:
        page = self.request("GET", path, query=selection)
        return RawSnapshot([page], decode_head(page).metadata.resource_version)


def _object(body: bytes) -> Object:
    decoded: Object = msgspec.json.decode(body)
    return decoded


def _namespace(obj: Object) -> str | None:
    namespace: str | None = obj.get("metadata", {}).get("namespace")
    return namespace


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    given = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in given.items() if value}
