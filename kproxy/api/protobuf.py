"""Objects in Kubernetes' protobuf, which kubectl sends for what it makes up itself (``kubectl create deployment``).

Law: pure; what comes out is what the same client would have sent as JSON. Only reading is needed: every client takes
JSON for an answer. Fields of a number that the table does not have are passed over, as by any reader of protobuf.
Source: apimachinery/pkg/runtime/serializer/protobuf; the numbers are generated (``generate_protobuf_fields.py``).
"""

from __future__ import annotations

import base64
import functools
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from kproxy.api.types import Object

MEDIA_TYPE: Final = "application/vnd.kubernetes.protobuf"

_MAGIC: Final = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Field = tuple[str, str, bool]


class NotProtobuf(Exception):
    """The bytes are no object of Kubernetes' protobuf."""


def decode(content: bytes) -> Object:
    """The object, with its apiVersion and kind.

    Raises:
        NotProtobuf: it is none, or of a kind that is not known.
    """
    if not content.startswith(_MAGIC):
        raise NotProtobuf("it does not begin with the four bytes of Kubernetes' protobuf")
    envelope = dict(_parts(memoryview(content)[len(_MAGIC) :]))
    named = {number: _text(value) for number, value in _parts(_bytes(envelope.get(1, b"")))}
    api_version, kind = named.get(1, ""), named.get(2, "")
    type_name = _table()["kinds"].get(f"{api_version}/{kind}")
    if type_name is None:
        raise NotProtobuf(f'no kind "{kind}" in version "{api_version}" is known')
    return {"apiVersion": api_version, "kind": kind, **_message(_bytes(envelope.get(2, b"")), type_name)}


def _message(content: memoryview, type_name: str) -> Object:
    fields: Mapping[str, Field] = _table()["types"][type_name]
    found: Object = {}
    for number, value in _parts(content):
        field = fields.get(str(number))
        if field is None:
            continue
        name, field_type, is_pointer = field
        if field_type.startswith("["):
            found.setdefault(name, []).append(_value(value, field_type[1:-1]))
        elif field_type.startswith("{"):
            entry = _parts_of(value)
            found.setdefault(name, {})[_text(entry.get(1, b""))] = _value(entry.get(2, b""), field_type[1:-1])
        else:
            converted = _value(value, field_type)
            if not name:  # what JSON has inline
                found |= converted
            elif is_pointer or converted not in (None, "", 0, False, {}):  # Go writes down what is not set, too
                found[name] = converted
    return found


def _value(value: Any, field_type: str) -> Any:
    convert = _CONVERTERS.get(field_type)
    return _message(_bytes(value), field_type) if convert is None else convert(value)


def _text(value: Any) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError as error:
        raise NotProtobuf("a string is not UTF-8") from error


def _integer(value: Any) -> int:
    if isinstance(value, int):
        return value - (1 << 64) if value >> 63 else value
    if len(value) == 0:  # the value of a map that is zero
        return 0
    raise NotProtobuf("a number is not a number")


def _boolean(value: Any) -> bool:
    return bool(_integer(value))


def _base64(value: Any) -> str:
    return base64.b64encode(_bytes(value)).decode()


def _parts_of(value: Any) -> dict[int, Any]:
    return dict(_parts(_bytes(value)))


def _moment(value: Any) -> datetime | None:
    parts = _parts_of(value)
    if not parts:
        return None
    try:
        return _EPOCH + timedelta(seconds=_integer(parts.get(1, 0)), microseconds=_integer(parts.get(2, 0)) // 1000)
    except OverflowError as error:
        raise NotProtobuf("a time is out of range") from error


def _time(value: Any) -> str | None:
    moment = _moment(value)
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _microtime(value: Any) -> str | None:
    moment = _moment(value)
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _quantity(value: Any) -> str:
    return _text(_parts_of(value).get(1, b""))


def _int_or_string(value: Any) -> int | str:
    parts = _parts_of(value)
    return _text(parts.get(3, b"")) if parts.get(1) else _integer(parts.get(2, 0))


def _fields(value: Any) -> Any:
    try:
        return msgspec.json.decode(_bytes(_parts_of(value).get(1, b"{}")))
    except msgspec.DecodeError as error:
        raise NotProtobuf("what should be JSON is none") from error


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "string": _text,
    "int": _integer,
    "bool": _boolean,
    "bytes": _base64,
    "time": _time,
    "microtime": _microtime,
    "quantity": _quantity,
    "int-or-string": _int_or_string,
    "fields": _fields,
}


# ----- the encoding itself


def _bytes(value: Any) -> memoryview:
    if isinstance(value, int):
        raise NotProtobuf("a number stands where a text or message belongs")
    return memoryview(value)


def _parts(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field; a value is a number or a piece of the content."""
    position, end = 0, len(content)
    while position < end:
        key, position = _varint(content, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(content, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(content, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise NotProtobuf(f"there is no wire type {wire_type}")
        if length > end - position:
            raise NotProtobuf("it ends in the middle of a field")
        yield number, content[position : position + length]
        position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for index in range(_LONGEST_VARINT):
        if position + index >= len(content):
            raise NotProtobuf("it ends in the middle of a number")
        byte = content[position + index]
        result |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return result & (1 << 64) - 1, position + index + 1
    raise NotProtobuf("a number is too long")


@functools.cache
def _table() -> Any:
    data = pkgutil.get_data("kproxy.api", "protobuf_fields.json")
    if data is None:  # pragma: no cover - only a broken installation
        raise FileNotFoundError("kproxy/api/protobuf_fields.json is missing from the installation")
    return json.loads(data)
