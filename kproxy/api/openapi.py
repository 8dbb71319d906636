"""The OpenAPI v3 description of the API, made of the kinds, ``known_fields`` and ``merge_rules``.

Law: pure; nothing about an object's fields is written down here, so that what is described is what is checked.
What clients look for: kubectl finds a kind by ``x-kubernetes-group-version-kind``, merges lists by the
``x-kubernetes-patch-`` extensions, and leaves the checking of fields to a server whose PATCH has ``fieldValidation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kproxy.api import known_fields, merge_rules
from kproxy.api.kinds import KUBERNETES_VERSION, Kind
from kproxy.api.openapi_words import words_for
from kproxy.api.types import Object

PATCH_TYPES: Final = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
Subresources = Mapping[str, tuple[tuple[str, ...], Kind | None]]
"""The verbs of each subresource, and what it is made of; None for the object's own kind."""

_JSON: Final = "application/json"
_REFERENCE: Final = "#/components/schemas/"
_META: Final = frozenset(("ListMeta", "Status", "DeleteOptions", "StatusDetails", "StatusCause", "Preconditions"))
_LEAVES: Final[Mapping[str, Object]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer", "format": "int64"},
    "number": {"type": "number", "format": "double"},
    "boolean": {"type": "boolean"},
    "any": {"type": "object"},
    "int-or-string": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
}
_EMPTY: Final[Mapping[str, Any]] = {"string": "", "integer": 0, "boolean": False}
_METHODS: Final[Mapping[str, str]] = {
    "get": "get",
    "list": "get",
    "create": "post",
    "update": "put",
    "patch": "patch",
    "delete": "delete",
    "deletecollection": "delete",
}
_PARAMETERS: Final[Mapping[str, str]] = {
    "allowWatchBookmarks": "boolean",
    "continue": "string",
    "dryRun": "string",
    "fieldManager": "string",
    "fieldSelector": "string",
    "fieldValidation": "string",
    "force": "boolean",
    "gracePeriodSeconds": "integer",
    "labelSelector": "string",
    "limit": "integer",
    "propagationPolicy": "string",
    "resourceVersion": "string",
    "resourceVersionMatch": "string",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
    "watch": "boolean",
}
_WRITING: Final = ("dryRun", "fieldManager", "fieldValidation")
_LISTING: Final = (
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
)
_QUERY: Final[Mapping[str, tuple[str, ...]]] = {
    "list": _LISTING,
    "create": _WRITING,
    "update": _WRITING,
    "patch": (*_WRITING, "force"),
    "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
    "deletecollection": ("dryRun", "fieldSelector", "gracePeriodSeconds", "labelSelector", "propagationPolicy"),
}


def document(kinds: Sequence[Kind], subresources: Subresources) -> Object:
    """The description of one group and version.

    Args:
        kinds: all of that group and version.
        subresources: those of any kind.
    """
    paths: Object = {}
    made_of = {kind for kind in kinds if _has_schema(kind)}
    for kind in kinds:
        paths |= dict(_paths(kind, subresources))
        made_of |= {of for name in kind.subresources if (of := subresources[name][1]) is not None and _has_schema(of)}
    schemas = _schemas(sorted(made_of, key=lambda kind: kind.name))
    schemas |= {f"{_name(kind)}List": _list_schema(kind) for kind in kinds}
    title = {"title": "Kubernetes", "version": KUBERNETES_VERSION}
    return {"openapi": "3.0.0", "info": title, "paths": paths, "components": {"schemas": schemas}}


# ----- paths


def _paths(kind: Kind, subresources: Subresources) -> Iterator[tuple[str, Object]]:
    collection = kind.path("{namespace}" if kind.namespaced else None)
    yield collection, _path(collection, kind, ("list", "create", "deletecollection"))
    if kind.namespaced:
        yield kind.path(), _path(kind.path(), kind, ("list",))
    yield f"{collection}/{{name}}", _path(f"{collection}/{{name}}", kind, ("get", "update", "patch", "delete"))
    for name in kind.subresources:
        verbs, of = subresources[name]
        path = f"{collection}/{{name}}/{name}"
        yield path, _path(path, of or kind, verbs, about=kind)


def _path(path: str, kind: Kind, verbs: Iterable[str], *, about: Kind | None = None) -> Object:
    named = [name for name in ("namespace", "name") if f"{{{name}}}" in path]
    parameters = [_parameter(name, "path", "string") | {"required": True} for name in named]
    return {_METHODS[verb]: _operation(path, kind, verb, about or kind) for verb in verbs} | {"parameters": parameters}


