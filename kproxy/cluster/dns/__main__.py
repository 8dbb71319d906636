"""The program of the cluster's DNS pods: `python -m kproxy.cluster.dns`.

It finds the API as any pod does (KUBERNETES_SERVICE_HOST and its service account's folder), serves port 53 of the pod's
addresses, and says on ports 8080 and 8181 how it is, as CoreDNS' plugins `health` and `ready` do. What is not the
cluster's it asks the servers of its own /etc/resolv.conf for.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kproxy.client import Client
from kproxy.cluster.dns.feed import Feed
from kproxy.cluster.dns.server import Responder, Server, serve
from kproxy.cluster.dns.zone import Zone

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PORT: Final = 53
HEALTH_PORT: Final = 8080
READY_PORT: Final = 8181
LAMEDUCK: Final = 5.0
"""Seconds for which it goes on serving after SIGTERM, until nobody sends here any longer (kubeadm's Corefile)."""
_LOG = logging.getLogger(__name__)


def main() -> None:
    """Serves until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run())


async def _run() -> None:
    zone = Zone()
    responder = Responder(zone, _resolvers(Path("/etc/resolv.conf")))
    responder.is_ready = False
    until, stop = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.call_later(LAMEDUCK, until.set))

    def complete() -> None:
        responder.is_ready = True
        _LOG.info("all Services, EndpointSlices and Namespaces are known")

    await _say(HEALTH_PORT, lambda: True)
    await _say(READY_PORT, lambda: responder.is_ready)
    Feed(zone, _client(), complete).start(loop, stop)
    await serve(responder, sockets(PORT), until)
    stop.set()


def _client() -> Client:
    """The API behind default/kubernetes, with this pod's own token."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    token = (ACCOUNT / "token").read_text(encoding="ascii")
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    address = f"[{host}]" if ":" in host else host
    return Client(f"https://{address}:{port}", ssl_context=trusted, headers={"Authorization": f"Bearer {token}"})


def _resolvers(path: Path) -> list[Server]:
    """The servers that a resolv.conf names."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return [(words[1], PORT) for words in lines if len(words) > 1 and words[0] == "nameserver"]


def sockets(port: int) -> Sequence[socket.socket]:
    """Sockets of both protocols, for all of the pod's addresses of every family that the kernel has.

    Raises:
        OSError: the port is taken.
    """
    bound = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - the pod's own
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            try:
                one = socket.socket(family, kind)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                continue
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((anywhere, port))
            bound.append(one)
    return bound


async def _say(port: int, is_well: Callable[[], bool]) -> None:
    """Answers every HTTP request on the port with 200 while all is well, and with 503 else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(reader.readline(), 1)
            status, text = ("200 OK", "OK") if is_well() else ("503 Service Unavailable", "kubernetes")
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
            writer.write((head + text).encode())
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked is gone, or asks nonsense
        finally:
            writer.close()

    await asyncio.start_server(answer, None, port)


if __name__ == "__main__":
    main()
