"""Objects from a Kubernetes API: one list and watch per kind, each in a thread of its own.

Lists and events are decoded straight into the types that the proxy reads; only an object that does not fit by itself is
looked at once more, for the nulls that Kubernetes takes for "not set".
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from kproxy.api.kinds import ENDPOINT_SLICE, NODE, SERVICE, SERVICE_CIDR, Kind
from kproxy.client import Client, RawEvent, RawSnapshot
from kproxy.errors import NotFound
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracked
from kproxy.proxy.endpoints import HEADLESS_LABEL
from kproxy.proxy.events import Event
from kproxy.proxy.services import SERVICE_PROXY_NAME_LABEL
from kproxy.proxy.sources import TYPES, Deliver, key_of, typed
from kproxy.proxy.sources.api_events import EventWriter

_LOG = logging.getLogger(__name__)


class ApiSource:
    """Services, EndpointSlices, ServiceCIDRs and this node's Node, as a Kubernetes API server tells them.

    Args:
        client: the API.
        node_name: the only Node that is watched.
    """

    is_patient = True

    def __init__(self, client: Client, node_name: str) -> None:
        self._client = client
        self._node_name = node_name
        self._events = EventWriter(client, node_name)

    def start(self, deliver: Deliver, stop: threading.Event) -> None:
        """Start the watches (selectors: kube-proxy, server.go, Run)."""
        for kind, labels, fields in (
            (NODE, "", f"metadata.name={self._node_name}"),
            (SERVICE, f"!{SERVICE_PROXY_NAME_LABEL}", "spec.clusterIP!=None"),
            (ENDPOINT_SLICE, f"!{HEADLESS_LABEL}", ""),
            (SERVICE_CIDR, "", ""),
        ):
            arguments = (kind, labels, fields, deliver, stop)
            threading.Thread(target=self._follow, args=arguments, name=f"watch-{kind.plural}", daemon=True).start()

    def tell(self, event: Event) -> None:
        """Have an event written to the API soon."""
        self._events.tell(event)

    def _follow(self, kind: Kind, labels: str, fields: str, deliver: Deliver, stop: threading.Event) -> None:
        known = Known(kind.name)
        complaint = ""

        def on_error(error: Exception) -> None:
            nonlocal complaint
            if isinstance(error, NotFound) and kind is SERVICE_CIDR:
                text = "the API has no ServiceCIDRs (it is older than Kubernetes 1.33)"
            else:
                text = str(error)
            if text != complaint:  # once, not at each of many tries
                _LOG.warning("watching %s: %s", kind.plural, text)
            complaint = text

        for told in self._client.follow_raw(
            kind, label_selector=labels, field_selector=fields, stop=stop, on_error=on_error
        ):
            if complaint:
                _LOG.info("watching %s: works again", kind.plural)
                complaint = ""
            batch = known.batch(told)
            if isinstance(told, RawSnapshot):
                told.pages.clear()  # tens of megabytes, which would stay until something happens
            deliver(batch)
            del batch


class Known:
    """What has been told of one kind, to work out what a new list or event changes.

    Attributes:
        objects: the last good version of every object that there is.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(TYPES[kind]).decode
        self._decode_list = _list_decoder(TYPES[kind])
        self.objects: dict[ObjectKey, Tracked] = {}

    def batch(self, told: RawSnapshot | RawEvent) -> Batch:
        """What a full list or an event means."""
        changes = self.replace(told.pages) if isinstance(told, RawSnapshot) else self.take(told)
        return Batch(tuple(changes), {self._kind: int(told.resource_version)})

    def replace(self, pages: Iterable[bytes]) -> list[Change]:
        """The changes that a full list means; objects that it does not name are gone."""
        listed = dict(item for page in pages for item in self._items(page))
        changes = [self._set(key, None) for key in self.objects.keys() - listed.keys()]
        changes += [self._set(key, value) for key, value in listed.items() if value is not None]
        return [change for change in changes if change]

    def take(self, event: RawEvent) -> list[Change]:
        """The changes that one event means; none for a BOOKMARK."""
        if event.type == "BOOKMARK":
            return []
        key, value = self._item(event.object)
        change = self._set(key, None) if event.type == "DELETED" else self._set(key, value) if value else None
        return [change] if change else []

    def _items(self, page: bytes) -> Iterator[tuple[ObjectKey, Tracked | None]]:
        try:
            items = self._decode_list(page).items or ()
        except msgspec.ValidationError:  # one of them; which?
            yield from (self._item(bytes(item)) for item in _decode_raw_list(page).items or ())
            return
        yield from ((self._key(item), item) for item in items)

    def _item(self, body: bytes) -> tuple[ObjectKey, Tracked | None]:
        """An object and its key; None for one that the proxy cannot make sense of, whose last good version stays."""
        try:
            value = self._decode(body)
            return self._key(value), value
        except msgspec.ValidationError:  # perhaps for a null, of which most objects have none
            obj = msgspec.json.decode(body) | {"kind": self._kind}
        key = key_of(obj)
        try:
            return key, typed(obj)
        except msgspec.ValidationError as error:
            _LOG.error("%s: %s: its last good version stays", key, error)
            return key, None

    def _key(self, value: Tracked) -> ObjectKey:
        return ObjectKey(self._kind, value.metadata.namespace, value.metadata.name)

    def _set(self, key: ObjectKey, new: Tracked | None) -> Change | None:
        old = self.objects.pop(key, None)
        if new is not None:
            self.objects[key] = new
        return Change(key, old, new) if old != new else None


class _RawList(msgspec.Struct, gc=False):
    items: tuple[msgspec.Raw, ...] | None = None


_decode_raw_list = msgspec.json.Decoder(_RawList).decode


def _list_decoder(item: type[Tracked]) -> Any:
    """Decodes lists of a kind."""
    fields = [("items", tuple[item, ...] | None, None)]  # type: ignore[valid-type]
    return msgspec.json.Decoder(msgspec.defstruct(f"{item.__name__}List", fields, gc=False)).decode
