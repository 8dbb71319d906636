"""What iptables-save says, as values that can be compared: rules by table and chain, without what is not defined."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

UNORDERED = ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL")
"""Chains in which the order between Services is not defined."""

TABLES = ("filter", "nat")

Rules = Mapping[tuple[str, str], list[str]]


def rules_of(text: str) -> Rules:
    """Rules per table and chain, of the tables that are recorded.

    Left out: the host's own rules in built-in chains, and other people's chains. An empty chain of a node proxy's is
    there with no rules.
    """
    table = ""
    found: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif table in TABLES and line.startswith(":KUBE-"):
            found.setdefault((table, line[1:].split()[0]), [])
        elif table in TABLES and line.startswith("-A ") and "KUBE-" in line:
            # The nfacct extension prints two spaces; the records have one.
            found.setdefault((table, line.split()[1]), []).append(line.replace("--nfacct-name  ", "--nfacct-name "))
    for (_, chain), rules in found.items():
        if chain in UNORDERED:
            rules.sort(key=lambda rule: ("must be the last" in rule, rule))
    return found


def without_counters(text: str) -> str:
    """A record as it would be on a kernel without nfacct: those matches are gone, and the rules only there to count."""
    kept = [line for line in text.splitlines() if "localhost_nps_accepted_pkts" not in line]
    return re.sub(r" -m nfacct --nfacct-name \S+", "", "\n".join(kept))


def difference(wanted: str, found: str) -> list[str]:
    """The lines that differ, `-` only wanted, `+` only found; nothing when the rules are the same."""
    texts = [_lines(rules_of(text)) for text in (wanted, found)]
    changed = difflib.unified_diff(*texts, "kube-proxy", "kproxy", lineterm="", n=0)
    return [line for line in changed if line[:1] in "+-"]


def _lines(rules: Rules) -> list[str]:
    return [line for (table, chain), lines in sorted(rules.items()) for line in (f"{table} :{chain}", *lines)]
