"""The node agent: what kubelet does. It makes pods that are bound to a node, keeps them running, and says so.

One agent serves all nodes of a lab. Law: one thread decides and acts (`_loop`); others only hand it objects. What it
made it finds again after a restart: a namespace by its name, an echo server by its control socket, a command by its
record.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import logging
import os
import selectors
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from kproxy.api.kinds import POD, SERVICE, Kind
from kproxy.api.types import Object, Pod, Service, view
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster import pods, sandbox, topology
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.echo import Port
from kproxy.cluster.fork_server import Request
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_processes import EchoControl, ForkServer, echo_process, reap, recorded, send_signal
from kproxy.cluster.pods import Backoff, Command, ContainerState, Observed
from kproxy.cluster.status import PodStatus, ProcessStatus
from kproxy.errors import ApiError, Conflict, HostError, KproxyError, NotFound
from netns import build, namespace, process
from netns import journal as record
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace
from netns.process import Process
from netns.topology import NamespaceSpec, Role, Topology, merge

_LOG = logging.getLogger(__name__)
RETRY: Final = 2.0
"""Seconds until something that failed is tried again."""
ECHO_SOCKET: Final = "echo.sock"
"""Name of an echo server's control socket in its pod's folder."""
_FIRST_POD: Final = 2
"""Host number of the first pod of a node; 1 is the node's end of its pods' links."""


@dataclass
class _Unit:
    """One command, or the echo server (whose control socket stands in for its pidfd)."""

    name: str
    state: ContainerState = field(default_factory=ContainerState)
    process: Process | None = None
    watched: int = -1
    control: EchoControl | None = None
    wanted: frozenset[Port] = frozenset()
    backoff: Backoff = field(default_factory=Backoff)


@dataclass
class _Run:
    """One pod and what has become of it."""

    obj: Object
    pod: Pod
    plan: pods.Plan
    ns: Namespace
    addresses: tuple[str, ...] = ()
    units: dict[str, _Unit] = field(default_factory=dict)
    init_left: list[Command] = field(default_factory=list)
    is_built: bool = False
    is_ending: bool = False
    is_gone: bool = False
    problem: str = ""

    @property
    def uid(self) -> str:
        return self.pod.metadata.uid

    @property
    def title(self) -> str:
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}"

    def processes(self) -> list[Process]:
        return [unit.process for unit in self.units.values() if unit.process is not None]


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
        self._fork_server = fork_server
        self._runs: dict[str, _Run] = {}
        self._services: dict[tuple[str, str], Service] = {}
        self._pending: list[_Run] = []
        self._dirty: dict[str, _Run] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._last_number: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._inbox: deque[tuple[Kind, Snapshot | WatchEvent]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._has_services = False
        self._has_pods = False
        self._settled = threading.Event()
        self._view: tuple[tuple[PodStatus, ...], tuple[ProcessStatus, ...]] = ((), ())

    def pods(self) -> tuple[PodStatus, ...]:
        """All pods that are bound to a node, by namespace and name."""
        return self._view[0]

    def processes(self) -> tuple[ProcessStatus, ...]:
        """The processes of all pods."""
        return self._view[1]

    def wait_until_settled(self, seconds: float) -> bool:
        """Waits until all pods that were there at the start have been looked at; false if that takes longer.

        What a control plane before this one has left running has then been taken over.
        """
        return self._settled.wait(seconds)

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; pods live on."""
        self._selector.register(self._bell, selectors.EVENT_READ, lambda: os.eventfd_read(self._bell))
        for kind in (SERVICE, POD):
            threading.Thread(target=self._follow, args=(kind, stop), name=f"agent-{kind.plural}", daemon=True).start()
        while not stop.is_set():
            for key, _ in self._selector.select(self._next_timer()):
                key.data()
            try:
                self._loop()
            except (KproxyError, NetnsError, OSError) as error:
                _LOG.warning("node agent: %s", error)
                self._later(RETRY, lambda: None)
            except Exception:  # noqa: BLE001 - a bug with one pod does not stop the others'
                _LOG.exception("node agent")
                self._later(RETRY, lambda: None)

    def _follow(self, kind: Kind, stop: threading.Event) -> None:
        for item in self._client.follow(kind, stop=stop, bookmarks=False):
            self._inbox.append((kind, item))
            os.eventfd_write(self._bell, 1)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def _next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _loop(self) -> None:
        """One round: what arrived, what is due, what is to be started, what is to be told."""
        while self._inbox:
            kind, item = self._inbox.popleft()
            if kind is SERVICE:
                self._take_service(item)
            else:
                self._take_pod(item)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        if self._has_services and self._pending:
            self._start_pending()
        self._tell()
        self._view = (tuple(self._pod_statuses()), tuple(self._process_statuses()))
        if self._has_pods and self._has_services and not self._settled.is_set() and not self._is_waited_for():
            self._settled.set()

    def _is_waited_for(self) -> bool:
        """Whether an echo server has still to say who it is."""
        units = (unit for run in self._runs.values() for unit in run.units.values())
        return any(unit.control is not None and unit.process is None for unit in units)

    # ----- what the API says

    def _take_service(self, item: Snapshot | WatchEvent) -> None:
        if isinstance(item, Snapshot):
            typed = [view(obj, Service) for obj in item.items]
            self._services = {(service.metadata.namespace, service.metadata.name): service for service in typed}
            self._has_services = True
            touched = {run.pod.metadata.namespace for run in self._runs.values()}
        else:
            service = view(item.object, Service)
            key = (service.metadata.namespace, service.metadata.name)
            self._services[key] = service
            if item.type == "DELETED":
                del self._services[key]
            touched = {service.metadata.namespace}
        for run in self._runs.values():
            echo = run.units.get(pods.ECHO)
            if run.pod.metadata.namespace in touched and echo is not None and echo.control is not None:
                self._tell_ports(run, echo)

    def _take_pod(self, item: Snapshot | WatchEvent) -> None:
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

    def _meet(self, obj: Object) -> _Run | None:
        """A pod seen for the first time; None when it is nobody's here, or has done its work."""
        pod = view(obj, Pod)
        if not any(node.name == pod.spec.node_name for node in self._config.nodes):
            return None
        if pod.status.phase in ("Succeeded", "Failed") and pod.metadata.deletion_timestamp is None:
            return None
        plan = pods.plan(pod, self._config)
        run = _Run(obj, pod, plan, self._namespace_of(pod))
        run.addresses = tuple(entry.ip for entry in pod.status.pod_ips)
        run.init_left = list(plan.init)
        for name in (*(command.container for command in (*plan.init, *plan.commands)), *plan.echoes[:1]):
            key = pods.ECHO if name in plan.echoes else name
            run.units[key] = _Unit(key)
        self._runs[run.uid] = run
        if pod.metadata.deletion_timestamp is None:
            self._pending.append(run)
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
        alive = recorded(self._journal, "pod:") if any(run.addresses for run in waiting) else {}
        placed = [run for run in waiting if self._place(run)]
        for run in self._built(placed):
            run.is_built = True
            run.problem = ""
            self._adopt(run, alive)
            self._advance(run)
            self._dirty[run.uid] = run

    def _place(self, run: _Run) -> bool:
        """Ensures that the pod has addresses; false when there are none left."""
        if run.pod.spec.host_network:
            run.addresses = self._config.node(run.pod.spec.node_name).addresses
        elif not run.addresses:
            # A namespace without an address on record was left half made by somebody who was killed.
            if namespace.exists(run.ns):
                build.remove(self._parts(run), self._journal, self._layout.namespaces, grace=0)
            run.addresses = self._free_addresses(run.pod.spec.node_name)
        if not run.addresses:
            self._fail(run, "no address is left in the node's podCIDR")
        return bool(run.addresses)

    def _free_addresses(self, node: str) -> tuple[str, ...]:
        """The next addresses of the node that no pod has, in turn, so that a dead pod's is not used again at once."""
        taken = {address for run in self._runs.values() for address in run.addresses}
        networks = [ipaddress.ip_network(cidr) for cidr in self._config.node(node).pod_cidrs]
        size = min(network.num_addresses for network in networks) - 1  # the last one is IPv4's broadcast
        count = min(size - _FIRST_POD, 65536)
        start = self._last_number.get(node) or self._highest(networks[0], taken)
        for step in range(1, count + 1):
            number = _FIRST_POD + (start - _FIRST_POD + step) % count
            found = tuple(str(network[number]) for network in networks)
            if not taken & set(found):
                self._last_number[node] = number
                return found
        return ()

    @staticmethod
    def _highest(network: Any, taken: Iterable[str]) -> int:
        """The highest host number in use, so that a restarted control plane goes on where the last one was."""
        numbers = [int(ipaddress.ip_address(text)) - int(network.network_address) for text in taken]
        return max((number for number in numbers if 0 < number < network.num_addresses), default=_FIRST_POD - 1)

    def _built(self, runs: Sequence[_Run]) -> list[_Run]:
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
            folder = self._layout.pod(run.uid)
            if run.uid not in failed and not folder.is_dir():
                folder.mkdir(mode=0o700)
                self._journal.step(f"folder of pod {run.title}")
        return [run for run in runs if run.uid not in failed]

    def _build(self, runs: Sequence[_Run]) -> None:
        if runs:
            parts = merge(*(topology.pod(self._config, self._place_of(run)) for run in runs))
            build.build(parts, self._journal, self._layout.namespaces)

    def _place_of(self, run: _Run) -> topology.PodPlace:
        metadata = run.pod.metadata
        return topology.PodPlace(metadata.namespace, metadata.name, run.pod.spec.node_name, run.addresses)

    def _parts(self, run: _Run) -> Topology:
        metadata = run.pod.metadata
        return topology.pod_parts(self._config, metadata.namespace, metadata.name, run.pod.spec.node_name)

    def _fail(self, run: _Run, message: str) -> None:
        if run.problem != message:
            _LOG.warning("pod %s: %s", run.title, message)
        run.problem = message
        self._dirty[run.uid] = run
        self._later(RETRY, lambda: self._pending.append(run))

    def _adopt(self, run: _Run, alive: dict[str, list[Process]]) -> None:
        """Takes over what a control plane before this one has started."""
        previous = {status["name"]: status for status in (run.obj.get("status") or {}).get("containerStatuses") or ()}
        for unit in run.units.values():
            restarts = int(previous.get(unit.name, {}).get("restartCount", 0))
            unit.state = replace(unit.state, restarts=restarts)
            if unit.name == pods.ECHO:
                self._connect(run, unit)
            elif found := alive.get(self._role(run, unit.name)):
                self._watch_process(run, unit, found[0])
        done = {
            name
            for name, status in previous.items()
            if (status.get("state") or {}).get("terminated", {}).get("exitCode") == 0
        }
        run.init_left = [
            command
            for command in run.init_left
            if command.container not in done or run.units[command.container].process is not None
        ]

    def _advance(self, run: _Run) -> None:
        """Starts whatever of the pod is to run now and does not."""
        if run.is_ending or not run.is_built:
            return
        if run.init_left:
            self._ensure_started(run, run.init_left[0])
            return
        for command in run.plan.commands:
            self._ensure_started(run, command)
        echo = run.units.get(pods.ECHO)
        if echo is not None and echo.control is None:
            self._start_echo(run, echo)

    def _ensure_started(self, run: _Run, command: Command) -> None:
        unit = run.units[command.container]
        if unit.process is not None:
            return
        container = sandbox.Container(
            command.argv,
            pods.hostname(run.pod),
            hosts={address: (pods.hostname(run.pod),) for address in run.addresses},
            env=command.env,
            working_dir=command.working_dir,
        )
        metadata = run.pod.metadata
        try:
            started = sandbox.start(
                container,
                run.ns,
                log=self._layout.log(f"{metadata.namespace}.{metadata.name}.{unit.name}"),
                status=self._layout.pod(run.uid) / unit.name,
                journal=self._journal,
                role=self._role(run, unit.name),
            )
        except (HostError, NetnsError, OSError) as error:
            self._ended(run, unit, None, str(error))
            return
        self._watch_process(run, unit, started)

    @staticmethod
    def _role(run: _Run, container: str) -> str:
        return f"pod:{run.uid}:{container}"

    def _watch_process(self, run: _Run, unit: _Unit, found: Process) -> None:
        try:
            unit.watched = process.open_pidfd(found)
        except ProcessLookupError:
            unit.watched = -1
        unit.process = found
        unit.state = ContainerState(is_ready=True, started_at=_now(), waiting="", restarts=unit.state.restarts)
        self._dirty[run.uid] = run
        if unit.watched < 0:
            self._command_ended(run, unit)
        else:
            self._selector.register(unit.watched, selectors.EVENT_READ, lambda: self._command_ended(run, unit))

    def _start_echo(self, run: _Run, unit: _Unit) -> None:
        metadata = run.pod.metadata
        folder = self._layout.pod(run.uid)
        request = Request(
            netns=str(run.ns.path),
            control=str(folder / ECHO_SOCKET),
            log=str(self._layout.log(f"{metadata.namespace}.{metadata.name}.{run.plan.echoes[0]}")),
            scratch=str(folder),
            hostname=pods.hostname(run.pod),
            pod=metadata.name,
            namespace=metadata.namespace,
            node=run.pod.spec.node_name,
        )
        try:
            self._fork_server.fork(request)
        except (HostError, NetnsError, OSError) as error:
            self._ended(run, unit, None, str(error))
            return
        self._journal.step(f"echo server of pod {run.title}")
        if not self._connect(run, unit):
            self._ended(run, unit, None, "it ended at once")

    def _connect(self, run: _Run, unit: _Unit) -> bool:
        """Whether the pod's echo server is there; it has then been told its ports."""
        try:
            unit.control = EchoControl(self._layout.pod(run.uid) / ECHO_SOCKET)
        except OSError:
            return False
        self._selector.register(unit.control.sock, selectors.EVENT_READ, lambda: self._hear_echo(run, unit))
        unit.wanted = frozenset()
        self._tell_ports(run, unit, is_first=True)
        return True

    def _tell_ports(self, run: _Run, unit: _Unit, *, is_first: bool = False) -> None:
        own = [service for (place, _), service in self._services.items() if place == run.pod.metadata.namespace]
        wanted = pods.echo_ports(run.pod, run.plan.echoes, own)
        if unit.control is not None and (is_first or wanted != unit.wanted):
            unit.wanted = wanted
            unit.control.tell(wanted)

    def _hear_echo(self, run: _Run, unit: _Unit) -> None:
        if unit.control is None:
            return
        report = unit.control.report()
        if report is None:
            self._selector.unregister(unit.control.sock)
            unit.control.close()
            unit.control = None
            self._ended(run, unit, None, "")
            return
        unit.process = report.process
        failed = "; ".join(f"{protocol} port {port}: {why}" for protocol, port, why in report.failed)
        unit.state = ContainerState(
            is_ready=not failed,
            started_at=unit.state.started_at or _now(),
            waiting="",
            message=failed,
            restarts=unit.state.restarts,
        )
        run.problem = f"the echo server cannot listen: {failed}" if failed else ""
        self._dirty[run.uid] = run

    # ----- ending of containers

    def _command_ended(self, run: _Run, unit: _Unit) -> None:
        if unit.watched >= 0:
            self._selector.unregister(unit.watched)
            os.close(unit.watched)
            unit.watched = -1
        if unit.process is not None:
            reap(unit.process)
            process.forget(unit.process, self._journal)
        report = self._layout.pod(run.uid) / unit.name
        # The outer process may have been killed alone; what is inside must not go on without it.
        inner = sandbox.inner_process(report, run.ns)
        send_signal([inner] if inner else [], signal.SIGKILL)
        self._ended(run, unit, sandbox.ended(report).code, "")

    def _ended(self, run: _Run, unit: _Unit, code: int | None, message: str) -> None:
        """A container has ended, or could not be started: start it again, or not."""
        unit.process = None
        self._dirty[run.uid] = run
        if run.is_ending:
            unit.state = ContainerState(exit_code=code, waiting="", restarts=unit.state.restarts)
            self._end_if_empty(run)
            return
        if run.init_left and run.init_left[0].container == unit.name and code == 0:
            unit.state = ContainerState(is_ready=True, exit_code=0, waiting="")
            del run.init_left[0]
            self._advance(run)
            return
        if not pods.is_started_again(run.pod.spec.restart_policy, code):
            unit.state = ContainerState(exit_code=code, waiting="", message=message, restarts=unit.state.restarts)
            return
        delay = unit.backoff.next()
        why = message or ("nobody saw how it ended" if code is None else f"it ended with exit code {code}")
        unit.state = ContainerState(
            exit_code=code, waiting="CrashLoopBackOff", message=why, restarts=unit.state.restarts + 1
        )
        self._later(delay, lambda: self._advance(run))

    # ----- ending of pods

    def _begin_end(self, run: _Run) -> None:
        """Asks the pod's processes to end; kills them when their time is over."""
        if run.is_ending:
            return
        run.is_ending = True
        grace = run.pod.metadata.deletion_grace_period_seconds
        asked = [unit.process for unit in run.units.values() if unit.process is not None and unit.name == pods.ECHO]
        for unit in run.units.values():
            if unit.process is not None and unit.name != pods.ECHO:
                asked += sandbox.commands(unit.process) or [unit.process]
        send_signal(asked, signal.SIGTERM)
        self._later(run.pod.spec.termination_grace_period_seconds if grace is None else grace, lambda: self._end(run))
        self._end_if_empty(run)

    def _end_if_empty(self, run: _Run) -> None:
        if run.is_ending and not run.processes():
            self._end(run)

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
            self._later(RETRY, lambda: self._vanish(uid))
            return
        self._forget(run)

    def _end(self, run: _Run) -> None:
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
            self._later(RETRY, lambda: self._end(run))
            return
        self._forget(run)

    def _clear(self, run: _Run) -> None:
        """Ensures that nothing of the pod is left on the host but its logs."""
        for unit in run.units.values():
            if unit.watched >= 0:
                self._selector.unregister(unit.watched)
                os.close(unit.watched)
                unit.watched = -1
            if unit.control is not None:
                self._selector.unregister(unit.control.sock)
                unit.control.close()
                unit.control = None
            if unit.process is not None:
                process.kill(unit.process, grace=0)
                reap(unit.process)
                process.forget(unit.process, self._journal)
            unit.process = None
        self._kill_strays(run.uid, [run.ns])
        if not run.pod.spec.host_network:
            build.remove(self._parts(run), self._journal, self._layout.namespaces, grace=0)
        shutil.rmtree(self._layout.pod(run.uid), ignore_errors=True)
        self._journal.step(f"remove folder of pod {run.title}")

    def _kill_strays(self, uid: str, places: Iterable[Namespace]) -> None:
        """Ends what a pod's folder and the record tell of: processes that nobody here has started, or that were left.

        Those in namespaces of pods would go with them; on a node's network there are others beside them.
        """
        folder = self._layout.pod(uid)
        outer = [one for found in recorded(self._journal, f"pod:{uid}:").values() for one in found]
        reports = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        inner = [sandbox.inner_process(path, ns) for path in reports for ns in places]
        echo = echo_process(folder / ECHO_SOCKET)
        process.kill_all([one for one in (*outer, *inner, echo) if one is not None], grace=0)
        for one in outer:
            reap(one)
            process.forget(one, self._journal)

    def _forget(self, run: _Run) -> None:
        run.is_gone = True
        self._runs.pop(run.uid, None)
        self._dirty.pop(run.uid, None)
        if run in self._pending:
            self._pending.remove(run)

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
                self._kill_strays(folder.name, nodes)
                shutil.rmtree(folder, ignore_errors=True)

    # ----- telling

    def _tell(self) -> None:
        """Writes the status of every pod whose state has changed."""
        for run in list(self._dirty.values()):
            del self._dirty[run.uid]
            if run.is_gone or run.is_ending:
                continue
            previous = run.obj.get("status") or {}
            status = pods.status(run.pod, previous, self._observed(run), _now())
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
                self._later(RETRY, lambda: None)
                return

    def _observed(self, run: _Run) -> Observed:
        states = {name: unit.state for name, unit in run.units.items() if name != pods.ECHO}
        if pods.ECHO in run.units:
            states |= dict.fromkeys(run.plan.echoes, run.units[pods.ECHO].state)
        return Observed(
            run.addresses,
            self._config.node(run.pod.spec.node_name).addresses,
            run.is_built and not run.init_left,
            states,
            "FailedCreatePodSandBox" if run.problem and not run.is_built else "",
            run.problem,
        )

    def _pod_statuses(self) -> Iterable[PodStatus]:
        for run in sorted(self._runs.values(), key=lambda run: run.title):
            ready = bool(run.units) and all(unit.state.is_ready for unit in run.units.values())
            yield PodStatus(
                namespace_=run.pod.metadata.namespace,
                name=run.pod.metadata.name,
                namespace=run.ns.name if run.is_built else "",
                node=run.pod.spec.node_name,
                addresses=run.addresses,
                host_network=run.pod.spec.host_network,
                ready=ready and not run.is_ending,
                echo=pods.ECHO in run.units,
            )

    def _process_statuses(self) -> Iterable[ProcessStatus]:
        for run in sorted(self._runs.values(), key=lambda run: run.title):
            for one in run.processes():
                yield ProcessStatus("pod", one.pid, run.title)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
