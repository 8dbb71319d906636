"""Where plans go. A backend encodes; it decides nothing."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from kproxy.proxy.plan import PlanDelta


class Condition(Enum):
    """How much of what a backend wrote is still there, as far as a cheap look tells."""

    INTACT = "intact"
    BEING_LOST = "being lost"
    """Somebody is taking it away right now: better to wait until they are done."""
    LOST = "lost"


class Backend(Protocol):
    """Something that can hold plans."""

    def apply(self, delta: PlanDelta) -> None:
        """Make the kernel hold what the delta says, in one transaction.

        Raises:
            HostError: it was refused; what the kernel holds now is unknown and the next delta has to be a full one.
        """

    def condition(self) -> Condition:
        """How much of what was written is left.

        Raises:
            HostError: that cannot be told.
        """
