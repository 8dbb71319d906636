"""The process of the second writer: carries out a text for ``iptables-restore --noflush`` with python-iptables.

Law: it lives for one text of one family, in the network namespace that it was started in; it holds the lock of the
iptables tools from before the first table is read until the last is committed; no table is committed before the whole
text has been understood, and each is committed once.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

LOCK_FILE = "/run/xtables.lock"
_LOCK_POLL = 0.02
_RESOURCE_PROBLEM = 4
"""iptables' exit status when it did not get the lock."""


class Refused(Exception):
    """A line cannot be carried out; the message names it."""


class Option(NamedTuple):
    """One option of a rule with what follows it."""

    name: str
    values: tuple[str, ...]
    is_inverted: bool

    @property
    def text(self) -> str:
        """The values as python-iptables wants them for addresses, protocols and interfaces."""
        return ("!" if self.is_inverted else "") + " ".join(self.values)


def options(words: Sequence[str]) -> Iterator[Option]:
    """The options of a rule, in order."""
    position, is_inverted = 0, False
    while position < len(words):
        if words[position] == "!":
            position, is_inverted = position + 1, True
            continue
        end = position + 1
        while end < len(words) and words[end] != "!" and not words[end].startswith("-"):
            end += 1
        yield Option(words[position], tuple(words[position + 1 : end]), is_inverted)
        position, is_inverted = end, False


class Library:
    """What of python-iptables belongs to one family."""

    def __init__(self, version: int) -> None:
        self.iptc = import_module("iptc")
        self.table: Any = self.iptc.Table if version == 4 else self.iptc.Table6
        self.rule: Any = self.iptc.Rule if version == 4 else self.iptc.Rule6


class Transaction:
    """The changes to one table, none of which the kernel has seen before `commit`."""

    def __init__(self, library: Library, name: str) -> None:
        self._library = library
        self._table = library.table(name, autocommit=False)
        # python-iptables would look for chains in, and therefore open, every table there is
        self._rule = type("OwnRule", (library.rule,), {"tables": [self._table]})

    def carry_out(self, line: str) -> None:
        """One line of the text.

        Raises:
            Refused: it is of no kind that this writer knows.
        """
        if line.startswith(":"):
            self._declare(line[1:].split(" ", 1)[0])
            return
        verb, chain, *words = shlex.split(line)
        match verb:
            case "-A":
                self._chain(chain).append_rule(self._build(words))
            case "-I":
                self._chain(chain).insert_rule(self._build(words[1:]), int(words[0]) - 1)
            case "-D":
                self._chain(chain).delete_rule(self._build(words))
            case "-X":
                self._table.delete_chain(chain)
            case _:
                raise Refused(f"unknown command {verb}")

    def commit(self) -> None:
        """Hand the table to the kernel, whole."""
        self._table.commit()

    def _chain(self, name: str) -> Any:
        return self._library.iptc.Chain(self._table, name)

    def _declare(self, chain: str) -> None:
        """A declaration makes a chain, or empties the one there is; built-in chains keep their rules."""
        if self._table.builtin_chain(chain):
            return
        if self._table.is_chain(chain):
            self._table.flush_entries(chain)
        else:
            self._table.create_chain(chain)

    def _build(self, words: Sequence[str]) -> Any:
        rule = self._rule()
        extension: Any = None
        for option in options(words):
            match option.name:
                case "-s":
                    rule.src = option.text
                case "-d":
                    rule.dst = option.text
                case "-i":
                    rule.in_interface = option.text
                case "-p":
                    rule.protocol = option.text
                case "-m":
                    extension = rule.create_match(option.values[0])
                case "-j":
                    extension = rule.create_target(option.values[0])
                case _ if extension is not None:
                    # by this method alone: `name` of `recent` is an attribute of every match as well
                    values = [*(["!"] if option.is_inverted else []), *option.values]
                    extension.set_parameter(option.name.removeprefix("--"), values)
                case _:
                    raise Refused(f"unknown option {option.name}")
        if rule.target is None:
            rule.create_target("")  # counts, and goes on with the next rule
        return rule


def lock(path: str, seconds: float) -> bool:
    """Take the iptables tools' lock, for as long as this process lives; False when it is not free in time."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL)
        else:
            return True


def write(text: str, library: Library) -> None:
    """Carry out a whole text.

    Raises:
        Refused: a line cannot be carried out; nothing was committed.
    """
    tables: list[Transaction] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.startswith("*"):
                tables.append(Transaction(library, line[1:]))
            elif line != "COMMIT":
                tables[-1].carry_out(line)
        except Exception as error:  # python-iptables raises its own kinds, ValueError, AttributeError
            raise Refused(f"line {number} failed: {error}") from error
    for table in tables:
        table.commit()


def main(version: int, lock_seconds: float) -> int:
    """Carries out standard input; returns the exit status."""
    text = sys.stdin.read()
    if not lock(os.environ.get("XTABLES_LOCKFILE", LOCK_FILE), lock_seconds):
        sys.stderr.write("Another app is currently holding the xtables lock.\n")
        return _RESOURCE_PROBLEM
    try:
        write(text, Library(version))
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent says it
        sys.stderr.write(f"python-iptables refused the rules: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
