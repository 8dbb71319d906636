"""One command of a pod, or its echo server, and what has become of its runs.

Law: it only remembers; `RunningPod` acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kproxy.cluster.container_probe import ContainerProbe
from kproxy.cluster.echo import Port
from kproxy.cluster.pod_processes import EchoControl
from kproxy.cluster.pods import Backoff, ContainerState
from netns.process import Process


@dataclass
class Unit:
    """One command, or the echo server (whose control socket stands in for its pidfd).

    Attributes:
        name: the container's, or `pods.ECHO`.
        containers: the names of those that it stands for.
        probes: by container.
        has_begun: the command itself has been executed, and no longer only its sandbox runs.
        main: the process of the command itself, once somebody has looked for it.
        is_asked: the run that goes on was asked to end.
        is_stopping: what has to come before that has begun.
        runs: how many there were; tells a run from the next one.
        kills: how many of its processes had been killed for want of memory when the run began.
    """

    name: str
    containers: tuple[str, ...]
    probes: dict[str, ContainerProbe] = field(default_factory=dict)
    state: ContainerState = field(default_factory=ContainerState)
    process: Process | None = None
    watched: int = -1
    has_begun: bool = False
    main: Process | None = None
    is_asked: bool = False
    is_stopping: bool = False
    runs: int = 0
    kills: int = 0
    control: EchoControl | None = None
    wanted: frozenset[Port] = frozenset()
    backoff: Backoff = field(default_factory=Backoff)

    def state_of(self, container: str) -> ContainerState:
        """What is seen of one of its containers."""
        probed = self.probes.get(container)
        if probed is None:
            return replace(self.state, is_started=bool(self.state.started_at))
        if not self.state.started_at:
            return self.state
        is_ready = self.state.is_ready and probed.is_started and probed.is_ready
        message = self.state.message or probed.message
        return replace(self.state, is_ready=is_ready, is_started=probed.is_started, message=message)

    def remember(self, before: Mapping[str, Any]) -> None:
        """Takes over what the pod's status says of its earlier runs."""
        last = (before.get("lastState") or {}).get("terminated") or (before.get("state") or {}).get("terminated") or {}
        self.state = replace(
            self.state,
            restarts=int(before.get("restartCount", 0)),
            exit_code=last.get("exitCode"),
            ran_from=str(last.get("startedAt") or ""),
            ran_until=str(last.get("finishedAt") or ""),
        )

    def began(self, at: str = "") -> None:
        """A run goes on, since then; empty is now."""
        self.state = replace(self.state, is_ready=True, started_at=at or moment(), waiting="", message="")

    def ended(self, code: int | None, *, was_out_of_memory: bool) -> float:
        """The run is over; returns how many seconds it took, as far as anybody knows."""
        began, now = self.state.started_at, moment()
        self.process = self.main = None
        self.is_asked = self.is_stopping = False
        self.runs += 1
        self.state = replace(
            self.state,
            is_ready=False,
            started_at="",
            exit_code=code,
            ran_from=began or now,
            ran_until=now,
            was_out_of_memory=was_out_of_memory,
        )
        if not began:
            return 0.0
        return (datetime.fromisoformat(now) - datetime.fromisoformat(began)).total_seconds()

    def stop_probes(self) -> None:
        """Nobody looks at it any longer."""
        for probe in self.probes.values():
            probe.stop()


def by_container(units: Iterable[Unit]) -> dict[str, ContainerState]:
    """What is seen of each container that the units stand for."""
    return {name: unit.state_of(name) for unit in units for name in unit.containers}


def moment() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
