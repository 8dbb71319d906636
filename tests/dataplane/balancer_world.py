"""A lab with a Service behind each kind of load balancer, what dies in it, and a client that asks without pause."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from lab_support import apply, pod, until

from kproxy.api.kinds import POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers import record
from kproxy.cluster.status import LabStatus, LoadBalancedService
from kproxy.testing.labs import Lab
from netns.namespace import named, socket_in

PACE = 0.04
"""Seconds from one request to the next."""
PATIENCE = 0.9
"""Seconds after which a request counts as lost. Below the first retransmission, which would hide the loss."""
JUST_NOW = 0.1
"""Seconds that a request may be under way without being doubted."""
DEADLINE = 40.0

# node3, which has no pod, comes first for the addresses of `l2`, node1 for that of `l2-local` (`serving.preference`).
ADDRESSES = {
    "l2": "198.51.100.10,2001:db8:198::5",
    "l2-local": "198.51.100.22",
    "nlb": "198.51.100.30",
    "nlb-local": "198.51.100.31",
    "classic": "198.51.100.32",
    "classic-local": "198.51.100.33",
}


def services() -> list[Object]:
    """One Service for each kind and policy, all with the same pods; ``l2`` in both families."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "annotations": {
                    "kproxy.dev/load-balancer": name.removesuffix("-local"),
                    "kproxy.dev/load-balancer-ips": addresses,
                },
            },
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": "web"},
                "ports": [{"port": 80}],
                "externalTrafficPolicy": "Local" if name.endswith("-local") else "Cluster",
                "ipFamilyPolicy": "RequireDualStack" if "," in addresses else "SingleStack",
            },
        }
        for name, addresses in ADDRESSES.items()
    ]


def fill(lab: Lab) -> None:
    """Pods on node1 and node2, none on node3, behind all the Services; returns when every one of these is served."""
    pods = [pod(f"web-{number}", ports=(80,), nodeName=f"node{number}") for number in (1, 2)]
    apply(lab.client, *pods, *services())
    healed(lab)


def healed(lab: Lab) -> None:
    """Waits until every Service is served as if nothing had ever been broken."""
    for name in ADDRESSES:
        until(lambda name=name: set(serving(lab, name).nodes) == able(name), f"{name} knows its nodes", DEADLINE)
    for name, first in (("l2", "node3"), ("l2-local", "node1")):
        wanted = dict.fromkeys(ADDRESSES[name].split(","), first)
        until(lambda name=name, wanted=wanted: serving(lab, name).announcers == wanted, f"{name} at {first}", DEADLINE)


def able(name: str) -> set[str]:
    """The nodes that may serve a Service when nothing is broken."""
    return {"node1", "node2"} if name.endswith("-local") else {"node1", "node2", "node3"}


def serving(lab: Lab, name: str) -> LoadBalancedService:
    """What the balancer says of a Service of the default namespace."""
    said = record.read(Layout(lab.name))
    found = [one for one in (said.services if said else ()) if one.service == f"default/{name}"]
    return found[0] if found else LoadBalancedService(f"default/{name}", "", "0", (), "", "", {}, ())


@dataclass(eq=False)
class Request:
    """One request; is_answered is None until it is answered or given up."""

    began: float
    is_answered: bool | None = None


@dataclass
class Steady:
    """Requests from the client to one address, one every `PACE` seconds, each with a connection of its own."""

    lab: Lab
    address: str
    requests: list[Request] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._start(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in list(self._threads):
            thread.join()

    def _start(self, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        while not self._stop.wait(PACE):
            self._start(self._ask)

    def _ask(self) -> None:
        request = Request(time.monotonic())
        self.requests.append(request)
        request.is_answered = ask(self.lab, self.address)

    def settled(self, moment: float) -> list[Request]:
        """The requests that began after a moment and have come to an end, in order."""
        after = [one for one in list(self.requests) if one.began > moment and one.is_answered is not None]
        return sorted(after, key=lambda one: one.began)

    def flows_again(self, moment: float, count: int = 20) -> bool:
        """Whether so many requests in a row were answered, up to a moment ago; one that still waits was not."""
        last = time.monotonic() - JUST_NOW
        latest = [one for one in list(self.requests) if moment < one.began < last][-count:]
        return len(latest) == count and all(one.is_answered for one in latest)


def ask(lab: Lab, address: str, place: str = "client", patience: float = PATIENCE) -> bool:
    """Whether the echo server behind an address answers a client, in time."""
    layout = Layout(lab.name)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(named(layout.netns(place), layout.namespaces), family, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        try:
            sock.connect((address, 80))
            sock.sendall(b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return sock.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


@contextmanager
def cut_off(lab: Lab, node: str) -> Iterator[None]:
    """The node's cable is out inside."""
    port = ["ip", "-n", f"{lab.name}-fabric", "link", "set", f"n-{node}"]
    subprocess.run([*port, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run([*port, "up"], check=True)


@contextmanager
def stopped(lab: Lab, role: str) -> Iterator[None]:
    """A process of the lab stands still inside: nothing that it would do is done."""
    pid = pid_of(lab.status, role)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def proxy_dead(lab: Lab, node: str) -> Iterator[None]:
    """The node's proxy is dead inside, and nobody starts it again."""
    pid = pid_of(lab.status, "proxy", node)
    with stopped(lab, "control-plane"):
        os.kill(pid, signal.SIGKILL)
        yield


def pid_of(status: LabStatus, role: str, where: str = "") -> int:
    """The process of that role."""
    (pid,) = [one.pid for one in status.processes if one.role == role and where in ("", one.where)]
    return pid


def kill_pod(client: Client, name: str) -> None:
    """Has a pod gone at once."""
    client.delete(POD, name, "default", grace_seconds=0)
