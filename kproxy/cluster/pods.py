"""What a pod runs, which ports its echo server has, and what its status says: decisions about values.

Law: nothing here starts, reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kproxy.api.labels import matches
from kproxy.api.types import Container, Object, Pod, Service
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.dns import addon
from kproxy.cluster.echo import Port

ECHO: Final = "echo"
"""Name of the process that stands for all containers without a command; container names are longer or their own."""
FIRST_BACKOFF: Final = 10.0
LONGEST_BACKOFF: Final = 300.0
"""Seconds before a container that ended is started again: at once, then 10, 20, ... 300 (kubelet: CrashLoopBackOff)."""
FORGIVEN_AFTER: Final = 600.0
"""Seconds that a container has to have run for its earlier ends to be forgotten (kubelet: twice the longest)."""
EXEC_FAILED: Final = "exec failed: "
"""What the message of a container begins with whose command could not be started at all."""
LEAST_GRACE: Final = 2
"""Seconds between the polite and the other end, however long the pause before was (kubelet: minimumGracePeriod)."""
OWN_IMAGES: Final = {addon.IMAGE: "kproxy.cluster.dns"}
"""Images that stand for a module of this package."""


@dataclass(frozen=True)
class Command:
    """One container that runs a program of the host's.

    Attributes:
        container: its name.
        argv: program and arguments.
        module: the module of this package that runs instead, for an image that is this package's own.
    """

    container: str
    argv: tuple[str, ...]
    working_dir: str
    module: str = ""


@dataclass(frozen=True)
class Plan:
    """What a pod's containers come to.

    Attributes:
        init: run to their end, one after the other, before anything else.
        commands: run side by side.
        echoes: names of the containers that the one echo server stands for.
    """

    init: tuple[Command, ...]
    commands: tuple[Command, ...]
    echoes: tuple[str, ...]


@dataclass(frozen=True)
class ContainerState:
    """What is seen of one container.

    Attributes:
        is_ready: its command runs, its readiness probe agrees, and the echo server listens on all its ports.
        is_started: its command runs and its startup probe agrees.
        started_at: RFC 3339; empty while it does not run.
        exit_code: of the last run that is over; None before the first end, or when nobody saw it.
        ran_from: when that run began; empty before the first end.
        ran_until: when it ended.
        was_out_of_memory: the kernel ended it because it had used up its memory.
        waiting: why it does not run: `ContainerCreating`, `CrashLoopBackOff`, ...; empty when it runs or is done.
        message: more about the reason.
        restarts: how often it was started again.
    """

    is_ready: bool = False
    is_started: bool = False
    started_at: str = ""
    exit_code: int | None = None
    ran_from: str = ""
    ran_until: str = ""
    was_out_of_memory: bool = False
    waiting: str = "ContainerCreating"
    message: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class Observed:
    """What is seen of a pod: its addresses, and its containers by name."""

    addresses: tuple[str, ...]
    host_addresses: tuple[str, ...]
    is_initialized: bool
    containers: Mapping[str, ContainerState]
    reason: str = ""
    message: str = ""


@dataclass
class Backoff:
    """How long to wait before the next start of one container."""

    seconds: float = field(default=0.0)

    def next(self, lasted: float = 0.0) -> float:
        """Seconds until it is started again; grows with every call.

        Args:
            lasted: seconds that the last run took; a long one begins anew.
        """
        current = 0.0 if lasted >= FORGIVEN_AFTER else self.seconds
        self.seconds = min(max(FIRST_BACKOFF, 2 * current), LONGEST_BACKOFF)
        return current


def plan(pod: Pod, config: ClusterConfig) -> Plan:
    """What the pod's containers come to here: their own commands, an image's local command, or the echo server.

    An init container without a command has nothing to do; one with restartPolicy Always is a container like the others.
    """
    init: list[Command] = []
    commands: list[Command] = []
    echoes: list[str] = []
    sidecars = [container for container in pod.spec.init_containers if container.restart_policy == "Always"]
    for container in pod.spec.init_containers:
        if container not in sidecars and (command := _command(container, config)) is not None:
            init.append(command)
    for container in (*sidecars, *pod.spec.containers):
        found = _command(container, config)
        if found is None:
            echoes.append(container.name)
        else:
            commands.append(found)
    return Plan(tuple(init), tuple(commands), tuple(echoes))


def _command(container: Container, config: ClusterConfig) -> Command | None:
    argv = container.command or config.image_command(container.image)
    if argv:
        return beside(container, (*argv, *container.args))
    module = OWN_IMAGES.get(container.image)
    return replace(beside(container, ()), module=module) if module else None


def beside(container: Container, argv: tuple[str, ...]) -> Command:
    """A command that has the container's variables and working directory."""
    return Command(container.name, argv, container.working_dir)


