"""Clients that keep their UDP port: whom they reach after each change, and whom they would reach without us."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from netns_world import world
from udp_world import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE,
    OTHERS_PORT,
    OUTSIDE,
    UdpWorld,
    endpoints,
    service,
)

from netns.namespace import socket_in

pytestmark = pytest.mark.root

Objects = list[dict[str, Any]]

FIRST_CLIENT_PORT = 41000


@dataclass(frozen=True)
class Row:
    """One client's story.

    Attributes:
        before: what a Service and its slice are first; `S` and `E` are called with these arguments, None leaves it out.
        after: what they become.
        at: which frontend the client dials: ("cluster"|"external"|"node", port).
        first: who answers before.
        then: who answers after.
        without: who would answer after if nobody looked after UDP flows.
    """

    before: tuple[Mapping[str, Any] | None, tuple[tuple[str, ...], Mapping[str, Any]] | None]
    after: tuple[Mapping[str, Any] | None, tuple[tuple[str, ...], Mapping[str, Any]] | None]
    first: str
    then: str
    without: str
    at: tuple[str, int] = ("cluster", 53)


A, B, AB = (("A",), {}), (("B",), {}), (("A", "B"), {})
NOBODY = ((), {})

ROWS: dict[str, Row] = {
    "another endpoint": Row(({}, A), ({}, B), "A:5353", "B:5353", "A:5353"),
    "same endpoint, another port": Row(({}, A), ({}, (("A",), {"port": 5354})), "A:5353", "A:5354", "A:5353"),
    "last endpoint goes": Row(({}, A), ({}, NOBODY), "A:5353", "refused", "A:5353"),
    "slice goes": Row(({}, A), ({}, None), "A:5353", "refused", "A:5353"),
    "Service goes": Row(({}, A), (None, A), "A:5353", "nobody", "A:5353"),
    "Service and endpoints go": Row(({}, A), (None, None), "A:5353", "nobody", "A:5353"),
    "another port": Row(({}, A), ({"port": 54}, A), "A:5353", "nobody", "A:5353"),
    "another protocol": Row(
        ({}, A), ({"protocol": "TCP"}, (("A",), {"protocol": "TCP"})), "A:5353", "nobody", "A:5353"
    ),
    "first endpoint comes": Row((None, None), ({}, A), "nobody", "A:5353", "nobody"),
    "node port, another endpoint": Row(
        ({"nodePort": 31001}, A), ({"nodePort": 31001}, B), "A:5353", "B:5353", "A:5353", ("node", 31001)
    ),
    "another node port": Row(
        ({"nodePort": 31002}, A), ({"nodePort": 31003}, A), "A:5353", "refused", "A:5353", ("node", 31002)
    ),
    "node port goes": Row(({"nodePort": 31004}, A), ({}, A), "A:5353", "refused", "A:5353", ("node", 31004)),
    "external IP, last endpoint goes": Row(
        ({"external_ip": True}, A), ({"external_ip": True}, NOBODY), "A:5353", "refused", "A:5353", ("external", 53)
    ),
    "external IP goes": Row(({"external_ip": True}, A), ({}, A), "A:5353", "nobody", "A:5353", ("external", 53)),
    # what is valid stays as it is
    "endpoint drains": Row(({}, A), ({}, (("B",), {"draining": "A"})), "A:5353", "A:5353", "A:5353"),
    "endpoint joins": Row(({}, A), ({}, AB), "A:5353", "A:5353", "A:5353"),
    "another frontend comes": Row(
        ({}, A), ({"external_ip": True, "nodePort": 31005}, AB), "A:5353", "A:5353", "A:5353"
    ),
}
CASES = [(name, version) for name in ROWS for version in (4, 6)]
NUMBER = {case: number for number, case in enumerate(CASES, 1)}


def objects_of(case: tuple[str, int], which: str) -> Objects:
    name, version = case
    number = NUMBER[case]
    spec, slice_ = getattr(ROWS[name], which)
    label = f"s{number}"
    found = []
    if spec is not None:
        port = {key: value for key, value in spec.items() if key != "external_ip"}
        if "nodePort" in port:
            port["nodePort"] += 100 * (version == 6)
        if "external_ip" in spec:
            port["external_ip"] = EXTERNAL_IP[version].format(number)
        found.append(service(label, number, version, **port))
    if slice_ is not None:
        pods, options = slice_
        found.append(endpoints(label, version, *pods, **options))
    return found


def ask(net: UdpWorld, case: tuple[str, int], expected: str) -> str:
    name, version = case
    number = NUMBER[case]
    where, port = ROWS[name].at
    address = {
        "cluster": CLUSTER_IP[version].format(number),
        "external": EXTERNAL_IP[version].format(number),
        "node": NODE[version],
    }[where]
    if where == "node" and version == 6:
        port += 100
    return net.ask(f"{name}/{version}", FIRST_CLIENT_PORT + number, address, port, expected)


def play(prefix: str, *, has_reconciler: bool) -> dict[tuple[str, int], tuple[str, str]]:
    """All stories at once: whom each client reaches before and after."""
    with world(prefix) as place, UdpWorld(place).built() as net:
        net.write([obj for case in CASES for obj in objects_of(case, "before")])
        net.start(has_reconciler=has_reconciler)
        first = {case: ask(net, case, ROWS[case[0]].first) for case in CASES}
        net.write([obj for case in CASES for obj in objects_of(case, "after")])
        then = {name: row.then if has_reconciler else row.without for name, row in ROWS.items()}
        return {case: (first[case], ask(net, case, then[case[0]])) for case in CASES}


@pytest.fixture(scope="module")
def reconciled() -> dict[tuple[str, int], tuple[str, str]]:
    return play("tuf", has_reconciler=True)


@pytest.fixture(scope="module")
def left_alone() -> dict[tuple[str, int], tuple[str, str]]:
    return play("tuo", has_reconciler=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_client_that_keeps_its_port(
    case: tuple[str, int], reconciled: Mapping[tuple[str, int], tuple[str, str]]
) -> None:
    row = ROWS[case[0]]

    assert reconciled[case] == (row.first, row.then)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_the_reconciler_it_stays_where_it_was(
    case: tuple[str, int], left_alone: Mapping[tuple[str, int], tuple[str, str]]
) -> None:
    row = ROWS[case[0]]

    assert left_alone[case] == (row.first, row.without)


@pytest.fixture
def net() -> Iterator[UdpWorld]:
    with world("tup") as place, UdpWorld(place).built() as made:
        yield made


def flow_ids(net: UdpWorld) -> set[str]:
    """Ids of the UDP flows to port 53, without what changes by itself."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in net.on_node("conntrack", "-L", "-f", family, "-p", "udp", "--dport", "53", "-o", "id").splitlines():
            found.add(next(word for word in line.split() if word.startswith("id=")))
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_valid_flows_survive_a_restart(net: UdpWorld, version: int) -> None:
    dial = CLUSTER_IP[version].format(1)
    ports = range(42000, 42024)  # all of them with one of the two pods: once in eight million times
    net.write([service("dns", 1, version), endpoints("dns", version, "A", "B")])
    net.start()
    before = {port: net.ask("dns", port, dial, 53) for port in ports}
    assert set(before.values()) == {"A:5353", "B:5353"}
    ids = flow_ids(net)

    net.kill()
    net.start()

    assert flow_ids(net) == ids
    assert {port: net.ask("dns", port, dial, 53) for port in ports} == before


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("has_reconciler", [True, False])
@pytest.mark.parametrize(
    ("after", "expected"),
    [((None, None), "nobody"), (({"port": 54}, A), "nobody"), (({}, NOBODY), "refused"), (({}, B), "B:5353")],
    ids=["Service goes", "another port", "last endpoint goes", "another endpoint"],
)
def test_what_changed_while_no_proxy_ran(
    net: UdpWorld, version: int, has_reconciler: bool, after: Any, expected: str
) -> None:
    spec, slice_ = after
    net.write([service("dns", 1, version), endpoints("dns", version, "A")])
    net.start()
    dial = CLUSTER_IP[version].format(1)
    assert net.ask("dns", 42000, dial, 53) == "A:5353"

    net.kill()
    pods, options = slice_ or ((), {})
    net.write(
        [
            *([service("dns", 1, version, **spec)] if spec is not None else []),
            *([endpoints("dns", version, *pods, **options)] if slice_ is not None else []),
        ]
    )
    net.start(has_reconciler=has_reconciler)

    expected = expected if has_reconciler else "A:5353"
    assert net.ask("dns", 42000, dial, 53, expected) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_flow_to_somebody_elses_port_of_a_node_ports_number_is_left_alone(net: UdpWorld, version: int) -> None:
    """The node gives it a random source port, so that a flow that was cut comes back with another one."""
    tool = "iptables-legacy" if version == 4 else "ip6tables-legacy"
    net.on_node(tool, *["-t", "nat", "-A", "POSTROUTING", "-o", "outside", "-j", "MASQUERADE", "--random-fully"])
    net.write([service("dns", 1, version, nodePort=OTHERS_PORT), endpoints("dns", version, "A")])
    net.start()
    seen = net.ask("other", 42000, OUTSIDE[version], OTHERS_PORT)
    assert seen.isdigit()
    assert net.ask("dns", 42001, NODE[version], OTHERS_PORT) == "A:5353"

    net.write([service("dns", 1, version, nodePort=OTHERS_PORT), endpoints("dns", version, "B")])

    assert net.ask("dns", 42001, NODE[version], OTHERS_PORT) == "B:5353"
    assert net.ask("other", 42000, OUTSIDE[version], OTHERS_PORT) == seen
    net.on_node("conntrack", "-D", "-f", f"ipv{version}", "-p", "udp", "-d", OUTSIDE[version])
    assert net.ask("other", 42000, OUTSIDE[version], OTHERS_PORT) != seen, "this test could not see a flow being cut"


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_connection_outlives_its_endpoint(net: UdpWorld, version: int) -> None:
    """And so does one whose Service is deleted: its peers notice by themselves when they are done."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        socket_in(net.namespace("pod2"), family, socket.SOCK_STREAM) as server,
        socket_in(net.namespace("client"), family, socket.SOCK_STREAM) as client,
    ):
        server.bind(("", 5353))
        server.listen()
        tcp = [service("dns", 1, version, protocol="TCP"), endpoints("dns", version, "A", protocol="TCP")]
        udp = [service("udp", 2, version), endpoints("udp", version, "A")]
        net.write([*tcp, *udp])
        net.start()
        client.settimeout(3)
        server.settimeout(3)
        client.connect((CLUSTER_IP[version].format(1), 53))
        with server.accept()[0] as accepted:
            accepted.settimeout(3)
            for objects in ([tcp[0], endpoints("dns", version, "B", protocol="TCP"), udp[0]], []):
                net.write(objects)
                client.send(b"still there?")
                assert accepted.recv(100) == b"still there?"
                accepted.send(b"yes")
                assert client.recv(100) == b"yes"
