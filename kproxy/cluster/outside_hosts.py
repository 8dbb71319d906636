"""What answers on hosts outside the cluster: the echo server, where the cluster file gives a client ports.

Law: an echo server outlives the control plane; the next one finds it by its control socket.
"""

from __future__ import annotations

import logging
from typing import Final

from kproxy.cluster.clusterfile import ClientConfig, ClusterConfig
from kproxy.cluster.fork_server import Request
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_processes import ECHO_SOCKET, EchoControl, ForkServer
from kproxy.errors import HostError
from netns import sysctl
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace, named

_LOG = logging.getLogger(__name__)
_ANY_PORT: Final = {"net.ipv4.ip_unprivileged_port_start": "0"}


class OutsideHosts:
    """The clients that serve something.

    Args:
        config: the cluster.
        layout: where the control sockets are.
        journal: where it is recorded that one was made.
        fork_server: where echo servers come from.
    """

    def __init__(self, config: ClusterConfig, layout: Layout, journal: Journal, fork_server: ForkServer) -> None:
        self._config = config
        self._layout = layout
        self._journal = journal
        self._fork_server = fork_server
        self._controls: list[EchoControl] = []

    def start(self) -> None:
        """Ensures that every client with ports answers on them; what cannot is said in the log."""
        for client in self._config.clients:
            if client.ports:
                try:
                    self._controls.append(self._serve(client))
                except (HostError, NetnsError, OSError) as error:
                    _LOG.warning("client %s: nothing answers on its ports: %s", client.name, error)

    def _serve(self, client: ClientConfig) -> EchoControl:
        folder = self._layout.run / "clients" / client.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        control = folder / ECHO_SOCKET
        try:
            found = EchoControl(control)
        except OSError:
            ns = named(self._layout.netns(client.name), self._layout.namespaces)
            sysctl.apply(ns, _ANY_PORT)
            self._fork_server.fork(self._request(client, ns, str(folder)))
            self._journal.step(f"echo server of client {client.name}")
            found = EchoControl(control)
        found.tell({("TCP", port) for port in client.ports})
        return found

    def _request(self, client: ClientConfig, ns: Namespace, folder: str) -> Request:
        return Request(
            netns=str(ns.path),
            control=f"{folder}/{ECHO_SOCKET}",
            log=str(self._layout.log(f"client.{client.name}")),
            scratch=folder,
            hostname=client.name,
            pod=client.name,
            namespace="",
            node="",
        )
