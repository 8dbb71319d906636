"""Writes ``known_fields.json``: every field that Kubernetes gives the kinds of ``kinds.py``, and its JSON type.

A development-time tool; the project itself never imports it. The source is the OpenAPI description as the Python
package ``kubernetes`` (36.x, generated from Kubernetes 1.36) carries it in its models. To renew the table::

    python -m venv /tmp/k && /tmp/k/bin/pip install 'kubernetes==36.*' msgspec
    PYTHONPATH=. /tmp/k/bin/python -m kproxy.api.generate_known_fields
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from kproxy.api.kinds import EVENT_OF_GROUP, KINDS, SCALE, Kind

_SCALARS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "datetime": "string",
    "object": "any",
}

# The models say "object" for an integer-or-name and "str" for a quantity; these are the fields concerned.
_INT_OR_STRING = {"targetPort", "maxSurge", "maxUnavailable", "port"}
_BESIDE_OBJECTS = ("V1ListMeta", "V1Status", "V1DeleteOptions")
"""What travels beside objects."""

_QUANTITIES = {
    "limits",
    "requests",
    "capacity",
    "allocatable",
    "overhead",
    "allocatedResources",
    "sizeLimit",
    "divisor",
}


def generate(models: Any) -> dict[str, Any]:
    """The table: ``kinds`` maps apiVersion/Kind to a type name, ``types`` maps type names to field -> type.

    ``required`` maps type names to the fields that an object of that type has to have.

    A type is ``string``, ``integer``, ``number``, ``boolean``, ``any``, ``int-or-string``, ``quantity``, the name of
    another type, ``[T]`` for a list and ``{T}`` for a map.

    Args:
        models: the module ``kubernetes.client.models``.
    """
    types: dict[str, dict[str, str]] = {}
    kinds = {f"{kind.api_version}/{kind.name}": _model_of(kind, models) for kind in (*KINDS, EVENT_OF_GROUP, SCALE)}
    waiting = [*kinds.values(), *_BESIDE_OBJECTS]
    while waiting:
        name = waiting.pop()
        if name in types:
            continue
        model = getattr(models, name)
        types[name] = {
            field: _type_of(field, model.openapi_types[attribute]) for attribute, field in model.attribute_map.items()
        }
        waiting += [inner for inner in map(_innermost, types[name].values()) if hasattr(models, inner)]
    required = {name: found for name in types if (found := _required(getattr(models, name)))}
    return {"kinds": kinds, "types": types, "required": required}


def _required(model: Any) -> list[str]:
    """The fields whose setters refuse None; nothing else in a model says so."""
    return [
        field
        for attribute, field in model.attribute_map.items()
        if "must not be `None`" in inspect.getsource(getattr(model, attribute).fset)
    ]


def _model_of(kind: Kind, models: Any) -> str:
    group = kind.group.split(".", maxsplit=1)[0].capitalize() or "Core"
    candidates = (f"{kind.version.capitalize()}{kind.name}", f"{group}{kind.version.capitalize()}{kind.name}")
    return next(name for name in candidates if hasattr(models, name))


def _type_of(field: str, python_type: str) -> str:
    if match := re.fullmatch(r"list\[(.+)\]", python_type):
        return f"[{_type_of(field, match[1])}]"
    if match := re.fullmatch(r"dict[\[(]str, (.+)[\])]", python_type):
        return f"{{{_type_of(field, match[1])}}}"
    if python_type == "object" and field in _INT_OR_STRING:
        return "int-or-string"
    if python_type == "str" and field in _QUANTITIES:
        return "quantity"
    return _SCALARS.get(python_type, python_type)


def _innermost(type_name: str) -> str:
    return type_name.strip("[]{}")


def main() -> None:
    """Writes the table beside this module."""
    table = generate(importlib.import_module("kubernetes.client.models"))
    text = json.dumps(table, indent=1, sort_keys=True)
    Path(__file__).with_name("known_fields.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
