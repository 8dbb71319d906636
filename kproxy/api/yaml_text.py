"""YAML text to values and lines, within bounds.

Law: any text gives documents or one ``TextError``. Scalars mean what they mean to kubectl (go-yaml 2): YAML 1.1 without
dates and base-60 numbers, octal with a leading zero. Nothing recurses: PyYAML's own composer does, in C, and would
end the process on deep nesting.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from kproxy.api.field_errors import quoted
from kproxy.api.known_fields import child

MAX_DEPTH: Final = 100  # objects of these kinds are about 15 deep
MAX_VALUES: Final = 2_000_000  # values in one file, aliases not counted
MAX_ALIASED_VALUES: Final = 100_000  # values that aliases may add to one file, keys among them
LETTERS_PER_VALUE: Final = 64  # so much text weighs as much as one more value: a long text repeated is a bomb as well

# Lines are kept for paths up to this long, and for no more characters of paths than this in one file.
_MAX_PATH: Final = 500
_MAX_PATHS: Final = 32 * 1024 * 1024

_EXACT_IN_FLOAT: Final = 2**53


class TextError(Exception):
    """The text is no manifest; what was read before it stands.

    Attributes:
        line: 1-based line; 0 when unknown.
        reason: what is wrong.
        path: the field concerned; empty when there is none.
    """

    def __init__(self, line: int, reason: str, path: str = "") -> None:
        self.line = line
        self.reason = reason
        self.path = path
        super().__init__(reason)


@dataclass(frozen=True)
class Root:
    """One document as read: any value, its first line, the lines of its fields."""

    value: Any
    line: int
    lines: Mapping[str, int]


def read_yaml(text: str) -> Iterator[Root]:
    """The documents of a text in their order, empty ones (None) too.

    Raises:
        TextError: from the first place on that cannot be read.
    """
    composer = _Composer()
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                composer.start(_line_of(event))
            elif isinstance(event, yaml.DocumentEndEvent):
                yield composer.root()
            else:
                composer.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        last_line = text.rstrip("\n").count("\n") + 1
        raise TextError(min(mark.line + 1, last_line) if mark else 0, f"not YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, int(error.position)) + 1
        raise TextError(line, f"not YAML: {error.reason}") from None


def _line_of(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


@dataclass
class _Open:
    """A mapping or sequence that has begun: its value so far, where it stands, and what is still to come."""

    value: dict[str, Any] | list[Any]
    line: int
    path: str | None
    anchor: str | None
    key: str | None = None
    merged: dict[str, Any] = field(default_factory=dict)
    size: int = 1
    height: int = 1


@dataclass(frozen=True)
class _Anchored:
    """What an anchor stands for, how much it adds (in values, long text weighing more than one), how deep it is."""

    value: Any
    size: int
    height: int


class _Composer:
    """Builds a document from the parser's events, without recursion and within the bounds.

    PyYAML's own composer recurses in C and would end the process on deep nesting; and building values at once leaves
    no tree of nodes to hold.
    """

    def __init__(self) -> None:
        self._values = 0
        self._aliased = 0
        self._path_letters = 0
        self.start(1)

    def start(self, line: int) -> None:
        """A new document; anchors do not reach across documents."""
        self._line = line
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}
        self._lines: dict[str, int] = {}
        self._root: Any = None

    def root(self) -> Root:
        """The document that has ended."""
        return Root(self._root, self._line, self._lines)

    def take(self, event: yaml.Event) -> None:
        """One event inside a document.

        Raises:
            TextError: a bound is passed, or the text means something that an object cannot hold.
        """
        line = _line_of(event)
        if isinstance(event, yaml.ScalarEvent):
            self._count(event, line)
            value = event.value if event.style else _resolved(event.value, line)
            size = 1 + len(event.value) // LETTERS_PER_VALUE
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(value, size, 0)
            if self._open:
                self._open[-1].size += size
            self._put(value, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._count(event, line)
            self._begin({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(line)
        elif isinstance(event, yaml.AliasEvent):
            self._take_alias(str(event.anchor), line)

    def _count(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.tag is not None:
            raise TextError(line, f"YAML tags are not allowed: {event.tag}")
        self._values += 1
        if self._values > MAX_VALUES:
            raise TextError(line, f"more than {MAX_VALUES} values in one file")

    def _begin(self, value: dict[str, Any] | list[Any], anchor: str | None, line: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise TextError(line, f"nested more than {MAX_DEPTH} deep")
        if self._open:
            self._refuse_as_key(line)
            path = self._path_of_next()
        else:
            self._line = line
            path = ""
        self._note(path, line)
        self._open.append(_Open(value, line, path, anchor))

    def _close(self, line: int) -> None:
        closed = self._open.pop()
        value = closed.value
        if isinstance(value, dict):
            for key, item in closed.merged.items():
                value.setdefault(key, item)
        if closed.anchor is not None:
            self._anchors[closed.anchor] = _Anchored(value, closed.size, closed.height)
        if self._open:
            self._open[-1].size += closed.size
            self._open[-1].height = max(self._open[-1].height, closed.height + 1)
        self._put(value, line, is_noted=True)

    def _take_alias(self, name: str, line: int) -> None:
        if any(parent.anchor == name for parent in self._open):
            raise TextError(line, f"anchor {quoted(name)} value contains itself")
        anchored = self._anchors.get(name)
        if anchored is None:
            raise TextError(line, f"unknown anchor {quoted(name)} referenced")
        self._aliased += anchored.size
        if self._aliased > MAX_ALIASED_VALUES:
            most = f"aliases may add at most {MAX_ALIASED_VALUES} values to a file"
            raise TextError(line, f"document contains excessive aliasing: {most}")
        if len(self._open) + anchored.height > MAX_DEPTH:
            raise TextError(line, f"nested more than {MAX_DEPTH} deep")
        if self._open:
            self._open[-1].size += anchored.size
            self._open[-1].height = max(self._open[-1].height, anchored.height + 1)
        self._put(_copied(anchored.value), line)

    def _put(self, value: Any, line: int, *, is_noted: bool = False) -> None:
        """Puts a finished value where it belongs: as the document, as an item, as a key or as a key's value."""
        if not self._open:
            self._root = value
            return
        parent = self._open[-1]
        if isinstance(parent.value, list):
            if not is_noted:
                self._note(self._path_of_next(), line)
            parent.value.append(value)
        elif parent.key is None:
            self._refuse_as_key(line, value)
            parent.key = _key(value, line)
            if parent.key in parent.value:
                raise TextError(line, f"key {quoted(parent.key)} already set in map", parent.path or "")
            self._note(self._path_of_next(), line)
        elif parent.key == "<<":
            parent.key = None
            _merge(parent.merged, value, line)
        else:
            parent.value[parent.key] = value
            parent.key = None

    def _refuse_as_key(self, line: int, value: Any = None) -> None:
        parent = self._open[-1]
        if isinstance(parent.value, dict) and parent.key is None and (value is None or isinstance(value, dict | list)):
            raise TextError(line, "a key must be text", parent.path or "")

    def _path_of_next(self) -> str | None:
        parent = self._open[-1]
        if parent.path is None:
            return None
        if isinstance(parent.value, list):
            path = f"{parent.path}[{len(parent.value)}]"
        else:
            path = child(parent.path, parent.key or "")
        return path if len(path) <= _MAX_PATH else None

    def _note(self, path: str | None, line: int) -> None:
        if path and self._path_letters < _MAX_PATHS:
            self._path_letters += len(path)
            self._lines.setdefault(path, line)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _merge(into: dict[str, Any], value: Any, line: int) -> None:
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, dict):
            raise TextError(line, "map merge requires map or sequence of maps as the value")
        for key, item in source.items():
            into.setdefault(key, item)


