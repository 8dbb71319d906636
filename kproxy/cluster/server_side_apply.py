"""Server-side apply of one object: what it says, what it may say, and Kubernetes' answers to what it may not."""

from __future__ import annotations

import msgspec

from kproxy.api import field_sets, known_fields, managed_fields, merge_rules
from kproxy.api.field_errors import UNKNOWN_FIELD
from kproxy.api.kinds import Kind
from kproxy.api.managed_fields import LAST_APPLIED, SERVER_SIDE_KUBECTL, Entry
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.deletion import precondition_failed
from kproxy.cluster.identity import WITH_STATUS, now
from kproxy.cluster.writes import Manner


def applied(kind: Kind, old: Object | None, configuration: Object, manner: Manner) -> tuple[Object, tuple[Entry, ...]]:
    """The object as it is to be written, and who manages it then.

    Args:
        kind: the object's.
        old: as it is stored; None when it is not there.
        configuration: what is applied, with its namespace and name.
        manner: who applies, and whether by force.

    Raises:
        Conflict: others manage what would change, or another object or version is meant.
        ApiError: it has fields that nobody knows, or lists whose items cannot be told apart.
    """
    metadata = configuration["metadata"]
    _check_identity(kind, old, metadata)
    _check_fields(kind, configuration)
    place = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    base = old or {**_named(configuration, ()), "metadata": place}
    manager = managed_fields.Manager(manner.manager, "Apply", kind.api_version, manner.subresource)
    rules = merge_rules.of_kind(kind.api_version, kind.name)
    said = _named(configuration, ("status",) if manner.subresource == "status" else _but_status(kind, configuration))
    try:
        merged, entries = managed_fields.apply(base, said, manager, rules, force=manner.force, time=now())
    except managed_fields.Conflicts as error:
        raise statuses.conflicting_managers(str(error), error.fields) from error
    except managed_fields.MalformedConfiguration as error:
        raise statuses.bad_request(f"{_untyped(kind, metadata)}: {error}") from error
    merged["metadata"] = {key: value for key, value in merged["metadata"].items() if key != "managedFields"}
    if manner.manager == SERVER_SIDE_KUBECTL and old is not None:
        _renew_annotation(merged, configuration)
    return merged, tuple(entries)


def _check_identity(kind: Kind, old: Object | None, metadata: Object) -> None:
    name = metadata["name"]
    uid, version = metadata.get("uid"), metadata.get("resourceVersion")
    if old is None:
        if uid:
            reason = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise statuses.conflict(kind, name, reason)
        return
    has = old["metadata"]
    if uid and uid != has["uid"]:
        raise statuses.conflict(kind, name, precondition_failed("UID", uid, has["uid"]))
    if version and version != has["resourceVersion"]:
        raise statuses.modified(kind, name)


def _check_fields(kind: Kind, configuration: Object) -> None:
    errors = known_fields.check(configuration)
    unknown = [f".{error.field}: field not declared in schema" for error in errors if error.kind is UNKNOWN_FIELD]
    if unknown:
        raise statuses.bad_request(f"{_untyped(kind, configuration['metadata'])}: {'; '.join(unknown)}")
    if errors:
        raise statuses.invalid(kind, configuration["metadata"]["name"], errors)


def _untyped(kind: Kind, metadata: Object) -> str:
    place = f"{metadata.get('namespace', '')}/{metadata['name']}"
    return f"failed to create typed patch object ({place}; {kind.api_version}, Kind={kind.name})"


def _but_status(kind: Kind, configuration: Object) -> tuple[str, ...]:
    return tuple(key for key in configuration if key != "status" or kind not in WITH_STATUS)


def _named(configuration: Object, keys: tuple[str, ...]) -> Object:
    """Kind, and no more than these fields, without what nobody manages."""
    kept = {key: value for key, value in configuration.items() if key in ("apiVersion", "kind", *keys)}
    if "metadata" in kept:
        metadata = kept["metadata"]
        kept["metadata"] = {key: value for key, value in metadata.items() if key not in field_sets.IDENTITY}
    return kept


def _renew_annotation(merged: Object, configuration: Object) -> None:
    """What kubectl applied from the client is kept up to date, so that it can go back to that."""
    annotations = merged["metadata"].get("annotations") or {}
    if LAST_APPLIED in annotations:
        text = msgspec.json.encode(configuration, order="sorted").decode() + "\n"
        merged["metadata"]["annotations"] = {**annotations, LAST_APPLIED: text}
