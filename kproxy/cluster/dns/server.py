"""A DNS server: UDP and TCP sockets, and the names of others asked for elsewhere.

Law: what is known of a name is the business of `names`; here questions become calls of it, and its answers messages.
All of it happens in one event loop, which nothing here keeps waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final, Protocol, cast

from dnslib import RR

from kproxy.cluster.dns import wire
from kproxy.cluster.dns.wire import Query
from kproxy.cluster.dns.zone import Answer, Record

FORWARDED_AT_ONCE: Final = 1000
"""Questions for other servers that may be under way (kubeadm's Corefile: `max_concurrent 1000`)."""
CONNECTIONS: Final = 256
"""TCP connections at once; a further one is closed."""
IDLE_SECONDS: Final = 10.0
"""That a TCP connection may be silent, or that its client may take to accept an answer."""
PATIENCE: Final = 2.0
"""Seconds until another server's answer counts as lost."""
_TRIES: Final = 2


Server = tuple[str, int]
"""Address and port."""


class Names(Protocol):
    """What a server knows.

    Attributes:
        domain: the zone it speaks for, without a final dot; empty for the root.
    """

    @property
    def domain(self) -> str: ...  # noqa: D102 - above

    def lookup(self, name: str, record_type: str) -> Answer | None:
        """What there is to say about a name; None when others are to be asked."""
        ...


class Responder:
    """Answers messages.

    Args:
        names: what is known.
        upstream: the servers that know the rest, asked in this order; with none of them such questions are
            refused.
    """

    def __init__(self, names: Names, upstream: Sequence[Server] = ()) -> None:
        self.is_ready = True
        self._names = names
        self._upstream = tuple(upstream)
        self._under_way = 0
        self._serial = int(time.time())

    async def respond(self, data: bytes, *, is_stream: bool) -> bytes | None:
        """The answer to a message; None when it deserves none.

        Args:
            data: the message.
            is_stream: it came over TCP, so that the answer may be of any length.
        """
        query = wire.read(data)
        if query is None:
            return None
        reply = await self._answer(query)
        return reply if is_stream else wire.fitted(query, reply)

    async def _answer(self, query: Query) -> bytes:
        recursion = bool(self._upstream)
        if query.problem:
            return wire.failure(query, query.problem, recursion=recursion)
        if not self.is_ready:
            return wire.failure(query, "SERVFAIL", recursion=recursion)
        found = self._names.lookup(query.name, query.type)
        if found is None:
            return await self._relay(query)
        others = await self._resources(found.outside, query.type) if found.outside else ()
        shuffled = Answer(found.code, _mixed(found), found.additional)
        return wire.answer(
            query, shuffled, domain=self._names.domain, serial=self._serial, others=others, recursion=recursion
        )

    async def _relay(self, query: Query) -> bytes:
        """What the other servers say."""
        if not self._upstream:
            return wire.failure(query, "REFUSED")
        reply = await self._ask(query.name, query.type)
        relayed = wire.relayed(query, reply) if reply is not None else None
        return relayed if relayed is not None else wire.failure(query, "SERVFAIL", recursion=True)

    async def _resources(self, name: str, record_type: str) -> Sequence[RR]:
        """The records of a name outside; none when nobody tells."""
        reply = await self._ask(name, record_type) if self._upstream else None
        return wire.resources(reply) if reply is not None else ()

    async def _ask(self, name: str, record_type: str) -> bytes | None:
        """The first answer that another server gives; None when none does."""
        if self._under_way >= FORWARDED_AT_ONCE:
            return None
        self._under_way += 1
        try:
            for server in self._upstream * _TRIES:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                    return await asyncio.wait_for(_exchange(server, name, record_type), PATIENCE)
            return None
        finally:
            self._under_way -= 1


def _mixed(found: Answer) -> tuple[Record, ...]:
    """The records with those of one name in a random order, as CoreDNS' plugin `loadbalance` does; CNAMEs first."""
    aliases = [record for record in found.records if record.type == "CNAME"]
    others = [record for record in found.records if record.type != "CNAME"]
    random.shuffle(others)
    return (*aliases, *others)


async def _exchange(server: Server, name: str, record_type: str) -> bytes:
    """One server's answer to one question; asked again over TCP when it is cut short.

    Raises:
        OSError: the server cannot be reached.
        asyncio.IncompleteReadError: it closed the connection.
    """
    number = secrets.randbelow(1 << 16)
    message = wire.question(number, name, record_type)
    reply = await _exchange_datagram(server, message)
    return await _exchange_stream(server, message) if wire.is_truncated(reply) else reply


class _Reply(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers a message."""

    def __init__(self, number: bytes) -> None:
        self._number = number
        self.arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if data[:2] == self._number and not self.arrived.done():  # the socket is connected: from the server it is
            self.arrived.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.arrived.done():
            self.arrived.set_exception(error)


async def _exchange_datagram(server: Server, message: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    transport, reply = await loop.create_datagram_endpoint(lambda: _Reply(message[:2]), remote_addr=server)
    try:
        transport.sendto(message)
        return await reply.arrived
    finally:
        transport.close()


async def _exchange_stream(server: Server, message: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(_framed(message))
        return await _read_framed(reader)
    finally:
        writer.close()


def _framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


async def _read_framed(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    return await reader.readexactly(length)


class _Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own transports are no subclasses of the abstract one.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        task = asyncio.ensure_future(self._respond(data, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, data: bytes, address: tuple[str, int]) -> None:
        reply = await self._responder.respond(data, is_stream=False)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, address)


class _Streams:
    """The connections of all TCP sockets."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._count = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one client's messages, one after the other, until it says no more."""
        self._count += 1
        try:
            if self._count <= CONNECTIONS:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                    while True:
                        await self._serve_one(reader, writer)
        finally:
            self._count -= 1
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await asyncio.wait_for(_read_framed(reader), IDLE_SECONDS)
        reply = await self._responder.respond(message, is_stream=True)
        if reply is not None:
            writer.write(_framed(reply))
            await asyncio.wait_for(writer.drain(), IDLE_SECONDS)


async def serve(responder: Responder, sockets: Sequence[socket.socket], until: asyncio.Event) -> None:
    """Has the responder answer on bound sockets, datagram or stream, until the event is set; then they are closed.

    Raises:
        OSError: a socket cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    streams = _Streams(responder)
    async with contextlib.AsyncExitStack() as opened:
        for one in sockets:
            one.setblocking(False)
            if one.type == socket.SOCK_DGRAM:
                transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(responder), sock=one)
                opened.callback(transport.close)
            else:
                opened.callback((await asyncio.start_server(streams.serve, sock=one)).close)
        await until.wait()
