"""What a Service gets on create and update, over the registry: services.md's tables as cases."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.api.kinds import POD, SERVICE
from kproxy.api.types import Object
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.deletion import DeleteOptions
from kproxy.cluster.patches import MERGE_PATCH
from kproxy.cluster.registry import Registry
from kproxy.cluster.store import Store
from kproxy.cluster.writes import Manner
from kproxy.errors import AlreadyExists, ApiError, Conflict, Invalid, NotFound

V4, V6 = "IPv4", "IPv6"
DUAL = ClusterSettings(service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"), ip_families=(V4, V6))
DUAL_V6_FIRST = ClusterSettings(service_cidrs=("fd00:10:96::/112", "10.96.0.0/12"), ip_families=(V6, V4))
SINGLE = ClusterSettings()


class Services:
    """A registry with one Service at hand."""

    def __init__(self, folder: Path, cluster: ClusterSettings) -> None:
        self.store = Store(folder / "db")
        self.registry = Registry(self.store, cluster)
        self.registry.bootstrap()

    def create(self, name: str = "web", **spec: Any) -> Object:
        return self.registry.create(SERVICE, "default", service(name, **spec)).object["spec"]

    def update(self, **changes: Any) -> Object:
        """Changes fields of the stored spec; None leaves a field out."""
        stored = self.registry.get(SERVICE, "default", "web")
        spec = {name: value for name, value in {**stored["spec"], **changes}.items() if value is not None}
        return self.registry.update(SERVICE, ("default", "web"), {**stored, "spec": spec}).object["spec"]

    def replace(self, **spec: Any) -> Object:
        """Puts a spec that knows nothing of the stored one."""
        return self.registry.update(SERVICE, ("default", "web"), service("web", **spec)).object["spec"]

    def delete(self, name: str) -> None:
        self.registry.delete(SERVICE, ("default", name), DeleteOptions())


def service(name: str = "web", **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


@pytest.fixture
def services(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Services]:
    made = Services(tmp_path, getattr(request, "param", SINGLE))
    yield made
    made.store.close()


FAMILIES: list[tuple[str, ClusterSettings, Object, Object]] = [
    ("nothing said", SINGLE, {}, {"ipFamilyPolicy": "SingleStack", "ipFamilies": [V4]}),
    ("nothing said, dual", DUAL, {}, {"ipFamilyPolicy": "SingleStack", "ipFamilies": [V4]}),
    ("primary is v6", DUAL_V6_FIRST, {}, {"ipFamilies": [V6]}),
    ("prefer, single", SINGLE, {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilies": [V4]}),
    ("prefer, dual", DUAL, {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilies": [V4, V6]}),
    ("require, dual", DUAL, {"ipFamilyPolicy": "RequireDualStack"}, {"ipFamilies": [V4, V6]}),
    ("order", DUAL, {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": [V6, V4]}, {"ipFamilies": [V6, V4]}),
    ("first family", DUAL, {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": [V6]}, {"ipFamilies": [V6, V4]}),
    ("by its address", DUAL, {"clusterIP": "fd00:10:96::99"}, {"ipFamilies": [V6], "clusterIPs": ["fd00:10:96::99"]}),
    ("headless", SINGLE, {"clusterIP": "None", "selector": {"a": "b"}}, {"ipFamilies": [V4], "clusterIPs": ["None"]}),
    (
        "headless, no selector",
        SINGLE,
        {"clusterIP": "None"},
        {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": [V4, V6]},
    ),
    ("headless, one family", SINGLE, {"clusterIP": "None", "ipFamilyPolicy": "SingleStack"}, {"ipFamilies": [V4]}),
]


@pytest.mark.parametrize(
    ("services", "spec", "expected"),
    [case[1:] for case in FAMILIES],
    ids=[c[0] for c in FAMILIES],
    indirect=["services"],
)
def test_families(services: Services, spec: Object, expected: Object) -> None:
    created = services.create(**spec)
    assert {name: created[name] for name in expected} == expected
    assert len(created["clusterIPs"]) == (1 if created["clusterIP"] == "None" else len(created["ipFamilies"]))
    assert created["clusterIP"] == created["clusterIPs"][0]
    for address, family in zip(created["clusterIPs"], created["ipFamilies"], strict=False):
        assert address == "None" or (":" in address) == (family == V6)


def test_an_external_name_gets_nothing(services: Services) -> None:
    created = services.create(type="ExternalName", externalName="example.com", ports=None)
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & created.keys()


POLICY = "spec.ipFamilyPolicy"
NOT_DUAL = "this cluster is not configured for dual-stack services"
RANGE = "The range of valid ports is 30000-32767"
REFUSED: list[tuple[str, ClusterSettings, Object, str, str]] = [
    ("require, single", SINGLE, {"ipFamilyPolicy": "RequireDualStack"}, POLICY, NOT_DUAL),
    ("two families", DUAL, {"ipFamilies": [V4, V6]}, POLICY, "when multiple IP families are specified"),
    (
        "two addresses",
        DUAL,
        {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:10:96::9"]},
        POLICY,
        "cluster IPs",
    ),
    ("other family", SINGLE, {"ipFamilies": [V6]}, "spec.ipFamilies[0]", "not configured on this cluster"),
    ("no family", SINGLE, {"ipFamilies": ["IPv5"]}, "spec.ipFamilies[0]", 'supported values: "IPv4", "IPv6"'),
    ("other family's address", SINGLE, {"clusterIP": "fd00::1"}, "spec.clusterIPs[0]", "IPv6 is not configured"),
    ("no address", SINGLE, {"clusterIP": "web"}, "spec.clusterIPs[0]", "must be a valid IP address"),
    ("outside", SINGLE, {"clusterIP": "10.200.0.1"}, "spec.clusterIPs", "does not match the current range"),
    ("network address", SINGLE, {"clusterIP": "10.96.0.0"}, "spec.clusterIPs", "does not match the current range"),
    ("taken address", SINGLE, {"clusterIP": "10.96.0.50"}, "spec.clusterIPs", "provided IP is already allocated"),
    (
        "low port",
        SINGLE,
        {"type": "NodePort", "ports": [{"port": 1, "nodePort": 29999}]},
        "spec.ports[0].nodePort",
        RANGE,
    ),
    (
        "taken port",
        SINGLE,
        {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30050}]},
        "spec.ports[0].nodePort",
        "already",
    ),
    (
        "port of a ClusterIP",
        SINGLE,
        {"ports": [{"port": 1, "nodePort": 30001}]},
        "spec.ports[0].nodePort",
        "may not be used",
    ),
]


@pytest.mark.parametrize(
    ("services", "spec", "field", "text"),
    [case[1:] for case in REFUSED],
    ids=[c[0] for c in REFUSED],
    indirect=["services"],
)
def test_refusals(services: Services, spec: Object, field: str, text: str) -> None:
    services.create("other", clusterIP="10.96.0.50", type="NodePort", ports=[{"port": 80, "nodePort": 30050}])
    before = services.store.revision
    with pytest.raises(Invalid) as caught:
        services.create(**spec)
    (cause,) = caught.value.status["details"]["causes"]
    assert (cause["field"], text in cause["message"]) == (field, True), cause
    assert services.store.revision == before
    services.create(clusterIP="10.96.0.51")  # and nothing is held back


def test_the_message_is_kubernetes(services: Services) -> None:
    with pytest.raises(Invalid) as caught:
        services.create(type="NodePort", ports=[{"port": 80, "nodePort": 29999}])
    assert str(caught.value) == (
        'Service "web" is invalid: spec.ports[0].nodePort: Invalid value: 29999: '
        "provided port is not in the valid range. The range of valid ports is 30000-32767"
    )


def ports_of(spec: Object) -> list[int]:
    return [port.get("nodePort", 0) for port in spec["ports"]]


def test_tcp_and_udp_of_one_port_share_a_node_port_on_create(services: Services) -> None:
    dns = [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53}, {"name": "c", "port": 9153}]
    first, second, third = ports_of(services.create(type="NodePort", ports=dns))
    assert first == second != third
    assert services.update(ports=[{**port, "nodePort": 0} for port in dns])


def test_node_ports_are_kept_by_port_name(services: Services) -> None:
    before = services.create(type="NodePort", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}])
    kept = services.replace(type="NodePort", ports=[{"name": "b", "port": 82}, {"name": "c", "port": 80}])
    assert kept["ports"][0]["nodePort"] == before["ports"][1]["nodePort"]
    assert kept["ports"][1]["nodePort"] not in ports_of(before)
    assert kept["clusterIP"] == before["clusterIP"]


def test_a_type_that_needs_no_node_port_gives_it_back(services: Services) -> None:
    (port,) = ports_of(services.create(type="NodePort", externalTrafficPolicy="Local"))
    changed = services.update(type="ClusterIP")
    assert ports_of(changed) == [0]
    assert "externalTrafficPolicy" not in changed
    services.create("other", type="NodePort", ports=[{"port": 80, "nodePort": port}])


def test_a_load_balancer_without_node_ports(services: Services) -> None:
    assert ports_of(services.create(type="LoadBalancer", allocateLoadBalancerNodePorts=False)) == [0]


def test_node_ports_stay_when_a_load_balancer_stops_asking(services: Services) -> None:
    before = ports_of(services.create(type="LoadBalancer"))
    assert ports_of(services.update(allocateLoadBalancerNodePorts=False)) == before


def test_a_health_check_port_comes_and_goes_with_local(services: Services) -> None:
    created = services.create(type="LoadBalancer", externalTrafficPolicy="Local")
    port = created["healthCheckNodePort"]
    assert 30000 <= port <= 32767
    assert port not in ports_of(created)
    assert services.replace(type="LoadBalancer", externalTrafficPolicy="Local")["healthCheckNodePort"] == port
    assert "healthCheckNodePort" not in services.update(externalTrafficPolicy="Cluster")
    with pytest.raises(ApiError, match="already allocated") as caught:
        services.create(
            "other",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=ports_of(created)[0],
        )
    assert caught.value.code == 500


def test_a_cluster_address_may_not_change(services: Services) -> None:
    services.create()
    with pytest.raises(Invalid, match=r"spec.clusterIPs\[0\].*may not change once set"):
        services.update(clusterIP="10.96.0.77", clusterIPs=["10.96.0.77"])
    services.create("other", clusterIP="10.96.0.77")


def test_via_external_name_a_service_gets_a_new_address(services: Services) -> None:
    before = services.create()["clusterIP"]
    gone = services.update(type="ExternalName", externalName="example.com")
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & gone.keys()
    services.create("other", clusterIP=before)
    assert services.update(type="ClusterIP", externalName=None)["clusterIP"] != before


@pytest.mark.parametrize("services", [DUAL], indirect=True)
def test_a_second_family_comes_and_goes(services: Services) -> None:
    one = services.create()["clusterIPs"]
    two = services.update(ipFamilyPolicy="PreferDualStack")
    assert two["clusterIPs"][:1] == one
    assert two["ipFamilies"] == [V4, V6]
    with pytest.raises(Invalid, match="must be 'SingleStack' to release the secondary cluster IP"):
        services.update(clusterIPs=one)
    assert services.update(ipFamilyPolicy="SingleStack")["clusterIPs"] == one
    services.create("other", clusterIP=two["clusterIPs"][1])


def test_status_goes_with_the_load_balancer(services: Services) -> None:
    services.create(type="LoadBalancer")
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}}
    told = services.registry.patch(SERVICE, ("default", "web"), ingress, MERGE_PATCH, Manner("status")).object
    assert told["status"]["loadBalancer"]["ingress"] == [{"ip": "198.51.100.1", "ipMode": "VIP"}]
    services.update(type="NodePort")
    assert services.registry.get(SERVICE, "default", "web")["status"] == {"loadBalancer": {}}


def test_a_deleted_service_gives_everything_back_and_a_restart_forgets_nothing(services: Services) -> None:
    kept = services.create("kept", type="NodePort")
    gone = services.create("gone", type="NodePort")
    services.delete("gone")
    again = Registry(services.store, SINGLE)
    free = service("free", type="NodePort", clusterIP=gone["clusterIP"], ports=gone["ports"])
    again.create(SERVICE, "default", free)
    with pytest.raises(Invalid, match="already allocated"):
        again.create(SERVICE, "default", service("taken", clusterIP=kept["clusterIP"]))


def test_a_full_range_is_the_servers_failure(tmp_path: Path) -> None:
    small = Services(tmp_path, ClusterSettings(service_cidrs=("10.96.0.0/29",), node_port_range=(30000, 30001)))
    for number in range(6):
        small.create(f"s{number}")
    with pytest.raises(ApiError, match="range is full") as caught:
        small.create("more")
    assert caught.value.code == 500
    small.store.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "delete"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        st.sampled_from(["Cluster", "Local"]),
        st.sampled_from([0, 30001, 30002]),
    ),
    max_size=25,
)


@given(steps=STEPS)
@settings(max_examples=25, deadline=None)
def test_nothing_is_ever_given_twice_whatever_happens(
    steps: list[tuple[str, str, str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    services = Services(tmp_path_factory.mktemp("services"), DUAL)
    for verb, name, kind, policy, port in steps:
        spec: Object = {"type": kind, "ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack"}
        if kind in ("NodePort", "LoadBalancer"):
            spec |= {"externalTrafficPolicy": policy, "ports": [{"port": 80, "nodePort": port}]}
        if kind == "ExternalName":
            spec = {"type": kind, "externalName": "example.com"}
        with contextlib.suppress(NotFound, Conflict, AlreadyExists, Invalid):
            if verb == "create":
                services.registry.create(SERVICE, "default", {"metadata": {"name": name}, "spec": spec})
            elif verb == "update":
                services.registry.update(SERVICE, ("default", name), {"metadata": {"name": name}, "spec": spec})
            else:
                services.delete(name)
        check_unique(services.store.all_of(SERVICE)[0])
    services.store.close()


def check_unique(objects: list[Object]) -> None:
    addresses = [text for obj in objects for text in obj["spec"].get("clusterIPs", ())]
    assert len(addresses) == len(set(addresses))
    ports = [
        {*ports_of({"ports": [], **obj["spec"]}), obj["spec"].get("healthCheckNodePort", 0)} - {0} for obj in objects
    ]
    assert sum(map(len, ports)) == len(set().union(*ports))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.text(max_size=4)
    | st.sampled_from(["None", "10.96.0.1", "80%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "ports",
        "port",
        "nodePort",
        "clusterIP",
        "clusterIPs",
        "type",
        "selector",
        "ipFamilies",
        "ipFamilyPolicy",
        "name",
        "containers",
        "externalIPs",
        "annotations",
        "labels",
        "ownerReferences",
        "finalizers",
        "namespace",
        "uid",
        "command",
        "healthCheckNodePort",
        "sessionAffinityConfig",
        "resourceVersion",
        "terminationGracePeriodSeconds",
        "template",
    ]
)
TREE = st.dictionaries(FIELDS, JSON | st.dictionaries(FIELDS, JSON, max_size=3), max_size=5)


@given(
    kind=st.sampled_from(
        ["Service", "Pod", "Deployment", "Node", "EndpointSlice", "Namespace", "Endpoints", "ServiceCIDR"]
    ),
    metadata=TREE | JSON,
    spec=TREE | JSON,
    delete=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_document_makes_the_server_fail(kind: str, metadata: Any, spec: Any, delete: bool) -> None:
    versions = {"Deployment": "apps/v1", "EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}
    if isinstance(metadata, dict):
        metadata.setdefault("name", "x")
    document = {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": metadata, "spec": spec}
    with tempfile.TemporaryDirectory() as folder:
        services = Services(Path(folder), SINGLE)
        for is_delete in (delete, False):
            with contextlib.suppress(Invalid):  # anything else is a failure of ours
                services.registry.apply([{"object": document}], delete=is_delete)
        services.store.close()


def test_a_pod_patch_that_is_nonsense_is_invalid(services: Services) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    services.registry.create(POD, "default", pod)
    with pytest.raises(Invalid, match="spec"):
        services.registry.patch(POD, ("default", "p"), {"spec": []}, MERGE_PATCH)
