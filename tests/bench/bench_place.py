"""Where it is measured: a client, what answers for all endpoints, and three ways between them through a node each.

On one node the proxy runs; on the second a hand-written nftables table with a single map; on the third nothing, so that
connections go to endpoints themselves. Nothing of the host's own network is touched.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bench_objects import PORT, TARGET_PORT, Cluster, Flip

from netns.build import build, tear_down
from netns.journal import Journal
from netns.namespace import Namespace, named, run_in, socket_in
from netns.topology import AddressSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec

CHECKOUT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PATIENCE = 180.0
"""Seconds until something counts as not happening."""
WAYS = ("proxy", "map", "bare")
ONE_MAP_SERVICES = ipaddress.IPv4Network("10.104.0.0/13")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, or ports run out
_TICKS = os.sysconf("SC_CLK_TCK")


class Late(Exception):
    """Something did not happen in time."""


class Place:
    """The namespaces and a folder, all of it gone at the end.

    Args:
        name: beginning of the namespaces' names; two places of one name cannot be at once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.folder = Path(f"/run/kproxy-{name}")
        self._private = self.folder / "netns"

    @contextlib.contextmanager
    def built(self) -> Iterator[Place]:
        """The place, from nothing to nothing."""
        self._take_down()
        self.folder.mkdir(mode=0o700)
        journal = Journal(self.folder / "journal", "bench")
        try:
            journal.tree(self.folder / "work")
            (self.folder / "work").mkdir()
            build(self._topology(), journal, self._private)
            journal.close()
            local = ["ip", "route", "add", "local", "10.128.0.0/9", "dev", "lo"]
            self.run("endpoints", local)
            with self.process("endpoints", [str(HERE / "answering.py"), str(TARGET_PORT)]):
                yield self
        finally:
            self._take_down()

    def _take_down(self) -> None:
        if (self.folder / "journal").exists():
            journal = Journal(self.folder / "journal", "bench")
            tear_down(journal, grace=0)
            journal.close()
        for folder in (self._private, self.folder):
            if folder.exists():
                folder.rmdir()

    def _topology(self) -> Topology:
        client, endpoints = self._full("client"), self._full("endpoints")
        namespaces = [NamespaceSpec(client, Role.CLIENT), NamespaceSpec(endpoints, Role.CLIENT)]
        veths, addresses, routes = [], [], []
        for number, way in enumerate(WAYS):
            node = self._full(way)
            namespaces.append(NamespaceSpec(node, Role.NODE))
            for net, far, port in (
                (f"10.250.{number}", client, "client"),
                (f"10.251.{number}", endpoints, "endpoints"),
            ):
                veths.append(VethSpec(End(node, port), End(far, way)))
                addresses += [AddressSpec(node, port, f"{net}.1/24"), AddressSpec(far, way, f"{net}.2/24")]
            routes.append(RouteSpec(node, "10.128.0.0/9", f"10.251.{number}.2"))
            routes.append(RouteSpec(endpoints, f"10.250.{number}.0/24", f"10.251.{number}.1"))
        for to, number in (("10.96.0.0/13", 0), (str(ONE_MAP_SERVICES), 1), ("10.128.0.0/9", 2)):
            routes.append(RouteSpec(client, to, f"10.250.{number}.1"))
        alias = f"bench:{self._name}"
        return Topology(tuple(namespaces), tuple(veths), addresses=tuple(addresses), routes=tuple(routes), alias=alias)

    def _full(self, name: str) -> str:
        return f"{self._name}-{name}"

    def namespace(self, name: str) -> Namespace:
        """One of the namespaces: "client", "endpoints", or a way's node."""
        return named(self._full(name), self._private)

    @property
    def work(self) -> Path:
        """A folder for anything."""
        return self.folder / "work"

    def run(self, where: str, argv: list[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command to its end.

        Raises:
            Late: it does not end.
        """
        how = {"check": True, "env": self.environment(), "timeout": PATIENCE, **how}
        try:
            return run_in(self.namespace(where), lambda: subprocess.run(argv, **how))
        except subprocess.TimeoutExpired as error:
            raise Late(f"{argv[0]} takes longer than {PATIENCE:g} s") from error

    def environment(self) -> dict[str, str]:
        """What processes here are started with; the lock of iptables is their own."""
        return {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(CHECKOUT),
            "XTABLES_LOCKFILE": str(self.work / "xtables.lock"),
        }

    @contextlib.contextmanager
    def process(self, where: str, argv: list[str]) -> Iterator[subprocess.Popen[str]]:
        """A Python program that says "ready" when it is, and is told lines."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = run_in(self.namespace(where), lambda: subprocess.Popen([sys.executable, *argv], **pipes))  # type: ignore[call-overload]
        try:
            assert _out(started).readline() == "ready\n"
            yield started
        finally:
            started.kill()
            started.wait()
            for pipe in (started.stdin, started.stdout):
                pipe.close()


def _out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


class Replay:
    """The API server that replays a recording."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self.url = url

    def tell(self, *words: object) -> float:
        """Have events sent; returns when the last one was."""
        self.begin(*words)
        return self.answer()

    def begin(self, *words: object) -> None:
        """Have events sent, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """When the last of them was sent."""
        return float(_out(self._process).readline())


@contextlib.contextmanager
def replaying(place: Place, recording: Path) -> Iterator[Replay]:
    """The replay server of a recording."""
    path = place.work / "api.sock"
    path.unlink(missing_ok=True)
    with place.process("client", [str(HERE / "replay_server.py"), str(path), str(recording)]) as process:
        yield Replay(process, f"unix://{path}")
    path.unlink(missing_ok=True)


class Proxy:
    """A node proxy that runs, and what can be asked of it."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], started: float) -> None:
        self._node = place.namespace("proxy")
        self._log = place.work / "proxy.log"
        self.process = process
        self.started = started
        self._connection = http.client.HTTPConnection("127.0.0.1", 10256)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def expect(self, version: int) -> None:
        """Ask to be told when the kernel holds a resourceVersion; ``told`` waits for the answer."""
        if self._connection.sock is None:
            self._connection.sock = self._socket()
        self._connection.request("GET", f"/programmed?resourceVersion={version}&timeoutSeconds={PATIENCE:g}")

    def told(self) -> int:
        """The resourceVersion that the kernel holds, as soon as it is the expected one."""
        return int(json.loads(self._connection.getresponse().read())["resourceVersion"])

    def wait_for(self, version: int) -> float:
        """Wait until the kernel holds a resourceVersion; returns the moment.

        Raises:
            Late: it does not come.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                self.expect(version)
                held = self.told()
            except (ConnectionError, http.client.HTTPException):
                self._connection.close()
                if self.process.poll() is not None:
                    raise Late(f"the proxy has ended: {self._log.read_text()[-500:]}") from None
                time.sleep(0.002)
                continue
            if held >= version:
                return time.monotonic()
        raise Late(f"resourceVersion {version} is not programmed after {PATIENCE:g} s")

    def _socket(self) -> socket.socket:
        made = socket_in(self._node, socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(PATIENCE)
        try:
            made.connect(("127.0.0.1", 10256))
        except OSError:
            made.close()
            raise
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def cpu_seconds(self) -> float:
        """Processor time so far, of the tools that it ran as well."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS

    def peak_megabytes(self) -> float:
        """The most memory that it held so far (MB, the proxy alone)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


@contextlib.contextmanager
def running(place: Place, flags: dict[str, str]) -> Iterator[Proxy]:
    """A node proxy on the first node; what it wrote is taken away at the end.

    Args:
        place: where.
        flags: beside those that all have.
    """
    flags = {
        "hostname-override": "node1",
        "cluster-cidr": "10.128.0.0/9",
        "conntrack-max-per-core": "0",
        "iptables-min-sync-period": "0s",
        "oom-score-adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        **flags,
    }
    argv = [sys.executable, "-P", "-m", "kproxy", "proxy", *(f"--{name}={flags[name]}" for name in flags)]
    with (place.work / "proxy.log").open("wb") as log:
        how = {"env": place.environment(), "stdout": log, "stderr": log}
        started = time.monotonic()
        process = run_in(place.namespace("proxy"), lambda: subprocess.Popen(argv, **how))  # type: ignore[call-overload]
    proxy = Proxy(place, process, started)
    try:
        yield proxy
    finally:
        proxy.close()
        process.send_signal(signal.SIGKILL)
        process.wait()
        empty(place)


def empty(place: Place) -> None:
    """Take everything out of the first node's tables, of both kinds of iptables and of nftables."""
    for table in ("mangle", "filter", "nat"):
        place.run("proxy", ["iptables-legacy-restore"], input=f"*{table}\nCOMMIT\n", text=True)
        place.run("proxy", ["ip6tables-legacy-restore"], input=f"*{table}\nCOMMIT\n", text=True)
    place.run("proxy", ["nft", "flush", "ruleset"])


# connections


def connect(address: str, port: int = PORT, seconds: float = 5.0) -> str:
    """Which endpoint answers; empty when nobody does. To be called inside the client's namespace."""
    with socket.socket() as sock:
        sock.settimeout(seconds)
        try:
            sock.connect((address, port))
            return sock.recv(100).decode()
        except OSError:
            return ""


def flip_seconds(flip: Flip, begin: Callable[[], None], answer: Callable[[], float]) -> float:
    """Seconds from a change to the first connection that comes to a new endpoint. Inside the client's namespace.

    Args:
        flip: what changes.
        begin: has the change written.
        answer: when it was.

    Raises:
        Late: no connection comes there.
    """
    begin()
    deadline = time.monotonic() + PATIENCE
    while connect(flip.cluster_ip, seconds=1.0) not in flip.endpoints:
        if time.monotonic() > deadline:
            raise Late(f"{flip.cluster_ip} does not lead to a new endpoint")
    return time.monotonic() - answer()


def handshake_seconds(targets: Sequence[tuple[str, int]], rounds: int) -> list[list[float]]:
    """How long TCP handshakes with several targets take, in turns. Inside the client's namespace."""
    taken: list[list[float]] = [[] for _ in targets]
    for number in range(rounds):
        for offset in range(len(targets)):
            which = (number + offset) % len(targets)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.settimeout(None)
                started = time.perf_counter()
                sock.connect(targets[which])
                taken[which].append(time.perf_counter() - started)
    return taken


def one_map(cluster: Cluster) -> str:
    """A hand-written table: one map from frontends to endpoints and a rule that uses it, nothing else."""
    pairs = (
        f"{ONE_MAP_SERVICES.network_address + number + 1} . tcp . {PORT} : {cluster.address(number, 0)} . {TARGET_PORT}"
        for number in range(cluster.services)
    )
    return (
        "table ip bench {\n"
        "map endpoints { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service\n"
        f"elements = {{ {', '.join(pairs)} }} }}\n"
        "chain prerouting { type nat hook prerouting priority dstnat; policy accept;\n"
        "dnat ip to ip daddr . meta l4proto . th dport map @endpoints\n"
        "}\n"
        "}\n"
    )
