"""Whose address does the pod see? Every kind of client and frontend, both policies, protocols and families, by packets.

node1 has the only endpoint, ``web``, and a second pod ``near``; node3 has the pod ``far``; node2 has no pod. The
outside is routed to external addresses through node1 and to load balancer addresses through node2. Every case sends one
packet with an address and port of its own, and asserts source, destination, ports and TTL wherever it crosses a node,
that the answer comes from the address that was dialled, and which DNAT and SNAT rules counted it, read back from the
kernel.

What must come of it is written out by hand in ``EXPECTED``: no oracle, no plan.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxy.api.kinds import SERVICE
from kproxy.insight.oracle import host_port
from kproxy.insight.rule_counters import Rule, RuleReader, open_reader
from kproxy.testing.labs import Lab, fresh_lab
from kproxy.testing.packets import Packets, Seen

pytestmark = pytest.mark.root

CLUSTER = """
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
metadata: {name: unused}
spec:
  ipFamilies: [IPv4, IPv6]
  externalRoutes:
  - {to: 198.51.100.0/25, via: node1}
  - {to: 198.51.100.128/25, via: node2}
  - {to: "fd00:99:1::/64", via: node1}
  - {to: "fd00:99:2::/64", via: node2}
"""

POLICIES = ("Cluster", "Local")
NODE_PORTS = {"Cluster": 30080, "Local": 30081}
EXTERNAL = {("Cluster", 4): "198.51.100.1", ("Cluster", 6): "fd00:99:1::1"}
EXTERNAL |= {("Local", 4): "198.51.100.2", ("Local", 6): "fd00:99:1::2"}
BALANCER = {("Cluster", 4): "198.51.100.129", ("Cluster", 6): "fd00:99:2::1"}
BALANCER |= {("Local", 4): "198.51.100.130", ("Local", 6): "fd00:99:2::2"}

PLACES = {
    "itself": "pod/default/web",
    "near": "pod/default/near",
    "far": "pod/default/far",
    "node with": "node/node1",
    "node without": "node/node2",
    "outside": "client/client",
}
HOME = {"itself": "node1", "near": "node1", "far": "node3", "node with": "node1", "node without": "node2"}
PODS = ("itself", "near", "far")

# What the endpoint sees as the client, or what becomes of the packet. "gateway" is node1's end of its pods' links.
KEPT, GATEWAY, NODE2, NODE3 = "kept", "gateway", "node2", "node3"
DROPPED, NO_ROUTE = "dropped", "no-route"

# Per frontend and policy: itself, near, far, node with, node without, outside.
EXPECTED: dict[tuple[str, str], tuple[str, str, str, str, str, str]] = {
    ("pod", "Cluster"): (KEPT, KEPT, KEPT, KEPT, KEPT, NO_ROUTE),
    ("pod", "Local"): (KEPT, KEPT, KEPT, KEPT, KEPT, NO_ROUTE),
    ("cluster IP", "Cluster"): (GATEWAY, KEPT, KEPT, GATEWAY, NODE2, NO_ROUTE),
    ("cluster IP", "Local"): (GATEWAY, KEPT, KEPT, GATEWAY, NODE2, NO_ROUTE),
    ("node port with", "Cluster"): (GATEWAY, GATEWAY, GATEWAY, GATEWAY, GATEWAY, GATEWAY),
    ("node port with", "Local"): (GATEWAY, KEPT, KEPT, GATEWAY, KEPT, KEPT),
    ("node port without", "Cluster"): (NODE2, NODE2, NODE2, NODE2, NODE2, NODE2),
    # The answers to near and far do not come back through node2, which they dialled.
    ("node port without", "Local"): (NODE2, DROPPED, DROPPED, DROPPED, NODE2, DROPPED),
    ("external IP", "Cluster"): (GATEWAY, GATEWAY, NODE3, GATEWAY, NODE2, GATEWAY),
    ("external IP", "Local"): (GATEWAY, KEPT, KEPT, GATEWAY, NODE2, KEPT),
    ("load balancer", "Cluster"): (GATEWAY, GATEWAY, NODE3, GATEWAY, NODE2, NODE2),
    ("load balancer", "Local"): (GATEWAY, KEPT, KEPT, GATEWAY, NODE2, DROPPED),
}
FRONTENDS = tuple(dict.fromkeys(frontend for frontend, _ in EXPECTED))

# Packets whose answers are lost do reach the endpoint; all other dropped ones stop at the node that was dialled.
LOST = {("node port without", "Local", "near"), ("node port without", "Local", "far")}


@dataclass(frozen=True)
class Case:
    frontend: str
    policy: str
    place: str
    protocol: str
    family: int

    @property
    def expected(self) -> str:
        return EXPECTED[self.frontend, self.policy][list(PLACES).index(self.place)]

    def __str__(self) -> str:
        return f"{self.place} to {self.frontend} {self.policy} {self.protocol} v{self.family}"


CASES = [Case(*values) for values in itertools.product(FRONTENDS, POLICIES, PLACES, ("TCP", "UDP"), (4, 6))]


def service(policy: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": policy.lower()},
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "externalTrafficPolicy": policy,
            "externalIPs": [EXTERNAL[policy, 4], EXTERNAL[policy, 6]],
            "selector": {"app": "web"},
            "ports": [
                {
                    "name": protocol.lower(),
                    "port": 80,
                    "targetPort": 8080,
                    "protocol": protocol,
                    "nodePort": NODE_PORTS[policy],
                }
                for protocol in ("TCP", "UDP")
            ],
        },
    }


def pod(name: str, node: str) -> dict[str, Any]:
    ports = [{"containerPort": 8080, "protocol": protocol} for protocol in ("TCP", "UDP")]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "echo", "ports": ports}]},
    }


class World:
    """The lab with its objects, the packets, and a rule reader per node."""

    def __init__(self, lab: Lab, packets: Packets) -> None:
        self.packets = packets
        status = lab.status
        self.nodes = {node.name: node for node in status.nodes}
        self.addresses = {f"node/{node.name}": node.addresses for node in status.nodes}
        self.addresses |= {f"client/{client.name}": client.addresses for client in status.clients}
        self.addresses |= {f"pod/{pod.namespace_}/{pod.name}": pod.addresses for pod in status.pods}
        self.cluster_ips = {
            policy: lab.client.get(SERVICE, policy.lower(), "default")["spec"]["clusterIPs"] for policy in POLICIES
        }
        self.readers: dict[str, RuleReader] = {
            node.name: open_reader(Path("/run/netns") / node.namespace, status.proxy.variant) for node in status.nodes
        }
        self.ports = itertools.count(10_000)

    def address(self, place: str, family: int) -> str:
        return self.addresses[place][0 if family == 4 else 1]

    def endpoint(self, family: int) -> str:
        return self.address("pod/default/web", family)

    def dialled(self, case: Case) -> tuple[str, int]:
        match case.frontend:
            case "pod":
                return self.endpoint(case.family), 8080
            case "cluster IP":
                return self.cluster_ips[case.policy][0 if case.family == 4 else 1], 80
            case "node port with":
                return self.address("node/node1", case.family), NODE_PORTS[case.policy]
            case "node port without":
                return self.address("node/node2", case.family), NODE_PORTS[case.policy]
            case "external IP":
                return EXTERNAL[case.policy, case.family], 80
            case _:
                return BALANCER[case.policy, case.family], 80

    def source_seen(self, case: Case) -> str:
        """The address that ``expected`` means."""
        match case.expected:
            case "kept":
                return self.address(PLACES[case.place], case.family)
            case "gateway":
                return "10.244.1.1" if case.family == 4 else "fd00:10:244:1::1"
            case node:
                return self.address(f"node/{node}", case.family)

    def send(self, case: Case) -> Seen:
        address, port = self.dialled(case)
        return self.packets.send(
            PLACES[case.place],
            host_port(address, port),
            protocol=case.protocol,
            source=self.address(PLACES[case.place], case.family),
            source_port=next(self.ports),
        )

    def rules(self, family: int) -> dict[tuple[str, str, str, int], Rule]:
        return {
            (name, rule.table, rule.chain, rule.number): rule
            for name, reader in self.readers.items()
            for rule in reader.read(family)
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    path = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    path.write_text(CLUSTER)
    with fresh_lab("-f", str(path)) as lab:
        for policy in POLICIES:
            lab.client.create(SERVICE, service(policy), "default")
            ingress = [{"ip": BALANCER[policy, family]} for family in (4, 6)]
            status = {"status": {"loadBalancer": {"ingress": ingress}}}
            lab.client.patch(SERVICE, policy.lower(), status, "default", subresource="status")
        pods = [pod("web", "node1"), pod("near", "node1"), pod("far", "node3")]
        lab.run("apply", "-f", "-", stdin=manifest(pods))
        packets = Packets(lab.client)
        made = World(lab, packets)
        yield made
        packets.close()
        for reader in made.readers.values():
            reader.close()


def manifest(objects: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


# -- where the packet goes, by hand ---------------------------------------------------------------------------------


def translating_node(case: Case) -> str:
    """The node whose rules rewrite the packet."""
    match case.frontend:
        case "node port with":
            return "node1"
        case "node port without":
            return "node2"
        case "external IP" if case.place == "outside":
            return "node1"
        case "load balancer" if case.place == "outside":
            return "node2"
        case _:
            return HOME[case.place]


@dataclass(frozen=True)
class Crossing:
    """A packet at one place: on its way in or out, before or after translation, with this TTL."""

    place: str
    direction: str
    is_translated: bool
    ttl: int


def crossings(case: Case) -> list[Crossing]:
    """Every sight of the packet between client and endpoint, in order."""
    if case.frontend == "pod" and case.place == "itself":
        return [Crossing(PLACES["itself"], way, False, 64) for way in ("out", "in")]
    translating = "" if case.frontend == "pod" else translating_node(case)
    nodes = [HOME[case.place]] if case.place in PODS else []
    for node in (translating or HOME.get(case.place, ""), "node1"):
        if node and (not nodes or nodes[-1] != node):
            nodes.append(node)
    found: list[Crossing] = []
    ttl, is_translated = 64, False
    if case.place in PODS or case.place == "outside":
        found.append(Crossing(PLACES[case.place], "out", False, ttl))
    else:
        own = HOME[case.place]
        is_translated = own == translating
        found.append(Crossing(f"node/{own}", "out", is_translated, ttl))
        nodes = [node for node in nodes if node != own] if own != "node1" else nodes_after_origin(nodes, translating)
    if case.place == "outside":
        ttl -= 1  # the router
    for node in nodes:
        found.append(Crossing(f"node/{node}", "in", is_translated, ttl))
        ttl -= 1
        is_translated = is_translated or node == translating
        found.append(Crossing(f"node/{node}", "out", is_translated, ttl))
    found.append(Crossing("pod/default/web", "in", is_translated, ttl))
    return found


def nodes_after_origin(nodes: list[str], translating: str) -> list[str]:
    """node1 sends: straight to its pod, or to the node that it dialled and back."""
    return [] if translating in ("", "node1") else [translating, "node1"]


def requests(seen: Seen) -> list[Any]:
    """The sights of the packet on the wire, loopback of a node aside: that is how it dials itself."""
    return [point for point in seen.path if point.kind in ("syn", "datagram") and point.direction != "local"]


# -- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_packet_arrives_as_written(world: World, case: Case) -> None:
    if case.expected in (DROPPED, NO_ROUTE):
        _check_blocked(world, case)
        return
    before = world.rules(case.family)
    seen = world.send(case)
    after = world.rules(case.family)
    assert seen.verdict == "answered", seen
    assert seen.pod == "default/web"
    assert seen.endpoint == host_port(world.endpoint(case.family), 8080)
    assert seen.source == world.source_seen(case)
    _check_path(world, case, seen)
    _check_answer(world, case, seen)
    _check_rules(world, case, before, after)


def _check_blocked(world: World, case: Case) -> None:
    works = Case("node port with", "Cluster", case.place, case.protocol, case.family)
    if case.expected == DROPPED:
        works = Case(case.frontend, "Cluster", case.place, case.protocol, case.family)
    assert world.send(works).verdict == "answered"
    seen = world.send(case)
    assert seen.verdict == case.expected, seen
    is_lost = (case.frontend, case.policy, case.place) in LOST
    assert seen.pod == ("default/web" if is_lost else "")
    if is_lost:
        assert seen.source == seen.sent_from


def _check_path(world: World, case: Case, seen: Seen) -> None:
    expected = crossings(case)
    points = requests(seen)
    assert [(point.place, point.direction) for point in points] == [(at.place, at.direction) for at in expected], seen
    client = (world.address(PLACES[case.place], case.family), seen.sent_port)
    is_masqueraded = case.expected != KEPT
    for point, at in zip(points, expected, strict=True):
        target = (world.endpoint(case.family), 8080) if at.is_translated else world.dialled(case)
        assert (point.destination, point.destination_port) == target, point
        if at.is_translated and is_masqueraded:
            # --random-fully chooses the port; it stays the one that it chose.
            assert (point.source, point.source_port) == (world.source_seen(case), seen.source_port), point
        else:
            assert (point.source, point.source_port) == client, point
        assert point.ttl == at.ttl, point


def _check_answer(world: World, case: Case, seen: Seen) -> None:
    kind = "syn-ack" if case.protocol == "TCP" else "reply"
    (answer, *_) = seen.at(PLACES[case.place], "local", kind)
    assert (answer.source, answer.source_port) == world.dialled(case)
    assert (answer.destination, answer.destination_port) == (seen.sent_from, seen.sent_port)


def _check_rules(
    world: World,
    case: Case,
    before: dict[tuple[str, str, str, int], Rule],
    after: dict[tuple[str, str, str, int], Rule],
) -> None:
    """The kernel's counters say that this DNAT rule, and MASQUERADE or not, took the packet; and nobody else did."""
    counted = {key: rule for key, rule in after.items() if rule.packets > before[key].packets}
    dnat = [(key[0], rule) for key, rule in counted.items() if rule.target == "DNAT"]
    snat = [key[0] for key, rule in counted.items() if rule.target == "MASQUERADE" and key[2] == "KUBE-POSTROUTING"]
    if case.frontend == "pod":
        assert (dnat, snat) == ([], [])
        return
    node = translating_node(case)
    ((where, rule),) = dnat
    assert where == node
    assert rule.chain.startswith("KUBE-SEP-")
    assert rule.parameters["to-destination"] == host_port(world.endpoint(case.family), 8080)
    assert rule.matches["ip"]["protocol"] == case.protocol.lower()
    assert rule.comment == f"default/{case.policy.lower()}:{case.protocol.lower()}"
    assert snat == ([node] if case.expected != KEPT else [])


def test_the_table_covers_the_whole_product() -> None:
    assert set(EXPECTED) == set(itertools.product(FRONTENDS, POLICIES))
    assert len(CASES) == len(FRONTENDS) * len(POLICIES) * len(PLACES) * 2 * 2
