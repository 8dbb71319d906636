"""A container's readiness probe from run to run: what the node agent knows of it.

Law: everything here happens in the node agent's thread; what the prober reports is posted to it.
"""

from __future__ import annotations

from collections.abc import Callable

from kproxy.cluster.prober import Prober, Target, Watch
from kproxy.cluster.probing import Plan, Readiness
from kproxy.cluster.reactor import Reactor


class ContainerProbe:
    """One container's readiness probe.

    Args:
        plan: how it is looked at.
        is_ready: what was known of the run that goes on.

    Attributes:
        is_ready: whether the run that goes on is ready; false while there is none.
        message: why it is not, if somebody has looked.
    """

    def __init__(self, plan: Plan, *, is_ready: bool) -> None:
        self.is_ready = is_ready
        self.message = ""
        self._plan = plan
        self._watch: Watch | None = None

    def start(self, prober: Prober, reactor: Reactor, target: Target, changed: Callable[[], None]) -> None:
        """Ensures that the run that goes on is looked at.

        Args:
            prober: who looks.
            reactor: the node agent's thread.
            target: where.
            changed: called in that thread when `is_ready` or `message` has changed.
        """
        if self._watch is not None:
            return

        def hear(is_ready: bool, message: str) -> None:
            if self._watch is watch:  # else it is about a run that has ended
                self.is_ready, self.message = is_ready, message
                changed()

        def report(is_ready: bool, message: str) -> None:
            reactor.post(lambda: hear(is_ready, message))

        watch = self._watch = prober.watch(self._plan, target, Readiness(self._plan, is_ready=self.is_ready), report)

    def stop(self) -> None:
        """The run has ended: the next one has to show by itself that it is ready."""
        if self._watch is not None:
            self._watch.stop()
        self._watch = None
        self.is_ready, self.message = False, ""
