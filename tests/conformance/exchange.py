"""Real connections between namespaces: everybody who answers and everybody who asks, in one loop of one thread."""

from __future__ import annotations

import errno
import json
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from case_network import Listener
from corpus import endpoint, version_of

from netns.namespace import Namespace, run_in

SILENCE = 1.0
"""Seconds without an answer after which a packet that should get none counts as dropped."""
PATIENCE = 4.0
"""Seconds for an answer that should come: two lost SYNs."""
AT_ONCE = 150
"""Connections under way at the same time: two descriptors each, of 1024 that a process often has."""

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TYPE = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
# From linux/in.h, linux/in6.h and linux/errqueue.h.
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_TRAFFIC_CLASS = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_PORT_UNREACHABLE = {(2, 3, 3), (3, 1, 4)}
_ETH_P_ALL = 3
_SYN, _SYN_AND_ACK = 0x02, 0x12


class Probe(NamedTuple):
    """One connection to be made.

    Attributes:
        place: where the client is.
        mark: a differentiated services code point (0-63) by which others recognise its packets; NAT leaves it alone.
        is_silent: no answer is expected: do not wait long for it.
        only_connects: whoever accepts it does not speak our protocol.
        is_kept: it stays open.
    """

    place: str
    source: str
    source_port: int
    protocol: str
    address: str
    port: int
    mark: int = 0
    is_silent: bool = False
    only_connects: bool = False
    is_kept: bool = False


class Seen(NamedTuple):
    """What became of a probe.

    Attributes:
        outcome: answered, connected, refused (by ICMP port unreachable), reset, silent, or another error's name.
        place: who answered.
        local: address and port at which it was reached there.
        peer: address and port that it saw.
        sender: address and port that the client had.
    """

    outcome: str
    place: str = ""
    local: str = ""
    peer: str = ""
    sender: str = ""


@dataclass
class Connection:
    """A client's end."""

    probe: Probe
    sock: socket.socket
    deadline: float
    is_connected: bool = False
    seen: Seen | None = None


