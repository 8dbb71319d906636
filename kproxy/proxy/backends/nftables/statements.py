"""Parts of nf_tables rules, each as the text that nft shows and the expressions that the kernel takes.

Law: pure. One value holds both forms, so that neither writer can say what the other does not. Layouts are the kernel's
(linux/netfilter/nf_tables.h); registers are counted in words of four bytes from the first.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kproxy.proxy.family import Family, split_host_port
from kproxy.proxy.netlink import NLA_F_NESTED, attribute

_LIST_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_BASE_NETWORK, _BASE_TRANSPORT = 1, 2
_META_MARK, _META_IIFNAME, _META_L4PROTO = 3, 6, 16
_CT_STATE, _CT_STATUS = 0, 2
_CT_STATE_NEW, _CT_STATUS_DNAT = 1 << 3, 1 << 5
_EQUAL, _NOT_EQUAL = 0, 1
_FIB_ADDRESS_TYPE, _FIB_SOURCE, _FIB_DESTINATION = 3, 1, 2
_RTN_LOCAL = 2
_NUMGEN_RANDOM = 1
_NAT_DESTINATION = 1
_RANDOM_FULLY = 0x10
_DYNSET_UPDATE = 1
_FIRST_WORD = 8  # NFT_REG32_00
_VERDICT_REGISTER = 0
_INTERFACE_NAME_SIZE = 16

PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
PROTOCOL_NAMES = {number: name.lower() for name, number in PROTOCOLS.items()}


class Statement(NamedTuple):
    """One part of a rule.

    Attributes:
        text: as nft writes it.
        expressions: as elements of the list in a NFT_MSG_NEWRULE.
    """

    text: str
    expressions: bytes


class Rule(NamedTuple):
    """A rule: all its statements in order; the comment may be empty."""

    statements: tuple[Statement, ...]
    comment: str = ""

    @property
    def text(self) -> str:
        """As nft writes it."""
        words = [statement.text for statement in self.statements]
        return " ".join((*words, f'comment "{self.comment}"') if self.comment else words)

    @property
    def expressions(self) -> bytes:
        """As the kernel takes it."""
        return b"".join(statement.expressions for statement in self.statements)


class Verdict(NamedTuple):
    """What becomes of a packet: a netfilter verdict, and the chain that it names if it names one."""

    code: int
    chain: str = ""

    @property
    def text(self) -> str:
        """As nft writes it."""
        word = _VERDICT_WORDS[self.code]
        return f"{word} {self.chain}" if self.chain else word

    @property
    def data(self) -> bytes:
        """As the data of an element or of an immediate expression."""
        chain = _string(_VERDICT_CHAIN, self.chain) if self.chain else b""
        return _nested(_DATA_VERDICT, _number(_VERDICT_CODE, self.code & 0xFFFFFFFF) + chain)


_VERDICT_WORDS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
DROP = Verdict(0)
RETURN = Verdict(-5)


def goto(chain: str) -> Verdict:
    """Go on in a chain, and from there to where this chain was called."""
    return Verdict(-4, chain)


def jump(chain: str) -> Verdict:
    """Go on in a chain, and then with the next rule."""
    return Verdict(-3, chain)


class Field(NamedTuple):
    """Something of a packet that a key is made of.

    Attributes:
        text: as nft writes it.
        words: how many registers it takes.
        load: the expression that puts it there, given the first of them.
    """

    text: str
    words: int
    load: Callable[[int], bytes]


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, payload)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _value(kind: int, data: bytes) -> bytes:
    return _nested(kind, attribute(_DATA_VALUE, data))


def _expression(name: str, *parts: bytes) -> bytes:
    data = _nested(_EXPRESSION_DATA, b"".join(parts))
    return _nested(_LIST_ELEMENT, _string(_EXPRESSION_NAME, name) + data)


def _register(kind: int, word: int) -> bytes:
    return _number(kind, _FIRST_WORD + word)


def _payload(base: int, offset: int, length: int) -> Callable[[int], bytes]:
    def load(word: int) -> bytes:
        return _expression("payload", _register(1, word), _number(2, base), _number(3, offset), _number(4, length))

    return load


def _meta(key: int) -> Callable[[int], bytes]:
    return lambda word: _expression("meta", _register(1, word), _number(2, key))


def _compare(data: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", _register(1, 0), _number(2, _EQUAL if equal else _NOT_EQUAL), _value(3, data))


def _bitwise(mask: bytes, xor: bytes) -> bytes:
    parts = (_register(1, 0), _register(2, 0), _number(3, len(mask)), _value(4, mask), _value(5, xor))
    return _expression("bitwise", *parts)


def _has_bits(bits: int) -> bytes:
    return _bitwise(struct.pack("=I", bits), bytes(4)) + _compare(bytes(4), equal=False)


L4PROTO = Field("meta l4proto", 1, _meta(_META_L4PROTO))
DPORT = Field("th dport", 1, _payload(_BASE_TRANSPORT, 2, 2))


def source(family: Family) -> Field:
    """A packet's source address."""
    if family is Family.IPV4:
        return Field("ip saddr", 1, _payload(_BASE_NETWORK, 12, 4))
    return Field("ip6 saddr", 4, _payload(_BASE_NETWORK, 8, 16))


