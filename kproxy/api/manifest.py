"""Manifest text to objects, each knowing the file and the line of every field.

Law: any bytes give documents or findings and never an exception; what is too large, too deep or blown up by aliases is
refused before it costs much. YAML is read as kubectl reads it (YAML 1.1 scalars without dates and base-60 numbers);
JSON goes a fast road of its own and finds its lines only when somebody asks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import yaml

from kproxy.api.field_errors import DUPLICATE, FieldError, quoted
from kproxy.api.kinds import BY_API
from kproxy.api.known_fields import child
from kproxy.api.types import Object
from kproxy.errors import Finding

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_OBJECT_BYTES: Final = 3 * 1024 * 1024  # what kube-apiserver takes in one request (limit of a resource's JSON)
MAX_DEPTH: Final = 100  # objects of these kinds are about 15 deep
MAX_VALUES: Final = 2_000_000  # values in one file, aliases not counted
MAX_ALIASED_VALUES: Final = 100_000  # values that aliases may add to one file

# Lines are kept for paths up to this long, and for no more characters of paths than this in one file.
_MAX_PATH: Final = 500
_MAX_PATHS: Final = 32 * 1024 * 1024

_EXACT_IN_FLOAT: Final = 2**53
_CHUNK: Final = re.compile(r"(\[[^\]]*\]|\.[^.\[]*)$")
# Errors name the plural, and one field with a capital, where people may have written the other.
_WRITTEN_AS: Final = {
    "spec.clusterIPs": "spec.clusterIP",
    "spec.LoadBalancerSourceRanges": "spec.loadBalancerSourceRanges",
    "status.podIPs": "status.podIP",
}
_BRACKETED_NAME: Final = re.compile(r"\[([A-Za-z_$][A-Za-z0-9_$-]*)\]")


@dataclass(frozen=True)
class Origin:
    """Where an object was written.

    Attributes:
        file: path as the user gave it; ``-`` for standard input.
        line: 1-based first line of the document or list item.
        lines: Kubernetes field paths (``spec.ports[0].nodePort``) to 1-based lines.
    """

    file: str
    line: int
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def line_of(self, field_path: str) -> int:
        """The line of a field, or of the nearest field above it that is written down."""
        path = _BRACKETED_NAME.sub(r".\1", field_path)
        for name, written in _WRITTEN_AS.items():
            if path.startswith(name) and name not in self.lines:
                path = written + path[len(name) :]
        while path:
            if (line := self.lines.get(path)) is not None:
                return line
            path = path[: match.start()] if (match := _CHUNK.search(path)) else ""
        return self.line


@dataclass(frozen=True)
class Document:
    """One object and where it was written."""

    origin: Origin
    obj: Object

    def findings(self, errors: Iterable[FieldError]) -> list[Finding]:
        """Field errors of this object as findings with file, line and object."""
        return [finding(self.origin, self.obj, error.field, error.body()) for error in errors]


def finding(origin: Origin, obj: Object, field_path: str, reason: str) -> Finding:
    """A finding about one field of an object that stands at ``origin``."""
    return Finding(origin.file, origin.line_of(field_path), subject(obj), field_path, reason)


def subject(obj: Object) -> str:
    """``Service "default/web"``; without a namespace ``Node "node1"``; whatever of it is known.

    Names are shown as they are written, so they are quoted.
    """
    kind = obj.get("kind")
    metadata = obj.get("metadata")
    name = (metadata.get("name") or metadata.get("generateName")) if isinstance(metadata, dict) else None
    words = kind if isinstance(kind, str) and kind.isprintable() else ""
    if not isinstance(name, str):
        return words
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    full = f"{namespace}/{name}" if isinstance(namespace, str) and namespace else name
    return f"{words} {quoted(full)}".strip()


def read(text: bytes, file: str, *, max_bytes: int = MAX_FILE_BYTES) -> tuple[list[Document], list[Finding]]:
    """All objects of a manifest, in their order, and everything that is wrong with its text.

    Takes any number of YAML documents or a JSON object; empty documents are passed over and ``List`` kinds unrolled. A
    syntax error ends the file: the documents before it are returned beside the finding. Fields and kinds are not
    looked at (``known_fields.check``).

    Args:
        text: the file's content, UTF-8 with or without a byte order mark.
        file: its name for findings; ``.json`` means that errors are JSON's.
        max_bytes: how long the text may be.
    """
    if len(text) > max_bytes:
        reason = f"the file is too large: {len(text)} bytes, at most {max_bytes} are read"
        return [], [Finding(file, 0, "", "", reason)]
    try:
        decoded = _decoded(text)
        roots = _read_json(decoded, file) or _read_yaml(decoded)
    except _TextError as error:
        return [], [Finding(file, error.line, "", "", error.reason)]
    documents: list[Document] = []
    findings: list[Finding] = []
    try:
        for root in roots:
            for item in _unrolled(root, file):
                if isinstance(item, Finding):
                    findings.append(item)
                else:
                    documents.append(item)
    except _TextError as error:
        findings.append(Finding(file, error.line, "", error.path, error.reason))
    if not documents and not findings:
        findings.append(Finding(file, 0, "", "", "no objects in this file"))
    return documents, findings


def duplicates(documents: Iterable[Document], default_namespace: str = "default") -> list[tuple[int, FieldError]]:
    """The documents that name an object which an earlier one of the same request names already.

    Args:
        documents: all objects of one apply.
        default_namespace: where namespaced objects without a namespace go.

    Returns:
        Index into ``documents`` and the error, for the second and every later document of one name.
    """
    seen: dict[tuple[str, str, str, str], Document] = {}
    found = []
    for index, document in enumerate(documents):
        key = identity(document.obj, default_namespace)
        if key is None:
            continue
        first = seen.setdefault(key, document)
        if first is not document:
            place = f"{first.origin.file}:{first.origin.line}"
            found.append((index, duplicate_name(document.obj, f"the same object is already at {place}")))
    return found


def duplicate_name(obj: Object, detail: str) -> FieldError:
    """The error for a second object of one name in one request."""
    return FieldError("metadata.name", DUPLICATE, obj["metadata"]["name"], detail)


def identity(obj: Object, default_namespace: str = "default") -> tuple[str, str, str, str] | None:
    """Group, kind, namespace and name: what makes two documents one object; None while it has no name.

    Cluster-scoped kinds have an empty namespace, whatever is written there.
    """
    api_version, kind, metadata = obj.get("apiVersion"), obj.get("kind"), obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not (isinstance(metadata, dict) and isinstance(name, str) and name):
        return None
    group = str(api_version).rpartition("/")[0]
    known = BY_API.get((str(api_version), str(kind)))
    namespaced = known is None or known.namespaced
    namespace = str(metadata.get("namespace") or default_namespace) if namespaced else ""
    return group, str(kind), namespace, name


class _TextError(Exception):
    def __init__(self, line: int, reason: str, path: str = "") -> None:
        self.line = line
        self.reason = reason
        self.path = path
        super().__init__(reason)


@dataclass(frozen=True)
class _Root:
    """One document as read: any value, its first line, the lines of its fields."""

    value: Any
    line: int
    lines: Mapping[str, int]


def _decoded(text: bytes) -> str:
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _TextError(line, f"not a text file: byte {error.start} is not UTF-8") from None
    if "\0" in decoded:
        raise _TextError(decoded.count("\n", 0, decoded.index("\0")) + 1, "not a text file: it has NUL characters")
    return decoded


# --- from values to documents


def _unrolled(root: _Root, file: str) -> Iterator[Document | Finding]:
    value = root.value
    if value is None:
        return
    origin = Origin(file, root.line, root.lines)
    if not isinstance(value, dict):
        yield Finding(file, root.line, "", "", f"a Kubernetes object must be a mapping, not {_name_of_type(value)}")
    elif (kind := value.get("kind")) and isinstance(kind, str) and kind.endswith("List") and _is_list(value):
        yield from _items_of_list(value, kind, origin)
    else:
        yield _bounded(Document(origin, value))


def _is_list(value: dict[str, Any]) -> bool:
    return isinstance(value.get("items"), list) and (str(value.get("apiVersion")), value["kind"]) not in BY_API


def _items_of_list(value: dict[str, Any], kind: str, origin: Origin) -> Iterator[Document | Finding]:
    by_item = _lines_by_item(origin.lines)
    for index, item in enumerate(value["items"]):
        path = f"items[{index}]"
        line = origin.line_of(path)
        if not isinstance(item, dict):
            reason = f"a Kubernetes object must be a mapping, not {_name_of_type(item)}"
            yield Finding(origin.file, line, kind, path, reason)
            continue
        if kind != "List":
            # Items of a typed list, as a server sends it, leave out what the list says.
            item = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
        yield _bounded(Document(Origin(origin.file, line, by_item(index)), item))


def _lines_by_item(lines: Mapping[str, int]) -> Callable[[int], Mapping[str, int]]:
    split: dict[int, dict[str, int]] = {}

    def of_item(index: int) -> Mapping[str, int]:
        if not split:
            for path, line in lines.items():
                if match := re.match(r"items\[(\d+)\]\.", path):
                    split.setdefault(int(match[1]), {})[path[match.end() :]] = line
        return split.get(index, {})

    return lambda index: _LazyLines(lambda: of_item(index))


def _bounded(document: Document) -> Document | Finding:
    origin, obj = document.origin, document.obj
    try:
        size = len(msgspec.json.encode(obj))
    except (ValueError, OverflowError):
        # Only a lone surrogate or an integer of more than 64 bits: neither can be sent to an API.
        reason = "holds a number of more than 64 bits or a character that is not Unicode"
        return finding(origin, {}, "", reason)
    if size > MAX_OBJECT_BYTES:
        return finding(
            origin, obj, "", f"the object is too large: {size} bytes, at most {MAX_OBJECT_BYTES} are allowed"
        )
    return document


def _name_of_type(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else f"the value {json.dumps(value)}"


class _LazyLines(Mapping[str, int]):
    """Lines that are worked out when the first one is asked for."""

    def __init__(self, find: Callable[[], Mapping[str, int]]) -> None:
        self._find = find
        self._found: Mapping[str, int] | None = None

    def _lines(self) -> Mapping[str, int]:
        if self._found is None:
            self._found = self._find()
        return self._found

    def __getitem__(self, path: str) -> int:
        return self._lines()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines())

    def __len__(self) -> int:
        return len(self._lines())


# --- JSON


def _read_json(text: str, file: str) -> list[_Root] | None:
    """The one document of a JSON text, or None when the text has to be read as YAML."""
    stripped = text.lstrip()
    is_json_file = file.endswith(".json")
    if not stripped.startswith(("{", "[")) and not (is_json_file and stripped):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        if is_json_file:
            raise _TextError(error.lineno, f"not JSON: {error.msg}") from None
        return None
    except (ValueError, RecursionError):
        return None  # a repeated key, an impossible number, too deep: the YAML reader says where
    first_line = text.count("\n", 0, len(text) - len(stripped)) + 1
    if _is_too_deep(value):
        raise _TextError(first_line, f"nested more than {MAX_DEPTH} deep")
    return [_Root(value, first_line, _LazyLines(lambda: _lines_of_text(text)))]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    as_dict = dict(pairs)
    if len(as_dict) != len(pairs):
        raise ValueError("repeated key")
    return as_dict


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _finite(text: str) -> float | int:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    # kubectl reads 80.0 and 8e1 as 80.
    return int(number) if number.is_integer() and abs(number) < _EXACT_IN_FLOAT else number


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return False
        level = inner
    return True


def _lines_of_text(text: str) -> Mapping[str, int]:
    try:
        return next((root.lines for root in _read_yaml(text)), {})
    except _TextError:
        return {}  # JSON that YAML 1.1 has no word for (escaped surrogate pairs): the document's own line stands


# --- YAML


def _read_yaml(text: str) -> Iterator[_Root]:
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
        raise _TextError(min(mark.line + 1, last_line) if mark else 0, f"not YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, int(error.position)) + 1
        raise _TextError(line, f"not YAML: {error.reason}") from None


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
    """What an anchor stands for, how many values it adds, and how deep it is."""

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

    def root(self) -> _Root:
        """The document that has ended."""
        return _Root(self._root, self._line, self._lines)

    def take(self, event: yaml.Event) -> None:
        """One event inside a document.

        Raises:
            _TextError: a bound is passed, or the text means something that an object cannot hold.
        """
        line = _line_of(event)
        if isinstance(event, yaml.ScalarEvent):
            self._count(event, line)
            value = event.value if event.style else _resolved(event.value, line)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(value, 1, 0)
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
            raise _TextError(line, f"YAML tags are not allowed: {event.tag}")
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TextError(line, f"more than {MAX_VALUES} values in one file")

    def _begin(self, value: dict[str, Any] | list[Any], anchor: str | None, line: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _TextError(line, f"nested more than {MAX_DEPTH} deep")
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
            raise _TextError(line, f"anchor {quoted(name)} value contains itself")
        anchored = self._anchors.get(name)
        if anchored is None:
            raise _TextError(line, f"unknown anchor {quoted(name)} referenced")
        self._aliased += anchored.size
        if self._aliased > MAX_ALIASED_VALUES:
            raise _TextError(line, "document contains excessive aliasing")
        if len(self._open) + anchored.height > MAX_DEPTH:
            raise _TextError(line, f"nested more than {MAX_DEPTH} deep")
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
                raise _TextError(line, f"key {quoted(parent.key)} already set in map", parent.path or "")
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
            raise _TextError(line, "a key must be text", parent.path or "")

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
            raise _TextError(line, "map merge requires map or sequence of maps as the value")
        for key, item in source.items():
            into.setdefault(key, item)


def _key(value: Any, line: int) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise _TextError(line, "a key must be text, not null")
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
        raise _TextError(line, f"{text} is not a number that an object can hold")
    plain = text.replace("_", "")
    if _INT.fullmatch(plain) and len(plain) <= _LONGEST_INT and (number := _integer(plain)) in _INT64:
        return number
    if _FLOAT.fullmatch(plain):
        try:
            return _finite(plain)
        except ValueError:
            raise _TextError(line, "the number is too large") from None
    return text


_LONGEST_INT: Final = 67  # a sign, 0b and 64 bits
_INT64: Final = range(-(2**63), 2**64)


def _integer(plain: str) -> int:
    digits = plain.lstrip("+-")
    is_old_octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    number = int(digits, 8) if is_old_octal else int(digits, 0)
    return -number if plain.startswith("-") else number
