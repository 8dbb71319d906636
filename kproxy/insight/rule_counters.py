"""Which rules a packet matched on a node, told by the counters that the kernel keeps for every rule.

On the legacy variant they are read by python-iptables out of the kernel's own tables, in one long-lived process per
node and family (`kproxy.insight.rule_reader`); on nft by ``iptables-nft-save -c``. Both give the same `Rule` values.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from kproxy.errors import HostError

TABLES = ("nat", "filter")

HOOKS = (
    ("nat", ("PREROUTING", "OUTPUT")),
    ("filter", ("INPUT", "FORWARD", "OUTPUT")),
    ("nat", ("POSTROUTING",)),
)
"""The built-in chains in the order in which a packet meets them."""

KUBE_PREFIX = "KUBE-"


@dataclass(frozen=True)
class Rule:
    """One rule of a chain.

    Attributes:
        number: 1-based place in its chain.
        target: a chain's or target's name; empty for a rule that only counts or comments.
        matches: per match its parameters (``{"conntrack": {"ctstate": "NEW"}}``, ``"!"`` before what is inverted); what
            belongs to no match is under ``ip`` (``source``, ``destination``, ``protocol``, ``in``, ``out``).
        parameters: the target's (``{"to-destination": "10.244.1.2:8080"}``).
        packets: how many it has matched.
    """

    table: str
    chain: str
    number: int
    target: str
    matches: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    packets: int = 0

    @property
    def comment(self) -> str:
        """Its comment, without quotes; empty when it has none."""
        return self.matches.get("comment", {}).get("comment", "")

    @property
    def is_for_new_packets(self) -> bool:
        """Whether the first packet of a connection can match it."""
        state = self.matches.get("conntrack", {}).get("ctstate")
        return state is None or state.startswith("!") or "NEW" in state.split(",")


class RuleReader(Protocol):
    """Reads one node's rules again and again."""

    def read(self, family: int) -> tuple[Rule, ...]:
        """All rules of tables nat and filter for IP version 4 or 6, with their counters now, chain by chain.

        Raises:
            HostError: they could not be read.
        """

    def close(self) -> None:
        """Ends what runs for it; twice is fine."""


def open_reader(namespace: Path, variant: str) -> RuleReader:
    """A reader for the network namespace at that path.

    Args:
        namespace: a network namespace.
        variant: ``legacy`` or ``nft``.
    """
    return LegacyReader(namespace) if variant == "legacy" else NftReader(namespace)


class LegacyReader:
    """Asks processes that entered the namespace before they imported python-iptables; one a family, started on use."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self._processes: dict[int, _ReaderProcess] = {}

    def read(self, family: int) -> tuple[Rule, ...]:
        """As in `RuleReader`."""
        if family not in self._processes:
            self._processes[family] = _ReaderProcess(self._namespace, family)
        return self._processes[family].read()

    def close(self) -> None:
        """As in `RuleReader`."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()


