"""Who is let in at the TLS doors before anybody knows who they are: so many connections, and no dawdling.

Law: connections without a token cost a bounded part of the process's descriptors, for a bounded time; one that is being
answered, as watches and commands are, is never cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

_LOG = logging.getLogger(__name__)
_MOST: Final = 2048
_BURST: Final = 64  # accepted in one turn of the loop
_RETRY_SECONDS: Final = 1.0
_TURNS: Final = 10  # of the loop, of which the beginning or the end of a connection takes three


class Limits(NamedTuple):
    """What connections by TLS may take.

    Attributes:
        total: connections at all doors together.
        per_address: those of one peer's address.
        handshake_seconds: for the TLS handshake.
        goodbye_seconds: for the end of TLS, when a connection is closed.
    """

    total: int
    per_address: int
    handshake_seconds: float = 10.0
    goodbye_seconds: float = 5.0


def default_limits() -> Limits:
    """Half of the descriptors that the process may open, and of these a quarter to each address."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    total = _MOST if soft == resource.RLIM_INFINITY else max(4, min(_MOST, soft // 2))
    return Limits(total, total // 4)


class Entrance:
    """Accepts connections at listening sockets, and hands those that have shaken hands to a protocol.

    Its methods are called in the loop's thread.

    Args:
        protocol: makes what talks on a connection.
        limits: what connections may take.
    """

    def __init__(self, protocol: Callable[[], asyncio.Protocol], limits: Limits) -> None:
        self._protocol = protocol
        self._limits = limits
        self._doors: list[socket.socket] = []
        self._inside: dict[socket.socket, str] = {}
        self._greetings: set[asyncio.Task[None]] = set()

    def open(self, door: socket.socket, context: ssl.SSLContext) -> None:
        """Lets in whoever connects to a socket, which listens and is closed by ``close``."""
        door.setblocking(False)
        self._doors.append(door)
        self._attend(door, context)

    async def close(self) -> None:
        """Closes the doors; those who are still shaking hands are sent away, those inside stay."""
        for door in self._doors:
            asyncio.get_running_loop().remove_reader(door)
            door.close()
        await _turn()  # asyncio leaks a connection that is given up before its handshake has begun
        for greeting in self._greetings:
            greeting.cancel()
        await asyncio.gather(*self._greetings, return_exceptions=True)

    async def hang_up(self) -> None:
        """Ends the connections that are still there, whether or not their other side has said goodbye."""
        for connection in self._inside:
            with contextlib.suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)
        await _turn()

    def _attend(self, door: socket.socket, context: ssl.SSLContext) -> None:
        if door.fileno() >= 0:
            asyncio.get_running_loop().add_reader(door, self._accept, door, context)

    def _accept(self, door: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_BURST):
            try:
                connection, peer = door.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left: the socket stays readable, and asking again would spin
                _LOG.warning("the API cannot accept a connection: %s", error)
                loop.remove_reader(door)
                loop.call_later(_RETRY_SECONDS, self._attend, door, context)
                return
            connection.setblocking(False)
            if not self._has_room(peer[0]):
                connection.close()
                continue
            self._inside[connection] = peer[0]
            greeting = loop.create_task(self._greet(connection, context))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    def _has_room(self, address: str) -> bool:
        # The loop closes a connection's socket last: until then it costs its descriptor, whatever became of the rest.
        self._inside = {connection: peer for connection, peer in self._inside.items() if connection.fileno() >= 0}
        of_address = sum(peer == address for peer in self._inside.values())
        return len(self._inside) < self._limits.total and of_address < self._limits.per_address

    async def _greet(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError):  # no handshake, or a bad one
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.goodbye_seconds,
            )


async def _turn() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
