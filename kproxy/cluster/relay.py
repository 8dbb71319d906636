"""Makes the node ports of a lab reachable at an address of the host: `kproxy lab up --expose ADDRESS`.

Run as `python -m kproxy.cluster.relay LAB ADDRESS`. It listens at ADDRESS on every TCP node port there is,
and follows Services as they come and go. Each connection is taken up in the host's network namespace and carried on by
a second socket that lives in the router's: two sockets and a copy between them, no link and no rule.

Law: what the pod sees is the lab's own truth for a client at the router: its address with externalTrafficPolicy Local,
the node's with Cluster. Who was outside the lab is known to the relay alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final

import msgspec

from kproxy.api.kinds import SERVICE
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.layout import Layout, python, python_environment
from kproxy.cluster.pod_processes import recorded
from kproxy.errors import UserError
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import named, socket_in

_LOG = logging.getLogger(__name__)
CONNECT_LIMIT: Final = 2.0
"""Seconds that a node gets to take a connection before the next one is tried."""
ROLE: Final = "relay"
_CHUNK: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: what is closed is reset, so that a refused node port does not look like one that said nothing."""


def node_ports(services: Iterable[Object]) -> frozenset[int]:
    """The TCP node ports of Services."""
    return frozenset(
        int(port["nodePort"])
        for service in services
        for port in (service.get("spec") or {}).get("ports") or ()
        if port.get("nodePort") and port.get("protocol", "TCP") == "TCP"
    )


class Relay:
    """Listens on the node ports that it is told, and carries connections into the lab.

    Args:
        layout: the lab.
        address: where it listens; an address of the host.
        nodes: the nodes' addresses, in the order in which they are tried.
    """

    def __init__(self, layout: Layout, address: str, nodes: tuple[str, ...]) -> None:
        self._router = named(layout.netns("router"), layout.namespaces)
        self._address = address
        self._nodes = nodes
        self._servers: dict[int, asyncio.Server] = {}
        self._wanted: frozenset[int] = frozenset()
        self._lock = asyncio.Lock()

    async def listen(self, ports: frozenset[int]) -> None:
        """Ensures that it listens on these ports and no others; one that is taken is logged and left out."""
        async with self._lock:
            for port in self._servers.keys() - ports:
                self._servers.pop(port).close()
            for port in sorted(ports - self._servers.keys()):
                try:
                    self._servers[port] = await asyncio.start_server(self._carry, self._address, port)
                except OSError as error:
                    _LOG.error("cannot listen on %s port %d: %s", self._address, port, error.strerror)
            _LOG.info("listening on %s: %s", self._address, ", ".join(map(str, sorted(self._servers))) or "no port")

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        try:
            inner_reader, inner_writer = await self._connect(port)
        except (OSError, NetnsError) as error:
            _LOG.warning("no node takes a connection on port %d: %s", port, error)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.close()
            return
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        for one in (inner_writer, writer):
            one.close()

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a node port, of the first node that takes it, from the router's namespace.

        Raises:
            OSError: none does.
            NetnsError: the lab is gone.
        """
        failure: OSError = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        for node in self._nodes:
            family = socket.AF_INET6 if ":" in node else socket.AF_INET
            inner = await asyncio.to_thread(socket_in, self._router, family, socket.SOCK_STREAM)
            inner.setblocking(False)
            try:
                loop = asyncio.get_running_loop()
                await asyncio.wait_for(loop.sock_connect(inner, (node, port)), CONNECT_LIMIT)
                return await asyncio.open_connection(sock=inner)
            except OSError as error:  # a time-out, too
                inner.close()
                failure = error
        raise failure


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries one direction to its end, and the end with it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _follow(client: Client, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
    """Body of the thread that tells the relay which ports there are, for as long as it lives."""
    services: dict[tuple[str, str], Object] = {}
    before: frozenset[int] | None = None
    for news in client.follow(SERVICE, bookmarks=False):
        if isinstance(news, Snapshot):
            services = {_key(obj): obj for obj in news.items}
        elif news.type == "DELETED":
            services.pop(_key(news.object), None)
        else:
            services[_key(news.object)] = news.object
        ports = node_ports(services.values())
        if ports != before:
            before = ports
            asyncio.run_coroutine_threadsafe(relay.listen(ports), loop)


def _key(obj: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def check_address(address: str) -> None:
    """Ensures that something can listen there.

    Raises:
        UserError: this is no address of the host.
    """
    try:
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except (ValueError, OSError) as error:
        raise UserError(f'"{address}" is no address of this host that something could listen at ({error})') from error


def expose(layout: Layout, address: str) -> bool:
    """Ensures that a relay makes the lab's node ports reachable at `address`; false when there was one before.

    It is a process of the lab: on record, and gone with `lab down`. After a reboot it has to be asked for again.

    Raises:
        UserError: this is no address of the host.
        NetnsError: the relay cannot be started.
    """
    check_address(address)
    journal = Journal(layout.journal, "lab")
    role = f"{ROLE}:{address}"
    try:
        if recorded(journal, role).get(role):
            return False
        with layout.log(ROLE).open("ab") as log:
            process.spawn(
                python("kproxy.cluster.relay", layout.lab, address),
                env=python_environment(),
                stdout=log.fileno(),
                stderr=log.fileno(),
                journal=journal,
                role=role,
            )
    finally:
        journal.close()
    return True


async def _run(layout: Layout, address: str) -> None:
    config = msgspec.json.decode(layout.cluster_file.read_bytes(), type=ClusterConfig)
    relay = Relay(layout, address, tuple(node.addresses[0] for node in config.nodes))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    arguments = (Client(layout.api_url), relay, loop)
    threading.Thread(target=_follow, args=arguments, name="services", daemon=True).start()
    await stop.wait()


def main() -> None:
    """Relays for the lab and at the address named on the command line until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(Layout(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
