"""The ``classic`` balancer: HAProxy in the router's namespace, one process for all Services.

Law: HAProxy is told a whole configuration; it goes on with the old one until the new one stands, and lets open
connections end. It outlives who started it and is found again by its record.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Collection, Iterable
from typing import Final

from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers.claims import PROXY_PROTOCOLS, ClaimPort, version_of
from kproxy.cluster.load_balancers.serving import Balance
from kproxy.cluster.pod_processes import reap, recorded, send_signal
from kproxy.cluster.sandbox import PATH
from kproxy.errors import HostError
from netns import process
from netns.journal import Journal
from netns.process import Process

ROLE: Final = "haproxy"
LISTEN_LIMIT: Final = 3.0
"""Seconds that HAProxy gets to listen; a tenth of one is usual."""
_POLL: Final = 0.02
_HEAD: Final = """\
global
    user nobody
    group nogroup
    stats socket {socket} mode 600 expose-fd listeners
    # Old workers end with their last connection, and at last after this.
    hard-stop-after 10m
defaults
    mode tcp
    # A node that was cut off a moment ago is not waited for: the connection goes to another one.
    timeout connect 500ms
    retries 4
    option redispatch 1
    timeout client 1h
    timeout server 1h
"""


def configuration(balances: Iterable[Balance], handover: str) -> str:
    """What HAProxy is told.

    Args:
        balances: of the kind.
        handover: path of the socket by which one HAProxy hands its listeners to the next.
    """
    lines = [_HEAD.format(socket=handover)]
    for one in balances:
        for address in one.addresses:
            for port in one.claim.ports:
                lines += _listener(one, address, port)
    return "\n".join([*lines, ""])


def _listener(one: Balance, address: str, port: ClaimPort) -> list[str]:
    """Nothing at all when no node serves: then nobody listens, and the client is refused."""
    version = version_of(address)
    servers = []
    for member in one.members:
        if node := member.address(version):
            place = f"[{node}]" if version == 6 else node
            words = f"server {member.name} {place}:{port.node_port} {PROXY_PROTOCOLS.get(one.claim.proxy_protocol, '')}"
            servers.append(f"    {words.rstrip()}")
    if not servers:
        return []
    bound = f"[{address}]" if version == 6 else address
    return [
        f"listen {':'.join(one.claim.key)}:{port.port}:ipv{version}",
        f"    bind {bound}:{port.port}",
        f"    balance {'source' if one.claim.is_sticky else 'roundrobin'}",
        *servers,
    ]


def places(one: Balance) -> set[tuple[str, int]]:
    """Where it listens for a claim: addresses of families in which some node serves."""
    return {
        (address, port.port)
        for address in one.addresses
        for port in one.claim.ports
        if any(member.address(version_of(address)) for member in one.members)
    }


def _is_open(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_POLL).close()
    except OSError:
        return False
    return True


class HAProxy:
    """The process; the caller is in the namespace that it is to serve.

    Args:
        layout: where its configuration, socket and log are.
        journal: where it is recorded.
    """

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self._layout = layout
        self._journal = journal
        self._process: Process | None = next(iter(recorded(journal, ROLE).get(ROLE, [])), None)
        self._told = ""
        self._listens: frozenset[tuple[str, int]] = frozenset()

    def serve(self, balances: Iterable[Balance]) -> None:
        """Ensures that it runs and serves just these, and listens; without any, that it does not run.

        Raises:
            NetnsError: it cannot be started.
            HostError: it does not listen; to be called again.
        """
        balances = tuple(balances)
        text = configuration(balances, str(self._layout.haproxy_socket))
        is_running = self._process is not None and process.is_alive(self._process)
        if is_running and text == self._told:
            return
        self._told = ""
        if not is_running or not balances:
            self._end()
            self._listens = frozenset()
        if balances:
            self._layout.haproxy_file.write_text(text, encoding="utf-8")
            if self._process is None:
                self._start()
            else:
                send_signal([self._process], signal.SIGUSR2)
            self._await({place for one in balances for place in places(one)})
            self._told = text

    def _await(self, wanted: Collection[tuple[str, int]]) -> None:
        """Waits for the listeners that are new: a signal says nothing of when it has been obeyed."""
        deadline = time.monotonic() + LISTEN_LIMIT
        missing = set(wanted) - self._listens
        while missing := {place for place in missing if not _is_open(*place)}:
            if time.monotonic() > deadline:
                raise HostError(f"HAProxy does not listen on {sorted(missing)}", left=f"see {self._layout.log(ROLE)}")
            time.sleep(_POLL)
        self._listens = frozenset(wanted)

    def _start(self) -> None:
        with self._layout.log(ROLE).open("ab") as log:
            self._process = process.spawn(
                ["haproxy", "-W", "-db", "-f", str(self._layout.haproxy_file)],
                env={"PATH": PATH},
                stdout=log.fileno(),
                stderr=log.fileno(),
                journal=self._journal,
                role=ROLE,
            )

    def _end(self) -> None:
        if self._process is not None:
            process.kill(self._process, grace=1.0)
            reap(self._process)
            process.forget(self._process, self._journal)
            self._process = None
