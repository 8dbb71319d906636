"""The networks that a cluster file can ask for: host-gw and vxlan, one family and both, the world outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from lab_support import apply, cluster_ips, get, pod, ready_pods, running, service, until, wait_until_programmed

from kproxy.api.kinds import ENDPOINT_SLICE, POD, SERVICE
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from netns.namespace import named, socket_in

pytestmark = pytest.mark.root

DUAL = ("IPv4", "IPv6")
CASES = {
    "host-gw": {"network": "host-gw"},
    "vxlan": {"network": "vxlan"},
    "dual-stack": {"ip_families": DUAL},
    "IPv6": {"ip_families": ("IPv6",)},
    "dual-stack-vxlan": {"network": "vxlan", "ip_families": DUAL},
    "IPv6-vxlan": {"network": "vxlan", "ip_families": ("IPv6",)},
    "nft": {"iptables_variant": "nft", "ip_families": DUAL},
}
NODES = ["node1", "node2", "node3"]
OUTSIDE = {"IPv4": "203.0.113.10", "IPv6": "2001:db8:113::10"}
NODE_2 = {"IPv4": "192.168.1.3", "IPv6": "fd00:1::3"}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def up(request: pytest.FixtureRequest) -> Iterator[tuple[Layout, Client]]:
    overrides: dict[str, Any] = request.param
    with running(f"en{os.getpid() % 10000}", **overrides) as (layout, client):
        families = lab.status(layout.lab).ip_families
        policy = "RequireDualStack" if len(families) > 1 else "SingleStack"
        apply(
            client,
            *(pod(f"web-{number}", nodeName=f"node{number}") for number in (1, 2, 3)),
            service("web", type="NodePort", ipFamilyPolicy=policy),
        )
        ready_pods(client, 3)
        until(lambda: _endpoints(client) == 3 * len(families), "endpoints")
        wait_until_programmed(layout, client, NODES)
        yield layout, client


def _endpoints(client: Client) -> int:
    slices = [
        item for item in client.list(ENDPOINT_SLICE, "default").items if item["metadata"]["name"].startswith("web")
    ]
    return sum(len(item.get("endpoints") or ()) for item in slices)


def addresses_of(client: Client, name: str) -> list[str]:
    return [entry["ip"] for entry in client.get(POD, name, "default")["status"]["podIPs"]]


def test_every_pod_is_reached_from_every_place_inside_with_its_source_kept(up: tuple[Layout, Client]) -> None:
    layout, client = up
    for number in (1, 2, 3):
        for index, address in enumerate(addresses_of(client, f"web-{number}")):
            for other in (1, 2, 3):
                answer = get(layout, f"default.web-{other}", address, 8080)
                assert answer["pod"] == f"web-{number}"
                assert answer["client"] == addresses_of(client, f"web-{other}")[index]
                # Both nodes on the way count down once; a pod that asks itself is on no way at all.
                assert answer["ttl"] == (64 if other == number else 62)
                assert get(layout, f"node{other}", address, 8080)["pod"] == f"web-{number}"


def test_the_service_answers_on_every_node(up: tuple[Layout, Client]) -> None:
    layout, client = up
    for address in cluster_ips(client, "web"):
        for place in (*NODES, "default.web-1"):
            assert get(layout, place, address, 80)["pod"].startswith("web-")


def test_a_packet_of_exactly_the_pods_mtu_gets_through_unfragmented(up: tuple[Layout, Client]) -> None:
    layout, client = up
    overhead = {"IPv4": 50, "IPv6": 70}[lab.status(layout.lab).ip_families[0]]
    mtu = 1500 - (overhead if lab.status(layout.lab).pod_network == "vxlan" else 0)
    for address in addresses_of(client, "web-2"):
        family, headers = (socket.AF_INET6, 48) if ":" in address else (socket.AF_INET, 28)
        with socket_in(named(layout.netns("default.web-1"), layout.namespaces), family, socket.SOCK_DGRAM) as sock:
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: IP_PMTUDISC_DO
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER: IPV6_PMTUDISC_DO
            sock.settimeout(3)
            sock.connect((address, 8080))
            sock.send(b" " * (mtu - headers))
            assert sock.recv(65536).startswith(b"pod: web-2\n")
            with pytest.raises(OSError, match="Message too long"):
                sock.send(b" " * (mtu - headers + 1))


def test_the_outside_reaches_nodes_and_nothing_behind_them(up: tuple[Layout, Client]) -> None:
    layout, client = up
    port = client.get(SERVICE, "web", "default")["spec"]["ports"][0]["nodePort"]
    for family in lab.status(layout.lab).ip_families:
        assert get(layout, "client", NODE_2[family], port)["pod"].startswith("web-")
    for address in (*addresses_of(client, "web-1"), *cluster_ips(client, "web")):
        with pytest.raises(OSError, match="unreachable"):
            get(layout, "client", address, 80)


def test_pods_leave_the_cluster_with_their_nodes_address(up: tuple[Layout, Client]) -> None:
    layout, _ = up
    for family in lab.status(layout.lab).ip_families:
        kind = socket.AF_INET6 if family == "IPv6" else socket.AF_INET
        outside, inside = (named(layout.netns(place), layout.namespaces) for place in ("client", "default.web-2"))
        with (
            socket_in(outside, kind, socket.SOCK_DGRAM) as server,
            socket_in(inside, kind, socket.SOCK_DGRAM) as pod_end,
        ):
            server.settimeout(3)
            server.bind((OUTSIDE[family], 5000))
            pod_end.sendto(b"hello", (OUTSIDE[family], 5000))
            assert server.recvfrom(100)[1][0] == NODE_2[family]


def test_the_first_hop_is_named_and_its_link_says_whose_it_is(up: tuple[Layout, Client]) -> None:
    layout, _ = up
    shown = subprocess.run(
        ["ip", "-n", layout.netns("node1"), "-j", "link"], capture_output=True, text=True, check=True
    ).stdout
    links = [link for link in json.loads(shown) if link["ifname"] != "lo"]
    assert len(links) >= 2
    assert {link["ifalias"] for link in links} == {f"kproxy:{layout.lab}"}
    assert all(len(link["ifname"]) <= 15 for link in links)
