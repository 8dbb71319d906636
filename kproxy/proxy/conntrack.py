"""UDP flows that no longer go where they should: which ones, and how to make the kernel forget them.

A UDP flow has no end that conntrack sees: a client that keeps its socket stays with the endpoint of its first packet,
even when that is gone, until its entry is deleted. Unlike kube-proxy, entries of ports without any serving endpoint and
of frontends that are no more go too, and a node port is looked for at the node's own addresses alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from kproxy.errors import HostError
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    DumpInterrupted,
    Netlink,
    attribute,
    attributes,
    nfnetlink_body,
)
from kproxy.proxy.services import PortSpec

Destination = tuple[str, int]
"""Address and port; the address is empty for a node port, which is on every local address."""

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_DUMP_ATTEMPTS = 10


class Flow(NamedTuple):
    """One UDP entry, as far as it matters.

    Attributes:
        destination: where the client sent its packet.
        answerer: "ip:port" of who answers (the reply's source).
        handle: what the kernel needs to delete it.
    """

    destination: Destination
    answerer: str
    handle: bytes


Table = Mapping[Destination, frozenset[str]]
"""Frontends of UDP service ports and the endpoints ("ip:port") that may answer for each."""


def frontends(ports: Iterable[tuple[PortSpec, frozenset[str]]]) -> dict[Destination, frozenset[str]]:
    """Every UDP frontend with its serving endpoints, whatever policies, topology and readiness say."""
    table: dict[Destination, frozenset[str]] = {}
    for spec, serving in ports:
        for address in (spec.cluster_ip, *spec.external_ips, *spec.load_balancer_ips):
            table[address, spec.port] = serving
        if spec.node_port:
            table["", spec.node_port] = serving
    return table


def stale(flows: Iterable[Flow], table: Table, gone: Iterable[Destination], local: frozenset[str]) -> list[Flow]:
    """The flows that somebody answers who may not, or that go to a frontend that is no more.

    Args:
        flows: all UDP flows of the family.
        table: the frontends there are.
        gone: frontends that were there before.
        local: the node's own addresses.
    """
    nobody: frozenset[str] = frozenset()
    all_frontends = {**dict.fromkeys(gone, nobody), **table}
    found = []
    for flow in flows:
        address, port = flow.destination
        serving = all_frontends.get((address, port))
        if serving is None and address in local:
            serving = all_frontends.get(("", port))
        if serving is not None and flow.answerer not in serving:
            found.append(flow)
    return found


class ConntrackReconciler:
    """Makes the kernel forget stale UDP flows of one family.

    Args:
        family: its family.
        local_addresses: lists the node's own addresses.
    """

    def __init__(self, family: Family, local_addresses: Callable[[], Iterable[str]]) -> None:
        self._family = family
        self._local_addresses = local_addresses
        self._known: set[Destination] = set()

    def reconcile(self, ports: Iterable[tuple[PortSpec, frozenset[str]]]) -> int:
        """Delete every stale flow in one pass; returns how many.

        Raises:
            HostError: conntrack could not be read or written.
        """
        table = frontends(ports)
        gone = self._known - table.keys()
        if not table and not gone:
            return 0
        local = frozenset(self._local_addresses())
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                victims = stale(_udp_flows(netlink, self._family), table, gone, local)
                for flow in victims:
                    _forget(netlink, self._family, flow)
        except OSError as error:
            raise HostError(f"cannot reconcile conntrack: {error.strerror}") from error
        self._known = set(table)
        return len(victims)


def _socket_family(family: Family) -> int:
    return socket.AF_INET if family is Family.IPV4 else socket.AF_INET6


def _udp_flows(netlink: Netlink, family: Family) -> list[Flow]:
    body = nfnetlink_body(_socket_family(family))
    for _ in range(_DUMP_ATTEMPTS):
        try:
            messages = netlink.dump((_SUBSYSTEM << 8) | _GET, body)
            return [flow for message in messages if (flow := _flow(message, family))]
        except DumpInterrupted:
            continue
    raise HostError("the conntrack table changed whenever it was listed")


def _flow(message: memoryview, family: Family) -> Flow | None:
    """A dumped entry; None when it is not UDP."""
    entry = attributes(message[4:])
    original = attributes(entry.get(_TUPLE_ORIG, b""))
    protocol = attributes(original.get(_TUPLE_PROTO, b""))
    if protocol.get(_PROTO_NUM) != bytes((socket.IPPROTO_UDP,)):
        return None
    reply = attributes(entry.get(_TUPLE_REPLY, b""))
    reply_protocol = attributes(reply.get(_TUPLE_PROTO, b""))
    source, destination = (_IP_V4_SRC, _IP_V4_DST) if family is Family.IPV4 else (_IP_V6_SRC, _IP_V6_DST)
    destination_ip = attributes(original.get(_TUPLE_IP, b"")).get(destination, b"")
    reply_ip = attributes(reply.get(_TUPLE_IP, b"")).get(source, b"")
    if not destination_ip or not reply_ip:
        return None
    kind = _socket_family(family)
    handle = attribute(_TUPLE_ORIG | NLA_F_NESTED, entry[_TUPLE_ORIG]) + attribute(_ID, entry.get(_ID, bytes(4)))
    answerer = family.join(socket.inet_ntop(kind, reply_ip), _port(reply_protocol[_PROTO_SRC_PORT]))
    return Flow((socket.inet_ntop(kind, destination_ip), _port(protocol[_PROTO_DST_PORT])), answerer, handle)


def _port(raw: bytes) -> int:
    port: int = struct.unpack("!H", raw[:2])[0]
    return port


def _forget(netlink: Netlink, family: Family, flow: Flow) -> None:
    body = nfnetlink_body(_socket_family(family), flow.handle)
    try:
        netlink.request((_SUBSYSTEM << 8) | _DELETE, 0, body)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it ended by itself meanwhile
            raise
