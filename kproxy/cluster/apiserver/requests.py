"""What a request asks, read from its query and body."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from kproxy.api import protobuf
from kproxy.api.event_forms import of_core
from kproxy.api.labels import parse_field_selector, parse_selector
from kproxy.api.manifest import is_too_deep
from kproxy.api.selectable_fields import selectable
from kproxy.api.types import Object
from kproxy.api.yaml_text import MAX_DEPTH, TextError, read_yaml
from kproxy.cluster import statuses
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.responses import JSON
from kproxy.errors import ApiError

OBJECT_LIMIT = 3 * 1024 * 1024
"""Bytes of one object, everywhere."""
REQUEST_LIMIT = 64 * 1024 * 1024
"""Bytes of one apply: several files of up to 16 MB."""
YAML = "application/yaml"
OBJECT_TYPES = (JSON, YAML, protobuf.MEDIA_TYPE)
"""What an object may be sent as."""

_CONTENT = web.RequestKey("content", bytes)
_YAML_LIMIT = 256 * 1024  # bytes; reading so much takes a quarter of a second, in which Python does nothing else


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
    fields = parse_field_selector(query.get("fieldSelector", ""), selectable(target.kind))
    return Selection(target.namespace, labels, fields)


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


async def value(request: web.Request, limit: int = OBJECT_LIMIT, *, is_yaml: bool = False) -> Any:
    """What the body says, in JSON or in YAML.

    Raises:
        ApiError: it is neither, or larger than ``limit`` bytes.
    """
    content = await _content(request, limit)
    decoded = await _from_yaml(content) if is_yaml else _from_json(content)
    if is_too_deep(decoded):
        raise statuses.bad_request(f"the body is nested more than {MAX_DEPTH} levels deep")
    return decoded


async def body(request: web.Request, limit: int = OBJECT_LIMIT) -> Object:
    """The body as an object of JSON, or of YAML or protobuf if it says so.

    Raises:
        ApiError: it is none, or larger than ``limit`` bytes.
    """
    if request.content_type == protobuf.MEDIA_TYPE:
        decoded = await _from_protobuf(await _content(request, limit))
    else:
        decoded = await value(request, limit, is_yaml=request.content_type == YAML)
    if not isinstance(decoded, dict):
        raise statuses.bad_request("the body is not an object")
    return decoded


async def object_sent(request: web.Request, target: Target) -> Object:
    """The object in the body, in the form that is stored.

    Raises:
        ApiError: as for ``body``.
    """
    sent = await body(request)
    return of_core(sent) if target.seen_as is not None else sent


def check_media_type(request: web.Request) -> None:
    """Returns when the body is of a type that objects may be sent in; one that says nothing is taken for JSON.

    Raises:
        ApiError: 415.
    """
    if request.can_read_body and "Content-Type" in request.headers and request.content_type not in OBJECT_TYPES:
        raise statuses.unsupported_media_type(OBJECT_TYPES)


async def _content(request: web.Request, limit: int) -> bytes:
    """The body, read no further than the limit, and once: who is asked about it first keeps it for the others."""
    if (content := request.get(_CONTENT)) is None:
        if (request.content_length or 0) > limit:
            raise statuses.too_large(limit)
        read = bytearray()
        while chunk := await request.content.readany():
            read += chunk
            if len(read) > limit:  # in chunks, or compressed: its length was not told
                raise statuses.too_large(limit)
        content = request[_CONTENT] = bytes(read)
    return content


async def _from_protobuf(content: bytes) -> Object:
    try:
        return await asyncio.to_thread(protobuf.decode, content)
    except protobuf.NotProtobuf as error:
        raise statuses.bad_request(f"the body is no object in protobuf: {error}") from error


def _from_json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise statuses.bad_request(f"the body is not JSON: {error}") from error


async def _from_yaml(content: bytes) -> Any:
    """The value of a document of YAML, of which JSON is the part that is quick to read."""
    with contextlib.suppress(ApiError):
        return _from_json(content)
    if len(content) > _YAML_LIMIT:
        raise statuses.too_large(_YAML_LIMIT)
    try:
        roots = await asyncio.to_thread(lambda: list(read_yaml(content.decode())))
    except (UnicodeDecodeError, TextError) as error:
        raise statuses.bad_request(f"the body is not YAML: {error}") from error
    if len(roots) != 1:
        raise statuses.bad_request(f"the body is {len(roots)} documents of YAML instead of one")
    return roots[0].value
