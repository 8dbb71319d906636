"""How the values of an object are merged: which lists are keyed, which maps are one value.

Law: one description for strategic merge patches and for server-side apply, from the OpenAPI extensions of Kubernetes
(``generate_merge_rules.py``) and the types of ``known_fields``.
"""

from __future__ import annotations

import functools
import json
import pkgutil
from collections.abc import Mapping
from typing import Any, Final, Literal

from kproxy.api import known_fields

KEY_DEFAULTS: Final[Mapping[str, str]] = {"protocol": "TCP"}
"""What an item that leaves out a field of its key means (Kubernetes: ``+default`` of ServicePort, ContainerPort)."""

Form = Literal["scalar", "struct", "map", "list"]


class Rules:
    """How one value is merged.

    Made by ``of_kind`` and by itself.

    Attributes:
        form: what the value is by its type; "scalar" also for what has no type of its own.
        is_atomic: it is replaced as a whole by server-side apply.
        is_untyped: nothing is known of what is inside.
        list_keys: the fields by which items of the list are told apart; empty for sets and lists that are one value.
        is_set: a list of different scalars.
        merges: a strategic merge patch merges the list instead of replacing it.
        merge_key: the field by which that finds items; empty for scalars.
    """

    __slots__ = (
        "_fields",
        "_inner",
        "_made",
        "form",
        "is_atomic",
        "is_set",
        "is_untyped",
        "list_keys",
        "merge_key",
        "merges",
    )

    def __init__(self, field_type: str, extensions: Mapping[str, Any]) -> None:
        self._made: dict[str, Rules] = {}
        self._inner = field_type[1:-1]
        self._fields = known_fields.fields_of(field_type)
        self.is_untyped = field_type == "any"
        self.form: Form = "scalar"
        if field_type.startswith("["):
            self.form = "list"
        elif field_type.startswith("{"):
            self.form = "map"
        elif self._fields:
            self.form = "struct"
        list_type = extensions.get("x-kubernetes-list-type", "atomic")
        self.list_keys: tuple[str, ...] = tuple(sorted(extensions.get("x-kubernetes-list-map-keys", ())))
        self.is_set: bool = self.form == "list" and list_type == "set"
        if self.form == "list":
            self.is_atomic: bool = list_type == "atomic"
        else:
            is_one_value = field_type in _table()["atomicTypes"]
            self.is_atomic = is_one_value or extensions.get("x-kubernetes-map-type") == "atomic"
        self.merges = "merge" in extensions.get("x-kubernetes-patch-strategy", "").split(",")
        self.merge_key: str = extensions.get("x-kubernetes-patch-merge-key", "")
        if self.form == "struct":
            named = _table()["fields"].get(field_type, {})
            self._made = {name: _rules(of, _frozen(named.get(name, {}))) for name, of in self._lazily(field_type)}

    def _lazily(self, field_type: str) -> list[tuple[str, str]]:
        # A type may hold itself (V1JSONSchemaProps): such a field is looked up when it is asked for.
        return [(name, of) for name, of in self._fields.items() if of.strip("[]{}") != field_type]

    def field(self, name: str) -> Rules:
        """The rules of a field of the struct, or of a value of the map; untyped for what is not known."""
        found = self._made.get(name)
        if found is not None:
            return found
        if self.form == "map":
            return _rules(self._inner, ())
        return UNTYPED

    @property
    def item(self) -> Rules:
        """The rules of the list's items."""
        return _rules(self._inner, ()) if self.form == "list" else UNTYPED


def extensions_of(type_name: str) -> Mapping[str, Mapping[str, Any]]:
    """The ``x-kubernetes-`` extensions of a type's fields, by field; types as in ``known_fields``."""
    found: Mapping[str, Mapping[str, Any]] = _table()["fields"].get(type_name, {})
    return found


def is_atomic_type(type_name: str) -> bool:
    """Whether every value of the type is one value (``x-kubernetes-map-type: atomic``)."""
    return type_name in _table()["atomicTypes"]


@functools.cache
def of_kind(api_version: str, kind: str) -> Rules:
    """The rules of the objects of a kind; untyped for one that is not known."""
    type_name = known_fields.kinds().get((api_version, kind))
    return UNTYPED if type_name is None else _rules(type_name, ())


@functools.cache
def _table() -> Any:
    data = pkgutil.get_data("kproxy.api", "merge_rules.json")
    if data is None:  # pragma: no cover - only a broken installation
        raise FileNotFoundError("kproxy/api/merge_rules.json is missing from the installation")
    return json.loads(data)


@functools.cache
def _rules(field_type: str, extensions: tuple[tuple[str, Any], ...]) -> Rules:
    return Rules(field_type, dict(extensions))


def _frozen(extensions: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in extensions.items())


UNTYPED: Final = Rules("any", {})
"""Rules of what nobody has described: maps merge, lists are one value."""
