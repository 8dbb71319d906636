"""A node with two pods, a client and an outside server, the node proxy on it, and clients that keep their UDP ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from netns_world import World, pods_on_a_node

from netns.build import build
from netns.namespace import Namespace, run_in, socket_in
from netns.topology import AddressSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec

CHECKOUT = Path(__file__).parents[2]
TARGETS = (5353, 5354)
"""What pods listen on."""
OTHERS_PORT = 32053
"""What the outside server listens on: also the number of a node port."""
PATIENCE = 30.0
"""Seconds until something counts as not happening."""
SILENCE = 0.4
"""Seconds without an answer that count as none, where none is expected."""
NOBODY = "nobody"

NODE = {4: "10.78.0.1", 6: "fd78::1"}
OUTSIDE = {4: "10.79.0.2", 6: "fd79::2"}
CLUSTER_IP = {4: "10.96.0.{}", 6: "fd00:10:96::{:x}"}
EXTERNAL_IP = {4: "198.51.100.{}", 6: "2001:db8:51::{:x}"}
PODS = {"A": {4: "10.77.0.2", 6: "fd77::2"}, "B": {4: "10.77.0.3", 6: "fd77::3"}}
_NAMESPACE = {"A": "pod2", "B": "pod3"}

WITHOUT_RECONCILER = (
    "from kproxy.proxy.conntrack import ConntrackReconciler; "
    "ConntrackReconciler.reconcile = lambda self, changed: 0; "
    "from kproxy.cli.main import main; main()"
)
"""`kproxy` whose UDP flows nobody looks after: what tests of flows have to fail with."""


def topology(prefix: str) -> Topology:
    """Pods behind a node; a client with routes to everything; an outside that the node's default route leads to."""
    node, client, outside = f"{prefix}-node", f"{prefix}-client", f"{prefix}-outside"
    pods = pods_on_a_node(prefix)
    addresses = [*pods.addresses]
    routes = [*pods.routes]
    for network, bits, everything in (("10.7{}.0.", 24, "0.0.0.0/0"), ("fd7{}::", 64, "::/0")):
        to_client, to_outside = network.format(8), network.format(9)
        for ns, port, address in (
            (node, "client", f"{to_client}1"),
            (client, "eth0", f"{to_client}2"),
            (node, "outside", f"{to_outside}1"),
            (outside, "eth0", f"{to_outside}2"),
        ):
            addresses.append(AddressSpec(ns, port, f"{address}/{bits}"))
        routes.append(RouteSpec(client, everything, f"{to_client}1", "eth0"))
        routes.append(RouteSpec(node, everything, f"{to_outside}2", "outside"))
    return Topology(
        (*pods.namespaces, NamespaceSpec(client, Role.CLIENT), NamespaceSpec(outside, Role.CLIENT)),
        (
            *pods.veths,
            VethSpec(End(node, "client"), End(client, "eth0")),
            VethSpec(End(node, "outside"), End(outside, "eth0")),
        ),
        addresses=tuple(addresses),
        routes=tuple(routes),
        alias=f"test:{prefix}",
    )


