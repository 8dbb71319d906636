"""Makes the kernel forget stale UDP flows, over netlink: filtered dumps, one pass of deletions.

Law: nothing is decided here; `kproxy.proxy.stale_flows` says which flows go. Layouts are the kernel's
(linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
from kproxy.proxy.services import ServiceName
from kproxy.proxy.stale_flows import Frontends, Place, UdpFrontends, UdpPorts, is_stale

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
_FILTER_IP_DST, _FILTER_PROTO_NUM, _FILTER_PROTO_DST_PORT = 1 << 1, 1 << 3, 1 << 5
_FEW = 8
"""Up to so many destinations are asked for one by one: the kernel walks its table each time, which takes it about as
long as it takes us to look at 3,000 entries (tried)."""
_DUMP_ATTEMPTS = 10
_NFGENMSG_SIZE = 4
_PORT = struct.Struct("!H")

_WirePlace = tuple[bytes, bytes]
"""Address and port as they are on the wire."""


class ConntrackReconciler:
    """Makes the kernel forget stale UDP flows of one family.

    Args:
        family: its family.
        node_port_addresses: lists the node's own addresses on which node ports answer, both families.
        earlier: lists frontends that another process may have programmed before this one started.
    """

    def __init__(
        self,
        family: Family,
        node_port_addresses: Callable[[], Iterable[str]],
        earlier: Callable[[], Iterable[Place]] = tuple,
    ) -> None:
        self._family = family
        self._node_port_addresses = node_port_addresses
        self._earlier = earlier
        self._frontends = UdpFrontends()
        self._seen_earlier: Iterable[Place] = ()

    def reconcile(self, changed: Mapping[ServiceName, UdpPorts]) -> int:
        """Delete the stale flows of Services that changed, and of frontends that are gone; returns how many.

        Args:
            changed: the UDP ports, as they are now, of each Service where they or their endpoints are different.

        Raises:
            HostError: conntrack could not be read or written; what had to be looked at is remembered for the next time.
        """
        self._frontends.take(changed)
        if (earlier := self._earlier()) is not self._seen_earlier:
            self._frontends.take_earlier(earlier)
            self._seen_earlier = earlier
        if not self._frontends.due:
            return 0
        addresses = [address for address in self._node_port_addresses() if self._family.has(address)]
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                table = ConntrackTable(netlink, self._family)
                deleted = table.delete(table.stale(self._frontends.allowed(addresses)))
        except OSError as error:
            raise HostError(f"conntrack cannot be reconciled: {error.strerror}") from error
        self._frontends.done()
        return deleted


class ConntrackTable:
    """The UDP entries of one family in this network namespace.

    Args:
        netlink: an open socket of NETLINK_NETFILTER.
        family: which entries.
    """

    def __init__(self, netlink: Netlink, family: Family) -> None:
        self._netlink = netlink
        self._layout = _Layout(family)

    def stale(self, allowed: Frontends) -> list[bytes]:
        """The entries that have to go, as what the kernel needs to find them again.

        Raises:
            OSError: the kernel refused.
            HostError: the table could not be listed in one piece.
        """
        on_wire = {
            self._packed(place): frozenset(self._packed(endpoint) for endpoint in serving)
            for place, serving in allowed.items()
        }
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return list(self._stale(on_wire))
            except DumpInterrupted:
                continue
        raise HostError("the conntrack table changed whenever it was listed")

    def delete(self, entries: Sequence[bytes]) -> int:
        """Delete entries; returns how many had not ended by themselves meanwhile.

        Raises:
            OSError: the kernel refused.
        """
        bodies = [nfnetlink_body(self._layout.kind, entry) for entry in entries]
        errors = self._netlink.request_many((_SUBSYSTEM << 8) | _DELETE, 0, bodies)
        for error in errors:
            if error.errno != errno.ENOENT:
                raise error
        return len(entries) - len(errors)

    def udp_only(self, to: _WirePlace | None = None) -> bytes:
        """A dump request that the kernel filters (since Linux 5.8; older ones send everything).

        Args:
            to: flows to this destination alone, or in IPv6 to its port anywhere; None means to any.
        """
        flags = _FILTER_PROTO_NUM
        addresses, ports = b"", attribute(_PROTO_NUM, bytes((socket.IPPROTO_UDP,)))
        if to is not None:
            flags |= _FILTER_PROTO_DST_PORT
            ports += attribute(_PROTO_DST_PORT, to[1])
        # asked for one IPv6 address, Linux (6.18 still) sends the entries of all the others
        if to is not None and self._layout.kind == socket.AF_INET:
            flags |= _FILTER_IP_DST
            addresses = attribute(_TUPLE_IP | NLA_F_NESTED, attribute(self._layout.destination, to[0]))
        wanted = attribute(_TUPLE_ORIG | NLA_F_NESTED, addresses + attribute(_TUPLE_PROTO | NLA_F_NESTED, ports))
        told = attribute(_FILTER | NLA_F_NESTED, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
        return nfnetlink_body(self._layout.kind, wanted + told)

    def _stale(self, allowed: Mapping[_WirePlace, frozenset[_WirePlace]]) -> Iterator[bytes]:
        read = self._layout.read
        requests = map(self.udp_only, allowed) if len(allowed) <= _FEW else (self.udp_only(),)
        for request in dict.fromkeys(requests):  # of two IPv6 places with one port, both are the same
            for message in self._netlink.dump((_SUBSYSTEM << 8) | _GET, request):
                flow = read(message)
                if flow is not None and is_stale(flow[0], flow[1], allowed):
                    yield _handle(message)

    def _packed(self, place: Place) -> _WirePlace:
        address, port = place
        return socket.inet_pton(self._layout.kind, address), _PORT.pack(port)


def _handle(message: memoryview) -> bytes:
    """What names an entry: its original tuple, its zone, and its id, so that a successor is left alone."""
    entry = attributes(message[_NFGENMSG_SIZE:])
    nested = attribute(_TUPLE_ORIG | NLA_F_NESTED, entry[_TUPLE_ORIG])
    return nested + b"".join(attribute(kind, entry[kind]) for kind in (_ZONE, _ID) if kind in entry)


def _head(length: int, kind: int) -> bytes:
    return struct.pack("=HH", length, kind)


class _Layout:
    """Where an entry's two tuples are in a message, as every kernel writes them: addresses, then ports, no zone.

    The tuples come first, so that one look at fixed places does for nearly all entries. What looks different is taken
    apart attribute by attribute.
    """

    def __init__(self, family: Family) -> None:
        is_v4 = family is Family.IPV4
        size = 4 if is_v4 else 16
        self.kind = socket.AF_INET if is_v4 else socket.AF_INET6
        self._source, self.destination = (_IP_V4_SRC, _IP_V4_DST) if is_v4 else (_IP_V6_SRC, _IP_V6_DST)
        addresses = f"12s{size}s4s{size}s"  # heads of tuple, addresses and source; source; head; destination
        ports = "8sB3x4s2s2x4s2s2x"  # heads of protocol and number; number; head; source port; head; destination port
        self._fields = struct.Struct(f"={_NFGENMSG_SIZE}x" + 2 * (addresses + ports))
        self._heads = (*self._heads_of(_TUPLE_ORIG, size), *self._heads_of(_TUPLE_REPLY, size))

    def _heads_of(self, which: int, size: int) -> Iterator[bytes]:
        addresses, ports = 4 + 2 * (4 + size), 4 + 8 + 8 + 8
        outer = _head(4 + addresses + ports, which | NLA_F_NESTED) + _head(addresses, _TUPLE_IP | NLA_F_NESTED)
        yield outer + _head(4 + size, self._source)
        yield _head(4 + size, self.destination)
        yield _head(ports, _TUPLE_PROTO | NLA_F_NESTED) + _head(5, _PROTO_NUM)
        yield _head(6, _PROTO_SRC_PORT)
        yield _head(6, _PROTO_DST_PORT)

    def read(self, message: memoryview) -> tuple[_WirePlace, _WirePlace] | None:
        """Where the client sent its first packet, and who answers; None when the entry is not UDP."""
        if len(message) < self._fields.size:
            return self._read_slowly(message)
        (h0, _, h1, to, h2, number, h3, _, h4, to_port, h5, by, h6, _, h7, _, h8, by_port, h9, _) = (
            self._fields.unpack_from(message)
        )
        if (h0, h1, h2, h3, h4, h5, h6, h7, h8, h9) != self._heads:
            return self._read_slowly(message)
        return ((to, to_port), (by, by_port)) if number == socket.IPPROTO_UDP else None

    def _read_slowly(self, message: memoryview) -> tuple[_WirePlace, _WirePlace] | None:
        entry = attributes(message[_NFGENMSG_SIZE:])
        original, reply = (attributes(entry.get(which, b"")) for which in (_TUPLE_ORIG, _TUPLE_REPLY))
        ports, reply_ports = (attributes(parts.get(_TUPLE_PROTO, b"")) for parts in (original, reply))
        if ports.get(_PROTO_NUM) != bytes((socket.IPPROTO_UDP,)):
            return None
        to = attributes(original.get(_TUPLE_IP, b"")).get(self.destination, b"")
        by = attributes(reply.get(_TUPLE_IP, b"")).get(self._source, b"")
        return (to, ports.get(_PROTO_DST_PORT, b"")), (by, reply_ports.get(_PROTO_SRC_PORT, b""))
