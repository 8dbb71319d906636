"""DNS messages: what a query asks, and an answer as bytes.

Law: pure functions over bytes; dnslib knows the format, what is in an answer is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import dnslib
from dnslib import CLASS, EDNS0, OPCODE, QTYPE, RCODE, RR, DNSError, DNSHeader, DNSRecord

from kproxy.cluster.dns.zone import TTL, Answer, Record, Srv

PLAIN_LIMIT: Final = 512
"""Bytes of a UDP answer to somebody who has not said that he takes more (RFC 1035)."""
UDP_LIMIT: Final = 1232
"""Bytes of a UDP answer at most: what passes everywhere without fragments (DNS flag day 2020)."""
_HEADER_LENGTH: Final = 12
_ANY: Final = 255
"""Class ANY, which dnslib has no name for."""
_SOA_TIMES: Final = (7200, 1800, 86400)
"""Refresh, retry and expire, in seconds (CoreDNS: plugin/kubernetes)."""


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        name: without a final dot, as it was spelt.
        type: `A`, `SRV`, ...; a type without a name is `TYPE65280`.
        limit: bytes that an answer over UDP may have.
        message: the message as it came.
        problem: why it is not answered: `FORMERR`, `NOTIMP`, `BADVERS` or `REFUSED`; empty if it is.
    """

    name: str
    type: str
    limit: int
    message: DNSRecord
    problem: str = ""


def read(data: bytes) -> Query | None:
    """The question in a message; None for what deserves no answer: too short, or an answer itself."""
    try:
        message = DNSRecord.parse(data)
    except (DNSError, ValueError, IndexError, UnicodeError):
        return _unreadable(data)
    header = message.header
    if header.qr:
        return None
    if header.opcode != OPCODE.QUERY:
        return Query("", "", PLAIN_LIMIT, message, "NOTIMP")
    if len(message.questions) != 1:
        return Query("", "", PLAIN_LIMIT, message, "FORMERR")
    options = [record for record in message.ar if record.rtype == QTYPE.OPT]
    limit = min(max(options[0].rclass, PLAIN_LIMIT), UDP_LIMIT) if options else PLAIN_LIMIT
    problem = ""
    if options and (options[0].ttl >> 16) & 0xFF:
        problem = "BADVERS"
    elif message.q.qclass not in (CLASS.IN, _ANY):
        problem = "REFUSED"
    return Query(str(message.q.qname).rstrip("."), str(QTYPE[message.q.qtype]), limit, message, problem)


def failure(query: Query, code: str, *, recursion: bool = False) -> bytes:
    """An answer that only says why there is none.

    Args:
        query: what was asked.
        code: `SERVFAIL`, `REFUSED`, ...
        recursion: whether names of others are asked for.
    """
    reply = _reply(query, code, is_own=False, recursion=recursion)
    return bytes(reply.pack())


def answer(  # noqa: PLR0913 - what is said, by whom, and how
    query: Query, found: Answer, *, domain: str, serial: int, others: Sequence[RR] = (), recursion: bool = False
) -> bytes:
    """An answer of our own, with the zone's SOA record where there is nothing to tell (RFC 2308).

    Args:
        query: what was asked.
        found: what is known.
        domain: the zone that says so.
        serial: of its SOA record.
        others: records of somebody else's that complete it.
        recursion: whether names of others are asked for.
    """
    reply = _reply(query, found.code, is_own=True, recursion=recursion)
    for record in found.records:
        # A name is repeated the way it was spelt in the question (draft-vixie-dnsext-dns0x20).
        own = query.name.lower() == record.name
        reply.add_answer(_resource(record, query.name if own else record.name, domain, serial))
    reply.add_answer(*others)
    for record in found.additional:
        reply.add_ar(_resource(record, record.name, domain, serial))
    if not found.records:
        reply.add_auth(_resource(Record(domain, "SOA", ""), domain, domain, serial))
    return bytes(reply.pack())


def relayed(query: Query, reply: bytes) -> bytes | None:
    """Somebody else's answer as one to this query; None when it is none.

    What the two servers have said to each other about the size of messages is left out (RFC 6891, 7).
    """
    try:
        message = DNSRecord.parse(reply)
    except (DNSError, ValueError, IndexError, UnicodeError):
        return None
    message.header.id = query.message.header.id
    message.ar = [record for record in message.ar if record.rtype != QTYPE.OPT]
    if any(record.rtype == QTYPE.OPT for record in query.message.ar):
        message.add_ar(EDNS0(udp_len=UDP_LIMIT))
    return bytes(message.pack())


def fitted(query: Query, reply: bytes) -> bytes:
    """The answer as it may be sent over UDP: if it is too long, only that it is, so that one asks again over TCP."""
    if len(reply) <= query.limit:
        return reply
    message = DNSRecord.parse(reply)
    header = message.header
    header.tc = 1
    options = [record for record in message.ar if record.rtype == QTYPE.OPT]
    return bytes(DNSRecord(header, questions=message.questions, ar=options).pack())


def question(number: int, name: str, record_type: str) -> bytes:
    """A query of our own to a server that asks others.

    Args:
        number: the message's id.
        name: asked for.
        record_type: likewise.
    """
    message = DNSRecord.question(name, record_type)
    message.header.id = number
    message.header.rd = 1
    message.add_ar(EDNS0(udp_len=UDP_LIMIT))
    return bytes(message.pack())


def is_truncated(reply: bytes) -> bool:
    """Whether an answer says that it is cut short."""
    return len(reply) > 2 and bool(reply[2] & 0x02)


def resources(reply: bytes) -> Sequence[RR]:
    """The records that an answer consists of; none if it cannot be read."""
    try:
        return list(DNSRecord.parse(reply).rr)
    except (DNSError, ValueError, IndexError, UnicodeError):
        return []


def _unreadable(data: bytes) -> Query | None:
    if len(data) < _HEADER_LENGTH or data[2] & 0x80:
        return None
    return Query("", "", PLAIN_LIMIT, DNSRecord(DNSHeader(id=int.from_bytes(data[:2], "big"))), "FORMERR")


def _reply(query: Query, code: str, *, is_own: bool, recursion: bool) -> DNSRecord:
    asked = query.message.header
    number = 16 if code == "BADVERS" else getattr(RCODE, code)
    header = DNSHeader(
        id=asked.id, opcode=asked.opcode, qr=1, aa=int(is_own), ra=int(recursion), rd=asked.rd, rcode=number & 0xF
    )
    reply = DNSRecord(header, questions=query.message.questions[:1])
    if any(record.rtype == QTYPE.OPT for record in query.message.ar):
        reply.add_ar(EDNS0(udp_len=UDP_LIMIT, ext_rcode=number >> 4))
    return reply


def _resource(record: Record, name: str, domain: str, serial: int) -> RR:
    return RR(name or ".", getattr(QTYPE, record.type), ttl=record.ttl, rdata=_data(record, domain, serial))


def _data(record: Record, domain: str, serial: int) -> object:
    value = record.value
    if isinstance(value, Srv):
        return dnslib.SRV(value.priority, value.weight, value.port, value.target)
    match record.type:
        case "A":
            return dnslib.A(value)
        case "AAAA":
            return dnslib.AAAA(value)
        case "CNAME":
            return dnslib.CNAME(value)
        case "PTR":
            return dnslib.PTR(value)
        case "TXT":
            return dnslib.TXT(value)
        case _:
            below = f".{domain}" if domain else ""
            return dnslib.SOA(f"ns.dns{below}", f"hostmaster{below}", (serial, *_SOA_TIMES, TTL))
