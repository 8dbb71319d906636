"""What the tests of netns share: a place that is emptied whatever happens, small networks, the look of the host."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netns.build import tear_down
from netns.journal import Journal
from netns.namespace import PUBLIC_DIR, Namespace, named, socket_in
from netns.topology import AddressSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec

ROOT = Path("/run/kproxy-tests")


@dataclass
class World:
    """A prefix for names and a folder for everything, of one test alone."""

    prefix: str
    folder: Path
    role: str = "test"

    @property
    def private(self) -> Path:
        return self.folder / "netns"

    @property
    def journal_path(self) -> Path:
        return self.folder / "journal"

    def journal(self, role: str = "test") -> Journal:
        return Journal(self.journal_path, role)

    def namespace(self, name: str) -> Namespace:
        return named(f"{self.prefix}-{name}", self.private)

    def leftovers(self) -> list[str]:
        """What is left of this world: names, mounts, files."""
        names = [str(path) for path in PUBLIC_DIR.glob(f"{self.prefix}-*")]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        files = [str(path) for path in self.folder.rglob("*") if path != self.private]
        return names + mounts + files


@contextmanager
def world(prefix: str) -> Iterator[World]:
    """A world that is taken down at the end, by a guard if we are killed, and by the next run if the guard is too."""
    prefix += os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    made = World(prefix, ROOT / prefix)
    take_down(made)
    made.folder.mkdir(mode=0o700, parents=True)
    lifeline, ours = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.setsid()
        os.close(ours)
        os.read(lifeline, 1)  # ends when nobody holds the other end any more
        take_down(made)
        os._exit(0)
    os.close(lifeline)
    try:
        yield made
    finally:
        os.close(ours)
        os.waitpid(guard, 0)


def take_down(made: World) -> None:
    if made.journal_path.exists():
        journal = made.journal()
        tear_down(journal, grace=0)
        journal.close()
    for folder in (made.private, made.folder):
        if folder.exists():
            folder.rmdir()


def pods_on_a_node(prefix: str, count: int = 2) -> Topology:
    """A node with routed pods behind it, IPv4 10.77.0.2.. and IPv6 fd77::2.., as the lab has them."""
    node = f"{prefix}-node"
    namespaces = [NamespaceSpec(node, Role.NODE)]
    veths, addresses, routes = [], [], []
    for number in range(2, 2 + count):
        pod, port = f"{prefix}-pod{number}", f"pod{number}"
        namespaces.append(NamespaceSpec(pod, Role.POD))
        veths.append(VethSpec(End(node, port), End(pod, "eth0")))
        for family in (("10.77.0.", 32, "0.0.0.0/0"), ("fd77::", 128, "::/0")):
            network, bits, everything = family
            addresses.append(AddressSpec(node, port, f"{network}1/{bits}"))
            addresses.append(AddressSpec(pod, "eth0", f"{network}{number}/{bits}"))
            routes.append(RouteSpec(node, f"{network}{number}/{bits}", dev=port))
            routes.append(RouteSpec(pod, everything, f"{network}1", "eth0", onlink=True))
    return Topology(
        tuple(namespaces), tuple(veths), addresses=tuple(addresses), routes=tuple(routes), alias=f"test:{prefix}"
    )


def reaches(source: Namespace, target: Namespace, address: str, size: int = 8, *, tries: int = 8) -> bool:
    """Whether a datagram with `size` bytes of payload, not to be cut in pieces, arrives within a second.

    It is sent again some times if it does not: the first one may get lost while links come up and neighbours meet.

    Raises:
        OSError: the kernel says at once that it does not (no route, too long).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(target, family, socket.SOCK_DGRAM) as server, socket_in(source, family, socket.SOCK_DGRAM) as client:
        server.bind((address, 0))
        server.settimeout(1)
        if family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        else:
            client.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO
            client.setsockopt(socket.IPPROTO_IPV6, 62, 1)  # IPV6_DONTFRAG
        for _ in range(tries):
            client.sendto(b"x" * size, (address, server.getsockname()[1]))
            with suppress(TimeoutError):
                return len(server.recv(65536)) == size
        return False


def host_network() -> dict[str, object]:
    """Links, addresses, routes and rules of the host's own network namespace, without what time alone changes."""
    commands = (
        ["link"],
        ["addr"],
        ["route", "show", "table", "all"],
        ["-6", "route", "show", "table", "all"],
        ["rule"],
        ["-6", "rule"],
    )
    return {" ".join(command): _stable(json.loads(_ip(*command) or "[]")) for command in commands}


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", "-j", *arguments], check=True, capture_output=True, text=True).stdout


def _stable(value: object) -> object:
    if isinstance(value, list):
        return [_stable(item) for item in value]
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if "life_time" not in key and key != "expires"}
    return value
