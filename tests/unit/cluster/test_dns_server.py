"""The server over loopback, asked by an independent client; another server of ours stands in for the world outside."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import threading
from collections.abc import Iterator

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from kproxy.api.kinds import ENDPOINT_SLICE, NAMESPACE, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster.dns import __main__ as program
from kproxy.cluster.dns.feed import Feed
from kproxy.cluster.dns.host_names import HostNames
from kproxy.cluster.dns.server import Responder, serve
from kproxy.cluster.dns.zone import Zone

LOOPBACK = "127.0.0.1"
MANY = 60


def service(name: str, **spec: object) -> Object:
    return {"kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def endpoints(name: str, *addresses: str) -> Object:
    labels = {"kubernetes.io/service-name": name}
    found = [{"addresses": [address]} for address in addresses]
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    metadata = {"name": f"{name}-1", "namespace": "default", "labels": labels}
    return {"kind": "EndpointSlice", "metadata": metadata, "endpoints": found, "ports": ports}


class Running:
    """A server in a thread of its own; its port is the same for both protocols."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.sockets = bound_pair()
        self.port: int = self.sockets[0].getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = asyncio.Event()
        self._began = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._began.wait(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._began.set)
        await serve(self.responder, self.sockets, self._until)

    def close(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._until.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def ask(self, name: str, record_type: str = "A", *, tcp: bool = False, edns: int = -1) -> dns.message.Message:
        query = dns.message.make_query(name, record_type, use_edns=edns if edns >= 0 else False, payload=4096)
        return self.exchange(query, tcp=tcp)

    def exchange(self, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
        exchange = dns.query.tcp if tcp else dns.query.udp
        return exchange(query, LOOPBACK, port=self.port, timeout=10)


def bound_pair() -> list[socket.socket]:
    """A datagram and a stream socket on the same free port."""
    while True:
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        stream.bind((LOOPBACK, 0))
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagram.bind(stream.getsockname())
        except OSError:
            stream.close()
            datagram.close()
            continue
        return [datagram, stream]


@pytest.fixture(scope="module")
def outside() -> Iterator[Running]:
    names = {"my.database.com": ["203.0.113.20"], "many.example.com": [f"198.51.100.{n}" for n in range(1, MANY)]}
    running = Running(Responder(HostNames(names)))
    yield running
    running.close()


@pytest.fixture(scope="module")
def cluster(outside: Running) -> Iterator[Running]:
    zone = Zone()
    feed = Feed(zone, Client("http://127.0.0.1:9"), lambda: None)
    feed.take(NAMESPACE, Snapshot([{"metadata": {"name": "default"}}], "1"))
    services = [
        service("web", clusterIP="10.96.0.5", ports=[{"name": "http", "port": 80, "protocol": "TCP"}]),
        service("peers", clusterIP="None"),
        service("db", type="ExternalName", externalName="my.database.com"),
        service("lost", type="ExternalName", externalName="nobody.example.com"),
    ]
    feed.take(SERVICE, Snapshot(services, "1"))
    feed.take(ENDPOINT_SLICE, Snapshot([endpoints("peers", *(f"10.244.1.{n}" for n in range(2, 2 + MANY)))], "1"))
    running = Running(Responder(zone, [(LOOPBACK, outside.port)]))
    yield running
    running.close()


def values(reply: dns.message.Message) -> list[str]:
    return sorted(str(item) for answer in reply.answer for item in answer)


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_cluster_ip(cluster: Running, tcp: bool) -> None:
    reply = cluster.ask("web.default.svc.cluster.local", tcp=tcp)
    assert reply.rcode() == dns.rcode.NOERROR
    assert values(reply) == ["10.96.0.5"]
    assert reply.answer[0].ttl == 30
    assert reply.flags & dns.flags.AA
    assert reply.flags & dns.flags.RA


@pytest.mark.parametrize(
    ("name", "record_type", "code"),
    [
        ("web.default.svc.cluster.local", "AAAA", dns.rcode.NOERROR),
        ("nobody.default.svc.cluster.local", "A", dns.rcode.NXDOMAIN),
    ],
)
def test_nothing_to_tell_comes_with_the_zones_soa(cluster: Running, name: str, record_type: str, code: int) -> None:
    reply = cluster.ask(name, record_type)
    assert reply.rcode() == code
    assert not reply.answer
    (authority,) = reply.authority
    assert str(authority.name) == "cluster.local."
    (soa,) = authority
    assert (authority.ttl, soa.minimum, str(soa.mname)) == (30, 30, "ns.dns.cluster.local.")


def test_the_case_of_the_question_is_kept(cluster: Running) -> None:
    reply = cluster.ask("wEb.DEFAULT.svc.cluster.local")
    assert reply.answer[0].name.to_text() == "wEb.DEFAULT.svc.cluster.local."


def test_srv_comes_with_the_targets_address(cluster: Running) -> None:
    reply = cluster.ask("_http._tcp.web.default.svc.cluster.local", "SRV")
    assert values(reply) == ["0 100 80 web.default.svc.cluster.local."]
    assert [str(item) for extra in reply.additional for item in extra] == ["10.96.0.5"]


def test_too_long_for_udp_is_asked_again_over_tcp(cluster: Running) -> None:
    name = "peers.default.svc.cluster.local"
    plain = cluster.ask(name)
    assert plain.flags & dns.flags.TC
    assert not plain.answer
    assert len(values(cluster.ask(name, tcp=True))) == MANY
    with_edns = cluster.ask(name, edns=0)
    assert len(values(with_edns)) == MANY
    assert with_edns.edns == 0


def test_answers_come_in_any_order(cluster: Running) -> None:
    orders = {tuple(map(str, cluster.ask("peers.default.svc.cluster.local", tcp=True).answer[0])) for _ in range(4)}
    assert len(orders) > 1


def test_an_alias_is_completed_by_the_server_outside(cluster: Running) -> None:
    reply = cluster.ask("db.default.svc.cluster.local")
    assert values(reply) == ["203.0.113.20", "my.database.com."]
    assert [str(answer.name) for answer in reply.answer] == ["db.default.svc.cluster.local.", "my.database.com."]
    dangling = cluster.ask("lost.default.svc.cluster.local")
    assert dangling.rcode() == dns.rcode.NOERROR
    assert values(dangling) == ["nobody.example.com."]


def test_what_is_not_the_clusters_is_asked_for_outside(cluster: Running) -> None:
    assert values(cluster.ask("my.database.com")) == ["203.0.113.20"]
    assert values(cluster.ask("20.113.0.203.in-addr.arpa", "PTR")) == ["my.database.com."]
    assert cluster.ask("example.org").rcode() == dns.rcode.NXDOMAIN
    assert cluster.ask("database.com").rcode() == dns.rcode.NOERROR
    assert len(values(cluster.ask("many.example.com", tcp=True))) == MANY - 1


def test_without_a_server_outside_it_refuses() -> None:
    alone = Running(Responder(Zone()))
    try:
        reply = alone.ask("my.database.com")
        assert reply.rcode() == dns.rcode.REFUSED
        assert not reply.flags & dns.flags.RA
    finally:
        alone.close()


def test_a_server_outside_that_is_silent() -> None:
    silent, _ = pair = bound_pair()
    alone = Running(Responder(Zone(), [(LOOPBACK, silent.getsockname()[1])]))
    try:
        assert alone.ask("my.database.com").rcode() == dns.rcode.SERVFAIL
    finally:
        alone.close()
        for one in pair:
            one.close()


def test_a_server_outside_that_talks_nonsense() -> None:
    speaker, _ = pair = bound_pair()
    speaker.settimeout(10)
    alone = Running(Responder(Zone(), [(LOOPBACK, speaker.getsockname()[1])]))

    def babble() -> None:
        message, sender = speaker.recvfrom(4096)
        speaker.sendto(message[:2] + b"no", sender)

    threading.Thread(target=babble, daemon=True).start()
    try:
        assert alone.ask("my.database.com").rcode() == dns.rcode.SERVFAIL
    finally:
        alone.close()
        for one in pair:
            one.close()


def test_what_is_passed_on_has_options_only_for_who_sent_some(cluster: Running) -> None:
    assert cluster.ask("my.database.com").edns == -1
    assert cluster.ask("my.database.com", edns=0).edns == 0


@pytest.mark.parametrize("has_ipv6", [True, False], ids=["both families", "a kernel without IPv6"])
def test_it_listens_in_every_family_that_the_kernel_has(has_ipv6: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make = socket.socket

    def made(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6 and not has_ipv6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(family, kind)

    monkeypatch.setattr(socket, "socket", made)
    found = program.sockets(0)
    monkeypatch.undo()
    try:
        families = [one.family for one in found]
        assert families == [socket.AF_INET] * 2 + [socket.AF_INET6] * 2 * has_ipv6
        assert all(one.getsockname()[1] for one in found)
    finally:
        for one in found:
            one.close()


def test_until_all_is_listed_it_does_not_guess() -> None:
    responder = Responder(Zone())
    responder.is_ready = False
    early = Running(responder)
    try:
        assert early.ask("web.default.svc.cluster.local").rcode() == dns.rcode.SERVFAIL
        responder.is_ready = True
        assert early.ask("web.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
    finally:
        early.close()


def test_other_questions_get_their_codes(cluster: Running) -> None:
    notify = dns.message.make_query("cluster.local", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert cluster.exchange(notify).rcode() == dns.rcode.NOTIMP
    assert cluster.ask("cluster.local", edns=1).rcode() == dns.rcode.BADVERS
    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    assert cluster.exchange(chaos).rcode() == dns.rcode.REFUSED


def test_rubbish_harms_nobody(cluster: Running) -> None:
    dice = random.Random(20261120)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for length in [*range(40), 600, 5000]:
            sender.sendto(dice.randbytes(length), (LOOPBACK, cluster.port))
        query = bytearray(dns.message.make_query("web.default.svc.cluster.local", "A").to_wire())
        for position in range(len(query)):
            sender.sendto(bytes(query[:position]), (LOOPBACK, cluster.port))
    with socket.create_connection((LOOPBACK, cluster.port)) as stream:
        stream.sendall(struct.pack("!H", 20) + dice.randbytes(20))
    assert values(cluster.ask("web.default.svc.cluster.local")) == ["10.96.0.5"]
    assert values(cluster.ask("web.default.svc.cluster.local", tcp=True)) == ["10.96.0.5"]


def test_the_feed_follows_changes() -> None:
    completed: list[bool] = []
    zone = Zone()
    feed = Feed(zone, Client("http://127.0.0.1:9"), lambda: completed.append(True))
    web = service("web", clusterIP="10.96.0.5", ports=[{"port": 80, "protocol": "TCP"}])
    feed.take(SERVICE, Snapshot([web], "1"))
    feed.take(NAMESPACE, Snapshot([], "1"))
    assert not completed
    feed.take(ENDPOINT_SLICE, Snapshot([], "1"))
    feed.take(ENDPOINT_SLICE, Snapshot([], "1"))
    assert completed == [True]

    def found() -> str:
        answer = zone.lookup("web.default.svc.cluster.local", "A")
        assert answer is not None
        return answer.code

    assert found() == "NOERROR"
    feed.take(SERVICE, WatchEvent("DELETED", web))
    assert found() == "NXDOMAIN"
    feed.take(SERVICE, WatchEvent("ADDED", web))
    assert found() == "NOERROR"
    feed.take(SERVICE, Snapshot([], "9"))
    assert found() == "NXDOMAIN"
