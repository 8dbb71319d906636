"""Objects from a Kubernetes API: one list and watch per kind, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

import msgspec

from kproxy.api.kinds import ENDPOINT_SLICE, NODE, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracked
from kproxy.proxy.endpoints import HEADLESS_LABEL
from kproxy.proxy.services import SERVICE_PROXY_NAME_LABEL
from kproxy.proxy.sources import Deliver, key_of, typed

_LOG = logging.getLogger(__name__)


class ApiSource:
    """Services, EndpointSlices and this node's Node, as a Kubernetes API server tells them.

    Args:
        client: the API.
        node_name: the only Node that is watched.
    """

    is_patient = True

    def __init__(self, client: Client, node_name: str) -> None:
        self._client = client
        self._node_name = node_name

    def start(self, deliver: Deliver, stop: threading.Event) -> None:
        """Start the watches (selectors: kube-proxy, server.go, Run)."""
        for kind, labels, fields in (
            (NODE, "", f"metadata.name={self._node_name}"),
            (SERVICE, f"!{SERVICE_PROXY_NAME_LABEL}", "spec.clusterIP!=None"),
            (ENDPOINT_SLICE, f"!{HEADLESS_LABEL}", ""),
        ):
            arguments = (kind, labels, fields, deliver, stop)
            threading.Thread(target=self._follow, args=arguments, name=f"watch-{kind.plural}", daemon=True).start()

    def _follow(self, kind: Kind, labels: str, fields: str, deliver: Deliver, stop: threading.Event) -> None:
        known = Known(kind.name)

        def on_error(error: Exception) -> None:
            _LOG.warning("watching %s: %s", kind.plural, error)

        for told in self._client.follow(
            kind, label_selector=labels, field_selector=fields, stop=stop, on_error=on_error
        ):
            deliver(known.batch(told))


class Known:
    """What has been told of one kind, to work out what a new list or event changes.

    Attributes:
        objects: the last good version of every object that there is.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.objects: dict[ObjectKey, Tracked] = {}

    def batch(self, told: Snapshot | WatchEvent) -> Batch:
        """What a full list or an event means."""
        changes = self.replace(told.items) if isinstance(told, Snapshot) else self.take(told)
        return Batch(tuple(changes), {self._kind: int(told.resource_version)})

    def replace(self, items: Iterable[Object]) -> list[Change]:
        """The changes that a full list means; objects that it does not name are gone."""
        listed = [item | {"kind": self._kind} for item in items]
        keys = {key_of(item) for item in listed}
        changes = [self._set(key, None) for key in self.objects.keys() - keys]
        return [change for change in (*changes, *(self._update(item) for item in listed)) if change]

    def take(self, event: WatchEvent) -> list[Change]:
        """The changes that one event means; none for a BOOKMARK."""
        if event.type == "BOOKMARK":
            return []
        obj = event.object | {"kind": self._kind}
        change = self._set(key_of(obj), None) if event.type == "DELETED" else self._update(obj)
        return [change] if change else []

    def _update(self, obj: Object) -> Change | None:
        key = key_of(obj)
        try:
            return self._set(key, typed(obj))
        except msgspec.ValidationError as error:
            _LOG.error("%s: %s: its last good version stays", key, error)
            return None

    def _set(self, key: ObjectKey, new: Tracked | None) -> Change | None:
        old = self.objects.pop(key, None)
        if new is not None:
            self.objects[key] = new
        return Change(key, old, new) if old != new else None
