"""The order in which a transaction changes the table; the same for every writer.

Law: pure. The kernel takes a batch request by request: what is named has to be there by then, and what is deleted must
not be led to any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from kproxy.proxy.backends.nftables.containers import Container, Data, Holds
from kproxy.proxy.backends.nftables.layout import BASE_CHAINS
from kproxy.proxy.backends.nftables.messages import BaseChain
from kproxy.proxy.backends.nftables.statements import Rule
from kproxy.proxy.backends.nftables.table import Found, Steps, Table

T = TypeVar("T", covariant=True)


class Language(Protocol[T]):
    """What a writer can say, request by request."""

    def add_table(self) -> T:
        """Creates the table, unless it is there."""

    def delete_table(self) -> T:
        """Deletes the table with all that it holds."""

    def add_chain(self, name: str, base: BaseChain | None = None) -> T:
        """Creates a chain, unless it is there."""

    def flush_chain(self, name: str) -> T:
        """Deletes all rules of a chain."""

    def delete_chain(self, name: str) -> T:
        """Deletes a chain that nothing leads to."""

    def add_rule(self, chain: str, rule: Rule) -> T:
        """Appends a rule to a chain."""

    def add_container(self, container: Container) -> T:
        """Creates a set or a map, unless it is there."""

    def flush_container(self, container: Container) -> T:
        """Deletes all elements of a set or map."""

    def delete_container(self, name: str) -> T:
        """Deletes a set or map that no rule uses."""

    def add_elements(self, container: Container, elements: Iterable[tuple[bytes, Data]]) -> Iterable[T]:
        """Adds elements."""

    def delete_elements(self, container: Container, keys: Iterable[bytes]) -> Iterable[T]:
        """Deletes elements."""


def in_order(steps: Steps, table: Table, found: Found, say: Language[T]) -> Iterator[T]:
    """What carries steps out.

    Args:
        steps: what has to be done.
        table: whose containers they name.
        found: what is in the kernel.
        say: the writer's words.
    """
    # of a table that is foreign, and goes as a whole, nothing is left to take away
    unused = [] if found.is_foreign else sorted(steps.unused_chains)
    if steps.is_full:
        yield from _start(found, say)
    for container in steps.containers.values():
        yield say.add_container(container)
    for chain in steps.chains:
        yield say.add_chain(chain, BASE_CHAINS.get(chain))
    yield from _empty(steps, unused, say)
    for name, keys in steps.deleted.items():
        yield from say.delete_elements(table.container(name), keys)
    for chain, rules in steps.chains.items():
        for rule in rules:
            yield say.add_rule(chain, rule)
    for name, elements in steps.added.items():
        yield from say.add_elements(table.container(name), elements.items())
    for chain in unused:
        yield say.delete_chain(chain)
    for name in () if found.is_foreign else sorted(steps.unused_containers):
        yield say.delete_container(name)


def _start(found: Found, say: Language[T]) -> Iterator[T]:
    yield say.add_table()
    if found.is_foreign:
        yield say.delete_table()
        yield say.add_table()


def _empty(steps: Steps, unused: Iterable[str], say: Language[T]) -> Iterator[T]:
    for chain in (*steps.chains, *unused) if steps.is_full else (*sorted(steps.rewritten), *unused):
        yield say.flush_chain(chain)
    for container in steps.containers.values() if steps.is_full else ():
        if container.holds is not Holds.CLIENTS:  # what the kernel put in stays
            yield say.flush_container(container)
