"""The packet worker: the one module that imports scapy.

It imports scapy once, then forks a child into every namespace that its client (`netns.probe`) hands it. A child sends
through raw layer 3 sockets with a header of our own (IP_HDRINCL), so that what a node sends crosses its OUTPUT hooks
like any program's packets, and listens on all interfaces and to what the namespace itself gets. Every packet carries a
token: 8 bits of the run and 24 of a counter, as the TCP sequence number or in the datagram's payload, which address
translation keeps.

Requests and answers are JSON lines; what they hold is described at `netns.probe`.
"""

from __future__ import annotations

import errno
import gc
import ipaddress
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6
from scapy.packet import Packet, Raw, raw

from netns import libc

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("qq")
RECEIVE_BUFFER = 8 << 20
"""Bytes: room for what arrives while a thousand packets are being built (about 0.3 s)."""

RUN_BITS = 8
COUNTER_BITS = 24
STATION_TOKENS = 1 << 16
"""How far apart the counters of two stations start: probes that one may send before it uses its neighbour's tokens."""

LARGEST = 65_535
ANCILLARY = 256
ICMP_UNREACHABLE = b"\x03"
ICMPV6_UNREACHABLE = b"\x01"
MAX_SIGHTINGS = 100_000
PAYLOAD = b"kproxy-probe "
TOKEN_DIGITS = 8
SOURCE_PORTS = (10_240, 29_999)
"""Below node ports (30000) and the kernel's own choices (32768), so that probes meet neither."""

NO_ROUTE_ERRORS = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
BLOCKED = errno.EPERM
"""What sendto says when a rule in OUTPUT dropped (or rejected) the packet."""

ICMP_REFUSALS = {4: {3, 9, 10, 13}, 6: {1, 4, 5, 6}}
"""Codes of destination unreachable that mean "refused"; the others mean that there is no way there."""


SEES_WIRE = b"w"


class Seen(NamedTuple):
    """One sighting; the fields of `netns.probe.Sighting` in their order."""

    interface: str
    direction: str
    kind: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    ttl: int
    token: int
    at: int


@dataclass
class Pending:
    """A probe on its way."""

    token: int
    protocol: str
    source: str
    source_port: int
    destination: str
    port: int
    packet: bytes = field(default=b"", repr=False)
    result: str = ""
    detail: str = ""
    guard: socket.socket | None = field(default=None, repr=False)

    def decide(self, result: str, detail: str) -> None:
        """The first word counts, but an ICMP error is more than the EPERM of a rule in OUTPUT."""
        if not self.result:
            self.result, self.detail = result, detail

    def outcome(self) -> dict[str, Any]:
        """As `netns.probe.Outcome` has it."""
        return {
            "result": self.result or "silent",
            "token": self.token,
            "source": self.source,
            "source_port": self.source_port,
            "detail": self.detail,
        }


