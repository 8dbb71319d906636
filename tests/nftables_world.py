"""What tests of real nftables tables share: bare nodes, and what a kernel holds, to the byte."""

from __future__ import annotations

import contextlib
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from netns_world import world

from kproxy.proxy.backends.nftables import messages as kinds
from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import Holds, fixed_containers
from kproxy.proxy.backends.nftables.kernel import KernelTable
from kproxy.proxy.backends.nftables.layout import Settings
from kproxy.proxy.backends.nftables.writer import NetlinkWriter, NftablesBackend
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NETLINK_NETFILTER, Netlink, attribute, attributes, nfnetlink_body
from netns.build import build
from netns.namespace import Namespace, run_in
from netns.topology import NamespaceSpec, Role, Topology

HANDLE, KERNELS_NAME_OF_THE_TYPE, COUNT = 16, 19, 20
"""Attributes of a set that say nothing of what was asked for."""


class Contents(NamedTuple):
    """A table: sets with all their attributes, elements, base chains with their hooks, and rules in order."""

    sets: dict[str, dict[int, bytes]]
    elements: dict[str, Any]
    chains: dict[str, Any]
    rules: dict[str, list[tuple[bytes, bytes]]]


@contextlib.contextmanager
def bare_nodes(prefix: str, *nodes: str) -> Iterator[list[Namespace]]:
    """Namespaces with nothing in them; gone whatever happens."""
    with world(prefix) as place, contextlib.closing(place.journal()) as journal:
        specs = tuple(NamespaceSpec(f"{place.prefix}-{name}", Role.NODE) for name in nodes)
        build(Topology(specs, alias=f"test:{place.prefix}"), journal, place.private)
        yield [place.namespace(name) for name in nodes]


@contextlib.contextmanager
def backend_in(
    namespace: Namespace, settings: Settings, writer: type[NetlinkWriter] = NetlinkWriter
) -> Iterator[NftablesBackend]:
    """A backend whose sockets belong to the namespace; one that runs nft has to be called in there too."""
    backend = run_in(namespace, lambda: NftablesBackend(settings, writer(settings.family)))
    with contextlib.closing(backend):
        yield backend


def nft(namespace: Namespace, *words: str, text: str | None = None) -> str:
    """The output of nft in a namespace."""
    done = run_in(namespace, subprocess.run, ["nft", *words], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def contents(namespace: Namespace, family: Family, *, has_numbers: bool = True) -> Contents:
    """What the kernel holds of the family's table.

    Args:
        namespace: where.
        family: whose.
        has_numbers: False leaves out which endpoint has which number, but not that the numbers have no gap.
    """
    return run_in(namespace, _contents, family, has_numbers)


def _contents(family: Family, has_numbers: bool) -> Contents:
    with Netlink(NETLINK_NETFILTER) as netlink:
        table = KernelTable(netlink, family)
        if not table.exists():
            return Contents({}, {}, {}, {})
        sets = dict(_sets(netlink, family))
        balanced = {each.name for each in fixed_containers(family) if each.holds is Holds.ENDPOINT}
        elements: dict[str, Any] = {name: sorted(table.elements(name)) for name in sets}
        if not has_numbers:
            elements.update({name: _without_numbers(elements[name]) for name in balanced})
        rules: dict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
        for chain, expressions, data in table.rules():
            rules[chain].append((expressions, data))
        return Contents(sets, elements, dict(table.chains()), dict(rules))


def _sets(netlink: Netlink, family: Family) -> Iterator[tuple[str, dict[int, bytes]]]:
    body = nfnetlink_body(kinds.address_family(family), attribute(kinds.SET_TABLE, names.TABLE.encode() + b"\0"))
    for message in netlink.dump((kinds.SUBSYSTEM << 8) | kinds.GET_SET, body):
        given = attributes(message[4:])
        told = {kind: value for kind, value in given.items() if kind not in (HANDLE, KERNELS_NAME_OF_THE_TYPE, COUNT)}
        yield given[kinds.SET_NAME].rstrip(b"\0").decode(), told


def _without_numbers(elements: list[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, dict[int, bytes]] = defaultdict(dict)
    for element in elements:
        given = attributes(element)
        key, data = (attributes(given[kind])[1] for kind in (kinds.ELEMENT_KEY, kinds.ELEMENT_DATA))
        found[key[:-4]][int.from_bytes(key[-4:], "little")] = data
    for frontend, numbered in found.items():
        assert sorted(numbered) == list(range(len(numbered))), (frontend, numbered)
    return {frontend: sorted(numbered.values()) for frontend, numbered in found.items()}