def destination(family: Family) -> Field:
    """A packet's destination address."""
    if family is Family.IPV4:
        return Field("ip daddr", 1, _payload(_BASE_NETWORK, 16, 4))
    return Field("ip6 daddr", 4, _payload(_BASE_NETWORK, 24, 16))


def random_number(below: int) -> Field:
    """A number from 0, drawn anew for each packet."""

    def load(word: int) -> bytes:
        return _expression("numgen", _register(1, word), _number(2, below), _number(3, _NUMGEN_RANDOM), _number(4, 0))

    return Field(f"numgen random mod {below}", 1, load)


def frontend_key(family: Family, *, is_node_port: bool) -> tuple[Field, ...]:
    """What of a packet tells which Service it is for."""
    return (L4PROTO, DPORT) if is_node_port else (destination(family), L4PROTO, DPORT)


def _loaded(fields: Iterable[Field]) -> tuple[str, bytes]:
    word, texts, expressions = 0, [], b""
    for field in fields:
        texts.append(field.text)
        expressions += field.load(word)
        word += field.words
    return " . ".join(texts), expressions


def _lookup(name: str, *more: bytes) -> bytes:
    return _expression("lookup", _string(1, name), _register(2, 0), *more)


def in_set(fields: Iterable[Field], name: str) -> Statement:
    """Matches packets whose fields are an element of a set."""
    text, loads = _loaded(fields)
    return Statement(f"{text} @{name}", loads + _lookup(name))


def verdict_map(fields: Iterable[Field], name: str) -> Statement:
    """The verdict that a map has for the fields; nothing when it has none."""
    text, loads = _loaded(fields)
    return Statement(f"{text} vmap @{name}", loads + _lookup(name, _number(3, _VERDICT_REGISTER)))


def verdict(what: Verdict) -> Statement:
    """Ends the rule."""
    return Statement(what.text, _expression("immediate", _number(1, _VERDICT_REGISTER), _nested(2, what.data)))


def in_network(field: Field, cidr: str, *, negated: bool = False) -> Statement:
    """Matches packets whose address lies in a network; as nft does, whole bytes are compared without a mask."""
    network = ipaddress.ip_network(cidr)
    is_single = network.prefixlen == network.max_prefixlen
    text = str(network.network_address) if is_single else str(network)
    whole, rest = divmod(network.prefixlen, 8)
    packed, mask = network.network_address.packed, network.netmask.packed
    if rest or not whole:
        expressions = field.load(0) + _bitwise(mask, bytes(len(mask))) + _compare(packed, equal=not negated)
    else:
        offset = _NETWORK_OFFSETS[field.text]
        expressions = _payload(_BASE_NETWORK, offset, whole)(0) + _compare(packed[:whole], equal=not negated)
    return Statement(f"{field.text} {'!= ' if negated else ''}{text}", expressions)


_NETWORK_OFFSETS = {"ip saddr": 12, "ip daddr": 16, "ip6 saddr": 8, "ip6 daddr": 24}


def from_interface(name: str, *, is_prefix: bool, negated: bool = False) -> Statement:
    """Matches packets that came in by an interface, or by any whose name begins so."""
    data = name.encode() if is_prefix else name.encode().ljust(_INTERFACE_NAME_SIZE, b"\0")
    text = f'iifname {"!= " if negated else ""}"{name}{"*" if is_prefix else ""}"'
    return Statement(text, _meta(_META_IIFNAME)(0) + _compare(data, equal=not negated))


def is_local_source() -> Statement:
    """Matches packets from one of this node's own addresses."""
    return _is_local("saddr", _FIB_SOURCE)