class Sender:
    """Builds and sends probes; knows which are pending.

    Args:
        run: 8 bits that all stations of one worker share.
        first: where this station's counter starts, so that no two stations use one token.
    """

    def __init__(self, run: int, first: int) -> None:
        self.run = run
        self._next = first
        self._port = random.randint(*SOURCE_PORTS)  # noqa: S311 - not a secret
        self._sockets: dict[int, socket.socket] = {}
        self.pending: dict[int, Pending] = {}
        self.by_port: dict[tuple[str, int], Pending] = {}

    def is_token(self, number: int) -> bool:
        """Whether a sequence number is one of this run's tokens."""
        return number >> COUNTER_BITS == self.run

    def send(self, probe: dict[str, Any]) -> Pending:
        """Sends one probe; its result is already there if the kernel refused to send it."""
        family = ipaddress.ip_address(probe["destination"]).version
        destination = str(ipaddress.ip_address(probe["destination"]))
        pending = Pending(0, probe["protocol"], probe["source"] or "", 0, destination, probe["port"])
        try:
            if not pending.source:
                pending.source = _chosen_source(pending.destination, family)
            self._claim(pending, probe["source_port"])
            pending.packet = raw(_packet(pending, family, probe["ttl"]))
        except OSError as error:
            self._refused(pending, error)
        else:
            self.transmit(pending)
        return pending

    def transmit(self, pending: Pending) -> None:
        """Puts the probe on its way, for the first time or, as any client would, once more."""
        try:
            kind = 6 if ":" in pending.destination else 4
            self._socket(kind).sendto(pending.packet, (pending.destination, 0))
        except OSError as error:
            self._refused(pending, error)

    def _refused(self, pending: Pending, error: OSError) -> None:
        if error.errno in NO_ROUTE_ERRORS:
            pending.decide("no-route", f"sendto: {error.strerror}")
            return
        pending.detail = f"sendto: {error.strerror}"
        if error.errno != BLOCKED:
            raise error

    def forget(self) -> None:
        """Gives the source ports of all probes back."""
        for pending in self.pending.values():
            if pending.guard is not None:
                pending.guard.close()
        self.pending.clear()
        self.by_port.clear()

    def _claim(self, pending: Pending, wanted: int | None) -> None:
        """A token and a source port; for UDP the port is held open, so that no echo server's port is ever used."""
        # Never all ones: one more would be another run's top byte.
        self._next = (self._next + 1) % ((1 << COUNTER_BITS) - 1)
        pending.token = self.run << COUNTER_BITS | self._next
        pending.source_port = wanted or self._free_port(pending)
        self.pending[pending.token] = pending
        self.by_port[pending.protocol, pending.source_port] = pending

    def _free_port(self, pending: Pending) -> int:
        first, last = SOURCE_PORTS
        for _ in range(last - first):
            self._port = first if self._port >= last else self._port + 1
            if (pending.protocol, self._port) in self.by_port:
                continue
            if pending.protocol == "TCP":
                return self._port
            family = socket.AF_INET6 if ":" in pending.source else socket.AF_INET
            guard = socket.socket(family, socket.SOCK_DGRAM)
            try:
                guard.bind(("", self._port))
            except OSError:
                guard.close()
                continue
            pending.guard = guard
            return self._port
        raise OSError(errno.EADDRINUSE, "no free source port")

    def _socket(self, family: int) -> socket.socket:
        if family not in self._sockets:
            kind = socket.AF_INET6 if family == 6 else socket.AF_INET
            # For both families IPPROTO_RAW means that the header is ours.
            self._sockets[family] = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
        return self._sockets[family]


