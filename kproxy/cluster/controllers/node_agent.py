"""The node agent: what kubelet does. It makes pods that are bound to a node, keeps them running, and says so.

One agent serves all nodes of a lab. Law: one thread decides and acts; others only hand it objects. What it made it
finds again after a restart.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from kproxy.api.kinds import CONFIG_MAP, POD, SERVICE, Kind
from kproxy.api.types import Object, Pod, Service, view
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster import pods, topology
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.container_unit import moment
from kproxy.cluster.events import Events
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_addresses import PodAddresses
from kproxy.cluster.pod_environment import ConfigMaps
from kproxy.cluster.pod_limits import PodLimits
from kproxy.cluster.pod_processes import ForkServer, kill_strays, recorded
from kproxy.cluster.prober import Prober
from kproxy.cluster.reactor import Reactor
from kproxy.cluster.running_pod import Means, RunningPod
from kproxy.cluster.status import PodStatus, ProcessStatus
from kproxy.errors import ApiError, Conflict, KproxyError, NotFound
from netns import build, namespace
from netns import journal as record
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace
from netns.process import Process
from netns.topology import NamespaceSpec, Role, Topology, merge

_LOG = logging.getLogger(__name__)
RETRY: Final = 2.0
"""Seconds until something that failed is tried again."""
LOG_PERIOD: Final = 2.0
"""Seconds between two looks at how long logs have become."""


class NodeAgent:
    """Makes the pods of all nodes.

    Args:
        client: the lab's API.
        config: the cluster.
        layout: where records and logs are.
        journal: where everything is recorded before it is made.
        fork_server: who forks echo servers.
    """

    def __init__(
        self, client: Client, config: ClusterConfig, layout: Layout, journal: Journal, fork_server: ForkServer
    ) -> None:
        self._client = client
        self._config = config
        self._layout = layout
        self._journal = journal
        self._reactor = Reactor()
        self._events = Events(client)
        self._limits = PodLimits(layout, journal)
        self._means = Means(
            layout=layout,
            config=config,
            journal=journal,
            fork_server=fork_server,
            limits=self._limits,
            prober=Prober(),
            reactor=self._reactor,
            recorder=self._events.recorder("kubelet"),
            config_maps=self._config_maps,
            changed=self._note,
            ended=self._end,
        )
        self._addresses = PodAddresses(config)
        self._taken: set[str] = set()
        self._runs: dict[str, RunningPod] = {}
        self._services: dict[tuple[str, str], Service] = {}
        self._pending: list[RunningPod] = []
        self._dirty: dict[str, RunningPod] = {}
        self._early: list[Snapshot | WatchEvent] | None = []
        self._has_pods = False
        self._settled = threading.Event()

    def pods(self) -> tuple[PodStatus, ...]:
        """All pods that are bound to a node, by namespace and name; from whatever thread."""
        return tuple(self._pod_statuses())

    def processes(self) -> tuple[ProcessStatus, ...]:
        """The processes of all pods; from whatever thread."""
        return tuple(self._process_statuses())

    def wait_until_settled(self, seconds: float) -> bool:
        """Waits until all pods that were there at the start have been looked at; false if that takes longer.

        What a control plane before this one has left running has then been taken over.
        """
        return self._settled.wait(seconds)

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; pods live on."""
        self._events.start()
        self._reactor.later(LOG_PERIOD, self._look_at_logs)
        for kind in (SERVICE, POD):
            threading.Thread(target=self._follow, args=(kind, stop), name=f"agent-{kind.plural}", daemon=True).start()
        while not stop.is_set():
            try:
                self._reactor.turn()
                self._act()
            except (KproxyError, NetnsError, OSError) as error:
                _LOG.warning("node agent: %s", error)
                self._reactor.later(RETRY, lambda: None)
            except Exception:  # noqa: BLE001 - a bug with one pod does not stop the others'
                _LOG.exception("node agent")
                self._reactor.later(RETRY, lambda: None)

    def _follow(self, kind: Kind, stop: threading.Event) -> None:
        take = self._take_service if kind is SERVICE else self._take_pod
        for item in self._client.follow(kind, stop=stop, bookmarks=False):
            self._reactor.post(partial(take, item))

    def _act(self) -> None:
        """What is to be started is started, and what has changed is told."""
        if self._pending:
            self._start_pending()
        self._tell()
        is_open = self._has_pods and not self._settled.is_set()
        if is_open and not any(run.is_unknown for run in self._runs.values()):
            self._settled.set()

    def _note(self, run: RunningPod) -> None:
        self._dirty[run.uid] = run

    def _look_at_logs(self) -> None:
        self._reactor.later(LOG_PERIOD, self._look_at_logs)
        for run in self._runs.values():
            try:
                run.turn_full_logs_over()
            except OSError as error:  # a full disk is no reason never to look again, nor not to look at the next pod's
                _LOG.warning("pod %s: a log cannot be turned over: %s", run.title, error)

    def _config_maps(self, namespace: str) -> ConfigMaps:
        """Looks ConfigMaps up when a container is started (kubelet: configMapAndSecretChangeDetectionStrategy Get)."""

        def data(name: str) -> Mapping[str, str] | None:
            try:
                found: Mapping[str, str] = self._client.get(CONFIG_MAP, name, namespace).get("data") or {}
            except NotFound:
                return None
            return found

        return data

    # ----- what the API says

    def _take_service(self, item: Snapshot | WatchEvent) -> None:
        if isinstance(item, Snapshot):
            typed = [view(obj, Service) for obj in item.items]
            self._services = {(service.metadata.namespace, service.metadata.name): service for service in typed}
            touched = {run.pod.metadata.namespace for run in self._runs.values()}
        else:
            service = view(item.object, Service)
            key = (service.metadata.namespace, service.metadata.name)
            self._services[key] = service
            if item.type == "DELETED":
                del self._services[key]
            touched = {service.metadata.namespace}
        for run in self._runs.values():
            if run.pod.metadata.namespace in touched:
                run.take_services(self._services_beside(run))
        if self._early is not None:
            early, self._early = self._early, None
            for held in early:
                self._take_pod(held)

    def _services_beside(self, run: RunningPod) -> list[Service]:
        """Those of the pod's namespace, and the API's, which every container is told of."""
        namespace = run.pod.metadata.namespace
        return [
            service
            for (place, name), service in self._services.items()
            if place == namespace or (place, name) == ("default", "kubernetes")
        ]

    def _take_pod(self, item: Snapshot | WatchEvent) -> None:
        if self._early is not None:
            self._early.append(item)  # an echo server must not lose the ports of Services that are still to come
            return
        if isinstance(item, WatchEvent):
            if item.type == "DELETED":
                self._vanish(item.object["metadata"]["uid"])
            else:
                self._observe(item.object)
            return
        present = {obj["metadata"]["uid"] for obj in item.items}
        if not self._has_pods:
            self._has_pods = True
            self._remove_orphans(item.items)
        for uid in set(self._runs) - present:
            self._vanish(uid)
        for obj in item.items:
            self._observe(obj)

    def _observe(self, obj: Object) -> None:
        """A pod as it is now in the API; what is wrong with one is no reason to pass over the next."""
        try:
            self._take_state(obj)
        except (KproxyError, NetnsError, OSError, msgspec.ValidationError) as error:
            _LOG.warning("pod %s: %s", obj["metadata"]["name"], error)

    def _take_state(self, obj: Object) -> None:
        run = self._runs.get(obj["metadata"]["uid"])
        if run is None:
            run = self._meet(obj)
            if run is None:
                return
        run.obj = obj
        run.pod = view(obj, Pod)
        if run.pod.metadata.deletion_timestamp is not None:
            self._begin_end(run)

    def _meet(self, obj: Object) -> RunningPod | None:
        """A pod seen for the first time; None when it is nobody's here, or has done its work."""
        pod = view(obj, Pod)
        is_dying = pod.metadata.deletion_timestamp is not None
        if not any(node.name == pod.spec.node_name for node in self._config.nodes):
            if is_dying and pod.spec.node_name:
                # On a node that is none, nobody else would ever end it (Kubernetes: pkg/controller/podgc, gcOrphaned).
                with contextlib.suppress(NotFound, Conflict):
                    metadata = pod.metadata
                    self._client.delete(POD, metadata.name, metadata.namespace, grace_seconds=0, uid=metadata.uid)
            return None
        if pod.status.phase in ("Succeeded", "Failed") and not is_dying:
            return None
        node = namespace.named(topology.namespace_name(self._config, pod.spec.node_name), self._layout.namespaces)
        run = RunningPod(obj, pods.plan(pod, self._config), self._namespace_of(pod), node, self._means)
        run.take_services(self._services_beside(run))
        self._runs[run.uid] = run
        if not pod.spec.host_network:
            self._taken.update(run.addresses)
        if not is_dying:
            self._pending.append(run)
        elif run.addresses and namespace.exists(run.ns):
            # It was asked to end by a control plane before this one; its time begins again.
            run.adopt(recorded(self._journal, "pod:"))
        return run

    def _namespace_of(self, pod: Pod) -> Namespace:
        if pod.spec.host_network:
            name = topology.namespace_name(self._config, pod.spec.node_name)
        else:
            name = topology.pod_namespace_name(self._config, pod.metadata.namespace, pod.metadata.name)
        return namespace.named(name, self._layout.namespaces)

    # ----- starting

    def _start_pending(self) -> None:
        """Builds what waiting pods need in one go, then starts their containers."""
        waiting = [run for run in self._pending if not run.is_ending]
        self._pending = []
        try:
            alive: Mapping[str, Sequence[Process]] = {}
            if any(run.addresses for run in waiting):
                alive = recorded(self._journal, "pod:")
            for run in self._built([run for run in waiting if self._place(run)]):
                run.take_services(self._services_beside(run))
                run.adopt(alive)
                run.advance()
        except (NetnsError, OSError) as error:
            for run in waiting:
                if not run.is_built and not run.problem:
                    self._fail(run, str(error))

    def _place(self, run: RunningPod) -> bool:
        """Ensures that the pod has addresses; false when there are none left."""
        if run.pod.spec.host_network:
            run.addresses = self._config.node(run.pod.spec.node_name).addresses
        elif not run.addresses:
            # A namespace without an address on record was left half made by somebody who was killed.
            if namespace.exists(run.ns):
                build.remove(self._parts(run), self._journal, self._layout.namespaces, grace=0)
            run.addresses = self._addresses.next(run.pod.spec.node_name, self._taken)
            self._taken.update(run.addresses)
        if not run.addresses:
            self._fail(run, "no address is left in the node's podCIDR")
        return bool(run.addresses)

    def _built(self, runs: Sequence[RunningPod]) -> list[RunningPod]:
        """Those whose namespaces are there now: made in one go, or one by one if one of them stands in the way."""
        own = [run for run in runs if not run.pod.spec.host_network]
        failed: set[str] = set()
        try:
            self._build(own)
        except (NetnsError, OSError):
            for run in own:
                try:
                    self._build([run])
                except (NetnsError, OSError) as error:
                    self._fail(run, str(error))
                    failed.add(run.uid)
        for run in runs:
            if run.uid not in failed and not run.folder.is_dir():
                run.folder.mkdir(mode=0o700)
                self._journal.step(f"folder of pod {run.title}")
        return [run for run in runs if run.uid not in failed]

    def _build(self, runs: Sequence[RunningPod]) -> None:
        if runs:
            parts = merge(*(topology.pod(self._config, self._place_of(run)) for run in runs))
            build.build(parts, self._journal, self._layout.namespaces)

    def _place_of(self, run: RunningPod) -> topology.PodPlace:
        metadata = run.pod.metadata
        return topology.PodPlace(metadata.namespace, metadata.name, run.pod.spec.node_name, run.addresses)

    def _parts(self, run: RunningPod) -> Topology:
        metadata = run.pod.metadata
        return topology.pod_parts(self._config, metadata.namespace, metadata.name, run.pod.spec.node_name)

    def _fail(self, run: RunningPod, message: str) -> None:
        if run.problem != message:
            _LOG.warning("pod %s: %s", run.title, message)
        run.problem = message
        self._dirty[run.uid] = run
        self._reactor.later(RETRY, lambda: self._pending.append(run))

    # ----- ending

    def _begin_end(self, run: RunningPod) -> None:
        """Asks the pod's processes to end; kills them when their time is over. A second delete can shorten that."""
        metadata, spec = run.pod.metadata, run.pod.spec
        grace = metadata.deletion_grace_period_seconds
        if grace is None:
            grace = spec.termination_grace_period_seconds
        if run.is_ending and grace >= run.grace:
            return
        run.grace = grace
        self._reactor.later(grace if run.is_ending else run.ask_to_end(grace), lambda: self._end(run))

    def _vanish(self, uid: str) -> None:
        """The object is gone already: somebody deleted it by force."""
        run = self._runs.get(uid)
        if run is None:
            return
        run.is_ending = True
        try:
            self._clear(run)
        except (NetnsError, OSError) as error:
            _LOG.warning("pod %s: cannot be taken down yet: %s", run.title, error)
            self._reactor.later(RETRY, lambda: self._vanish(uid))
            return
        self._forget(run)

    def _end(self, run: RunningPod) -> None:
        """Takes the pod down and then deletes its object."""
        if run.is_gone:
            return
        try:
            self._clear(run)
            self._client.delete(
                POD, run.pod.metadata.name, run.pod.metadata.namespace, grace_seconds=0, uid=run.pod.metadata.uid
            )
        except (NotFound, Conflict):
            pass  # somebody was faster, and there may be another of that name
        except (ApiError, KproxyError, NetnsError, OSError) as error:
            _LOG.warning("pod %s: cannot be deleted yet: %s", run.title, error)
            self._reactor.later(RETRY, lambda: self._end(run))
            return
        self._forget(run)

    def _clear(self, run: RunningPod) -> None:
        """Ensures that nothing of the pod is left on the host but its logs."""
        run.clear()
        if not run.pod.spec.host_network:
            build.remove(self._parts(run), self._journal, self._layout.namespaces, grace=0)
        shutil.rmtree(run.folder, ignore_errors=True)
        self._journal.step(f"remove folder of pod {run.title}")

    def _forget(self, run: RunningPod) -> None:
        run.is_gone = True
        if not run.pod.spec.host_network:
            self._taken.difference_update(run.addresses)
        for name in run.group_names():
            self._remove_group(run.uid, name)
        self._runs.pop(run.uid, None)
        self._dirty.pop(run.uid, None)
        if run in self._pending:
            self._pending.remove(run)

    def _remove_group(self, uid: str, container: str) -> None:
        """Removes a control group, as soon as the processes that were killed in it have gone."""
        if not self._limits.remove(uid, container):
            self._reactor.later(RETRY, lambda: self._remove_group(uid, container))

    def _remove_orphans(self, items: Sequence[Object]) -> None:
        """Takes down pods that were made by a control plane before this one and are no longer wanted."""
        wanted = {self._namespace_of(view(obj, Pod)).name for obj in items if (obj.get("spec") or {}).get("nodeName")}
        prefix = topology.namespace_name(self._config, "")
        for entry in self._journal.entries():
            name = str(entry.details.get("name", ""))
            if entry.kind != record.NAMESPACE or name in wanted or "." not in name or not name.startswith(prefix):
                continue
            place, _, pod = name[len(prefix) :].partition(".")
            parts = [topology.pod_parts(self._config, place, pod, node.name) for node in self._config.nodes]
            gone = Topology(namespaces=(NamespaceSpec(name, Role.POD),), veths=tuple(part.veths[0] for part in parts))
            build.remove(gone, self._journal, self._layout.namespaces, grace=0)
        uids = {obj["metadata"]["uid"] for obj in items}
        nodes = [namespace.named(f"{prefix}{node.name}", self._layout.namespaces) for node in self._config.nodes]
        for folder in (self._layout.run / "pods").iterdir():
            if folder.name not in uids:
                kill_strays(self._layout, self._journal, folder.name, nodes)
                shutil.rmtree(folder, ignore_errors=True)
        self._limits.remove_others(uids, self._remove_group)

    # ----- telling

    def _tell(self) -> None:
        """Writes the status of every pod whose state has changed."""
        for run in list(self._dirty.values()):
            del self._dirty[run.uid]
            if run.is_gone or run.is_unknown:
                continue
            previous = run.obj.get("status") or {}
            status = pods.status(run.pod, previous, run.observed(), moment())
            if all(previous.get(key) == value for key, value in status.items()):
                continue
            metadata = run.pod.metadata
            try:
                run.obj = self._client.patch(POD, metadata.name, {"status": status}, metadata.namespace, "status")
            except NotFound:
                continue  # its DELETED event is on the way
            except KproxyError as error:
                _LOG.warning("pod %s: its status cannot be written yet: %s", run.title, error)
                self._dirty[run.uid] = run
                self._reactor.later(RETRY, lambda: None)
                return

    def _pod_statuses(self) -> Iterable[PodStatus]:
        for run in sorted(self._runs.values(), key=lambda run: run.title):
            yield PodStatus(
                namespace_=run.pod.metadata.namespace,
                name=run.pod.metadata.name,
                namespace=run.ns.name if run.is_built else "",
                node=run.pod.spec.node_name,
                addresses=run.addresses,
                host_network=run.pod.spec.host_network,
                ready=run.is_ready,
                echo=run.has_echo,
            )

    def _process_statuses(self) -> Iterable[ProcessStatus]:
        for run in sorted(self._runs.values(), key=lambda run: run.title):
            for one in run.processes():
                yield ProcessStatus("pod", one.pid, run.title)
