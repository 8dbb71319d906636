"""Strategic merge patches: merge patches that know which lists are keyed.

Rules: Kubernetes, apimachinery/pkg/util/strategicpatch. The directives are ``$patch`` (replace, delete),
``$retainKeys``, ``$setElementOrder/LIST`` and ``$deleteFromPrimitiveList/LIST``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from kproxy.api.merge_rules import Rules
from kproxy.api.types import Object
from kproxy.errors import UserError

_DIRECTIVE: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_DELETE_FROM: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"


class MalformedPatch(UserError):
    """The patch breaks the rules of its format."""


def strategic_merge(target: Object, patch: Object, rules: Rules) -> Object:
    """The target with the patch merged in; both are left as they are.

    Args:
        target: the object.
        patch: of the target's kind, with directives.
        rules: of the target's kind.

    Raises:
        MalformedPatch: the patch breaks the rules of its format, or an item lacks its merge key.
    """
    if _DIRECTIVE in patch:
        return _directed(patch)
    merged = _retained(target, patch)
    ordered = {key.removeprefix(_ORDER): order for key, order in patch.items() if key.startswith(_ORDER)}
    for name, order in ordered.items():
        _merge_ordered(merged, patch, name, order, rules.field(name))
    for key, value in patch.items():
        name = key.removeprefix(_DELETE_FROM)
        if key == _RETAIN or key.startswith(_ORDER) or (name in ordered and name == key):
            continue
        if name != key:
            _delete_from(merged, name, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged_value(merged.get(key), value, rules.field(key), key)
    return merged


def _directed(patch: Object) -> Object:
    match patch[_DIRECTIVE]:
        case "replace":
            return {key: _without_directives(value) for key, value in patch.items() if key != _DIRECTIVE}
        case "delete":
            return {}
        case other:
            raise MalformedPatch(f"unknown patch type found: {other} in map: {patch}")


def _retained(target: Object, patch: Object) -> Object:
    """A copy of the target with no more than the fields that ``$retainKeys`` names, if it is there."""
    if _RETAIN not in patch:
        return dict(target)
    retained = patch[_RETAIN]
    named = {key for key, value in patch.items() if value is not None and not key.startswith("$")}
    if not isinstance(retained, list) or not named <= {name for name in retained if isinstance(name, str)}:
        raise MalformedPatch("invalid patch format of retainKeys")
    return {key: value for key, value in target.items() if key in retained}


def _delete_from(merged: Object, name: str, values: Any) -> None:
    if not isinstance(values, list):
        raise MalformedPatch("invalid patch format of primitive list")
    present = merged.get(name)
    if isinstance(present, list):
        merged[name] = [item for item in present if item not in values]


def _merged_value(present: Any, value: Any, rules: Rules, name: str) -> Any:
    if isinstance(value, dict):
        return strategic_merge(present if isinstance(present, dict) else {}, value, rules)
    if isinstance(value, list) and rules.merges and isinstance(present, list):
        return _merged_list(present, value, rules, name)
    return _without_directives(value)


def _without_directives(value: Any) -> Any:
    """A value that there is nothing to merge with: what it says to delete is not there, its nulls mean nothing."""
    if isinstance(value, dict):
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if item is not None and not key.startswith((_ORDER, _DELETE_FROM)) and key not in (_DIRECTIVE, _RETAIN)
        }
    if isinstance(value, list):
        return [_without_directives(item) for item in value if not (isinstance(item, dict) and _DIRECTIVE in item)]
    return value


def _merge_ordered(merged: Object, patch: Object, name: str, order: Any, rules: Rules) -> None:
    """Merges a list whose order the patch gives."""
    present, changes = merged.get(name), patch.get(name)
    if not all(value is None or isinstance(value, list) for value in (present, changes)):
        raise MalformedPatch(f"{name} is not a list")
    if not isinstance(order, list):
        raise MalformedPatch("invalid patch format of setElementOrder list")
    if present is None and changes is None:
        return
    _check_order([item for item in changes or () if not _is_directed(item)], order, rules.merge_key)
    items = _merged_list(present or [], changes, rules, name) if changes else list(present or ())
    merged[name] = _arranged(items, order, present or [], rules.merge_key)


def _check_order(items: Sequence[Any], order: Sequence[Any], merge_key: str) -> None:
    """Ensures that the order names every item, in the items' own order."""
    if not order:
        return
    rest = iter(order)
    for item in items:
        wanted = _identity(item, merge_key)
        if not any(_identity(other, merge_key) == wanted for other in rest):
            raise MalformedPatch(f"The order in patch list:\n{items}\n doesn't match $setElementOrder list:\n{order}\n")


