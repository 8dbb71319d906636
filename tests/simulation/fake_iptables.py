"""iptables-save and iptables-restore --noflush over tables in memory, which fail when they are told to.

Law: as far as the proxy goes, this is what the real tools do; ``test_fake_iptables.py`` holds the two side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from kproxy.errors import HostError
from kproxy.proxy.backends.iptables.host import ToolFailed

BUILT_IN = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
_TARGETS = frozenset(["ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"])
_OPTIONS = re.compile(
    "-[Asdpmji]|--(comment|[ds]port|ctstate|mark|set-xmark|random-fully|to-destination|mode|probability|dst-type"
    "|src-type|nfacct-name|rcheck|seconds|reap|name|mask|rsource|set|reject-with)"
)
_OPTION = re.compile(r'"[^"]*"|(?<=\s)(-{1,2}[a-z][a-z-]*)')


class Refused(Exception):
    """A line of an input cannot be carried out."""


@lru_cache(maxsize=100_000)
def target_of(rule: str) -> str:
    """Where a rule leads; empty when it has no target.

    Raises:
        Refused: it has an option that nobody knows.
    """
    for option in filter(None, _OPTION.findall(rule)):
        if not _OPTIONS.fullmatch(option):
            raise Refused(f"unknown option {option!r}")
    _, found, rest = rule.partition(" -j ")
    return rest.split(" ", 1)[0] if found else ""


class Table:
    """One table: chains with their rules, each a line as iptables-save prints it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.policies = dict.fromkeys(BUILT_IN[name], "ACCEPT")
        self.chains: dict[str, list[str]] = {chain: [] for chain in BUILT_IN[name]}
        self._own: set[str] = set()

    def copy(self) -> Table:
        """Another table; what is done to it does not change this one."""
        other = Table.__new__(Table)
        other.name, other.policies, other.chains = self.name, dict(self.policies), dict(self.chains)
        other._own = set()
        return other

    def _rules(self, chain: str) -> list[str]:
        """A chain's rules, shared with no other table any more."""
        if chain not in self._own:
            self._own.add(chain)
            self.chains[chain] = list(self.chains[chain])
        return self.chains[chain]

    def text(self) -> str:
        """What iptables-save prints of it."""
        lines = [f"*{self.name}", *(f":{chain} {policy} [0:0]" for chain, policy in self.policies.items())]
        own = sorted(chain for chain in self.chains if chain not in self.policies)
        lines += [f":{chain} - [0:0]" for chain in own]
        for chain in (*self.policies, *own):
            lines += self.chains[chain]
        return "\n".join((*lines, "COMMIT", ""))

    def carry_out(self, line: str) -> None:
        """One line of an input.

        Raises:
            Refused: it cannot be.
        """
        word, _, rest = line.partition(" ")
        if word.startswith(":"):
            self._declare(word[1:], rest.split(" ", 1)[0])
            return
        chain, _, rest = rest.partition(" ")
        if chain not in self.chains:
            raise Refused(f"no chain {chain!r}")
        if word == "-A":
            self._check_target(line)
            self._rules(chain).append(line)
        elif word == "-I":
            number, _, rule = rest.partition(" ")
            rule = f"-A {chain} {rule}"
            self._check_target(rule)
            self._rules(chain).insert(int(number) - 1, rule)
        elif word == "-D":
            if f"-A {chain} {rest}" not in self.chains[chain]:
                raise Refused("no such rule")
            self._rules(chain).remove(f"-A {chain} {rest}")
        elif word == "-F":
            self._rules(chain).clear()
        elif word == "-X":
            self._delete(chain)
        else:
            raise Refused(f"unknown command {word!r}")

    def _declare(self, chain: str, policy: str) -> None:
        if chain in self.policies:
            self.policies[chain] = policy
        else:
            self._own.add(chain)
            self.chains[chain] = []

    def _check_target(self, rule: str) -> None:
        target = target_of(rule)
        if target and target not in _TARGETS and target not in self.chains:
            raise Refused(f"no target {target!r}")

    def _delete(self, chain: str) -> None:
        if chain in self.policies or self.chains[chain]:
            raise Refused(f"chain {chain} is not empty")
        if any(target_of(rule) == chain for rules in self.chains.values() for rule in rules):
            raise Refused(f"chain {chain} is in use")
        del self.chains[chain]


class FakeIptables:
    """One family's tables of one kernel.

    Attributes:
        faults: what goes wrong at the next calls of iptables-restore, in order; None for a call that goes well.
            ``missing``, ``locked``: nothing is read; ``refused``: some line of the input is; ``killed``: after some of
            the tables. ``save``: iptables-save fails.
    """

    def __init__(self) -> None:
        self.tables = {name: Table(name) for name in BUILT_IN}
        self.faults: list[tuple[str, float]] = []
        self.restores = 0

    def run(self, argv: Sequence[str], pieces: Iterable[str] = ()) -> str:
        """What ``kproxy.proxy.backends.iptables.host.run_tool`` does, for these tables.

        Raises:
            ToolFailed: the tool failed or was killed.
            HostError: it could not be run.
        """
        fault, where = self.faults.pop(0) if self.faults else ("", 0.0)
        if fault == "missing":
            raise HostError(f"{argv[0]} could not be run: No such file or directory", command=argv)
        if "save" in argv[0]:
            if fault == "save":
                raise ToolFailed(f"{argv[0]} failed with status 1", command=argv, stderr="cannot read")
            return self.save(argv[2] if "-t" in argv else "")
        if fault == "locked":
            words = "Another app is currently holding the xtables lock. Stopped waiting after 5s."
            raise ToolFailed(f"{argv[0]} failed with status 4", command=argv, stderr=words)
        self._restore(argv, "".join(pieces).splitlines(), fault, where)
        return ""

    def save(self, table: str = "") -> str:
        """What iptables-save prints, of one table or of all."""
        return "".join(each.text() for name, each in self.tables.items() if table in ("", name))

    def _restore(self, argv: Sequence[str], lines: list[str], fault: str, where: float) -> None:
        self.restores += 1
        last = int(where * len(lines)) if fault in ("refused", "killed") else -1
        table: Table | None = None
        for number, line in enumerate(lines, 1):
            if number - 1 == last:
                if fault == "killed":
                    raise ToolFailed(f"{argv[0]} died of signal 9", command=argv)
                self._fail(argv, number, "refused for the test")
            if line.startswith("*"):
                table = self.tables[line[1:]].copy()
                continue
            if table is None:
                self._fail(argv, number, "no table")
            elif line == "COMMIT":
                self.tables[table.name], table = table, None
            else:
                try:
                    table.carry_out(line)
                except Refused as error:
                    self._fail(argv, number, str(error))
        if table is not None:
            self._fail(argv, len(lines) + 1, "COMMIT expected")

    @staticmethod
    def _fail(argv: Sequence[str], number: int, why: str) -> None:
        stderr = f"iptables-restore: line {number} failed: {why}."
        raise ToolFailed(f"{argv[0]} failed with status 1", command=argv, stderr=stderr)
