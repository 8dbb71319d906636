"""Writes ``merge_rules.json``: how Kubernetes merges the fields of ``known_fields.json`` that are lists or maps.

A development-time tool; the project itself never imports it. The source is the OpenAPI description of Kubernetes 1.36
as the Python package ``kubernetes-validate`` has it, with its ``x-kubernetes-`` extensions. To renew the table, after
``known_fields.json``::

    python -m venv /tmp/k && /tmp/k/bin/pip install kubernetes-validate msgspec
    PYTHONPATH=. /tmp/k/bin/python -m kproxy.api.generate_merge_rules v1.36.0
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from pathlib import Path
from typing import Any

from kproxy.api import known_fields

_EXTENSIONS = (
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-patch-strategy",
)
_DEFINITION = "#/$defs/"


def generate(definitions: dict[str, Any]) -> dict[str, Any]:
    """The table: ``fields`` maps type -> field -> OpenAPI extensions, ``atomicTypes`` names types that are one value.

    Types have the names of ``known_fields.json``.

    Args:
        definitions: OpenAPI's, by name.
    """
    by_kind = {
        (f"{entry['group']}/{entry['version']}" if entry["group"] else entry["version"], entry["kind"]): name
        for name, definition in definitions.items()
        for entry in definition.get("x-kubernetes-group-version-kind", ())
    }
    pairs: dict[str, str] = {}
    waiting = [
        (type_name, by_kind[api_version, kind])
        for (api_version, kind), type_name in known_fields.kinds().items()
        if (api_version, kind) in by_kind
    ]
    while waiting:
        type_name, definition_name = waiting.pop()
        if type_name in pairs:
            continue
        pairs[type_name] = definition_name
        properties = definitions[definition_name].get("properties", {})
        for field, field_type in known_fields.fields_of(type_name).items():
            inner = field_type.strip("[]{}")
            if inner[:1].isupper() and field in properties:
                waiting.append((inner, _reference(properties[field])))
    fields = {
        type_name: {
            field: extensions
            for field, schema in definitions[name].get("properties", {}).items()
            if (extensions := {key: schema[key] for key in _EXTENSIONS if key in schema})
        }
        for type_name, name in pairs.items()
    }
    atomic = [name for name, of in pairs.items() if definitions[of].get("x-kubernetes-map-type") == "atomic"]
    return {"fields": {name: rules for name, rules in fields.items() if rules}, "atomicTypes": sorted(atomic)}


def _reference(schema: Any) -> str:
    """The definition that a property is made of, inside whatever lists, maps and alternatives."""
    found = [
        value.removeprefix(_DEFINITION) if key == "$ref" else _reference(value)
        for key, value in (schema.items() if isinstance(schema, dict) else enumerate(schema))
        if key == "$ref" or isinstance(value, dict | list)
    ]
    return next(filter(None, found), "")


def main() -> None:
    """Writes the table beside this module."""
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"{sys.argv[1]}-local"
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    text = json.dumps(generate(definitions), indent=1, sort_keys=True)
    Path(__file__).with_name("merge_rules.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
