"""Lists as they were at one revision, whole or in pages.

Law: all pages of a list show the same revision; when the store no longer knows it, the client is told so instead of
being shown a mixture.

Rules: Kubernetes, apiserver/pkg/storage/continue.go and etcd3/store.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.store import Compacted, Event, Store, state
from kproxy.errors import ApiError

_LATEST: Final = -1  # Kubernetes: an inconsistent continuation
_VERSION: Final = "meta.k8s.io/v1"
_TOO_OLD: Final = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True)
class Wanted:
    """Which part of a collection is asked for.

    Attributes:
        kind: the kind of the objects.
        namespace: "" for all.
        chosen: whether an object is meant.
        has_selectors: whether objects of the collection may be left out.
        limit: most objects of one page; 0 for all.
        token: where the last page ended; "" for the beginning.
        revision: how old the answer may be, or what it shows exactly; 0 leaves it open.
        match: what ``revision`` means.
    """

    kind: Kind
    namespace: str
    chosen: Callable[[Object], bool]
    has_selectors: bool = False
    limit: int = 0
    token: str = ""
    revision: int = 0
    match: Literal["", "Exact", "NotOlderThan"] = ""


@dataclass(frozen=True)
class Page:
    """Objects, each as its latest change, and the list's metadata."""

    events: list[Event]
    metadata: Object


class _Token(msgspec.Struct):
    v: str
    rv: int
    start: str


def page_of(store: Store, wanted: Wanted) -> Page:
    """What is asked for.

    Raises:
        Gone: that revision is no longer known.
        ApiError: the token is none of ours, or the revision has not been yet.
    """
    start, exact = "", 0
    if wanted.token:
        token = _decoded(wanted.token)
        start, exact = token.start, max(0, token.rv)
    elif wanted.match == "Exact" or (wanted.limit and wanted.revision and not wanted.match):
        exact = wanted.revision
    if wanted.revision > store.revision:
        raise statuses.too_large_revision(wanted.revision, store.revision)
    try:
        events, revision = _at(store, wanted.kind, wanted.namespace, exact)
    except Compacted as error:
        if not wanted.token:
            raise statuses.expired("The resourceVersion for the provided list is too old.") from error
        raise statuses.expired(_TOO_OLD, _encoded(_LATEST, start)) from error
    rest = [event for event in events if _place(event) > start and wanted.chosen(event.object)]
    metadata: Object = {"resourceVersion": str(revision)}
    if not wanted.limit or len(rest) <= wanted.limit:
        return Page(rest, metadata)
    shown = rest[: wanted.limit]
    metadata["continue"] = _encoded(revision, _place(shown[-1]))
    if not wanted.has_selectors:
        metadata["remainingItemCount"] = len(rest) - len(shown)
    return Page(shown, metadata)


def _at(store: Store, kind: Kind, namespace: str, revision: int) -> tuple[list[Event], int]:
    """All objects as they were at a revision; 0 means now."""
    events, newest = store.latest_of(kind, namespace or None)
    if revision in (0, newest):
        return events, newest
    there = {_place(event): event for event in events}
    for event in reversed(store.events_after(revision)):
        if event.revision > newest or event.kind is not kind or (namespace and event.key[1] != namespace):
            continue
        if event.previous is None:
            there.pop(_place(event), None)
        else:
            there[_place(event)] = state(kind, event.previous)
    return [there[place] for place in sorted(there)], revision


def _place(event: Event) -> str:
    """Where an object stands in a list: namespaces and names have no slash, and "-" comes before it."""
    _, namespace, name = event.key
    return f"{namespace}\0{name}"


def _encoded(revision: int, start: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Token(_VERSION, revision, start))).decode().rstrip("=")


def _decoded(text: str) -> _Token:
    try:
        token = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _refused(str(error)) from error
    if token.v != _VERSION:
        raise _refused(f'server does not recognize this encoded version "{token.v}"')
    return token


def _refused(reason: str) -> ApiError:
    return statuses.bad_request(f"continue key is not valid: {reason}")