def _key(value: Any, line: int) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise TextError(line, "a key must be text, not null")
    return json.dumps(value)


_TRUE: Final = frozenset(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"))
_FALSE: Final = frozenset(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"))
_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_INT: Final = re.compile(r"[-+]?(0[bB][01]+|0[xX][0-9a-fA-F]+|0[oO]?[0-7]*|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def _resolved(text: str, line: int) -> Any:
    """What a plain scalar means to kubectl (go-yaml 2, resolve.go): dates and 1:30 stay text, 0644 is octal."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in _NULL:
        return None
    if not text.startswith(("+", "-", ".", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")):
        return text
    if _NOT_FINITE.fullmatch(text):
        raise TextError(line, f"{text} is not a number that an object can hold")
    plain = text.replace("_", "")
    if _INT.fullmatch(plain) and len(plain) <= _LONGEST_INT and (number := _integer(plain)) in _INT64:
        return number
    if _FLOAT.fullmatch(plain):
        try:
            return finite(plain)
        except ValueError:
            raise TextError(line, "the number is too large") from None
    return text


_LONGEST_INT: Final = 67  # a sign, 0b and 64 bits
_INT64: Final = range(-(2**63), 2**64)


def _integer(plain: str) -> int:
    digits = plain.lstrip("+-")
    is_old_octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    number = int(digits, 8) if is_old_octal else int(digits, 0)
    return -number if plain.startswith("-") else number


def finite(text: str) -> float | int:
    """The number that a decimal text means to kubectl, which reads 80.0 and 8e1 as 80.

    Raises:
        ValueError: it is too large to be one.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return int(number) if number.is_integer() and abs(number) < _EXACT_IN_FLOAT else number
