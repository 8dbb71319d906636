"""Much at once, and bad luck: a thousand endpoints, 200 ports, objects that vanish during a sync, half a file.

One node proxy lives through all of it; every claim is made with connections of both families.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from netns_world import world
from udp_world import CLUSTER_IP, NODE, UdpWorld, node_object

from netns.namespace import run_in, socket_in

pytestmark = pytest.mark.root

ANYWHERE = {4: "10.99.0.0/16", 6: "fd99::/64"}
"""All addresses here are pod A's: a thousand endpoints need no thousand namespaces."""
WAY = {4: "10.77.0.2", 6: "fd77::2"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 8080
PATIENCE = 60.0

SLOW_TOOL = """#!/bin/sh
# takes its time while there is a file that says so
if [ -e {folder}/hold ]; then
  : > {folder}/held
  while [ -e {folder}/hold ]; do sleep 0.02; done
fi
exec {real} "$@"
"""


class Node(UdpWorld):
    """The node, whose manifests are many files, and whose iptables-restore can be held up."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tools = folder
        self._tokens = itertools.count()
        for tool in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
            script = folder / tool
            script.write_text(SLOW_TOOL.format(folder=folder, real=shutil.which(tool)))
            script.chmod(0o755)

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PATH": f"{self.tools}:{os.environ['PATH']}"}

    def route(self) -> None:
        pod = self.namespace("pod2")
        for version, network in ANYWHERE.items():
            self.on_node("ip", f"-{version}", "route", "add", network, "via", WAY[version], "dev", "pod2", "onlink")
            local = ["ip", f"-{version}", "route", "add", "local", network, "dev", "lo"]
            run_in(pod, subprocess.run, local, check=True)

    def put(self, name: str, *objects: dict[str, Any]) -> None:
        """Puts a file in place, whole."""
        fresh = self.manifests / f".{name}"
        fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        fresh.rename(self.manifests / name)

    def saved(self, version: int) -> str:
        """The tables of a family."""
        return self.on_node("iptables-legacy-save" if version == 4 else "ip6tables-legacy-save")

    def chains(self, version: int, prefix: str) -> int:
        """How many chains of ours there are."""
        return sum(line.startswith(f":{prefix}") for line in self.saved(version).splitlines())

    def reach(self, address: str, port: int, listener: socket.socket, seconds: float = 8.0) -> str:
        """Connects from the client; at which of its addresses the pod was reached, or "refused" or "silence".

        A refusal that comes while connect() still sends is only taken note of when the SYN is sent again, after 1 s.
        """
        with closing(socket_in(self.namespace("client"), FAMILIES[version_of(address)], socket.SOCK_STREAM)) as client:
            client.settimeout(seconds)
            try:
                client.connect((address, port))
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silence"
            token = str(next(self._tokens)).encode()
            client.sendall(token)
            while True:
                with closing(listener.accept()[0]) as served:
                    served.settimeout(PATIENCE)
                    with suppress(ConnectionResetError):  # one that was given up just as it came about
                        if served.recv(100) == token:
                            return str(served.getsockname()[0]).removeprefix("::ffff:")


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def until(check: Callable[[], bool], node: Node) -> None:
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)


def listening(node: Node, kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket of pod A's, at all its addresses of both families."""
    made = socket_in(node.namespace("pod2"), socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the test before may linger
    made.bind(("::", port))
    made.settimeout(PATIENCE)
    if kind is socket.SOCK_STREAM:
        made.listen(64)
    return made


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with world("limit") as place, Node(tmp_path_factory.mktemp("tools"), place).built() as made:
        assert isinstance(made, Node)
        made.route()
        made.put("node.json", node_object())
        made.start()
        yield made


@pytest.fixture
def listener(node: Node) -> Iterator[socket.socket]:
    with closing(listening(node, socket.SOCK_STREAM, PORT)) as made:
        yield made


@contextmanager
def files(node: Node, **contents: list[dict[str, Any]]) -> Iterator[None]:
    """Files that are there for the time of a test."""
    try:
        for name, objects in contents.items():
            node.put(f"{name}.json", *objects)
        yield
    finally:
        for path in node.manifests.iterdir():
            if path.name != "node.json":
                path.unlink()


def service(name: str, number: int, ports: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    addresses = [CLUSTER_IP[version].format(number) for version in (4, 6)]
    ports = ports or [{"name": "http", "port": 80}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort" if "nodePort" in ports[0] else "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
        },
    }


def slice_(
    name: str, version: int, addresses: list[str], *, number: int = 1, ports: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-v{version}-{number}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": f"IPv{version}",
        "ports": ports or [{"name": "http", "port": PORT}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def small(name: str, number: int) -> list[dict[str, Any]]:
    """A Service with one endpoint for each family, of which the last number is the Service's."""
    return [
        service(name, number),
        slice_(name, 4, [f"10.99.1.{number}"]),
        slice_(name, 6, [f"fd99::1:{number:x}"]),
    ]


def check_small(node: Node, listener: socket.socket, number: int) -> None:
    for version, wanted in ((4, f"10.99.1.{number}"), (6, f"fd99::1:{number:x}")):
        address = CLUSTER_IP[version].format(number)
        until(lambda address=address, wanted=wanted: node.reach(address, 80, listener, 0.3) == wanted, node)  # type: ignore[misc]


def test_a_thousand_endpoints(node: Node, listener: socket.socket) -> None:
    """For IPv4 in one slice, which the API just allows; for IPv6 in ten."""
    all_of = {
        4: [f"10.99.{2 + number // 250}.{number % 250}" for number in range(1, 1001)],
        6: [f"fd99::2:{number:x}" for number in range(1, 1001)],
    }
    sixes = [slice_("many", 6, all_of[6][at : at + 100], number=at) for at in range(0, 1000, 100)]
    with files(node, many=[service("many", 20), slice_("many", 4, all_of[4]), *sixes]):
        for version in (4, 6):
            until(lambda version=version: node.chains(version, "KUBE-SEP-") == 1000, node)  # type: ignore[misc]
            address = CLUSTER_IP[version].format(20)
            seen = Counter(node.reach(address, 80, listener) for _ in range(300))
            assert not seen.keys() - set(all_of[version])
            assert len(seen) > 200, "of 300 connections to 1,000 endpoints, 259 are to different ones, give or take 6"

        last = [slice_("many", version, all_of[version][-1:]) for version in (4, 6)]
        node.put("many.json", service("many", 20), *last)
        for version in (4, 6):
            until(lambda version=version: node.chains(version, "KUBE-SEP-") == 1, node)  # type: ignore[misc]
            assert node.reach(CLUSTER_IP[version].format(20), 80, listener) == all_of[version][-1]


def test_two_hundred_ports(node: Node) -> None:
    """Each leads to its own port of the pod, by the cluster IP and by its node port, in both families."""
    protocols = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
    rows = [(name, index, 20_000 + index) for name in protocols for index in range(100)]
    ports = [
        {"name": f"{name.lower()}-{index}", "protocol": name, "port": 1000 + index, "nodePort": 30_100 + index}
        for name, index, _ in rows
    ]
    targets = [{"name": f"{name.lower()}-{index}", "protocol": name, "port": to} for name, index, to in rows]
    # the pod's own addresses: an answer to a datagram leaves from there, whichever it was asked at
    places = [slice_("wide", version, [WAY[version]], ports=targets) for version in (4, 6)]
    with ExitStack() as opened, files(node, wide=[service("wide", 21, ports), *places]):
        until(lambda: [node.chains(version, "KUBE-SVC-") for version in (4, 6)] == [200, 200], node)
        client = node.namespace("client")
        for name, index, to in rows:
            kind = protocols[name]
            listener = opened.enter_context(closing(listening(node, kind, to)))
            for version in (4, 6):
                for place in ((CLUSTER_IP[version].format(21), 1000 + index), (NODE[version], 30_100 + index)):
                    with closing(socket_in(client, FAMILIES[version], kind)) as dialled:
                        dialled.settimeout(10.0)
                        dialled.connect(place)
                        dialled.send(b"?")
                        if kind is socket.SOCK_STREAM:
                            listener.accept()[0].close()
                        else:
                            listener.sendto(b"!", listener.recvfrom(10)[1])
                            assert dialled.recv(10) == b"!"


def test_objects_that_vanish_while_a_sync_runs(node: Node, listener: socket.socket) -> None:
    with files(node, stays=small("stays", 30), goes=small("goes", 31), changes=small("changes", 32)):
        for number in (30, 31, 32):
            check_small(node, listener, number)
        (node.tools / "hold").touch()
        try:
            node.put("changes.json", *small("changes", 32)[:1], *small("changes", 33)[1:])
            node.put("comes.json", *small("comes", 34))
            until((node.tools / "held").exists, node)
            # the sync now works on what is taken away here
            for name in ("goes", "changes", "comes", "node"):
                (node.manifests / f"{name}.json").unlink()
            node.put("changes.json", *small("changes", 32)[:1])
            time.sleep(0.2)
        finally:
            (node.tools / "hold").unlink()
        check_small(node, listener, 30)
        for version in (4, 6):
            until(lambda version=version: node.chains(version, "KUBE-SEP-") == 1, node)  # type: ignore[misc]
            assert not {name for name in ("goes", "comes") if f"default/{name}:" in node.saved(version)}
            empty = CLUSTER_IP[version].format(32)
            assert node.reach(empty, 80, listener) == "refused"
        check_small(node, listener, 30)
    node.put("node.json", node_object())
    log = node.log()
    assert "Traceback" not in log
    assert "ERROR" not in log


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_half_a_file(node: Node, listener: socket.socket, suffix: str) -> None:
    """What was read before stays, whatever else is there works, and the half is told once; whole, it counts."""
    base = {"yaml": 40, "json": 44}[suffix]
    whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": small("late", base)}, indent=1)
    name = f"late.{suffix}"
    with files(node, other=small("other", base + 1)):
        check_small(node, listener, base + 1)
        (node.manifests / name).write_text(whole[: len(whole) // 2])
        until(lambda: f"/{name}:" in node.log(), node)
        node.put("third.json", *small("third", base + 2))
        for number in (1, 2):
            check_small(node, listener, base + number)

        (node.manifests / name).write_text(whole)
        check_small(node, listener, base)
        (node.manifests / name).write_text(whole[:-20])
        until(lambda: node.log().count(f"/{name}:") == 2, node)
        node.put("fourth.json", *small("fourth", base + 3))
        for number in range(4):
            check_small(node, listener, base + number)
        assert node.log().count(f"/{name}:") == 2
