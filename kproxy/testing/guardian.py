"""Takes a test's lab down when the test run ends, whatever way it ends: ``python -m kproxy.testing.guardian LAB``.

It waits for the end of its standard input, which the test run holds open and the kernel closes even after SIGKILL.
"""

from __future__ import annotations

import signal
import sys

from kproxy.cluster import lab


def main(name: str) -> None:
    """Waits, then takes the lab down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    lab.down(name)


if __name__ == "__main__":
    main(sys.argv[1])
