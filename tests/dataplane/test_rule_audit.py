"""Real kernels that are edited rule by rule: what both readers see, and what of it is found."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rule_edits import Edit, edit
from rule_worlds import NAMES, SERVICES, bare_nodes, deltas, full_delta, read_case, saved

from kproxy.insight.rule_counters import LegacyReader, NftReader, Rule, RuleReader, parse_save
from kproxy.insight.rule_drift import Audited, Plan, compare, plan_of
from kproxy.proxy.backends.iptables.host import Variant, find_tools
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import make_counters
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.setup import HostFeatures, iptables_settings
from netns.namespace import Namespace, run_in

pytestmark = pytest.mark.root

EDITS = 1000 if os.environ.get("KPROXY_SOAK") else 80
"""On each variant; tests/unit/insight/test_rule_drift.py makes a thousand of them in texts alone."""

CONFIG = ProxyConfig(cluster_cidr=("10.244.0.0/16",))


@pytest.fixture(scope="module")
def node() -> Iterator[Namespace]:
    with bare_nodes("tra", "node") as (made,):
        run_in(made, make_counters, COUNTERS)
        yield made


@pytest.mark.parametrize("family", Family)
def test_both_readers_agree_on_every_rule_that_the_cases_have(node: Namespace, family: Family) -> None:
    tools = find_tools("legacy", family)
    reader = LegacyReader(node.path)
    version = 4 if family is Family.IPV4 else 6
    try:
        for name in NAMES:
            steps = list(deltas(read_case(name), family, frozenset(COUNTERS)))
            backend = IptablesBackend(tools, steps[0][0])
            for _, delta in steps:
                run_in(node, backend.apply, delta)

            through_libiptc = reader.read(version)

            assert by_place(through_libiptc) == by_place(parse_save(saved(node, family).splitlines())), name
    finally:
        reader.close()


def by_place(rules: tuple[Rule, ...]) -> dict[tuple[str, str, int], Rule]:
    return {(rule.table, rule.chain, rule.number): rule for rule in rules}


@dataclass
class Kernel:
    """A kernel that holds a plan, until somebody edits it."""

    node: Namespace
    variant: Variant
    reader: RuleReader
    plan: Plan
    text: str

    def put(self, text: str) -> bool:
        """Whether the kernel takes a text in the place of all its rules."""
        tools = find_tools(self.variant, Family.IPV4)
        done = run_in(self.node, subprocess.run, [tools.restore], input=text.encode(), capture_output=True)
        return done.returncode == 0

    def drifts(self) -> list[Audited]:
        return [row for row in compare(self.plan, self.reader.read(4)) if row.drift is not None]


@pytest.fixture(params=["legacy", "nft"])
def kernel(node: Namespace, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    variant: Variant = request.param
    settings = iptables_settings(CONFIG, NodeFacts(), Family.IPV4, HostFeatures(frozenset(COUNTERS)))
    delta = full_delta(CONFIG, SERVICES)
    rules = RuleSet(settings)
    rules.take(delta)
    tools = find_tools(variant, Family.IPV4)
    run_in(node, IptablesBackend(tools, settings).apply, delta)
    reader: RuleReader = LegacyReader(node.path) if variant == "legacy" else NftReader(node.path)
    text = re.sub(r"^\[\d+:\d+\] ", "", saved(node, Family.IPV4, variant), flags=re.MULTILINE) + "\n"
    yield Kernel(node, variant, reader, plan_of(rules.saved()), text)
    reader.close()


def test_untouched_kernel_gives_no_finding(kernel: Kernel) -> None:
    assert kernel.drifts() == []


def edits(kernel: Kernel) -> Iterator[Edit]:
    """Edits that this kernel takes: it refuses a loop, and a chain of the other table."""
    seed = taken = 0
    while taken < EDITS:
        edited = edit(seed, kernel.text)
        seed += 1
        if kernel.put(edited.text):
            taken += 1
            yield edited
        assert seed < 4 * EDITS, "the kernel refuses nearly everything"


def test_every_random_edit_of_one_rule_is_found(kernel: Kernel) -> None:
    missed, differently_read = [], []
    for edited in edits(kernel):
        places = [(row.rule.table, row.rule.chain) for row in kernel.drifts()]
        if (edited.table, edited.chain) not in places:
            missed.append(edited.what)
        if kernel.variant == "legacy":
            from_text = parse_save(saved(kernel.node, Family.IPV4).splitlines())
            if by_place(kernel.reader.read(4)) != by_place(from_text):
                differently_read.append(edited.what)

    assert missed == []
    assert differently_read == []
    assert kernel.put(kernel.text)
    assert kernel.drifts() == []
