"""nf_tables requests as bytes, in the form in which nft sends them.

Law: pure. Layouts are the kernel's (linux/netfilter/nf_tables.h); what nft keeps for itself in the user data of objects
is libnftnl's (udata.h) and nft's, so that nft lists types and comments of what is written here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import (
    HAS_TIMEOUT,
    IS_DYNAMIC,
    IS_MAP,
    VERDICT_TYPE,
    Container,
    Data,
    Holds,
    Part,
    address_part,
    type_number,
)
from kproxy.proxy.backends.nftables.statements import Rule, Verdict
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NLA_F_NESTED, NLM_F_CREATE, attribute, nfnetlink_body

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = 3, 4, 5
NEW_RULE, GET_RULE, DELETE_RULE = 6, 7, 8
NEW_SET, GET_SET, DELETE_SET = 9, 10, 11
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 12, 13, 14

NLM_F_APPEND = 0x800

TABLE_NAME, TABLE_USERDATA = 1, 6
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 3, 4, 5, 7
HOOK_NUMBER, HOOK_PRIORITY = 1, 2
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, RULE_USERDATA = 1, 2, 4, 7
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_SIZE, SET_DATA_TYPE, SET_DATA_SIZE = 1, 2, 3, 4, 5, 6, 7
SET_ID, SET_USERDATA = 10, 13
ELEMENTS_TABLE, ELEMENTS_SET, ELEMENTS = 1, 2, 3
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_USERDATA = 1, 2, 6

_LIST_ELEMENT = 1
_DATA_VALUE = 1
_ACCEPT = 1
_VERDICT_SIZE = 16
_COMMENT = 0
_ELEMENTS_ROOM = 60_000
"""Bytes of elements in one message: an attribute's length has sixteen bits."""


class Request(NamedTuple):
    """One request of a batch.

    Attributes:
        kind: NFT_MSG_*.
        flags: NLM_F_* beside the request's own.
        body: all after the nlmsghdr.
        about: which object, in words.
    """

    kind: int
    flags: int
    body: bytes
    about: str


class BaseChain(NamedTuple):
    """Where packets enter the table.

    Attributes:
        type: filter or nat.
        hook: netfilter's number for it.
        hook_name: nft's name for it.
        priority: lower ones come first.
    """

    type: str
    hook: int
    hook_name: str
    priority: int


def address_family(family: Family) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if family is Family.IPV4 else socket.AF_INET6


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, payload)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _tagged(kind: int, payload: bytes) -> bytes:
    """An entry of nft's user data."""
    return bytes((kind, len(payload))) + payload


def _tagged_number(kind: int, value: int) -> bytes:
    return _tagged(kind, struct.pack("=I", value))


def _comment(text: str) -> bytes:
    return _tagged(_COMMENT, text.encode() + b"\0")


