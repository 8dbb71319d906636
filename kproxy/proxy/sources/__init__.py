"""Where objects come from: a directory of manifests, a Kubernetes API.

A source runs in threads of its own and hands over immutable batches; it says by itself when a kind's first full list
is in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from kproxy.api.types import EndpointSlice, Node, Object, Service, ServiceCIDR, view
from kproxy.proxy.changes import Batch, ObjectKey, Tracked
from kproxy.proxy.events import Event

Deliver = Callable[[Batch], None]

TYPES: dict[str, type[Tracked]] = {
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Node": Node,
    "ServiceCIDR": ServiceCIDR,
}
"""The kinds that a proxy looks at."""


class Source(Protocol):
    """Something that knows Services, EndpointSlices and this Node."""

    is_patient: bool
    """Whether a Node that is missing from the first full list may still come soon."""

    def start(self, deliver: Deliver, stop: threading.Event) -> None:
        """Begin to deliver, from threads that end soon after ``stop`` is set."""

    def tell(self, event: Event) -> None:
        """Let people see an event where they see the objects, if there is such a place; returns at once."""


def key_of(obj: Object) -> ObjectKey:
    """An object's key; a namespaced object without a namespace is in "default"."""
    metadata = obj.get("metadata") or {}
    is_namespaced = obj.get("kind") in ("Service", "EndpointSlice")
    namespace = metadata.get("namespace") or ("default" if is_namespaced else "")
    return ObjectKey(obj["kind"], namespace, metadata.get("name", ""))


def typed(obj: Object) -> Tracked:
    """The typed value of an object, its namespace filled in.

    Raises:
        msgspec.ValidationError: a field has the wrong JSON type.
    """
    key = key_of(obj)
    return with_namespace(view(obj, TYPES[key.kind]), key.namespace)


def with_namespace(value: Tracked, namespace: str) -> Tracked:
    """The object in the namespace that it means."""
    if value.metadata.namespace == namespace:
        return value
    metadata = msgspec.structs.replace(value.metadata, namespace=namespace)
    return msgspec.structs.replace(value, metadata=metadata)
