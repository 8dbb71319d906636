"""The cluster file: what its defaults are, and what is refused before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from kproxy.api import manifest
from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import ClusterConfig, Overrides
from kproxy.errors import InvalidInput

HEAD = "apiVersion: kproxy.dev/v1alpha1\nkind: Cluster\n"

FULL = (
    HEAD
    + """\
metadata:
  name: big
spec:
  ipFamilies: [IPv6, IPv4]
  nodes:
  - name: left
    zone: west
    labels: {disk: ssd}
    addresses: [10.1.0.7, "fd01::7"]
    podCIDRs: [10.2.7.0/24, "fd02:0:0:7::/64"]
    proxy: {mode: none}
  - name: right
    proxy: {flags: {v: 4}}
  nodeNetwork: {cidrs: [10.1.0.0/16, "fd01::/64"]}
  podNetwork: {mode: vxlan, cidrs: [10.2.0.0/16, "fd02::/48"]}
  serviceCIDRs: [10.3.0.0/16, "fd03::/112"]
  serviceNodePortRange: 31000-31999
  outside: {cidrs: [10.4.0.0/16, "fd04::/64"]}
  clients:
  - {name: visitor}
  - {name: office, addresses: [10.4.0.99]}
  externalRoutes:
  - {to: 198.51.100.0/24, via: left}
  proxy: {variant: nft, flags: {masquerade-all: true}}
  images:
  - {match: "nginx*", command: [python3, -m, http.server, "80"]}
