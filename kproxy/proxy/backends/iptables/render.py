"""The whole rule set of one family, kept per service port, and written out in two ways.

``saved`` is what iptables-save would print once the kernel holds it; ``restore`` is the input for iptables-restore that
brings the kernel there from what it holds now: everything, or only the chains of what has changed.

Law: pure. A full and a partial way to the same plans end in the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kproxy.proxy.backends.iptables import chains
from kproxy.proxy.backends.iptables.rules import (
    JUMPS,
    ServiceRules,
    Settings,
    node_port_tail,
    own_chains,
    service_rules,
    static_filter_rules,
    static_nat_rules,
)
from kproxy.proxy.family import Family
from kproxy.proxy.plan import NodePortScope, PlanDelta, PortPlan
from kproxy.proxy.services import ServicePortName

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above this many endpoints kube-proxy leaves the comments of endpoint rules out (largeClusterEndpointsThreshold)."""

CANARY_TABLES = ("mangle", "nat", "filter")
TABLES = ("filter", "nat")
_PORTS_IN_A_PIECE = 64
"""Of 10 endpoints each, that is about as much as a pipe takes at a time."""

_FRONTEND_RULES = tuple(f"-A {chain} " for chain in (chains.SERVICES, chains.EXTERNAL_SERVICES, chains.NODE_PORTS))
_UDP_FRONTEND = re.compile(r"^-A \S+ (?:-d (?P<address>[^/ ]+)/(?:32|128) )?.*-m udp --dport (?P<port>\d+) ")

_JUMP_TARGETS = frozenset(jump.rule.rpartition(" -j ")[2] for jump in JUMPS)
_BUILT_IN = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}


class Found(msgspec.Struct, frozen=True):
    """What the kernel holds before a full sync.

    Attributes:
        chains: names of user-defined chains, per table.
        built_in_rules: rules of built-in chains, per table, in order.
        udp_frontends: (address, port) of every UDP frontend that a rule names; the address of node ports is empty.
    """

    chains: Mapping[str, frozenset[str]] = {}
    built_in_rules: Mapping[str, tuple[str, ...]] = {}
    udp_frontends: frozenset[tuple[str, int]] = frozenset()


class Changed(msgspec.Struct):
    """What a delta did to the rule set, and so what has to be written.

    Attributes:
        ports: service ports whose own chains are new or different.
        stale: nat chains that nothing leads to any more.
        shared: tables whose shared chains are different.
    """

    ports: set[ServicePortName]
    stale: set[str]
    shared: set[str]


class _Part(msgspec.Struct, frozen=True):
    """What one table's part of a restore input holds beside the shared chains.

    Attributes:
        ports: service ports whose own chains are written (nat).
        stale: chains that are deleted (nat).
        extra: further chains to declare.
        jumps: commands for built-in chains.
        has_shared: the shared chains are written as well.
    """

    ports: frozenset[ServicePortName] = frozenset()
    stale: frozenset[str] = frozenset()
    extra: tuple[str, ...] = ()
    jumps: tuple[str, ...] = ()
    has_shared: bool = True