@dataclass
class Exchange:
    """Listeners, watchers and probes.

    Attributes:
        namespaces: of all places.
        reached: marks of packets, and the places that they were seen at, since the last `send`.
    """

    namespaces: dict[str, Namespace]
    reached: set[tuple[int, str]] = field(default_factory=set)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _open: set[socket.socket] = field(default_factory=set)

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self._selector.close()

    def listen(self, listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            [sock] = self._sockets(listener.place, listener.protocol, listener.address, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((listener.address, listener.port))
            if listener.protocol == "udp":
                self._register(sock, lambda sock=sock, place=listener.place: self._answer_datagrams(sock, place))
            else:
                sock.listen(1024)
                self._register(sock, lambda sock=sock, place=listener.place: self._accept(sock, place))

    def watch(self, places: Iterable[str]) -> None:
        """Look at every packet that arrives at or leaves these places."""
        for place in places:
            family, kind = socket.AF_PACKET, socket.SOCK_DGRAM
            sock = run_in(self.namespaces[place], socket.socket, family, kind, socket.htons(_ETH_P_ALL))
            self._register(sock, lambda sock=sock, place=place: self._look(sock, place))

    def send(self, probes: Sequence[Probe]) -> list[Connection]:
        """Connections for the probes, in their order, each with what was seen; closed unless they are to be kept.

        All of them are under way together, `AT_ONCE` at a time.
        """
        self.reached.clear()
        made: list[Connection] = []
        for start in range(0, len(probes), AT_ONCE):
            batch = self._start(probes[start : start + AT_ONCE])
            self._run_until_seen(batch)
            for one in batch:
                if not one.probe.is_kept:
                    self._forget(one.sock)
            made += batch
        return made

    def ask_again(self, connection: Connection) -> Seen:
        """What a connection that is still open reaches now."""
        connection.seen = None
        connection.deadline = time.monotonic() + PATIENCE
        try:
            connection.sock.send(b"?")
        except OSError as error:
            return Seen(errno.errorcode[error.errno or 0])
        self._run_until_seen([connection])
        assert connection.seen is not None
        return connection.seen

    def _sockets(self, place: str, protocol: str, address: str, count: int) -> list[socket.socket]:
        kind, number = _TYPE[protocol]
        family = _FAMILY[version_of(address)]
        return run_in(self.namespaces[place], lambda: [socket.socket(family, kind, number) for _ in range(count)])

    def _register(self, sock: socket.socket, callback: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        sock.setblocking(False)
        self._open.add(sock)
        self._selector.register(sock, events, callback)

    def _forget(self, sock: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        self._open.discard(sock)
        sock.close()

    def _run_until_seen(self, connections: Sequence[Connection]) -> None:
        while left := [one for one in connections if one.seen is None]:
            now = time.monotonic()
            for one in left:
                if one.deadline <= now:
                    one.seen = Seen("silent")
            for key, _ in self._selector.select(max(0.0, min(one.deadline for one in left) - now)):
                key.data()

    def _start(self, probes: Sequence[Probe]) -> list[Connection]:
        started = []
        kinds: dict[tuple[str, str, int], list[int]] = {}
        for number, probe in enumerate(probes):
            kinds.setdefault((probe.place, probe.protocol, version_of(probe.address)), []).append(number)
        made: dict[int, socket.socket] = {}
        for (place, protocol, _), numbers in kinds.items():
            sockets = self._sockets(place, protocol, probes[numbers[0]].address, len(numbers))
            made |= dict(zip(numbers, sockets, strict=True))
        for number, probe in enumerate(probes):
            patience = SILENCE if probe.is_silent else PATIENCE
            connection = Connection(probe, made[number], time.monotonic() + patience)
            self._connect(connection)
            started.append(connection)
        return started

    def _connect(self, connection: Connection) -> None:
        probe, sock = connection.probe, connection.sock
        version = version_of(probe.address)
        sock.setsockopt(*_RECVERR[version], 1)
        sock.setsockopt(*_TRAFFIC_CLASS[version], probe.mark << 2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(probe.source_port != 0))
        sock.bind((probe.source, probe.source_port))
        is_datagram = probe.protocol == "udp"
        events = selectors.EVENT_READ if is_datagram else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._register(sock, lambda: self._progress(connection), events)
        try:
            sock.connect((probe.address, probe.port))
            if is_datagram:
                connection.is_connected = True
                sock.send(b"?")
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(connection, error.errno or 0)

    def _progress(self, connection: Connection) -> None:
        if connection.seen is not None:
            return
        try:
            if connection.is_connected:
                self._take_answer(connection)
            else:
                self._take_connection(connection)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, error.errno or 0)

    def _take_connection(self, connection: Connection) -> None:
        sock = connection.sock
        if failure := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(connection, failure)
            return
        connection.is_connected = True
        self._selector.modify(sock, selectors.EVENT_READ, lambda: self._progress(connection))
        if connection.probe.only_connects:
            connection.seen = Seen("connected", sender=_name(sock.getsockname()))
        else:
            sock.send(b"?")

    def _take_answer(self, connection: Connection) -> None:
        answer = connection.sock.recv(4096)
        sender = _name(connection.sock.getsockname())
        connection.seen = Seen("answered", *json.loads(answer), sender=sender) if answer else Seen("closed")

    def _fail(self, connection: Connection, number: int) -> None:
        """A connection's end. The error queue tells whether an ICMP message or a TCP reset refused it."""
        outcome = errno.errorcode[number]
        if number == errno.ECONNREFUSED:
            outcome = "refused" if _icmp_error(connection.sock) in _PORT_UNREACHABLE else "reset"
        elif number == errno.EPERM:  # what a local sender of a datagram gets when a rule drops it
            outcome = "silent"
        connection.seen = Seen(outcome)

    def _accept(self, listener: socket.socket, place: str) -> None:
        with suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                self._register(sock, lambda sock=sock: self._answer(sock, place))

    def _answer(self, sock: socket.socket, place: str) -> None:
        try:
            asked = sock.recv(64)
            if asked:
                sock.send(_answer(place, sock.getsockname(), sock.getpeername()))
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # the client is gone
        self._forget(sock)

    def _answer_datagrams(self, sock: socket.socket, place: str) -> None:
        with suppress(BlockingIOError):
            while True:
                _, peer = sock.recvfrom(64)
                sock.sendto(_answer(place, sock.getsockname(), peer), peer)

    def _look(self, sock: socket.socket, place: str) -> None:
        with suppress(BlockingIOError):
            while True:
                if mark := _mark_of_request(sock.recv(128)):
                    self.reached.add((mark, place))


def _answer(place: str, local: tuple, peer: tuple) -> bytes:
    return json.dumps([place, _name(local), _name(peer)]).encode()


def _name(address: tuple) -> str:
    return endpoint(address[0], address[1])


def _icmp_error(sock: socket.socket) -> tuple[int, int, int] | None:
    """Origin, type and code of the last ICMP error; None: there was none."""
    try:
        _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for _, _, data in ancillary:
        _, origin, kind, code, *_ = _EXTENDED_ERROR.unpack_from(data)
        return origin, kind, code
    return None


def _mark_of_request(packet: bytes) -> int:
    """The code point of a first TCP, SCTP or UDP packet of a flow; 0 of anything else."""
    if packet[0] >> 4 == 4:
        mark, protocol, header = packet[1] >> 2, packet[9], (packet[0] & 0xF) * 4
    else:
        mark, protocol, header = ((packet[0] & 0xF) << 4 | packet[1] >> 4) >> 2, packet[6], 40
    if protocol == socket.IPPROTO_TCP:
        return mark if packet[header + 13] & _SYN_AND_ACK == _SYN else 0
    return mark if protocol in (socket.IPPROTO_UDP, socket.IPPROTO_SCTP) else 0
