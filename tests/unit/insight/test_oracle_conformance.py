"""The oracle's choice of endpoints beside the facts of the conformance corpus (categorize.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.insight.oracle import Backend, NodeView, select

CORPUS = Path(__file__).resolve().parents[2] / "conformance" / "categorize.yaml"
CASES = yaml.safe_load(CORPUS.read_text())["cases"]
OTHER = "somewhere-else"


def backend(found: dict[str, Any], node: str, *, has_node_hints: bool) -> Backend:
    address, _, port = found["endpoint"].rpartition(":")
    return Backend(
        address=address,
        port=int(port),
        node=node if found["isLocal"] else OTHER,
        ready=found["ready"],
        serving=found["serving"] or found["ready"],
        terminating=found["terminating"],
        zones=frozenset(found.get("zoneHints") or ()),
        nodes=frozenset(found.get("nodeHints") or ()) if has_node_hints else frozenset(),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_oracle_chooses_as_kube_proxy_does(case: dict[str, Any]) -> None:
    node = NodeView(case["node"]["name"], (), (), case["node"].get("labels", {}).get("topology.kubernetes.io/zone", ""))
    has_node_hints = (case.get("featureGates") or {}).get("PreferSameTrafficDistribution", True)
    selection = select([backend(found, node.name, has_node_hints=has_node_hints) for found in case["endpoints"]], node)
    expected = case["expect"]
    assert selection.has_any is expected["hasAnyEndpoints"]
    for name, chosen in (("clusterEndpoints", selection.cluster), ("localEndpoints", selection.local)):
        if expected[name] is not None:
            assert {found.text for found in chosen} == set(expected[name]), name


def test_the_corpus_is_there() -> None:
    assert len(CASES) >= 30
