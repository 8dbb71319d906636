"""The node proxy is killed with -9 at random points while Services change, and is started again.

What is seen each time: before the restart every table of iptables is one whole generation (filter may be newer than
nat: each is taken or left by itself); after it the kernel holds what the plan says and no other rule. All the while
nothing happens to Services that stay as they are: no TCP connection to them needs a packet twice, no datagram is lost,
no connection or UDP flow that was there breaks.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from netns_world import World, pods_on_a_node, world

from kproxy.cli.render import rendered
from kproxy.proxy.backends.iptables.host import features, find_tools
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.flags import configuration, parse_flags
from kproxy.proxy.netlink import make_counters
from kproxy.proxy.setup import HostFeatures
from netns.build import build
from netns.journal import Journal
from netns.namespace import Namespace, run_in, socket_in
from netns.process import find_in
from netns.topology import AddressSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec, merge

pytestmark = pytest.mark.root

ROUNDS = 100 if os.environ.get("KPROXY_SOAK") else 25
SEED = int(os.environ.get("KPROXY_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds until something counts as not happening; what takes so long is no packet that had to be sent twice."""
CHANGING_SERVICES = 60
STEADY = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd00:10:96::10"}
PODS = {Family.IPV4: ("10.77.0.2", "10.77.0.3"), Family.IPV6: ("fd77::2", "fd77::3")}
NODE = {Family.IPV4: "10.78.0.1", Family.IPV6: "fd78::1"}
NODE_PORT = 30080
PORT = 8080
TABLES = ("mangle", "filter", "nat")
NOTHING = ""
"""A table that nobody has written yet."""


def topology(prefix: str) -> Topology:
    """Two pods behind a node, and a client that reaches everything through it."""
    node, client = f"{prefix}-node", f"{prefix}-client"
    ends = (("10.78.0.", 24, "0.0.0.0/0"), ("fd78::", 64, "::/0"))
    outside = Topology(
        (NamespaceSpec(client, Role.CLIENT),),
        (VethSpec(End(node, "client"), End(client, "eth0")),),
        addresses=tuple(
            AddressSpec(ns, port, f"{network}{number}/{bits}")
            for network, bits, _ in ends
            for ns, port, number in ((node, "client", 1), (client, "eth0", 2))
        ),
        routes=tuple(RouteSpec(client, everything, f"{network}1", "eth0") for network, _, everything in ends),
    )
    return merge(pods_on_a_node(prefix), outside)


# objects


def node_object() -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address} for address in NODE.values()]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}, "status": {"addresses": addresses}}


def service(name: str, addresses: dict[Family, str], *, node_port: int = 0) -> list[dict[str, Any]]:
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": 80, "targetPort": PORT}
        | ({"nodePort": node_port} if node_port else {})
        for protocol in ("TCP", "UDP")
    ]
    spec = {
        "type": "NodePort" if node_port else "ClusterIP",
        "clusterIP": addresses[Family.IPV4],
        "clusterIPs": list(addresses.values()),
        "ipFamilies": [family.value for family in addresses],
        "ipFamilyPolicy": "RequireDualStack",
        "ports": ports,
    }
    return [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}]


