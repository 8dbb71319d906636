"""What a list or a watch is asked for, read from its query.

Rules: Kubernetes, apimachinery/pkg/apis/meta/internalversion/validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from aiohttp import web

from kproxy.api.field_errors import FORBIDDEN, FieldError, not_supported
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.paging import Wanted

_EXACT: Final = "Exact"
_NOT_OLDER: Final = "NotOlderThan"


@dataclass(frozen=True)
class WatchOptions:
    """What a watch is asked for.

    Attributes:
        chosen: the objects that it is about.
        version: where it begins, as it was given; "" and "0" begin with all objects there are.
        seconds: how long it lasts; 0 for as long as it takes.
        wants_bookmarks: whether it is told of revisions that it has no event of.
        sends_initial: whether it begins with all objects whatever the version, and says where these end; None leaves it
            to the version.
    """

    chosen: requests.Selection
    version: str
    seconds: int
    wants_bookmarks: bool
    sends_initial: bool | None

    @property
    def begins_with_all(self) -> bool:
        """Whether all objects there are come first."""
        return self.version in ("", "0") if self.sends_initial is None else self.sends_initial


def listing(request: web.Request, target: Target) -> Wanted:
    """Which part of the collection is asked for.

    Raises:
        ApiError: it makes no sense.
    """
    query = request.query
    _check("ListOptions", _list_errors(query))
    version, token = query.get("resourceVersion", ""), query.get("continue", "")
    if token and version not in ("", "0"):
        raise statuses.bad_request("specifying resource version is not allowed when using continue")
    return Wanted(
        kind=target.kind,
        namespace=target.namespace,
        chosen=requests.selection(request, target),
        has_selectors=bool(query.get("labelSelector") or query.get("fieldSelector")),
        limit=_limit(request, version),
        token=token,
        revision=requests.number(request, "resourceVersion"),
        match=cast(Literal["", "Exact", "NotOlderThan"], query.get("resourceVersionMatch", "")),
    )


def _limit(request: web.Request, version: str) -> int:
    """How many objects at most; resourceVersion 0 is answered whole (Kubernetes: cacher.go, shouldDelegateList)."""
    limit = requests.number(request, "limit")
    return 0 if version == "0" else limit


def watching(request: web.Request, target: Target) -> WatchOptions:
    """What the watch is asked for.

    Raises:
        ApiError: it makes no sense.
    """
    query = request.query
    _check("ListOptions", _watch_errors(query))
    requests.number(request, "resourceVersion")
    return WatchOptions(
        chosen=requests.selection(request, target),
        version=query.get("resourceVersion", ""),
        seconds=requests.number(request, "timeoutSeconds"),
        wants_bookmarks=requests.is_true(request, "allowWatchBookmarks"),
        sends_initial=requests.is_true(request, "sendInitialEvents") if "sendInitialEvents" in query else None,
    )


def _check(options: str, errors: Iterator[FieldError]) -> None:
    if found := list(errors):
        raise statuses.invalid_options(options, found)


def _forbidden(field: str, reason: str) -> FieldError:
    return FieldError(field, FORBIDDEN, None, reason)


def _list_errors(query: Mapping[str, str]) -> Iterator[FieldError]:
    match = query.get("resourceVersionMatch", "")
    if match and not query.get("resourceVersion"):
        reason = "resourceVersionMatch is forbidden unless resourceVersion is provided"
        yield _forbidden("resourceVersionMatch", reason)
    if match and query.get("continue"):
        yield _forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
    if match not in ("", _EXACT, _NOT_OLDER):
        yield not_supported("resourceVersionMatch", match, (_EXACT, _NOT_OLDER, ""))
    if match == _EXACT and query.get("resourceVersion") == "0":
        yield _forbidden("resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
    if "sendInitialEvents" in query:
        yield _forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")


def _watch_errors(query: Mapping[str, str]) -> Iterator[FieldError]:
    match = query.get("resourceVersionMatch", "")
    has_initial = "sendInitialEvents" in query
    if has_initial and match != _NOT_OLDER:
        reason = f"sendInitialEvents requires setting resourceVersionMatch to {_NOT_OLDER}"
        yield _forbidden("resourceVersionMatch", reason)
    if match and not has_initial:
        reason = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        yield _forbidden("resourceVersionMatch", reason)
    if match not in ("", _NOT_OLDER):
        yield not_supported("resourceVersionMatch", match, (_NOT_OLDER,))
    if match and query.get("continue"):
        yield _forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
