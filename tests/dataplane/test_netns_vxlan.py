"""Tunnels between nodes: packets of exactly the tunnel's MTU cross, one byte more is refused."""

import dataclasses
import errno
from collections.abc import Iterator

import pytest
from netns_world import World, host_network, pods_on_a_node, reaches, world

from netns.build import build
from netns.errors import NetnsError
from netns.ip_batch import measure
from netns.namespace import exists
from netns.topology import (
    AddressSpec,
    BridgeSpec,
    End,
    ForwardingSpec,
    NamespaceSpec,
    NeighbourSpec,
    Role,
    RouteSpec,
    Topology,
    VethSpec,
    VxlanSpec,
    merge,
)

pytestmark = pytest.mark.root

UNDERLAY_MTU = 1500
# Outer Ethernet 14, UDP 8, VXLAN 8, and the outer IP header: 20 or 40.
OVERHEAD = {"4": 50, "6": 70}
# IP and UDP headers of the packet inside.
HEADERS = {"4": 28, "6": 48}


@pytest.fixture
def here() -> Iterator[World]:
    with world("tnv") as made:
        yield made


def two_nodes(prefix: str, underlay: str, overlay: str) -> Topology:
    """Two nodes on a switch, each with a tunnel end and an address behind it, wired as flannel does it."""
    fabric = f"{prefix}-fabric"
    outer = {"4": "192.0.2.{}/24", "6": "fd01::{}/64"}[underlay]
    inner = {"4": "10.79.{}.0/32", "6": "fd79:{}::/128"}[overlay]
    network = {"4": "10.79.{}.0/24", "6": "fd79:{}::/64"}[overlay]
    spec: dict[str, list[object]] = {
        name: [] for name in ("namespaces", "veths", "vxlans", "addresses", "routes", "neighbours", "forwarding")
    }
    spec["namespaces"].append(NamespaceSpec(fabric, Role.FABRIC))
    for number, other in ((1, 2), (2, 1)):
        node = f"{prefix}-node{number}"
        spec["namespaces"].append(NamespaceSpec(node, Role.NODE))
        spec["veths"].append(VethSpec(End(node, "eth0"), End(fabric, f"node{number}"), UNDERLAY_MTU))
        spec["addresses"].append(AddressSpec(node, "eth0", outer.format(number)))
        local = outer.format(number).split("/")[0]
        mtu = UNDERLAY_MTU - OVERHEAD[underlay]
        mac, other_mac = f"02:00:00:00:79:0{number}", f"02:00:00:00:79:0{other}"
        spec["vxlans"].append(VxlanSpec(node, "flannel.1", 1, local, "eth0", mtu, mac=mac))
        spec["addresses"].append(AddressSpec(node, "flannel.1", inner.format(number)))
        via = inner.format(other).split("/")[0]
        spec["routes"].append(RouteSpec(node, network.format(other), via, "flannel.1", onlink=True))
        spec["neighbours"].append(NeighbourSpec(node, "flannel.1", via, other_mac))
        spec["forwarding"].append(ForwardingSpec(node, "flannel.1", other_mac, outer.format(other).split("/")[0]))
    return Topology(
        **{name: tuple(values) for name, values in spec.items()},  # type: ignore[arg-type]
        bridges=(BridgeSpec(fabric, "br0", ("node1", "node2")),),
    )


@pytest.mark.parametrize("underlay", ["4", "6"])
@pytest.mark.parametrize("overlay", ["4", "6"])
def test_a_packet_of_exactly_the_tunnels_mtu_crosses_and_one_byte_more_is_refused(
    here: World, underlay: str, overlay: str
) -> None:
    build(two_nodes(here.prefix, underlay, overlay), here.journal(), here.private)
    one, two = here.namespace("node1"), here.namespace("node2")
    target = {"4": "10.79.2.0", "6": "fd79:2::"}[overlay]
    largest = UNDERLAY_MTU - OVERHEAD[underlay] - HEADERS[overlay]
    assert reaches(one, two, target, largest)
    with pytest.raises(OSError, match="Message too long") as refused:
        reaches(one, two, target, largest + 1)
    assert refused.value.errno == errno.EMSGSIZE
    assert reaches(one, two, target, largest)


def test_without_the_forwarding_entry_nothing_crosses(here: World) -> None:
    whole = two_nodes(here.prefix, "4", "4")
    without = Topology(
        whole.namespaces, whole.veths, whole.bridges, whole.vxlans, whole.addresses, whole.routes, whole.neighbours
    )
    build(without, here.journal(), here.private)
    one, two = here.namespace("node1"), here.namespace("node2")
    assert reaches(one, two, "192.0.2.2")
    assert not reaches(one, two, "10.79.2.0", tries=1)
    build(whole, here.journal(), here.private)
    assert reaches(one, two, "10.79.2.0")


def test_ip_and_bridge_accept_the_same_topology(here: World) -> None:
    """The yardstick builds what we build, sees nothing of ours, and leaves nothing."""
    before = host_network()
    whole = merge(two_nodes(here.prefix, "4", "6"), pods_on_a_node(here.prefix))
    build(whole, here.journal(), here.private)
    assert 0 < measure(whole) < 10
    twice = dataclasses.replace(whole.veths[0], mtu=1000)
    with pytest.raises(NetnsError, match=r"cannot be measured\n  call: ip -batch -: .*File exists"):
        measure(merge(whole, Topology(veths=(twice,))))
    assert host_network() == before
    assert exists(here.namespace("node1"))
