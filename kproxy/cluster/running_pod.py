"""One pod that is being run: its containers started, restarted, looked at, asked to end and ended.

Law: everything here happens in the node agent's thread. What was started is found again after a restart of the control
plane: an echo server by its control socket, a command by its record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from kproxy.api.types import Container, Object, Pod, Service, view
from kproxy.cluster import own_programs, pods, probing, sandbox, service_accounts
from kproxy.cluster.container_probe import ContainerProbe
from kproxy.cluster.echo import Port
from kproxy.cluster.fork_server import Request
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_processes import ECHO_SOCKET, EchoControl, ForkServer, kill_strays, reap, send_signal
from kproxy.cluster.pods import Backoff, Command, ContainerState, Observed
from kproxy.cluster.prober import Prober, Target
from kproxy.cluster.reactor import Reactor
from kproxy.errors import HostError, UserError
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace
from netns.process import Process

LOOK_AGAIN: Final = 0.005
"""Seconds until somebody looks again whether a command has begun, which no descriptor tells; a sandbox takes 17 ms."""


@dataclass(frozen=True)
class Means:
    """What all pods of a lab are run with.

    Attributes:
        layout: where records and logs are.
        journal: where everything is recorded before it is made.
        fork_server: who forks echo servers.
        prober: who looks at containers.
        reactor: the node agent's thread.
        changed: told when a pod's state has changed.
        ended: told when a pod was asked to end and nothing of it runs any longer.
    """

    layout: Layout
    journal: Journal
    fork_server: ForkServer
    prober: Prober
    reactor: Reactor
    changed: Callable[[RunningPod], None]
    ended: Callable[[RunningPod], None]


@dataclass
class _Unit:
    """One command, or the echo server (whose control socket stands in for its pidfd).

    Attributes:
        probes: by container; the echo server stands for several.
        pause: seconds that it is left alone before it is asked to end.
        has_begun: the command itself has been executed, and no longer only its sandbox runs.
        main: the process of the command itself, once somebody has looked for it.
        is_asked: it was asked to end.
    """

    name: str
    probes: dict[str, ContainerProbe]
    pause: int
    state: ContainerState = field(default_factory=ContainerState)
    process: Process | None = None
    watched: int = -1
    has_begun: bool = False
    main: Process | None = None
    is_asked: bool = False
    control: EchoControl | None = None
    wanted: frozenset[Port] = frozenset()
    backoff: Backoff = field(default_factory=Backoff)


class RunningPod:
    """One pod and what has become of it.

    Args:
        obj: the pod's object.
        plan: what its containers come to.
        ns: its network namespace.
        node: that of its node.
        means: what it is run with.

    Attributes:
        obj: the object as it was last seen.
        pod: the same, typed.
        addresses: one a family; empty until it has some.
        is_built: its network and its folder are there.
        is_ending: it was asked to end.
        is_gone: nothing of it is left.
        grace: seconds that it got for that.
        problem: why it is not what it should be; empty if it is.
    """

    def __init__(self, obj: Object, plan: pods.Plan, ns: Namespace, node: Namespace, means: Means) -> None:
        self.obj = obj
        self.pod = view(obj, Pod)
        self.ns = ns
        self.addresses = tuple(entry.ip for entry in self.pod.status.pod_ips)
        self.is_built = False
        self.is_ending = False
        self.is_gone = False
        self.grace = 0
        self.problem = ""
        self._plan = plan
        self._node = node
        self._means = means
        self._services: Sequence[Service] = ()
        self._init_left = list(plan.init)
        self._units: dict[str, _Unit] = {}
        for command in (*plan.init, *plan.commands):
            self._units[command.container] = _Unit(command.container, {}, self._pause((command.container,)))
        if plan.echoes:
            self._units[pods.ECHO] = _Unit(pods.ECHO, {}, self._pause(plan.echoes))

    @property
    def uid(self) -> str:
        """The uid of its object."""
        return self.pod.metadata.uid

    @property
    def title(self) -> str:
        """`NAMESPACE/NAME`."""
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}"

    @property
    def folder(self) -> Path:
        """Where its records are."""
        return self._means.layout.pod(self.uid)

    @property
    def has_echo(self) -> bool:
        """Whether the echo server runs in it."""
        return pods.ECHO in self._units

    @property
    def is_unknown(self) -> bool:
        """Whether its echo server has still to say who it is and where it listens."""
        return any(unit.control is not None and unit.process is None for unit in self._units.values())

    @property
    def is_ready(self) -> bool:
        """Whether all of its containers are."""
        states = self._states().values()
        return bool(states) and all(state.is_ready for state in states) and not self.is_ending

    def processes(self) -> list[Process]:
        """What runs of it."""
        return [unit.process for unit in self._units.values() if unit.process is not None]

    def observed(self, host_addresses: tuple[str, ...]) -> Observed:
        """What is seen of it, for its status."""
        return Observed(
            self.addresses,
            host_addresses,
            self.is_built and not self._init_left,
            self._states(),
            "FailedCreatePodSandBox" if self.problem and not self.is_built else "",
            self.problem,
        )

    def _states(self) -> dict[str, ContainerState]:
        """Of its containers, by name."""
        states = {name: self._state(unit, name) for name, unit in self._units.items() if name != pods.ECHO}
        if self.has_echo:
            states |= {name: self._state(self._units[pods.ECHO], name) for name in self._plan.echoes}
        return states

    @staticmethod
    def _state(unit: _Unit, container: str) -> ContainerState:
        probed = unit.probes.get(container)
        if probed is None or not unit.state.is_ready:
            return unit.state
        return replace(unit.state, is_ready=probed.is_ready, message=probed.message)

    def _names(self, unit: _Unit) -> Sequence[str]:
        """The containers that it stands for."""
        return self._plan.echoes if unit.name == pods.ECHO else (unit.name,)

    def _container(self, name: str) -> Container:
        containers = (*self.pod.spec.init_containers, *self.pod.spec.containers)
        return next(container for container in containers if container.name == name)

    def _pause(self, containers: Iterable[str]) -> int:
        hooks = [self._container(name).lifecycle.pre_stop for name in containers]
        return max(hook.sleep.seconds if hook and hook.sleep else 0 for hook in hooks)

    # ----- starting

    def adopt(self, alive: Mapping[str, Sequence[Process]]) -> None:
        """Takes over what a control plane before this one has started in it, and goes on from there.

        Args:
            alive: processes on record that run, by their roles; only asked for in a pod that was there before.
        """
        self.is_built = True
        self.problem = ""
        previous = {status["name"]: status for status in (self.obj.get("status") or {}).get("containerStatuses") or ()}
        for unit in self._units.values():
            self._plan_probes(unit, previous)
            before = previous.get(self._names(unit)[0], {})
            unit.state = replace(unit.state, restarts=int(before.get("restartCount", 0)))
            began = str(((before.get("state") or {}).get("running") or {}).get("startedAt", ""))
            found = alive.get(self._role(unit.name))
            if found is not None and unit.name != pods.ECHO:
                self._watch_process(unit, found[0], began)
            elif unit.name == pods.ECHO and self._connect(unit):
                unit.state = replace(unit.state, started_at=began)
            else:
                self._stop_probes(unit)
        done = {
            name
            for name, status in previous.items()
            if (status.get("state") or {}).get("terminated", {}).get("exitCode") == 0
        }
        self._init_left = [
            command
            for command in self._init_left
            if command.container not in done or self._units[command.container].process is not None
        ]
        self._means.changed(self)

    def _plan_probes(self, unit: _Unit, previous: Mapping[str, Mapping[str, Any]]) -> None:
        """Decides how the unit is looked at; what was ready stays so until somebody has looked."""
        for name in self._names(unit):
            plan = probing.plan(self._container(name), self.addresses[0])
            if plan is not None:
                unit.probes[name] = ContainerProbe(plan, is_ready=bool(previous.get(name, {}).get("ready")))

    def advance(self) -> None:
        """Starts whatever of it is to run now and does not."""
        if self.is_ending or not self.is_built:
            return
        if self._init_left:
            self._ensure_started(self._init_left[0])
            return
        for command in self._plan.commands:
            self._ensure_started(command)
        echo = self._units.get(pods.ECHO)
        if echo is not None and echo.control is None:
            self._start_echo(echo)

    def _ensure_started(self, command: Command) -> None:
        unit = self._units[command.container]
        if unit.process is not None:
            return
        try:
            started = sandbox.start(
                self._sandboxed(command),
                self.ns,
                log=self._log(unit.name),
                status=self.folder / unit.name,
                journal=self._means.journal,
                role=self._role(unit.name),
            )
        except (HostError, NetnsError, OSError, UserError) as error:
            self._ended(unit, None, str(error))
            return
        self._watch_process(unit, started)

    def _sandboxed(self, command: Command) -> sandbox.Container:
        own = own_programs.module(command.module) if command.module else None
        return sandbox.Container(
            own.argv if own else command.argv,
            pods.hostname(self.pod),
            hosts={address: (pods.hostname(self.pod),) for address in self.addresses},
            env={**command.env, **(own.env if own else {})},
            working_dir=command.working_dir,
            files=service_accounts.files(self._means.layout, self.pod),
            folders=own.folders if own else {},
        )

    def _log(self, container: str) -> Path:
        return self._means.layout.log(f"{self.pod.metadata.namespace}.{self.pod.metadata.name}.{container}")

    def _role(self, container: str) -> str:
        return f"pod:{self.uid}:{container}"

    def _watch_process(self, unit: _Unit, found: Process, began: str = "") -> None:
        try:
            unit.watched = process.open_pidfd(found)
        except ProcessLookupError:
            unit.watched = -1
        unit.process = found
        unit.has_begun = False
        if unit.watched < 0:
            self._command_ended(unit)
        else:
            self._means.reactor.watch(unit.watched, lambda: self._command_ended(unit))
            self._await_command(unit, found, began)

    def _await_command(self, unit: _Unit, outer: Process, began: str) -> None:
        """Lets the container count as running as soon as its command does; until then it waits as it did before."""
        if unit.process is not outer:  # it has ended, and may run again
            return
        if not sandbox.has_begun(outer, self.folder / unit.name):
            self._means.reactor.later(LOOK_AGAIN, partial(self._await_command, unit, outer, began))
            return
        unit.has_begun = True
        restarts = unit.state.restarts
        unit.state = ContainerState(is_ready=True, started_at=began or _now(), waiting="", restarts=restarts)
        self._means.changed(self)
        self._start_probes(unit)

    def _start_echo(self, unit: _Unit) -> None:
        metadata = self.pod.metadata
        request = Request(
            netns=str(self.ns.path),
            control=str(self.folder / ECHO_SOCKET),
            log=str(self._log(self._plan.echoes[0])),
            scratch=str(self.folder),
            hostname=pods.hostname(self.pod),
            pod=metadata.name,
            namespace=metadata.namespace,
            node=self.pod.spec.node_name,
        )
        try:
            self._means.fork_server.fork(request)
        except (HostError, NetnsError, OSError) as error:
            self._ended(unit, None, str(error))
            return
        self._means.journal.step(f"echo server of pod {self.title}")
        if not self._connect(unit):
            self._ended(unit, None, "it ended at once")

    def _connect(self, unit: _Unit) -> bool:
        """Whether the pod's echo server is there; it has then been told its ports."""
        try:
            unit.control = EchoControl(self.folder / ECHO_SOCKET)
        except OSError:
            return False
        self._means.reactor.watch(unit.control.sock, lambda: self._hear_echo(unit))
        unit.wanted = pods.echo_ports(self.pod, self._plan.echoes, self._services)
        unit.control.tell(unit.wanted)
        return True

    def take_services(self, services: Sequence[Service]) -> None:
        """Ensures that the echo server listens where the Services of the pod's namespace send to."""
        self._services = services
        unit = self._units.get(pods.ECHO)
        if unit is None or unit.control is None:
            return
        wanted = pods.echo_ports(self.pod, self._plan.echoes, services)
        if wanted != unit.wanted:
            unit.wanted = wanted
            unit.control.tell(wanted)

    def _hear_echo(self, unit: _Unit) -> None:
        if unit.control is None:
            return
        report = unit.control.report()
        if report is None:
            self._let_go_of_echo(unit)
            self._ended(unit, None, "")
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
        self.problem = f"the echo server cannot listen: {failed}" if failed else ""
        self._means.changed(self)
        self._start_probes(unit)
        if unit.is_asked:
            self._ask(unit)  # who it is was not known at that time

    # ----- readiness

    def _start_probes(self, unit: _Unit) -> None:
        """Ensures that each of the unit's containers that has a readiness probe is looked at."""
        means = self._means
        for name, probe in unit.probes.items():
            target = Target(self._node, partial(self._run_in, unit, name))
            probe.start(means.prober, means.reactor, target, lambda: means.changed(self))

    def _run_in(self, unit: _Unit, name: str, command: tuple[str, ...], output: int) -> Process:
        """Starts a command beside the container's own; called from the prober's thread.

        The echo server has no files: a command there gets a sandbox of its own, as by `kproxy exec`.
        """
        container = self._container(name)
        sandboxed = self._sandboxed(pods.beside(container, command))
        if unit.name == pods.ECHO:
            return sandbox.run_once(sandboxed, self.ns, output)
        if unit.main is None and unit.process is not None:
            unit.main = sandbox.main_process(unit.process)
        if unit.main is None:
            raise ProcessLookupError("the container does not run")
        return sandbox.join(sandboxed, unit.main, self.ns, output)

    def _stop_probes(self, unit: _Unit) -> None:
        for probe in unit.probes.values():
            probe.stop()

    # ----- ending of containers

    def _command_ended(self, unit: _Unit) -> None:
        self._let_go_of_command(unit)
        if unit.process is not None:
            reap(unit.process)
            process.forget(unit.process, self._means.journal)
        report = self.folder / unit.name
        # The outer process may have been killed alone; what is inside must not go on without it.
        inner = sandbox.inner_process(report, self.ns)
        send_signal([inner] if inner else [], signal.SIGKILL)
        code = sandbox.ended(report).code
        words = sandbox.complaint(self._log(unit.name)) if code is None and not unit.has_begun else ""
        self._ended(unit, code, f"{pods.EXEC_FAILED}{words}" if words else "")

    def _ended(self, unit: _Unit, code: int | None, message: str) -> None:
        """A container has ended, or could not be started: start it again, or not."""
        unit.process = unit.main = None
        self._stop_probes(unit)
        self._means.changed(self)
        if self.is_ending:
            unit.state = ContainerState(exit_code=code, waiting="", restarts=unit.state.restarts)
            self._tell_if_empty()
            return
        if self._init_left and self._init_left[0].container == unit.name and code == 0:
            unit.state = ContainerState(is_ready=True, exit_code=0, waiting="")
            del self._init_left[0]
            self.advance()
            return
        if not pods.is_started_again(self.pod.spec.restart_policy, code):
            unit.state = ContainerState(exit_code=code, waiting="", message=message, restarts=unit.state.restarts)
            return
        delay = unit.backoff.next()
        why = message or ("nobody saw how it ended" if code is None else f"it ended with exit code {code}")
        unit.state = ContainerState(
            exit_code=code, waiting="CrashLoopBackOff", message=why, restarts=unit.state.restarts + 1
        )
        self._means.reactor.later(delay, self.advance)

    # ----- ending of the pod

    def ask_to_end(self, grace: int) -> int:
        """Asks everything in it to end, each container after its own pause (kubelet: killContainer).

        Until a container ends it serves as before, and is looked at as before.

        Args:
            grace: seconds that all of it may take.

        Returns:
            Seconds after which it has had its time.
        """
        self.is_ending = True
        if self._tell_if_empty():
            return 0
        longest = 0
        for unit in self._units.values():
            pause = min(max(0, unit.pause), grace)
            longest = max(longest, pause)
            if pause:
                self._means.reactor.later(pause, partial(self._ask, unit))
            else:
                self._ask(unit)
        # Whoever was paused to the end of the grace still gets a moment.
        return max(grace, longest + pods.LEAST_GRACE) if longest else grace

    @staticmethod
    def _ask(unit: _Unit) -> None:
        unit.is_asked = True
        if unit.process is None:
            return
        main = unit.process if unit.name == pods.ECHO else sandbox.main_process(unit.process)
        send_signal([main or unit.process], signal.SIGTERM)

    def _tell_if_empty(self) -> bool:
        """Whether nothing of it runs any longer; that is then told."""
        is_empty = not self.processes() and not self.is_unknown
        if is_empty:
            self._means.ended(self)
        return is_empty

    def clear(self) -> None:
        """Ensures that nothing of it runs and no record of it is left, except its logs.

        Raises:
            NetnsError: a process does not end.
        """
        for unit in self._units.values():
            self._stop_probes(unit)
            self._let_go_of_command(unit)
            self._let_go_of_echo(unit)
            if unit.process is not None:
                process.kill(unit.process, grace=0)
                reap(unit.process)
                process.forget(unit.process, self._means.journal)
            unit.process = None
        kill_strays(self._means.layout, self._means.journal, self.uid, [self.ns])

    def _let_go_of_command(self, unit: _Unit) -> None:
        if unit.watched >= 0:
            self._means.reactor.forget(unit.watched)
            os.close(unit.watched)
            unit.watched = -1

    def _let_go_of_echo(self, unit: _Unit) -> None:
        if unit.control is not None:
            self._means.reactor.forget(unit.control.sock)
            unit.control.close()
            unit.control = None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