def echo_ports(pod: Pod, echoes: Sequence[str], services: Iterable[Service]) -> frozenset[Port]:
    """The ports that the pod's echo server listens on: its containers' own.

    A pod that declares no port at all gets the numeric target ports of the Services that select it.

    Args:
        pod: the pod.
        echoes: the containers that the echo server stands for.
        services: those of the pod's namespace.
    """
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    if any(container.ports for container in containers):
        return frozenset(
            (port.protocol, port.container_port)
            for container in containers
            if container.name in echoes
            for port in container.ports
            if port.protocol in ("TCP", "UDP")
        )
    return frozenset(
        (port.protocol, target)
        for service in services
        if service.spec.selector and matches(service.spec.selector, pod.metadata.labels)
        for port in service.spec.ports
        if isinstance(target := port.port if port.target_port is None else port.target_port, int)
        and port.protocol in ("TCP", "UDP")
    )


def is_started_again(restart_policy: str, code: int | None) -> bool:
    """Whether a container that ended with this exit code is started again; None (nobody saw it) counts as failed."""
    return restart_policy == "Always" or (restart_policy == "OnFailure" and code != 0)


def phase(pod: Pod, observed: Observed) -> str:
    """Pending, Running, Succeeded or Failed (kubelet: getPhase)."""
    states = list(observed.containers.values())
    if not observed.is_initialized:
        is_over = any(_is_over(pod, state) for state in states)
        return "Failed" if is_over else "Pending"
    if states and all(_is_over(pod, state) for state in states):
        return "Succeeded" if all(state.exit_code == 0 for state in states) else "Failed"
    if any(state.started_at or state.exit_code is not None or state.restarts for state in states):
        return "Running"
    return "Pending"


def _is_over(pod: Pod, state: ContainerState) -> bool:
    if state.started_at or state.waiting:
        return False
    return not is_started_again(pod.spec.restart_policy, state.exit_code)


def status(pod: Pod, previous: Mapping[str, Any], observed: Observed, now: str) -> Object:
    """The pod's status as a merge patch takes it: what is no longer so is null.

    Args:
        pod: the pod.
        previous: its status so far; conditions that have not changed keep their time.
        observed: what is seen now.
        now: RFC 3339 time of this look.
    """
    current = phase(pod, observed)
    conditions = [
        {"type": "PodReadyToStartContainers", "status": "True" if observed.addresses else "False"},
        {"type": "Initialized", **_initialized(pod, observed)},
        *({"type": name, **_readiness(pod, observed, current)} for name in ("Ready", "ContainersReady")),
        {"type": "PodScheduled", "status": "True"},
    ]
    own = {condition["type"] for condition in conditions}
    others = [known for known in previous.get("conditions") or () if known.get("type") not in own]
    return {
        "phase": current,
        "reason": observed.reason or None,
        "message": observed.message or None,
        "podIP": observed.addresses[0] if observed.addresses else None,
        "podIPs": [{"ip": address} for address in observed.addresses] or None,
        "hostIP": observed.host_addresses[0],
        "hostIPs": [{"ip": address} for address in observed.host_addresses],
        "startTime": previous.get("startTime") or now,
        "qosClass": qos_class(pod),
        "conditions": [*(_since(previous, condition, now) for condition in conditions), *others],
        "initContainerStatuses": _container_statuses(pod.spec.init_containers, observed) or None,
        "containerStatuses": _container_statuses(pod.spec.containers, observed),
    }


