"""Which endpoints a Service has, and how they are spread over slices: pure, no API."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_cluster import running

from kproxy.api.types import Object
from kproxy.cluster.controllers.endpoint_slices import (
    MAX_ENDPOINTS,
    Group,
    SlicePlan,
    endpoints_of,
    has_slices,
    owner_of,
    plan_slices,
)
from kproxy.cluster.controllers.endpoints import endpoints_object

NODES = {
    "node1": {"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}}},
    "node2": {"metadata": {"name": "node2"}},
}


def service(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "labels": {"team": "x"}},
        "spec": {
            "clusterIP": "10.96.0.9",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
            **spec,
        },
    }


def pod(number: int = 1, *, ready: bool = True, deleting: bool = False, node: str = "node1", **spec: Any) -> Object:
    metadata = {"name": f"p{number}", "namespace": "default", "uid": f"p-{number}", "labels": {"app": "web"}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = running(f"10.244.{number // 250}.{number % 250 + 1}", ready=ready)
    return {"metadata": metadata, "spec": {"nodeName": node, "containers": [], **spec}, "status": status}


def groups_of(of: Object, pods: list[Object], nodes: dict[str, Object]) -> dict[Group, list[Object]]:
    return {group: list(found) for group, found in endpoints_of(of, pods, nodes).groups.items()}


def only(groups: dict[Group, list[Object]]) -> Object:
    ((endpoint,),) = groups.values()
    return endpoint


T, F = True, False
CONDITIONS = [
    # ready, deleting, publishNotReadyAddresses -> ready, serving, terminating
    (T, F, F, (T, T, F)),
    (F, F, F, (F, F, F)),
    (T, T, F, (F, T, T)),
    (F, T, F, (F, F, T)),
    (T, F, T, (T, T, F)),
    (F, F, T, (T, F, F)),
    (T, T, T, (T, T, T)),
    (F, T, T, (T, F, T)),
]


@pytest.mark.parametrize(("ready", "deleting", "publishes", "expected"), CONDITIONS)
def test_conditions(ready: bool, deleting: bool, publishes: bool, expected: tuple[bool, bool, bool]) -> None:
    found = only(groups_of(service(publishNotReadyAddresses=publishes), [pod(ready=ready, deleting=deleting)], NODES))
    assert tuple(found["conditions"][name] for name in ("ready", "serving", "terminating")) == expected


def without_address() -> Object:
    return pod() | {"status": {"phase": "Pending"}}


def ended(phase: str) -> Object:
    return pod() | {"status": {**running("10.244.1.1"), "phase": phase}}


def other_labels() -> Object:
    made = pod()
    made["metadata"]["labels"] = {"app": "db"}
    return made


@pytest.mark.parametrize("left_out", [without_address(), ended("Succeeded"), ended("Failed"), other_labels()])
def test_pods_that_are_no_endpoints(left_out: Object) -> None:
    assert groups_of(service(), [left_out], NODES) == {}
    assert groups_of(service(), [pod()], NODES) != {}


def test_what_an_endpoint_says_of_its_pod() -> None:
    found = only(groups_of(service(), [pod(hostname="h", subdomain="web")], NODES))
    assert found == {
        "addresses": ["10.244.0.2"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "hostname": "h",
        "nodeName": "node1",
        "zone": "a",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": "p1", "uid": "p-1"},
    }
    bare = only(groups_of(service(), [pod(hostname="h", subdomain="other", node="node2")], NODES))
    assert not {"hostname", "zone"} & bare.keys()


def test_a_missing_node_is_waited_for_unless_not_ready_is_published() -> None:
    found = endpoints_of(service(), [pod(1, node="gone"), pod(2)], NODES)
    assert found.left_out == ["pod default/p1 names node 'gone', which is not there"]
    assert only({group: list(items) for group, items in found.groups.items()})["targetRef"]["name"] == "p2"
    assert groups_of(service(publishNotReadyAddresses=True), [pod(node="gone")], NODES)


def test_each_family_has_its_own_endpoints() -> None:
    both = pod()
    both["status"]["podIPs"].append({"ip": "fd00:10:244:1:0::2"})
    groups = groups_of(service(ipFamilies=["IPv4", "IPv6"]), [both, pod(2)], NODES)
    assert {group.family: [e["addresses"] for e in found] for group, found in groups.items()} == {
        "IPv4": [["10.244.0.2"], ["10.244.0.3"]],
        "IPv6": [["fd00:10:244:1::2"]],
    }


def container(*ports: Object) -> list[Object]:
    return [{"name": "c", "ports": list(ports)}]


HTTP = {"name": "http", "containerPort": 8080, "protocol": "TCP"}
NAMED = {"port": 80, "targetPort": "http", "protocol": "TCP", "name": "web"}
PORTS = [
    ("number", {"port": 80, "targetPort": 9376, "protocol": "TCP"}, pod(), [9376]),
    ("none said", {"port": 80, "protocol": "TCP"}, pod(), [80]),
    ("named", NAMED, pod(containers=container(HTTP)), [8080]),
    ("other protocol", NAMED, pod(containers=container({**HTTP, "protocol": "UDP"})), []),
    ("nobody has it", NAMED, pod(containers=container()), []),
    ("sidecar", NAMED, pod(initContainers=[{**container(HTTP)[0], "restartPolicy": "Always"}]), [8080]),
    ("init container", NAMED, pod(initContainers=container(HTTP)), []),
]


@pytest.mark.parametrize(("port", "target", "numbers"), [case[1:] for case in PORTS], ids=[case[0] for case in PORTS])
def test_target_ports(port: Object, target: Object, numbers: list[int]) -> None:
    (group,) = groups_of(service(ports=[port]), [target], NODES)
    assert [dict(entry)["port"] for entry in group.ports] == numbers


def test_pods_that_name_different_numbers_are_in_different_slices() -> None:
    pods = [pod(1, containers=container(HTTP)), pod(2, containers=container({**HTTP, "containerPort": 9090}))]
    plan = plan_slices(owner_of(service()), [], groups_of(service(ports=[NAMED]), pods, NODES))
    assert sorted((item["ports"][0]["port"], len(item["endpoints"])) for item in plan.create) == [(8080, 1), (9090, 1)]


HINTS = [
    (None, True, None),
    ("PreferSameZone", True, {"forZones": [{"name": "a"}]}),
    ("PreferClose", True, {"forZones": [{"name": "a"}]}),
    ("PreferSameNode", True, {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]}),
    ("PreferSameZone", False, None),
]


@pytest.mark.parametrize(("distribution", "ready", "hints"), HINTS)
def test_hints(distribution: str | None, ready: bool, hints: Object | None) -> None:
    found = only(groups_of(service(trafficDistribution=distribution), [pod(ready=ready)], NODES))
    assert found.get("hints") == hints


SELECTORS = [({"app": "web"}, "ClusterIP", True), (None, "ClusterIP", False), ({}, "ClusterIP", False)]
SELECTORS += [({"app": "web"}, "ExternalName", False)]


@pytest.mark.parametrize(("selector", "kind", "expected"), SELECTORS)
def test_which_services_have_slices(selector: Object | None, kind: str, expected: bool) -> None:
    assert has_slices(service(selector=selector, type=kind)) is expected


# ----- slices


class Written:
    """Slices as they are after each plan, the way the API would keep them."""

    def __init__(self) -> None:
        self.slices: list[Object] = []
        self.writes = 0

    def carry_out(self, plan: SlicePlan) -> None:
        for item in plan.create:
            self.writes += 1
            self.slices.append(copy.deepcopy(item) | {"metadata": {**item["metadata"], "name": f"web-{self.writes}"}})
        for changed in [*plan.update, *plan.delete]:
            self.writes += 1
            names = [item["metadata"]["name"] for item in self.slices]
            at = names.index(changed["metadata"]["name"])
            self.slices[at : at + 1] = [copy.deepcopy(changed)] if changed in plan.update else []

    def sizes(self) -> list[int]:
        return sorted(len(item["endpoints"]) for item in self.slices)

    def sync(self, numbers: list[int] | set[int], **spec: Any) -> None:
        of = service(**spec)
        self.carry_out(
            plan_slices(owner_of(of), self.slices, groups_of(of, [pod(number) for number in sorted(numbers)], NODES))
        )


def test_a_service_without_endpoints_keeps_an_empty_slice_and_fills_it() -> None:
    written = Written()
    written.sync([])
    assert (written.sizes(), written.slices[0]["ports"]) == ([0], [])
    written.sync([1])
    assert (written.sizes(), written.writes) == ([1], 2)
    assert written.slices[0]["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
    written.sync([])
    assert (written.sizes(), written.slices[0]["ports"]) == ([0], [])


def test_labels_and_owner_of_a_slice() -> None:
    written = Written()
    written.sync([1])
    metadata = written.slices[0]["metadata"]
    assert metadata["generateName"] == "web-"
    assert metadata["labels"] == {
        "team": "x",
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    assert metadata["ownerReferences"][0]["uid"] == "u-1"
    written.sync([1], clusterIP="None")
    assert written.slices[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_one_more_pod_is_one_write() -> None:
    written = Written()
    written.sync(list(range(1, 151)))
    assert written.sizes() == [50, 100]
    before = written.writes
    written.sync(list(range(1, 152)))
    assert (written.sizes(), written.writes - before) == ([51, 100], 1)


def test_half_empty_slices_are_not_rebalanced() -> None:
    written = Written()
    written.sync(list(range(1, 201)))
    written.sync([1, 200])
    assert sum(written.sizes()) == 2
    assert len(written.slices) in (1, 2)


def test_slices_of_an_earlier_service_of_that_name_are_deleted() -> None:
    written = Written()
    written.sync([1])
    again = service()
    again["metadata"]["uid"] = "u-2"
    plan = plan_slices(owner_of(again), written.slices, groups_of(again, [pod(1)], NODES))
    assert plan.delete == written.slices
    assert [len(item["endpoints"]) for item in plan.create] == [1]


def test_an_address_used_again_by_another_pod_is_another_endpoint() -> None:
    written = Written()
    written.sync([1])
    renewed = pod(1)
    renewed["metadata"] |= {"name": "other", "uid": "o"}
    written.carry_out(plan_slices(owner_of(service()), written.slices, groups_of(service(), [renewed], NODES)))
    assert [endpoint["targetRef"]["name"] for endpoint in written.slices[0]["endpoints"]] == ["other"]


@settings(max_examples=25, deadline=None)
@given(rounds=st.lists(st.sets(st.integers(1, 12), max_size=12), max_size=6), dual=st.booleans())
def test_whatever_comes_and_goes_every_endpoint_is_there_once(rounds: list[set[int]], dual: bool) -> None:
    written = Written()
    families = {"ipFamilies": ["IPv4", "IPv6"]} if dual else {}
    for tens in rounds:
        numbers = {ten * 30 + unit for ten in tens for unit in range(30)}
        written.sync(numbers, **families)
        for family in ("IPv4", "IPv6") if dual else ("IPv4",):
            of_family = [item for item in written.slices if item["addressType"] == family]
            there = [e["targetRef"]["name"] for item in of_family for e in item["endpoints"]]
            assert sorted(there) == sorted(f"p{number}" for number in numbers if family == "IPv4")
            assert all(len(item["endpoints"]) <= MAX_ENDPOINTS for item in of_family)
            assert of_family, "a Service keeps at least one slice a family"
        before = written.writes
        written.sync(numbers, **families)
        assert written.writes == before, "a second look writes nothing"


# ----- the Endpoints mirror


def test_the_mirror_splits_by_readiness_and_leaves_out_what_is_ending() -> None:
    made = endpoints_object(service(), [pod(1), pod(2, ready=False), pod(3, deleting=True)])
    (subset,) = made["subsets"]
    assert [entry["ip"] for entry in subset["addresses"]] == ["10.244.0.2"]
    assert [entry["ip"] for entry in subset["notReadyAddresses"]] == ["10.244.0.3"]
    assert subset["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert made["metadata"]["labels"]["endpoints.kubernetes.io/managed-by"] == "endpoint-controller"


def test_the_mirror_is_capped_with_ready_ones_first() -> None:
    pods = [pod(number, ready=number > 10) for number in range(1, 1021)]
    made = endpoints_object(service(), pods)
    (subset,) = made["subsets"]
    assert len(subset["addresses"]) == 1000
    assert "notReadyAddresses" not in subset
    assert made["metadata"]["annotations"] == {"endpoints.kubernetes.io/over-capacity": "truncated"}
