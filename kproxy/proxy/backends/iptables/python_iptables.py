"""The second writer: the same restore texts as the first, carried out by python-iptables in a short-lived child.

It is there to be compared with the first, on the legacy variant and for small rule sets: libiptc is handed one rule at
a time. Everything that decides what is written is the first writer's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from kproxy.errors import HostError, UserError
from kproxy.proxy.backends.iptables.host import Variant
from kproxy.proxy.backends.iptables.writer import IptablesBackend, MakeInput

NAME = "python-iptables"
MAX_RULES = 2000
"""Rules of ours in tables filter and nat of one family."""

_CHILD = Path(__file__).with_name("python_iptables_child.py")
"""Started by its path: it needs python-iptables and nothing of this project."""


class PythonIptablesBackend(IptablesBackend):
    """One family's tables of this network namespace, written with python-iptables.

    Each sync has a child of its own, which starts in the namespace that this process is in: python-iptables keeps its
    handles by the tables' names, whatever the namespace and the family.
    """

    def restore_command(self) -> tuple[str, ...]:
        """The child's command line."""
        version = "6" if "ip6tables" in self._tools.restore.rpartition("/")[2] else "4"
        return (sys.executable, "-P", str(_CHILD), version, str(self._tools.lock_wait))

    def _restore(self, make: MakeInput) -> Mapping[str, int]:
        rules = sum(self._rules.rule_counts.values())
        if rules > MAX_RULES:
            raise HostError(
                f"{NAME} is for small rule sets: {rules:,} rules are more than the {MAX_RULES:,} that it takes",
                left="nothing was written; use --iptables-writer=iptables-restore",
            )
        return super()._restore(make)


def backend_class(writer: str, variant: Variant) -> type[IptablesBackend]:
    """The backend that --iptables-writer asks for.

    Raises:
        UserError: it does not work with this variant.
    """
    if writer != NAME:
        return IptablesBackend
    if variant != "legacy":
        raise UserError(
            f"--iptables-writer={NAME} writes legacy tables, but this host uses the {variant} variant of iptables: "
            "choose --iptables-variant=legacy or --iptables-writer=iptables-restore"
        )
    return PythonIptablesBackend
