"""Events are forgotten after an hour, as kube-apiserver's --event-ttl has it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Final

from kproxy.api.kinds import EVENT
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.errors import NotFound

LIFETIME: Final = 3600.0
"""Seconds after an event was last said."""


class EventExpiryController(Controller[Name]):
    """Deletes events when their time is over."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._events = informers.of(EVENT)
        self._events.add_handler(self._on_event)

    def reconcile(self, key: Name) -> None:
        """Deletes the event of that name if its time is over."""
        event = self._events.get(key)
        if event is None:
            return
        left = LIFETIME - (datetime.now(UTC) - _last_said(event)).total_seconds()
        if left > 0:
            self.queue.add_later(key, left)
            return
        with contextlib.suppress(NotFound):
            self.client.delete(EVENT, key[1], key[0], uid=event["metadata"]["uid"])

    def _on_event(self, before: Object | None, after: Object | None) -> None:
        if before is None and after is not None:
            self.queue.add(name_of(after))


def _last_said(event: Object) -> datetime:
    """When it was last said; one that somebody else wrote may say so in other fields, or not at all."""
    texts = (event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return datetime.fromisoformat(next(text for text in texts if text))
