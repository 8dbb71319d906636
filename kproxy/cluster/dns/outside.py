"""The name server of the world outside: it knows the hosts that the cluster file names, and listens on the router.

Law: it runs in the control plane, in a thread with an event loop of its own; its sockets live in the router's
namespace. It is what a provider's resolver is to a real cluster: the DNS pods ask it for all that is not the cluster's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from typing import Final

from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.dns.host_names import HostNames
from kproxy.cluster.dns.server import Responder, serve
from netns.namespace import Namespace, socket_in

PORT: Final = 53
_LOG = logging.getLogger(__name__)


def names(config: ClusterConfig) -> HostNames:
    """The names that the cluster file gives to hosts outside."""
    found: dict[str, list[str]] = {}
    for client in config.clients:
        for name in client.names:
            found.setdefault(name, []).extend(client.addresses)
    return HostNames(found)


def start(config: ClusterConfig, router: Namespace) -> None:
    """Has the router answer questions from now on, until this process ends.

    Raises:
        NetnsError: there is no router.
        OSError: its port 53 is taken.
    """
    sockets = _sockets(router, (*config.router_addresses, *config.gateway_addresses))
    responder = Responder(names(config))
    threading.Thread(target=_run, args=(responder, sockets), name="dns-outside", daemon=True).start()


def _run(responder: Responder, sockets: Sequence[socket.socket]) -> None:
    try:
        asyncio.run(_serve(responder, sockets))
    except Exception:  # noqa: BLE001 - whatever it is, the rest of the lab goes on
        _LOG.exception("the name server outside has ended")


async def _serve(responder: Responder, sockets: Sequence[socket.socket]) -> None:
    await serve(responder, sockets, asyncio.Event())


def _sockets(router: Namespace, addresses: Sequence[str]) -> list[socket.socket]:
    """One socket an address and protocol, so that answers come from where they were asked."""
    bound = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            one = socket_in(router, family, kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, PORT))
            bound.append(one)
    return bound
