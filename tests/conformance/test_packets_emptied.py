"""Negative controls of mode nftables: with any one part of the table empty, the flows that need it must fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from corpus import NFTABLES, Step, case
from playing import NFTABLES_MODE, Stage, play

pytestmark = pytest.mark.root

EMPTIED = {
    ("map service-ips", "own-named-ports"),
    ("map service-nodeports", "own-etp-local-nodeport"),
    ("map endpoints", "own-named-ports"),
    ("map local-endpoints", "internal-traffic-policy-local-one"),
    ("map nodeport-local-endpoints", "own-etp-local-nodeport"),
    ("map no-endpoint-services", "no-endpoints-reject"),
    ("map no-endpoint-nodeports", "no-endpoints-reject"),
    ("map firewall-ips", "own-lb-source-ranges"),
    ("set cluster-ips", "clusterip-general"),
    ("set hairpin-connections", "own-hairpin"),
    ("chain cluster-ips-check", "clusterip-general"),
    ("chain masquerading", "own-hairpin"),
    ("chain reject-chain", "no-endpoints-reject"),
}


@pytest.mark.parametrize(("what", "name"), sorted(EMPTIED), ids=lambda text: text.replace(" ", "-"))
def test_flows_fail_without(what: str, name: str) -> None:
    def empty(stage: Stage, step: Step) -> None:
        kind, _, part = what.partition(" ")
        for family in ("ip", "ip6"):
            stage.run("nft", "flush", kind, family, "kube-proxy", part)

    one = case(name, NFTABLES)
    # of what comes next the kernel would refuse to change what is no more, and so say that somebody meddled
    record = play(replace(one, steps=one.steps[:1]), NFTABLES_MODE, meddle=empty)

    assert record.wrong
