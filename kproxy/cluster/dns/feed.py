"""What the API says of Services, EndpointSlices and Namespaces, taken over into the zone.

Law: threads read, the event loop alone changes the zone: between two questions it is always in one piece.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from kproxy.api.kinds import ENDPOINT_SLICE, NAMESPACE, SERVICE, Kind
from kproxy.api.types import EndpointSlice, Object, Service, view
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster.dns.zone import Zone

KINDS: Final = (NAMESPACE, SERVICE, ENDPOINT_SLICE)
_LOG = logging.getLogger(__name__)

Name = tuple[str, str]
"""Namespace ("" for none) and name."""


class Feed:
    """Keeps a zone up to date.

    Args:
        zone: that zone.
        client: where the objects are.
        complete: called once in the event loop, when all kinds have been listed.
    """

    def __init__(self, zone: Zone, client: Client, complete: Callable[[], None]) -> None:
        self._zone = zone
        self._client = client
        self._complete = complete
        self._known: dict[str, dict[Name, Object]] = {kind.name: {} for kind in KINDS}
        self._listed: set[str] = set()

    def start(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Follows the API in threads of their own, until `stop` is set."""
        for kind in KINDS:
            threading.Thread(target=self._follow, args=(kind, loop, stop), name=kind.plural, daemon=True).start()

    def _follow(self, kind: Kind, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        complain = partial(_LOG.warning, "%s: %s", kind.plural)
        for item in self._client.follow(kind, bookmarks=False, stop=stop, on_error=complain):
            loop.call_soon_threadsafe(self.take, kind, item)

    def take(self, kind: Kind, item: Snapshot | WatchEvent) -> None:
        """Takes over what a list or a watch has told."""
        if isinstance(item, WatchEvent):
            self._change(kind, _name(item.object), None if item.type == "DELETED" else item.object)
            return
        present = {_name(obj): obj for obj in item.items}
        for name in set(self._known[kind.name]) - set(present):
            self._change(kind, name, None)
        for name, obj in present.items():
            self._change(kind, name, obj)
        is_first = kind.name not in self._listed
        self._listed.add(kind.name)
        if is_first and len(self._listed) == len(KINDS):
            self._complete()

    def _change(self, kind: Kind, name: Name, obj: Object | None) -> None:
        known = self._known[kind.name]
        old = known.pop(name, None)
        if obj is not None:
            known[name] = obj
        if kind is NAMESPACE:
            self._zone.set_namespace(name[1], exists=obj is not None)
        elif kind is SERVICE:
            self._zone.set_service(name, view(obj, Service) if obj is not None else None)
        else:
            before, after = (view(one, EndpointSlice) if one is not None else None for one in (old, obj))
            self._zone.set_slice(*name, before, after)


def _name(obj: Object) -> Name:
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]
