"""JSON merge patches (RFC 7386): what ``kubectl patch --type=merge`` and our own commands send."""

from __future__ import annotations

from typing import Any

from kproxy.api.types import Object


def merge_patch(target: Object, patch: Object) -> Object:
    """The target with the patch applied; both are left as they are.

    Objects are merged field by field, null removes a field, anything else (lists too) replaces what was there.
    """
    merged: Object = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            present = merged.get(key)
            merged[key] = merge_patch(present if isinstance(present, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def difference(old: Object, new: Object) -> Object:
    """The smallest merge patch that turns ``old`` into ``new``; empty when they are equal.

    Nulls inside ``new`` count as absent, since a merge patch cannot set them.
    """
    patch: Object = {key: None for key in old if new.get(key) is None}
    for key, value in new.items():
        present: Any = old.get(key)
        if value is None or value == present:
            continue
        both_objects = isinstance(value, dict) and isinstance(present, dict)
        patch[key] = difference(present, value) if both_objects else value
    return patch