"""
)


def read(text: str, **overrides: object) -> ClusterConfig:
    documents, findings = manifest.read(text.encode(), "cluster.yaml")
    assert findings == []
    return clusterfile.read(documents, Overrides(**overrides))  # type: ignore[arg-type]


def refusals(text: str, **overrides: object) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read(text, **overrides)
    return [f"{finding.line}: {finding.field}: {finding.reason}" for finding in caught.value.findings]


def test_without_a_file_there_are_three_nodes_in_two_zones_and_a_client() -> None:
    config = clusterfile.read([])
    assert config.name == "lab"
    assert [(node.name, node.zone, node.addresses, node.pod_cidrs) for node in config.nodes] == [
        ("node1", "a", ("192.168.1.2",), ("10.244.1.0/24",)),
        ("node2", "a", ("192.168.1.3",), ("10.244.2.0/24",)),
        ("node3", "b", ("192.168.1.4",), ("10.244.3.0/24",)),
    ]
    assert [(client.name, client.addresses) for client in config.clients] == [("client", ("203.0.113.10",))]
    assert config.service_networks == ("10.96.0.0/12",)
    assert config.node_port_range == "30000-32767"
    assert config.pod_network == "host-gw"


def test_an_empty_cluster_is_the_default_one() -> None:
    assert read(HEAD) == clusterfile.read([])


def test_a_family_more_gives_everything_an_address_more() -> None:
    config = clusterfile.read([], Overrides(ip_families=("IPv4", "IPv6")))
    assert config.nodes[2].addresses == ("192.168.1.4", "fd00:1::4")
    assert config.nodes[2].pod_cidrs == ("10.244.3.0/24", "fd00:10:244:3::/64")
    assert config.clients[0].addresses == ("203.0.113.10", "2001:db8:113::10")
    assert config.router_addresses == ("192.168.1.1", "fd00:1::1")
    assert config.service_networks == ("10.96.0.0/12", "fd00:10:96::/112")


def test_every_field_counts() -> None:
    config = read(FULL)
    left, right = config.nodes
    assert (left.addresses, left.pod_cidrs) == (("fd01::7", "10.1.0.7"), ("fd02:0:0:7::/64", "10.2.7.0/24"))
    assert (left.zone, left.labels, left.proxy.mode) == ("west", {"disk": "ssd"}, "none")
    assert (right.addresses, right.pod_cidrs) == (("fd01::3", "10.1.0.3"), ("fd02:0:0:2::/64", "10.2.2.0/24"))
    assert (right.proxy.mode, right.proxy.variant) == ("iptables", "nft")
    assert right.proxy.flags == {"masquerade-all": "true", "v": "4"}
    assert config.gateway_addresses == ("fd04::1", "10.4.0.1")
    assert [client.addresses for client in config.clients] == [("fd04::10", "10.4.0.10"), ("fd04::11", "10.4.0.99")]
    assert [(route.to, route.via) for route in config.external_routes] == [("198.51.100.0/24", "left")]
    assert config.image_command("nginx:1.27") == ("python3", "-m", "http.server", "80")
    assert config.image_command("redis") == ()
    assert (config.pod_network, config.node_port_range) == ("vxlan", "31000-31999")


BALANCERS = {
    "nothing said": ("", "l2", ("198.51.100.0/24",)),
    "routes to the pool": ("externalRoutes: [{to: 198.51.100.0/25, via: x}]", "none", ()),
    "routes to something else": ("externalRoutes: [{to: 192.0.2.0/24, via: x}]", "none", ()),
    "the pool is the nodes' network": ("nodeNetwork: {cidrs: [198.51.100.0/24]}", "none", ()),
    "a kind": ("loadBalancer: {kind: nlb}", "nlb", ("198.51.100.0/24",)),
    "none": ("loadBalancer: {kind: none}", "none", ()),
    "none, but for Services that choose": (
        "loadBalancer: {kind: none, cidrs: [198.51.100.0/24]}",
        "none",
        ("198.51.100.0/24",),
    ),
    "a pool": ("loadBalancer: {cidrs: [192.0.2.0/28]}", "l2", ("192.0.2.0/28",)),
}


@pytest.mark.parametrize(("line", "kind", "cidrs"), BALANCERS.values(), ids=BALANCERS)
def test_who_serves_load_balancers_by_default(line: str, kind: str, cidrs: tuple[str, ...]) -> None:
    config = read(HEAD + f"spec:\n  nodes: [{{name: x}}]\n  {line}\n")
    assert (config.load_balancer.kind, config.load_balancer.cidrs) == (kind, cidrs)


def test_the_command_line_stands_above_the_file() -> None:
    config = read(
        FULL, lab="mine", nodes=3, network="host-gw", service_node_port_range="40000-40001", iptables_variant="legacy"
    )
    assert config.name == "mine"
    assert [node.name for node in config.nodes] == ["left", "right", "node3"]
    assert (config.pod_network, config.node_port_range, config.proxy.variant) == ("host-gw", "40000-40001", "legacy")
    assert len(read(FULL, nodes=1).nodes) == 1


def test_a_configuration_survives_being_written_down() -> None:
    for config in (read(FULL), clusterfile.read([])):
        assert msgspec.json.decode(msgspec.json.encode(config), type=ClusterConfig) == config


REFUSED = {
    "not a cluster": ("apiVersion: v1\nkind: Pod\n", "kind: Invalid value"),
    "unknown field": (HEAD + "spec:\n  nods: []\n", '4: spec.nods: unknown field "spec.nods"'),
    "wrong type": (HEAD + "spec:\n  nodes: 3\n", "4: spec.nodes: Invalid value"),
    "name with a dash": (HEAD + "metadata: {name: a-b}\n", "3: metadata.name: Invalid value"),
    "name too long": (HEAD + "metadata: {name: abcdefghijk}\n", "3: metadata.name: Invalid value"),
    "name that is a path": (HEAD + "metadata: {name: ../../etc}\n", "3: metadata.name: Invalid value"),
    "node name that is a path": (HEAD + "spec:\n  nodes:\n  - name: ../x\n", "5: spec.nodes[0].name: Invalid value"),
    "node without a name": (HEAD + "spec:\n  nodes:\n  - zone: a\n", "5: spec.nodes[0].name: Required value"),
    "reserved name": (HEAD + "spec:\n  nodes:\n  - name: router\n", "5: spec.nodes[0].name: Invalid value"),
    "two nodes of one name": (
        HEAD + "spec:\n  nodes:\n  - name: a\n  - name: a\n",
        '6: spec.nodes[1].name: Duplicate value: "a"',
    ),
    "node and client of one name": (
        HEAD + "spec:\n  nodes:\n  - name: a\n  clients:\n  - name: a\n",
        "7: spec.clients[0].name: Invalid value",
    ),
    "family": (HEAD + "spec:\n  ipFamilies: [IPv5]\n", '4: spec.ipFamilies[0]: Unsupported value: "IPv5"'),
    "networks that overlap": (
        HEAD + "spec:\n  podNetwork:\n    cidrs: [10.96.0.0/16]\n",
        'Invalid value: "10.96.0.0/12": overlaps with 10.96.0.0/16 (spec.podNetwork.cidrs)',
    ),
    "node and outside networks that overlap": (
        HEAD + "spec:\n  outside:\n    cidrs: [192.168.0.0/16]\n",
        "overlaps with 192.168.1.0/24 (spec.nodeNetwork.cidrs)",
    ),
    "no network": (HEAD + "spec:\n  serviceCIDRs: [10.96.0.1/12]\n", "4: spec.serviceCIDRs[0]: Invalid value"),
    "address outside its network": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    addresses: [10.0.0.1]\n",
        "6: spec.nodes[0].addresses[0]: Invalid value",
    ),
    "the router's address": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    addresses: [192.168.1.1]\n",
        "is the router's",
    ),
    "an address of two nodes": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    addresses: [192.168.1.3]\n  - name: b\n",
        'Duplicate value: "192.168.1.3"',
    ),
    "an address of a family that is not there": (
        HEAD + 'spec:\n  nodes:\n  - name: a\n    addresses: ["fd00:1::2"]\n',
        "must be of a family in spec.ipFamilies",
    ),
    "podCIDRs that overlap": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    podCIDRs: [10.244.2.0/23]\n  - name: b\n",
        "overlaps with 10.244.2.0/23",
    ),
    "podCIDR outside the pod network": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    podCIDRs: [10.1.0.0/24]\n",
        "must lie in spec.podNetwork.cidrs",
    ),
    "too small a pod network": (HEAD + "spec:\n  podNetwork:\n    cidrs: [10.244.0.0/24]\n", "has no /24 for node"),
    "too small a node network": (HEAD + "spec:\n  nodeNetwork:\n    cidrs: [192.168.1.0/30]\n", "too few addresses"),
    "port range": (HEAD + "spec:\n  serviceNodePortRange: 40000-30000\n", "4: spec.serviceNodePortRange"),
    "route by nobody": (
        HEAD + "spec:\n  externalRoutes:\n  - {to: 198.51.100.0/24, via: x}\n",
        'spec.externalRoutes[0].via: Unsupported value: "x"',
    ),
    "load balancer": (
        HEAD + "spec:\n  loadBalancer: {kind: bgp}\n",
        '4: spec.loadBalancer.kind: Unsupported value: "bgp"',
    ),
    "load balancer pool that is routed elsewhere": (
        HEAD
        + "spec:\n  nodes: [{name: x}]\n  externalRoutes: [{to: 198.51.0.0/16, via: x}]\n"
        + "  loadBalancer: {kind: l2}\n",
        'spec.loadBalancer.cidrs: Invalid value: "198.51.100.0/24": overlaps with 198.51.0.0/16 (spec.externalRoutes)',
    ),
    "mode": (HEAD + "spec:\n  podNetwork: {mode: bgp}\n", 'Unsupported value: "bgp"'),
    "flag": (HEAD + 'spec:\n  proxy:\n    flags: {"--v": "4"}\n', "must be the name of a flag"),
    "flag of the lab itself": (HEAD + "spec:\n  proxy: {flags: {master: x}}\n", "spec.proxy.flags.master: Forbidden"),
    "network of the host itself": (
        HEAD + "spec:\n  podNetwork:\n    cidrs: [127.0.0.0/16]\n",
        '5: spec.podNetwork.cidrs[0]: Invalid value: "127.0.0.0/16": overlaps with 127.0.0.0/8',
    ),
    "image without a command": (HEAD + "spec:\n  images:\n  - match: x\n", "spec.images[0].command: Required value"),
    "variant of one node": (
        HEAD + "spec:\n  nodes:\n  - name: a\n    proxy: {variant: nft}\n",
        "spec.nodes[0].proxy.variant: Forbidden",
    ),
}


@pytest.mark.parametrize(("text", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_line_and_field(text: str, complaint: str) -> None:
    found = refusals(text)
    assert any(complaint in line for line in found), found


def test_all_mistakes_are_told_at_once() -> None:
    text = HEAD + "spec:\n  nodes:\n  - name: A\n  clients:\n  - name: B\n  images:\n  - match: x\n"
    assert [line.partition(": Inv")[0].partition(": Req")[0] for line in refusals(text)] == [
        "5: spec.nodes[0].name",
        "7: spec.clients[0].name",
        "9: spec.images[0].command",
    ]


def test_an_unknown_field_hides_no_other_mistake() -> None:
    text = HEAD + "spec:\n  nods: []\n  nodes:\n  - name: A\n"
    assert [line.partition(": ")[0] for line in refusals(text)] == ["4", "6"]


def test_flags_are_shown_to_whoever_knows_them() -> None:
    def complain(flags: Mapping[str, str]) -> list[tuple[str, str]]:
        shown.append(dict(flags))
        return [("v", "is loud"), ("", "do not go together")]

    shown: list[dict[str, str]] = []
    text = HEAD + "spec:\n  proxy: {flags: {v: 9, masquerade-all: true}}\n  nodes:\n  - name: a\n"
    documents, _ = manifest.read(text.encode(), "cluster.yaml")
    with pytest.raises(InvalidInput) as caught:
        clusterfile.read(documents, check_flags=complain)
    assert shown == [{"v": "9", "masquerade-all": "true"}]
    assert [(finding.field, finding.reason) for finding in caught.value.findings] == [
        ("spec.proxy.flags", 'Invalid value: "--v=9 --masquerade-all=true": do not go together'),
        ("spec.proxy.flags.v", 'Invalid value: "9": is loud'),
    ]


def test_a_second_document_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one Cluster and nothing else"):
        read(HEAD + "---\n" + HEAD)


def test_the_documentation_shows_the_default_cluster() -> None:
    page = Path(__file__).parents[3] / "docs" / "cluster-file.md"
    text = page.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    assert clusterfile.read(manifest.read(text.encode(), page.name)[0]) == clusterfile.read([])
