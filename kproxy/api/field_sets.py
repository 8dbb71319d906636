"""Sets of fields of an object, written as Kubernetes writes them in managedFields (FieldsV1).

Law: a set is the nested mapping that FieldsV1 is, so that nothing has to be converted; sets that are handed out are
never altered. ``f:name`` is a field, ``k:{...}`` the list item with these keys, ``v:...`` the item of a set, ``.`` says
that what contains it is a member too; a mapping with nothing in it is a member by itself.

Rules: Kubernetes, sigs.k8s.io/structured-merge-diff (fieldpath, typed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from kproxy.api.merge_rules import KEY_DEFAULTS, Rules
from kproxy.api.types import Object

Fields = dict[str, Any]
"""FieldsV1. At the top, one with nothing in it is the empty set."""

IDENTITY: Final = frozenset(
    ("name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion")
)
"""Metadata that nobody manages (Kubernetes: managedfields/internal/stripmeta.go)."""

_SELF: Final = "."


def named_by(obj: Object, rules: Rules) -> Fields:
    """All fields that an object names, without those that identify it."""
    return _children(_manageable(obj), rules)


def differences(old: Object, new: Object, rules: Rules) -> tuple[Fields, Fields]:
    """The fields that ``new`` adds or changes, and those that it no longer has; identity is not looked at."""
    changed, removed = _compared(_manageable(old), _manageable(new), rules)
    return changed or {}, removed or {}


def whole(obj: Object, rules: Rules) -> Fields:
    """All fields of an object that came into being as it is."""
    return differences({}, obj, rules)[0]


def union(one: Fields, other: Fields) -> Fields:
    """Fields that are in one of two sets."""
    if not one or not other:
        return one or other
    both = dict(one)
    for key, below in other.items():
        present = both.get(key)
        both[key] = below if present is None else _united(present, below)
    return both


def difference(one: Fields, other: Fields) -> Fields:
    """Fields that are in one set and not in the other; ``one`` itself if none is in both."""
    rest: Fields | None = None
    for key, below in other.items():
        present = one.get(key)
        if present is None:
            continue
        left = _without(present, below)
        if left is present:
            continue
        rest = dict(one) if rest is None else rest
        if left is None:
            del rest[key]
        else:
            rest[key] = left
    return one if rest is None else rest


def intersection(one: Fields, other: Fields) -> Fields:
    """Fields that are in both sets."""
    both: Fields = {}
    for key in one.keys() & other.keys():
        left, right = one[key], other[key]
        if key == _SELF:
            both[key] = {}
            continue
        below = intersection(left, right)
        below.pop(_SELF, None)
        if _is_member(left) and _is_member(right):
            below = {_SELF: {}, **below} if below else {}
        elif not below:
            continue
        both[key] = below
    return both


def abandoned(last: Fields, owned: Fields) -> Fields:
    """Of the fields that somebody named last time, those that nobody names now: what an apply takes away.

    Args:
        last: what the applier named.
        owned: what anybody names now, the applier too.
    """
    gone: Fields = {}
    for key, below in last.items():
        if key == _SELF:
            continue
        now = owned.get(key)
        if now is None and _is_member(below):
            gone[key] = {}
        elif left := abandoned(below, now or {}):
            gone[key] = left
    return gone


def paths(fields: Fields, prefix: str = "") -> Iterator[str]:
    """Every member as people read it: ``.spec.ports[port=80,protocol="TCP"].targetPort``, sorted."""
    for key in sorted(fields):
        if key == _SELF:
            continue
        path, below = prefix + _step(key), fields[key]
        if _is_member(below):
            yield path
        yield from paths(below, path)


def items_by_key(items: Sequence[Any], rules: Rules) -> dict[str, Any] | None:
    """The items of a keyed list or a set by their place in a set of fields, in the list's order.

    Returns:
        None when they cannot be told apart: two have the same key, or one has none.
    """
    found: dict[str, Any] = {}
    for item in items:
        key = _item_key(item, rules)
        if not key or key in found:
            return None
        found[key] = item
    return found


def is_one_value(value: Any, rules: Rules) -> bool:
    """Whether a value belongs to somebody only as a whole."""
    if isinstance(value, dict):
        return rules.is_atomic
    is_keyed: bool = rules.is_set or bool(rules.list_keys)
    return not (isinstance(value, list) and is_keyed)


def without(obj: Any, fields: Fields, rules: Rules) -> Any:
    """The value without the fields of the set; maps and lists that this empties are gone too."""
    if isinstance(obj, list):
        by_key = items_by_key(obj, rules)
        if by_key is None:
            return obj
        pairs = ((item, fields.get(key), rules.item) for key, item in by_key.items())
        return [item if below is None else without(item, below, of) for item, below, of in pairs if below != {}]
    kept: Object = {}
    for name, value in obj.items():
        below, of = fields.get(f"f:{name}"), rules.field(name)
        if below is None:
            kept[name] = value
        elif not _is_member(below):
            left = without(value, below, of)
            if left or of.form == "struct":
                kept[name] = left
    return kept


def _manageable(obj: Object) -> Object:
    kept = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        kept["metadata"] = {key: value for key, value in metadata.items() if key not in IDENTITY}
        if not kept["metadata"]:
            del kept["metadata"]
    return kept


def _is_member(below: Fields) -> bool:
    return not below or _SELF in below


def _united(one: Fields, other: Fields) -> Fields:
    if one is other or one == other:
        return one
    if not one:
        return {_SELF: {}, **other}
    return union(one, other) if other else {_SELF: {}, **one}


def _without(one: Fields, other: Fields) -> Fields | None:
    """What is left of one entry; the same object if all of it is, None if nothing is."""
    if not one:
        return None if _is_member(other) else one
    if not other:
        if _SELF not in one:
            return one
        return {key: below for key, below in one.items() if key != _SELF} or None
    rest = difference(one, other)
    if not rest:
        return None
    # What was only a member that contains others has become a member by itself.
    return {} if rest.keys() == {_SELF} else rest


def _children(value: Mapping[str, Any], rules: Rules) -> Fields:
    fields: Fields = {}
    for name, item in value.items():
        if item is not None:
            of = rules.field(name)
            below = _named(item, of)
            if below is not None:
                fields[f"f:{name}"] = {_SELF: {}, **below} if below and rules.form == "map" else below
    return fields


def _named(value: Any, rules: Rules) -> Fields | None:
    """The entry of a value that somebody names; None when it has nothing that could be named."""
    if is_one_value(value, rules) or value == {}:
        return {}
    if isinstance(value, dict):
        return _children(value, rules) or None
    by_key = items_by_key(value, rules)
    if by_key is None:
        return {}
    entries = {key: _named(item, rules.item) for key, item in by_key.items()}
    return {key: {_SELF: {}, **below} if below else {} for key, below in entries.items()} or None


def _came(value: Any, rules: Rules, *, is_item: bool) -> Fields:
    """The entry of a value that was not there before."""
    if not value or is_one_value(value, rules):
        return {}
    below: Fields
    if isinstance(value, dict):
        below = {
            f"f:{name}": _came(item, rules.field(name), is_item=rules.form == "map")
            for name, item in value.items()
            if item is not None
        }
        return {_SELF: {}, **below} if below and (is_item or rules.form != "struct") else below
    by_key = items_by_key(value, rules)
    if by_key is None:
        return {}
    return {_SELF: {}} | {key: _came(item, rules.item, is_item=True) for key, item in by_key.items()}


def _compared(old: Mapping[str, Any], new: Mapping[str, Any], rules: Rules) -> tuple[Fields | None, Fields | None]:
    changed: Fields = {}
    removed: Fields = {}
    for name, value in new.items():
        before = old.get(name)
        if value is None or value == before:
            continue
        of, key = rules.field(name), f"f:{name}"
        if before is None:
            changed[key] = _came(value, of, is_item=rules.form == "map")
        else:
            _note(changed, removed, key, _compared_values(before, value, of))
    for name, before in old.items():
        if before is not None and new.get(name) is None:
            removed[f"f:{name}"] = _came(before, rules.field(name), is_item=rules.form == "map")
    return changed or None, removed or None


def _compared_values(old: Any, new: Any, rules: Rules) -> tuple[Fields | None, Fields | None]:
    if type(old) is not type(new) or is_one_value(new, rules):
        return {}, None
    if isinstance(new, dict):
        return _compared(old, new, rules)
    before, after = items_by_key(old, rules), items_by_key(new, rules)
    if before is None or after is None:
        return {}, None
    changed: Fields = {}
    removed = {key: _came(item, rules.item, is_item=True) for key, item in before.items() if key not in after}
    for key, item in after.items():
        if key not in before:
            changed[key] = _came(item, rules.item, is_item=True)
        elif before[key] != item:
            _note(changed, removed, key, _compared_values(before[key], item, rules.item))
    return changed or None, removed or None


def _note(changed: Fields, removed: Fields, key: str, found: tuple[Fields | None, Fields | None]) -> None:
    if found[0] is not None:
        changed[key] = found[0]
    if found[1] is not None:
        removed[key] = found[1]


def _item_key(item: Any, rules: Rules) -> str:
    if rules.is_set:
        return "" if isinstance(item, dict | list) else f"v:{_json(item)}"
    if not isinstance(item, dict):
        return ""
    keys = {key: item.get(key, KEY_DEFAULTS.get(key)) for key in rules.list_keys}
    present = {key: value for key, value in keys.items() if value is not None}
    return f"k:{_json(present)}" if present else ""


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _step(key: str) -> str:
    kind, _, rest = key.partition(":")
    if kind == "f":
        return f".{rest}"
    if kind == "v":
        return f"[={rest}]"
    keys = msgspec.json.decode(rest)
    return f"[{','.join(f'{name}={_json(value)}' for name, value in keys.items())}]"
