"""A node changes its proxy's mode while connections are open: they go on, and nothing of the other mode is left."""

from __future__ import annotations

import pytest
from corpus import case
from netns_world import world
from playing import NFTABLES_MODE, Stage, own_prefix

pytestmark = pytest.mark.root

MODES = ("legacy", NFTABLES_MODE, "nft", NFTABLES_MODE, "legacy")


def test_switching_modes_breaks_no_connection_and_leaves_nothing_behind() -> None:
    """Connections of a pod and from outside are made under the first mode and used under each of the others."""
    one = case("own-tcp-survives")
    connected, restarted = one.steps[0], one.steps[2]
    assert restarted.restarts_proxy
    assert restarted.keeps_rules
    with world(own_prefix()) as place, Stage(one, MODES[0], place, has_proxy=True).built() as stage:
        stage.prepare(connected)
        assert stage.send(connected.flows) == {}
        for mode in MODES[1:]:
            stage.variant = mode
            stage.prepare(restarted)

            assert stage.send(restarted.flows) == {}, mode
            assert kinds_of_rules(stage) == {mode}
        stage.run_proxy("--cleanup")
        assert kinds_of_rules(stage) == set()


def kinds_of_rules(stage: Stage) -> set[str]:
    """The modes and variants of which the node holds rules that lead anywhere."""
    found = {
        variant
        for variant in ("legacy", "nft")
        for family in ("iptables", "ip6tables")
        if ":KUBE-SERVICES" in (text := stage.run(f"{family}-{variant}-save")) or "KUBE-SVC-" in text
    }
    return found | {NFTABLES_MODE} if "kube-proxy" in stage.run("nft", "list", "tables") else found
