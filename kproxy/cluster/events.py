"""Events: what the lab's controllers tell people about an object, as `kubectl describe` shows it.

Law: telling never waits and never fails; what cannot be written is lost. The same thing said again is counted, not
repeated (client-go: tools/record/events_cache.go).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from kproxy.api.kinds import EVENT
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.identity import now
from kproxy.errors import KproxyError, NotFound

NORMAL: Final = "Normal"
WARNING: Final = "Warning"
_WAITING: Final = 10_000
"""Events that may wait to be written; more are lost."""
_REMEMBERED: Final = 4096
"""Events that are counted when they are said again (client-go: maxLruCacheEntries)."""
_LOG = logging.getLogger(__name__)

Said = tuple[str, str, str, str, str]
"""Uid, type, reason, message and field of something that was told."""


@dataclass(frozen=True)
class _Told:
    about: Object
    type: str
    reason: str
    message: str
    field: str
    component: str
    host: str
    at: str

    @property
    def said(self) -> Said:
        return self.about["metadata"]["uid"], self.type, self.reason, self.message, self.field


class Events:
    """Writes events to the API, one after the other, in a thread of its own.

    Args:
        client: where to.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: queue.Queue[_Told | None] = queue.Queue(_WAITING)
        self._known: OrderedDict[Said, tuple[str, int]] = OrderedDict()
        self._numbers = itertools.count(time.time_ns())
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after what is being written; what waits is lost."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def recorder(self, component: str) -> Recorder:
        """Who tells in the name of a component."""
        return Recorder(self, component)

    def take(self, told: _Told) -> None:
        """Has it written soon."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(told)

    def _run(self) -> None:
        while (told := self._queue.get()) is not None:
            try:
                self._write(told)
            except KproxyError as error:
                _LOG.debug("an event is lost: %s", error)
            except Exception:  # noqa: BLE001 - an event is never worth more than the next one
                _LOG.exception("events")

    def _write(self, told: _Told) -> None:
        name, count = self._known.get(told.said, ("", 0))
        if name:
            change = {"count": count + 1, "lastTimestamp": told.at}
            try:
                self._client.patch(EVENT, name, change, _namespace(told.about))
            except NotFound:
                name = ""
        if not name:
            count, name = 0, f"{told.about['metadata']['name']}.{next(self._numbers):x}"
            self._client.create(EVENT, _event(told, name), _namespace(told.about))
        self._known[told.said] = name, count + 1
        self._known.move_to_end(told.said)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


class Recorder:
    """Tells about objects in the name of one component.

    Args:
        events: who writes.
        component: `deployment-controller`, `default-scheduler`, `kubelet`, ...
    """

    def __init__(self, events: Events, component: str) -> None:
        self._events = events
        self._component = component

    def normal(self, about: Object, reason: str, message: str, *, field: str = "", host: str = "") -> None:
        """Tells of something that goes as it should.

        Args:
            about: the object, with kind and apiVersion.
            reason: one word in Kubernetes' spelling.
            message: a sentence for people.
            field: the part of the object that is meant, `spec.containers{web}`.
            host: the node on which it happened.
        """
        self._events.take(_Told(about, NORMAL, reason, message, field, self._component, host, now()))

    def warning(self, about: Object, reason: str, message: str, *, field: str = "", host: str = "") -> None:
        """Tells of something that somebody should look at; arguments as for `normal`."""
        self._events.take(_Told(about, WARNING, reason, message, field, self._component, host, now()))


def _namespace(about: Object) -> str:
    return str(about["metadata"].get("namespace") or "default")


def _event(told: _Told, name: str) -> Object:
    about, metadata = told.about, told.about["metadata"]
    reference = {
        "kind": about["kind"],
        "apiVersion": about["apiVersion"],
        "namespace": metadata.get("namespace"),
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion"),
        "fieldPath": told.field,
    }
    source = {"component": told.component, "host": told.host}
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": name, "namespace": _namespace(about)},
        "involvedObject": {key: value for key, value in reference.items() if value},
        "reason": told.reason,
        "message": told.message,
        "source": {key: value for key, value in source.items() if value},
        "firstTimestamp": told.at,
        "lastTimestamp": told.at,
        "count": 1,
        "type": told.type,
        "reportingComponent": told.component,
        "reportingInstance": told.host,
    }
