"""Two writers, one kernel state: our netlink messages and `nft -f`, over the objects of every conformance case.

What the kernel holds afterwards is compared to the byte: definitions of sets and what nft keeps in their user data,
elements, hooks, and the expressions of every rule. So what we send means what nft makes of the same text.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from nftables_world import backend_in, bare_nodes, contents, nft
from rule_worlds import NAMES, SERVICES, deltas, read_case

from kproxy.proxy.backends.nftables.layout import Settings
from kproxy.proxy.backends.nftables.table import Table
from kproxy.proxy.backends.nftables.text import NftWriter
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope, PlanDelta
from kproxy.proxy.sources import key_of, typed
from netns.namespace import Namespace, run_in

pytestmark = pytest.mark.root

DETECTORS = {
    "none": None,
    "whole bytes": Detector(DetectBy.SOURCE, "10.244.0.0/16"),
    "bits": Detector(DetectBy.SOURCE, "10.244.0.0/14"),
    "one address": Detector(DetectBy.SOURCE, "10.244.1.2/32"),
    "everything": Detector(DetectBy.SOURCE, "0.0.0.0/0"),
    "interface": Detector(DetectBy.INTERFACE, "cni0"),
    "interfaces": Detector(DetectBy.INTERFACE_PREFIX, "veth"),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Namespace]]:
    with bare_nodes("tnw", "netlink", "nft") as made:
        yield made


def compare(nodes: list[Namespace], family: Family) -> None:
    """Asserts that both hold the same; one endpoint's number may differ, since nft writes everything each time."""
    netlink, text = (contents(node, family, has_numbers=False) for node in nodes)
    assert netlink == text


def listed(node: Namespace, family: Family) -> list[str]:
    """The words of nft's listing; maps and elements come in no defined order."""
    text = nft(node, "list", "table", "ip" if family is Family.IPV4 else "ip6", "kube-proxy")
    return sorted(text.replace(",", " ").split())


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", NAMES)
def test_both_writers_leave_the_same_table(nodes: list[Namespace], name: str, family: Family) -> None:
    """Step by step, so that changes and the deletion of what is stale are compared too."""
    case = read_case(name)
    detector = Detector(DetectBy.SOURCE, "10.0.0.0/8" if family is Family.IPV4 else "fd00:10::/64")
    settings = Settings(family, 1 << case["config"]["masqueradeBit"], detector)
    with backend_in(nodes[0], settings) as netlink, backend_in(nodes[1], settings, NftWriter) as text:
        for _, delta in deltas(case, family, frozenset()):
            told = msgspec.structs.replace(delta, service_cidrs=("10.96.0.0/12",) if family is Family.IPV4 else ())
            netlink.apply(told)
            run_in(nodes[1], text.apply, told)

            compare(nodes, family)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
@pytest.mark.parametrize("masquerade_all", [False, True])
def test_every_way_to_tell_pods_is_written_alike(
    nodes: list[Namespace], detector: Detector | None, family: Family, *, masquerade_all: bool
) -> None:
    if detector is not None and detector.by is DetectBy.SOURCE and family is Family.IPV6:
        detector = Detector(
            DetectBy.SOURCE,
            {"16": "fd00::/16", "14": "fd00::/14", "32": "fd00::1/128"}.get(detector.value.rpartition("/")[2], "::/0"),
        )
    settings = Settings(family, 1 << 31, detector)
    around = Circumstances(NodeIdentity("node"), (), detector is not None, masquerade_all)
    tracker = Tracker(family, "node")
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in SERVICES)
    addresses = ("192.168.0.2",) if family is Family.IPV4 else ("fd00::2",)
    for scope in (NodePortScope(None), NodePortScope(addresses), NodePortScope(())):
        delta = tracker.delta(around, scope, is_full=True)
        with backend_in(nodes[0], settings) as netlink, backend_in(nodes[1], settings, NftWriter) as text:
            netlink.apply(delta)
            run_in(nodes[1], text.apply, delta)

        compare(nodes, family)
        assert listed(nodes[0], family) == listed(nodes[1], family)
        assert "0x80000000" in listed(nodes[0], family)


def test_an_empty_change_writes_nothing(nodes: list[Namespace]) -> None:
    with backend_in(nodes[0], Settings(Family.IPV4)) as backend:
        backend.apply(PlanDelta({}, is_full=True))
        before = contents(nodes[0], Family.IPV4)

        backend.apply(PlanDelta({}))

    assert contents(nodes[0], Family.IPV4) == before
    assert Table(Settings(Family.IPV4)).take(PlanDelta({})).is_empty
