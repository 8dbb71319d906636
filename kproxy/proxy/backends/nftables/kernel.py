"""What the kernel holds of one family's table, read over nfnetlink.

Law: it looks, it never changes anything. Layouts are the kernel's (linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from kproxy.proxy.backends.nftables import messages as kinds
from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import Part, fixed_containers, key_text, node_port_addresses
from kproxy.proxy.backends.nftables.layout import BASE_CHAINS
from kproxy.proxy.backends.nftables.messages import Messages, address_family
from kproxy.proxy.backends.nftables.statements import Verdict
from kproxy.proxy.backends.nftables.table import Found
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NLA_F_NESTED, Netlink, attribute, attributes, nfnetlink_body

_GET_GENERATION = 16
_GENERATION_ID = 1
_HEAD = 4
_DATA_VERDICT = 2
_UDP = socket.IPPROTO_UDP
_FRONTENDS = (
    names.SERVICE_IPS,
    names.NO_ENDPOINT_SERVICES,
    names.SERVICE_NODE_PORTS,
    names.NO_ENDPOINT_NODE_PORTS,
)
_DEFINITION = (kinds.SET_FLAGS, kinds.SET_KEY_TYPE, kinds.SET_KEY_SIZE, kinds.SET_DATA_TYPE, kinds.SET_DATA_SIZE)


class KernelTable:
    """One family's table in this network namespace.

    Args:
        netlink: an open socket of NETLINK_NETFILTER.
        family: which.
    """

    def __init__(self, netlink: Netlink, family: Family) -> None:
        self._netlink = netlink
        self._family = family
        self._number = address_family(family)

    def generation(self) -> int:
        """The generation of all rule sets of the namespace.

        Raises:
            OSError: the kernel refused.
        """
        found = next(iter(self._ask(_GET_GENERATION, b"", has_dump=False)))
        return int.from_bytes(attributes(found[_HEAD:])[_GENERATION_ID], "big")

    def exists(self) -> bool:
        """Whether the table is there.

        Raises:
            OSError: the kernel refused.
        """
        try:
            list(self._ask(kinds.GET_TABLE, attribute(kinds.TABLE_NAME, names.TABLE.encode() + b"\0"), has_dump=False))
        except FileNotFoundError:
            return False
        return True

    def found(self) -> Found:
        """What is there, as far as a full sync has to know.

        Raises:
            OSError: the kernel refused.
            DumpInterrupted: it changed meanwhile.
        """
        if not self.exists():
            return Found()
        chains = dict(self.chains())
        containers = dict(self.containers())
        expected = {each.name: each for each in (*fixed_containers(self._family), node_port_addresses(self._family))}
        make = Messages(self._family)
        is_foreign = any(
            definition != _definition(attributes(make.add_container(expected[name]).body[_HEAD:]))
            for name, definition in containers.items()
            if name in expected
        )
        is_foreign |= any(base != _expected_base(name) for name, base in chains.items())
        present = [name for name in _FRONTENDS if name in containers]
        frontends = () if is_foreign else (each for name in present for each in self._udp_frontends(name))
        return Found(frozenset(chains), frozenset(containers), is_foreign, frozenset(frontends), exists=True)

    def chains(self) -> Iterator[tuple[str, tuple[str, int, int] | None]]:
        """Every chain of the table, with type, hook and priority if packets enter there.

        Raises:
            OSError: the kernel refused.
        """
        for message in self._ask(kinds.GET_CHAIN, b""):
            given = attributes(message[_HEAD:])
            if _text(given[kinds.CHAIN_TABLE]) != names.TABLE:
                continue
            base = None
            if kinds.CHAIN_HOOK in given:
                hook = attributes(given[kinds.CHAIN_HOOK])
                priority = struct.unpack("!i", hook[kinds.HOOK_PRIORITY])[0]
                base = (_text(given[kinds.CHAIN_TYPE]), int.from_bytes(hook[kinds.HOOK_NUMBER], "big"), priority)
            yield _text(given[kinds.CHAIN_NAME]), base

    def containers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every set and map of the table, and what it is made of.

        Raises:
            OSError: the kernel refused.
        """
        for message in self._ask(kinds.GET_SET, attribute(kinds.SET_TABLE, names.TABLE.encode() + b"\0")):
            given = attributes(message[_HEAD:])
            yield _text(given[kinds.SET_NAME]), _definition(given)

    def elements(self, container: str) -> Iterator[bytes]:
        """The elements of a set or map, each as the kernel lists it.

        Raises:
            OSError: the kernel refused.
        """
        table = attribute(kinds.ELEMENTS_TABLE, names.TABLE.encode() + b"\0")
        wanted = table + attribute(kinds.ELEMENTS_SET, container.encode() + b"\0")
        for message in self._ask(kinds.GET_ELEMENT, wanted):
            for _, element in kinds.elements_in(bytes(message)):
                yield element[_HEAD:]

    def verdict(self, container: str, key: bytes) -> str:
        """What a verdict map has for a key: the chain's name, or the verdict's; empty when it has nothing.

        Raises:
            OSError: the kernel refused.
        """
        table = attribute(kinds.ELEMENTS_TABLE, names.TABLE.encode() + b"\0")
        wanted = table + attribute(kinds.ELEMENTS_SET, container.encode() + b"\0")
        wanted += attribute(kinds.ELEMENTS | NLA_F_NESTED, kinds.element(key, b""))
        try:
            (message,) = self._ask(kinds.GET_ELEMENT, wanted, has_dump=False)
        except FileNotFoundError:
            return ""
        ((_, element),) = kinds.elements_in(bytes(message))
        data = attributes(attributes(element[_HEAD:])[kinds.ELEMENT_DATA])
        code, chain = (attributes(data[_DATA_VERDICT]).get(kind, b"") for kind in (1, 2))
        return _text(chain) or Verdict(struct.unpack("!i", code)[0]).text

    def rules(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Every rule of the table in order: its chain, its expressions and its user data.

        Raises:
            OSError: the kernel refused.
        """
        for message in self._ask(kinds.GET_RULE, attribute(kinds.RULE_TABLE, names.TABLE.encode() + b"\0")):
            given = attributes(message[_HEAD:])
            expressions, data = given.get(kinds.RULE_EXPRESSIONS, b""), given.get(kinds.RULE_USERDATA, b"")
            yield _text(given[kinds.RULE_CHAIN]), expressions, data

    def _udp_frontends(self, container: str) -> Iterator[tuple[str, int]]:
        address = Part.IPV4 if self._family is Family.IPV4 else Part.IPV6
        size = address.size if container in (names.SERVICE_IPS, names.NO_ENDPOINT_SERVICES) else 0
        for element in self.elements(container):
            key = attributes(attributes(element)[kinds.ELEMENT_KEY])[1]
            if key[size] == _UDP:
                yield key_text((address,), key[:size]) if size else "", int.from_bytes(key[size + 4 : size + 6], "big")

    def _ask(self, kind: int, payload: bytes, *, has_dump: bool = True) -> Iterator[memoryview]:
        body = nfnetlink_body(self._number, payload)
        number = (kinds.SUBSYSTEM << 8) | kind
        return self._netlink.dump(number, body) if has_dump else self._netlink.ask(number, body)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _definition(given: dict[int, bytes]) -> tuple[int, ...]:
    return tuple(int.from_bytes(given.get(kind, b""), "big") for kind in _DEFINITION)


def _expected_base(name: str) -> tuple[str, int, int] | None:
    base = BASE_CHAINS.get(name)
    return (base.type, base.hook, base.priority) if base else None
