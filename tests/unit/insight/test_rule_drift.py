"""Rules that are not as planned are found and named; rules that are, are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rule_edits import KINDS, edit

from kproxy.insight.rule_counters import Rule, parse_save
from kproxy.insight.rule_drift import Audited, Drift, as_text, compare, plan_of

RULES = Path(__file__).parents[2] / "conformance" / "rules"
EDITS = 1000

SAVED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
:KUBE-SEP-C - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SEP-A -s 10.244.0.2/32 -m comment --comment default/web:http -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m comment --comment default/web:http -m tcp -j DNAT --to-destination 10.244.0.2:80
-A KUBE-SERVICES -d 10.96.0.5/32 -p tcp -m comment --comment "web cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A ! -s 10.244.0.0/16 -d 10.96.0.5/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -m comment --comment "web -> A" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-A
-A KUBE-SVC-A -m comment --comment "web -> B" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-B
-A KUBE-SVC-A -m comment --comment "web -> C" -j KUBE-SEP-C
COMMIT
"""


def kernel(text: str) -> tuple[Rule, ...]:
    return parse_save(f"[7:420] {line}" if line.startswith("-A ") else line for line in text.splitlines())


def drifts(text: str, plan: str = SAVED) -> list[Audited]:
    return [row for row in compare(plan_of(plan), kernel(text)) if row.drift is not None]


def swapped(text: str, first: str, second: str) -> str:
    return text.replace(first, "\0").replace(second, first).replace("\0", second)


SVC_RULES = [line + "\n" for line in SAVED.splitlines() if line.startswith("-A KUBE-SVC-A")]
FORWARD_JUMP = '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD\n'


@pytest.mark.parametrize(
    ("text", "expected", "names"),
    [
        (SAVED.replace(SVC_RULES[1], ""), [Drift.DELETED], "web -> A"),
        (
            SAVED.replace(SVC_RULES[0], "").replace("COMMIT\n*nat", "COMMIT\n*nat"),
            [Drift.DELETED],
            "! -s 10.244.0.0/16",
        ),
        (swapped(SAVED, SVC_RULES[1], SVC_RULES[2]), [Drift.MOVED], "web -> "),
        (SAVED.replace(SVC_RULES[0], "").replace(SVC_RULES[3], SVC_RULES[3] + SVC_RULES[0]), [Drift.MOVED], "! -s"),
        (
            SAVED.replace("0x4000/0x4000", "0x4000/0xffff"),
            [Drift.CHANGED],
            "--mark 0x4000/0x4000 -> --mark 0x4000/0xffff",
        ),
        (
            SAVED.replace("0.33333333349", "0.25000000000"),
            [Drift.CHANGED],
            "--probability 0.33333333349 -> --probability 0.25000000000",
        ),
        (
            SAVED.replace("--dport 80 -j KUBE-SVC-A", "--dport 81 -j KUBE-SVC-A"),
            [Drift.CHANGED],
            "--dport 80 -> --dport 81",
        ),
        (SAVED.replace("! -s 10.244.0.0/16", "-s 10.244.0.0/16"), [Drift.CHANGED], "! -s 10.244.0.0/16 -> -s"),
        (
            SAVED.replace("--ctstate INVALID -j DROP", "--ctstate INVALID -j ACCEPT"),
            [Drift.CHANGED],
            "-j DROP -> -j ACCEPT",
        ),
        (SAVED.replace(SVC_RULES[3], SVC_RULES[3] + "-A KUBE-SVC-A -j DROP\n"), [Drift.NOT_PLANNED], "-j DROP"),
        (SAVED.replace(SVC_RULES[3], 2 * SVC_RULES[3]), [Drift.NOT_PLANNED], "web -> C"),
        (SAVED.replace(FORWARD_JUMP, ""), [Drift.DELETED], "-A FORWARD"),
        (SAVED.replace(FORWARD_JUMP, 2 * FORWARD_JUMP), [Drift.NOT_PLANNED], "-A FORWARD"),
        (
            SAVED.replace("-A KUBE-SEP-A", "-A KUBE-SEP-OLD"),
            2 * [Drift.NOT_PLANNED] + 2 * [Drift.DELETED],
            "KUBE-SEP-OLD",
        ),
        ("*nat\nCOMMIT\n", 12 * [Drift.DELETED], "KUBE-SVC-A"),
        # others' rules are theirs
        (SAVED.replace(FORWARD_JUMP, "-A FORWARD -i eth0 -j DROP\n" + FORWARD_JUMP), [], ""),
        (
            SAVED.replace("-A OUTPUT -j KUBE-FIREWALL\n", "-A OUTPUT -j KUBE-FIREWALL\n-A KUBE-FIREWALL -j RETURN\n"),
            [],
            "",
        ),
        (SAVED, [], ""),
    ],
    ids=lambda value: " ".join(drift.value for drift in value) if isinstance(value, list) else "",
)
def test_drift_is_named(text: str, expected: list[Drift], names: str) -> None:
    found = drifts(text)

    assert [row.drift for row in found] == expected
    assert names in "\n".join("; ".join((as_text(row.rule), *row.changes)) for row in found)


def test_each_rule_is_shown_with_what_it_counted() -> None:
    rows = compare(plan_of(SAVED), kernel(SAVED))

    assert len(rows) == SAVED.count("\n-A ")
    assert {row.found.packets for row in rows if row.found} == {7}


def test_rules_are_written_as_iptables_save_writes_them() -> None:
    lines = [line for line in SAVED.splitlines() if line.startswith("-A ")]

    assert sorted(as_text(rule) for rule in kernel(SAVED)) == sorted(lines)


def recorded() -> list[str]:
    """Texts of rules that kube-proxy wrote; they name chains without their policies."""
    texts = [path.read_text() for path in sorted(RULES.glob("*.v4.rules"))]
    with_own = [re.sub(r"^(:KUBE-\S+)$", r"\1 - [0:0]", text, flags=re.M) for text in texts]
    return [re.sub(r"^(:[A-Z]+)$", r"\1 ACCEPT [0:0]", text, flags=re.M) for text in with_own]


def planned(text: str) -> str:
    """Without rules of others in built-in chains."""
    return "".join(line + "\n" for line in text.splitlines() if not line.startswith("-A ") or "KUBE-" in line)


def test_a_thousand_random_edits_of_one_rule_are_all_found() -> None:
    texts, missed, kinds = recorded(), [], set()
    for seed in range(EDITS):
        text = texts[seed % len(texts)]
        edited = edit(seed, text)
        kinds.add(edited.what.partition(":")[0])
        found = drifts(edited.text, planned(text))
        if not any((row.rule.table, row.rule.chain) == (edited.table, edited.chain) for row in found):
            missed.append((seed, edited.what))

    assert missed == []
    assert kinds == set(KINDS), "some kind of edit was never tried"


def test_untouched_rules_give_no_finding() -> None:
    texts = recorded()

    assert [drifts(text, planned(text)) for text in texts] == [[]] * len(texts)
    assert any(planned(text) != text for text in texts), "nobody else's rule was there to be passed over"
