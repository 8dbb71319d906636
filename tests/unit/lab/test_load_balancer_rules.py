"""What the router's kernel and HAProxy are told, and which nodes serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kproxy.cluster.load_balancers.claims import Claim, ClaimPort
from kproxy.cluster.load_balancers.health import Target
from kproxy.cluster.load_balancers.passing import rules
from kproxy.cluster.load_balancers.proxying import configuration
from kproxy.cluster.load_balancers.serving import Balance, Member, balance, member_of, preference, target_of

NODE1, NODE2 = Member("node1", ("192.168.1.2", "fd00:1::2")), Member("node2", ("192.168.1.3", "fd00:1::3"))
NODES = ("192.168.1.0/24", "fd00:1::/64")
BOTH = ("198.51.100.1", "2001:db8:198::1")


def claim(kind: str, **more: Any) -> Claim:
    return replace(Claim(("default", "web"), "uid", kind, (ClaimPort("TCP", 80, 30080),), (4, 6)), **more)


def lines(*balances: Balance) -> list[str]:
    return [line.strip() for line in rules(balances, NODES).splitlines() if line.startswith("    ")]


def test_connections_are_spread_over_node_ports_in_both_families() -> None:
    found = lines(Balance(claim("nlb"), BOTH, (NODE1, NODE2)))
    assert (
        "ip daddr 198.51.100.1 tcp dport 80 dnat ip addr . port to numgen random mod 2 "
        "map { 0 : 192.168.1.2 . 30080, 1 : 192.168.1.3 . 30080 }"
    ) in found
    assert (
        "ip6 daddr 2001:db8:198::1 tcp dport 80 dnat ip6 addr . port to numgen random mod 2 "
        "map { 0 : fd00:1::2 . 30080, 1 : fd00:1::3 . 30080 }"
    ) in found
    assert "ct status dnat ip saddr 192.168.1.0/24 masquerade" in found


def test_a_sticky_service_is_spread_by_the_clients_address() -> None:
    found = lines(Balance(claim("nlb", is_sticky=True), BOTH[:1], (NODE1,)))
    assert any("to jhash ip saddr mod 1 map" in line for line in found)


def test_nobody_is_left_to_the_router_and_classic_is_not_spread() -> None:
    for one in (Balance(claim("nlb"), BOTH, ()), Balance(claim("classic"), BOTH, (NODE1,))):
        assert not any("dnat ip" in line for line in lines(one) if not line.startswith("ct"))


def test_source_ranges_are_kept_by_the_router_family_by_family() -> None:
    ranged = claim("classic", source_ranges=("203.0.113.0/24", "10.0.0.0/8"))
    found = [line for line in lines(Balance(ranged, BOTH, (NODE1,))) if line.endswith("drop")]
    assert found == [
        'iifname != "lo" ip daddr 198.51.100.1 tcp dport 80 ip saddr != { 203.0.113.0/24, 10.0.0.0/8 } drop'
    ]


def test_haproxy_listens_where_somebody_serves() -> None:
    reader = claim("classic", key=("shop", "reader"), proxy_protocol="v2", is_sticky=True)
    text = configuration(
        [Balance(claim("classic"), BOTH, (NODE1,)), Balance(reader, BOTH[1:], (NODE2,)), Balance(reader, BOTH[:1], ())],
        "/run/x.sock",
    )
    listeners = [line.strip() for line in text[text.index("listen ") :].splitlines()]
    assert listeners == [
        "listen default:web:80:ipv4",
        "bind 198.51.100.1:80",
        "balance roundrobin",
        "server node1 192.168.1.2:30080",
        "listen default:web:80:ipv6",
        "bind [2001:db8:198::1]:80",
        "balance roundrobin",
        "server node1 [fd00:1::2]:30080",
        "listen shop:reader:80:ipv6",
        "bind [2001:db8:198::1]:80",
        "balance source",
        "server node2 [fd00:1::3]:30080 send-proxy-v2",
    ]
    assert "stats socket /run/x.sock" in text


def test_who_is_asked_what() -> None:
    local = {"is_local": True, "health_check_port": 31000}
    udp = (ClaimPort("UDP", 53, 30053),)
    assert target_of(claim("l2"), NODE1) == Target("192.168.1.2", 10256, "/healthz")
    assert target_of(claim("nlb"), NODE1) == Target("192.168.1.2", 30080)
    assert target_of(claim("classic", versions=(6,)), NODE1) == Target("fd00:1::2", 30080)
    assert target_of(claim("nlb", ports=udp), NODE1) == Target("192.168.1.2", 10256, "/healthz")
    for kind in ("l2", "nlb", "classic"):
        assert target_of(claim(kind, **local), NODE1) == Target("192.168.1.2", 31000, "/healthz")
    assert target_of(claim("l2", versions=(6,)), Member("node1", ("192.168.1.2",))) is None


def test_the_first_healthy_node_announces_and_another_one_for_another_address() -> None:
    members = [Member(f"node{number}", (f"192.168.1.{number + 1}",)) for number in (1, 2, 3)]
    names = [member.name for member in members]
    dead = {preference("198.51.100.1", names)[0]}

    def is_healthy(target: Target) -> bool:
        return next(member.name for member in members if member.addresses == (target.address,)) not in dead

    found = balance(claim("l2"), ["198.51.100.1"], members, is_healthy)
    assert dict(found.announcers) == {"198.51.100.1": preference("198.51.100.1", names)[1]}
    assert {member.name for member in found.members} == set(names) - dead
    dead |= set(names)
    assert balance(claim("l2"), ["198.51.100.1"], members, is_healthy).announcers == ()
    first = {preference(f"198.51.100.{number}", names)[0] for number in range(1, 30)}
    assert first == set(names)


def test_a_node_can_be_left_out() -> None:
    node: dict[str, Any] = {
        "metadata": {"name": "node1", "labels": {}},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.1.2"}, {"type": "Hostname", "address": "x"}]
        },
    }
    assert member_of(node) == Member("node1", ("192.168.1.2",))
    node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] = ""
    assert member_of(node) is None
