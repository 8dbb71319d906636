"""The one message that kubectl sends as protobuf only: the SelfSubjectAccessReview of ``kubectl auth can-i``.

Law: pure. What is not needed is passed over, as protobuf wants it; what is broken is refused.

Source: k8s.io/apimachinery/pkg/runtime/serializer/protobuf and k8s.io/api/authorization/v1/generated.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api.types import Object

CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"
_MAGIC: Final = b"k8s\0"
_RAW: Final = 2
_SPEC: Final = 2
_RESOURCE, _NON_RESOURCE = 1, 2
_RESOURCE_FIELDS: Final = {
    1: "namespace",
    2: "verb",
    3: "group",
    4: "version",
    5: "resource",
    6: "subresource",
    7: "name",
}
_NON_RESOURCE_FIELDS: Final = {1: "path", 2: "verb"}


def read_access_review(content: bytes) -> Object:
    """The review as JSON would have it.

    Raises:
        ValueError: it is none.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin as Kubernetes' protobuf does")
    raw = _one(content[len(_MAGIC) :], _RAW)
    spec = _one(raw, _SPEC)
    read: Object = {}
    for number, name, fields in (
        (_RESOURCE, "resourceAttributes", _RESOURCE_FIELDS),
        (_NON_RESOURCE, "nonResourceAttributes", _NON_RESOURCE_FIELDS),
    ):
        for found, value in _fields(spec):
            if found == number:
                read[name] = {fields[key]: text.decode() for key, text in _fields(value) if key in fields}
    return {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": read}


def _one(message: bytes, number: int) -> bytes:
    return next((value for found, value in _fields(message) if found == number), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field that has a length; the others are passed over."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        match key & 7:
            case 0:
                _, position = _varint(message, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                if position + length > len(message):
                    raise ValueError("a field is longer than the message")
                yield key >> 3, message[position : position + length]
                position += length
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other} is unknown")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            raise ValueError("it ends in the middle of a number")
        octet = message[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise ValueError("a number is longer than 64 bits")
