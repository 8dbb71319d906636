"""Into the pods of a lab from outside: their logs, and commands run in them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kproxy.cluster.layout import Layout
from kproxy.cluster.logs import older


class PodAccess:
    """Where a lab's pods can be got at.

    Args:
        layout: the lab.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def log(self, namespace: str, name: str, container: str, *, is_previous: bool = False) -> Path:
        """The file that a container's output is appended to, or that of the run before; it may not be there yet."""
        path = self._layout.log(f"{namespace}.{name}.{container}")
        return older(path) if is_previous else path

    def command(
        self, namespace: str, name: str, container: str, argv: Sequence[str], *, is_terminal: bool
    ) -> list[str]:
        """What to run on the host so that ``argv`` is run in a pod.

        It is ``kproxy exec``, in a process of its own: entering a pod is for processes with one thread.

        Args:
            namespace: the pod's.
            name: the pod's.
            container: the one that is meant.
            argv: program and arguments.
            is_terminal: whether its standard input is a terminal that is to be its controlling one.
        """
        where = ["--lab", self._layout.lab, "-n", namespace, "-c", container, f"pod/{name}"]
        own = [sys.executable, "-m", "kproxy", "exec", *where, "--", *argv]
        return [shutil.which("setsid") or "setsid", "--ctty", *own] if is_terminal else own
