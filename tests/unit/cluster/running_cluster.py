"""A lab's API on a real socket, with and without its controllers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from kproxy.api.kinds import POD
from kproxy.api.types import Object
from kproxy.client import Client, WatchEvent
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import Server, serve
from kproxy.cluster.controllers.manager import ControllerManager
from kproxy.cluster.store import DEFAULT_HISTORY, Store
from kproxy.errors import NotFound

T = TypeVar("T")


class Api:
    """A running API that can be restarted, and a client of it."""

    def __init__(self, folder: Path, settings: ClusterSettings) -> None:
        self.settings = settings
        self.socket = folder / "api.sock"
        self.database = folder / "state.db"
        self.url = f"unix://{self.socket}"
        self.client = Client(self.url)
        self.start()

    def start(self, history: int = DEFAULT_HISTORY) -> None:
        self.store = Store(self.database, history=history)
        self.server: Server = serve(self.store, self.socket, cluster=self.settings, lab_status=lambda: {"name": "lab"})

    def stop(self) -> None:
        self.server.stop()
        self.store.close()


class Kubelet:
    """Does to pods what the node agent does to their objects, without any process."""

    def __init__(self, client: Client) -> None:
        self.is_ready = True
        self._client = client
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._count = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._client.close()
        self._thread.join()

    def _run(self) -> None:
        for item in self._client.follow(POD):
            pods = [item.object] if isinstance(item, WatchEvent) else item.items
            is_news = isinstance(item, WatchEvent) and item.type in ("ADDED", "MODIFIED")
            for pod in pods if is_news else ():
                try:
                    self._take(pod)
                except NotFound:
                    continue

    def _take(self, pod: Object) -> None:
        metadata = pod["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        if metadata.get("deletionTimestamp"):
            self._client.delete(POD, name, namespace, grace_seconds=0, uid=metadata["uid"])
        elif pod["spec"].get("nodeName") and not pod["status"].get("podIP") and self.is_ready:
            self._count += 1
            self._client.patch(POD, name, {"status": running(f"10.244.1.{self._count}")}, namespace, "status")


def running(address: str, *, ready: bool = True) -> Object:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}


class Cluster:
    """An API with all its controllers, three nodes and a kubelet."""

    def __init__(self, api: Api) -> None:
        self.client = api.client
        self.kubelet = Kubelet(Client(api.url))
        self.manager = ControllerManager(Client(api.url), api.settings)


def eventually(look: Callable[[], T], is_right: Callable[[T], bool], seconds: float = 20.0) -> T:
    """What ``look`` sees once it is right; fails with the last thing seen."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if is_right(seen):
            return seen
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {seconds} seconds; last seen: {seen!r}")
        time.sleep(0.005)
