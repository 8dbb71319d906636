"""The few netlink requests that a node proxy makes, over plain sockets.

Not pyroute2: importing it takes longer than all the rest of the proxy's start (93 ms of 200), and its conntrack dump
builds objects for entries that are thrown away. Layouts are the kernel's: linux/netlink.h, linux/netfilter/nfnetlink.h,
linux/rtnetlink.h. Nothing here knows of Services.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kproxy.errors import HostError

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_ERROR_CODE = struct.Struct("=i")
_BUFFER = 1 << 20
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE = 32
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_OFFSET = 2
_BATCH_GENERATION = 1
_SEQUENCES = 1 << 32
_BATCH = 64
"""Requests in one message; their answers have to fit the receive buffer."""


class Refusal(NamedTuple):
    """Why the kernel refused a batch.

    Attributes:
        code: errno.
        position: which request, from 0; -1 when the batch as a whole is meant.
        offset: where in the request's body the attribute begins that it complains of; -1 when it names none.
    """

    code: int
    position: int
    offset: int


class DumpInterrupted(HostError):
    """The table changed while the kernel listed it: ask again."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def attributes(payload: bytes | memoryview) -> dict[int, bytes]:
    """The attributes of a message's body by type; of a type that comes twice the last one."""
    found = {}
    offset = 0
    while offset + 4 <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = bytes(payload[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def nfnetlink_body(family: int, payload: bytes = b"") -> bytes:
    """An nfgenmsg header (family, version 0, resource 0) and what follows."""
    return struct.pack("=BBH", family, 0, 0) + payload


class Netlink:
    """One socket of one netlink protocol; a context manager.

    Raises:
        HostError: the kernel does not have the protocol.
    """

    def __init__(self, protocol: int) -> None:
        self._sequence = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _BUFFER)
            # of what was refused the header is enough, and which attribute was wrong
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.bind((0, 0))
            self._room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        except OSError as error:
            raise HostError(f"cannot open netlink protocol {protocol}: {os.strerror(error.errno or 0)}") from error

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """One request that the kernel acknowledges.

        Raises:
            OSError: the kernel refused; errno is its reason.
        """
        for _ in self._exchange(kind, flags | NLM_F_ACK, body):
            continue

    def ask(self, kind: int, body: bytes) -> Iterator[memoryview]:
        """The body of the answer to one question about one object.

        Raises:
            OSError: the kernel refused; errno is its reason.
        """
        return self._exchange(kind, NLM_F_ACK, body)

    def batch(
        self, subsystem: int, requests: Sequence[tuple[int, int, bytes]], generation: int | None = None
    ) -> Refusal | None:
        """Requests that take effect together or not at all; returns why they were refused, None when they were not.

        Args:
            subsystem: NFNL_SUBSYS_*, of all of them.
            requests: kind (within the subsystem), flags and body of each.
            generation: refuse (ERESTART) if the rule set is no longer of this generation; None does not ask.

        Raises:
            OSError: EMSGSIZE when the batch is larger than the socket takes; or the socket failed.
        """
        frame = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(subsystem))
        guard = b"" if generation is None else attribute(_BATCH_GENERATION, struct.pack("!I", generation))
        parts = [self._message(_NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, frame + guard)]
        begun = self._sequence
        last = len(requests) - 1
        for index, (kind, flags, body) in enumerate(requests):
            # asked of the last one alone: it is carried out after all others
            parts.append(self._message((subsystem << 8) | kind, flags | (NLM_F_ACK if index == last else 0), body))
        parts.append(self._message(_NFNL_MSG_BATCH_END, NLM_F_REQUEST, frame))
        message = b"".join(parts)
        self._make_room(len(message))
        self._socket.send(message)
        return self._first_refusal(begun)

    def _make_room(self, size: int) -> None:
        """The kernel counts what it needs itself as well, and gives twice what is asked for."""
        if size <= self._room:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:  # not root of the first user namespace
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self._room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2

    def _first_refusal(self, begun: int) -> Refusal | None:
        """The kernel has answered by the time that a batch is sent, whose begin has the sequence number given."""
        found, is_done = None, False
        while True:
            try:
                received = memoryview(self._socket.recv(_BUFFER, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            offset = 0
            while offset < len(received):
                length, answer, flags, sequence, _ = _HEADER.unpack_from(received, offset)
                payload = received[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                after = _distance(begun, sequence)
                if answer != _NLMSG_ERROR or after < 0:  # left over from what was not read to its end
                    continue
                is_done = True
                code = -_ERROR_CODE.unpack_from(payload)[0]
                if code and found is None:
                    found = Refusal(code, after - 1, _offset_of(payload) if flags & _NLM_F_ACK_TLVS else -1)
        if not is_done:
            raise OSError(errno.ENOBUFS, "the kernel's answer is lost")
        return found

    def request_many(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[OSError]:
        """Many requests of one kind, several a message; returns why some of them were refused.

        Raises:
            OSError: the socket failed.
        """
        refused = []
        for first in range(0, len(bodies), _BATCH):
            batch = bodies[first : first + _BATCH]
            self._socket.send(b"".join(self._message(kind, flags | NLM_F_ACK, body) for body in batch))
            for _ in batch:
                code = _ERROR_CODE.unpack_from(self._socket.recv(_BUFFER), _HEADER.size)[0]
                if code:
                    refused.append(OSError(-code, os.strerror(-code)))
        return refused

    def dump(self, kind: int, body: bytes) -> Iterator[memoryview]:
        """The bodies of all messages of a dump.

        Raises:
            OSError: the kernel refused.
            DumpInterrupted: the answer is not consistent.
        """
        return self._exchange(kind, NLM_F_DUMP, body)

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[memoryview]:
        self._socket.send(self._message(kind, flags, body))
        while True:
            received = memoryview(self._socket.recv(_BUFFER))
            offset = 0
            while offset < len(received):
                length, answer, answer_flags, sequence, _ = _HEADER.unpack_from(received, offset)
                payload = received[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:  # left over from a dump that was not read to its end
                    continue
                if answer_flags & _NLM_F_DUMP_INTR:
                    raise DumpInterrupted("a netlink dump was interrupted by a change")
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    _raise_errno(_ERROR_CODE.unpack_from(payload)[0])
                    return
                yield payload

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence = (self._sequence + 1) % _SEQUENCES
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        return header + body + bytes(-len(body) % 4)


def _distance(before: int, after: int) -> int:
    """How many messages one sequence number is after another, by the shorter way round; negative when it is earlier."""
    half = _SEQUENCES // 2
    return (after - before + half) % _SEQUENCES - half


def _raise_errno(code: int) -> None:
    if code:
        raise OSError(-code, os.strerror(-code))


def _offset_of(payload: memoryview) -> int:
    """Where in the request's body the attribute begins that was refused; -1 when the answer does not say."""
    told = attributes(payload[_ERROR_CODE.size + _HEADER.size :]).get(_NLMSGERR_OFFSET)
    return struct.unpack("=I", told)[0] - _HEADER.size if told else -1


_RTM_GETADDR = 22
_IFA_ADDRESS = 1
_IFA_LOCAL = 2


def local_addresses() -> tuple[str, ...]:
    """Every address of this network namespace, both families, canonical, sorted.

    Raises:
        HostError: the kernel refused to list them.
    """
    found = set()
    try:
        with Netlink(NETLINK_ROUTE) as netlink:
            for message in netlink.dump(_RTM_GETADDR, bytes(8)):
                family = message[0]
                given = attributes(message[8:])
                # IFA_LOCAL differs from IFA_ADDRESS on point-to-point links, where the latter is the other end's
                raw = given.get(_IFA_LOCAL) or given.get(_IFA_ADDRESS)
                if raw and family in (socket.AF_INET, socket.AF_INET6):
                    found.add(socket.inet_ntop(family, raw))
    except OSError as error:
        raise HostError(f"cannot list the node's addresses: {error.strerror}") from error
    return tuple(sorted(found))


_NFNL_SUBSYS_ACCT = 7
_NFNL_MSG_ACCT_NEW = 0
_NFNL_MSG_ACCT_GET = 1
_NFACCT_NAME, _NFACCT_PKTS = 1, 2


def make_counters(names: tuple[str, ...]) -> frozenset[str]:
    """Create nfacct counters, and return those that exist now; none where the kernel has no nfnetlink_acct."""
    made = set()
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            for name in names:
                body = nfnetlink_body(socket.AF_UNSPEC, attribute(_NFACCT_NAME, name.encode() + b"\0"))
                if _creates(netlink, body):
                    made.add(name)
    except HostError:
        return frozenset()
    return frozenset(made)


def _creates(netlink: Netlink, body: bytes) -> bool:
    try:
        netlink.request((_NFNL_SUBSYS_ACCT << 8) | _NFNL_MSG_ACCT_NEW, NLM_F_CREATE | NLM_F_EXCL, body)
    except FileExistsError:
        return True
    except OSError as error:
        return error.errno == errno.EBUSY  # it exists (nfnl_acct_new answers so without NLM_F_REPLACE)
    return True


_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 16, 17
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETTABLE, _NFT_MSG_DELTABLE = 1, 2
_NFTA_TABLE_NAME = 1


def delete_nft_table(family: int, name: str) -> bool:
    """Delete a table of nf_tables with all that it holds; returns whether it was there.

    Args:
        family: AF_INET or AF_INET6.
        name: the table's.

    Raises:
        HostError: it is there and cannot be deleted.
    """
    table = nfnetlink_body(family, attribute(_NFTA_TABLE_NAME, name.encode() + b"\0"))
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            # asked first: a batch that fails makes the kernel wait for all its processors
            netlink.request((_NFNL_SUBSYS_NFTABLES << 8) | _NFT_MSG_GETTABLE, 0, table)
            refusal = netlink.batch(_NFNL_SUBSYS_NFTABLES, [(_NFT_MSG_DELTABLE, 0, table)])
            _raise_errno(-refusal.code if refusal else 0)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT):  # a kernel without nf_tables
            return False
        raise HostError(f"cannot delete the nftables table {name!r}: {error.strerror}") from error
    return True


def read_counters(names: Iterable[str]) -> dict[str, int]:
    """Packets that nfacct counters have counted; those that do not exist, or cannot be read, are left out."""
    wanted = set(names)
    found = {}
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            for message in netlink.dump(
                (_NFNL_SUBSYS_ACCT << 8) | _NFNL_MSG_ACCT_GET, nfnetlink_body(socket.AF_UNSPEC)
            ):
                given = attributes(message[4:])
                name = given.get(_NFACCT_NAME, b"").rstrip(b"\0").decode(errors="replace")
                if name in wanted:
                    found[name] = int.from_bytes(given.get(_NFACCT_PKTS, b""), "big")
    except (HostError, OSError):
        return {}
    return found
