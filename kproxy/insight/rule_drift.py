"""The plan's rules against the kernel's: which were deleted, moved, changed, or are nobody's.

Chains of ours are compared rule by rule. In built-in chains only the rules that lead to ours count: what others have
there is theirs.

Law: pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum

from kproxy.insight.rule_counters import IP_OPTIONS, TABLES, Rule, parse_save
from kproxy.proxy.backends.iptables import chains

ALIKE = 0.5
"""Share of options that two rules have in common if one is taken for the other, changed."""

_JUMPED_FROM = {"nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}

Option = tuple[str, str]
"""What an option belongs to (a match, ``ip``, or the target), and its name as iptables has it."""


class Drift(Enum):
    """What became of a rule."""

    DELETED = "deleted"
    MOVED = "moved"
    CHANGED = "changed"
    NOT_PLANNED = "not planned"


@dataclass(frozen=True)
class Plan:
    """What a kernel is to hold.

    Attributes:
        chains: our chains, per table.
        rules: ours in them and in the built-in ones, chain by chain.
    """

    chains: Mapping[str, frozenset[str]]
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Audited:
    """One rule, planned or found.

    Attributes:
        planned: as it is to be; None when no plan has it.
        found: as the kernel has it, with its counters; None when it is gone.
        drift: None when both are the same and in the same place.
    """

    planned: Rule | None
    found: Rule | None
    drift: Drift | None = None

    @property
    def rule(self) -> Rule:
        """What there is of it: as found, else as planned."""
        rule = self.found or self.planned
        if rule is None:
            raise ValueError("a rule that is neither planned nor found")
        return rule

    @property
    def changes(self) -> tuple[str, ...]:
        """What is different in it, option by option; empty unless it was changed."""
        if self.drift is not Drift.CHANGED or self.planned is None or self.found is None:
            return ()
        before, after = options(self.planned), options(self.found)
        return tuple(
            f"{_written(option, before.get(option))} -> {_written(option, after.get(option))}"
            for option in {**before, **after}
            if before.get(option) != after.get(option)
        )


def plan_of(saved: str) -> Plan:
    """The plan that a text in iptables-save's form stands for; its built-in chains are those with a policy."""
    own: dict[str, set[str]] = {table: set() for table in TABLES}
    lines, table = [], ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and line.split()[1] == "-":
            own[table].add(line[1:].split()[0])
        lines.append(f"[0:0] {line}" if line.startswith("-A ") else line)
    return Plan({name: frozenset(names) for name, names in own.items()}, parse_save(lines))


def compare(plan: Plan, kernel: Iterable[Rule]) -> tuple[Audited, ...]:
    """Every rule of the plan and every rule of the kernel's that is in a place of ours, in the kernel's order."""
    wanted, found = _by_chain(plan.rules), _by_chain(rule for rule in kernel if _is_ours(rule, plan))
    return tuple(
        audited
        for place in {**found, **wanted}
        for audited in _compare_chain(wanted.get(place, []), found.get(place, []))
    )


def options(rule: Rule) -> dict[Option, str]:
    """A rule's options and their values, ``!`` before what is inverted."""
    found = {("ip", name): value for name, value in rule.matches.get("ip", {}).items()}
    for match, parameters in rule.matches.items():
        if match != "ip":
            found[match, ""] = match
            found |= {(match, name): value for name, value in parameters.items()}
    found["target", ""] = rule.target
    return found | {("target", name): value for name, value in rule.parameters.items()}


def as_text(rule: Rule) -> str:
    """A rule as iptables-save has it."""
    found = options(rule)
    del found["target", ""]
    parameters = [_written(option, value) for option, value in found.items() if option[0] == "target"]
    matches = [_written(option, value) for option, value in found.items() if option[0] != "target"]
    jump = [f"-j {rule.target}"] if rule.target else []
    return " ".join((f"-A {rule.chain}", *matches, *jump, *parameters))


_LETTERS = {name: letter for letter, name in IP_OPTIONS.items()}


