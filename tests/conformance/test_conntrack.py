"""Which UDP flows go, against kube-proxy's own tests; where kproxy does better on purpose, its own rule counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.family import Family
from kproxy.proxy.sources import key_of, typed
from kproxy.proxy.stale_flows import NODE_PORT_ADDRESS, Frontends, Place, answerers, frontends, is_stale

NODE_ADDRESS = "192.168.0.2"
CASES = {case["name"]: case for case in yaml.safe_load((Path(__file__).parent / "conntrack.yaml").read_text())["cases"]}

A, B = ("10.244.0.2", 53), ("10.244.0.3", 53)
"""Endpoints."""


def _flow(entry: dict[str, Any]) -> tuple[Place, Place]:
    address = NODE_ADDRESS if entry["origDst"].startswith("<") else entry["origDst"]
    return (address, entry["origDstPort"]), (entry["replySrc"], entry["replySrcPort"] or entry["origDstPort"])


def _allowed(case: dict[str, Any]) -> Frontends:
    tracker = Tracker(Family.IPV4, "node")
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in case["objects"])
    return answerers(frontends(tracker.udp_ports()), (), [NODE_ADDRESS])


def test_flows_to_what_no_longer_serves_are_stale() -> None:
    case = CASES["clean-stale-entries"]
    allowed = _allowed(case)
    entries = [entry for entry in case["entries"] if entry["protocol"] == "udp"]

    found = [is_stale(*_flow(entry), allowed) for entry in entries]

    assert found == [entry["deleted"] for entry in entries]
    assert sum(found) == case["expect"]["deleted"]


def test_port_without_serving_endpoint_loses_its_flows() -> None:
    """kube-proxy keeps these two, and packets of a deleted pod's clients vanish until they time out."""
    case = CASES["service-without-endpoints"]

    assert all(is_stale(*_flow(entry), _allowed(case)) for entry in case["entries"])


@pytest.mark.parametrize(
    ("what", "current", "gone", "destination", "answerer", "expected"),
    [
        ("serving endpoint", {("10.96.0.10", 53): {A, B}}, [], ("10.96.0.10", 53), B, False),
        ("endpoint that has gone", {("10.96.0.10", 53): {B}}, [], ("10.96.0.10", 53), A, True),
        ("endpoint on another port", {("10.96.0.10", 53): {A}}, [], ("10.96.0.10", 53), (A[0], 5353), True),
        ("made before any rule", {("10.96.0.10", 53): {A}}, [], ("10.96.0.10", 53), ("10.96.0.10", 53), True),
        ("last endpoint gone", {("10.96.0.10", 53): set()}, [], ("10.96.0.10", 53), A, True),
        ("Service gone", {}, [("10.96.0.10", 53)], ("10.96.0.10", 53), A, True),
        ("another port", {("10.96.0.10", 53): set()}, [], ("10.96.0.10", 54), A, False),
        ("nobody's Service", {}, [], ("10.96.0.10", 53), A, False),
        ("back again", {("10.96.0.10", 53): {A}}, [("10.96.0.10", 53)], ("10.96.0.10", 53), A, False),
        ("node port", {(NODE_PORT_ADDRESS, 32000): {A}}, [], (NODE_ADDRESS, 32000), B, True),
        ("node port, valid", {(NODE_PORT_ADDRESS, 32000): {A}}, [], (NODE_ADDRESS, 32000), A, False),
        ("node port gone", {}, [(NODE_PORT_ADDRESS, 32000)], (NODE_ADDRESS, 32000), A, True),
        ("others' port", {(NODE_PORT_ADDRESS, 32000): {A}}, [], ("8.8.8.8", 32000), ("8.8.8.8", 32000), False),
        (
            "external IP that is the node's own, at the number of another Service's node port",
            {(NODE_PORT_ADDRESS, 32000): {A}, (NODE_ADDRESS, 32000): {B}},
            [],
            (NODE_ADDRESS, 32000),
            B,
            False,
        ),
    ],
)
def test_who_may_answer(
    what: str,
    current: dict[Place, set[Place]],
    gone: list[Place],
    destination: Place,
    answerer: Place,
    expected: bool,
) -> None:
    allowed = answerers({place: frozenset(serving) for place, serving in current.items()}, gone, [NODE_ADDRESS])

    assert is_stale(destination, answerer, allowed) is expected
