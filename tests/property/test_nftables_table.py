"""Laws of the nftables table that hold for any Services and any history, in our own kernel and in the real one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nftables_world import backend_in, bare_nodes, contents
from proxy_worlds import NODE, changes_of, edits, histories

from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import Container, Data, Decision, Holds
from kproxy.proxy.backends.nftables.layout import Frontend, Settings, frontends_of
from kproxy.proxy.backends.nftables.messages import BaseChain
from kproxy.proxy.backends.nftables.statements import Rule
from kproxy.proxy.backends.nftables.steps import in_order
from kproxy.proxy.backends.nftables.table import Claims, Found, Steps, Table, renumbered
from kproxy.proxy.changes import Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, EndpointSet, NodePortScope
from kproxy.proxy.services import ServicePortName
from netns.namespace import Namespace

AROUND = Circumstances(NodeIdentity(NODE, "z1"), ("192.168.1.2",), has_detector=True)
SETTINGS = Settings(Family.IPV4, detector=Detector(DetectBy.SOURCE, "10.244.0.0/16"))
SCOPE = NodePortScope(("192.168.1.2",))

UNHURRIED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

History = list[list[tuple[ObjectKey, Tracked | None]]]


class Kernel:
    """What nf_tables does to a table, as far as our requests go; it refuses what the real one refuses."""

    def __init__(self) -> None:
        self.chains: dict[str, list[Rule]] = {}
        self.containers: dict[str, Container] = {}
        self.elements: dict[str, dict[bytes, Data]] = {}

    def run(self, steps: Steps, table: Table, found: Found) -> None:
        for _ in in_order(steps, table, found, self):
            continue
        self.check()

    def found(self) -> Found:
        return Found(frozenset(self.chains), frozenset(self.containers), exists=True)

    def add_table(self) -> None:
        return

    def delete_table(self) -> None:
        raise AssertionError("nothing here is foreign")

    def add_chain(self, name: str, base: BaseChain | None = None) -> None:
        assert len(name) <= 250, name
        self.chains.setdefault(name, [])

    def flush_chain(self, name: str) -> None:
        self.chains[name] = []

    def delete_chain(self, name: str) -> None:
        assert not self.chains.pop(name), f"chain {name} has rules"
        assert name not in set(self._targets()), f"something leads to {name}"

    def add_rule(self, chain: str, rule: Rule) -> None:
        self.chains[chain].append(rule)

    def add_container(self, container: Container) -> None:
        assert self.containers.setdefault(container.name, container) == container
        self.elements.setdefault(container.name, {})

    def flush_container(self, container: Container) -> None:
        self.elements[container.name] = {}

    def delete_container(self, name: str) -> None:
        del self.containers[name], self.elements[name]

    def add_elements(self, container: Container, elements: Iterable[tuple[bytes, Data]]) -> Iterator[None]:
        for key, data in elements:
            assert len(key) == container.key_size
            assert self.elements[container.name].setdefault(key, data) == data, "there with other data"
            yield

    def delete_elements(self, container: Container, keys: Iterable[bytes]) -> Iterator[None]:
        for key in keys:
            del self.elements[container.name][key]
            yield

    def _targets(self) -> Iterator[str]:
        for rules in self.chains.values():
            for rule in rules:
                words = rule.text.split()
                yield from (words[index + 1] for index, word in enumerate(words) if word in ("goto", "jump"))
        for elements in self.elements.values():
            yield from (data.verdict.chain for data in elements.values() if isinstance(data, Decision))

    def check(self) -> None:
        """Whatever is named is there."""
        assert {target for target in self._targets() if target} <= self.chains.keys()
        words = (word for rules in self.chains.values() for rule in rules for word in rule.text.split())
        used = {word[1:] for word in words if word[0] == "@"}
        assert used <= self.containers.keys()

    def shown(self) -> tuple[object, ...]:
        """Everything, but for which endpoint has which number; numbers without a gap are a law."""
        elements: dict[str, object] = dict(self.elements)
        for name, container in self.containers.items():
            if container.holds is Holds.ENDPOINT:
                elements[name] = without_numbers(self.elements[name])
        return self.chains, self.containers, elements


def without_numbers(elements: dict[bytes, Data]) -> dict[bytes, list[Data]]:
    numbered: dict[bytes, dict[int, Data]] = defaultdict(dict)
    for key, data in elements.items():
        numbered[key[:-4]][int.from_bytes(key[-4:], "little")] = data
    assert all(sorted(each) == list(range(len(each))) for each in numbered.values())
    return {frontend: sorted(each.values(), key=repr) for frontend, each in numbered.items()}


def tracked(world: dict[ObjectKey, Tracked]) -> Tracker:
    tracker = Tracker(Family.IPV4, NODE)
    tracker.take(Change(key, None, value) for key, value in world.items())
    return tracker


def from_nothing(world: dict[ObjectKey, Tracked], kernel: Kernel | None = None) -> Kernel:
    kernel, table = kernel or Kernel(), Table(SETTINGS)
    found = kernel.found()
    kernel.run(table.take(tracked(world).delta(AROUND, SCOPE, is_full=True), found), table, found)
    return kernel


def run(history: History) -> tuple[Kernel, Table, Tracker, dict[ObjectKey, Tracked]]:
    """A kernel that saw one full sync of nothing, then a partial one after each batch."""
    world: dict[ObjectKey, Tracked] = {}
    tracker, table, kernel = Tracker(Family.IPV4, NODE), Table(SETTINGS), Kernel()
    kernel.run(table.take(tracker.delta(AROUND, SCOPE, is_full=True), Found()), table, Found())
    for batch in history:
        tracker.take(changes_of(world, batch))
        kernel.run(table.take(tracker.delta(AROUND, SCOPE)), table, Found(exists=True))
    return kernel, table, tracker, world


@UNHURRIED
@given(histories)
def test_partial_syncs_lead_where_one_full_sync_leads(history: History) -> None:
    kernel, _, _, world = run(history)

    assert kernel.shown() == from_nothing(world).shown()


@UNHURRIED
@given(histories, histories)
def test_full_sync_over_anything_left_behind_leaves_nothing_of_it(before: History, after: History) -> None:
    kernel, _, _, _ = run(before)
    _, _, _, world = run(after)

    assert from_nothing(world, kernel).shown() == from_nothing(world).shown()


@UNHURRIED
@given(histories, edits())
def test_a_change_to_one_service_touches_no_other(history: History, edit: tuple[ObjectKey, Tracked | None]) -> None:
    _, table, tracker, world = run(history)
    before = {name: held.plan for name, held in table.ports.items()}
    tracker.take(changes_of(world, [edit]))
    delta = tracker.delta(AROUND, SCOPE)

    steps = table.take(delta)

    plans = [*delta.written.values(), *(before[name] for name in (*delta.written, *delta.removed) if name in before)]
    own = tuple(frontend.key for plan in plans for frontend in frontends_of(plan))
    for container, keys in (*steps.deleted.items(), *steps.added.items()):
        if container not in (names.CLUSTER_IPS, names.HAIRPIN_CONNECTIONS):
            assert all(key.startswith(own) for key in keys)
    if not plans:
        assert steps.is_empty


@UNHURRIED
@given(
    st.lists(st.integers(0, 30).map(str), unique=True).flatmap(st.permutations),
    st.sets(st.integers(0, 30).map(str)),
)
@example(["a"], set())
def test_endpoints_keep_their_numbers_and_leave_no_gap(numbered: list[str], wanted: set[str]) -> None:
    new = list(renumbered(numbered, sorted(wanted)))

    assert sorted(new) == sorted(wanted)
    moved = sum(was != now for was, now in zip(numbered, new, strict=False)) + abs(len(new) - len(numbered))
    changed = max(len(wanted - set(numbered)), len(set(numbered) - wanted))
    if numbered and wanted:
        assert moved <= 2 * changed
    if len(new) == len(numbered):
        assert moved == len(wanted - set(numbered))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8))
def test_of_several_that_claim_a_frontend_the_first_by_name_has_it(order: list[str]) -> None:
    claims, holding, frontend = Claims(), set[str](), Frontend(b"key")
    for letter in order:
        name = ServicePortName("default", letter, "", "TCP")
        if letter in holding:
            claims.release(frontend, name)
            holding.remove(letter)
        else:
            claims.claim(frontend, name)
            holding.add(letter)
        for one in holding:
            owned = claims.owned((frontend,), ServicePortName("default", one, "", "TCP"))
            assert (owned is None) == (one == min(holding))


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Namespace]]:
    with bare_nodes("tnp", "walked", "fresh") as made:
        yield made


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories)
def test_real_kernel_holds_after_each_step_what_one_built_from_nothing_holds(
    nodes: list[Namespace], history: History
) -> None:
    """The first sync of each history is a full one over what the history before has left."""
    world: dict[ObjectKey, Tracked] = {}
    tracker = Tracker(Family.IPV4, NODE)
    with backend_in(nodes[0], SETTINGS) as walked:
        walked.apply(tracker.delta(AROUND, SCOPE, is_full=True))
        for batch in history:
            tracker.take(changes_of(world, batch))
            walked.apply(tracker.delta(AROUND, SCOPE))

            with backend_in(nodes[1], SETTINGS) as fresh:
                fresh.apply(tracked(world).delta(AROUND, SCOPE, is_full=True))
            assert contents(nodes[0], Family.IPV4, has_numbers=False) == contents(
                nodes[1], Family.IPV4, has_numbers=False
            )


def test_names_are_as_kube_proxy_has_them() -> None:
    """From kube-proxy's own tests (nftables/proxier_test.go)."""
    name = ServicePortName("ns1", "svc1", "p80", "TCP")
    assert names.service_chain(name, EndpointSet.CLUSTER) == "service-ULMVA6XW-ns1/svc1/tcp/p80"
    fifth = ServicePortName("ns5", "svc5", "p80", "TCP")
    expected = "GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80"
    assert names.endpoint_chain(fifth, "10.180.0.3:80") == f"endpoint-{expected}"
    assert names.affinity_set(fifth, "10.180.0.3:80") == f"affinity-{expected}"
    long = ServicePortName("n" * 63, "s" * 63, "p" * 63, "SCTP")
    assert len(names.affinity_set(long, "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535")) <= 250
