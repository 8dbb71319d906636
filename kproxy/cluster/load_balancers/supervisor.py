"""Starts the balancer when the first Service needs it, and again when it has died.

Law: a lab without Services of type LoadBalancer has no such process; one that runs is found again by its record.
"""

from __future__ import annotations

import threading
from typing import Final

from kproxy.api.types import Object
from kproxy.cluster.keeper import Keeper, Kept
from kproxy.cluster.layout import Layout, python, python_environment
from kproxy.cluster.load_balancers import proxying
from kproxy.cluster.load_balancers.claims import NONE, kind_of
from kproxy.cluster.pod_processes import recorded
from netns import process
from netns.journal import Journal
from netns.namespace import named
from netns.process import Process

ROLE: Final = "load-balancer"


class Supervisor:
    """The balancer of one lab.

    Args:
        layout: where it runs and logs.
        journal: where it is recorded.
        default_kind: the cluster file's kind.
    """

    def __init__(self, layout: Layout, journal: Journal, default_kind: str) -> None:
        self._layout = layout
        self._journal = journal
        self._default_kind = default_kind
        self._is_wanted = threading.Event()
        self._keeper = Keeper(journal, ROLE, [Kept(ROLE, "the load balancer", self._start)])

    @property
    def process(self) -> Process | None:
        """Who it is; None while there is none."""
        return self._keeper.kept[0].process

    def haproxies(self) -> list[Process]:
        """The classic balancers' HAProxy, if it runs."""
        return recorded(self._journal, proxying.ROLE).get(proxying.ROLE, [])

    def notice(self, before: Object | None, after: Object | None) -> None:
        """Takes in a change of a Service; from whatever thread."""
        del before
        if after is not None and kind_of(after, self._default_kind) != NONE:
            self._is_wanted.set()

    def run(self, stop: threading.Event) -> None:
        """Keeps it running from the moment on that it is wanted, until `stop` is set."""
        if recorded(self._journal, ROLE):
            self._is_wanted.set()
        self._is_wanted.wait()
        if not stop.is_set():
            self._keeper.start()
            self._keeper.run(stop)

    def _start(self) -> Process:
        with self._layout.log(ROLE).open("ab") as log:
            return process.spawn(
                python("kproxy.cluster.load_balancers.balancer", self._layout.lab),
                ns=named(self._layout.netns("router"), self._layout.namespaces),
                env=python_environment(),
                stdout=log.fileno(),
                stderr=log.fileno(),
                journal=self._journal,
                role=ROLE,
            )