class _ReaderProcess:
    """One `kproxy.insight.rule_reader`. It ends with us, whatever way we end, as its input does."""

    def __init__(self, namespace: Path, family: int) -> None:
        self._name = namespace.name
        own, theirs = socket.socketpair()
        module = [sys.executable, "-P", "-m", "kproxy.insight.rule_reader"]
        with theirs, namespace.open("rb") as entry:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                [*module, str(entry.fileno()), str(theirs.fileno()), str(family)],
                pass_fds=[entry.fileno(), theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            )
        self._connection = own
        self._lines = own.makefile("rb")
        self._shape = ""
        self._rules: tuple[Rule, ...] = ()

    def read(self) -> tuple[Rule, ...]:
        """What the rules are is asked for only when their shape has changed; else their counters alone."""
        shape, packets = self._ask("counters")
        if shape != self._shape:
            self._shape, rules = self._ask("rules")
            self._rules = tuple(Rule(*rule) for rule in rules)
            return self._rules
        return tuple(replace(rule, packets=count) for rule, count in zip(self._rules, packets, strict=True))

    def close(self) -> None:
        self._lines.close()
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, what: str) -> tuple[str, list[Any]]:
        try:
            self._connection.sendall(what.encode() + b"\n")
            line = self._lines.readline()
        except OSError:
            line = b""
        if not line:
            raise HostError(f"the rule reader of {self._name} is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise HostError(f"python-iptables cannot read the rules of {self._name}", stderr=answer["error"])
        return answer["shape"], answer["found"]


class NftReader:
    """Runs ``iptables-nft-save -c`` in the namespace for each reading."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace

    def read(self, family: int) -> tuple[Rule, ...]:
        """As in `RuleReader`."""
        tool = "iptables-nft-save" if family == 4 else "ip6tables-nft-save"
        command = ["nsenter", f"--net={self._namespace}", tool, "-c"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
        if done.returncode != 0:
            raise HostError(f"cannot read the rules of {self._namespace.name}", command=command, stderr=done.stderr)
        return parse_save(done.stdout.splitlines())

    def close(self) -> None:
        """As in `RuleReader`; nothing runs between readings."""


def parse_save(lines: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of tables nat and filter in the text of ``iptables-save -c``."""
    rules: list[Rule] = []
    numbers: dict[tuple[str, str], int] = {}
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("[") and table in TABLES:
            counters, _, specification = line.partition(" ")
            words = shlex.split(specification)
            number = numbers[table, words[1]] = numbers.get((table, words[1]), 0) + 1
            packets = int(counters[1:].partition(":")[0])
            rules.append(_rule(table, words[1], number, words[2:], packets))
    return tuple(rules)


IP_OPTIONS = {"-s": "source", "-d": "destination", "-p": "protocol", "-i": "in", "-o": "out"}


def _rule(table: str, chain: str, number: int, words: Sequence[str], packets: int) -> Rule:
    matches: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    target = ""
    group = matches.setdefault("ip", {})
    inverted = ""
    for option, value in _options(words):
        match option:
            case "!":
                inverted = "!"
            case "-m":
                group = matches.setdefault(value, {})
            case "-j" | "-g":
                target, group = value, parameters
            case _ if option in IP_OPTIONS:
                matches["ip"][IP_OPTIONS[option]] = inverted + value
                inverted = ""
            case _:
                group[option.lstrip("-")] = inverted + value
                inverted = ""
    return Rule(table, chain, number, target, matches, parameters, packets)


def _options(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Options with what follows them up to the next option; ``!`` is one of its own."""
    position = 0
    while position < len(words):
        option = words[position]
        end = position + 1
        if option != "!":
            while end < len(words) and not (words[end].startswith("-") or words[end] == "!"):
                end += 1
        yield option, " ".join(words[position + 1 : end])
        position = end


def chains_crossed(before: Sequence[Rule], after: Sequence[Rule]) -> tuple[str, ...]:
    """The KUBE- chains in which a rule matched between two readings, in the order in which a packet meets them.

    Rules that only packets of a known connection match (answers, for instance) are left out. If the rules themselves
    changed in between, nothing can be said: empty.
    """
    shapes = [[(rule.table, rule.chain, rule.number, rule.target) for rule in rules] for rules in (before, after)]
    if shapes[0] != shapes[1]:
        return ()
    hits: dict[tuple[str, str], list[Rule]] = {}
    for old, new in zip(before, after, strict=True):
        if new.packets > old.packets and new.is_for_new_packets:
            hits.setdefault((new.table, new.chain), []).append(new)
    crossed: dict[str, None] = {}
    for table, chains in HOOKS:
        for chain in chains:
            _walk(table, chain, hits, crossed.setdefault, ())
    return tuple(crossed)


def _walk(
    table: str,
    chain: str,
    hits: Mapping[tuple[str, str], Sequence[Rule]],
    note: Callable[[str], object],
    above: tuple[str, ...],
) -> None:
    for rule in hits.get((table, chain), ()):
        if chain.startswith(KUBE_PREFIX):
            note(chain)
        if rule.target not in above:
            _walk(table, rule.target, hits, note, (*above, chain))


def _import_path() -> list[str]:
    return [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH", "")])]
