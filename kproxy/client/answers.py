"""What a Kubernetes API answers with beside objects: lists, failures, and what became of an apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kproxy.api.types import Object
from kproxy.errors import AlreadyExists, ApiError, Conflict, Gone, Invalid, NotFound

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


class ListMetadata(msgspec.Struct, rename="camel"):
    """The metadata of a list, and of an object as far as a watch looks at it."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class ListHead(msgspec.Struct):
    """What is read of a list to go on; the rest is passed over."""

    metadata: ListMetadata


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


decode_head = msgspec.json.Decoder(ListHead).decode
"""The head of a list, or of an object."""


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
