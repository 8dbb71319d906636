"""Which UDP flows go, against kube-proxy's own tests; where kproxy does better on purpose, its own rule counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.conntrack import Flow, frontends, stale
from kproxy.proxy.family import Family
from kproxy.proxy.sources import key_of, typed

NODE_ADDRESS = "192.168.0.2"
CASES = {case["name"]: case for case in yaml.safe_load((Path(__file__).parent / "conntrack.yaml").read_text())["cases"]}


def _flow(entry: dict[str, Any]) -> Flow:
    address = NODE_ADDRESS if entry["origDst"].startswith("<") else entry["origDst"]
    port = entry["replySrcPort"] or entry["origDstPort"]
    return Flow((address, entry["origDstPort"]), f"{entry['replySrc']}:{port}", b"")


def _table(case: dict[str, Any]) -> dict[tuple[str, int], frozenset[str]]:
    tracker = Tracker(Family.IPV4, "node")
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in case["objects"])
    return frontends(tracker.udp_ports())


def test_flows_to_what_no_longer_serves_are_stale() -> None:
    case = CASES["clean-stale-entries"]
    flows = {_flow(entry): entry["deleted"] for entry in case["entries"] if entry["protocol"] == "udp"}

    found = stale(flows, _table(case), (), frozenset({NODE_ADDRESS}))

    assert set(found) == {flow for flow, is_deleted in flows.items() if is_deleted}
    assert len(found) == case["expect"]["deleted"]


def test_port_without_serving_endpoint_loses_its_flows() -> None:
    """kube-proxy keeps these two, and packets of a deleted pod's clients vanish until they time out."""
    case = CASES["service-without-endpoints"]
    flows = [_flow(entry) for entry in case["entries"]]

    assert stale(flows, _table(case), (), frozenset()) == flows


def test_frontend_that_is_gone_loses_its_flows() -> None:
    flow = Flow(("10.96.0.10", 53), "10.244.0.2:53", b"")

    assert stale([flow], {}, [("10.96.0.10", 53)], frozenset()) == [flow]
    assert stale([flow], {}, [], frozenset()) == []


def test_node_port_of_somebody_else_is_left_alone() -> None:
    table = {("", 32000): frozenset({"10.244.0.2:53"})}
    flow = Flow(("8.8.8.8", 32000), "8.8.8.8:32000", b"")

    assert stale([flow], table, (), frozenset({NODE_ADDRESS})) == []
    assert stale([flow._replace(destination=(NODE_ADDRESS, 32000))], table, (), frozenset({NODE_ADDRESS})) != []
