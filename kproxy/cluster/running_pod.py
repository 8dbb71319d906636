"""One pod that is being run: its containers started, restarted, looked at, asked to end and ended.

Law: everything here happens in the node agent's thread. What was started is found again after a restart of the control
plane: an echo server by its control socket, a command by its record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from kproxy.api.types import Container, Object, Pod, Service, view
from kproxy.cluster import (
    container_probe,
    logs,
    own_programs,
    pod_environment,
    pod_files,
    pods,
    probing,
    sandbox,
    service_accounts,
)
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.container_probe import ContainerProbe, Listener
from kproxy.cluster.container_unit import Unit, by_container
from kproxy.cluster.events import Recorder
from kproxy.cluster.fork_server import Request
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_environment import ConfigError, ConfigMaps, Surroundings
from kproxy.cluster.pod_limits import PodLimits, doors, memory_of
from kproxy.cluster.pod_processes import ECHO_SOCKET, EchoControl, ForkServer, kill_strays, reap, send_signal
from kproxy.cluster.pods import Command, Observed
from kproxy.cluster.prober import Prober, Target
from kproxy.cluster.probing import Plan
from kproxy.cluster.reactor import Reactor
from kproxy.errors import HostError, UserError
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace
from netns.process import Process

LOOK_AGAIN: Final = 0.005
"""Seconds until somebody looks again whether a command has begun, which no descriptor tells; a sandbox takes 17 ms."""
CONFIG_RETRY: Final = 2.0
"""Seconds until somebody looks again whether what a container refers to is there."""


@dataclass(frozen=True)
class Means:
    """What all pods of a lab are run with.

    Attributes:
        layout: where records and logs are.
        config: the cluster.
        journal: where everything is recorded before it is made.
        fork_server: who forks echo servers.
        limits: what keeps containers from taking the machine down.
        prober: who looks at containers.
        reactor: the node agent's thread.
        recorder: who tells people what happens.
        config_maps: the data of a namespace's ConfigMaps.
        changed: told when a pod's state has changed.
        ended: told when a pod was asked to end and nothing of it runs any longer.
    """

    layout: Layout
    config: ClusterConfig
    journal: Journal
    fork_server: ForkServer
    limits: PodLimits
    prober: Prober
    reactor: Reactor
    recorder: Recorder
    config_maps: Callable[[str], ConfigMaps]
    changed: Callable[[RunningPod], None]
    ended: Callable[[RunningPod], None]


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
        self._units: dict[str, Unit] = {}
        for command in (*plan.init, *plan.commands):
            self._units[command.container] = Unit(command.container, (command.container,))
        if plan.echoes:
            self._units[pods.ECHO] = Unit(pods.ECHO, plan.echoes)

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
        states = by_container(self._units.values()).values()
        return bool(states) and all(state.is_ready for state in states) and not self.is_ending

    def processes(self) -> list[Process]:
        """What runs of it."""
        return [one for unit in self._units.values() if (one := unit.process) is not None]

    def observed(self) -> Observed:
        """What is seen of it, for its status."""
        return Observed(
            self.addresses,
            self._host_addresses,
            self.is_built and not self._init_left,
            by_container(self._units.values()),
            "FailedCreatePodSandBox" if self.problem and not self.is_built else "",
            self.problem,
        )

    @property
    def _host_addresses(self) -> tuple[str, ...]:
        return self._means.config.node(self.pod.spec.node_name).addresses

    def _container(self, name: str) -> Container:
        containers = (*self.pod.spec.init_containers, *self.pod.spec.containers)
        return next(container for container in containers if container.name == name)

    # ----- telling people

    def _tell(self, reason: str, message: str, container: str = "", *, is_warning: bool = False) -> None:
        recorder = self._means.recorder
        tell = recorder.warning if is_warning else recorder.normal
        field = f"spec.containers{{{container}}}" if container else ""
        tell(self.obj, reason, message, field=field, host=self.pod.spec.node_name)

    @property
    def _kubelets_name(self) -> str:
        return f"{self.pod.metadata.name}_{self.pod.metadata.namespace}({self.uid})"

    # ----- starting

    def adopt(self, alive: Mapping[str, Sequence[Process]]) -> None:
        """Takes over what a control plane before this one has started in it, and goes on from there.

        Args:
            alive: processes on record that run, by their roles; only asked for in a pod that was there before.
        """
        self.is_built = True
        self.problem = ""
        status = self.obj.get("status") or {}
        listed = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
        previous = {entry["name"]: entry for entry in listed}
        for unit in self._units.values():
            self._plan_probes(unit, previous)
            before = previous.get(unit.containers[0], {})
            unit.remember(before)
            began = str(((before.get("state") or {}).get("running") or {}).get("startedAt", ""))
            found = alive.get(self._role(unit.name))
            if found is not None and unit.name != pods.ECHO:
                self._watch_process(unit, found[0], began)
            elif unit.name == pods.ECHO and self._connect(unit):
                unit.state = replace(unit.state, started_at=began)
            else:
                unit.stop_probes()
        done = {
            name
            for name, entry in previous.items()
            if (entry.get("state") or {}).get("terminated", {}).get("exitCode") == 0
        }
        self._init_left = [
            command
            for command in self._init_left
            if command.container not in done or self._units[command.container].process is not None
        ]
        for name in done & self._units.keys():
            unit = self._units[name]
            unit.state = replace(unit.state, is_ready=True, waiting="")
        self._means.changed(self)

    def _plan_probes(self, unit: Unit, previous: Mapping[str, Mapping[str, Any]]) -> None:
        """Decides how the unit is looked at; what was started and ready stays so until somebody has looked."""
        for name in unit.containers:
            plans = container_probe.plans(self._container(name), self.addresses[0])
            before = previous.get(name, {})
            if plans:
                unit.probes[name] = ContainerProbe(
                    plans, is_started=bool(before.get("started")), is_ready=bool(before.get("ready"))
                )

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
                self._sandboxed(command, self._groups(unit)),
                self.ns,
                log=self._fresh_log(unit.name),
                status=self.folder / unit.name,
                journal=self._means.journal,
                role=self._role(unit.name),
            )
        except ConfigError as error:
            self._await_config(unit, str(error))
            return
        except (HostError, NetnsError, OSError, UserError) as error:
            self._ended(unit, None, str(error))
            return
        self._watch_process(unit, started)

    def _groups(self, unit: Unit) -> tuple[str, ...]:
        limits = self._means.limits
        doors = limits.make(self.uid, unit.name, memory_of(map(self._container, unit.containers)))
        unit.kills = limits.kills(self.uid, unit.name)
        return doors

    def _await_config(self, unit: Unit, message: str) -> None:
        if unit.state.message != message:
            self._tell("Failed", f"Error: {message}", unit.name, is_warning=True)
        unit.state = replace(unit.state, waiting="CreateContainerConfigError", message=message)
        self._means.changed(self)
        self._means.reactor.later(CONFIG_RETRY, self.advance)

    def _sandboxed(self, command: Command, groups: Sequence[str] = ()) -> sandbox.Container:
        """What a command of the pod is run with.

        Raises:
            ConfigError: it refers to something that is not there.
        """
        own = own_programs.module(command.module) if command.module else None
        namespace = self.pod.metadata.namespace
        around = Surroundings(self.addresses, self._host_addresses, self._services, self._means.config_maps(namespace))
        env = pod_environment.variables(self.pod, self._container(command.container), around)
        files = {
            "/etc/hosts": pod_files.hosts(self.pod, self.addresses),
            "/etc/resolv.conf": pod_files.resolv_conf(self.pod, self._means.config),
            **service_accounts.files(self._means.layout, self.pod),
        }
        return sandbox.Container(
            own.argv if own else tuple(pod_environment.expanded(word, env) for word in command.argv),
            pod_files.hostname(self.pod),
            env={**env, **(own.env if own else {})},
            working_dir=command.working_dir,
            files=files,
            folders=own.folders if own else {},
            groups=groups,
        )

    def _log(self, container: str) -> Path:
        return self._means.layout.log(f"{self.pod.metadata.namespace}.{self.pod.metadata.name}.{container}")

    def _fresh_log(self, container: str) -> Path:
        log = self._log(container)
        logs.turn_over(log)
        return log

    def turn_full_logs_over(self) -> None:
        """Ensures that no log grows too long."""
        for unit in self._units.values():
            log = self._log(unit.containers[0])
            if logs.is_full(log):
                logs.turn_over(log)

    def _role(self, container: str) -> str:
        return f"pod:{self.uid}:{container}"

    def _watch_process(self, unit: Unit, found: Process, began: str = "") -> None:
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

    def _await_command(self, unit: Unit, outer: Process, began: str) -> None:
        """Lets the container count as running as soon as its command does; until then it waits as it did before."""
        if unit.process is not outer:  # it has ended, and may run again
            return
        if not sandbox.has_begun(outer, self.folder / unit.name):
            self._means.reactor.later(LOOK_AGAIN, partial(self._await_command, unit, outer, began))
            return
        unit.has_begun = True
        unit.began(began)
        if not began:
            self._tell("Started", f"Started container {unit.name}", unit.name)
        self._means.changed(self)
        self._start_probes(unit)

    def _start_echo(self, unit: Unit) -> None:
        metadata = self.pod.metadata
        request = Request(
            netns=str(self.ns.path),
            control=str(self.folder / ECHO_SOCKET),
            log=str(self._fresh_log(unit.containers[0])),
            scratch=str(self.folder),
            hostname=pod_files.hostname(self.pod),
            pod=metadata.name,
            namespace=metadata.namespace,
            node=self.pod.spec.node_name,
            groups=self._groups(unit),
        )
        try:
            self._means.fork_server.fork(request)
        except (HostError, NetnsError, OSError) as error:
            self._ended(unit, None, str(error))
            return
        self._means.journal.step(f"echo server of pod {self.title}")
        if not self._connect(unit):
            self._ended(unit, None, "it ended at once")

    def _connect(self, unit: Unit) -> bool:
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

    def _hear_echo(self, unit: Unit) -> None:
        if unit.control is None:
            return
        report = unit.control.report()
        if report is None:
            self._let_go_of_echo(unit)
            self._ended(unit, None, "")
            return
        unit.process = report.process
        failed = "; ".join(f"{protocol} port {port}: {why}" for protocol, port, why in report.failed)
        if not unit.state.started_at:
            for name in unit.containers:
                self._tell("Started", f"Started container {name}", name)
        unit.began(unit.state.started_at)
        unit.state = replace(unit.state, is_ready=not failed, message=failed)
        self.problem = f"the echo server cannot listen: {failed}" if failed else ""
        self._means.changed(self)
        self._start_probes(unit)
        if unit.is_asked:
            self._ask(unit)  # who it is was not known at that time

    # ----- probes

    def _start_probes(self, unit: Unit) -> None:
        """Ensures that each of the unit's containers that has probes is looked at."""
        means = self._means
        for name, probe in unit.probes.items():
            listener = Listener(
                lambda: means.changed(self), partial(self._complain, name), partial(self._probe_failed, unit, name)
            )
            probe.start(means.prober, means.reactor, self._target(unit, name), listener)

    def _target(self, unit: Unit, name: str) -> Target:
        return Target(self._node, partial(self._run_in, unit, name))

    def _complain(self, container: str, probe: str, message: str) -> None:
        self._tell("Unhealthy", f"{probe} probe failed: {message}", container, is_warning=True)

    def _probe_failed(self, unit: Unit, container: str, probe: str, plan: Plan) -> None:
        """The container is of no use as it is: it is asked to end, and started again when it has."""
        if unit.is_stopping or self.is_ending:
            return
        grace = self.pod.spec.termination_grace_period_seconds if plan.grace is None else plan.grace
        self._tell("Killing", f"Container {container} failed {probe.lower()} probe, will be restarted", container)
        self._means.reactor.later(self._stop(unit, grace), partial(self._kill, unit, unit.runs))

    def _run_in(self, unit: Unit, name: str, command: tuple[str, ...], output: int) -> Process:
        """Starts a command beside the container's own; called from the prober's thread.

        The echo server has no files: a command there gets a sandbox of its own, as by `kproxy exec`.
        """
        groups = doors(self._means.layout.lab, self.uid, unit.name)
        try:
            sandboxed = self._sandboxed(pods.beside(self._container(name), command), groups)
        except ConfigError as error:
            raise ProcessLookupError(str(error)) from error
        if unit.name == pods.ECHO:
            return sandbox.run_once(sandboxed, self.ns, output)
        if unit.main is None and unit.process is not None:
            unit.main = sandbox.main_process(unit.process)
        if unit.main is None:
            raise ProcessLookupError("the container does not run")
        return sandbox.join(sandboxed, unit.main, self.ns, output)

    # ----- ending of containers

    def _command_ended(self, unit: Unit) -> None:
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

    def _ended(self, unit: Unit, code: int | None, message: str) -> None:
        """A container has ended, or could not be started: start it again, or not."""
        kills = self._means.limits.kills(self.uid, unit.name)
        lasted = unit.ended(code, was_out_of_memory=kills > unit.kills and code != 0)
        unit.stop_probes()
        self._means.limits.remove(self.uid, unit.name)
        self._means.changed(self)
        if self.is_ending:
            unit.state = replace(unit.state, waiting="", message="")
            self._tell_if_empty()
            return
        if self._init_left and self._init_left[0].container == unit.name and code == 0:
            unit.state = replace(unit.state, is_ready=True, waiting="", message="")
            del self._init_left[0]
            self.advance()
            return
        if not pods.is_started_again(self.pod.spec.restart_policy, code):
            unit.state = replace(unit.state, waiting="", message=message)
            return
        delay = unit.backoff.next(lasted)
        why = message or ("nobody saw how it ended" if code is None else f"it ended with exit code {code}")
        unit.state = replace(unit.state, waiting="CrashLoopBackOff", message=why, restarts=unit.state.restarts + 1)
        if delay:
            for name in unit.containers:
                told = f"Back-off restarting failed container {name} in pod {self._kubelets_name}"
                self._tell("BackOff", told, name, is_warning=True)
        self._means.reactor.later(delay, self.advance)

    # ----- ending of the pod

    def ask_to_end(self, grace: int) -> float:
        """Asks everything in it to end, each container after what has to come before (kubelet: killContainer).

        Until a container ends it serves as before, and is looked at as before.

        Args:
            grace: seconds that all of it may take.

        Returns:
            Seconds after which it has had its time.
        """
        self.is_ending = True
        if self._tell_if_empty():
            return 0
        for unit in self._units.values():
            for name in unit.containers if unit.process is not None else ():
                self._tell("Killing", f"Stopping container {name}", name)
        return max(self._stop(unit, grace) for unit in self._units.values())

    def _stop(self, unit: Unit, grace: int) -> float:
        """Asks a unit to end, once its pause and its hooks are over; returns when it has had its time, in seconds."""
        unit.is_stopping = True
        containers = [self._container(name) for name in unit.containers]
        pause = min(max(map(probing.pause, containers)), grace)
        hooks = [(one.name, found) for one in containers if (found := probing.hook(one, self._first_address))]
        waiting = len(hooks) + 1
        run = unit.runs

        def one_is_done() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting and unit.runs == run:
                self._ask(unit)

        for name, action in hooks if unit.process is not None else ():
            done = partial(self._means.reactor.post, one_is_done)
            # So that there is time left for the polite end; kubelet adds that behind the grace instead.
            seconds = max(1.0, grace - pods.LEAST_GRACE)
            self._means.prober.once(action, self._target(unit, name), seconds, partial(self._hook_done, name, done))
        if hooks and unit.process is None:
            waiting = 1
        if pause:
            self._means.reactor.later(pause, one_is_done)
        else:
            one_is_done()
        # Whoever was paused to the end of the grace still gets a moment.
        return max(grace, pause + pods.LEAST_GRACE) if pause else grace

    def _hook_done(self, container: str, done: Callable[[], None], message: str) -> None:
        """Called from the prober's thread."""
        if message:
            self._tell("FailedPreStopHook", f"PreStopHook failed: {message}", container, is_warning=True)
        done()

    @property
    def _first_address(self) -> str:
        return self.addresses[0] if self.addresses else ""

    def _ask(self, unit: Unit) -> None:
        unit.is_asked = True
        if unit.process is None:
            return
        main = unit.process if unit.name == pods.ECHO else sandbox.main_process(unit.process)
        send_signal([main or unit.process], signal.SIGTERM)

    @staticmethod
    def _kill(unit: Unit, run: int) -> None:
        """Ends a run that was asked to end and did not."""
        if unit.runs == run and unit.process is not None:
            send_signal([unit.process], signal.SIGKILL)

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
            unit.stop_probes()
            self._let_go_of_command(unit)
            self._let_go_of_echo(unit)
            if unit.process is not None:
                process.kill(unit.process, grace=0)
                reap(unit.process)
                process.forget(unit.process, self._means.journal)
            unit.process = None
        has_commands = bool(self._plan.init or self._plan.commands)
        kill_strays(self._means.layout, self._means.journal, self.uid, [self.ns], has_commands=has_commands)

    def group_names(self) -> Sequence[str]:
        """The names under which it has control groups."""
        return tuple(self._units)

    def _let_go_of_command(self, unit: Unit) -> None:
        if unit.watched >= 0:
            self._means.reactor.forget(unit.watched)
            os.close(unit.watched)
            unit.watched = -1

    def _let_go_of_echo(self, unit: Unit) -> None:
        if unit.control is not None:
            self._means.reactor.forget(unit.control.sock)
            unit.control.close()
            unit.control = None