def _written(option: Option, value: str | None) -> str:
    """An option as it is written in a rule; a word for one that is not there."""
    belongs_to, name = option
    if value is None:
        return "nothing"
    if not name:
        return f"-j {value or 'nowhere'}" if belongs_to == "target" else f"-m {value}"
    inverted = "! " if value.startswith("!") else ""
    value = value.removeprefix("!")
    shown = f'"{value}"' if " " in value else value
    return f"{inverted}{_LETTERS[name] if belongs_to == 'ip' else '--' + name} {shown}".rstrip()


def _by_chain(rules: Iterable[Rule]) -> dict[tuple[str, str], list[Rule]]:
    found: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        found.setdefault((rule.table, rule.chain), []).append(rule)
    return found


def _is_ours(rule: Rule, plan: Plan) -> bool:
    own = plan.chains[rule.table]
    if rule.chain in _JUMPED_FROM[rule.table]:
        return rule.target in own
    if rule.chain == chains.KUBELET_FIREWALL:
        # kubelet's as well: it is ours alone where the plan has rules in it, which every sync puts in its place
        return any(planned.chain == rule.chain for planned in plan.rules)
    is_service_chain = rule.table == "nat" and rule.chain.startswith(chains.OWN_PREFIXES)
    return rule.chain in own or is_service_chain


def _compare_chain(wanted: Sequence[Rule], found: Sequence[Rule]) -> Iterator[Audited]:
    """Rules in the order of the kernel; those that are gone where they would be."""
    contents = {id(rule): _contents(rule) for rule in (*wanted, *found)}
    a, b = ([contents[id(rule)] for rule in rules] for rules in (wanted, found))
    rows: list[Audited] = []
    for same, a_from, a_to, b_from, b_to in _blocks(a, b):
        if same:
            rows += map(Audited, wanted[a_from:a_to], found[b_from:b_to])
        else:
            rows += _pair_up(wanted[a_from:a_to], found[b_from:b_to])
    yield from _moved(rows)


def _blocks(a: Sequence[object], b: Sequence[object]) -> Iterator[tuple[bool, int, int, int, int]]:
    """The common subsequence and what is between, as difflib's opcodes; equal ends are cut off first: they are long."""
    shorter = min(len(a), len(b))
    head = next((index for index in range(shorter) if a[index] != b[index]), shorter)
    tail = next((index for index in range(shorter - head) if a[-1 - index] != b[-1 - index]), shorter - head)
    yield True, 0, head, 0, head
    middle = SequenceMatcher(None, a[head : len(a) - tail], b[head : len(b) - tail], autojunk=False)
    for tag, a_from, a_to, b_from, b_to in middle.get_opcodes():
        yield tag == "equal", head + a_from, head + a_to, head + b_from, head + b_to
    yield True, len(a) - tail, len(a), len(b) - tail, len(b)


def _pair_up(wanted: Sequence[Rule], found: Sequence[Rule]) -> Iterator[Audited]:
    """Rules in one place that are not the same: each is taken for the one that it is most like, if it is like any."""
    left = list(wanted)
    for rule in found:
        best = max(left, key=lambda other: _likeness(other, rule), default=None)
        if best is None or _likeness(best, rule) < ALIKE:
            yield Audited(None, rule, Drift.NOT_PLANNED)
        else:
            left.remove(best)
            yield Audited(best, rule, Drift.CHANGED)
    for rule in left:
        yield Audited(rule, None, Drift.DELETED)


def _moved(rows: Sequence[Audited]) -> Iterator[Audited]:
    """What is gone from one place and has come in another was moved."""
    gone = {_contents(row.planned): row.planned for row in rows if row.drift is Drift.DELETED and row.planned}
    moved = {}
    for row in rows:
        if row.drift is Drift.NOT_PLANNED and row.found and (planned := gone.pop(_contents(row.found), None)):
            moved[id(row)] = Audited(planned, row.found, Drift.MOVED)
    gone_elsewhere = {id(row.planned) for row in moved.values()}
    for row in rows:
        if id(row.planned) not in gone_elsewhere or row.planned is None:
            yield moved.get(id(row), row)


def _likeness(one: Rule, other: Rule) -> float:
    a, b = options(one), options(other)
    same = sum(a[option] == b[option] for option in a.keys() & b.keys())
    return same / max(len(a), len(b))


def _contents(rule: Rule) -> frozenset[tuple[Option, str]]:
    return frozenset(options(rule).items())
