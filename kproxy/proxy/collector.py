"""When the garbage collector runs: between changes, and never over all that is loaded while anybody waits.

Python by itself collects when so many more objects were made than have gone. While Services change, one goes for each
that comes, so that it does nothing for a long time and then looks at hundreds of thousands at once: 50 ms in the middle
of a change (10,000 Services x 10 endpoints, tried). So it is switched off and asked often, for the few objects that are
new; what they leave over is taken for what stays. Nearly all that this proxy holds goes without a collector anyway, as
soon as nothing names it; the rest are a few cycles (docs/decisions/0160-garbage-between-changes.md).

Law: it decides when, by counts and times that it is told; nothing else does.
"""

from __future__ import annotations

import gc

OFTEN = 100
"""Changes after which the new objects are looked at: less than a millisecond's work."""
SELDOM = 10.0
"""Seconds after which that is done without so many changes."""
MANY = 2000
"""Changes that are a load: what they leave is there to stay, and is not looked at now."""
EVERYTHING = 3600.0
"""Seconds after which all objects are looked at, as soon as there is nothing to do."""


class Collector:
    """The garbage collector of this process, from now on told when to work.

    Args:
        now: the time, in seconds of a clock that never goes back.
    """

    def __init__(self, now: float) -> None:
        gc.disable()
        self._changes = 0
        self._looked = now
        self._looked_at_everything = now

    def rest(self, changes: int, now: float, *, is_idle: bool) -> None:
        """Do what is due now that the work is done.

        Args:
            changes: how many there were since the last call.
            now: the time.
            is_idle: nothing waits to be done.
        """
        self._changes += changes
        if is_idle and now >= self._looked_at_everything + EVERYTHING:
            gc.unfreeze()
            gc.collect()
            self._looked_at_everything = now
        elif self._changes >= MANY:
            pass
        elif self._changes >= OFTEN or now >= self._looked + SELDOM:
            gc.collect(0)
        else:
            return
        gc.freeze()
        self._changes, self._looked = 0, now
