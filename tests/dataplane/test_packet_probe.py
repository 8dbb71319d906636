"""Probes and rule readers on a node with two pods: every outcome, for TCP and UDP, IPv4 and IPv6, and every sight."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from netns_world import World, pods_on_a_node, world

from kproxy.insight.rule_counters import chains_crossed, open_reader
from netns.build import build
from netns.errors import NetnsError
from netns.namespace import run_in
from netns.probe import PacketWorker, Probe, Result, Station

pytestmark = pytest.mark.root

# Services of a hand-made proxy: DNAT to pod3, REJECT, DROP. The node has no default route; its pods do, to the node.
RULES = """\
*filter
-A FORWARD -d {reject} -j REJECT
-A FORWARD -d {drop} -j DROP
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SEP-X - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d {service} -p tcp -m tcp --dport 80 -j KUBE-SEP-X
-A KUBE-SERVICES -d {service} -p udp -m udp --dport 80 -j KUBE-SEP-X
-A KUBE-SEP-X -p tcp -m tcp -j DNAT --to-destination {endpoint}
-A KUBE-SEP-X -p udp -m udp -j DNAT --to-destination {endpoint}
-A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE
COMMIT
"""


@dataclass(frozen=True)
class Addresses:
    node: str
    client: str
    server: str
    service: str
    reject: str
    drop: str
    nowhere: str

    @property
    def endpoint(self) -> str:
        return f"[{self.server}]:8080" if ":" in self.server else f"{self.server}:8080"


ADDRESSES = {
    4: Addresses("10.77.0.1", "10.77.0.2", "10.77.0.3", "10.78.0.5", "10.78.0.6", "10.78.0.7", "10.79.0.1"),
    6: Addresses("fd77::1", "fd77::2", "fd77::3", "fd78::5", "fd78::6", "fd78::7", "fd79::1"),
}


@dataclass
class Bench:
    client: Station
    node: Station
    server: Station
    node_path: Path


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with world("tpp") as here, PacketWorker() as worker:
        build(pods_on_a_node(here.prefix), here.journal(), here.private)
        for family, tool in ((4, "iptables-legacy-restore"), (6, "ip6tables-legacy-restore")):
            at = ADDRESSES[family]
            rules = RULES.format(service=at.service, endpoint=at.endpoint, reject=at.reject, drop=at.drop)
            load(here, tool, rules)
            # Forwarding needs a route before the rules of FORWARD are asked.
            route = [
                "ip",
                f"-{family}",
                "route",
                "add",
                at.service.rpartition("5")[0] + f"0/{112 if family == 6 else 24}",
            ]
            run_in(here.namespace("node"), subprocess.run, [*route, "dev", "pod3"], check=True)
        stop = threading.Event()
        servers = [run_in(here.namespace("pod3"), echo, stop)]
        yield Bench(
            *(worker.station(here.namespace(name).path) for name in ("pod2", "node", "pod3")),
            here.namespace("node").path,
        )
        stop.set()
        for server in servers:
            server.join()


def load(here: World, tool: str, rules: str) -> None:
    environment = {**os.environ, "XTABLES_LOCKFILE": str(here.folder / "lock")}
    node = here.namespace("node")
    run_in(node, subprocess.run, [tool], input=rules, text=True, env=environment, check=True)
    (here.folder / "lock").unlink(missing_ok=True)


def echo(stop: threading.Event) -> threading.Thread:
    """Listens on port 8080, TCP and UDP, IPv4 and IPv6; datagrams are answered."""
    listener = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", 8080))
    datagrams.settimeout(0.1)

    def serve() -> None:
        with listener, datagrams:
            while not stop.is_set():
                try:
                    _, peer = datagrams.recvfrom(2048)
                except TimeoutError:
                    continue
                except ConnectionRefusedError:
                    continue
                datagrams.sendto(b"here", peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


BOTH = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@BOTH
@FAMILIES
def test_outcomes(bench: Bench, protocol: str, family: int) -> None:
    at = ADDRESSES[family]
    cases = [
        (Probe(at.server, 8080, protocol), Result.ANSWERED),
        (Probe(at.service, 80, protocol), Result.ANSWERED),
        (Probe(at.server, 8081, protocol), Result.REFUSED),
        (Probe(at.node, 1, protocol), Result.REFUSED),
        (Probe(at.reject, 80, protocol), Result.REFUSED),
        (Probe(at.drop, 80, protocol), Result.SILENT),
        (Probe(at.nowhere, 80, protocol), Result.NO_ROUTE),
    ]
    found = bench.client.probe([probe for probe, _ in cases], timeout=0.5)
    assert [(outcome.result, outcome.detail) for outcome in found] == [
        (expected, outcome.detail) for (_, expected), outcome in zip(cases, found, strict=True)
    ]
    assert {outcome.source for outcome in found} == {at.client}


@FAMILIES
def test_a_sender_without_a_route_is_told_by_its_own_kernel(bench: Bench, family: int) -> None:
    (found,) = bench.node.probe([Probe(ADDRESSES[family].nowhere, 80)])
    assert found.result is Result.NO_ROUTE
    assert "unreachable" in found.detail


@BOTH
@FAMILIES
def test_a_node_gets_the_answer_to_its_own_rewritten_packet(bench: Bench, protocol: str, family: int) -> None:
    at = ADDRESSES[family]
    bench.server.sightings()
    (found,) = bench.node.probe([Probe(at.service, 80, protocol)])
    assert found.result is Result.ANSWERED
    (arrival,) = [s for s in bench.server.sightings(("syn", "datagram"), "local") if s.token == found.token]
    assert (arrival.source, arrival.destination, arrival.destination_port) == (at.node, at.server, 8080)


@BOTH
@FAMILIES
def test_a_packet_is_seen_everywhere_on_its_way(bench: Bench, protocol: str, family: int) -> None:
    at = ADDRESSES[family]
    stations = (bench.client, bench.node, bench.server)
    for station in stations:
        station.sightings()
    (found,) = bench.client.probe([Probe(at.service, 80, protocol, source_port=12_345, ttl=33)])
    assert found.result is Result.ANSWERED
    kind = "syn" if protocol == "TCP" else "datagram"
    sights = [s for station in stations for s in station.sightings((kind,)) if s.token == found.token]
    path = [(s.interface, s.direction, s.source, s.destination, s.destination_port, s.ttl) for s in sights][:5]
    assert path == [
        ("eth0", "out", at.client, at.service, 80, 33),
        ("pod2", "in", at.client, at.service, 80, 33),
        ("pod3", "out", at.node, at.server, 8080, 32),
        ("eth0", "in", at.node, at.server, 8080, 32),
        ("", "local", at.node, at.server, 8080, 32),
    ]
    assert sights[0].source_port == 12_345
    assert [s.at for s in sights[:4]] == sorted(s.at for s in sights[:4])


def test_a_source_may_be_anybody(bench: Bench) -> None:
    bench.server.sightings()
    (found,) = bench.client.probe([Probe("10.77.0.3", 8080, source="192.0.2.99")], timeout=0.2)
    assert (found.result, found.source) == (Result.SILENT, "192.0.2.99")
    (arrival,) = [s for s in bench.server.sightings(("syn",), "local") if s.token == found.token]
    assert arrival.source == "192.0.2.99"


def test_a_packet_is_repeated_while_nothing_comes_back(bench: Bench) -> None:
    bench.node.sightings()
    (found,) = bench.client.probe([Probe("10.78.0.7", 80)], timeout=0.3, attempts=3)
    sights = [s for s in bench.node.sightings(("syn",), "in") if s.token == found.token]
    assert (found.result, len(sights)) == (Result.SILENT, 3)


def test_many_at_once_are_all_answered(bench: Bench) -> None:
    found = bench.client.probe([Probe("10.78.0.5", 80)] * 300, timeout=5, attempts=5)
    assert {outcome.result for outcome in found} == {Result.ANSWERED}
    assert len({outcome.token for outcome in found}) == len({outcome.source_port for outcome in found}) == 300


def test_there_is_no_station_where_there_is_no_namespace(tmp_path: Path) -> None:
    with PacketWorker() as worker, pytest.raises(NetnsError, match="no network namespace"):
        worker.station(tmp_path / "nowhere")


@FAMILIES
def test_counters_tell_the_chains_of_one_packet(bench: Bench, family: int) -> None:
    reader = open_reader(bench.node_path, "legacy")
    try:
        before = reader.read(family)
        bench.client.probe([Probe(ADDRESSES[family].service, 80)])
        after = reader.read(family)
    finally:
        reader.close()
    assert chains_crossed(before, after) == ("KUBE-SERVICES", "KUBE-SEP-X")
    (dnat,) = [rule for rule, old in zip(after, before, strict=True) if rule.target == "DNAT" and rule != old]
    assert dnat.parameters == {"to-destination": ADDRESSES[family].endpoint}
    assert dnat.matches["ip"] == {"protocol": "tcp"}


def test_a_reader_notices_that_the_rules_are_others(bench: Bench) -> None:
    reader = open_reader(bench.node_path, "legacy")
    try:
        before = reader.read(4)
        command = ["nsenter", f"--net={bench.node_path}", "iptables-legacy", "-t", "nat"]
        rule = ["KUBE-SERVICES", "-d", "10.78.0.9", "-j", "KUBE-SEP-X"]
        subprocess.run([*command, "-A", *rule], check=True)
        after = reader.read(4)
        subprocess.run([*command, "-D", *rule], check=True)
    finally:
        reader.close()
    assert len(after) == len(before) + 1
    assert chains_crossed(before, after) == ()
