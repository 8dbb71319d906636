"""The rules that lead from built-in chains to ours: put right when they are not, left alone when they are."""

from __future__ import annotations

import pytest

from kproxy.proxy.backends.iptables.render import RuleSet, parse_saved
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.family import Family
from kproxy.proxy.plan import PlanDelta

OTHERS = "-A FORWARD -i eth9 -j ACCEPT"
PORTALS = '-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
FORWARDING = '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'


def rule_set() -> RuleSet:
    rules = RuleSet(Settings(Family.IPV4))
    rules.take(PlanDelta({}, is_full=True))
    return rules


def jumps(saved: str) -> list[str]:
    """The rules of table filter's built-in chains."""
    lines = saved.partition("*nat")[0].splitlines()
    return [line for line in lines if line.startswith(("-A FORWARD", "-A INPUT", "-A OUTPUT"))]


def carried_out(saved: str, restore: str) -> list[str]:
    """The rules of table filter's built-in chains after a restore."""
    held = jumps(saved)
    for line in restore.partition("*filter")[2].partition("COMMIT")[0].splitlines():
        verb, _, rest = line.partition(" ")
        if verb == "-D":
            held.remove(f"-A {rest}")
        elif verb == "-I":
            chain, place, rule = rest.split(" ", 2)
            first = next((index for index, there in enumerate(held) if there.startswith(f"-A {chain} ")), len(held))
            held.insert(first + int(place) - 1, f"-A {chain} {rule}")
    return held


SAVED = rule_set().saved()


@pytest.mark.parametrize(
    "damaged",
    [
        SAVED.replace(f"{PORTALS}\n", ""),
        SAVED.replace(f"{PORTALS}\n", f"{PORTALS}\n{PORTALS}\n"),
        SAVED.replace(f"{FORWARDING}\n{PORTALS}\n", f"{PORTALS}\n{FORWARDING}\n"),
        SAVED.replace(f"{FORWARDING}\n", "").replace(f"{PORTALS}\n", f"{OTHERS}\n{PORTALS}\n{FORWARDING}\n"),
        SAVED.replace(FORWARDING, FORWARDING.replace("kubernetes", "cubernetes")),
        SAVED.replace(PORTALS, PORTALS.replace("--ctstate NEW", "--ctstate NEW,INVALID")),
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n",
    ],
    ids=["missing", "twice", "swapped", "behind others'", "altered comment", "altered state", "none at all"],
)
def test_full_sync_puts_jumps_right(damaged: str) -> None:
    assert damaged != SAVED

    after = carried_out(damaged, "".join(rule_set().restore_all(parse_saved(damaged))))

    ours = [rule for rule in after if rule != OTHERS]
    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        of_chain = [rule for rule in ours if rule.startswith(f"-A {chain} ")]
        assert of_chain == [rule for rule in jumps(SAVED) if rule.startswith(f"-A {chain} ")]
    assert (OTHERS in after) == (OTHERS in damaged)
    if OTHERS in after:
        assert after.index(OTHERS) > max(after.index(rule) for rule in ours if rule.startswith("-A FORWARD"))


@pytest.mark.parametrize("saved", [SAVED, SAVED.replace(PORTALS, f"{OTHERS}\n{PORTALS}")])
def test_jumps_that_are_right_are_left_alone(saved: str) -> None:
    restore = "".join(rule_set().restore_all(parse_saved(saved)))

    assert "\n-I " not in restore
    assert "\n-D " not in restore
