"""Events, written to a Kubernetes API: never waited for, and a start costs them nothing."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Final

from kproxy.api.kinds import EVENT_OF_GROUP
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.errors import KproxyError
from kproxy.proxy.events import Event

COMPONENT: Final = "kube-proxy"
GRACE_SECONDS: Final = 1.0
"""Before the first event is written: a node that starts has more urgent things to do."""
WAITING: Final = 1000
"""Events that may wait to be written; more are lost."""

_LOG = logging.getLogger(__name__)


class EventWriter:
    """Writes events to the API, one after the other, in a thread that is started for the first one.

    Args:
        client: the API.
        instance: who reports: this host's name.
        grace: seconds before the first one.
    """

    def __init__(self, client: Client, instance: str, grace: float = GRACE_SECONDS) -> None:
        self._client = client
        self._instance = instance
        self._grace = grace
        self._queue: Queue[tuple[Event, float]] = Queue(WAITING)
        self._numbers = itertools.count(time.time_ns())
        self._has_begun = False

    def tell(self, event: Event) -> None:
        """Have an event written soon."""
        try:
            self._queue.put_nowait((event, time.time()))
        except Full:
            return
        if not self._has_begun:
            self._has_begun = True
            threading.Thread(target=self._run, name="events", daemon=True).start()

    def _run(self) -> None:
        time.sleep(self._grace)
        while True:
            event, moment = self._queue.get()
            try:
                self._client.create(EVENT_OF_GROUP, self._object(event, moment), event.name.namespace or "default")
            except KproxyError as error:
                _LOG.debug("event %s is lost: %s", event.reason, error)

    def _object(self, event: Event, moment: float) -> Object:
        regarding = {
            "kind": event.kind,
            "apiVersion": "v1",
            "namespace": event.name.namespace,
            "name": event.name.name,
            "uid": event.uid,
        }
        return {
            "apiVersion": EVENT_OF_GROUP.api_version,
            "kind": EVENT_OF_GROUP.name,
            "metadata": {
                "name": f"{event.name.name}.{next(self._numbers):x}",
                "namespace": event.name.namespace or "default",
            },
            "eventTime": f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "reportingController": COMPONENT,
            "reportingInstance": f"{COMPONENT}-{self._instance}",
            "action": event.action,
            "reason": event.reason,
            "regarding": {field: value for field, value in regarding.items() if value},
            "note": event.note,
            "type": event.type,
        }