class Messages:
    """Requests about one family's table."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._head = nfnetlink_body(address_family(family))
        self._table = _string(1, names.TABLE)

    def _request(self, kind: int, flags: int, rest: bytes, about: str) -> Request:
        return Request(kind, flags, self._head + rest, about)

    # tables and chains

    def add_table(self) -> Request:
        """Creates the table, unless it is there."""
        rest = self._table + _number(2, 0) + attribute(TABLE_USERDATA, _comment(names.TABLE_COMMENT))
        return self._request(NEW_TABLE, NLM_F_CREATE, rest, f"table {names.TABLE}")

    def delete_table(self) -> Request:
        """Deletes the table with all that it holds."""
        return self._request(DELETE_TABLE, 0, self._table, f"table {names.TABLE}")

    def add_chain(self, name: str, base: BaseChain | None = None) -> Request:
        """Creates a chain, unless it is there."""
        rest = self._table + _string(CHAIN_NAME, name)
        if base is not None:
            hook = _number(HOOK_NUMBER, base.hook) + _number(HOOK_PRIORITY, base.priority)
            rest += _nested(CHAIN_HOOK, hook) + _number(CHAIN_POLICY, _ACCEPT) + _string(CHAIN_TYPE, base.type)
        return self._request(NEW_CHAIN, NLM_F_CREATE, rest, f"chain {name}")

    def delete_chain(self, name: str) -> Request:
        """Deletes a chain that nothing leads to."""
        return self._request(DELETE_CHAIN, 0, self._table + _string(CHAIN_NAME, name), f"chain {name}")

    def flush_chain(self, name: str) -> Request:
        """Deletes all rules of a chain."""
        return self._request(DELETE_RULE, 0, self._table + _string(RULE_CHAIN, name), f"chain {name}")

    def add_rule(self, chain: str, rule: Rule) -> Request:
        """Appends a rule to a chain."""
        rest = self._table + _string(RULE_CHAIN, chain) + _nested(RULE_EXPRESSIONS, rule.expressions)
        if rule.comment:
            rest += attribute(RULE_USERDATA, _comment(rule.comment))
        return self._request(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, rest, f"chain {chain}: rule {rule.text}")

    # sets and maps

    def add_container(self, container: Container) -> Request:
        """Creates a set or a map, unless it is there.

        None is told how many elements to expect: the kernel makes room for all of them at once, one megabyte for the
        65,535 clients that nft asks for. The first rule that adds clients sets that limit all the same (nft_dynset.c).
        """
        flags = {Holds.NOTHING: 0, Holds.CLIENTS: HAS_TIMEOUT | IS_DYNAMIC}.get(container.holds, IS_MAP)
        rest = self._table + _string(SET_NAME, container.name) + _number(SET_FLAGS, flags)
        rest += _number(SET_KEY_TYPE, type_number(container.key)) + _number(SET_KEY_SIZE, container.key_size)
        if container.holds is Holds.VERDICT:
            rest += _number(SET_DATA_TYPE, VERDICT_TYPE) + _number(SET_DATA_SIZE, _VERDICT_SIZE)
        elif container.holds is Holds.ENDPOINT:
            endpoint = (address_part(self._family), Part.PORT)
            rest += _number(SET_DATA_TYPE, type_number(endpoint))
            rest += _number(SET_DATA_SIZE, sum(part.size for part in endpoint))
        rest += _number(SET_ID, 1)
        rest += attribute(SET_USERDATA, _user_data(container, self._family))
        return self._request(NEW_SET, NLM_F_CREATE, rest, f"{container.holds.value} {container.name}")

    def delete_container(self, name: str) -> Request:
        """Deletes a set or map that no rule uses."""
        return self._request(DELETE_SET, 0, self._table + _string(SET_NAME, name), f"set {name}")

    def flush_container(self, container: Container) -> Request:
        """Deletes all elements of a set or map."""
        name = container.name
        return self._request(DELETE_ELEMENT, 0, self._table + _string(ELEMENTS_SET, name), f"set {name}")

    def add_elements(self, container: Container, elements: Iterable[tuple[bytes, Data]]) -> Iterator[Request]:
        """Adds elements, as many in a request as it takes."""
        return self._elements(NEW_ELEMENT, NLM_F_CREATE, container, elements)

    def delete_elements(self, container: Container, keys: Iterable[bytes]) -> Iterator[Request]:
        """Deletes elements, as many in a request as it takes."""
        return self._elements(DELETE_ELEMENT, 0, container, ((key, b"") for key in keys))

    def _elements(
        self, kind: int, flags: int, container: Container, elements: Iterable[tuple[bytes, Data]]
    ) -> Iterator[Request]:
        start = self._table + _string(ELEMENTS_SET, container.name)
        held: list[bytes] = []
        room = _ELEMENTS_ROOM
        for key, data in elements:
            one = element(key, data)
            if room < len(one):
                yield self._request(kind, flags, start + _nested(ELEMENTS, b"".join(held)), container.name)
                held, room = [], _ELEMENTS_ROOM
            held.append(one)
            room -= len(one)
        if held:
            yield self._request(kind, flags, start + _nested(ELEMENTS, b"".join(held)), container.name)


@lru_cache(maxsize=64)
def _element_head(key_size: int, data_size: int) -> tuple[bytes, bytes]:
    """What comes before the key, and between key and endpoint: the same for all elements of such sizes."""
    key = _nested(ELEMENT_KEY, attribute(_DATA_VALUE, bytes(key_size)))
    data = _nested(ELEMENT_DATA, attribute(_DATA_VALUE, bytes(data_size))) if data_size else b""
    whole = _nested(_LIST_ELEMENT, key + data)
    return whole[: 4 + 8], data[:8]


def element(key: bytes, data: Data) -> bytes:
    """One element in a list of elements."""
    if isinstance(data, bytes):
        before, between = _element_head(len(key), len(data))
        return before + key + between + data
    parts = _nested(ELEMENT_KEY, attribute(_DATA_VALUE, key)) + _verdict_data(data.verdict)
    return _nested(_LIST_ELEMENT, parts + attribute(ELEMENT_USERDATA, _comment(data.comment)))


@lru_cache(maxsize=4096)
def _verdict_data(verdict: Verdict) -> bytes:
    return _nested(ELEMENT_DATA, verdict.data)


def elements_in(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each element of a request begins in its body, and the element."""
    offset = 4
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if kind & ~NLA_F_NESTED == ELEMENTS:
            yield from _entries(body, offset + 4, offset + length)
        offset += (length + 3) & ~3