def _merged_list(present: Sequence[Any], changes: Sequence[Any], rules: Rules, name: str) -> list[Any]:
    are_objects = [isinstance(item, dict) for item in (*present, *changes)]
    if any(are_objects) != all(are_objects):
        raise MalformedPatch(f"list element types are not identical: {name}")
    if any(isinstance(item, list) for item in (*present, *changes)):
        raise MalformedPatch(f"lists of lists are not supported: {name}")
    if not any(are_objects):
        both = list(dict.fromkeys((*present, *changes)))
        return _arranged(both, changes, present, "")
    if not rules.merge_key:
        raise MalformedPatch(f"cannot merge lists without merge key for {name}")
    return _merged_objects(list(present), changes, rules)


def _merged_objects(present: list[Object], changes: Sequence[Object], rules: Rules) -> list[Any]:
    key = rules.merge_key
    plain = [item for item in changes if not _is_directed(item)]
    for item in changes:
        match item.get(_DIRECTIVE):
            case None | "replace":
                continue
            case "delete":
                gone = _identity(item, key)
                present = [other for other in present if other.get(key) != gone]
            case other:
                raise MalformedPatch(f"unknown patch type found: {other} in list item: {item}")
    if any(item.get(_DIRECTIVE) == "replace" for item in changes):
        return [_without_directives(item) for item in plain]
    before = list(present)
    for item in plain:
        wanted = _identity(item, key)
        place = next((index for index, other in enumerate(present) if other.get(key) == wanted), None)
        if place is None:
            present.append(strategic_merge({}, item, rules.item))
        else:
            present[place] = strategic_merge(present[place], item, rules.item)
    return _arranged(present, plain, before, key)


def _arranged(items: Iterable[Any], order: Sequence[Any], before: Sequence[Any], merge_key: str) -> list[Any]:
    """The items with those that ``order`` names in its order, and the others where they were among them.

    (Kubernetes: normalizeElementOrder, mergeSortedSlice.)
    """
    places = [_identity(item, merge_key) for item in order]
    was = [_identity(item, merge_key) for item in before]
    items = list(items)
    named = sorted((item for item in items if _identity(item, merge_key) in places), key=_by(places, merge_key))
    others = sorted((item for item in items if _identity(item, merge_key) not in places), key=_by(was, merge_key))
    arranged: list[Any] = []
    for item in named:
        here = _identity(item, merge_key)
        while others and here in was and _is_before(was, _identity(others[0], merge_key), here):
            arranged.append(others.pop(0))
        arranged.append(item)
    return arranged + others


def _by(places: Sequence[Any], merge_key: str) -> Any:
    def place(item: Any) -> int:
        identity = _identity(item, merge_key)
        return places.index(identity) if identity in places else len(places)

    return place


def _is_before(places: Sequence[Any], one: Any, other: Any) -> bool:
    return one in places and places.index(one) < places.index(other)


def _identity(item: Any, merge_key: str) -> Any:
    if not merge_key:
        return item
    if not isinstance(item, dict) or merge_key not in item:
        raise MalformedPatch(f"map: {item} does not contain declared merge key: {merge_key}")
    return item[merge_key]


def _is_directed(item: Any) -> bool:
    return isinstance(item, dict) and _DIRECTIVE in item
