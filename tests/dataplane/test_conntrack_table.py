"""The kernel's own conntrack table through our parser: what is found, what is deleted, and how long it takes."""

from __future__ import annotations

import ipaddress
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rule_worlds import bare_nodes

from kproxy.proxy.conntrack import ConntrackTable
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_CREATE,
    Netlink,
    attribute,
    nfnetlink_body,
)
from kproxy.proxy.stale_flows import Place
from netns.namespace import Namespace, run_in

pytestmark = pytest.mark.root

MANY = 100_000
TIMES_CONNTRACK_L = 3.0
NEW_ENTRY = 1 << 8
CONFIRMED_AND_ANSWERED = 0x2 | 0x8
SERVICES = {Family.IPV4: ("10.96.0.10", "10.96.0.11"), Family.IPV6: ("fd00:10:96::10", "fd00:10:96::11")}
ENDPOINTS = {Family.IPV4: ("10.244.1.2", "10.244.1.3"), Family.IPV6: ("fd00:10:244::2", "fd00:10:244::3")}
CLIENT = {Family.IPV4: "10.200.0.0", Family.IPV6: "fd00:200::"}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with bare_nodes("tct", "node") as (made,):
        yield made


def entry(
    family: Family, number: int, service: str, endpoint: str, *, protocol: int = socket.IPPROTO_UDP, zone: int = 0
) -> bytes:
    """A request for the entry of a client's flow to port 53 of a Service, which port 5353 of an endpoint answers."""
    first = 1 if family is Family.IPV4 else 3
    client = ipaddress.ip_address(int(ipaddress.ip_address(CLIENT[family])) + number // 50000)
    port = 10000 + number % 50000

    def flow(kind: int, source: str, source_port: int, to: str, to_port: int) -> bytes:
        addresses = attribute(first, ipaddress.ip_address(source).packed)
        addresses += attribute(first + 1, ipaddress.ip_address(to).packed)
        ports = attribute(1, bytes([protocol])) + attribute(2, struct.pack("!H", source_port))
        ports += attribute(3, struct.pack("!H", to_port))
        nested = attribute(1 | NLA_F_NESTED, addresses) + attribute(2 | NLA_F_NESTED, ports)
        return attribute(kind | NLA_F_NESTED, nested)

    parts = flow(1, str(client), port, service, 53) + flow(2, endpoint, 5353, str(client), port)
    parts += attribute(7, struct.pack("!I", 3600)) + attribute(3, struct.pack("!I", CONFIRMED_AND_ANSWERED))
    if protocol == socket.IPPROTO_TCP:
        parts += attribute(4 | NLA_F_NESTED, attribute(1 | NLA_F_NESTED, attribute(1, b"\3")))
    if zone:
        parts += attribute(18, struct.pack("!H", zone))
    return nfnetlink_body(socket.AF_INET if family is Family.IPV4 else socket.AF_INET6, parts)


def fill(netlink: Netlink, entries: list[bytes]) -> None:
    assert netlink.request_many(NEW_ENTRY, NLM_F_CREATE, entries) == []


def listed(family: Family, protocol: str = "udp") -> int:
    """How many entries conntrack-tools see."""
    command = ["conntrack", "-L", "-f", family.value.lower(), "-p", protocol]
    return len(subprocess.run(command, capture_output=True, check=True).stdout.splitlines())


@pytest.mark.parametrize("family", Family)
def test_stale_flows_go_and_nothing_else(namespace: Namespace, family: Family) -> None:
    kept, gone = SERVICES[family]
    valid, invalid = ENDPOINTS[family]
    other = Family.IPV6 if family is Family.IPV4 else Family.IPV4
    allowed: dict[Place, frozenset[Place]] = {
        (kept, 53): frozenset({(valid, 5353)}),
        (gone, 53): frozenset(),
        (kept, 54): frozenset(),
    }

    def body() -> tuple[int, int, int, int, int, int]:
        with Netlink(NETLINK_NETFILTER) as netlink:
            fill(netlink, [entry(family, number, kept, valid) for number in range(300)])
            fill(netlink, [entry(family, number, kept, invalid) for number in range(300, 500)])
            fill(netlink, [entry(family, number, gone, valid) for number in range(500, 600)])
            fill(netlink, [entry(family, number, gone, valid, zone=7) for number in range(500, 520)])
            fill(netlink, [entry(family, number, gone, valid, protocol=socket.IPPROTO_TCP) for number in range(50)])
            fill(
                netlink,
                [entry(other, number, *(side[other][1] for side in (SERVICES, ENDPOINTS))) for number in range(9)],
            )
            table = ConntrackTable(netlink, family)
            stale = table.stale(allowed)
            return (
                len(stale),
                table.delete(stale),
                table.delete(stale),
                listed(family),
                listed(family, "tcp"),
                listed(other),
            )

    assert run_in(namespace, body) == (320, 320, 0, 300, 50, 9)


def test_kernel_lists_udp_alone(namespace: Namespace) -> None:
    """A node has a hundred times as many TCP connections: they must not come up here."""

    def body() -> int:
        with Netlink(NETLINK_NETFILTER) as netlink:
            service, endpoint = SERVICES[Family.IPV4][0], ENDPOINTS[Family.IPV4][0]
            fill(netlink, [entry(Family.IPV4, number, service, endpoint) for number in range(3)])
            protocol = socket.IPPROTO_TCP
            fill(netlink, [entry(Family.IPV4, number, service, endpoint, protocol=protocol) for number in range(200)])
            table = ConntrackTable(netlink, Family.IPV4)
            return len(list(netlink.dump(NEW_ENTRY | 1, table.udp_only())))

    assert run_in(namespace, body) == 3


def own_work() -> float:
    """Seconds of CPU that this process has taken, its part of the kernel's work included."""
    return time.process_time()


def work_of_tools() -> float:
    """Likewise of the programs that it has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def work(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of CPU that something takes, which are the same however many others want the processor."""
    began = clock()
    run()
    return clock() - began


def test_a_pass_takes_at_most_three_times_as_long_as_conntrack_tools(
    namespace: Namespace, record_property: Callable[[str, object], None]
) -> None:
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    assert limit >= MANY, f"this kernel keeps {limit} entries; for this test net.netfilter.nf_conntrack_max={2 * MANY}"
    service, endpoint = SERVICES[Family.IPV4][0], ENDPOINTS[Family.IPV4][0]
    allowed: dict[Place, frozenset[Place]] = {(service, 53): frozenset({(endpoint, 5353)})}

    def body() -> tuple[float, float, int]:
        with Netlink(NETLINK_NETFILTER) as netlink:
            fill(netlink, [entry(Family.IPV4, number, service, endpoint) for number in range(MANY)])
            table = ConntrackTable(netlink, Family.IPV4)
            command = ["conntrack", "-L", "-p", "udp"]
            ours, theirs = [], []
            for _ in range(5):  # in turns, so that both meet the same machine
                theirs.append(work(lambda: subprocess.run(command, capture_output=True, check=True), work_of_tools))
                ours.append(work(lambda: table.stale(allowed), own_work))
            all_of_them = table.stale({(service, 53): frozenset()})
            return min(ours), min(theirs), table.delete(all_of_them)

    ours, theirs, deleted = run_in(namespace, body)

    record_property("seconds", {"kproxy": round(ours, 3), "conntrack -L": round(theirs, 3)})
    assert deleted == MANY
    assert ours <= TIMES_CONNTRACK_L * theirs, f"{ours:.2f} s against {theirs:.2f} s of conntrack -L"
