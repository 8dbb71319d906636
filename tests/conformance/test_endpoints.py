"""Endpoint selection and merging, against what kube-proxy's own tests say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.api.types import EndpointSlice
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.endpoints import (
    Endpoint,
    NodeIdentity,
    PortKey,
    from_slices,
    local_ready_addresses,
    select,
    service_of,
)
from kproxy.proxy.family import Family
from kproxy.proxy.node import ZONE_LABEL
from kproxy.proxy.services import PortSpec, ServicePortName
from kproxy.proxy.sources import key_of, typed

HERE = Path(__file__).parent
CATEGORIZE = yaml.safe_load((HERE / "categorize.yaml").read_text())["cases"]
UPDATES = yaml.safe_load((HERE / "endpoints.yaml").read_text())["updates"]


@pytest.mark.parametrize("case", CATEGORIZE, ids=lambda case: case["name"])
def test_endpoints_are_those_that_kube_proxy_selects(case: dict[str, Any]) -> None:
    service, wanted = case["service"], case["expect"]
    port = PortSpec(
        ServicePortName("ns1", "svc1", "", "TCP"),
        "10.0.0.1",
        80,
        node_port=service["nodePort"],
        is_internal_local=service["internalPolicyLocal"],
        is_external_local=service["externalPolicyLocal"],
    )
    node = NodeIdentity(case["node"]["name"], case["node"]["labels"].get(ZONE_LABEL, ""))

    reads_node_hints = case["featureGates"]["PreferSameTrafficDistribution"]
    chosen = select(port, [_endpoint(given, reads_node_hints) for given in case["endpoints"]], node)

    if case["endpoints"]:  # without any, kube-proxy does not say which sets it would have used
        assert chosen.cluster == _tuple(wanted["clusterEndpoints"])
        assert chosen.local == _tuple(wanted["localEndpoints"])
    assert chosen.reachable == (_tuple(wanted["allEndpoints"]) or ())
    assert chosen.has_any == wanted["hasAnyEndpoints"]


def _endpoint(given: dict[str, Any], reads_node_hints: bool) -> Endpoint:
    """The gate for node hints is on for good by now; kube-proxy's older tests leave it off and expect them unread."""
    return Endpoint(
        given["endpoint"],
        is_local=given["isLocal"],
        is_ready=given["ready"],
        is_serving=given["serving"] or given["ready"],
        is_terminating=given["terminating"],
        zones=frozenset(given.get("zoneHints") or ()),
        nodes=frozenset((given.get("nodeHints") or ()) if reads_node_hints else ()),
    )


def _tuple(addresses: list[str] | None) -> tuple[str, ...] | None:
    return None if addresses is None else tuple(sorted(addresses))


def _slices(objects: list[dict[str, Any]]) -> list[EndpointSlice]:
    return [value for obj in objects if isinstance(value := typed(obj), EndpointSlice)]


def _merged(objects: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for slice_ in _slices(objects):
        by_service.setdefault((slice_.metadata.namespace, service_of(slice_)), []).append(slice_)
    found = {}
    for (namespace, service), slices in by_service.items():
        for key, endpoints in from_slices(slices, Family.IPV4, UPDATES["node"]).items():
            found[f"{namespace}/{service}:{key.name}/{key.protocol}"] = [_shown(endpoint) for endpoint in endpoints]
    return found


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "endpoint": endpoint.address,
        "isLocal": endpoint.is_local,
        "ready": endpoint.is_ready,
        "serving": endpoint.is_serving,
        "terminating": endpoint.is_terminating,
    }


@pytest.mark.parametrize("case", UPDATES["cases"], ids=lambda case: case["name"])
def test_slices_merge_into_the_endpoints_that_kube_proxy_has(case: dict[str, Any]) -> None:
    assert _merged(case["after"]["slices"]) == case["expect"]["endpoints"]
    for service, count in case["expect"]["localReadyEndpoints"].items():
        slices = [s for s in _slices(case["after"]["slices"]) if f"{s.metadata.namespace}/{service_of(s)}" == service]
        assert local_ready_addresses(from_slices(slices, Family.IPV4, UPDATES["node"])) == count


@pytest.mark.parametrize("case", UPDATES["cases"], ids=lambda case: case["name"])
def test_udp_flows_are_looked_at_when_kube_proxy_looks(case: dict[str, Any]) -> None:
    tracker = Tracker(Family.IPV4, UPDATES["node"])
    before = {key_of(obj): typed(obj) for obj in case["before"]["slices"]}
    after = {key_of(obj): typed(obj) for obj in case["after"]["slices"]}
    tracker.take(Change(key, None, value) for key, value in before.items())
    tracker.pop_udp_changes()

    tracker.take(Change(key, old, None) for key, old in before.items() if key not in after)
    tracker.take(Change(key, before.get(key), new) for key, new in after.items())

    assert bool(tracker.pop_udp_changes()) == case["expect"]["conntrackCleanupRequired"]


def test_unnamed_port_is_the_empty_name() -> None:
    assert PortKey("", "TCP") in from_slices(
        _slices(
            [
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {"name": "a"},
                    "addressType": "IPv4",
                    "endpoints": [{"addresses": ["10.0.0.1"]}],
                    "ports": [{"name": "", "port": 80}, {"port": 81}],
                }
            ]
        ),
        Family.IPV4,
        "n",
    )