def is_local_destination() -> Statement:
    """Matches packets to one of this node's own addresses."""
    return _is_local("daddr", _FIB_DESTINATION)


def _is_local(which: str, flag: int) -> Statement:
    fib = _expression("fib", _register(1, 0), _number(2, _FIB_ADDRESS_TYPE), _number(3, flag))
    return Statement(f"fib {which} type local", fib + _compare(struct.pack("=I", _RTN_LOCAL)))


def is_new() -> Statement:
    """Matches the first packets of connections."""
    return Statement("ct state new", _ct(_CT_STATE) + _has_bits(_CT_STATE_NEW))


def is_translated() -> Statement:
    """Matches packets of connections whose destination was changed."""
    return Statement("ct status dnat", _ct(_CT_STATUS) + _has_bits(_CT_STATUS_DNAT))


def _ct(key: int) -> bytes:
    return _expression("ct", _register(1, 0), _number(2, key))


def has_mark(bit: int) -> Statement:
    """Matches packets whose mark has the bit."""
    return Statement(f"meta mark & 0x{bit:08x} != 0x00000000", _meta(_META_MARK)(0) + _has_bits(bit))


def set_mark(bit: int) -> Statement:
    """Sets the bit in the packet's mark."""
    return Statement(f"meta mark set meta mark | 0x{bit:08x}", _change_mark(~bit & 0xFFFFFFFF, bit))


def flip_mark(bit: int) -> Statement:
    """Flips the bit in the packet's mark."""
    return Statement(f"meta mark set meta mark ^ 0x{bit:08x}", _change_mark(0xFFFFFFFF, bit))


def _change_mark(mask: int, xor: int) -> bytes:
    changed = _bitwise(struct.pack("=I", mask), struct.pack("=I", xor))
    return _meta(_META_MARK)(0) + changed + _expression("meta", _number(2, _META_MARK), _register(3, 0))


def masquerade() -> Statement:
    """Gives the connection the node's address and any free port as its source."""
    return Statement("masquerade fully-random", _expression("masq", _number(1, _RANDOM_FULLY)))


def reject(family: Family) -> Statement:
    """Answers with ICMP port unreachable."""
    code = b"\3" if family is Family.IPV4 else b"\4"
    return Statement("reject", _expression("reject", _number(1, 0), attribute(2, code)))


def is_protocol(protocol: str) -> Statement:
    """Matches packets of a transport protocol, by its Kubernetes name."""
    number = PROTOCOLS[protocol]
    return Statement(f"meta l4proto {protocol.lower()}", _meta(_META_L4PROTO)(0) + _compare(bytes((number,))))


def to_endpoint(family: Family, address: str) -> Statement:
    """Sends the connection to one endpoint ("ip:port", IPv6 in brackets)."""
    ip, port = split_host_port(address)
    packed = ipaddress.ip_address(ip).packed
    loads = _expression("immediate", _register(1, 0), _value(2, packed)) + _expression(
        "immediate", _register(1, 4), _value(2, struct.pack("!H", port))
    )
    return Statement(f"dnat to {address}", loads + _destination_nat(family, 4))


def to_mapped_endpoint(family: Family, fields: Iterable[Field], name: str) -> Statement:
    """Sends the connection to the endpoint that a map has for the fields; nothing happens when it has none."""
    text, loads = _loaded(fields)
    protocol = "ip" if family is Family.IPV4 else "ip6"
    found = _lookup(name, _register(3, 0))
    nat = _destination_nat(family, destination(family).words)
    return Statement(f"dnat {protocol} to {text} map @{name}", loads + found + nat)


def _destination_nat(family: Family, port_word: int) -> bytes:
    number = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    address, port = _register(3, 0), _register(5, port_word)
    return _expression("nat", _number(1, _NAT_DESTINATION), _number(2, number), address, port)


def remember_client(family: Family, name: str, seconds: int) -> Statement:
    """Puts the client into a set for so long, or begins that time anew."""
    timeout = attribute(6, struct.pack("!Q", seconds * 1000))
    field = source(family)
    update = _expression("dynset", _string(1, name), _number(3, _DYNSET_UPDATE), _register(4, 0), timeout)
    return Statement(f"update @{name} {{ {field.text} timeout {seconds}s }}", field.load(0) + update)


def one_in(count: int) -> Statement:
    """Matches one of ``count`` packets, at random."""
    return Statement(f"numgen random mod {count} 0", random_number(count).load(0) + _compare(bytes(4)))
