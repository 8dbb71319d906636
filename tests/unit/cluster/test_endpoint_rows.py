"""Endpoints row by row: from Services and pods in a real API, through all controllers, to slices and Endpoints."""

# ruff: noqa: E501 (a row of a table is one line)

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import pytest
from running_cluster import Api, eventually

from kproxy.api.kinds import ENDPOINT_SLICE, ENDPOINTS, NAMESPACE, NODE, POD, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.controllers.endpoint_slices import SERVICE_NAME_LABEL
from kproxy.cluster.controllers.manager import ControllerManager
from kproxy.errors import Invalid

V4, V6 = "IPv4", "IPv6"
DUAL = ClusterSettings(service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"), ip_families=(V4, V6))
NODES = {"node1": "a", "node2": "b", "node3": ""}
_NUMBERS = count(1)


class World:
    """A namespace of its own with what one row puts there."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.namespace = f"row{next(_NUMBERS)}"
        self.client.create(NAMESPACE, {"metadata": {"name": self.namespace}})

    def service(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        name: str = "web",
        **spec: Any,
    ) -> Object:
        metadata = {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})}
        spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}
        return self.client.create(
            SERVICE, {"metadata": metadata, "spec": {k: v for k, v in spec.items() if v is not None}}, self.namespace
        )

    def change(self, changes: Mapping[str, Any], **metadata: Any) -> None:
        self.client.patch(SERVICE, "web", {"spec": dict(changes), "metadata": metadata}, self.namespace)

    def pod(
        self,
        name: str,
        *,
        node: str = "node1",
        ips: Sequence[str] = ("10.244.1.2",),
        ready: bool = True,
        phase: str = "Running",
        labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        metadata = {"name": name, "labels": {"app": "web"} if labels is None else dict(labels)}
        container = {"name": "c", "image": "echo", "ports": spec.pop("ports", [])}
        self.client.create(
            POD, {"metadata": metadata, "spec": {"nodeName": node, "containers": [container], **spec}}, self.namespace
        )
        self.say(name, ips=ips, ready=ready, phase=phase)

    def say(self, name: str, *, ips: Sequence[str], ready: bool = True, phase: str = "Running") -> None:
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": "2026-05-01T10:00:00Z",
        }
        status = {"phase": phase, "podIPs": [{"ip": ip} for ip in ips], "conditions": [condition]}
        self.client.patch(POD, name, {"status": status | ({"podIP": ips[0]} if ips else {})}, self.namespace, "status")

    def delete(self, name: str) -> None:
        """Marks a pod as being deleted; no kubelet ends it."""
        self.client.delete(POD, name, self.namespace)

    def slices(self) -> list[Object]:
        return self.client.list(ENDPOINT_SLICE, self.namespace, label_selector=f"{SERVICE_NAME_LABEL}=web").items

    def endpoints(self) -> list[Object]:
        return [endpoint for item in self.slices() for endpoint in item["endpoints"] or ()]

    def mirror(self) -> Object:
        found = [
            item for item in self.client.list(ENDPOINTS, self.namespace).items if item["metadata"]["name"] == "web"
        ]
        return found[0] if found else {}

    def settle(self) -> None:
        """Waits until the controllers have seen everything: a Service and a pod made last have met."""
        spec = {"selector": {"app": "last"}, "ports": [{"port": 1}]}
        self.client.create(SERVICE, {"metadata": {"name": "last"}, "spec": spec}, self.namespace)
        self.pod("last", ips=["10.244.9.9"], labels={"app": "last"})
        for kind in (ENDPOINT_SLICE, ENDPOINTS):
            eventually(
                lambda kind=kind: self.client.list(kind, self.namespace).items,
                lambda seen: any("10.244.9.9" in str(item) for item in seen),
            )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    api = Api(tmp_path_factory.mktemp("api"), DUAL)
    manager = ControllerManager(Client(api.url), DUAL)
    for name, zone in NODES.items():
        labels = {"topology.kubernetes.io/zone": zone} if zone else {}
        api.client.create(NODE, {"metadata": {"name": name, "labels": labels}})
        say_node(api.client, name, ready=bool(zone))
    manager.start()
    yield api.client
    manager.stop()
    api.client.close()
    api.stop()


def say_node(client: Client, name: str, *, ready: bool = True, cpu: str = "1") -> None:
    status = {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": str(ready)}]}
    client.patch(NODE, name, {"status": status}, subresource="status")


@pytest.fixture
def world(client: Client) -> Iterator[World]:
    made = World(client)
    yield made
    client.delete(NAMESPACE, made.namespace)


# What is seen of an endpoint, in one word each.
def addresses(endpoints: Sequence[Object]) -> list[str]:
    return sorted(endpoint["addresses"][0] for endpoint in endpoints)


def conditions(endpoints: Sequence[Object]) -> list[str]:
    names = ("ready", "serving", "terminating")
    return sorted(
        "".join("?" if (value := endpoint["conditions"].get(name)) is None else "FT"[value] for name in names)
        for endpoint in endpoints
    )


def hints(endpoints: Sequence[Object]) -> list[str]:
    def of(endpoint: Object) -> str:
        found = endpoint.get("hints") or {}
        return ",".join(
            [
                *(zone["name"] for zone in found.get("forZones", ())),
                *(node["name"] for node in found.get("forNodes", ())),
            ]
        )

    return sorted(of(endpoint) for endpoint in endpoints)


def numbers(slices: Sequence[Object]) -> list[tuple[int, ...]]:
    return sorted(tuple(port["port"] for port in item["ports"] or ()) for item in slices)


HTTP, METRICS = {"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}
NAMED = {"ports": [{"name": "web", "port": 80, "targetPort": "http"}]}
TWO = {"ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"name": "m", "port": 90, "targetPort": "metrics"}]}
READY = ["10.244.1.2"]
Act = Callable[[World], None]


def plain(**pod: Any) -> Act:
    """A Service and one pod."""

    def act(world: World) -> None:
        world.service()
        world.pod("p", **pod)

    return act


def of(spec: Mapping[str, Any], *pods: Mapping[str, Any], then: Act | None = None, **more: Any) -> Act:
    """A Service of that spec, pods p0, p1 and so on, each with its own address, and what happens then."""

    def act(world: World) -> None:
        world.service(**spec, **more)
        for index, pod in enumerate(pods):
            world.pod(f"p{index}", **{"ips": [f"10.244.1.{index + 2}"], **pod})
        if then is not None:
            then(world)

    return act


def deleting(name: str) -> Act:
    return lambda world: world.delete(name)


def stop_hinting(world: World) -> None:
    eventually(lambda: hints(world.endpoints()), lambda seen: seen == ["a"])
    world.change({"trafficDistribution": None})


def pod_of_another_namespace(world: World) -> None:
    world.service()
    World(world.client).pod("p")


ENDPOINT_ROWS: list[tuple[str, Act, Callable[[Sequence[Object]], Any], Any]] = [
    # ----- 1. which pods become endpoints
    ("1 a pod that is selected", plain(), addresses, READY),
    ("1 other labels", plain(labels={"app": "db"}), addresses, []),
    ("1 all labels of the selector", of({"selector": {"app": "web", "tier": "x"}}, {}, {"labels": {"app": "web", "tier": "x", "more": "y"}}), addresses, ["10.244.1.3"]),
    ("1 ExternalName", of({"type": "ExternalName", "externalName": "a.example", "ports": None}, {}), addresses, []),
    ("1 no selector", of({"selector": None}, {}), addresses, []),
    ("1 an empty selector is none", of({"selector": {}}, {}), addresses, []),
    ("1 phase Succeeded", plain(phase="Succeeded"), addresses, []),
    ("1 phase Failed", plain(phase="Failed"), addresses, []),
    ("1 no address yet", plain(ips=[]), addresses, []),
    ("1 being deleted: stays", of({}, {}, then=deleting("p0")), addresses, READY),
    ("1 a node that is missing: only its pod is left out", of({}, {"node": "gone"}, {}), addresses, ["10.244.1.3"]),
    ("1 a node that is missing: published all the same", of({"publishNotReadyAddresses": True}, {"node": "gone"}), addresses, READY),
    ("1 no address of the family", of({"ipFamilies": [V6]}, {}, {"ips": ["10.244.1.3", "fd00:10:244:1::3"]}), addresses, ["fd00:10:244:1::3"]),
    ("1 hostNetwork: the node's address", plain(hostNetwork=True, ips=["192.168.1.2"]), addresses, ["192.168.1.2"]),
    ("1 pods of another namespace", pod_of_another_namespace, addresses, []),
    # ----- 2. what an endpoint says
    ("2 addresses are canonical", of({"ipFamilies": [V6]}, {"ips": ["FD00:10:244:1:0::2"]}), addresses, ["fd00:10:244:1::2"]),
    ("2 node and zone", plain(), lambda found: [(e["nodeName"], e["zone"]) for e in found], [("node1", "a")]),
    ("2 a node without zone", plain(node="node3"), lambda found: [(e["nodeName"], e.get("zone")) for e in found], [("node3", None)]),
    ("2 hostname with the Service's name as subdomain", plain(hostname="h", subdomain="web"), lambda found: [e.get("hostname") for e in found], ["h"]),
    ("2 hostname with another subdomain", plain(hostname="h", subdomain="other"), lambda found: [e.get("hostname") for e in found], [None]),
    ("2 targetRef", plain(), lambda found: [(e["targetRef"]["kind"], e["targetRef"]["name"], bool(e["targetRef"]["uid"])) for e in found], [("Pod", "p", True)]),
    ("2 ready", plain(), conditions, ["TTF"]),
    ("2 not ready", plain(ready=False), conditions, ["FFF"]),
    ("2 deleting, ready", of({}, {}, then=deleting("p0")), conditions, ["FTT"]),
    ("2 deleting, not ready", of({}, {"ready": False}, then=deleting("p0")), conditions, ["FFT"]),
    ("2 published, not ready", of({"publishNotReadyAddresses": True}, {"ready": False}), conditions, ["TFF"]),
    ("2 published, deleting", of({"publishNotReadyAddresses": True}, {}, then=deleting("p0")), conditions, ["TTT"]),
    ("2 published, deleting, not ready", of({"publishNotReadyAddresses": True}, {"ready": False}, then=deleting("p0")), conditions, ["TFT"]),
    # ----- 5. hints
    ("5 PreferSameZone", of({"trafficDistribution": "PreferSameZone"}, {}, {"node": "node2"}), hints, ["a", "b"]),
    ("5 PreferClose", of({"trafficDistribution": "PreferClose"}, {}, {"node": "node2"}), hints, ["a", "b"]),
    ("5 PreferSameNode", of({"trafficDistribution": "PreferSameNode"}, {}, {"node": "node3"}), hints, ["a,node1", "node3"]),
    ("5 no zone, no hint", of({"trafficDistribution": "PreferSameZone"}, {"node": "node3"}), hints, [""]),
    ("5 not ready, no hint", of({"trafficDistribution": "PreferSameZone"}, {"ready": False}), hints, [""]),
    ("5 neither", of({}, {}), hints, [""]),
    ("5 hints go with the field", of({"trafficDistribution": "PreferSameZone"}, {}, then=stop_hinting), hints, [""]),
    ("5 topology-mode Auto", of({}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-mode": "Auto"}), hints, ["a", "b"]),
    ("5 topology-mode auto shares out by CPU", of({}, {}, {}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-mode": "auto"}), hints, ["a", "a", "b", "b"]),
    ("5 topology-mode wins over trafficDistribution", of({"trafficDistribution": "PreferSameZone"}, {}, {}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-mode": "Auto"}), hints, ["a", "a", "b", "b"]),
    ("5 the deprecated annotation wins", of({}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-aware-hints": "auto"}), hints, ["a", "b"]),
    ("5 topology-mode: fewer endpoints than zones", of({}, {}, annotations={"service.kubernetes.io/topology-mode": "Auto"}), hints, [""]),
    ("5 topology-mode: an endpoint without zone", of({}, {}, {"node": "node2"}, {"node": "node3"}, annotations={"service.kubernetes.io/topology-mode": "Auto"}), hints, ["", "", ""]),
    ("5 topology-mode: another value asks for nothing", of({}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-mode": "Disabled"}), hints, ["", ""]),
    ("5 topology-mode: what is not ready has none", of({}, {}, {"node": "node2"}, {"ready": False}, annotations={"service.kubernetes.io/topology-mode": "Auto"}), hints, ["", "a", "b"]),
]  # fmt: skip

PORT_ROWS: list[tuple[str, Act, list[tuple[int, ...]]]] = [
    # ----- 3. ports
    ("3 a number, which no container has to declare", plain(), [(8080,)]),
    ("3 a name", of(NAMED, {"ports": [HTTP]}), [(8080,)]),
    ("3 a name of another protocol", of(NAMED, {"ports": [{**HTTP, "protocol": "UDP"}]}), [()]),
    ("3 a name that a sidecar has", of(NAMED, {"initContainers": [{"name": "s", "image": "x", "restartPolicy": "Always", "ports": [HTTP]}]}), [(8080,)]),
    ("3 a name that an init container has", of(NAMED, {"initContainers": [{"name": "s", "image": "x", "ports": [HTTP]}]}), [()]),
    ("3 the first container that has the name", of(NAMED, {"ports": [{**HTTP, "containerPort": 1}], "initContainers": [{"name": "s", "image": "x", "restartPolicy": "Always", "ports": [HTTP]}]}), [(1,)]),
    ("3 one name of two is missing", of(TWO, {"ports": [HTTP]}), [(8080,)]),
    ("3 all names are missing", of(TWO, {}), [()]),
    ("3 headless without ports", of({"clusterIP": "None", "ports": None}, {}), [()]),
    ("3 a name that means several numbers", of(NAMED, {"ports": [HTTP]}, {"ports": [{**HTTP, "containerPort": 9090}]}, {"ports": [HTTP]}), [(8080,), (9090,)]),
    # ----- 4. the placeholder
    ("4 no endpoints: one empty slice", of({}), [()]),
    ("4 no endpoints: one empty slice a family", of({"ipFamilyPolicy": "RequireDualStack"}), [(), ()]),
    ("4 both families", of({"ipFamilyPolicy": "RequireDualStack"}, {"ips": ["10.244.1.2", "fd00:10:244:1::2"]}), [(8080,), (8080,)]),
    ("4 one family of the pods is missing", of({"ipFamilyPolicy": "RequireDualStack"}, {}), [(), (8080,)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "look", "expected"), [row[1:] for row in ENDPOINT_ROWS], ids=[row[0] for row in ENDPOINT_ROWS]
)
def test_endpoints(world: World, act: Act, look: Callable[[Sequence[Object]], Any], expected: Any) -> None:
    act(world)
    world.settle()
    eventually(lambda: look(world.endpoints()), lambda seen: seen == expected, 2)


@pytest.mark.parametrize(("act", "expected"), [row[1:] for row in PORT_ROWS], ids=[row[0] for row in PORT_ROWS])
def test_ports_of_slices(world: World, act: Act, expected: list[tuple[int, ...]]) -> None:
    act(world)
    world.settle()
    eventually(lambda: numbers(world.slices()), lambda seen: seen == expected, 2)


def test_3_name_protocol_and_app_protocol_are_the_services(world: World) -> None:
    world.service(
        ports=[{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353, "appProtocol": "x.example/dns"}]
    )
    world.pod("p")
    wanted = [{"name": "dns", "protocol": "UDP", "port": 5353, "appProtocol": "x.example/dns"}]
    eventually(lambda: [item["ports"] for item in world.slices()], lambda seen: seen == [wanted])


def only(world: World) -> Object:
    return eventually(world.slices, lambda seen: len(seen) == 1 and bool(seen[0]["endpoints"]))[0]


def test_4_name_labels_and_owner(world: World) -> None:
    reserved = {
        SERVICE_NAME_LABEL: "x",
        "endpointslice.kubernetes.io/managed-by": "x",
        "service.kubernetes.io/headless": "x",
    }
    made = world.service(labels={"team": "a", **reserved})
    world.pod("p")
    metadata = only(world)["metadata"]
    assert re.fullmatch("web-[bcdfghjklmnpqrstvwxz2456789]{5}", metadata["name"])
    assert metadata["labels"] == {
        "team": "a",
        SERVICE_NAME_LABEL: "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    owner = {"apiVersion": "v1", "kind": "Service", "name": "web", "uid": made["metadata"]["uid"]}
    assert metadata["ownerReferences"] == [{**owner, "controller": True, "blockOwnerDeletion": True}]
    world.change({}, labels={"team": "b"})
    eventually(lambda: world.slices()[0]["metadata"]["labels"]["team"], lambda seen: seen == "b")


def test_4_a_long_name_is_cut(world: World) -> None:
    world.service(name="a" * 63)
    found = eventually(lambda: world.client.list(ENDPOINT_SLICE, world.namespace).items, lambda seen: len(seen) == 1)
    assert re.fullmatch("a{58}[a-z0-9]{5}", found[0]["metadata"]["name"])


def test_4_headless_is_labelled(world: World) -> None:
    world.service(clusterIP="None")
    world.pod("p")
    assert only(world)["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_4_the_moment_of_change_is_noted(world: World) -> None:
    made = world.service()
    key = "endpoints.kubernetes.io/last-change-trigger-time"
    (empty,) = eventually(world.slices, lambda seen: len(seen) == 1)
    assert empty["metadata"]["annotations"][key] == made["metadata"]["creationTimestamp"]
    world.pod("p")
    moments = eventually(
        lambda: world.slices()[0], lambda seen: bool(seen["endpoints"]) and seen["endpoints"][0]["conditions"]["ready"]
    )
    assert moments["metadata"]["annotations"][key] == "2026-05-01T10:00:00Z"
    world.change({}, labels={"team": "b"})
    eventually(
        lambda: world.slices()[0]["metadata"],
        lambda seen: seen["labels"].get("team") == "b" and key not in seen.get("annotations", {}),
    )


def test_4_a_service_made_again_gets_slices_of_its_own(world: World) -> None:
    world.service()
    world.pod("p")
    before = only(world)["metadata"]["uid"]
    world.client.delete(SERVICE, "web", world.namespace)
    made = world.service()
    eventually(
        lambda: [
            (item["metadata"]["uid"] == before, item["metadata"]["ownerReferences"][0]["uid"])
            for item in world.slices()
        ],
        lambda seen: seen == [(False, made["metadata"]["uid"])],
    )


def test_4_a_hundred_endpoints_in_a_slice(world: World) -> None:
    world.service()

    def sizes() -> list[int]:
        return sorted(len(item["endpoints"]) for item in world.slices())

    for number in range(103):
        if number == 100:  # what comes together and no longer fits into a slice makes one of its own
            eventually(sizes, lambda seen: sum(seen) == 100)
        world.pod(f"p{number}", ips=[f"10.244.{number // 100 + 1}.{number % 100 + 2}"])
    assert eventually(sizes, lambda seen: sum(seen) == 103) == [3, 100]


def test_4_an_address_used_by_another_pod_is_another_endpoint(world: World) -> None:
    world.service()
    world.pod("p")
    eventually(lambda: addresses(world.endpoints()), lambda seen: seen == READY)
    world.client.delete(POD, "p", world.namespace, grace_seconds=0)
    world.pod("q")
    eventually(lambda: [endpoint["targetRef"]["name"] for endpoint in world.endpoints()], lambda seen: seen == ["q"])


def test_1_a_pod_comes_when_its_node_does(world: World) -> None:
    world.service()
    world.pod("p", node="late")
    eventually(world.slices, lambda seen: len(seen) == 1)
    assert world.endpoints() == []
    world.client.create(NODE, {"metadata": {"name": "late"}})
    try:
        eventually(lambda: addresses(world.endpoints()), lambda seen: seen == READY)
    finally:
        world.client.delete(NODE, "late")


def test_5_topology_mode_wants_zone_and_cpu_of_every_ready_node(world: World) -> None:
    of({}, {}, {"node": "node2"}, annotations={"service.kubernetes.io/topology-mode": "Auto"})(world)
    eventually(lambda: hints(world.endpoints()), lambda seen: seen == ["a", "b"])
    try:
        for name, zone, cpu in (("node2", "b", "0"), ("node3", "", "1")):
            say_node(world.client, name, cpu=cpu)
            eventually(lambda: hints(world.endpoints()), lambda seen: seen == ["", ""])
            say_node(world.client, name, ready=bool(zone))
            eventually(lambda: hints(world.endpoints()), lambda seen: seen == ["a", "b"])
        world.client.patch(NODE, "node2", {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}})
        eventually(lambda: hints(world.endpoints()), lambda seen: seen == ["", ""])
    finally:
        world.client.patch(NODE, "node2", {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": None}}})
        say_node(world.client, "node2")
        say_node(world.client, "node3", ready=False)


# ----- the Endpoints mirror


def subset(found: Object) -> list[tuple[list[str], list[str], list[int]]]:
    return sorted(
        (
            [entry["ip"] for entry in item.get("addresses", ())],
            [entry["ip"] for entry in item.get("notReadyAddresses", ())],
            sorted(port["port"] for port in item.get("ports", ())),
        )
        for item in found.get("subsets") or ()
    )


A, B, C = "10.244.1.2", "10.244.1.3", "10.244.1.4"
MIRROR_ROWS: list[tuple[str, Act, Any]] = [
    ("4 split by readiness", of({}, {}, {"ready": False}), [([A], [B], [8080])]),
    ("4 terminating pods are absent", of({}, {}, {}, then=deleting("p1")), [([A], [], [8080])]),
    ("4 terminating pods are there when published", of({"publishNotReadyAddresses": True}, {}, {}, then=deleting("p1")), [([A, B], [], [8080])]),
    ("4 the first family alone", of({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": [V6, V4]}, {"ips": [A, "fd00:10:244:1::2"]}, {}), [(["fd00:10:244:1::2"], [], [8080])]),
    ("4 ports that the same addresses have share a subset", of(TWO, {"ports": [HTTP, METRICS]}, {"ports": [HTTP, METRICS]}), [([A, B], [], [8080, 9090])]),
    ("4 ports that other addresses have do not", of(TWO, {"ports": [HTTP, METRICS]}, {"ports": [{**HTTP, "containerPort": 81}, METRICS]}), [([A], [], [8080]), ([A, B], [], [9090]), ([B], [], [81])]),
    ("4 a pod without any of the ports is absent", of(NAMED, {"ports": [HTTP]}, {}), [([A], [], [8080])]),
    ("4 headless without ports", of({"clusterIP": "None", "ports": None}, {}, {}), [([A, B], [], [])]),
]  # fmt: skip


@pytest.mark.parametrize(("act", "expected"), [row[1:] for row in MIRROR_ROWS], ids=[row[0] for row in MIRROR_ROWS])
def test_the_endpoints_object(world: World, act: Act, expected: Any) -> None:
    act(world)
    world.settle()
    eventually(lambda: subset(world.mirror()), lambda seen: seen == expected, 2)


def test_4_labels_of_the_endpoints_object(world: World) -> None:
    world.service(labels={"team": "a"}, clusterIP="None")
    wanted = {
        "team": "a",
        "endpoints.kubernetes.io/managed-by": "endpoint-controller",
        "service.kubernetes.io/headless": "",
    }
    eventually(lambda: world.mirror().get("metadata", {}).get("labels"), lambda seen: seen == wanted)


# ----- slices for Endpoints written by hand


def by_hand(world: World, subsets: Sequence[Object], **metadata: Any) -> None:
    world.client.create(ENDPOINTS, {"metadata": {"name": "web", **metadata}, "subsets": list(subsets)}, world.namespace)


SUBSET = {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 9376}]}
SKIP = {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}
LEADER = {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}


def test_4_endpoints_by_hand_are_mirrored(world: World) -> None:
    world.service(selector=None)
    annotations = {"note": "x", "endpoints.kubernetes.io/last-change-trigger-time": "2026-05-01T10:00:00Z"}
    by_hand(world, [SUBSET], labels={"team": "a"}, annotations=annotations)
    found = only(world)
    assert conditions(found["endpoints"]) == ["F??", "T??"]
    assert found["metadata"]["labels"] == {
        "team": "a",
        SERVICE_NAME_LABEL: "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    }
    assert found["metadata"]["annotations"] == {"note": "x"}
    assert [owner["kind"] for owner in found["metadata"]["ownerReferences"]] == ["Endpoints"]
    world.client.patch(ENDPOINTS, "web", {"metadata": {"annotations": {"note": "y"}}}, world.namespace)
    eventually(lambda: world.slices()[0]["metadata"]["annotations"], lambda seen: seen == {"note": "y"})


@pytest.mark.parametrize("metadata", [SKIP, LEADER], ids=["skip-mirror", "leader election"])
def test_4_endpoints_that_are_not_mirrored(world: World, metadata: Mapping[str, Any]) -> None:
    world.service(selector=None)
    by_hand(world, [SUBSET], **metadata)
    world.settle()
    assert world.slices() == []


def test_4_a_thousand_addresses_of_a_subset_are_mirrored_in_one_slice(world: World) -> None:
    world.service(selector=None)
    listed = [{"ip": f"192.0.{number // 250}.{number % 250 + 1}"} for number in range(1005)]
    by_hand(world, [{"addresses": listed, "ports": [{"port": 9376}]}])
    assert len(only(world)["endpoints"]) == 1000


def test_slices_by_hand_stay_as_they_are(world: World) -> None:
    world.service(selector=None)
    labels = {SERVICE_NAME_LABEL: "web"}
    made = world.client.create(
        ENDPOINT_SLICE,
        {
            "metadata": {"name": "mine", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}],
            "ports": [{"port": 9376}],
        },
        world.namespace,
    )
    world.settle()
    assert world.slices() == [made]
    assert made["ports"] == [{"name": "", "protocol": "TCP", "port": 9376}]


# ----- 7. validation of slices


def endpoint(**more: Any) -> dict[str, Any]:
    return {"addresses": ["192.0.2.1"], **more}


LABEL_WORDS = "a lowercase RFC 1123 label must consist of"
SLICE_ROWS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("addressType: required", {"addressType": ""}, ["addressType: Required value"]),
    ("addressType: unsupported", {"addressType": "IP"}, ['addressType: Unsupported value: "IP": supported values: "FQDN", "IPv4", "IPv6"']),
    ("endpoints: 1000", {"endpoints": [endpoint()] * 1000}, []),
    ("endpoints: 1001", {"endpoints": [endpoint()] * 1001}, ["endpoints: Too many: 1001: must have at most 1000 items"]),
    ("addresses: none", {"endpoints": [{"addresses": []}]}, ["endpoints[0].addresses: Required value: must contain at least 1 address"]),
    ("addresses: 100", {"endpoints": [{"addresses": ["192.0.2.1"] * 100}]}, []),
    ("addresses: 101", {"endpoints": [{"addresses": ["192.0.2.1"] * 101}]}, ["endpoints[0].addresses: Too many: 101: must have at most 100 items"]),
    ("IPv4: other family", {"endpoints": [{"addresses": ["fd00::1"]}]}, ['endpoints[0].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address']),
    ("IPv6: other family", {"addressType": "IPv6", "endpoints": [endpoint()]}, ['endpoints[0].addresses[0]: Invalid value: "192.0.2.1": must be a valid IPv6 address']),
    ("IPv6: canonical", {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00:0::1"]}]}, ['endpoints[0].addresses[0]: Invalid value: "fd00:0::1": must be in canonical form ("fd00::1")']),
    ("addresses: unspecified", {"endpoints": [{"addresses": ["0.0.0.0"]}]}, ['endpoints[0].addresses[0]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)']),
    ("addresses: loopback", {"endpoints": [{"addresses": ["127.0.0.1"]}]}, ['endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)']),
    ("addresses: link-local", {"endpoints": [{"addresses": ["169.254.0.1"]}]}, ['endpoints[0].addresses[0]: Invalid value: "169.254.0.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)']),
    ("addresses: link-local multicast", {"addressType": "IPv6", "endpoints": [{"addresses": ["ff02::1"]}]}, ['endpoints[0].addresses[0]: Invalid value: "ff02::1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)']),
    ("FQDN", {"addressType": "FQDN", "endpoints": [{"addresses": ["a.example."]}]}, []),
    ("FQDN: one segment", {"addressType": "FQDN", "endpoints": [{"addresses": ["example"]}]}, ['endpoints[0].addresses[0]: Invalid value: "example": should be a domain with at least two segments separated by dots']),
    ("hostname", {"endpoints": [endpoint(hostname="A")]}, [f'endpoints[0].hostname: Invalid value: "A": {LABEL_WORDS}']),
    ("hints: eight zones", {"endpoints": [endpoint(hints={"forZones": [{"name": f"z{n}"} for n in range(8)]})]}, []),
    ("hints: nine zones", {"endpoints": [endpoint(hints={"forZones": [{"name": f"z{n}"} for n in range(9)]})]}, ["endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"]),
    ("hints: nine nodes", {"endpoints": [endpoint(hints={"forNodes": [{"name": f"n{n}"} for n in range(9)]})]}, ["endpoints[0].hints.forNodes: Too many: 9: must have at most 8 items"]),
    ("hints: one zone twice", {"endpoints": [endpoint(hints={"forZones": [{"name": "z"}] * 2})]}, ['endpoints[0].hints.forZones[1].name: Duplicate value: "z"']),
    ("hints: one node twice", {"endpoints": [endpoint(hints={"forNodes": [{"name": "n"}] * 2})]}, ['endpoints[0].hints.forNodes[1].name: Duplicate value: "n"']),
    ("ports: 20000", {"ports": [{"name": f"p{number}", "port": 1} for number in range(20000)]}, []),
    ("ports: 20001", {"ports": [{"name": f"p{number}", "port": 1} for number in range(20001)]}, ["ports: Too many: 20001: must have at most 20000 items"]),
    ("ports: name", {"ports": [{"name": "A"}]}, [f'ports[0].name: Invalid value: "A": {LABEL_WORDS}']),
    ("ports: one name twice", {"ports": [{"port": 1}, {"port": 2}]}, ['ports[1].name: Duplicate value: ""']),
    ("ports: protocol", {"ports": [{"protocol": "x"}]}, ['ports[0].protocol: Unsupported value: "x": supported values: "SCTP", "TCP", "UDP"']),
    ("ports: the number is not looked at", {"ports": [{"port": 70000}]}, []),
    ("ports: a number may be missing", {"ports": [{"name": "a"}]}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"), [row[1:] for row in SLICE_ROWS], ids=[f"7 {row[0]}" for row in SLICE_ROWS]
)
def test_slice_validation(world: World, changes: dict[str, Any], expected: list[str]) -> None:
    obj = {
        "metadata": {"name": "s"},
        "addressType": "IPv4",
        "endpoints": [endpoint()],
        "ports": [{"port": 80}],
        **changes,
    }
    found: list[str] = []
    try:
        world.client.create(ENDPOINT_SLICE, obj, world.namespace)
    except Invalid as error:
        found = [f"{cause['field']}: {cause['message']}" for cause in error.status["details"]["causes"]]
    assert len(found) == len(expected), found
    for said, wanted in zip(found, expected, strict=True):
        assert said.startswith(wanted)


def test_7_the_address_type_is_immutable(world: World) -> None:
    obj = {"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": []}
    made = world.client.create(ENDPOINT_SLICE, obj, world.namespace)
    with pytest.raises(Invalid, match='addressType: Invalid value: "IPv6": field is immutable'):
        world.client.update(ENDPOINT_SLICE, {**made, "addressType": "IPv6"})
