"""JSON patches (RFC 6902): lists of operations, all of them or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kproxy.errors import UserError

LONGEST = 10_000
"""Operations in one patch (Kubernetes: maxJSONPatchOperations)."""


class MalformedPatch(UserError):
    """It is no JSON patch at all."""


class PatchFailed(UserError):
    """An operation does not fit the document; nothing is changed."""


def json_patch(target: Any, operations: Any) -> Any:
    """The target with all operations applied, in their order; the target is left as it is.

    Raises:
        MalformedPatch: ``operations`` is not a JSON patch.
        PatchFailed: a path is not there, or a test failed.
    """
    if not isinstance(operations, list):
        raise MalformedPatch("a JSON patch is a list of operations")
    patched = copy.deepcopy(target)
    for operation in operations:
        if not isinstance(operation, dict):
            raise MalformedPatch("an operation of a JSON patch is an object")
        apply = _OPERATIONS.get(str(operation.get("op")))
        if apply is None:
            raise MalformedPatch(f"unknown operation {operation.get('op')!r}")
        patched = apply(patched, operation)
    return patched


def _add(document: Any, operation: Mapping[str, Any]) -> Any:
    return _inserted(document, _pointer(operation, "path"), copy.deepcopy(_value(operation)))


def _remove(document: Any, operation: Mapping[str, Any]) -> Any:
    return _taken(document, _pointer(operation, "path"))[0]


def _replace(document: Any, operation: Mapping[str, Any]) -> Any:
    path, value = _pointer(operation, "path"), copy.deepcopy(_value(operation))
    _found(document, path)
    if not path:
        return value
    parent = _found(document, path[:-1])
    parent[_key(parent, path[-1], path)] = value
    return document


def _move(document: Any, operation: Mapping[str, Any]) -> Any:
    source, path = _pointer(operation, "from"), _pointer(operation, "path")
    if source == path[: len(source)] and source != path:
        raise PatchFailed(f"{_text(source)} cannot be moved into itself")
    rest, value = _taken(document, source)
    return _inserted(rest, path, value)


def _copy(document: Any, operation: Mapping[str, Any]) -> Any:
    value = copy.deepcopy(_found(document, _pointer(operation, "from")))
    return _inserted(document, _pointer(operation, "path"), value)


def _test(document: Any, operation: Mapping[str, Any]) -> Any:
    path, wanted = _pointer(operation, "path"), _value(operation)
    if not _is_equal(_found(document, path), wanted):
        raise PatchFailed(f"testing value {_text(path)} failed")
    return document


_OPERATIONS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise MalformedPatch(f"operation {operation['op']!r} needs a value")
    return operation["value"]


def _pointer(operation: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The parts of a JSON pointer (RFC 6901); none for the whole document."""
    text = operation.get(name)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise MalformedPatch(f"operation {operation['op']!r} needs a JSON pointer as {name!r}")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def _text(path: Sequence[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _found(document: Any, path: Sequence[str]) -> Any:
    for part in path:
        document = document[_key(document, part, path)]
    return document


def _key(parent: Any, part: str, path: Sequence[str]) -> Any:
    """What to index ``parent`` with to find an existing value."""
    if isinstance(parent, dict) and part in parent:
        return part
    if isinstance(parent, list) and _is_index(part) and int(part) < len(parent):
        return int(part)
    raise PatchFailed(f"the path {_text(path)} is not there")


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 10 and (part == "0" or not part.startswith("0"))


def _inserted(document: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _found(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list) and last == "-":
        parent.append(value)
    elif isinstance(parent, list) and _is_index(last) and int(last) <= len(parent):
        parent.insert(int(last), value)
    else:
        raise PatchFailed(f"nothing can be added at {_text(path)}")
    return document


def _taken(document: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """The document without the value at ``path``, and the value."""
    value = _found(document, path)
    if not path:
        return None, value
    parent = _found(document, path[:-1])
    del parent[_key(parent, path[-1], path)]
    return document, value


def _is_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, and neither is true."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_equal, left, right))
    return bool(left == right)
