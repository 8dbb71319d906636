"""Endpoint selection and merging, against what kube-proxy's own tests say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.api.types import EndpointSlice
from kproxy.proxy.changes import TRIGGER_TIME_ANNOTATION, Change, ObjectKey, Tracker
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
from kproxy.proxy.plan import Circumstances, NodePortScope
from kproxy.proxy.services import PortSpec, ServicePortName
from kproxy.proxy.sources import key_of, typed

HERE = Path(__file__).parent
CATEGORIZE = yaml.safe_load((HERE / "categorize.yaml").read_text())["cases"]
TABLES = yaml.safe_load((HERE / "endpoints.yaml").read_text())
UPDATES = TABLES["updates"]


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


def _tracked(slices: list[dict[str, Any]], node: str) -> Tracker:
    tracker = Tracker(Family.IPV4, node)
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in slices)
    return tracker


def _known(slices: list[dict[str, Any]], node: str) -> dict[str, list[dict[str, Any]]]:
    merged = from_slices(_slices(slices), Family.IPV4, node)
    return {f"ns1/svc1:{key.name}/{key.protocol}": [_shown(one) for one in found] for key, found in merged.items()}


@pytest.mark.parametrize("case", TABLES["sliceUpdates"]["cases"], ids=lambda case: case["name"])
def test_a_slice_changes_what_it_changes_for_kube_proxy(case: dict[str, Any]) -> None:
    tracker = _tracked(case["before"], case["node"])
    before = {key_of(obj): obj for obj in case["before"]}
    tracker.delta(Circumstances(NodeIdentity(case["node"])), NodePortScope())
    changed = case.get("apply") or case["delete"]
    key, new = key_of(changed), case.get("apply")

    old = typed(before[key]) if key in before else None
    tracker.take([Change(key, old, typed(new) if new else None)])

    assert tracker.is_dirty == case["expect"]["changed"]
    if case["expect"]["changed"]:
        now = {at: obj for at, obj in (before | {key: new}).items() if obj}
        assert _known([*now.values()], case["node"]) == case["expect"]["endpoints"]


@pytest.mark.parametrize("case", TABLES["pendingChanges"]["cases"], ids=lambda case: case["name"])
def test_what_waits_is_what_kube_proxy_would_look_at(case: dict[str, Any]) -> None:
    applied = {key_of(obj): obj for obj in case["applied"]}
    tracker = _tracked(case["applied"], "")
    tracker.delta(Circumstances(NodeIdentity("")), NodePortScope())
    pending = {key_of(obj): obj for obj in case["pending"]}

    tracker.take(
        Change(key, typed(applied[key]) if key in applied else None, typed(new)) for key, new in pending.items()
    )

    expected = case["expectChanges"]
    assert tracker.is_dirty == bool(expected)
    if expected:
        assert [{"previous": _known(case["applied"], ""), "current": _known(case["pending"], "")}] == expected


@pytest.mark.parametrize("case", TABLES["triggerTimes"]["cases"], ids=lambda case: case["name"])
def test_the_times_of_changes_are_those_that_kube_proxy_counts(case: dict[str, Any]) -> None:
    tracker, known = Tracker(Family.IPV4, ""), dict[ObjectKey, Any]()
    for number, event in enumerate(case["events"]):
        verb, name, *rest = event.split()
        namespace, _, service = name.partition("/")
        seconds = int(rest[0].removeprefix("t=")) if rest else None
        moment = None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
        obj = {
            "kind": "EndpointSlice",
            "metadata": {
                "name": service,
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": service},
                "annotations": {TRIGGER_TIME_ANNOTATION: moment} if moment else {},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [f"10.0.0.{number}"]}],
            "ports": [{"name": "", "port": 80}],
        }
        key = key_of(obj)
        new = None if verb == "delete" else typed(obj)
        tracker.take([Change(key, known.get(key), new)])
        known[key] = new

    after_start = [moment for moment in tracker.pop_triggers() if moment > TABLES["triggerTimes"]["proxyStarted"]]
    assert sorted(after_start) == sorted(moment for each in case["expect"].values() for moment in each)


@pytest.mark.parametrize("number", range(len(TABLES["localReadyEndpointIPs"]["cases"])))
def test_ready_addresses_on_this_node_are_counted(number: int) -> None:
    case = TABLES["localReadyEndpointIPs"]["cases"][number]
    services: dict[str, dict[PortKey, list[Endpoint]]] = {}
    for name, endpoints in case["endpoints"].items():
        service, _, port = name.rpartition(":")
        found = [
            Endpoint(
                one["endpoint"],
                is_local=one["isLocal"],
                is_ready=one["ready"],
                is_serving=one["serving"],
                is_terminating=one["terminating"],
            )
            for one in endpoints
        ]
        services.setdefault(service, {})[PortKey(*port.split("/"))] = found

    counts = {service: local_ready_addresses(ports) for service, ports in services.items()}
    assert {service: count for service, count in counts.items() if count} == {
        service: len(addresses) for service, addresses in case["expect"].items()
    }
