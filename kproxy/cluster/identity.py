"""What every object has before it means anything: kind, name, namespace, uid, times, generation.

Law: what only the server gives, no request changes.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from random import SystemRandom
from typing import Any

from kproxy.api.kinds import (
    BY_API,
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    KINDS,
    NAMESPACE,
    POD,
    REPLICA_SET,
    SERVICE,
    STATEFUL_SET,
    Kind,
)
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.store import Transaction

NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""No vowels and nothing that looks like another letter (Kubernetes: apimachinery/pkg/util/rand)."""
SERVER_METADATA = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
WITH_STATUS = frozenset(kind for kind in KINDS if "status" in kind.subresources)
"""Kinds whose status is a subresource: written there alone."""

_WITH_GENERATION = frozenset((DEPLOYMENT, REPLICA_SET, STATEFUL_SET, DAEMON_SET, ENDPOINT_SLICE, POD))
_FIRST_STATUS: Mapping[Kind, Object] = {
    NAMESPACE: {"phase": "Active"},
    POD: {"phase": "Pending"},
    SERVICE: {"loadBalancer": {}},
    DEPLOYMENT: {},
    REPLICA_SET: {"replicas": 0},
    STATEFUL_SET: {"availableReplicas": 0, "replicas": 0},
    DAEMON_SET: {"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0},
}
_GENERATED_NAME_TRIES = 8


def random_suffix(length: int = 5) -> str:
    """What is put behind a generateName."""
    return "".join(SystemRandom().choices(NAME_ALPHABET, k=length))


def now() -> str:
    """The time as Kubernetes writes it: UTC, whole seconds."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> str:
    """The moment as Kubernetes writes it: whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def head(kind: Kind) -> Object:
    """ApiVersion and kind."""
    return {"apiVersion": kind.api_version, "kind": kind.name}


def key_of(obj: Object) -> tuple[str, str]:
    """Namespace and name, "" for what the object lacks."""
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata.get("name") or ""


def kind_of(obj: Any) -> Kind | None:
    """The kind that the object says it has; None when it says none that is served here."""
    if not isinstance(obj, dict):
        return None
    named = (obj.get("apiVersion"), obj.get("kind"))
    return BY_API.get((str(named[0]), str(named[1])))


def addressed(kind: Kind, namespace: str, obj: Object, name: str = "") -> Object:
    """The object with the kind, namespace and name that the request's path gives it.

    Raises:
        ApiError: it says otherwise itself.
    """
    stated = {"apiVersion": obj.get("apiVersion") or kind.api_version, "kind": obj.get("kind") or kind.name}
    if stated != head(kind):
        raise statuses.bad_request(
            f"{stated['apiVersion']} {stated['kind']} does not belong at this path ({kind.name})"
        )
    metadata = obj.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise statuses.bad_request("metadata is not an object")
    metadata = dict(metadata)
    if kind.namespaced:
        if metadata.setdefault("namespace", namespace) != namespace:
            raise statuses.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
    else:
        metadata.pop("namespace", None)
    if name and metadata.setdefault("name", name) != name:
        raise statuses.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    return {**obj, **stated, "metadata": metadata}


def with_default_namespace(kind: Kind, obj: Object) -> Object:
    """The object with the namespace that kubectl would give it."""
    metadata = dict(obj.get("metadata") or {})
    if kind.namespaced:
        metadata["namespace"] = metadata.get("namespace") or "default"
    else:
        metadata.pop("namespace", None)
    return {**obj, "metadata": metadata}


def check_namespace(transaction: Transaction, kind: Kind, metadata: Object) -> None:
    """Ensures that a new object's namespace takes it.

    Raises:
        NotFound: it is not there.
        ApiError: it is being terminated.
    """
    if not kind.namespaced:
        return
    namespace = transaction.get(NAMESPACE, "", metadata["namespace"])
    if namespace is None:
        raise statuses.not_found(NAMESPACE, metadata["namespace"])
    if namespace["metadata"].get("deletionTimestamp"):
        reason = f"unable to create new content in namespace {metadata['namespace']} because it is being terminated"
        raise statuses.forbidden(kind, metadata.get("name", ""), reason)


def begin(kind: Kind, obj: Object, transaction: Transaction) -> None:
    """Gives a new object what only the server gives."""
    metadata = obj.setdefault("metadata", {})
    for name in (*SERVER_METADATA, "resourceVersion", "managedFields", "selfLink"):
        metadata.pop(name, None)
    if metadata.get("generateName") and not metadata.get("name"):
        metadata["name"] = _generated_name(kind, metadata, transaction)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()
    if kind in _WITH_GENERATION:
        metadata["generation"] = 1
    if kind is NAMESPACE:
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata.get("name", "")
    if kind in _FIRST_STATUS:
        obj["status"] = copy.deepcopy(_FIRST_STATUS[kind])


def carry_on(kind: Kind, obj: Object, old: Object) -> None:
    """Keeps what only the server changes."""
    metadata, before = obj["metadata"], old["metadata"]
    for name in (*SERVER_METADATA, "resourceVersion"):
        metadata.pop(name, None)
        if name in before:
            metadata[name] = before[name]
    without_meaning = ("metadata", "status")
    changed = any(obj.get(name) != old.get(name) for name in {*obj, *old} - set(without_meaning))
    if kind in _WITH_GENERATION and changed:
        metadata["generation"] = before.get("generation", 0) + 1


def _generated_name(kind: Kind, metadata: Object, transaction: Transaction) -> str:
    base = str(metadata["generateName"])[: 63 - 5]  # Kubernetes: names.maxGeneratedNameLength
    name = base + random_suffix()
    for _ in range(_GENERATED_NAME_TRIES):
        if transaction.get(kind, metadata.get("namespace", ""), name) is None:
            break
        name = base + random_suffix()
    return name
