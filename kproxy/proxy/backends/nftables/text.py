"""The table as text for ``nft -f``: the second writer, and what ``kproxy render`` prints.

For comparison, and for kernels that take from nft what they refuse from us. Each sync writes everything: nft 1.0.6 and
newer take maps whose types are given by expressions, but what they read back of one of these from the kernel 1.0.6
refuses ("conflicting protocols specified"), so that it can make such a map and not change it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator

from kproxy.errors import HostError, TransactionError
from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import Container, Data, Holds, declaration, element_text, key_text
from kproxy.proxy.backends.nftables.messages import BaseChain
from kproxy.proxy.backends.nftables.statements import Rule
from kproxy.proxy.backends.nftables.steps import in_order
from kproxy.proxy.backends.nftables.table import Found, Steps, Table
from kproxy.proxy.backends.nftables.writer import Busy, NetlinkWriter
from kproxy.proxy.family import Family

_TIMEOUT = 300.0  # seconds
_ELEMENTS_IN_LINE = 500
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_COMPLAINT = re.compile(r"^[^:]+:(\d+):\d+-\d+: Error: (.*)$", re.MULTILINE)


class Lines:
    """Commands of nft about one family's table, one a line."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._at = f"{'ip' if family is Family.IPV4 else 'ip6'} {names.TABLE}"

    def add_table(self) -> str:
        """Creates the table, unless it is there."""
        return f'add table {self._at} {{ comment "{names.TABLE_COMMENT}" ; }}'

    def delete_table(self) -> str:
        """Deletes the table with all that it holds."""
        return f"delete table {self._at}"

    def add_chain(self, name: str, base: BaseChain | None = None) -> str:
        """Creates a chain, unless it is there."""
        hook = f" {{ type {base.type} hook {base.hook_name} priority {base.priority} ; }}" if base else ""
        return f"add chain {self._at} {name}{hook}"

    def flush_chain(self, name: str) -> str:
        """Deletes all rules of a chain."""
        return f"flush chain {self._at} {name}"

    def delete_chain(self, name: str) -> str:
        """Deletes a chain that nothing leads to."""
        return f"delete chain {self._at} {name}"

    def add_rule(self, chain: str, rule: Rule) -> str:
        """Appends a rule to a chain."""
        return f"add rule {self._at} {chain} {rule.text}"

    def add_container(self, container: Container) -> str:
        """Creates a set or a map, unless it is there."""
        return f"add {_kind(container)} {self._at} {container.name} {{ {declaration(container, self._family)} ; }}"

    def flush_container(self, container: Container) -> str:
        """Deletes all elements of a set or map; one that nft cannot change is made anew."""
        empty = f"flush {_kind(container)} {self._at} {container.name}"
        if not container.is_typed_by_rules:
            return empty
        return "\n".join((empty, f"delete map {self._at} {container.name}", self.add_container(container)))

    def delete_container(self, name: str) -> str:
        """Deletes a set that no rule uses."""
        return f"delete set {self._at} {name}"

    def add_elements(self, container: Container, elements: Iterable[tuple[bytes, Data]]) -> Iterator[str]:
        """Adds elements, some hundreds a line."""
        texts = (element_text(container, key, data) for key, data in elements)
        return _in_lines(f"add element {self._at} {container.name}", texts)

    def delete_elements(self, container: Container, keys: Iterable[bytes]) -> Iterator[str]:
        """Deletes elements, some hundreds a line."""
        texts = (key_text(container.key, key) for key in keys)
        return _in_lines(f"delete element {self._at} {container.name}", texts)


def script(steps: Steps, table: Table, found: Found, family: Family) -> list[str]:
    """Lines for ``nft -f`` that carry steps out."""
    return "\n".join(in_order(steps, table, found, Lines(family))).splitlines()


def _kind(container: Container) -> str:
    return "map" if container.holds in (Holds.VERDICT, Holds.ENDPOINT) else "set"


def _in_lines(command: str, texts: Iterable[str]) -> Iterator[str]:
    held = list(texts)
    for first in range(0, len(held), _ELEMENTS_IN_LINE):
        yield f"{command} {{ {', '.join(held[first : first + _ELEMENTS_IN_LINE])} }}"


class NftWriter(NetlinkWriter):
    """Writes with ``nft -f``; looks over nfnetlink.

    Args:
        family: whose table.
    """

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._nft = shutil.which("nft", path=_SYSTEM_PATH) or "nft"

    def write(self, steps: Steps, table: Table, found: Found, generation: int | None) -> bool:
        """Carry steps out in one transaction; nft guards against other writers itself, so that it is always done.

        Raises:
            Busy: a chain that is to be deleted is still held; nothing has changed.
            TransactionError: nft or the kernel refused; nothing has changed.
            HostError: nft could not be run.
        """
        if not steps.is_full:
            found, _ = self.found()
            table, delta = table.anew()
            steps = table.take(delta, found)
        lines = script(steps, table, found, self._family)
        argv = (self._nft, "-f", "-")
        try:
            done = subprocess.run(  # noqa: S603 - an argument list, no shell
                argv, input="\n".join((*lines, "")), capture_output=True, text=True, timeout=_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"nft could not be run: {error}", command=argv) from error
        if done.returncode == 0:
            return True
        complaint = _COMPLAINT.search(done.stderr)
        number, reason = (int(complaint[1]), complaint[2]) if complaint else (0, "nft refused the transaction")
        line = lines[number - 1] if 0 < number <= len(lines) else ""
        kind = Busy if line.startswith("delete chain ") and "busy" in reason else TransactionError
        raise kind(reason, line=number, text=line, command=argv, stderr=done.stderr)
