"""Topologies are values: names, merging and what is refused before anything is made."""

import dataclasses
import json

import pytest

from netns.sysctl import SYSCTLS
from netns.topology import (
    MAX_INTERFACE_NAME,
    AddressSpec,
    BridgeSpec,
    End,
    NamespaceSpec,
    Role,
    RouteSpec,
    Topology,
    VethSpec,
    derived_name,
    merge,
    problems,
)

NODE = NamespaceSpec("x-node1", Role.NODE)
CABLE = VethSpec(End("x-node1", "eth0"), End("x-fabric", "node1"))


def test_a_topology_is_json() -> None:
    topology = Topology((NODE,), (CABLE,), addresses=(AddressSpec("x-node1", "eth0", "192.168.1.2/24"),), alias="x")
    value = json.loads(json.dumps(dataclasses.asdict(topology)))
    assert value["veths"][0]["a"] == ["x-node1", "eth0", ""]
    assert value["namespaces"] == [{"name": "x-node1", "role": "node"}]


def test_namespaces_are_named_once_whether_defined_or_mentioned() -> None:
    route = RouteSpec("x-router", "10.0.0.0/8", "192.168.1.2")
    assert Topology((NODE,), (CABLE,), routes=(route,)).namespace_names() == ("x-node1", "x-fabric", "x-router")


def test_merging_says_everything_once_and_keeps_the_order() -> None:
    first = Topology((NODE,), (CABLE,), alias="x")
    second = Topology((NODE, NamespaceSpec("x-fabric", Role.FABRIC)), alias="y")
    merged = merge(first, second)
    assert [spec.name for spec in merged.namespaces] == ["x-node1", "x-fabric"]
    assert merged.veths == (CABLE,)
    assert merged.alias == "x"
    assert merge() == Topology()


def test_derived_names_fit_and_differ() -> None:
    names = {derived_name("veth", "lab", f"default.web-{number}") for number in range(2000)}
    assert len(names) == 2000
    assert {len(name) for name in names} == {MAX_INTERFACE_NAME}
    assert derived_name("veth", "a", "bc") != derived_name("veth", "ab", "c")
    assert derived_name("veth", "lab", "default.web-1") == derived_name("veth", "lab", "default.web-1")


def test_a_long_prefix_of_a_derived_name_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 7"):
        derived_name("interface", "x")


REFUSED = {
    "namespace twice": (Topology((NODE, NamespaceSpec("x-node1", Role.POD))), "namespace x-node1 is defined 2 times"),
    "interface twice": (
        Topology(veths=(CABLE,), bridges=(BridgeSpec("x-node1", "eth0"),)),
        "interface eth0 of namespace x-node1 is defined 2 times",
    ),
    "interface name too long": (
        Topology(bridges=(BridgeSpec("x", "b" * 16),)),
        f"'{'b' * 16}' in namespace x is no interface name",
    ),
    "interface name with a slash": (
        Topology(bridges=(BridgeSpec("x", "a/b"),)),
        "'a/b' in namespace x is no interface name",
    ),
    "address": (
        Topology(addresses=(AddressSpec("x", "eth0", "10.0.0.256/24"),)),
        "address on eth0 of x: '10.0.0.256/24' does not appear to be an IPv4 or IPv6 interface",
    ),
    "route with host bits": (
        Topology(routes=(RouteSpec("x", "10.0.0.1/8", dev="eth0"),)),
        "route of x: 10.0.0.1/8 has host bits set",
    ),
    "route to nowhere": (
        Topology(routes=(RouteSpec("x", "10.0.0.0/8"),)),
        "route of x to 10.0.0.0/8 names neither next hop nor interface",
    ),
}


@pytest.mark.parametrize(("topology", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_topology_says_why(topology: Topology, reason: str) -> None:
    assert problems(topology) == (reason,)


def test_a_possible_topology_has_no_problems() -> None:
    assert problems(Topology((NODE, NamespaceSpec("x-fabric", Role.FABRIC)), (CABLE,))) == ()


def test_every_role_has_sysctls_and_all_are_of_the_network() -> None:
    assert set(SYSCTLS) == set(Role)
    assert all(key.startswith("net.") for table in SYSCTLS.values() for key in table)
    assert {role for role, table in SYSCTLS.items() if table["net.ipv4.ip_forward"] == "1"} == {Role.NODE, Role.ROUTER}
