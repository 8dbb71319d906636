"""What a request asks, read from its query and body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web

from kproxy.api.labels import parse_field_selector, parse_selector
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.deletion import DeleteOptions

OBJECT_LIMIT = 3 * 1024 * 1024
"""Bytes of one object, everywhere."""
REQUEST_LIMIT = 64 * 1024 * 1024
"""Bytes of one apply: several files of up to 16 MB."""


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


def selection(request: web.Request, target: Target) -> Selection:
    """The objects that the request's namespace and selectors choose."""
    query = request.query
    labels = parse_selector(query.get("labelSelector", ""))
    return Selection(target.namespace, labels, parse_field_selector(query.get("fieldSelector", "")))


def number(request: web.Request, name: str) -> int:
    """A number of the query; 0 when it is not there.

    Raises:
        ApiError: it is none.
    """
    text = request.query.get(name) or "0"
    if not text.isdecimal() or len(text) > 18:
        raise statuses.bad_request(f"{name}: Invalid value: {text!r}: must be a number")
    return int(text)


def is_true(request: web.Request, name: str) -> bool:
    """A boolean of the query; False when it is not there."""
    return request.query.get(name) in ("1", "true")


def is_dry_run(request: web.Request) -> bool:
    """Whether nothing is to be stored."""
    return request.query.get("dryRun") == "All"


async def body(request: web.Request, limit: int = OBJECT_LIMIT) -> Object:
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


def delete_options(request: web.Request, options: Object) -> DeleteOptions:
    """How to delete, by the query and the body.

    Raises:
        ApiError: it makes no sense.
    """
    grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    if grace is not None:
        if not str(grace).isdecimal():
            raise statuses.bad_request(f"gracePeriodSeconds: Invalid value: {grace!r}: must be a number, 0 or greater")
        grace = int(grace)
    preconditions = options.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise statuses.bad_request("preconditions is not an object")
    return DeleteOptions(grace, str(preconditions.get("uid") or ""), str(preconditions.get("resourceVersion") or ""))