def _operation(path: str, kind: Kind, verb: str, about: Kind) -> Object:
    words = [part for part in path.split("/") if part and not part.startswith("{")]
    answer = _reference(f"{_name(kind)}List" if verb == "list" else _name(kind)) if _has_schema(kind) else {}
    operation: Object = {
        "operationId": verb + "".join(word.replace(".", "-").title().replace("-", "") for word in words),
        "tags": [about.api_version.replace("/", "_")],
        "x-kubernetes-action": {"create": "post", "update": "put"}.get(verb, verb),
        "x-kubernetes-group-version-kind": _gvk(kind),
        "responses": {"200": {"description": "OK", "content": {_JSON: {"schema": answer}}}},
    }
    if verb in _QUERY:
        operation["parameters"] = [_parameter(name, "query", _PARAMETERS[name]) for name in _QUERY[verb]]
    if verb == "patch":
        operation["requestBody"] = {"content": {media: {"schema": {"type": "object"}} for media in PATCH_TYPES}}
    elif verb in ("create", "update"):
        operation["requestBody"] = {"content": {_JSON: {"schema": answer}}}
    return operation


def _parameter(name: str, place: str, type_name: str) -> Object:
    return {"name": name, "in": place, "schema": {"type": type_name, "uniqueItems": True}}


# ----- schemas


def _schemas(kinds: Sequence[Kind]) -> Object:
    roots = {known_fields.kinds()[kind.api_version, kind.name]: kind for kind in kinds}
    schemas: Object = {}
    waiting = [*roots, "V1ListMeta", "V1Status", "V1DeleteOptions"]
    while waiting:
        type_name = waiting.pop()
        name = _schema_name(type_name)
        if name in schemas:
            continue
        schemas[name] = _type_schema(type_name, roots.get(type_name))
        inner = (of.strip("[]{}") for of in known_fields.fields_of(type_name).values())
        waiting += [of for of in inner if known_fields.fields_of(of)]
    return schemas


def _type_schema(type_name: str, kind: Kind | None) -> Object:
    fields = known_fields.fields_of(type_name)
    extensions = merge_rules.extensions_of(type_name)
    required = known_fields.required_of(type_name)
    schema: Object = {"type": "object"} | _described(words_for(type_name))
    schema["properties"] = {
        field: _value_schema(of) | _described(words_for(type_name, field)) | dict(extensions.get(field, {}))
        for field, of in fields.items()
    }
    for field in required:
        if (empty := _EMPTY.get(fields[field])) is not None:
            schema["properties"][field]["default"] = empty
    if required:
        schema["required"] = required
    if merge_rules.is_atomic_type(type_name):
        schema["x-kubernetes-map-type"] = "atomic"
    if kind is not None:
        schema["x-kubernetes-group-version-kind"] = [_gvk(kind)]
    return schema


def _described(words: str) -> Object:
    return {"description": words} if words else {}


def _value_schema(field_type: str) -> Object:
    if field_type.startswith("["):
        return {"type": "array", "items": _value_schema(field_type[1:-1])}
    if field_type.startswith("{"):
        return {"type": "object", "additionalProperties": _value_schema(field_type[1:-1])}
    if known_fields.fields_of(field_type):
        return {"allOf": [_reference(_schema_name(field_type))]}
    return dict(_LEAVES.get(field_type, {"type": "object"}))


def _list_schema(kind: Kind) -> Object:
    properties: Object = {
        "apiVersion": _LEAVES["string"],
        "kind": _LEAVES["string"],
        "metadata": {"allOf": [_reference(_schema_name("V1ListMeta"))]},
        "items": {"type": "array", "items": {"allOf": [_reference(_name(kind))]}},
    }
    gvk = _gvk(kind) | {"kind": f"{kind.name}List"}
    head = {"type": "object", "description": f"A list of {kind.name} objects.", "required": ["items"]}
    return head | {"properties": properties, "x-kubernetes-group-version-kind": [gvk]}


def _reference(name: str) -> Object:
    return {"$ref": f"{_REFERENCE}{name}"}


def _has_schema(kind: Kind) -> bool:
    return (kind.api_version, kind.name) in known_fields.kinds()


def _name(kind: Kind) -> str:
    return _schema_name(known_fields.kinds()[kind.api_version, kind.name])


def _schema_name(type_name: str) -> str:
    """``io.k8s.api.v1.PodSpec``; what follows the last dot is what kubectl shows."""
    version = type_name.find("V1")
    name = type_name[version + 2 :]
    if name in _META or name.endswith("Meta"):
        return f"io.k8s.apimachinery.v1.{name}"
    group = type_name[:version].lower()
    return f"io.k8s.api.{group}.v1.{name}" if group else f"io.k8s.api.v1.{name}"


def _gvk(kind: Kind) -> dict[str, str]:
    return {"group": kind.group, "kind": kind.name, "version": kind.version}
