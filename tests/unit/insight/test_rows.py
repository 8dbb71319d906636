"""Which rows a proof has: places around one endpoint, frontends of one family, and nothing for Services of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kproxy.api.types import EndpointSlice, Service
from kproxy.api.types import view as typed
from kproxy.cluster.status import (
    ClientStatus,
    ExternalRoute,
    LabStatus,
    NodeStatus,
    PodStatus,
    ProxySettings,
    ProxyStatus,
    RouterStatus,
)
from kproxy.cluster.topology import pod_port
from kproxy.insight.oracle import ClientView, ClusterView, NodeView, PodView, ProxyView
from kproxy.insight.rows import families, rows
from kproxy.insight.view import cluster_view, namespaces

NODES = tuple(
    NodeView(f"node{n}", (f"192.168.1.{n + 1}", f"fd00:1::{n + 1}"), (f"10.244.{n}.0/24", f"fd00:10:244:{n}::/64"))
    for n in (1, 2, 3)
)


def pod(name: str, node: int, i: int) -> PodView:
    return PodView("default", name, f"node{node}", (f"10.244.{node}.{i}", f"fd00:10:244:{node}::{i}"))


def endpoints(*pods: PodView, family: int = 4) -> EndpointSlice:
    return typed(
        {
            "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": f"IPv{family}",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [pod.addresses[0 if family == 4 else 1]],
                    "nodeName": pod.node,
                    "conditions": {"ready": True},
                }
                for pod in pods
            ],
        },
        EndpointSlice,
    )


def web(**spec: Any) -> Service:
    port = {"name": "http", "port": 80, "protocol": "TCP", **spec.pop("port", {})}
    return typed(
        {
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [port], **spec},
            "status": {"loadBalancer": {"ingress": spec.pop("ingress", [])}},
        },
        Service,
    )


def world(service: Service, pods: tuple[PodView, ...], *slices: EndpointSlice) -> ClusterView:
    outside = ClientView("client", ("203.0.113.10", "2001:db8:113::10"), ("192.168.1.0/24",))
    return ClusterView((service,), slices, NODES, pods, (outside,))


A, B, C, D = pod("a", 1, 2), pod("b", 1, 3), pod("c", 2, 2), pod("d", 3, 2)


def standings(view: ClusterView) -> list[tuple[str, str]]:
    found = [(row.role, row.place.client) for row in rows(view, view.services)]
    return list(dict.fromkeys(found))


def test_places_stand_around_one_endpoint() -> None:
    service = web()
    assert standings(world(service, (A, B, C, D), endpoints(A, C))) == [
        ("the pod itself", "pod/default/a"),
        ("pod, same node", "pod/default/b"),
        ("pod, other node", "pod/default/d"),
        ("node with endpoint", "node/node1"),
        ("node without", "node/node3"),
        ("outside", "client/client"),
    ]


def test_the_endpoint_is_one_with_a_neighbour() -> None:
    found = standings(world(web(), (A, B, C, D), endpoints(D, A)))
    assert found[0] == ("the pod itself", "pod/default/a")


def test_places_that_nobody_stands_at_are_left_out() -> None:
    assert standings(world(web(), (A,), endpoints(A))) == [
        ("the pod itself", "pod/default/a"),
        ("node with endpoint", "node/node1"),
        ("node without", "node/node2"),
        ("outside", "client/client"),
    ]


def test_a_service_without_endpoints_is_dialled_by_a_pod_a_node_and_the_outside() -> None:
    assert standings(world(web(), (A, B), endpoints())) == [
        ("a pod", "pod/default/a"),
        ("node without", "node/node1"),
        ("outside", "client/client"),
    ]


def test_frontends_are_every_address_of_the_service() -> None:
    service = web(
        type="LoadBalancer",
        port={"nodePort": 30001},
        externalIPs=["198.51.100.1", "fd00:99::1"],
        ingress=[{"ip": "198.51.100.9"}, {"hostname": "x.example"}, {"ip": "198.51.100.8", "ipMode": "Proxy"}],
    )
    view = world(service, (A,), endpoints(A))
    first = [row for row in rows(view, view.services) if row.role == "the pod itself"]
    assert [(str(row.frontend.kind), row.frontend.text, row.frontend.node) for row in first] == [
        ("pod", "10.244.1.2:8080", ""),
        ("ClusterIP", "10.96.0.5:80", ""),
        ("NodePort", "192.168.1.2:30001", "node1"),
        ("NodePort", "192.168.1.3:30001", "node2"),
        ("NodePort", "192.168.1.4:30001", "node3"),
        ("ExternalIP", "198.51.100.1:80", ""),
        ("LoadBalancer", "198.51.100.9:80", ""),
    ]
    assert {row.service for row in first} == {"default/web:http"}


def test_a_port_without_a_name_is_called_by_its_number() -> None:
    view = world(web(port={"name": ""}), (A,))
    assert {row.service for row in rows(view, view.services)} == {"default/web:80"}


def test_dual_stack_services_have_rows_of_both_families() -> None:
    service = web(clusterIPs=["10.96.0.5", "fd00:10:96::5"], ipFamilies=["IPv4", "IPv6"])
    view = world(service, (A, B), endpoints(A), endpoints(A, family=6))
    texts = {row.frontend.text for row in rows(view, view.services)}
    assert texts == {"10.244.1.2:8080", "10.96.0.5:80", "[fd00:10:244:1::2]:8080", "[fd00:10:96::5]:80"}


def test_places_of_the_other_family_are_left_out() -> None:
    view = world(web(), (A, B), endpoints(A))
    single = replace(view, clients=(ClientView("six", ("2001:db8:113::10",), ()),))
    assert "client/six" not in {row.place.client for row in rows(single, single.services)}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"ipFamilies": ["IPv6", "IPv4"]}, (6, 4)),
        ({"clusterIP": "fd00::5"}, (6,)),
        ({}, (4,)),
    ],
)
def test_families_are_the_services_own(spec: dict[str, Any], found: tuple[int, ...]) -> None:
    assert families(web(**spec)) == found


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName", "clusterIP": ""}])
def test_services_without_a_cluster_ip_have_no_rows(spec: dict[str, Any]) -> None:
    view = world(web(**spec), (A, B), endpoints(A))
    assert rows(view, view.services) == ()


def test_ports_of_a_protocol_that_nobody_sends_have_no_rows() -> None:
    view = world(web(port={"protocol": "SCTP"}), (A, B), endpoints(A))
    assert rows(view, view.services) == ()


def test_a_host_network_pod_is_an_endpoint_but_no_place() -> None:
    host = PodView("default", "host", "node1", ("192.168.1.2",), True)
    view = world(web(), (host, A), endpoints(A))
    assert "pod/default/host" not in {row.place.client for row in rows(view, view.services)}


SETTINGS = ProxySettings("iptables", "NodeCIDR", ("10.244.0.0/16",), "br0", "veth", True, ("192.168.1.0/24",), False)
STATUS = LabStatus(
    name="lab",
    ip_families=("IPv4",),
    pod_network="host-gw",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12",),
    node_port_range="30000-32767",
    router=RouterStatus("lab-router", ("192.168.1.1",)),
    nodes=(
        NodeStatus("node1", "lab-node1", ("192.168.1.2",), "a", ("10.244.1.0/24",), "kproxy", True, SETTINGS),
        NodeStatus("node2", "lab-node2", ("192.168.1.3",), "b", ("10.244.2.0/24",), "none", True),
    ),
    clients=(ClientStatus("client", "lab-client", ("203.0.113.10",), ("192.168.1.0/24",)),),
    external_routes=(ExternalRoute("198.51.100.0/24", "node1"),),
    pods=(
        PodStatus("default", "a", "lab-default.a", "node1", ("10.244.1.2",), False, True, True),
        PodStatus("default", "host", "lab-node1", "node1", ("192.168.1.2",), True, True, True),
        PodStatus("default", "new", "", "node1", (), False, False, True),
    ),
    processes=(),
    proxy=ProxyStatus(("10.244.0.0/16",), False, "ClusterCIDR", "legacy"),
    api_socket="/run/kproxy/lab/api.sock",
)


def test_the_view_is_the_labs_status() -> None:
    view = cluster_view(STATUS, (), ())
    assert [pod.name for pod in view.pods] == ["a", "host"]
    assert view.node_by_address["192.168.1.2"].zone == "a"
    assert set(view.pod_by_address) == {"10.244.1.2"}
    assert view.node_by_name["node1"].proxy == ProxyView(
        detect_local_mode="NodeCIDR",
        cluster_cidrs=("10.244.0.0/16",),
        pod_bridge_interface="br0",
        pod_interface_name_prefix="veth",
        masquerade_all=True,
        node_port_addresses=("192.168.1.0/24",),
    )
    assert view.node_by_name["node2"].proxy is None
    assert [view.node_by_name["node1"].uplink, view.pods[0].interface] == ["eth0", pod_port("default", "a")]
    assert view.external_routes[0].via == "node1"


def test_places_have_namespaces_of_their_own() -> None:
    found = {name: str(path) for name, path in namespaces(STATUS).items()}
    assert found == {
        "node/node1": "/run/netns/lab-node1",
        "node/node2": "/run/netns/lab-node2",
        "client/client": "/run/netns/lab-client",
        "pod/default/a": "/run/netns/lab-default.a",
    }
