"""Manifest text to objects, each knowing the file and the line of every field.

Law: any bytes give documents or findings and never an exception; what is too large, too deep or blown up by aliases is
refused before it costs much. YAML is read as kubectl reads it (YAML 1.1 scalars without dates and base-60 numbers);
JSON goes a fast road of its own and finds its lines only when somebody asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from kproxy.api.field_errors import DUPLICATE, FieldError, quoted
from kproxy.api.kinds import BY_API
from kproxy.api.types import Object
from kproxy.api.yaml_text import MAX_DEPTH, Root, TextError, finite, read_yaml
from kproxy.errors import Finding

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_OBJECT_BYTES: Final = 3 * 1024 * 1024  # what kube-apiserver takes in one request (limit of a resource's JSON)

_LONGEST_PATH: Final = 1000  # longer ones are not looked up further than this; keys can be megabytes long
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
        line: 1-based first line of the document or list item; of an item of a JSON list the list's, since finding the
            item's takes a second reading (``line_of("")`` does it).
        lines: Kubernetes field paths (``spec.ports[0].nodePort``) to 1-based lines.
    """

    file: str
    line: int
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def line_of(self, field_path: str) -> int:
        """The line of a field, or of the nearest field above it that is written down; of "" the object's first."""
        path = _BRACKETED_NAME.sub(r".\1", field_path[:_LONGEST_PATH])
        for name, written in _WRITTEN_AS.items():
            if path.startswith(name) and name not in self.lines:
                path = written + path[len(name) :]
        while path:
            if (line := self.lines.get(path)) is not None:
                return line
            path = path[: max(path.rfind("[" if path.endswith("]") else "."), 0)]
        return self.lines.get("", self.line)


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
        roots = _read_json(decoded, file) or read_yaml(decoded)
    except TextError as error:
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
    except TextError as error:
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
            place = f"{first.origin.file}:{first.origin.line_of('')}"
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


def _decoded(text: bytes) -> str:
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise TextError(line, f"not a text file: byte {error.start} is not UTF-8") from None
    if "\0" in decoded:
        raise TextError(decoded.count("\n", 0, decoded.index("\0")) + 1, "not a text file: it has NUL characters")
    return decoded


# --- from values to documents


def _unrolled(root: Root, file: str) -> Iterator[Document | Finding]:
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
        if not isinstance(item, dict):
            reason = f"a Kubernetes object must be a mapping, not {_name_of_type(item)}"
            yield Finding(origin.file, origin.line_of(path), kind, path, reason)
            continue
        if kind != "List":
            # Items of a typed list, as a server sends it, leave out what the list says.
            item = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
        line = origin.line if isinstance(origin.lines, _LazyLines) else origin.line_of(path)
        yield _bounded(Document(Origin(origin.file, line, by_item(index)), item))


def _lines_by_item(lines: Mapping[str, int]) -> Callable[[int], Mapping[str, int]]:
    split: dict[int, dict[str, int]] = {}

    def of_item(index: int) -> Mapping[str, int]:
        if not split:
            for path, line in lines.items():
                if match := re.match(r"items\[(\d+)\](?:\.|$)", path):
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


def _read_json(text: str, file: str) -> list[Root] | None:
    """The one document of a JSON text, or None when the text has to be read as YAML."""
    stripped = text.lstrip()
    is_json_file = file.endswith(".json")
    if not stripped.startswith(("{", "[")) and not (is_json_file and stripped):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        if is_json_file:
            raise TextError(error.lineno, f"not JSON: {error.msg}") from None
        return None
    except (ValueError, RecursionError):
        return None  # a repeated key, an impossible number, too deep: the YAML reader says where
    first_line = text.count("\n", 0, len(text) - len(stripped)) + 1
    if is_too_deep(value):
        raise TextError(first_line, f"nested more than {MAX_DEPTH} deep")
    return [Root(value, first_line, _LazyLines(lambda: _lines_of_text(text)))]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    as_dict = dict(pairs)
    if len(as_dict) != len(pairs):
        raise ValueError("repeated key")
    return as_dict


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def is_too_deep(value: Any) -> bool:
    """Whether lists and maps are nested deeper than anything that Kubernetes has."""
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
        return next((root.lines for root in read_yaml(text)), {})
    except TextError:
        return {}  # JSON that YAML 1.1 has no word for (escaped surrogate pairs): the document's own line stands
