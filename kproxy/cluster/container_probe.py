"""A container's probes from run to run: what the node agent knows of it.

Law: everything here happens in the node agent's thread; what the prober reports is posted to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from kproxy.api.types import Container
from kproxy.cluster import probing
from kproxy.cluster.prober import Found, Prober, Target, Watch
from kproxy.cluster.probing import Plan, Result
from kproxy.cluster.reactor import Reactor

STARTUP: Final = "Startup"
READINESS: Final = "Readiness"
LIVENESS: Final = "Liveness"


@dataclass(frozen=True)
class Listener:
    """Who wants to know what the probes come to.

    Attributes:
        changed: called when `is_started`, `is_ready` or `message` has changed.
        complain: called with a probe's name and what was wrong, each time that a look has failed.
        failed: called with a probe's name and its plan when the container has to be started again because of it.
    """

    changed: Callable[[], None]
    complain: Callable[[str, str], None]
    failed: Callable[[str, Plan], None]


@dataclass
class _Run:
    """One run of the container while it is looked at."""

    prober: Prober
    reactor: Reactor
    target: Target
    listener: Listener
    watches: dict[str, Watch] = field(default_factory=dict)


class ContainerProbe:
    """One container's probes.

    Args:
        plans: by name, those that it has.
        is_started: what was known of the run that goes on.
        is_ready: likewise.

    Attributes:
        is_started: whether the run that goes on has shown that it has started; false while there is none.
        is_ready: whether it is ready.
        message: why it is not, if somebody has looked.
    """

    def __init__(self, plans: dict[str, Plan], *, is_started: bool, is_ready: bool) -> None:
        self._plans = plans
        self.is_started = is_started
        self.is_ready = is_ready and (is_started or STARTUP not in plans)
        self.message = ""
        self._run: _Run | None = None

    def start(self, prober: Prober, reactor: Reactor, target: Target, listener: Listener) -> None:
        """Ensures that the run that goes on is looked at.

        Args:
            prober: who looks.
            reactor: the node agent's thread.
            target: where.
            listener: who is told, in that thread.
        """
        if self._run is not None:
            return
        self._run = _Run(prober, reactor, target, listener)
        if STARTUP in self._plans and not self.is_started:
            self._watch(STARTUP, self._run)
        else:
            self._go_on(self._run)

    def _watch(self, name: str, run: _Run) -> None:
        plan = self._plans[name]
        initial = self.is_ready if name == READINESS else name == LIVENESS

        def hear(found: Found) -> None:
            if self._run is run:  # else it is about a run that has ended
                self._take(name, found, run)

        run.watches[name] = run.prober.watch(
            plan, run.target, Result(plan, initial=initial), lambda found: run.reactor.post(partial(hear, found))
        )

    def _go_on(self, run: _Run) -> None:
        """It has started: the other probes begin."""
        self.is_started = True
        self.is_ready = self.is_ready or READINESS not in self._plans
        for name in (READINESS, LIVENESS):
            if name in self._plans:
                self._watch(name, run)

    def _take(self, name: str, found: Found, run: _Run) -> None:
        if found.message:
            run.listener.complain(name, found.message)
        if name == STARTUP and found.is_success and not self.is_started:
            run.watches.pop(STARTUP).stop()
            self.message = ""
            self._go_on(run)
            run.listener.changed()
        elif name == READINESS or (name == STARTUP and not self.is_started):
            self.is_ready = found.is_success and name == READINESS
            self.message = "" if found.is_success else found.message
            run.listener.changed()
        if name != READINESS and found.has_failed:
            run.listener.failed(name, self._plans[name])

    def stop(self) -> None:
        """The run has ended: the next one has to show by itself that it is ready."""
        for watch in self._run.watches.values() if self._run is not None else ():
            watch.stop()
        self._run = None
        self.is_started, self.is_ready, self.message = False, False, ""


def plans(container: Container, address: str) -> dict[str, Plan]:
    """The container's probes by name.

    Args:
        container: the container.
        address: the pod's first address.
    """
    every = {
        STARTUP: container.startup_probe,
        READINESS: container.readiness_probe,
        LIVENESS: container.liveness_probe,
    }
    found = {name: probing.plan(container, probe, address) for name, probe in every.items()}
    return {name: plan for name, plan in found.items() if plan is not None}
