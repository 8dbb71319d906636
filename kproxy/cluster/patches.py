"""Patches by their media types, and Kubernetes' answers to those that do not fit."""

from __future__ import annotations

from typing import Any, Final

from kproxy.api import json_patch, merge_rules, strategic_merge
from kproxy.api.kinds import Kind
from kproxy.api.merge_patch import merge_patch
from kproxy.api.types import Object
from kproxy.cluster import statuses

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
MEDIA_TYPES: Final = (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH)


def patched(kind: Kind, old: Object, media_type: str, patch: Any) -> Object:
    """The object after a patch of one of the first three types; ``old`` is left as it is.

    Raises:
        ApiError: the patch is malformed, or does not fit the object.
    """
    if media_type == JSON_PATCH:
        return _json_patched(old, patch)
    if not isinstance(patch, dict):
        raise statuses.bad_request("the patch is not a JSON object")
    if media_type == MERGE_PATCH:
        return merge_patch(old, patch)
    rules = merge_rules.of_kind(kind.api_version, kind.name)
    try:
        return strategic_merge.strategic_merge(old, patch, rules)
    except strategic_merge.MalformedPatch as error:
        raise statuses.bad_request(str(error)) from error


def _json_patched(old: Object, patch: Any) -> Object:
    if isinstance(patch, list) and len(patch) > json_patch.LONGEST:
        limit, count = json_patch.LONGEST, len(patch)
        raise statuses.too_large_patch(f"The allowed maximum operations in a JSON patch is {limit}, got {count}")
    try:
        result = json_patch.json_patch(old, patch)
    except json_patch.MalformedPatch as error:
        raise statuses.bad_request(str(error)) from error
    except json_patch.PatchFailed as error:
        raise statuses.unprocessable(str(error)) from error
    if not isinstance(result, dict):
        raise statuses.unprocessable("what the patch leaves is not a JSON object")
    found: Object = result
    return found


def configuration(kind: Kind, patch: Any) -> Object:
    """What a server-side apply says about an object.

    Raises:
        ApiError: it is no object, or has what an apply may not have.
    """
    if not isinstance(patch, dict):
        raise statuses.bad_request("what is applied is not an object")
    for name, wanted in (("apiVersion", kind.api_version), ("kind", kind.name)):
        if patch.get(name) != wanted:
            said = patch.get(name)
            raise statuses.bad_request(f"incorrect type specified in apply patch: {name} is {said!r}, not {wanted!r}")
    if (patch.get("metadata") or {}).get("managedFields"):
        raise statuses.bad_request("metadata.managedFields must be nil")
    found: Object = patch
    return found
