"""All controllers that need nothing but the API, started together: the lab's kube-controller-manager and scheduler."""

from __future__ import annotations

import threading
from typing import Any

from kproxy.client import Client
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.daemon_sets import DaemonSetController
from kproxy.cluster.controllers.deployments import DeploymentController
from kproxy.cluster.controllers.endpoint_mirroring import EndpointSliceMirroringController
from kproxy.cluster.controllers.endpoint_slices import EndpointSliceController
from kproxy.cluster.controllers.endpoints import EndpointsController
from kproxy.cluster.controllers.event_expiry import EventExpiryController
from kproxy.cluster.controllers.garbage import GarbageCollector, NamespaceController
from kproxy.cluster.controllers.informer import Informers
from kproxy.cluster.controllers.kubernetes_service import KubernetesServiceController
from kproxy.cluster.controllers.replica_sets import ReplicaSetController
from kproxy.cluster.controllers.scheduler import NAME as SCHEDULER
from kproxy.cluster.controllers.scheduler import Scheduler
from kproxy.cluster.controllers.stateful_sets import StatefulSetController
from kproxy.cluster.controllers.taint_eviction import TaintEvictionController
from kproxy.cluster.events import Events


class ControllerManager:
    """Runs the controllers, each in a thread, over one set of informers.

    Args:
        client: for every controller; ``stop`` closes it.
        settings: the cluster's.
    """

    def __init__(self, client: Client, settings: ClusterSettings) -> None:
        self.informers = Informers(client)
        self._client = client
        self._events = Events(client)
        told = self._events.recorder
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.controllers: tuple[Controller[Any], ...] = (
            KubernetesServiceController(client, self.informers, settings),
            Scheduler(client, self.informers, told(SCHEDULER)),
            DeploymentController(client, self.informers, told("deployment-controller")),
            ReplicaSetController(client, self.informers, told("replicaset-controller")),
            StatefulSetController(client, self.informers, told("statefulset-controller")),
            DaemonSetController(client, self.informers, told("daemonset-controller")),
            TaintEvictionController(client, self.informers, told("taint-eviction-controller")),
            EventExpiryController(client, self.informers),
            EndpointSliceController(client, self.informers),
            EndpointsController(client, self.informers),
            EndpointSliceMirroringController(client, self.informers),
            GarbageCollector(client, self.informers),
            NamespaceController(client, self.informers),
        )

    def start(self) -> None:
        """Begins to follow the API and to control; returns at once."""
        self._events.start()
        self._threads += self.informers.start(self._stop)
        for controller in self.controllers:
            name = type(controller).__name__
            thread = threading.Thread(target=controller.run, args=(self._stop,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends every controller and informer, and waits for them."""
        self._stop.set()
        for controller in self.controllers:
            controller.queue.wake()
        self._events.stop()
        self._client.close()
        for thread in self._threads:
            thread.join()