def slices(name: str, endpoints: dict[Family, tuple[str, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family.value.lower()}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family.value,
            "ports": [{"name": protocol.lower(), "protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        }
        for family, addresses in endpoints.items()
    ]


def steady_objects() -> list[dict[str, Any]]:
    return [node_object(), *service("steady", STEADY, node_port=NODE_PORT), *slices("steady", PODS)]


def changing_objects(chance: random.Random) -> list[dict[str, Any]]:
    """Some of the Services that change, with some endpoints each."""
    objects: list[dict[str, Any]] = []
    for number in range(1, CHANGING_SERVICES + 1):
        if chance.random() < 0.9:
            name = f"changing-{number}"
            hosts = sorted(chance.sample(range(2, 30), chance.randint(0, 9)))
            addresses = {Family.IPV4: f"10.96.1.{number}", Family.IPV6: f"fd00:10:96::1:{number:x}"}
            ends = {
                Family.IPV4: tuple(f"10.99.{number}.{host}" for host in hosts),
                Family.IPV6: tuple(f"fd99::{number:x}:{host:x}" for host in hosts[:3]),
            }
            objects += [*service(name, addresses), *slices(name, ends)]
    return objects


def put(path: Path, objects: list[dict[str, Any]]) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    fresh.rename(path)


# the node


class Node:
    """The node with its proxy, and every generation of rules that it may hold."""

    def __init__(self, place: World, chance: random.Random) -> None:
        self._folder = place.folder / "case"
        self._manifests = self._folder / "manifests"
        self._drafts = self._folder / "drafts"
        self.namespace = place.namespace("node")
        self._chance = chance
        self._proxy: subprocess.Popen[bytes] | None = None
        self._config: ProxyConfig = configuration(parse_flags(self._flags(self._drafts)))
        self._host: dict[Family, HostFeatures] = {}
        self._written: dict[tuple[Family, str], set[str]] = {}
        self._wanted: dict[tuple[Family, str], str] = {}

    @contextlib.contextmanager
    def made(self, journal: Journal) -> Iterator[Node]:
        journal.tree(self._folder)
        for folder in (self._manifests, self._drafts):
            folder.mkdir(parents=True)
            put(folder / "steady.json", steady_objects())
        self._host = {family: run_in(self.namespace, _features, family) for family in Family}
        self._written = {(family, table): {NOTHING} for family in Family for table in TABLES}
        self.change()
        try:
            yield self
        finally:
            self.kill()

    def change(self) -> None:
        """Put the next generation in place."""
        objects = changing_objects(self._chance)
        put(self._drafts / "changing.json", objects)
        for family in Family:
            tables = normalised(rendered(self._config, "node", family, self._host[family]))
            tables["mangle"] = CANARY_ALONE
            for table in TABLES:
                self._written[family, table].add(tables[table])
                self._wanted[family, table] = tables[table]
        put(self._manifests / "changing.json", objects)

    def start(self) -> None:
        argv = [sys.executable, "-P", "-m", "kproxy", "proxy", *self._flags(self._manifests)]
        with (self._folder / "proxy.log").open("wb") as log:
            self._proxy = run_in(
                self.namespace, subprocess.Popen, argv, env=self._environment(), stdout=log, stderr=log
            )

    def wait_until_programmed(self) -> None:
        """Until what was there when it started is in the kernel."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_programmed():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.005)

    def wait_until_writing(self) -> None:
        """Until it has called a tool; or not, if it has nothing to write (any more)."""
        assert self._proxy is not None
        tasks = Path(f"/proc/{self._proxy.pid}/task")
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if any((task / "children").read_text() for task in tasks.iterdir()):
                    return

    def kill(self) -> None:
        """Kill the proxy, and wait until the tools that it leaves behind have ended by themselves."""
        if self._proxy is None:
            return
        self._proxy.send_signal(signal.SIGKILL)
        self._proxy.wait()
        self._proxy = None
        deadline = time.monotonic() + PATIENCE
        while find_in(self.namespace):
            assert time.monotonic() < deadline, "a tool goes on without the proxy"
            time.sleep(0.005)

    def check_every_table_is_whole(self) -> None:
        for (family, table), held in self._held().items():
            assert held in self._written[family, table], f"{family.value} {table} is no generation:\n{held}"

    def check_every_table_is_as_planned(self) -> None:
        for (family, table), held in self._held().items():
            wanted = self._wanted[family, table]
            assert held.splitlines() == wanted.splitlines(), f"{family.value} {table}\n{self.log()}"

    def log(self) -> str:
        return (self._folder / "proxy.log").read_text()

    def _held(self) -> dict[tuple[Family, str], str]:
        return {
            (family, table): text
            for family in Family
            for table, text in normalised(self.run(find_tools("legacy", family).save)).items()
        }

    def run(self, *argv: str) -> str:
        """The output of a program on the node."""
        how: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "env": self._environment()}
        return str(run_in(self.namespace, subprocess.run, argv, **how).stdout)

    def _is_programmed(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", 10256)
        with socket_in(self.namespace, socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(("127.0.0.1", 10256))
            except ConnectionRefusedError:
                return False
            connection.sock = sock
            connection.request("GET", f"/programmed?resourceVersion=1&timeoutSeconds={PATIENCE:g}")
            return connection.getresponse().status == 200

    def _flags(self, manifests: Path) -> list[str]:
        flags = {
            "manifests": str(manifests),
            "hostname-override": "node",
            "cluster-cidr": "10.77.0.0/24,fd77::/64",
            "iptables-variant": "legacy",
            "iptables-min-sync-period": "0s",
            "conntrack-max-per-core": "0",
            "oom-score-adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def _environment(self) -> dict[str, str]:
        lock = self._folder / "xtables.lock"
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "XTABLES_LOCKFILE": str(lock)}


def _features(family: Family) -> HostFeatures:
    return features(find_tools("legacy", family), make_counters(COUNTERS))


def normalised(saved: str) -> dict[str, str]:
    """Each table's text without remarks, counters and the kernel's own chains where nothing of ours is in them."""
    tables = dict.fromkeys(TABLES, NOTHING)
    for text in re.findall(r"^\*\w+\n(?:.*\n)*?COMMIT\n", saved, re.MULTILINE):
        lines = [re.sub(r"\[\d+:\d+\]", "[0:0]", line) for line in text.splitlines()[:-1]]
        lines = [line.replace("--nfacct-name  ", "--nfacct-name ") for line in lines]  # the extension prints two blanks
        is_written = any(line.startswith((":KUBE-", "-A")) for line in lines)
        tables[lines[0][1:]] = "\n".join(lines) if is_written else NOTHING
    return tables


BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
CANARY_ALONE = "\n".join(
    ["*mangle", *(f":{chain} ACCEPT [0:0]" for chain in BUILT_IN), ":KUBE-PROXY-CANARY - [0:0]"],
)


# packets


class Traffic:
    """Clients of the Service that stays as it is, at work all the time."""

    def __init__(self, place: World) -> None:
        self._pods = [place.namespace("pod2"), place.namespace("pod3")]
        self._client = place.namespace("client")
        self._stop = threading.Event()
        self._is_over = threading.Event()
        self.failures: list[str] = []
        self.exchanges = 0

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """The pods answer."""
        selector = selectors.DefaultSelector()
        for pod in self._pods:
            for family in (socket.AF_INET, socket.AF_INET6):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    selector.register(_listener(pod, family, kind), selectors.EVENT_READ)
        thread = threading.Thread(target=self._serve, args=(selector,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            selector.close()

    def _serve(self, selector: selectors.BaseSelector) -> None:
        while not self._stop.is_set():
            for key, _ in selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock.type == socket.SOCK_DGRAM:
                    text, source = sock.recvfrom(100)
                    sock.sendto(text, source)
                elif key.data == "connection":
                    if text := sock.recv(100):
                        sock.sendall(text)
                    else:
                        selector.unregister(sock)
                        sock.close()
                else:
                    selector.register(sock.accept()[0], selectors.EVENT_READ, "connection")

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Connections and flows that live long, and new ones all the time."""
        targets = [
            *((address, 80) for address in STEADY.values()),
            *((address, NODE_PORT) for address in NODE.values()),
        ]
        lasting = [(to, self._connected(to, kind)) for to in targets for kind in _KINDS for _ in range(2)]
        thread = threading.Thread(target=self._flow, args=(targets, lasting))
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()
            for _, sock in lasting:
                sock.close()

    def _flow(self, targets: list[tuple[str, int]], lasting: list[tuple[tuple[str, int], socket.socket]]) -> None:
        while not self._is_over.wait(0.005) and not self.failures:
            for to, sock in lasting:
                self._try(f"established {_KINDS[sock.type]} to {to}", lambda sock=sock: self._exchange(sock))
            for to in targets:
                for kind, name in _KINDS.items():
                    self._try(f"new {name} to {to}", lambda to=to, kind=kind: self._once(to, kind))

    def _try(self, what: str, do: Callable[[], None]) -> None:
        try:
            do()
        except (OSError, ValueError) as error:
            self.failures.append(f"{what} after {self.exchanges} exchanges: {error}")

    def _once(self, to: tuple[str, int], kind: int) -> None:
        with self._connected(to, kind) as sock:
            self._exchange(sock)

    def _connected(self, to: tuple[str, int], kind: int) -> socket.socket:
        sock = socket_in(self._client, socket.AF_INET6 if ":" in to[0] else socket.AF_INET, kind)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(to)
        except OSError:
            sock.close()
            raise
        return sock

    def _exchange(self, sock: socket.socket) -> None:
        text = os.urandom(8)
        sock.send(text)
        if sock.recv(100) != text:
            raise ValueError("another answer")
        if sock.type == socket.SOCK_STREAM:
            again = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), _TOTAL_RETRANS)[
                0
            ]
            if again:
                raise ValueError(f"{again} packets had to be sent again")
        self.exchanges += 1


_KINDS = {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}
_TOTAL_RETRANS = 100
"""Where struct tcp_info has tcpi_total_retrans; the first SYN's are counted, too."""


def _listener(pod: Namespace, family: int, kind: int) -> socket.socket:
    sock = socket_in(pod, family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", PORT))
    if kind == socket.SOCK_STREAM:
        sock.listen(100)
    return sock


@contextlib.contextmanager
def at_work(prefix: str, chance: random.Random) -> Iterator[tuple[Node, Traffic, float]]:
    """The node, the traffic through it, and how many seconds its proxy took to start."""
    with world(prefix) as place, contextlib.ExitStack() as opened:
        journal = place.journal()
        opened.callback(journal.close)
        build(topology(place.prefix), journal, place.private)
        node = opened.enter_context(Node(place, chance).made(journal))
        traffic = Traffic(place)
        opened.enter_context(traffic.served())
        node.start()
        started = time.monotonic()
        node.wait_until_programmed()
        seconds = time.monotonic() - started
        opened.enter_context(traffic.flowing())
        yield node, traffic, seconds


def test_killed_at_any_moment_it_leaves_whole_tables_and_untouched_services() -> None:
    print(f"KPROXY_SEED={SEED}, {ROUNDS} rounds")  # noqa: T201 - shown when it fails
    chance = random.Random(SEED)
    with at_work("killed", chance) as (node, traffic, start_seconds):
        for _ in range(ROUNDS):
            node.check_every_table_is_as_planned()
            for _ in range(chance.randint(1, 3)):
                node.change()
                time.sleep(chance.uniform(0, 0.05))
            if chance.random() < 0.5:
                node.wait_until_writing()
                time.sleep(chance.uniform(0, 0.02))
            node.kill()
            node.check_every_table_is_whole()
            if chance.random() < 0.5:
                node.start()
                time.sleep(chance.uniform(0, 1.2 * start_seconds))
                node.kill()
                node.check_every_table_is_whole()
            assert not traffic.failures
            node.start()
            node.wait_until_programmed()
        node.check_every_table_is_as_planned()
        assert not traffic.failures
        assert traffic.exchanges > 10 * ROUNDS


def test_a_table_that_is_not_whole_and_a_lost_packet_are_noticed() -> None:
    with at_work("killedno", random.Random(1)) as (node, traffic, _):
        node.check_every_table_is_whole()
        node.run("iptables-legacy", "-t", "nat", "-D", "KUBE-SERVICES", "1")
        with pytest.raises(AssertionError, match="nat is no generation"):
            node.check_every_table_is_whole()
        assert not traffic.failures
        node.run("iptables-legacy", "-I", "FORWARD", "-j", "DROP")
        time.sleep(0.3)
        node.run("iptables-legacy", "-D", "FORWARD", "-j", "DROP")
        deadline = time.monotonic() + PATIENCE
        while not traffic.failures and time.monotonic() < deadline:
            time.sleep(0.05)
        assert traffic.failures