class Sniffer:
    """Reads all interfaces of the namespace, and what its own stack delivers, and turns this run's packets into `Seen`.

    A packet socket sees a packet as it is on the wire: on its way in before the first rule, on its way out after the
    last. Only a raw socket sees what address translation has made of it for the namespace itself (``local``), which is
    what an answer is judged by: a node rewrites the answers to its own packets only there.
    """

    def __init__(self, sender: Sender, *, sees_wire: bool) -> None:
        self._sender = sender
        self._wire = []
        if sees_wire:
            self._wire.append(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)))
        self._raw4 = [socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) for protocol in HANDLERS4]
        self._raw6 = _raw6_sockets()
        self.sockets = [*self._wire, *self._raw4, *self._raw6]
        for listening in self.sockets:
            listening.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            listening.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            listening.setblocking(False)
        self.seen: deque[Seen] = deque(maxlen=MAX_SIGHTINGS)

    def drain(self) -> None:
        """Takes in everything that the kernel has for us."""
        for listening in self._wire:
            for data, at, (interface, ethertype, packet_type, *_), _ in _received(listening):
                if ethertype in (ETH_P_IP, ETH_P_IPV6) and packet_type != socket.PACKET_OTHERHOST:
                    direction = "out" if packet_type == socket.PACKET_OUTGOING else "in"
                    packet = self._dissect4(data) if ethertype == ETH_P_IP else self._dissect6(data)
                    self._take(packet, interface, direction, at)
        for listening in self._raw4:
            for data, at, _, _ in _received(listening):
                self._take(self._dissect4(data), "", "local", at)
        for listening in self._raw6:
            for data, at, address, told in _received(listening):
                if self._may_be_ours(listening.proto, data, 0):
                    self._take(_delivered6(listening.proto, data, address[0], told), "", "local", at)

    def _dissect4(self, data: bytes) -> Packet | None:
        """The packet as scapy sees it; None, a hundred times cheaper, if it is none of ours."""
        if len(data) < 20 or not self._may_be_ours(data[9], data, 4 * (data[0] & 0xF)):
            return None
        return IP(data)

    def _dissect6(self, data: bytes) -> Packet | None:
        return IPv6(data) if len(data) >= 40 and self._may_be_ours(data[6], data, 40) else None

    def _may_be_ours(self, protocol: int, data: bytes, start: int) -> bool:
        """Whether what begins at ``start`` can be a probe of this run, or come back for one."""
        match protocol:
            case socket.IPPROTO_TCP:
                # The top byte of the sequence or acknowledgement number.
                return self._sender.run in data[start + 4 : start + 9 : 4]
            case socket.IPPROTO_UDP:
                port = int.from_bytes(data[start + 2 : start + 4], "big")
                return data.startswith(PAYLOAD, start + 8) or ("UDP", port) in self._sender.by_port
            case socket.IPPROTO_ICMP:
                return data[start : start + 1] == ICMP_UNREACHABLE
            case _:
                return protocol == socket.IPPROTO_ICMPV6 and data[start : start + 1] == ICMPV6_UNREACHABLE

    def _take(self, packet: Packet | None, interface: str, direction: str, at: int) -> None:
        if packet is None:
            return
        is_v6 = isinstance(packet, IPv6)
        handler = HANDLERS6.get(packet.nh) if is_v6 else HANDLERS4.get(packet.proto)
        token, kind, detail = handler(self._sender, packet) if handler else (0, "", "")
        if not token:
            return
        ttl = packet.hlim if is_v6 else packet.ttl
        sport, dport = (packet.payload.sport, packet.payload.dport) if kind != "icmp" else (0, 0)
        seen = Seen(interface, direction, kind, packet.src, sport, packet.dst, dport, ttl, token, at)
        self.seen.append(seen)
        if direction == "local":
            self._settle(seen, detail)

    def _settle(self, seen: Seen, detail: str) -> None:
        """Decides the probe that a delivered packet answers."""
        pending = self._sender.pending.get(seen.token)
        if pending is None or seen.destination != pending.source:
            return
        if seen.kind == "icmp":
            result, _, words = detail.partition(" ")
            pending.decide(result, words)
            return
        if seen.destination_port != pending.source_port:
            return
        is_dialled = (seen.source, seen.source_port) == (pending.destination, pending.port)
        match seen.kind:
            case "syn-ack" | "reply" if is_dialled:
                pending.decide("answered", seen.kind)
            case "rst" if is_dialled:
                pending.decide("refused", seen.kind)
            case "syn-ack" | "reply" | "rst":
                pending.detail = pending.detail or f"{seen.kind} from {seen.source} port {seen.source_port}"
            case _:
                pass


def _raw6_sockets() -> list[socket.socket]:
    """What hears IPv6 packets that are delivered here; nothing where the kernel was booted without IPv6."""
    try:
        return [_raw6(protocol) for protocol in HANDLERS6]
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return []


