"""``kubectl apply``'s three-way merge: what the last apply named, what this one names, and what others have set."""

from __future__ import annotations

from typing import Any

import msgspec

from kproxy.api.managed_fields import LAST_APPLIED
from kproxy.api.merge_patch import merge_patch
from kproxy.api.types import Object
from kproxy.cluster.identity import SERVER_METADATA


def with_last_applied(obj: Object, document: Object) -> Object:
    """The object with the annotation by which the next apply knows what this one named (kubectl's own)."""
    metadata = {key: value for key, value in document["metadata"].items() if key != "annotations"}
    annotations = document["metadata"].get("annotations") or {}
    named = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    recorded = {**document, "metadata": {**metadata, "annotations": named}}
    recorded.pop("status", None)
    text = msgspec.json.encode(recorded, order="sorted").decode() + "\n"
    own = obj["metadata"]
    return {**obj, "metadata": {**own, "annotations": {**(own.get("annotations") or {}), LAST_APPLIED: text}}}


def three_way_merge(old: Object, document: Object) -> Object:
    """The stored object as it is to be after an apply of the document."""
    annotated = with_last_applied(document, document)
    before = (old["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}")
    try:
        last = msgspec.json.decode(before)
    except msgspec.DecodeError:  # somebody else wrote it: then nothing was named before
        last = {}
    merged = merge_patch(old, _removals(last, document))
    return merge_patch(merged, annotated | {"metadata": _without_version(annotated["metadata"])})


def _without_version(metadata: Object) -> Object:
    return {key: value for key, value in metadata.items() if key not in SERVER_METADATA}


def _removals(last: Any, document: Object) -> Object:
    """A merge patch that removes what ``last`` named and ``document`` does not."""
    removals: Object = {}
    for key, value in last.items() if isinstance(last, dict) else ():
        if key not in document:
            removals[key] = None
        elif isinstance(value, dict) and isinstance(document[key], dict):
            removals[key] = _removals(value, document[key])
    return removals
