"""A network as a value: which namespaces, links, addresses, routes. Nothing here touches the system.

Law: frozen values that `dataclasses.asdict` turns into JSON; `build.build` makes them real.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import NamedTuple

# IFNAMSIZ is 16 with the closing zero.
MAX_INTERFACE_NAME = 15

# Linux wants no slash, no colon, no white space, and neither "." nor "..".
_INTERFACE_NAME = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")


class Role(StrEnum):
    """What a namespace is in the network; it decides its sysctls."""

    NODE = "node"
    POD = "pod"
    ROUTER = "router"
    CLIENT = "client"
    FABRIC = "fabric"


@dataclass(frozen=True)
class NamespaceSpec:
    """A network namespace with lo up and its role's sysctls set."""

    name: str
    role: Role


class End(NamedTuple):
    """One end of a link.

    Attributes:
        namespace: name of the namespace it is in.
        ifname: at most 15 characters.
        mac: empty lets the kernel choose one.
    """

    namespace: str
    ifname: str
    mac: str = ""


@dataclass(frozen=True)
class VethSpec:
    """A cable between two namespaces (or within one). It is made in place: no other namespace ever sees it."""

    a: End
    b: End
    mtu: int = 1500


@dataclass(frozen=True)
class BridgeSpec:
    """A switch without spanning tree.

    Attributes:
        ports: names of interfaces in the same namespace that are plugged into it.
    """

    namespace: str
    ifname: str
    ports: tuple[str, ...] = ()
    mtu: int = 1500
    mac: str = ""


@dataclass(frozen=True)
class VxlanSpec:
    """A tunnel end without learning or multicast: neighbours and forwarding entries say where packets go.

    Attributes:
        local: own underlay address; its family is the tunnel's.
        underlay: interface that carries the tunnel.
        port: UDP destination port (8472 is flannel's and Linux's old default, 4789 is IANA's).
        mtu: at most the underlay's less 50 (IPv4) or 70 (IPv6).
    """

    namespace: str
    ifname: str
    vni: int
    local: str
    underlay: str
    mtu: int
    port: int = 8472
    mac: str = ""


@dataclass(frozen=True)
class AddressSpec:
    """An address on an interface, as `10.244.1.1/32`. Usable at once: no duplicate address detection."""

    namespace: str
    ifname: str
    address: str


@dataclass(frozen=True)
class RouteSpec:
    """A route in the main table.

    Attributes:
        to: destination (`10.244.1.0/24`, `0.0.0.0/0`, `::/0`).
        via: next hop; None: the destination is on the link itself.
        dev: interface; may be empty when `via` says enough.
        onlink: take `via` to be on the link although no address says so.
        src: preferred source address; None lets the kernel choose.
    """

    namespace: str
    to: str
    via: str | None = None
    dev: str = ""
    onlink: bool = False
    src: str | None = None


@dataclass(frozen=True)
class NeighbourSpec:
    """A permanent entry of the neighbour table: `address` is at `mac`."""

    namespace: str
    dev: str
    address: str
    mac: str


@dataclass(frozen=True)
class ForwardingSpec:
    """A permanent entry of a tunnel's forwarding table: frames for `mac` go to the tunnel end at `to`."""

    namespace: str
    dev: str
    mac: str
    to: str


@dataclass(frozen=True)
class Topology:
    """A network, or a part to be added to one: what it names without defining is expected to be there.

    Attributes:
        alias: written on every link it makes (`ip link` shows it), to tell people whose it is.
    """

    namespaces: tuple[NamespaceSpec, ...] = ()
    veths: tuple[VethSpec, ...] = ()
    bridges: tuple[BridgeSpec, ...] = ()
    vxlans: tuple[VxlanSpec, ...] = ()
    addresses: tuple[AddressSpec, ...] = ()
    routes: tuple[RouteSpec, ...] = ()
    neighbours: tuple[NeighbourSpec, ...] = ()
    forwarding: tuple[ForwardingSpec, ...] = ()
    alias: str = ""

    def link_ends(self) -> Iterator[End]:
        """Every interface this topology makes."""
        for veth in self.veths:
            yield veth.a
            yield veth.b
        for bridge in self.bridges:
            yield End(bridge.namespace, bridge.ifname, bridge.mac)
        for vxlan in self.vxlans:
            yield End(vxlan.namespace, vxlan.ifname, vxlan.mac)

    def namespace_names(self) -> tuple[str, ...]:
        """Every namespace it defines or mentions, each once, in order of first mention."""
        names = [spec.name for spec in self.namespaces]
        names += [end.namespace for end in self.link_ends()]
        names += [address.namespace for address in self.addresses]
        names += [route.namespace for route in self.routes]
        names += [neighbour.namespace for neighbour in self.neighbours]
        names += [forwarding.namespace for forwarding in self.forwarding]
        return tuple(dict.fromkeys(names))


def merge(*parts: Topology) -> Topology:
    """One topology that holds all of `parts` in order; what two parts both say is said once. The first alias stands."""
    merged = {
        field.name: tuple(dict.fromkeys(item for part in parts for item in getattr(part, field.name)))
        for field in fields(Topology)
        if field.name != "alias"
    }
    return Topology(**merged, alias=next((part.alias for part in parts if part.alias), ""))


def derived_name(prefix: str, *parts: str) -> str:
    """An interface name of exactly 15 characters: the same for the same parts, another for others.

    Args:
        prefix: up to 7 readable characters in front, so that at least 40 bits of the digest remain.
        parts: what the name stands for.

    Raises:
        ValueError: the prefix is longer.
    """
    if len(prefix) > 7:
        raise ValueError(f"prefix {prefix!r} of an interface name is longer than 7 characters")
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    # base 32 in lower case: 5 bits a character
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    number = int.from_bytes(digest, "big")
    letters = (alphabet[(number >> (5 * position)) & 31] for position in range(MAX_INTERFACE_NAME - len(prefix)))
    return prefix + "".join(letters)


def problems(topology: Topology) -> tuple[str, ...]:
    """What makes this topology impossible to build, one sentence each; empty when nothing does."""
    return (*_duplicates(topology), *_bad_names(topology), *_bad_addresses(topology))


def _duplicates(topology: Topology) -> Iterator[str]:
    for name, count in Counter(spec.name for spec in topology.namespaces).items():
        if count > 1:
            yield f"namespace {name} is defined {count} times"
    for (namespace, ifname), count in Counter(end[:2] for end in topology.link_ends()).items():
        if count > 1:
            yield f"interface {ifname} of namespace {namespace} is defined {count} times"


def _bad_names(topology: Topology) -> Iterator[str]:
    for end in topology.link_ends():
        if not _INTERFACE_NAME.fullmatch(end.ifname):
            yield f"{end.ifname!r} in namespace {end.namespace} is no interface name"


def _bad_addresses(topology: Topology) -> Iterator[str]:
    for address in topology.addresses:
        if error := _refusal(ipaddress.ip_interface, address.address):
            yield f"address on {address.ifname} of {address.namespace}: {error}"
    for route in topology.routes:
        if error := _refusal(ipaddress.ip_network, route.to):
            yield f"route of {route.namespace}: {error}"
        if route.via is None and not route.dev:
            yield f"route of {route.namespace} to {route.to} names neither next hop nor interface"


def _refusal(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return ""
