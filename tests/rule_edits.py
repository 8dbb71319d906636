"""One random edit of one rule in a text of iptables-save: what a person or a program may do to a node's rules."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

OURS = ("KUBE-",)
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


class Edit(NamedTuple):
    """An edited text and what was done.

    Attributes:
        text: all tables, as iptables-restore takes them.
        what: the kind of edit and the rule.
        table: where ...
        chain: ... it was made.
    """

    text: str
    what: str
    table: str
    chain: str


def _number(pattern: str, low: int, high: int) -> Callable[[random.Random, str], str]:
    """Replaces the number that the pattern's group matches."""

    def change(rng: random.Random, rule: str) -> str:
        return re.sub(pattern, lambda found: found[1] + str(rng.randint(low, high)), rule, count=1)

    return change


def _mark(rng: random.Random, rule: str) -> str:
    return re.sub(r"(mark) 0x[0-9a-f]+/", lambda found: f"{found[1]} {1 << rng.randint(0, 30):#x}/", rule, count=1)


def _mask(rng: random.Random, rule: str) -> str:
    return re.sub(r"(mark 0x[0-9a-f]+)/0x[0-9a-f]+", lambda found: f"{found[1]}/{1 << rng.randint(0, 30):#x}", rule)


def _probability(rng: random.Random, rule: str) -> str:
    """Down to one part in a thousand: as little as tells two endpoints of a thousand apart."""
    return re.sub(r"--probability \S+", f"--probability {rng.randint(1, 999) / 1000:.11f}", rule)


def _prefix(rng: random.Random, rule: str) -> str:
    """A shorter prefix, with the host bits cleared as the kernel does."""
    found = re.search(r"(-[sd]) (\d+)\.(\d+)\.(\d+)\.(\d+)/32", rule)
    if found is None:
        return rule
    return rule.replace(found[0], f"{found[1]} {found[2]}.{found[3]}.{found[4]}.0/24", 1)


def _address(rng: random.Random, rule: str) -> str:
    return re.sub(r"(-[sd] \d+\.\d+\.\d+\.)\d+/32", lambda found: f"{found[1]}{rng.randint(1, 254)}/32", rule, count=1)


def _negation(rng: random.Random, rule: str) -> str:
    if " ! -" in rule:
        return rule.replace(" ! -", " -", 1)
    return re.sub(r" (-[sdi]|--mark|--ctstate) ", r" ! \1 ", rule, count=1)


def _destination(rng: random.Random, rule: str) -> str:
    return re.sub(r"(--to-destination \S*\.)\d+:", lambda found: f"{found[1]}{rng.randint(1, 254)}:", rule)


def _comment(rng: random.Random, rule: str) -> str:
    return re.sub(r'--comment ("?)', rf"--comment \g<1>{rng.choice('abcxyz')}", rule, count=1)


def _state(rng: random.Random, rule: str) -> str:
    return re.sub(r"--ctstate \S+", f"--ctstate {rng.choice(('NEW', 'INVALID', 'ESTABLISHED', 'RELATED,DNAT'))}", rule)


def _target(rng: random.Random, rule: str) -> str:
    return re.sub(
        r"-j (KUBE-[A-Z0-9-]+|ACCEPT|DROP|RETURN)$", f"-j {rng.choice(('ACCEPT', 'RETURN', 'KUBE-MARK-MASQ'))}", rule
    )


def _without_match(rng: random.Random, rule: str) -> str:
    """Without its comment, its state or its address type."""
    return re.sub(
        r" -m (?:comment --comment (?:\"[^\"]*\"|\S+)|addrtype --\S+ LOCAL|statistic --mode random --\S+ \S+)",
        "",
        rule,
        count=1,
    )


CHANGES: dict[str, Callable[[random.Random, str], str]] = {
    "mark": _mark,
    "mask": _mask,
    "probability": _probability,
    "prefix": _prefix,
    "address": _address,
    "negation": _negation,
    "destination": _destination,
    "destination port": _number(r"(--to-destination \S+:)\d+$", 1, 65535),
    "port": _number(r"(--dport )\d+", 1, 65535),
    "comment": _comment,
    "state": _state,
    "target": _target,
    "seconds": _number(r"(--seconds )\d+", 1, 99999),
    "match": _without_match,
    "random": lambda _, rule: rule.replace(" --random-fully", ""),
    "reject": lambda _, rule: rule.replace("icmp-port-unreachable", "icmp-host-prohibited"),
}
KINDS = ("delete", "move", "repeat", "insert", *CHANGES)


def edit(seed: int, saved: str) -> Edit:
    """One edit that makes a difference, in a rule of a chain of ours or in one that leads there.

    Args:
        seed: the same seed edits the same text in the same way.
        saved: what iptables-save printed.
    """
    rng = random.Random(seed)
    original = saved.splitlines()
    places = [index for index, line in enumerate(original) if _counts(line)]
    kinds = [KINDS[seed % len(KINDS)]] * len(places) + list(KINDS) * 100  # all in turn, as far as they fit anywhere
    for kind in kinds:
        lines, position = list(original), rng.choice(places)
        rule = lines[position]
        table = next(line[1:] for line in reversed(lines[:position]) if line.startswith("*"))
        if _is_edited(rng, kind, lines, position) and _rules(lines) != _rules(original):
            return Edit("\n".join((*lines, "")), f"{kind}: {table}: {rule}", table, rule.split()[1])
    raise ValueError("no edit fits this text")


def _counts(line: str) -> bool:
    if not line.startswith("-A "):
        return False
    chain = line.split()[1]
    return chain.startswith(OURS) or (chain in BUILT_IN and " -j KUBE-" in line)


def _rules(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("-A ", "*"))]


def _is_edited(rng: random.Random, kind: str, lines: list[str], position: int) -> bool:
    rule = lines[position]
    chain = rule.split()[1]
    start = max(index for index, line in enumerate(lines[:position]) if line.startswith("*"))
    end = next((index for index, line in enumerate(lines) if index > start and line.startswith("*")), len(lines))
    places = [index for index in range(start, end) if lines[index].startswith(f"-A {chain} ")]
    match kind:
        case "delete":
            del lines[position]
        case "move":
            lines.insert(
                rng.choice([place for place in places if abs(place - position) < len(lines)]), lines.pop(position)
            )
        case "repeat":
            lines.insert(position, rule)
        case "insert" if chain in BUILT_IN:
            return False  # it would be somebody else's
        case "insert":
            lines.insert(position, f"-A {chain} -s 203.0.113.{rng.randint(1, 254)}/32 -j RETURN")
        case _:
            lines[position] = CHANGES[kind](rng, rule)
    return True
