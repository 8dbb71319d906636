"""Laws of the rule set that hold for any Services and any history."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from proxy_worlds import NODE, changes_of, edits, histories

from kproxy.proxy.backends.iptables import render
from kproxy.proxy.backends.iptables.render import Found, RuleSet, parse_saved
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.changes import Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope, PlanDelta

AROUND = Circumstances(NodeIdentity(NODE, "z1"), ("192.168.1.2",), has_detector=True)
SETTINGS = Settings(Family.IPV4, detector=Detector(DetectBy.SOURCE, "10.244.0.0/16"))
SCOPE = NodePortScope(None, includes_loopback=True)


class Kernel:
    """What iptables-restore --noflush does to tables, as far as its input here goes."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, list[str]]] = {}

    def restore(self, text: str) -> None:
        table: dict[str, list[str]] = {}
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            name = rest.partition(" ")[0]
            if line.startswith("*"):
                table = self.tables.setdefault(line[1:], {})
            elif line.startswith(":"):
                table[word[1:]] = []
            elif word == "-A":
                assert name in table, f"append to a chain that is not there: {line}"
                table[name].append(line)
            elif word == "-I":
                table.setdefault(name, []).insert(0, f"-A {name} {rest.split(' ', 2)[2]}")
            elif word == "-X":
                assert not table.pop(name), f"delete of a chain with rules: {line}"
            else:
                assert line == "COMMIT"
        self.check_targets()

    def check_targets(self) -> None:
        """The kernel refuses a jump to a chain that is not there, and so deleting one that is jumped to."""
        for table in self.tables.values():
            for rule in (rule for rules in table.values() for rule in rules):
                target = re.search(r"-j (KUBE-\S+)", rule)
                assert target is None or target[1] in table, f"jump to nowhere: {rule}"

    def shown(self) -> dict[str, dict[str, list[str]]]:
        return {name: dict(sorted(table.items())) for name, table in self.tables.items() if name != "mangle"}


def rendered(delta: PlanDelta) -> RuleSet:
    rules = RuleSet(SETTINGS)
    rules.take(delta)
    return rules


def kernel_of(rules: RuleSet) -> Kernel:
    kernel = Kernel()
    kernel.restore("".join(rules.restore_all(Found())))
    return kernel


def tracked(world: dict[ObjectKey, Tracked]) -> Tracker:
    tracker = Tracker(Family.IPV4, NODE)
    tracker.take(Change(key, None, value) for key, value in world.items())
    return tracker


def run(history: list[list[tuple[ObjectKey, Tracked | None]]]) -> tuple[Kernel, RuleSet, dict[ObjectKey, Tracked]]:
    """A kernel that saw one full sync of nothing, then a partial one after each batch."""
    world: dict[ObjectKey, Tracked] = {}
    tracker, rules, kernel = Tracker(Family.IPV4, NODE), RuleSet(SETTINGS), Kernel()
    rules.take(tracker.delta(AROUND, SCOPE, is_full=True))
    kernel.restore("".join(rules.restore_all(Found())))
    for batch in history:
        tracker.take(changes_of(world, batch))
        kernel.restore("".join(rules.restore_changed(rules.take(tracker.delta(AROUND, SCOPE)))))
    return kernel, rules, world


@given(histories)
def test_partial_syncs_lead_where_one_full_sync_leads(history: list[list[tuple[ObjectKey, Tracked | None]]]) -> None:
    kernel, rules, world = run(history)
    full = rendered(tracked(world).delta(AROUND, SCOPE, is_full=True))

    assert kernel.shown() == kernel_of(full).shown()
    assert rules.saved() == full.saved()


@given(histories)
def test_large_clusters_lose_comments_the_same_way_in_part_and_in_full(
    history: list[list[tuple[ObjectKey, Tracked | None]]],
) -> None:
    threshold, render.LARGE_CLUSTER_ENDPOINTS = render.LARGE_CLUSTER_ENDPOINTS, 8
    try:
        kernel, rules, world = run(history)
        full = rendered(tracked(world).delta(AROUND, SCOPE, is_full=True))
        assert kernel.shown() == kernel_of(full).shown()
        assert rules.saved() == full.saved()
    finally:
        render.LARGE_CLUSTER_ENDPOINTS = threshold


@given(histories)
def test_full_sync_over_anything_left_behind_leaves_nothing_of_it(
    history: list[list[tuple[ObjectKey, Tracked | None]]],
) -> None:
    kernel, rules, _ = run(history)
    restarted = rendered(tracked({}).delta(AROUND, SCOPE, is_full=True))

    kernel.restore("".join(restarted.restore_all(parse_saved(rules.saved()))))

    assert kernel.shown() == kernel_of(restarted).shown()


@given(histories, histories, st.integers(1, 3))
def test_load_that_is_cut_ends_where_a_whole_one_ends(
    history: list[list[tuple[ObjectKey, Tracked | None]]],
    later: list[list[tuple[ObjectKey, Tracked | None]]],
    ports_at_a_time: int,
) -> None:
    kernel, before, _ = run(history)
    _, rules, _ = run(later)

    for pieces in rules.restore_own_chains(ports_at_a_time):
        kernel.restore("".join(pieces))
    kernel.restore("".join(rules.restore_all(parse_saved(before.saved()), has_own_chains=False)))

    assert kernel.shown() == kernel_of(rules).shown()


@given(histories, st.randoms())
def test_order_of_arrival_does_not_matter(
    history: list[list[tuple[ObjectKey, Tracked | None]]], random: st.DataObject
) -> None:
    _, rules, world = run(history)
    items = list(world.items())
    random.shuffle(items)  # type: ignore[attr-defined]

    assert rendered(tracked(dict(items)).delta(AROUND, SCOPE, is_full=True)).saved() == rules.saved()


@given(histories)
def test_names_fit_into_the_kernel_and_every_endpoint_chain_is_used(
    history: list[list[tuple[ObjectKey, Tracked | None]]],
) -> None:
    kernel, rules, _ = run(history)
    used = set(re.findall(r"-j (KUBE-\S+)", rules.saved()))

    assert all(len(chain) <= 28 for table in kernel.tables.values() for chain in table)
    assert {chain for chain in kernel.tables["nat"] if chain.startswith("KUBE-SEP-")} <= used


@given(histories, edits())
def test_change_to_one_service_writes_no_other_services_chains(
    history: list[list[tuple[ObjectKey, Tracked | None]]], edit: tuple[ObjectKey, Tracked | None]
) -> None:
    world: dict[ObjectKey, Tracked] = {}
    tracker, rules = Tracker(Family.IPV4, NODE), RuleSet(SETTINGS)
    for batch in history:
        tracker.take(changes_of(world, batch))
    rules.take(tracker.delta(AROUND, SCOPE, is_full=True))

    tracker.take(changes_of(world, [edit]))
    delta = tracker.delta(AROUND, SCOPE)
    changed = rules.take(delta)

    if edit[0].kind == "Service":
        assert {name.service for name in (*delta.written, *delta.removed)} <= {edit[0].name}
    assert changed.ports == set(delta.written)
    assert bool(rules.restore_changed(changed)) == bool(delta.written or delta.removed)