class UdpWorld:
    """The network with its servers; the proxy is started when it is asked for."""

    def __init__(self, place: World) -> None:
        self._place = place
        self.manifests = place.folder / "case" / "manifests"
        self._proxy: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._generation = 0
        self._stop = threading.Event()
        self._clients: dict[tuple[str, int], socket.socket] = {}

    @contextlib.contextmanager
    def built(self) -> Iterator[UdpWorld]:
        journal = self._place.journal()
        with contextlib.ExitStack() as opened:
            opened.callback(journal.close)
            journal.tree(self.manifests.parent)
            self.manifests.mkdir(parents=True)
            build(topology(self._place.prefix), journal, self._place.private)
            opened.callback(self.close)
            for name, namespace in _NAMESPACE.items():
                for port in TARGETS:
                    self._serve(self.namespace(namespace), port, f"{name}:{port}".encode())
            self._serve(self.namespace("outside"), OTHERS_PORT, b"")
            yield self

    def close(self) -> None:
        self._stop.set()
        for client in self._clients.values():
            client.close()
        self.kill()

    def namespace(self, name: str) -> Namespace:
        return self._place.namespace(name)

    def on_node(self, *argv: str) -> str:
        """The output of a program on the node."""
        done = run_in(
            self.namespace("node"), subprocess.run, argv, capture_output=True, text=True, env=self._environment()
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    # the proxy

    def start(self, *, has_reconciler: bool = True) -> None:
        self._command = ["-m", "kproxy"] if has_reconciler else ["-c", WITHOUT_RECONCILER]
        flags = {
            "manifests": str(self.manifests),
            "hostname-override": "node",
            "cluster-cidr": "10.77.0.0/24,fd77::/64",
            "iptables-variant": "legacy",
            "iptables-min-sync-period": "0s",
            "conntrack-max-per-core": "0",
            "oom-score-adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        }
        arguments = [sys.executable, "-P", *self._command, "proxy", *(f"--{key}={flags[key]}" for key in flags)]
        with (self._place.folder / "case" / "proxy.log").open("ab") as log:
            self._proxy = run_in(
                self.namespace("node"), subprocess.Popen, arguments, env=self._environment(), stdout=log, stderr=log
            )
        self._generation = 1
        self._wait()

    def kill(self) -> None:
        if self._proxy is not None:
            self._proxy.send_signal(signal.SIGKILL)
            self._proxy.wait()
            self._proxy = None

    def write(self, objects: Iterable[dict[str, Any]]) -> None:
        """Puts all objects in the place of all others, and waits until the kernel holds them if the proxy runs."""
        fresh = self.manifests / ".objects"
        fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [node_object(), *objects]}))
        fresh.rename(self.manifests / "objects.json")
        if self._proxy is not None:
            self._generation += 1
            self._wait()

    def log(self) -> str:
        return (self._place.folder / "case" / "proxy.log").read_text()

    def _environment(self) -> dict[str, str]:
        lock = self._place.folder / "case" / "xtables.lock"
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "XTABLES_LOCKFILE": str(lock)}

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._programmed(PATIENCE)
                assert int(answer["resourceVersion"]) >= self._generation, f"{answer}\n{self.log()}"
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            else:
                return

    def _programmed(self, seconds: float) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", 10256)
        with socket_in(self.namespace("node"), socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect(("127.0.0.1", 10256))
            connection.sock = sock
            connection.request("GET", f"/programmed?resourceVersion={self._generation}&timeoutSeconds={seconds}")
            return json.loads(connection.getresponse().read())

    # packets

    def ask(self, key: str, port: int, address: str, to: int, expected: str = "") -> str:
        """Who answers a datagram from the client's fixed ``port``: a pod and its port, "refused" or `NOBODY`.

        Args:
            key: tells apart clients that keep their sockets.
            port: the client's port.
            address: where the datagram goes ...
            to: ... and to which port.
            expected: who should answer; decides how long silence is waited out.
        """
        client = self._clients.get((key, port))
        if client is None:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            client = self._clients[key, port] = socket_in(self.namespace("client"), family, socket.SOCK_DGRAM)
            client.bind(("", port))
        client.settimeout(SILENCE if expected == NOBODY else PATIENCE)
        with contextlib.suppress(OSError):  # an error that an earlier datagram brought about
            client.connect((address, to))
        try:
            client.send(b"who are you?")
            return client.recv(100).decode()
        except ConnectionRefusedError:
            return "refused"
        except OSError:  # silence, or no way there
            return NOBODY

    def _serve(self, namespace: Namespace, port: int, name: bytes) -> None:
        """Answers datagrams with a name, or if it is empty, with the source port that is seen."""
        chosen = selectors.DefaultSelector()
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            server = socket_in(namespace, family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind((everywhere, port))
            chosen.register(server, selectors.EVENT_READ)

        def serve() -> None:
            while not self._stop.is_set():
                for key, _ in chosen.select(0.1):
                    _, source = key.fileobj.recvfrom(100)
                    key.fileobj.sendto(name or str(source[1]).encode(), source)
            for key in list(chosen.get_map().values()):
                key.fileobj.close()
            chosen.close()

        threading.Thread(target=serve, daemon=True).start()


def node_object() -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address} for address in NODE.values()]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}, "status": {"addresses": addresses}}


def service(name: str, number: int, version: int, *, protocol: str = "UDP", **port: Any) -> dict[str, Any]:
    """A Service with one port, 53 unless ``port`` says something else."""
    external = port.pop("external_ip", None)
    cluster_ip = CLUSTER_IP[version].format(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort" if "nodePort" in port else "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": [f"IPv{version}"],
            "ports": [{"name": "dns", "protocol": protocol, "port": 53, "targetPort": 5353, **port}],
            **({"externalIPs": [external]} if external else {}),
        },
    }


def endpoints(
    name: str, version: int, *pods: str, port: int = 5353, protocol: str = "UDP", draining: str = ""
) -> dict[str, Any]:
    """The slice of a Service; a pod named in ``draining`` is terminating and still serves."""
    conditions = {
        pod: {"ready": pod not in draining, "serving": True, "terminating": pod in draining}
        for pod in (*pods, *draining)
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": f"IPv{version}",
        "ports": [{"name": "dns", "protocol": protocol, "port": port}],
        "endpoints": [
            {"addresses": [PODS[pod][version]], "conditions": said, "nodeName": "node"}
            for pod, said in conditions.items()
        ],
    }
