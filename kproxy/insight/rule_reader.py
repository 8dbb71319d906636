"""The process that reads one node's legacy iptables tables with python-iptables, for `kproxy.insight.rule_counters`.

Law: it enters the namespace before ``import iptc`` (which keeps handles by table name, whatever the namespace), it
reads one family (with a second one python-iptables 1.2.0 cannot find MASQUERADE any more), it never writes a rule, and
it speaks through a socket, since iptc redirects file descriptor 1.

A request is a line ``counters`` or ``rules``; the answer is one line of JSON: ``shape`` says whether the rules are
still the same ones, ``found`` the packet counters in order or the rules as `Rule` takes them.
"""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from netns import libc

TABLES = ("nat", "filter")


class Reader:
    """Reads through python-iptables.

    Args:
        table: python-iptables' class of tables, ``Table`` or ``Table6``.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def counters(self) -> tuple[str, list[int]]:
        """A digest of the chains and all that is in them but counters, and every rule's packet counter."""
        digest = hashlib.sha256()
        packets: list[int] = []
        for table in self._tables():
            for chain in table.chains:
                digest.update(f"{table.name} {chain.name}\n".encode())
                for entry in _entries(table, chain.name):
                    packets.append(entry.counters.pcnt)
                    digest.update((table.get_target(entry) or b"") + b"\n" + _without_counters(entry))
        return digest.hexdigest(), packets

    def rules(self) -> tuple[str, list[list[Any]]]:
        """The same digest, and every rule."""
        shape, _ = self.counters()
        return shape, [
            [table.name, chain.name, number, _target(rule), _matches(rule), _parameters(rule.target), rule.counters[0]]
            for table in self._tables()
            for chain in table.chains
            for number, rule in enumerate(chain.rules, 1)
        ]

    def _tables(self) -> Iterator[Any]:
        for name in TABLES:
            table = self._table(name, autocommit=False)
            table.refresh()
            yield table


def _entries(table: Any, chain: str) -> Iterator[Any]:
    entry = table.first_rule(chain)
    while entry:
        yield entry
        entry = table.next_rule(entry)


def _without_counters(entry: Any) -> bytes:
    """A rule as the kernel has it, with all of its matches and its target."""
    raw = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)
    counters = type(entry).counters
    return raw[: counters.offset] + raw[counters.offset + counters.size :]


def _target(rule: Any) -> str:
    name = rule.target.name if rule.target is not None else ""
    return "" if name is None else str(name)


def _parameters(extension: Any) -> dict[str, str]:
    if extension is None:
        return {}
    return {name: _text(value) for name, value in extension.get_all_parameters().items()}


def _text(value: Any) -> str:
    """A parameter as iptables-save has it; python-iptables gives lists, with "!" first where it is inverted."""
    words = [value] if isinstance(value, str) else [str(word) for word in value]
    inverted = "!" if words[:1] == ["!"] else ""
    return inverted + " ".join(words[1:] if inverted else words)


def _matches(rule: Any) -> dict[str, dict[str, str]]:
    ip = {
        "source": _network(rule.src),
        "destination": _network(rule.dst),
        "protocol": rule.protocol if rule.protocol not in ("ip", "ipv6") else "",
        "in": rule.in_interface or "",
        "out": rule.out_interface or "",
    }
    found = {"ip": {name: value for name, value in ip.items() if value}}
    for match in rule.matches:
        found.setdefault(match.name, {}).update(_parameters(match))
    return found


def _network(text: str) -> str:
    """An address and mask as a prefix; empty for "any"."""
    inverted = "!" if text.startswith("!") else ""
    network = ipaddress.ip_network(text.removeprefix("!"), strict=False)
    return "" if network.prefixlen == 0 else f"{inverted}{network}"


def main(namespace: int, connection: int, family: int) -> None:
    """Serves requests until the client hangs up."""
    libc.setns(namespace)
    os.close(namespace)
    reader = Reader(getattr(import_module("iptc"), "Table" if family == 4 else "Table6"))
    with socket.socket(fileno=connection) as client:
        for line in client.makefile("r"):
            answer: dict[str, Any]
            try:
                shape, found = reader.counters() if line.strip() == "counters" else reader.rules()
                answer = {"shape": shape, "found": found}
            except Exception as error:  # noqa: BLE001 - python-iptables raises its own kinds; the client says it
                answer = {"error": f"{type(error).__name__}: {error}"}
            client.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
