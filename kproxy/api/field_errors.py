"""One complaint about one field, worded as the Kubernetes API words it.

Law: the texts here are what a person sees from a real kube-apiserver for the same mistake
(Kubernetes: apimachinery/pkg/util/validation/field/errors.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec


class ErrorKind(Enum):
    """Kubernetes' kinds of field errors: the words in a message, and the reason in a Status cause."""

    REQUIRED = ("Required value", "FieldValueRequired")
    INVALID = ("Invalid value", "FieldValueInvalid")
    TYPE_INVALID = ("Invalid value", "FieldValueTypeInvalid")
    NOT_SUPPORTED = ("Unsupported value", "FieldValueNotSupported")
    DUPLICATE = ("Duplicate value", "FieldValueDuplicate")
    FORBIDDEN = ("Forbidden", "FieldValueForbidden")
    TOO_LONG = ("Too long", "FieldValueTooLong")
    TOO_MANY = ("Too many", "FieldValueTooMany")
    NOT_FOUND = ("Not found", "FieldValueNotFound")
    INTERNAL = ("Internal error", "InternalError")
    UNKNOWN_FIELD = ("unknown field", "FieldValueInvalid")

    def __init__(self, words: str, reason: str) -> None:
        self.words = words
        self.reason = reason


REQUIRED: Final = ErrorKind.REQUIRED
INVALID: Final = ErrorKind.INVALID
TYPE_INVALID: Final = ErrorKind.TYPE_INVALID
NOT_SUPPORTED: Final = ErrorKind.NOT_SUPPORTED
DUPLICATE: Final = ErrorKind.DUPLICATE
FORBIDDEN: Final = ErrorKind.FORBIDDEN
TOO_LONG: Final = ErrorKind.TOO_LONG
TOO_MANY: Final = ErrorKind.TOO_MANY
NOT_FOUND: Final = ErrorKind.NOT_FOUND
INTERNAL: Final = ErrorKind.INTERNAL
UNKNOWN_FIELD: Final = ErrorKind.UNKNOWN_FIELD

_WITHOUT_VALUE = frozenset((REQUIRED, FORBIDDEN, TOO_LONG, INTERNAL, UNKNOWN_FIELD))


@dataclass(frozen=True)
class FieldError:
    """One field that is wrong.

    Attributes:
        field: Kubernetes field path, ``spec.ports[0].port``.
        kind: what sort of mistake.
        value: the offending value; printed only for the kinds of which Kubernetes prints it.
        detail: what is wrong in words; may be empty.
    """

    field: str
    kind: ErrorKind
    value: Any = None
    detail: str = ""

    def body(self) -> str:
        """The message without the field: ``Invalid value: 0: must be between 1 and 65535, inclusive``."""
        text = self.kind.words
        if self.kind is UNKNOWN_FIELD:
            return f"{text} {quoted(self.field)}" + (f", {self.detail}" if self.detail else "")
        if self.kind not in _WITHOUT_VALUE:
            text += f": {rendered(self.value)}"
        return f"{text}: {self.detail}" if self.detail else text

    def message(self) -> str:
        """The whole message: ``spec.ports[0].port: Invalid value: 0: must be ...``."""
        if self.kind is UNKNOWN_FIELD:
            return self.body()
        return f"{self.field}: {self.body()}"

    def cause(self) -> dict[str, str]:
        """The entry of ``details.causes`` in a Status: reason, message, field."""
        return {"reason": self.kind.reason, "message": self.body(), "field": self.field}


def required(field: str, detail: str = "") -> FieldError:
    """``Required value``."""
    return FieldError(field, REQUIRED, None, detail)


def invalid(field: str, value: Any, detail: str) -> FieldError:
    """``Invalid value`` with the value."""
    return FieldError(field, INVALID, value, detail)


def not_supported(field: str, value: Any, supported: Sequence[str]) -> FieldError:
    """``Unsupported value``, naming the supported ones in the order given."""
    return FieldError(field, NOT_SUPPORTED, value, "supported values: " + ", ".join(map(quoted, supported)))


def duplicate(field: str, value: Any) -> FieldError:
    """``Duplicate value`` with the value."""
    return FieldError(field, DUPLICATE, value)


def forbidden(field: str, detail: str) -> FieldError:
    """``Forbidden``; the value is not shown."""
    return FieldError(field, FORBIDDEN, None, detail)


def too_long(field: str, limit: int) -> FieldError:
    """``Too long``; limit in bytes."""
    return FieldError(field, TOO_LONG, None, f"may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    """``Too many`` with the count that was given."""
    return FieldError(field, TOO_MANY, count, f"must have at most {limit} items")


def invalid_message(kind: str, name: str, errors: Iterable[FieldError]) -> str:
    """The message of a 422 Status: ``Service "web" is invalid: ...``.

    One error stands alone, several are listed in brackets; repeated ones count once
    (Kubernetes: api/errors NewInvalid, utilerrors.Aggregate).
    """
    messages = list(dict.fromkeys(error.message() for error in errors))
    listed = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
    return f"{kind} {quoted(name)} is invalid: {listed}"


def rendered(value: Any) -> str:
    """A value as Kubernetes prints it in an error: text quoted, numbers plain, anything else as compact JSON.

    Fields keep their order; Go sorts the keys of maps, which is the caller's to do.
    """
    if value is None:
        return quoted("null")
    if isinstance(value, str):
        return quoted(value)
    text = _as_json(value)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _as_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (ValueError, OverflowError, TypeError):
        # An integer of more than 64 bits: it is the mistake that is being reported.
        return str(value)


_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_ESCAPES |= {'"': r"\"", "\\": r"\\"}


def quoted(text: str) -> str:
    """Text as Go's %q prints it: in double quotes, with everything unprintable escaped."""
    return '"' + "".join(_ESCAPES.get(letter) or _quoted_letter(letter) for letter in text) + '"'


def _quoted_letter(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
