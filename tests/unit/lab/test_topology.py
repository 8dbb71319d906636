"""The topology of a cluster as a value."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kproxy.cluster import clusterfile, topology
from kproxy.cluster.clusterfile import ClusterConfig, Overrides
from kproxy.cluster.topology import PodPlace
from netns.topology import Topology, merge, problems

NETWORKS = [
    (network, families) for network in ("host-gw", "vxlan") for families in (("IPv4",), ("IPv6",), ("IPv4", "IPv6"))
]


def config(network: str = "host-gw", families: tuple[str, ...] = ("IPv4",)) -> ClusterConfig:
    return clusterfile.read([], Overrides(network=network, ip_families=families))


def routes(found: Topology, namespace: str) -> list[tuple[str, str | None, str]]:
    return [(route.to, route.via, route.dev) for route in found.routes if route.namespace == namespace]


@pytest.mark.parametrize(("network", "families"), NETWORKS)
def test_it_can_be_built_and_written_down(network: str, families: tuple[str, ...]) -> None:
    cluster = config(network, families)
    addresses = {"IPv4": "10.244.1.2", "IPv6": "fd00:10:244:1::2"}
    place = PodPlace("default", "x" * 200, "node1", tuple(addresses[family] for family in families))
    found = merge(topology.infrastructure(cluster), topology.pod(cluster, place))
    assert problems(found) == ()
    assert json.loads(json.dumps(dataclasses.asdict(found)))
    assert topology.infrastructure(cluster) == topology.infrastructure(config(network, families))


def test_every_namespace_and_link_carries_the_labs_name() -> None:
    found = topology.infrastructure(config())
    assert [spec.name for spec in found.namespaces] == [
        "lab-fabric", "lab-router", "lab-node1", "lab-node2", "lab-node3", "lab-client",
    ]  # fmt: skip
    assert found.alias == "kproxy:lab"


def test_nodes_reach_the_others_pods_through_the_others_addresses() -> None:
    assert routes(topology.infrastructure(config()), "lab-node2") == [
        ("0.0.0.0/0", "192.168.1.1", "eth0"),
        ("10.244.1.0/24", "192.168.1.2", "eth0"),
        ("10.244.3.0/24", "192.168.1.4", "eth0"),
    ]


def test_a_tunnel_has_one_neighbour_a_node_and_the_nodes_own_address() -> None:
    found = topology.infrastructure(config("vxlan"))
    (tunnel,) = [spec for spec in found.vxlans if spec.namespace == "lab-node2"]
    assert (tunnel.local, tunnel.mtu) == ("192.168.1.3", 1450)
    assert routes(found, "lab-node2")[1:] == [
        ("10.244.1.0/24", "10.244.1.0", "vxlan0"),
        ("10.244.3.0/24", "10.244.3.0", "vxlan0"),
    ]
    macs = {spec.namespace: spec.mac for spec in found.vxlans}
    assert {(entry.address, entry.mac) for entry in found.neighbours if entry.namespace == "lab-node2"} == {
        ("10.244.1.0", macs["lab-node1"]),
        ("10.244.3.0", macs["lab-node3"]),
    }
    assert [spec.address for spec in found.addresses if spec.ifname == "vxlan0"] == [
        "192.168.1.2/32",
        "192.168.1.3/32",
        "192.168.1.4/32",
    ]


def test_a_tunnel_over_ipv6_costs_70_bytes() -> None:
    assert topology.pod_mtu(config("vxlan", ("IPv6", "IPv4"))) == 1430
    assert topology.pod_mtu(config("vxlan", ("IPv4", "IPv6"))) == 1450
    assert topology.pod_mtu(config()) == 1500


def test_the_outside_has_routes_to_nodes_the_pool_and_external_addresses_alone() -> None:
    cluster = config()
    found = topology.infrastructure(cluster)
    assert routes(found, "lab-client") == [
        ("192.168.1.0/24", "203.0.113.1", "eth0"),
        ("198.51.100.0/24", "203.0.113.1", "eth0"),
    ]
    assert routes(found, "lab-router") == [("198.51.100.0/24", None, "eth0")]


def test_a_pod_sends_everything_to_its_node() -> None:
    found = topology.pod(config(), PodPlace("shop", "web", "node2", ("10.244.2.2",)))
    assert [spec.name for spec in found.namespaces] == ["lab-shop.web"]
    assert routes(found, "lab-shop.web") == [("0.0.0.0/0", "10.244.2.1", "eth0")]
    (node_end,) = [spec for spec in found.addresses if spec.namespace == "lab-node2"]
    assert node_end.address == "10.244.2.1/32"
    assert routes(found, "lab-node2") == [("10.244.2.2/32", None, node_end.ifname)]


def test_pods_whose_names_look_alike_have_interfaces_of_their_own() -> None:
    names = {
        topology.pod(config(), PodPlace(namespace, name, "node1", ("10.244.1.2",))).veths[0].b.ifname
        for namespace, name in (("a", "b.c"), ("a.b", "c"), ("a", "bc"), ("ab", "c"))
    }
    assert len(names) == 4