def qos_class(pod: Pod) -> str:
    """Guaranteed, Burstable or BestEffort (pkg/apis/core/v1/helper/qos)."""
    every = [container.resources for container in (*pod.spec.init_containers, *pod.spec.containers)]
    if not any(resources.limits or resources.requests for resources in every):
        return "BestEffort"
    for resources in every:
        for name in ("cpu", "memory"):
            limit = resources.limits.get(name)
            if limit is None or resources.requests.get(name, limit) != limit:
                return "Burstable"
    return "Guaranteed"


def _initialized(pod: Pod, observed: Observed) -> Object:
    if observed.is_initialized:
        return {"status": "True"}
    left = [
        container.name
        for container in pod.spec.init_containers
        if container.name in observed.containers and not observed.containers[container.name].is_ready
    ]
    message = f"containers with incomplete status: [{' '.join(left)}]"
    return {"status": "False", "reason": "ContainersNotInitialized", "message": message}


def _readiness(pod: Pod, observed: Observed, current: str) -> Object:
    if observed.containers and all(state.is_ready for state in observed.containers.values()):
        return {"status": "True"}
    lasting = [one.name for one in (*pod.spec.init_containers, *pod.spec.containers) if not _is_init(pod, one)]
    unready = sorted(name for name in lasting if name in observed.containers and not observed.containers[name].is_ready)
    why = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(current, "ContainersNotReady")
    message = f"containers with unready status: [{' '.join(unready)}]"
    message += "".join(_complaint(name, observed.containers[name]) for name in unready)
    return {"status": "False", "reason": why, "message": message}


def _is_init(pod: Pod, container: Container) -> bool:
    return container in pod.spec.init_containers and container.restart_policy != "Always"


def _container_statuses(containers: Iterable[Container], observed: Observed) -> list[Object]:
    return [
        _container_status(container, observed.containers[container.name])
        for container in containers
        if container.name in observed.containers
    ]


def _complaint(container: str, state: ContainerState) -> str:
    """What is wrong with a container that runs, if somebody has said so."""
    return f"; {container}: {state.message}" if state.started_at and state.message else ""


def _since(previous: Mapping[str, Any], condition: Object, now: str) -> Object:
    """The condition with the time at which it became so."""
    for known in previous.get("conditions") or ():
        if (known.get("type"), known.get("status")) == (condition["type"], condition["status"]):
            return {**condition, "lastTransitionTime": known.get("lastTransitionTime") or now}
    return {**condition, "lastTransitionTime": now}


def _container_status(container: Container, state: ContainerState) -> Object:
    over = _terminated(state)
    last: Object = {"terminated": over} if state.ran_until else {}
    if state.started_at:
        what: Object = {"running": {"startedAt": state.started_at}}
    elif state.waiting:
        what = {"waiting": {"reason": state.waiting, **({"message": state.message} if state.message else {})}}
    else:
        what, last = {"terminated": {**over, **({"message": state.message} if state.message else {})}}, {}
    return {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": state.is_ready,
        "started": state.is_started,
        "restartCount": state.restarts,
        "state": what,
        "lastState": last,
    }


def _terminated(state: ContainerState) -> Object:
    code = 255 if state.exit_code is None else state.exit_code
    reason = "OOMKilled" if state.was_out_of_memory else "Completed" if code == 0 else "Error"
    times = {"startedAt": state.ran_from, "finishedAt": state.ran_until}
    return {"exitCode": code, "reason": reason, **{name: time for name, time in times.items() if time}}
