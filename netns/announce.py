"""Answers ARP and NDP for addresses that no interface has, and says aloud when one has moved here.

A kernel's own proxy neighbour entry would answer only where the route to the address leaves by another interface, and
after a random part of proxy_delay. A packet socket hears the question and answers it at once.

Law: frames are values; only `Announcer` touches a socket.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Collection
from typing import Final

from netns.namespace import Namespace, run_in

BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = ipaddress.IPv6Address("ff02::1").packed
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
_ICMPV6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_TARGET_LINK_ADDRESS: Final = 2
_HOP_LIMIT: Final = 255
_ETHERNET, _IPV6_HEADER = 14, 40
_OUTGOING: Final = 4  # PACKET_OUTGOING: what this very machine sends
_SO_ATTACH_FILTER: Final = 26
_RECEIVE: Final = 2048
# Classic BPF: load byte (half word) at an offset, compare, accept or drop.
_LDB, _LDH, _JEQ, _RET = 0x30, 0x28, 0x15, 0x06
_ONLY_REQUESTS: Final = ((_LDH, 0, 0, 20), (_JEQ, 0, 1, _REQUEST), (_RET, 0, 0, 0xFFFF), (_RET, 0, 0, 0))
_ONLY_SOLICITATIONS: Final = (
    (_LDB, 0, 0, 20),
    (_JEQ, 0, 3, _ICMPV6),
    (_LDB, 0, 0, 54),
    (_JEQ, 0, 1, _SOLICITATION),
    (_RET, 0, 0, 0xFFFF),
    (_RET, 0, 0, 0),
)


def answer(frame: bytes, mac: bytes, addresses: Collection[str]) -> bytes | None:
    """The answer to a question for one of these addresses; None when it is no such question.

    Args:
        frame: as it came in, Ethernet header first.
        mac: what the answer says.
        addresses: both families, as Python's ipaddress writes them.
    """
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _ETH_ARP:
        return _arp_answer(frame, mac, addresses)
    return _ndp_answer(frame, mac, addresses) if kind == _ETH_IPV6 else None


def announcement(address: str, mac: bytes) -> bytes:
    """A gratuitous ARP or an unsolicited neighbour advertisement, for everybody on the link."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return _arp(_REQUEST, mac, parsed.packed, b"\0" * 6, parsed.packed)
    return _advertisement(mac, parsed.packed, _ALL_NODES, b"\x33\x33" + _ALL_NODES[12:], _OVERRIDE)


def _arp_answer(frame: bytes, mac: bytes, addresses: Collection[str]) -> bytes | None:
    if len(frame) < _ETHERNET + _ARP.size:
        return None
    *_, operation, asker, asker_ip, _, wanted = _ARP.unpack_from(frame, _ETHERNET)
    if operation != _REQUEST or asker_ip == wanted or str(ipaddress.IPv4Address(wanted)) not in addresses:
        return None
    return _arp(_REPLY, mac, wanted, asker, asker_ip)


def _arp(operation: int, mac: bytes, address: bytes, other: bytes, other_ip: bytes) -> bytes:
    header = (other if any(other) else BROADCAST) + mac + _ETH_ARP.to_bytes(2, "big")
    return header + _ARP.pack(1, 0x0800, 6, 4, operation, mac, address, other, other_ip)


def _ndp_answer(frame: bytes, mac: bytes, addresses: Collection[str]) -> bytes | None:
    message = frame[_ETHERNET + _IPV6_HEADER :]
    if len(message) < 24 or frame[20] != _ICMPV6 or message[0] != _SOLICITATION or frame[21] != _HOP_LIMIT:
        return None
    wanted, asker_ip = message[8:24], frame[22:38]
    if str(ipaddress.IPv6Address(wanted)) not in addresses:
        return None
    if not any(asker_ip):  # somebody asks whether the address is free: everybody is told that it is not
        return announcement(str(ipaddress.IPv6Address(wanted)), mac)
    return _advertisement(mac, wanted, asker_ip, frame[6:12], _SOLICITED | _OVERRIDE)


def _advertisement(mac: bytes, address: bytes, to_ip: bytes, to: bytes, flags: int) -> bytes:
    option = bytes((_TARGET_LINK_ADDRESS, 1)) + mac
    body = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, flags) + address + option
    pseudo = address + to_ip + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + _checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _HOP_LIMIT) + address + to_ip
    return to + mac + _ETH_IPV6.to_bytes(2, "big") + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Announcer:
    """One interface that answers for addresses it does not have.

    Args:
        namespace: whose interface.
        ifname: the interface.

    Raises:
        NetnsError: there is no such namespace.
        OSError: there is no such interface.
    """

    def __init__(self, namespace: Namespace, ifname: str) -> None:
        self._addresses: frozenset[str] = frozenset()
        self.sockets = run_in(namespace, _open, ifname)
        self._mac: bytes = self.sockets[0].getsockname()[4]

    def answer_for(self, addresses: Collection[str]) -> None:
        """Answers for these addresses from now on, and for no others."""
        self._addresses = frozenset(addresses)

    def announce(self, address: str) -> None:
        """Tells everybody on the link that the address is here; where the link is down, nobody."""
        self._send(announcement(address, self._mac))

    def read(self, source: socket.socket) -> None:
        """Takes one frame from one of `sockets`, which is readable, and answers it if it asks for an address."""
        try:
            frame, sender = source.recvfrom(_RECEIVE)
        except OSError:
            return  # the link went down; the socket works on when it is up again
        if sender[2] != _OUTGOING and (reply := answer(frame, self._mac, self._addresses)) is not None:
            self._send(reply)

    def close(self) -> None:
        """Answers no more."""
        for sock in self.sockets:
            sock.close()

    def _send(self, frame: bytes) -> None:
        try:
            self.sockets[0].send(frame)
        except OSError:
            return  # the link is down: there is nobody to hear it


def _open(ifname: str) -> tuple[socket.socket, socket.socket]:
    return _listen(ifname, _ETH_ARP, _ONLY_REQUESTS), _listen(ifname, _ETH_IPV6, _ONLY_SOLICITATIONS)


def _listen(ifname: str, protocol: int, program: tuple[tuple[int, int, int, int], ...]) -> socket.socket:
    """A packet socket that is woken by the questions alone."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer)))
    sock.bind((ifname, protocol))
    return sock