def _entries(body: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    while offset < end:
        length = struct.unpack_from("=H", body, offset)[0]
        yield offset, body[offset : offset + length]
        offset += (length + 3) & ~3


# what nft keeps in user data

_KEY_ORDER, _DATA_ORDER, _KEY_TYPE, _DATA_TYPE, _DATA_INTERVAL = 0, 1, 3, 4, 6
_NETWORK_ORDER = 2
_TYPE_KIND, _TYPE_DATA = 0, 1
_CONCATENATION, _PAYLOAD, _META, _NUMGEN = 13, 7, 9, 23
_HEADERS = {Part.IPV4: (12, 12), Part.IPV6: (13, 9), Part.PORT: (11, 2)}
"""nft's numbers of a header and of a field in it."""


def _user_data(container: Container, family: Family) -> bytes:
    is_concatenation = len(container.key) > 1
    has_data = container.holds in (Holds.VERDICT, Holds.ENDPOINT)
    data = _tagged_number(_KEY_ORDER, 0 if is_concatenation else _NETWORK_ORDER)
    if has_data:
        data += _tagged_number(_DATA_ORDER, 0)
    if is_concatenation:
        data += _tagged(_KEY_TYPE, _type_of(container.key if container.is_typed_by_rules else ()))
    if container.is_typed_by_rules:
        data += _tagged(_DATA_TYPE, _type_of((address_part(family), Part.PORT)))
    return data + _tagged_number(_DATA_INTERVAL, 0) if has_data else data


def _type_of(parts: Sequence[Part]) -> bytes:
    fields = b"".join(_tagged(index, _field(part)) for index, part in enumerate(parts))
    return _tagged_number(_TYPE_KIND, _CONCATENATION) + _tagged(_TYPE_DATA, fields)


def _field(part: Part) -> bytes:
    match part:
        case Part.PROTOCOL:
            kind, data = _META, _tagged_number(0, 16)
        case Part.NUMBER:
            kind, data = _NUMGEN, _tagged_number(0, 1) + _tagged_number(1, 1) + _tagged_number(2, 0)
        case _:
            header, field = _HEADERS[part]
            kind, data = _PAYLOAD, _tagged_number(0, header) + _tagged_number(1, field)
    return _tagged_number(_TYPE_KIND, kind) + _tagged(_TYPE_DATA, data)
