"""Writes rule sets with iptables-restore: one call per sync and family, each table whole or not at all.

A full sync of many rules with iptables-nft takes several calls. Only the last changes what packets meet, but for
Service ports that are there already: those are changed some at a time, each of them whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kproxy.errors import TransactionError
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.iptables import chains
from kproxy.proxy.backends.iptables.host import ToolFailed, Tools, run_tool
from kproxy.proxy.backends.iptables.render import CANARY_TABLES, TABLES, Found, RuleSet, counted, parse_saved
from kproxy.proxy.backends.iptables.rules import CLEANED_JUMPS, Settings
from kproxy.proxy.plan import PlanDelta

RunTool = Callable[[Sequence[str], Iterable[str]], str]
"""Runs a tool with an input, piece by piece, and returns its output; raises HostError when it fails."""
MakeInput = Callable[[], Iterable[str]]
"""Makes an input for iptables-restore, the same one each time."""
OnWritten = Callable[[Mapping[str, int], Mapping[str, int]], None]
"""Told after each write, per table: how many rules there are of ours, and how many were written."""

MAX_NFT_RULES = 10_000
"""More are cut: the time of iptables-nft-restore 1.8.9 grows with the square of what it is given at once (0.7 s for
this much), but hardly with what is there."""
_PORTS_AT_A_TIME = 64

_LINE_NUMBER = re.compile(r"(?:^|\s|:)line:? (\d+)")


class IptablesBackend:
    """One family's tables of this network namespace.

    Args:
        tools: the variant's tools.
        settings: what rules depend on beside plans.
        on_written: told how much was written.
        run: runs the tools.
    """

    def __init__(
        self,
        tools: Tools,
        settings: Settings,
        on_written: OnWritten = lambda _total, _last: None,
        run: RunTool = run_tool,
    ) -> None:
        self._tools = tools
        self._rules = RuleSet(settings)
        self._found = Found()
        self._on_written = on_written
        self._run = run

    def apply(self, delta: PlanDelta) -> None:
        """Make the kernel hold what the delta says.

        Raises:
            TransactionError: iptables-restore refused; tables before the refused one may be new already.
            HostError: the tools could not be run.
        """
        changed = self._rules.take(delta)
        if delta.is_full:
            self._found = parse_saved(self._run((self._tools.save,), ()))
            self._write(self._everything())
        elif pieces := self._rules.restore_changed(changed):
            self._write((pieces.copy,))

    def _everything(self) -> Iterator[MakeInput]:
        """What a full sync gives to the tool: all at once, or cut for a tool that would take for ever."""
        rules = self._rules
        is_cut = self._tools.variant == "nft" and sum(rules.rule_counts.values()) > MAX_NFT_RULES
        for pieces in rules.restore_own_chains(_PORTS_AT_A_TIME) if is_cut else ():
            yield pieces.copy
        yield lambda: rules.restore_all(self._found, has_own_chains=not is_cut)

    def _write(self, inputs: Iterable[MakeInput]) -> None:
        written: Counter[str] = Counter()
        for make in inputs:
            written.update(self._restore(make))
        self._on_written(self._rules.rule_counts, written)

    def earlier_udp_frontends(self) -> frozenset[tuple[str, int]]:
        """UDP frontends in the kernel before the last full sync, as (address, port); a node port's address is empty."""
        return self._found.udp_frontends

    def condition(self) -> Condition:
        """How much of what was written is left, told by the canary chains.

        Raises:
            HostError: the tools could not be run.
        """
        if self._has_canary("mangle"):
            return Condition.INTACT
        if any(self._has_canary(table) for table in CANARY_TABLES[1:]):
            return Condition.BEING_LOST
        return Condition.LOST

    def _has_canary(self, table: str) -> bool:
        return f":{chains.CANARY} " in self._run((self._tools.save, "-t", table), ())

    def restore_command(self) -> tuple[str, ...]:
        """What takes a restore text as its input."""
        return (self._tools.restore, "-w", str(self._tools.lock_wait), "--noflush", "--counters")

    def _restore(self, make: MakeInput) -> Mapping[str, int]:
        """Write what ``make`` makes: the tool reads the beginning while the rest is made; returns how many rules."""
        argv = self.restore_command()
        written: dict[str, int] = {}
        try:
            self._run(argv, counted(make(), written))
        except ToolFailed as error:
            number = int(found[1]) if (found := _LINE_NUMBER.search(error.stderr)) else 0
            line = _line_of("".join(make()), number)
            raise TransactionError(error.reason, line=number, text=line, command=argv, stderr=error.stderr) from error
        return written


def _line_of(text: str, number: int) -> str:
    """A line of an input by its number; a COMMIT, where the kernel's own refusals surface, with its table."""
    lines = text.splitlines()
    if not 0 < number <= len(lines):
        return ""
    line = lines[number - 1]
    if line != "COMMIT":
        return line
    return f"COMMIT of table {next(above[1:] for above in reversed(lines[:number]) if above.startswith('*'))}"


def clean_up(tools: Tools) -> None:
    """Take everything of a node proxy's out of one family's tables (kube-proxy: --cleanup).

    KUBE-FIREWALL and the jumps to it stay: they are kubelet's as well.

    Raises:
        HostError: the tools could not be run, or refused.
    """
    found = parse_saved(run_tool((tools.save,)))
    parts = []
    for table in ("mangle", *TABLES):
        present = found.chains.get(table, frozenset())
        gone = sorted(chain for chain in present if _is_ours(table, chain))
        rules = found.built_in_rules.get(table, ())
        jumps = [f"-D{jump.rule[2:]}" for jump in CLEANED_JUMPS if jump.table == table and jump.rule in rules]
        if gone or jumps:
            declared = [f":{chain} - [0:0]" for chain in gone]
            parts += [f"*{table}", *declared, *jumps, *(f"-X {chain}" for chain in gone), "COMMIT"]
    if parts:
        run_tool((tools.restore, "-w", str(tools.lock_wait), "--noflush"), ("\n".join((*parts, "")),))


def _is_ours(table: str, chain: str) -> bool:
    shared = {"mangle": (), "filter": chains.FILTER_CHAINS, "nat": chains.NAT_CHAINS}[table]
    is_service_chain = table == "nat" and chain.startswith(chains.OWN_PREFIXES)
    return chain in shared or chain == chains.CANARY or is_service_chain
