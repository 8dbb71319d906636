"""The ``classic`` balancer: HAProxy in the router's namespace, one process for all Services.

Law: HAProxy is told a whole configuration; it goes on with the old one until the new one stands, and lets open
connections end. It outlives who started it and is found again by its record.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Final

from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers.claims import PROXY_PROTOCOLS, ClaimPort, version_of
from kproxy.cluster.load_balancers.serving import Balance
from kproxy.cluster.pod_processes import reap, recorded, send_signal
from kproxy.cluster.sandbox import PATH
from netns import process
from netns.journal import Journal
from netns.process import Process

ROLE: Final = "haproxy"
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


def configuration(balances: Iterable[Balance], socket: str) -> str:
    """What HAProxy is told.

    Args:
        balances: of the kind.
        socket: path of the socket by which one HAProxy hands its listeners to the next.
    """
    lines = [_HEAD.format(socket=socket)]
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

    def serve(self, balances: Iterable[Balance]) -> None:
        """Ensures that it runs and serves just these; without any, that it does not run.

        Raises:
            NetnsError: it cannot be started: HAProxy is not installed.
        """
        balances = tuple(balances)
        text = configuration(balances, str(self._layout.haproxy_socket))
        is_running = self._process is not None and process.is_alive(self._process)
        if not balances:
            self._end()
        elif not is_running:
            self._end()
            self._layout.haproxy_file.write_text(text, encoding="utf-8")
            self._start()
        elif text != self._told:
            self._layout.haproxy_file.write_text(text, encoding="utf-8")
            send_signal([one for one in [self._process] if one is not None], signal.SIGUSR2)
        self._told = text

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
