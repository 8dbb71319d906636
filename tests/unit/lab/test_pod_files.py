"""What a container is told of itself and its surroundings: variables, hosts file, resolv.conf; and quantities."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.quantities import parsed, rounded_up
from kproxy.api.types import Container, Pod, Service, view
from kproxy.cluster import clusterfile, pod_environment, pod_files
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.pod_environment import ConfigError, Surroundings

CONFIG = clusterfile.read([])
DATA = {"paint": {"colour": "red", "not a name": "x", "size": "7"}}


def pod(**spec: Any) -> Pod:
    metadata = {"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"app": "w"}}
    return view({"metadata": metadata, "spec": {"nodeName": "node1", **spec}}, Pod)


def service(name: str, namespace: str = "shop", address: str = "10.96.0.9", **port: Any) -> Service:
    ports = [{"name": "http", "port": 80, "protocol": "TCP", **port}]
    metadata = {"name": name, "namespace": namespace}
    return view({"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}}, Service)


SERVICES = [
    service("my-db"),
    service("headless", address="None"),
    service("kubernetes", "default", "10.96.0.1", port=443),
]
AROUND = Surroundings(("10.244.1.2", "fd00::2"), ("192.168.1.2",), SERVICES, lambda name: DATA.get(name))


def variables(*env: dict[str, Any], owner: Pod | None = None, **container: Any) -> dict[str, str]:
    given = view({"name": "main", "env": list(env), **container}, Container)
    return pod_environment.variables(owner or pod(enableServiceLinks=False), given, AROUND)


def value(source: dict[str, Any], **container: Any) -> str | None:
    return variables({"name": "A", "valueFrom": source}, **container).get("A")


FIELDS = {
    "metadata.name": "web",
    "metadata.namespace": "shop",
    "metadata.uid": "u-1",
    "metadata.labels['app']": "w",
    "metadata.annotations['none']": "",
    "spec.nodeName": "node1",
    "spec.serviceAccountName": "default",
    "status.podIP": "10.244.1.2",
    "status.podIPs": "10.244.1.2,fd00::2",
    "status.hostIP": "192.168.1.2",
}


@pytest.mark.parametrize(("path", "expected"), FIELDS.items(), ids=FIELDS)
def test_a_field_of_the_pod(path: str, expected: str) -> None:
    assert value({"fieldRef": {"fieldPath": path}}) == expected


RESOURCES = {"resources": {"limits": {"memory": "64Mi", "cpu": "250m"}}}
SIZES = [
    ("limits.memory", "1", "67108864"),
    ("limits.memory", "1Mi", "64"),
    ("limits.cpu", "1", "1"),
    ("limits.cpu", "1m", "250"),
]


@pytest.mark.parametrize(("resource", "divisor", "expected"), SIZES)
def test_a_resource_of_the_container(resource: str, divisor: str, expected: str) -> None:
    assert value({"resourceFieldRef": {"resource": resource, "divisor": divisor}}, **RESOURCES) == expected


def test_config_maps_give_one_key_or_all_that_are_names() -> None:
    assert value({"configMapKeyRef": {"name": "paint", "key": "colour"}}) == "red"
    found = variables(envFrom=[{"configMapRef": {"name": "paint"}, "prefix": "P_"}])
    assert {name for name in found if name.startswith("P_")} == {"P_colour", "P_size"}
    assert value({"configMapKeyRef": {"name": "none", "key": "a", "optional": True}}) is None


MISSING = [
    ({"configMapKeyRef": {"name": "none", "key": "a"}}, 'configmap "none" not found'),
    ({"configMapKeyRef": {"name": "paint", "key": "a"}}, "couldn't find key a in ConfigMap shop/paint"),
    ({"secretKeyRef": {"name": "any", "key": "a"}}, 'secret "any" not found'),
    ({"fieldRef": {"fieldPath": "spec.restartPolicy"}}, "unsupported fieldPath: spec.restartPolicy"),
]


@pytest.mark.parametrize(("source", "complaint"), MISSING)
def test_what_is_missing_is_named(source: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        value(source)
    assert str(raised.value) == complaint


EXPANSIONS = [
    ("$(A) and $(B)", "1 and $(B)"),
    ("$$(A)", "$(A)"),
    ("$A $(", "$A $("),
    ("$(A", "$(A"),
    ("$$$(A)", "$1"),
]


@pytest.mark.parametrize(("text", "expected"), EXPANSIONS)
def test_references_are_expanded(text: str, expected: str) -> None:
    assert pod_environment.expanded(text, {"A": "1"}) == expected


def test_a_variable_may_use_those_before_it() -> None:
    found = variables({"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "3"})
    assert (found["A"], found["B"], found["C"]) == ("1", "1$(C)", "3")


def test_services_beside_it_are_told_as_variables() -> None:
    found = variables(owner=pod())
    assert found == {
        "MY_DB_SERVICE_HOST": "10.96.0.9",
        "MY_DB_SERVICE_PORT": "80",
        "MY_DB_SERVICE_PORT_HTTP": "80",
        "MY_DB_PORT": "tcp://10.96.0.9:80",
        "MY_DB_PORT_80_TCP": "tcp://10.96.0.9:80",
        "MY_DB_PORT_80_TCP_PROTO": "tcp",
        "MY_DB_PORT_80_TCP_PORT": "80",
        "MY_DB_PORT_80_TCP_ADDR": "10.96.0.9",
        **{name: text for name, text in found.items() if name.startswith("KUBERNETES_")},
    }
    assert found["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert set(variables()) == {name for name in found if name.startswith("KUBERNETES_")}


def test_the_hosts_file_has_the_pods_names() -> None:
    lines = pod_files.hosts(pod(subdomain="peers", hostname="web-0"), ["10.244.1.2"]).splitlines()
    assert lines[0] == "# Kubernetes-managed hosts file."
    assert lines[-1] == "10.244.1.2\tweb-0.peers.shop.svc.cluster.local\tweb-0"
    aliased = pod(hostAliases=[{"ip": "192.0.2.1", "hostnames": ["a", "b"]}])
    assert pod_files.hosts(aliased, ["10.244.1.2"]).splitlines()[-2:] == [
        "# Entries added by HostAliases.",
        "192.0.2.1\ta\tb",
    ]
    assert "host network" in pod_files.hosts(pod(hostNetwork=True), ["192.168.1.2"])


CLUSTER = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
OWN = {
    "nameservers": ["192.0.2.53"],
    "searches": ["example.org"],
    "options": [{"name": "ndots", "value": "1"}, {"name": "debug"}],
}
POLICIES: dict[str, tuple[dict[str, Any], str]] = {
    "the cluster's": ({}, CLUSTER),
    "on the node's network": ({"hostNetwork": True}, "nameserver 192.168.1.1\n"),
    "on the node's network, the cluster's all the same": (
        {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
        CLUSTER,
    ),
    "the node's": ({"dnsPolicy": "Default"}, "nameserver 192.168.1.1\n"),
    "its own": (
        {"dnsPolicy": "None", "dnsConfig": OWN},
        "search example.org\nnameserver 192.0.2.53\noptions ndots:1 debug\n",
    ),
    "both": (
        {"dnsConfig": OWN},
        "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n"
        "nameserver 10.96.0.10\nnameserver 192.0.2.53\noptions ndots:1 debug\n",
    ),
}


@pytest.mark.parametrize(("spec", "expected"), POLICIES.values(), ids=POLICIES)
def test_resolv_conf_by_policy(spec: dict[str, Any], expected: str) -> None:
    assert pod_files.resolv_conf(pod(**spec), CONFIG) == expected


def test_the_name_server_is_of_the_clusters_first_family() -> None:
    config = clusterfile.read([], Overrides(ip_families=("IPv6",)))
    assert "nameserver fd00:10:96::a\n" in pod_files.resolv_conf(pod(), config)


QUANTITIES = [("1", 1), ("1k", 1000), ("1Ki", 1024), ("0.5Gi", 2**29), ("250m", 1), ("1e3", 1000), ("1500m", 2), (3, 3)]


@pytest.mark.parametrize(("quantity", "expected"), QUANTITIES)
def test_a_quantity_rounded_up(quantity: str, expected: int) -> None:
    assert rounded_up(quantity) == expected


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1kk", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        parsed(text)
