"""The table's sets and maps: what their elements are made of, in the kernel's bytes and in nft's text.

Law: pure. A key, and the data of an endpoint, are kept as the bytes that the kernel compares; text is made from them
where somebody wants to read it. Each part of a key takes whole words of four bytes.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.statements import PROTOCOL_NAMES, PROTOCOLS, Verdict
from kproxy.proxy.family import Family, split_host_port
from kproxy.proxy.plan import EndpointSet

IS_MAP, HAS_TIMEOUT, IS_DYNAMIC = 0x8, 0x10, 0x20
"""Flags of a set: NFT_SET_MAP, NFT_SET_TIMEOUT, NFT_SET_EVAL."""
VERDICT_TYPE = 0xFFFFFF00
AFFINITY_SIZE = 65535
"""Clients that a set of a dynamic kind holds where nft is told no number."""

_TYPE_BITS = 6


class Part(Enum):
    """One part of a key or of an endpoint: nft's name, its number for the type, and how a rule writes it."""

    IPV4 = ("ipv4_addr", 7, "ip daddr")
    IPV6 = ("ipv6_addr", 8, "ip6 daddr")
    PROTOCOL = ("inet_proto", 12, "meta l4proto")
    PORT = ("inet_service", 13, "th dport")
    NUMBER = ("integer", 4, "numgen random mod 1")

    def __init__(self, type_name: str, type_number: int, example: str) -> None:
        self.type_name = type_name
        self.type_number = type_number
        self.example = example

    @property
    def size(self) -> int:
        """Bytes."""
        return 16 if self is Part.IPV6 else 4


class Holds(Enum):
    """What an element of a container leads to."""

    NOTHING = "set"
    VERDICT = "verdict map"
    ENDPOINT = "endpoint map"
    CLIENTS = "clients that stay"


class Container(NamedTuple):
    """A set or a map.

    Attributes:
        name: its name.
        key: what its keys are made of.
        holds: what they lead to.
    """

    name: str
    key: tuple[Part, ...]
    holds: Holds = Holds.NOTHING

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return sum(part.size for part in self.key)

    @property
    def is_typed_by_rules(self) -> bool:
        """Whether its type is given by examples of expressions: a number has no type that could be named."""
        return Part.NUMBER in self.key


def address_part(family: Family) -> Part:
    """An address of a family."""
    return Part.IPV4 if family is Family.IPV4 else Part.IPV6


def type_number(parts: tuple[Part, ...]) -> int:
    """The number that nft gives a type or a concatenation of types."""
    number = 0
    for part in parts:
        number = number << _TYPE_BITS | part.type_number
    return number


def fixed_containers(family: Family) -> tuple[Container, ...]:
    """Those that are there whatever Services there are, but for the set of node port addresses."""
    address = address_part(family)
    connection = (address, Part.PROTOCOL, Part.PORT)
    node_port = connection[1:]
    endpoints = tuple(
        Container(
            names.endpoints_map(which, is_node_port=is_node_port),
            (*(node_port if is_node_port else connection), Part.NUMBER),
            Holds.ENDPOINT,
        )
        for is_node_port in (False, True)
        for which in EndpointSet
    )
    return (
        Container(names.CLUSTER_IPS, (address,)),
        Container(names.HAIRPIN_CONNECTIONS, (address, *connection)),
        Container(names.SERVICE_IPS, connection, Holds.VERDICT),
        Container(names.SERVICE_NODE_PORTS, node_port, Holds.VERDICT),
        Container(names.FIREWALL_IPS, connection, Holds.VERDICT),
        Container(names.NO_ENDPOINT_SERVICES, connection, Holds.VERDICT),
        Container(names.NO_ENDPOINT_NODE_PORTS, node_port, Holds.VERDICT),
        *endpoints,
    )


def node_port_addresses(family: Family) -> Container:
    """The addresses on which node ports answer."""
    return Container(names.NODE_PORT_IPS, (address_part(family),))


def clients(name: str, family: Family) -> Container:
    """The clients that stay with an endpoint."""
    return Container(name, (address_part(family),), Holds.CLIENTS)


# keys

_PROTOCOL_BYTES = {name: struct.pack("=B3x", number) for name, number in PROTOCOLS.items()}
_PORT = struct.Struct("!H2x")
_NUMBER = struct.Struct("=I")


def packed_address(address: str) -> bytes:
    """An address as part of a key."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def node_port_key(protocol: str, port: int) -> bytes:
    """Protocol (by its Kubernetes name) and port."""
    return _PROTOCOL_BYTES[protocol] + _PORT.pack(port)


def address_key(address: str, protocol: str, port: int) -> bytes:
    """Address, protocol (by its Kubernetes name) and port."""
    return packed_address(address) + _PROTOCOL_BYTES[protocol] + _PORT.pack(port)


def packed_endpoint(endpoint: str) -> bytes:
    """Address and port of "ip:port" or "[ip]:port"."""
    address, _, port = endpoint.rpartition(":")
    if address[0] == "[":
        return socket.inet_pton(socket.AF_INET6, address[1:-1]) + _PORT.pack(int(port))
    return socket.inet_pton(socket.AF_INET, address) + _PORT.pack(int(port))


def hairpin_key(endpoint: str, protocol: str) -> bytes:
    """A connection from an endpoint to itself."""
    address, port = split_host_port(endpoint)
    packed = packed_address(address)
    return packed + packed + _PROTOCOL_BYTES[protocol] + _PORT.pack(port)


def number(value: int) -> bytes:
    """A number as part of a key."""
    return _NUMBER.pack(value)


# elements


class Decision(NamedTuple):
    """A verdict, and the Service that it is about."""

    verdict: Verdict
    comment: str


Data = bytes | Decision
"""What a key leads to: nothing (no bytes), an endpoint, or a verdict."""


def key_text(parts: tuple[Part, ...], key: bytes) -> str:
    """A key as nft writes it."""
    return " . ".join(_texts(parts, key))


def _texts(parts: tuple[Part, ...], key: bytes) -> Iterator[str]:
    offset = 0
    for part in parts:
        piece = key[offset : offset + part.size]
        offset += part.size
        match part:
            case Part.IPV4 | Part.IPV6:
                yield str(ipaddress.ip_address(piece))
            case Part.PROTOCOL:
                yield PROTOCOL_NAMES.get(piece[0], str(piece[0]))
            case Part.PORT:
                yield str(_PORT.unpack(piece)[0])
            case Part.NUMBER:
                yield str(_NUMBER.unpack(piece)[0])


def element_text(container: Container, key: bytes, data: Data) -> str:
    """An element as nft writes it."""
    text = key_text(container.key, key)
    if isinstance(data, Decision):
        return f'{text} comment "{data.comment}" : {data.verdict.text}'
    if not data:
        return text
    address = Part.IPV4 if len(data) == Part.IPV4.size + Part.PORT.size else Part.IPV6
    return f"{text} : {key_text((address, Part.PORT), data)}"


def declaration(container: Container, family: Family) -> str:
    """What a container is, as nft writes it, on one line."""
    address = address_part(family)
    key = " . ".join(part.example if container.is_typed_by_rules else part.type_name for part in container.key)
    match container.holds:
        case Holds.NOTHING:
            return f"type {key}"
        case Holds.CLIENTS:
            return f"type {key} ; size {AFFINITY_SIZE} ; flags dynamic,timeout"
        case Holds.VERDICT:
            return f"type {key} : verdict"
        case Holds.ENDPOINT:
            return f"typeof {key} : {address.example} . {Part.PORT.example}"
