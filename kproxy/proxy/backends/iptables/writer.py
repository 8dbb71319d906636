"""Writes rule sets with iptables-restore: one call per sync and family, each table whole or not at all."""

from __future__ import annotations

import re

from kproxy.errors import HostError, TransactionError
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.iptables import chains
from kproxy.proxy.backends.iptables.host import LOCK_WAIT_SECONDS, Tools, run_tool
from kproxy.proxy.backends.iptables.render import CANARY_TABLES, TABLES, Found, RuleSet, parse_saved
from kproxy.proxy.backends.iptables.rules import CLEANED_JUMPS, Settings
from kproxy.proxy.plan import PlanDelta

_LINE_NUMBER = re.compile(r"(?:^|\s|:)line:? (\d+)")


class IptablesBackend:
    """One family's tables of this network namespace.

    Args:
        tools: the variant's tools.
        settings: what rules depend on beside plans.
    """

    def __init__(self, tools: Tools, settings: Settings) -> None:
        self._tools = tools
        self._rules = RuleSet(settings)
        self._found = Found()

    def apply(self, delta: PlanDelta) -> None:
        """Make the kernel hold what the delta says.

        Raises:
            TransactionError: iptables-restore refused; tables before the refused one may be new already.
            HostError: the tools could not be run.
        """
        changed = self._rules.take(delta)
        if delta.is_full:
            self._found = parse_saved(run_tool((self._tools.save,)))
            self._restore(self._rules.restore_all(self._found))
        elif text := self._rules.restore_changed(changed):
            self._restore(text)

    def earlier_udp_frontends(self) -> frozenset[tuple[str, int]]:
        """UDP frontends in the kernel before the last full sync, as (address, port); a node port's address is empty."""
        return self._found.udp_frontends

    def condition(self) -> Condition:
        """How much of what was written is left, told by the canary chains.

        Raises:
            HostError: the tools could not be run.
        """
        if _has_canary(run_tool((self._tools.save, "-t", "mangle"))):
            return Condition.INTACT
        if any(_has_canary(run_tool((self._tools.save, "-t", table))) for table in CANARY_TABLES[1:]):
            return Condition.BEING_LOST
        return Condition.LOST

    def _restore(self, text: str) -> None:
        argv = (self._tools.restore, "-w", str(LOCK_WAIT_SECONDS), "--noflush", "--counters")
        try:
            run_tool(argv, text)
        except HostError as error:
            number = int(found[1]) if (found := _LINE_NUMBER.search(error.stderr)) else 0
            lines = text.splitlines()
            line = lines[number - 1] if 0 < number <= len(lines) else ""
            raise TransactionError(
                "iptables-restore refused the rules", line=number, text=line, command=argv, stderr=error.stderr
            ) from error


def _has_canary(saved: str) -> bool:
    return f":{chains.CANARY} " in saved


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
        rules = found.built_in_rules.get(table, frozenset())
        jumps = [f"-D{jump.rule[2:]}" for jump in CLEANED_JUMPS if jump.table == table and jump.rule in rules]
        if gone or jumps:
            declared = [f":{chain} - [0:0]" for chain in gone]
            parts += [f"*{table}", *declared, *jumps, *(f"-X {chain}" for chain in gone), "COMMIT"]
    if parts:
        run_tool((tools.restore, "-w", str(LOCK_WAIT_SECONDS), "--noflush"), "\n".join((*parts, "")))


def _is_ours(table: str, chain: str) -> bool:
    shared = {"mangle": (), "filter": chains.FILTER_CHAINS, "nat": chains.NAT_CHAINS}[table]
    is_service_chain = table == "nat" and chain.startswith(chains.OWN_PREFIXES)
    return chain in shared or chain == chains.CANARY or is_service_chain
