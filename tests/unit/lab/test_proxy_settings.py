"""What the lab says of a node's proxy is what the proxy itself takes its flags for."""

from __future__ import annotations

import pytest

from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.controllers.node_proxy import arguments, flags
from kproxy.cluster.layout import Layout
from kproxy.cluster.proxy_settings import effective
from kproxy.cluster.status import ProxySettings
from kproxy.proxy.family import Family
from kproxy.proxy.flags import parse_arguments
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.setup import has_localhost_node_ports, node_ip

ADDRESSES = ("192.168.1.2", "fd00:1::2")
NODE = NodeFacts(ips=dict(zip(Family, ADDRESSES, strict=True)), addresses=ADDRESSES)
FLAGS: dict[str, dict[str, str]] = {
    "none": {},
    "no cluster CIDR": {"cluster-cidr": ""},
    "cluster CIDRs": {"cluster-cidr": " 10.9.0.0/16, fd09::/48"},
    "a CIDR with host bits and leading zeros": {"cluster-cidr": "010.9.0.1/16"},
    "masquerade all": {"masquerade-all": "T"},
    "do not masquerade all": {"masquerade-all": "0"},
    "NodeCIDR": {"detect-local-mode": "NodeCIDR"},
    "bridge": {"detect-local-mode": "BridgeInterface", "pod-bridge-interface": "cni0"},
    "prefix": {"detect-local-mode": "InterfaceNamePrefix", "pod-interface-name-prefix": "veth"},
    "no localhost": {"iptables-localhost-nodeports": "false"},
    "primary": {"nodeport-addresses": "primary"},
    "primary, bound": {"nodeport-addresses": "primary", "bind-address": "10.1.1.1"},
    "primary, bound to everything": {"nodeport-addresses": "primary", "bind-address": "::"},
    "networks": {"nodeport-addresses": "10.0.0.0/8,192.168.1.7/24"},
    "networks with loopback": {"nodeport-addresses": "127.0.0.0/8,fd00::/8"},
    "IPv6 networks": {"nodeport-addresses": "fd00::/8"},
    "everything": {"nodeport-addresses": "0.0.0.0/0,10.0.0.0/8"},
}


@pytest.mark.parametrize("given", FLAGS.values(), ids=FLAGS.keys())
def test_lab_and_proxy_read_the_same_in_the_flags(given: dict[str, str]) -> None:
    found = effective(given, ADDRESSES)
    config = parse_arguments(["--master=unix:///nowhere", *(f"--{name}={value}" for name, value in given.items())])
    assert (found.detect_local_mode, found.masquerade_all) == (config.detect_local_mode, config.masquerade_all)
    assert found.pod_bridge_interface == config.pod_bridge_interface
    assert found.pod_interface_name_prefix == config.pod_interface_name_prefix
    for family in Family:
        assert _of(family, found.cluster_cidrs)[:1] == _of(family, found_first(config.detector_cidr(family)))
        scope = config.node_port_cidrs(family, node_ip(config, NODE, family))
        chosen = _of(family, found.node_port_addresses)
        assert family.everything in chosen or chosen == scope or (not chosen and scope == (family.everything,))
    assert found.localhost_node_ports is has_localhost_node_ports(config, NODE, Family.IPV4)


def found_first(cidr: str) -> tuple[str, ...]:
    """The detector's CIDR in the lab's spelling; empty when there is none."""
    return effective({"cluster-cidr": cidr}, ADDRESSES).cluster_cidrs


def _of(family: Family, cidrs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cidr for cidr in cidrs if family.has(cidr))


def test_the_flags_of_a_node_are_those_that_its_proxy_gets() -> None:
    config = clusterfile.read([], Overrides(lab="lab"))
    given = flags(config, config.nodes[0], Layout("lab"), "legacy")
    assert arguments(config, config.nodes[0], Layout("lab"), "legacy") == [
        "proxy",
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    assert effective(given, config.nodes[0].addresses) == ProxySettings(
        mode="iptables",
        detect_local_mode="ClusterCIDR",
        cluster_cidrs=config.pod_networks,
        pod_bridge_interface="",
        pod_interface_name_prefix="",
        masquerade_all=False,
        node_port_addresses=(),
        localhost_node_ports=True,
    )


def test_mode_nftables_answers_on_the_nodes_own_addresses_unless_told_otherwise() -> None:
    given = {"proxy-mode": "nftables"}
    settings = effective(given, ("192.168.1.2", "fd00:1::2"))

    assert settings.mode == "nftables"
    assert settings.node_port_addresses == ("192.168.1.2/32", "fd00:1::2/128")
    assert not settings.localhost_node_ports
    chosen = effective({**given, "nodeport-addresses": "10.0.0.0/8"}, ("192.168.1.2",))
    assert chosen.node_port_addresses == ("10.0.0.0/8",)
    assert not effective({**given, "nodeport-addresses": "127.0.0.0/8"}, ("192.168.1.2",)).localhost_node_ports