def _raw6(protocol: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    return listening


def _received(listening: socket.socket) -> Iterator[tuple[bytes, int, Any, dict[tuple[int, int], bytes]]]:
    """Everything that waits: data, the kernel's time of it (ns), the address, and what else the kernel tells of it."""
    while True:
        try:
            data, ancillary, _, address = listening.recvmsg(LARGEST, ANCILLARY)
        except BlockingIOError:
            return
        told = {(level, kind): value for level, kind, value in ancillary}
        seconds, nanoseconds = TIMESPEC.unpack(told[socket.SOL_SOCKET, SO_TIMESTAMPNS][: TIMESPEC.size])
        yield data, seconds * 1_000_000_000 + nanoseconds, address, told


def _delivered6(protocol: int, data: bytes, source: str, told: dict[tuple[int, int], bytes]) -> Packet:
    """A raw IPv6 socket leaves the header out and tells of it beside the data."""
    hops = int.from_bytes(told[socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT], sys.byteorder)
    destination = socket.inet_ntop(socket.AF_INET6, told[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO][:16])
    layer = {socket.IPPROTO_TCP: TCP, socket.IPPROTO_UDP: UDP}.get(protocol, ICMPv6DestUnreach)
    return IPv6(src=source, dst=destination, hlim=hops, nh=protocol) / layer(data)


def _tcp(sender: Sender, packet: Packet) -> tuple[int, str, str]:
    segment = packet.getlayer(TCP)
    if segment is None:
        return 0, "", ""
    flags = str(segment.flags)
    if "S" in flags:
        number, kind = (segment.ack - 1, "syn-ack") if "A" in flags else (segment.seq, "syn")
    elif "R" in flags:
        number, kind = (segment.ack - 1, "rst") if "A" in flags else (segment.seq - 1, "reset")
    else:
        return 0, "", ""
    return (number, kind, "") if sender.is_token(number) else (0, "", "")


def _udp(sender: Sender, packet: Packet) -> tuple[int, str, str]:
    datagram = packet.getlayer(UDP)
    if datagram is None:
        return 0, "", ""
    pending = sender.by_port.get(("UDP", datagram.dport))
    if pending is not None:
        return pending.token, "reply", ""
    token = _payload_token(bytes(datagram.payload))
    return (token, "datagram", "") if token and sender.is_token(token) else (0, "", "")


def _icmp(sender: Sender, packet: Packet) -> tuple[int, str, str]:
    message = packet.getlayer(ICMP)
    if message is None or message.type != 3:
        return 0, "", ""
    result = "refused" if message.code in ICMP_REFUSALS[4] else "no-route"
    token = _quoted_token(sender, packet.getlayer(IPerror))
    return token, "icmp", f"{result} ICMP 3/{message.code} from {packet[IP].src}"


def _icmp6(sender: Sender, packet: Packet) -> tuple[int, str, str]:
    message = packet.getlayer(ICMPv6DestUnreach)
    if message is None:
        return 0, "", ""
    result = "refused" if message.code in ICMP_REFUSALS[6] else "no-route"
    token = _quoted_token(sender, packet.getlayer(IPerror6))
    return token, "icmp", f"{result} ICMPv6 1/{message.code} from {packet[IPv6].src}"


Handler = Callable[[Sender, Packet], tuple[int, str, str]]
HANDLERS4: dict[int, Handler] = {socket.IPPROTO_TCP: _tcp, socket.IPPROTO_UDP: _udp, socket.IPPROTO_ICMP: _icmp}
HANDLERS6: dict[int, Handler] = {socket.IPPROTO_TCP: _tcp, socket.IPPROTO_UDP: _udp, socket.IPPROTO_ICMPV6: _icmp6}


def _quoted_token(sender: Sender, quoted: Packet | None) -> int:
    """The token of the packet that an ICMP error quotes; 0 if it is none of ours."""
    if quoted is None:
        return 0
    segment = quoted.getlayer(TCPerror)
    if segment is not None:
        return int(segment.seq) if sender.is_token(segment.seq) else 0
    datagram = quoted.getlayer(UDPerror)
    if datagram is None:
        return 0
    token = _payload_token(bytes(datagram.payload))
    if token and sender.is_token(token):
        return token
    pending = sender.by_port.get(("UDP", datagram.sport))
    return pending.token if pending else 0


def _payload_token(payload: bytes) -> int:
    if not payload.startswith(PAYLOAD):
        return 0
    try:
        return int(payload[len(PAYLOAD) : len(PAYLOAD) + TOKEN_DIGITS], 16)
    except ValueError:
        return 0


def _packet(pending: Pending, family: int, ttl: int) -> Packet:
    if family == 6:
        header = IPv6(src=pending.source, dst=pending.destination, hlim=ttl)
    else:
        header = IP(src=pending.source, dst=pending.destination, ttl=ttl)
    ports = {"sport": pending.source_port, "dport": pending.port}
    if pending.protocol == "TCP":
        return header / TCP(flags="S", seq=pending.token, window=64_240, options=[("MSS", 1460)], **ports)
    return header / UDP(**ports) / Raw(PAYLOAD + f"{pending.token:0{TOKEN_DIGITS}x}".encode())


def _chosen_source(destination: str, family: int) -> str:
    """The address that an ordinary socket would send from.

    Raises:
        OSError: there is no route.
    """
    with socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((destination, 9))
        return str(asking.getsockname()[0])


class Child:
    """The process in one namespace: answers its client until that hangs up."""

    def __init__(self, connection: socket.socket, run: int, first: int, *, sees_wire: bool) -> None:
        self._connection = connection
        self._sender = Sender(run, first)
        self._sniffer = Sniffer(self._sender, sees_wire=sees_wire)
        self._poll = select.poll()
        for listening in self._sniffer.sockets:
            self._poll.register(listening, select.POLLIN)

    def serve(self) -> None:
        """Answers requests, one line each, until the end of input."""
        for line in self._connection.makefile("rb"):
            request = json.loads(line)
            answer: dict[str, Any]
            try:
                answer = {"found": self._probe(request) if request["do"] == "probe" else self._sightings(request)}
            except (OSError, ValueError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self._connection.sendall(json.dumps(answer).encode() + b"\n")

    def _probe(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self._sniffer.drain()
        sent = [self._sender.send(probe) for probe in request["probes"]]
        for attempt in range(request["attempts"]):
            if attempt:
                for pending in sent:
                    if not pending.result:
                        self._sender.transmit(pending)
            self._await(sent, time.monotonic() + request["timeout"] / request["attempts"])
        self._sender.forget()
        return [pending.outcome() for pending in sent]

    def _await(self, sent: list[Pending], deadline: float) -> None:
        """Takes in answers until all probes have one, or the time is over."""
        while True:
            self._sniffer.drain()
            left = deadline - time.monotonic()
            if left <= 0 or all(pending.result for pending in sent):
                return
            self._poll.poll(left * 1000)

    def _sightings(self, request: dict[str, Any]) -> list[Seen]:
        self._sniffer.drain()
        found = [
            seen
            for seen in self._sniffer.seen
            if (not request["kinds"] or seen.kind in request["kinds"]) and request["direction"] in ("", seen.direction)
        ]
        self._sniffer.seen.clear()
        return found


def main(descriptor: int) -> None:
    """Forks a child for every pair of descriptors (namespace, connection) that arrives, until the client hangs up.

    The byte that comes with them says whether the child looks at the wire or only at what its stack gets.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A terminal's Ctrl-C is for the client, which ends us by hanging up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # keeps scapy's pages shared with the children
    run = random.getrandbits(RUN_BITS)
    with socket.socket(fileno=descriptor) as client:
        for number in itertools.count():
            message, descriptors, _, _ = socket.recv_fds(client, 1, 2)
            if not message:
                return
            namespace, connection = descriptors
            if os.fork() == 0:
                client.close()
                first = number * STATION_TOKENS % (1 << COUNTER_BITS)
                _child(namespace, connection, run, first, sees_wire=message == SEES_WIRE)
            os.close(namespace)
            os.close(connection)


def _child(namespace: int, connection: int, run: int, first: int, *, sees_wire: bool) -> None:
    status = 1
    try:
        libc.setns(namespace)
        os.close(namespace)
        # Every address is given, so scapy's view of interfaces and routes, which is the parent's, is never asked.
        Child(socket.socket(fileno=connection), run, first, sees_wire=sees_wire).serve()
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's loop
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