class RuleSet:
    """The rules of all service ports of one family."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plans: dict[ServicePortName, PortPlan] = {}
        # what is in their own chains is made anew when it is written: it is most of the text, and of the memory
        self._rules: dict[ServicePortName, ServiceRules] = {}
        self._endpoints = 0
        self._own_rules = dict.fromkeys(TABLES, 0)
        self._has_comments = True
        self._scope = NodePortScope()

    def take(self, delta: PlanDelta) -> Changed:
        """Take a delta in.

        Returns:
            What is different; after a full delta, or when the cluster becomes or stops being a large one, everything.
        """
        if delta.is_full:
            self._plans, self._rules, self._endpoints = {}, {}, 0
            self._own_rules = dict.fromkeys(TABLES, 0)
        changed = Changed(set(), set(), set())
        if delta.is_full or delta.node_ports != self._scope:
            self._scope = delta.node_ports
            changed.shared.add("nat")
        for name in delta.removed:
            self._forget(name, changed)
        for name, plan in delta.written.items():
            self._endpoints += plan.known_endpoints - (self._plans[name].known_endpoints if name in self._plans else 0)
            self._plans[name] = plan
        has_comments = self._endpoints <= LARGE_CLUSTER_ENDPOINTS
        names: Iterable[ServicePortName] = delta.written if has_comments == self._has_comments else list(self._plans)
        self._has_comments = has_comments
        for name in names:
            self._encode(name, changed)
        if delta.is_full:
            changed.shared.update(TABLES)
        return changed

    def _forget(self, name: ServicePortName, changed: Changed) -> None:
        plan, rules = self._plans.pop(name, None), self._rules.pop(name, None)
        if plan is None or rules is None:
            return
        self._endpoints -= plan.known_endpoints
        self._count(rules, -1)
        changed.stale.update(rules.chains)
        changed.shared.update(table for table in TABLES if _shared(rules, table))

    def _encode(self, name: ServicePortName, changed: Changed) -> None:
        old = self._rules.get(name, ServiceRules())
        new = service_rules(self._plans[name], self._settings)
        self._rules[name] = new
        self._count(old, -1)
        self._count(new, +1)
        changed.ports.add(name)
        changed.stale.update(set(old.chains).difference(new.chains))
        changed.shared.update(table for table in TABLES if _shared(old, table) != _shared(new, table))

    def _count(self, rules: ServiceRules, sign: int) -> None:
        self._own_rules["filter"] += sign * len(rules.filter)
        self._own_rules["nat"] += sign * (len(rules.nat) + rules.count)

    @property
    def rule_counts(self) -> dict[str, int]:
        """Rules in our own chains, per table; the jumps to them are not counted (as in kube-proxy)."""
        tail = node_port_tail(self._scope, self._settings.family)
        static = {
            "filter": len(static_filter_rules(self._settings)),
            "nat": len(static_nat_rules(self._settings)) + len(tail),
        }
        return {table: self._own_rules[table] + static[table] for table in TABLES}

    @property
    def active_chains(self) -> set[str]:
        """Per-service and per-endpoint nat chains that are in use."""
        return {chain for rules in self._rules.values() for chain in rules.chains}

    def saved(self) -> str:
        """What iptables-save prints for tables filter and nat of a host on which nothing else is."""
        return "".join(self._saved_table(table) for table in TABLES)

    def _saved_table(self, table: str) -> str:
        held: dict[str, list[str]] = {chain: [] for chain in _BUILT_IN[table]}
        for jump in reversed(JUMPS):
            if jump.table == table:
                held[jump.chain].append(jump.rule)
        own = {chain: list(rules) for chain, rules in self._shared_chains(table).items()}
        own.setdefault(chains.CANARY, [])
        if table == "nat":
            own.update({chain: list(rules) for name in self._rules for chain, rules in self._own_chains(name)})
        else:
            own.setdefault(chains.KUBELET_FIREWALL, [])
        lines = [f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in held)]
        lines += [f":{chain} - [0:0]" for chain in sorted(own)]
        for rules in (*held.values(), *(own[chain] for chain in sorted(own))):
            lines += rules
        return "\n".join((*lines, "COMMIT", ""))

    def restore_own_chains(self, ports_at_a_time: int) -> Iterator[list[str]]:
        """Inputs for iptables-restore --noflush that write service ports' own chains, ahead of ``restore_all``.

        Each is whole by itself: what a packet meets is a Service as it was or as it is, and a chain that is new is met
        by none, for nothing leads to it yet.
        """
        marks = [rule for chain, rule in static_nat_rules(self._settings) if chain == chains.MARK_MASQ]
        yield ["\n".join(("*nat", f":{chains.MARK_MASQ} - [0:0]", *marks, "COMMIT", ""))]
        ports = sorted(self._rules)
        for first in range(0, len(ports), ports_at_a_time):
            some = frozenset(ports[first : first + ports_at_a_time])
            yield list(self._restore_table("nat", _Part(some, has_shared=False)))

    def restore_all(self, found: Found, *, has_own_chains: bool = True) -> Iterator[str]:
        """Input for iptables-restore --noflush that brings a kernel in any state to this rule set, piece by piece.

        Chains of ours that nothing leads to are deleted, jumps put in order and canaries made, all in
        the same transaction per table.

        Args:
            found: what is in the kernel.
            has_own_chains: False where ``restore_own_chains`` has written those.
        """
        in_kernel = found.chains.get("nat", frozenset())
        stale = {chain for chain in in_kernel if chain.startswith(chains.OWN_PREFIXES)} - self.active_chains
        has_firewall = chains.KUBELET_FIREWALL in found.chains.get("filter", frozenset())
        # declared only when it is missing: a declaration flushes, and kubelet keeps rules in it too
        extra = (chains.CANARY,) if has_firewall else (chains.CANARY, chains.KUBELET_FIREWALL)
        ports = frozenset(self._rules if has_own_chains else ())
        nat = _Part(ports, frozenset(stale), (chains.CANARY,), _jump_repairs("nat", found))
        yield f"*mangle\n:{chains.CANARY} - [0:0]\nCOMMIT\n"
        yield from self._restore_table("filter", _Part(extra=extra, jumps=_jump_repairs("filter", found)))
        yield from self._restore_table("nat", nat)

    def restore_changed(self, changed: Changed) -> list[str]:
        """Pieces of the input for iptables-restore --noflush for what one delta changed; none when that is nothing.

        Chains that stay as they are do not appear, so their counters and recent lists survive.
        """
        parts: list[str] = []
        if "filter" in changed.shared:
            parts += self._restore_table("filter", _Part())
        if changed.ports or changed.stale or "nat" in changed.shared:
            has_shared = "nat" in changed.shared
            part = _Part(frozenset(changed.ports), frozenset(changed.stale), has_shared=has_shared)
            parts += self._restore_table("nat", part)
        return parts

    def _restore_table(self, table: str, part: _Part) -> Iterator[str]:
        """Pieces of whole lines: the head with the shared chains, then some ports at a time, then what is deleted."""
        shared = self._shared_chains(table) if part.has_shared else {}
        ports = sorted(part.ports)
        own = (chain for name in ports for chain in self._rules[name].chains)
        removed = sorted(part.stale)
        declared = dict.fromkeys((*shared, *part.extra, *own, *removed))
        lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in declared), *part.jumps]
        for rules in shared.values():
            lines += rules
        yield "\n".join((*lines, ""))
        for first in range(0, len(ports), _PORTS_IN_A_PIECE):
            some = ports[first : first + _PORTS_IN_A_PIECE]
            lines = [rule for name in some for _, rules in self._own_chains(name) for rule in rules]
            yield "\n".join((*lines, ""))
        lines = [f"-X {chain}" for chain in removed]
        yield "\n".join((*lines, "COMMIT", ""))

    def _own_chains(self, name: ServicePortName) -> Iterator[tuple[str, tuple[str, ...]]]:
        names = self._rules[name].chains
        return own_chains(self._plans[name], self._settings, names, has_comments=self._has_comments)

    def _shared_chains(self, table: str) -> dict[str, list[str]]:
        """The chains that are rewritten as a whole, with all their rules, in the order in which they are declared."""
        if table == "filter":
            held: dict[str, list[str]] = {chain: [] for chain in chains.FILTER_CHAINS}
            if self._settings.has_localhost_node_ports and self._settings.family is Family.IPV4:
                held[chains.KUBELET_FIREWALL] = []
            static, tail = static_filter_rules(self._settings), []
        else:
            held = {chain: [] for chain in chains.NAT_CHAINS}
            static, tail = static_nat_rules(self._settings), node_port_tail(self._scope, self._settings.family)
        for chain, rule in (*static, *self._service_rules(table), *tail):
            held[chain].append(rule)
        return held

    def _service_rules(self, table: str) -> Iterator[tuple[str, str]]:
        for name in sorted(self._rules):
            yield from _shared(self._rules[name], table)


def _shared(rules: ServiceRules, table: str) -> tuple[tuple[str, str], ...]:
    return rules.filter if table == "filter" else rules.nat


def _jump_repairs(table: str, found: Found) -> tuple[str, ...]:
    """Brings the rules that lead from built-in chains to ours in order, and leaves everybody else's where they are.

    A chain whose jumps are all there, in order, is left alone. Else what is there of them goes, and all are inserted at
    the top: one that is missing, moved or altered must not stand behind a rule that it has to come before.
    """
    repairs = []
    for chain in _BUILT_IN[table]:
        wanted = [jump for jump in JUMPS if (jump.table, jump.chain) == (table, chain)]
        present = [
            rule
            for rule in found.built_in_rules.get(table, ())
            if rule.startswith(f"-A {chain} ") and rule.rpartition(" -j ")[2] in _JUMP_TARGETS
        ]
        if present != [jump.rule for jump in reversed(wanted)]:
            repairs += [f"-D{rule[2:]}" for rule in present]
            repairs += [f"-I {chain} 1 {jump.rule.removeprefix(f'-A {chain} ')}" for jump in wanted]
    return tuple(repairs)


def parse_saved(text: str) -> Found:
    """The part of iptables-save's output that a full sync needs.

    Args:
        text: of any tables; counters may be shown.
    """
    user_chains: dict[str, set[str]] = {}
    rules: dict[str, list[str]] = {}
    frontends = set()
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            user_chains[table], rules[table] = set(), []
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            if policy == "-":
                user_chains[table].add(name)
        elif line.startswith("-A ") and line.split(" ", 2)[1] not in user_chains[table]:
            rules[table].append(line)
        elif line.startswith(_FRONTEND_RULES) and (frontend := _UDP_FRONTEND.search(line)):
            frontends.add((frontend["address"] or "", int(frontend["port"])))
    return Found(
        {table: frozenset(names) for table, names in user_chains.items()},
        {table: tuple(lines) for table, lines in rules.items()},
        frozenset(frontends),
    )


def counted(pieces: Iterable[str], counts: dict[str, int]) -> Iterator[str]:
    """The same pieces of an input for iptables-restore, while the rules that they append are counted.

    Args:
        pieces: of whole lines; a table begins with a piece.
        counts: gets the number of rules of each table of TABLES that is named.
    """
    table = ""
    for piece in pieces:
        if piece.startswith("*"):
            table = piece[1 : piece.index("\n")]
        if table in TABLES:
            counts[table] = counts.get(table, 0) + piece.count("\n-A ") + piece.startswith("-A ")
        yield piece
