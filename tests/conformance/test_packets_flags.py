"""Cases once more with other flags: other ways to tell pods from the rest, another mark, everything masqueraded."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from corpus import Case, Flow, Step, case
from playing import NFTABLES_MODE, mode_of, play

pytestmark = pytest.mark.root

# The cases' ranges for pods hold endpoints elsewhere too. To the other detectors only pods on the node are local, which
# is where all clients are that are pods.
DETECTORS: dict[str, dict[str, Any]] = {
    "interface-name-prefix": {"detectLocalMode": "InterfaceNamePrefix", "podInterfaceNamePrefix": "pods-"},
    "node-cidr": {"detectLocalMode": "NodeCIDR"},
    # The client is the only pod behind its interface, which serves as the bridge.
    "bridge-interface": {"detectLocalMode": "BridgeInterface", "podBridgeInterface": "veth0"},
    "other-mark": {"masqueradeBit": 17},
}
CASES = {
    "interface-name-prefix": ("internal-external-masquerade-base", "own-ipv6", "own-hairpin"),
    "node-cidr": ("internal-external-masquerade-base", "own-ipv6", "own-hairpin"),
    "bridge-interface": ("external-traffic-policy-local", "internal-external-masquerade-base"),
    "other-mark": ("internal-external-masquerade-base", "own-ipv6", "own-hairpin"),
}
# The mark of mode nftables has no flag; tests/dataplane/test_nftables_writers.py writes others.
COMBINATIONS = {
    f"{variant}-{how}-{name}": (how, name, variant)
    for variant in ("legacy", "nft", NFTABLES_MODE)
    for how, names in CASES.items()
    for name in names
    if (how, variant) != ("other-mark", NFTABLES_MODE)
}


@pytest.mark.parametrize(("how", "name", "variant"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_outcome_is_the_same(how: str, name: str, variant: str) -> None:
    record = play(with_flags(case(name, mode_of(variant)), **DETECTORS[how]), variant)

    assert record.flows > 0
    assert not record.wrong, record.report()


@pytest.mark.parametrize("name", ["internal-external-masquerade-base", "own-ipv6"])
@pytest.mark.parametrize("variant", ["legacy", "nft", NFTABLES_MODE])
def test_masquerade_all_hides_every_client_of_a_cluster_ip(name: str, variant: str) -> None:
    one = with_flags(case(name, mode_of(variant)), masqueradeAll=True)
    record = play(replace(one, steps=tuple(map(all_masqueraded, one.steps))), variant)

    assert record.flows > 0
    assert not record.wrong, record.report()


def with_flags(one: Case, **flags: Any) -> Case:
    """The case with other settings; where the node's own range decides, the Node gets the range that was configured."""
    config = {**one.config, **flags}
    steps = one.steps
    if config["detectLocalMode"] == "NodeCIDR":
        steps = tuple(with_pod_cidr(step, config["clusterCIDR"]) for step in steps)
    if "detectLocalMode" in flags:
        config["clusterCIDR"] = None
    return replace(one, config=config, steps=steps)


def with_pod_cidr(step: Step, cidr: str) -> Step:
    objects = copy.deepcopy(step.objects)
    for obj in objects:
        if obj["kind"] == "Node":
            obj["spec"] = {"podCIDR": cidr, "podCIDRs": [cidr]}
    return replace(step, objects=objects)


def all_masqueraded(step: Step) -> Step:
    return replace(step, flows=tuple(map(masqueraded, step.flows)))


def masqueraded(flow: Flow) -> Flow:
    if flow.to != "clusterip" or not flow.expect.endpoints:
        return flow
    return replace(flow, expect=replace(flow.expect, masq=True))
