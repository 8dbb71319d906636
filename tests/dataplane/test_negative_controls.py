"""Negative controls: every kind of rule is taken away by hand, and the packets and `kproxy verify` must notice.

``CONTROLS`` lists them by their place in the table of kube-proxy's rules: the rule on one node, the packet that fails
without it, and the rows of the proof that are then different: just those. Two kinds of rules that no row can tell have
tests of their own at the end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kproxy.api.kinds import SERVICE
from kproxy.cluster.layout import Layout
from kproxy.testing.labs import Lab, fresh_lab
from kproxy.testing.packets import Packets, Seen

pytestmark = pytest.mark.root

Row = dict[str, Any]

NODE_ADDRESSES = {"192.168.1.2": "node1", "192.168.1.3": "node2", "192.168.1.4": "node3"}
HOMES = {
    "pod/default/web-1": "node1",
    "pod/default/other-1": "node1",
    "pod/default/web-2": "node2",
    "pod/default/other-3": "node3",
    "node/node1": "node1",
    "node/node2": "node2",
    "node/node3": "node3",
    "client/client": "",
}
GATEWAY, NODE1 = "10.244.1.1", "192.168.1.2"
EXTERNAL = {"web": "198.51.100.1", "edge": "198.51.100.2", "none": "198.51.100.3"}
BALANCER = {"web": "198.51.100.101", "edge": "198.51.100.102", "none": "198.51.100.103", "ranged": "198.51.100.104"}
NODE_PORTS = {"web": 30001, "edge": 30002, "none": 30003, "ranged": 30004}


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    container = {"name": "main", "image": "echo", "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [container]},
    }


def service(name: str, *, selector: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    port: dict[str, Any] = {"name": "http", "port": 80, "targetPort": 8080}
    if name in NODE_PORTS:
        port["nodePort"] = NODE_PORTS[name]
        spec = {"type": "LoadBalancer", **spec}
    if name in EXTERNAL:
        spec["externalIPs"] = [EXTERNAL[name]]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": selector or {"app": "web"}, "ports": [port], **spec},
    }


SERVICES = [
    service("web"),
    service("edge", externalTrafficPolicy="Local", healthCheckNodePort=31999),
    service("none", selector={"app": "nobody"}),
    service("inner", selector={"number": "two"}, internalTrafficPolicy="Local"),
    service("sticky", sessionAffinity="ClientIP"),
    service("ranged", loadBalancerSourceRanges=["10.244.1.0/24"]),
]
PODS = [
    pod("web-1", "node1", app="web", number="one"),
    pod("other-1", "node1", app="other"),
    pod("web-2", "node2", app="web", number="two"),
    pod("other-3", "node3", app="other"),
]


def via(row: Row) -> str:
    """The node that rewrites the packets of a row."""
    if row["kind"] == "NodePort":
        return NODE_ADDRESSES[row["frontend"].partition(":")[0]]
    return HOMES[row["client"]]


def rows_of(name: str, *kinds: str, node: str = "node1") -> Callable[[Row], bool]:
    """Rows of a Service and of these kinds of frontends (none: all but the bare pod) that the node rewrites."""

    def concerned(row: Row) -> bool:
        right_kind = row["kind"] in kinds if kinds else row["kind"] != "pod"
        return row["service"] == f"default/{name}:http" and right_kind and via(row) == node

    return concerned


def is_from_pod(row: Row) -> bool:
    return bool(row["client"].startswith("pod/"))


def both(*conditions: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: all(condition(row) for condition in conditions)


def client_is(*names: str) -> Callable[[Row], bool]:
    return lambda row: row["client"] in names


def is_external(row: Row) -> bool:
    return row["kind"] in ("NodePort", "ExternalIP", "LoadBalancer")


def is_masqueraded_by_node1(row: Row) -> bool:
    return via(row) == "node1" and any(path["source"] in (GATEWAY, NODE1) for path in row["expected"]["paths"])


@dataclass(frozen=True)
class Control:
    """One rule taken away.

    Attributes:
        rule: pattern of its line in iptables-save; all that match are deleted.
        client, to: the packet.
        works: what is true of the packet as long as the rule is there, and not after.
        concerned: the rows of the proof that must be different, and no others.
        node: where the rule is deleted.
        tries: packets sent, where one of them must fail (endpoints are chosen at random).
        without: text that a line of the rule does not have.
    """

    name: str
    rule: str
    client: str
    to: str
    works: Callable[[list[Seen]], bool]
    concerned: Callable[[Row], bool]
    node: str = "node1"
    tries: int = 1
    table: str = "nat"
    without: str = ""


def all_are(verdict: str) -> Callable[[list[Seen]], bool]:
    return lambda packets: all(seen.verdict == verdict for seen in packets)


def all_seen_as(source: str, endpoint: str = "default/web-1") -> Callable[[list[Seen]], bool]:
    return lambda packets: (
        all(seen.source == source for seen in packets if seen.pod == endpoint) and all_are("answered")(packets)
    )


def reaches(*pods: str) -> Callable[[list[Seen]], bool]:
    return lambda packets: {seen.pod for seen in packets} == {f"default/{pod}" for pod in pods}


def reach_one(packets: list[Seen]) -> bool:
    return len({seen.pod for seen in packets}) == 1


def rejected(packets: list[Seen]) -> bool:
    return all(seen.detail.startswith("ICMP 3/3") for seen in packets)


MANY = 20
"""Packets after which one of two endpoints has been left out once in a million times."""

CONTROLS = [
    Control("a: cluster IP", r'-A KUBE-SERVICES .*"default/web:http cluster IP"', "other-1", "service/web:80",
            all_are("answered"), rows_of("web", "ClusterIP")),
    Control("a': cluster IP without endpoints", r'-A KUBE-SERVICES .*"default/none:http has no endpoints"',
            "other-1", "service/none:80", rejected, rows_of("none", "ClusterIP"), table="filter"),
    Control("a': cluster IP without local endpoints", r'-A KUBE-SERVICES .*"default/inner:http has no local endpoints"',
            "other-1", "service/inner:80", all_are("dropped"), rows_of("inner", "ClusterIP"), table="filter"),
    Control("b: external IP", r'-A KUBE-SERVICES .*"default/web:http external IP"', "other-1",
            f"{EXTERNAL['web']}:80", all_are("answered"), rows_of("web", "ExternalIP")),
    Control("b': external IP without endpoints",
            rf'-A KUBE-EXTERNAL-SERVICES -d {re.escape(EXTERNAL["none"])}/32 .*has no endpoints', "other-1",
            f"{EXTERNAL['none']}:80", rejected, both(rows_of("none", "ExternalIP"), is_from_pod), table="filter"),
    Control("c: load balancer", r'-A KUBE-SERVICES .*"default/web:http loadbalancer IP"', "other-1",
            f"{BALANCER['web']}:80", all_are("answered"), rows_of("web", "LoadBalancer")),
    Control("c2: not accepted by the firewall chain", r"-A KUBE-PROXY-FIREWALL .*default/ranged:http", "other-3",
            f"{BALANCER['ranged']}:80", all_are("dropped"), rows_of("ranged", "LoadBalancer", node="node3"),
            node="node3", table="filter"),
    Control("c': load balancer without endpoints",
            rf'-A KUBE-EXTERNAL-SERVICES -d {re.escape(BALANCER["none"])}/32 .*has no endpoints', "other-1",
            f"{BALANCER['none']}:80", rejected, both(rows_of("none", "LoadBalancer"), is_from_pod), table="filter"),
    Control("d: node port", r"-A KUBE-NODEPORTS .*default/web:http", "client", f"node1:{NODE_PORTS['web']}",
            all_are("answered"), rows_of("web", "NodePort"), without="127.0.0.0/8"),
    Control("d': node port without endpoints",
            rf"-A KUBE-EXTERNAL-SERVICES .*has no endpoints.*--dport {NODE_PORTS['none']}", "client",
            f"node1:{NODE_PORTS['none']}", rejected, rows_of("none", "NodePort"), table="filter"),
    Control("d': node port without local endpoints",
            rf"-A KUBE-EXTERNAL-SERVICES .*has no local endpoints.*--dport {NODE_PORTS['edge']}", "client",
            f"node3:{NODE_PORTS['edge']}", all_are("dropped"),
            both(rows_of("edge", "NodePort", node="node3"), client_is("node/node1", "client/client")),
            node="node3", table="filter"),
    Control("SVC: masquerade what is not from a pod", r'-A KUBE-SVC-.*"default/web:http cluster IP".*KUBE-MARK-MASQ',
            "node1", "service/web:80", all_seen_as(GATEWAY), both(rows_of("web", "ClusterIP"), client_is("node/node1")),
            tries=MANY),
    Control("EXT Cluster: masquerade", r'-A KUBE-EXT-.*"masquerade traffic for default/web:http external destinations"',
            "node3", f"node1:{NODE_PORTS['web']}", all_seen_as(GATEWAY), both(rows_of("web"), is_external), tries=MANY),
    Control("EXT Cluster: to SVC", r"-A (?P<chain>KUBE-EXT-\S+) -j KUBE-SVC-", "client", f"node1:{NODE_PORTS['web']}",
            all_are("answered"), lambda row: row["service"] in ("default/web:http", "default/ranged:http")
            and is_external(row) and via(row) == "node1" and row["expected"]["verdict"] == "answered"),
    Control("EXT Local: pods", r'-A KUBE-EXT-.*"pod traffic for default/edge:http external destinations"', "other-1",
            f"{EXTERNAL['edge']}:80", reaches("web-1", "web-2"),
            both(rows_of("edge"), is_external, client_is("pod/default/web-1", "pod/default/other-1")), tries=MANY),
    Control("EXT Local: masquerade the node's own", r'-A KUBE-EXT-.*"masquerade LOCAL traffic for default/edge:http',
            "node1", f"{EXTERNAL['edge']}:80", all_seen_as(GATEWAY),
            both(rows_of("edge"), is_external, client_is("node/node1")), tries=MANY),
    Control("EXT Local: route the node's own", r'-A KUBE-EXT-.*"route LOCAL traffic for default/edge:http', "node1",
            f"{EXTERNAL['edge']}:80", reaches("web-1", "web-2"),
            both(rows_of("edge"), is_external, client_is("node/node1")), tries=MANY),
    Control("EXT Local: to SVL", r"-A KUBE-EXT-\S+ -j KUBE-SVL-", "client", f"node1:{NODE_PORTS['edge']}",
            all_are("answered"), both(rows_of("edge", "NodePort"), client_is("client/client", "node/node3"))),
    Control("FW: a source range", r"-A KUBE-FW-\S+ -s 10\.244\.1\.0/24 .*-j KUBE-EXT-", "other-1",
            f"{BALANCER['ranged']}:80", all_are("answered"), both(rows_of("ranged", "LoadBalancer"), is_from_pod)),
    Control("SVC: affinity", r"-A KUBE-SVC-.*default/sticky:http -> .*--rcheck", "other-1", "service/sticky:80",
            reach_one, rows_of("sticky", "ClusterIP"), tries=MANY),
    Control("SEP: remember the client", r"-A KUBE-SEP-.*default/sticky:http.*--set.*-j DNAT", "other-1",
            "service/sticky:80", all_are("answered"), rows_of("sticky", "ClusterIP"), tries=MANY),
    Control("SVC: balance", r"-A KUBE-SVC-.*default/web:http -> .*--probability", "other-1", "service/web:80",
            reaches("web-1", "web-2"), rows_of("web"), tries=MANY),
    Control("SVL: the last endpoint", r"-A KUBE-SVL-.*default/edge:http -> ", "client", f"node1:{NODE_PORTS['edge']}",
            all_are("answered"), both(rows_of("edge", "NodePort"), client_is("client/client", "node/node3"))),
    Control("SEP: hairpin", r"-A KUBE-SEP-\S+ -s 10\.244\.1\.\d+/32 .*default/web:http.*KUBE-MARK-MASQ", "web-1",
            "service/web:80", all_are("answered"), both(rows_of("web", "ClusterIP"), client_is("pod/default/web-1")),
            tries=MANY),
    Control("SEP: DNAT", r"-A KUBE-SEP-.*default/web:http.*-j DNAT --to-destination 10\.244\.1\.", "other-1",
            "service/web:80", reaches("web-1", "web-2"), rows_of("web"), tries=MANY),
    Control("tail: node ports", r"-A KUBE-SERVICES .*this must be the last rule in this chain", "client",
            f"node1:{NODE_PORTS['web']}", all_are("answered"),
            lambda row: row["kind"] == "NodePort" and via(row) == "node1" and row["expected"]["verdict"] == "answered"),
    Control("mark", r"-A KUBE-MARK-MASQ -j MARK", "other-1", f"node1:{NODE_PORTS['web']}",
            all_seen_as(GATEWAY), is_masqueraded_by_node1, tries=MANY),
    Control("masquerade", r"-A KUBE-POSTROUTING .*-j MASQUERADE", "other-1", f"node1:{NODE_PORTS['web']}",
            all_seen_as(GATEWAY), is_masqueraded_by_node1, tries=MANY),
]  # fmt: skip

# Rules that no packet of the proof can tell: d0, the node port on 127.0.0.1, only counts, as rule d takes the same
# packets after it; e, the health check node port, accepts in INPUT, where nothing drops. They have tests of their own.


class World:
    def __init__(self, lab: Lab, packets: Packets) -> None:
        self.lab = lab
        self.packets = packets
        status = lab.status
        self.variant = status.proxy.variant
        self.namespaces = {node.name: Path("/run/netns") / node.namespace for node in status.nodes}

    def iptables(self, node: str, *words: str) -> str:
        environment = {**os.environ, "XTABLES_LOCKFILE": str(Layout(self.lab.name).xtables_lock(node))}
        done = subprocess.run(
            ["nsenter", f"--net={self.namespaces[node]}", f"iptables-{self.variant}{words[0]}", *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def delete(self, control: Control) -> list[str]:
        """Deletes the rules that the control names; returns them."""
        saved = self.iptables(control.node, "-save", "-t", control.table).splitlines()
        pattern = re.compile(control.rule)
        found = [line for line in saved if pattern.match(line) and not (control.without and control.without in line)]
        assert found, f"no rule matches {control.rule}:\n" + "\n".join(saved)
        for line in found:
            self.iptables(control.node, "", "-t", control.table, "-D", *shlex.split(line)[1:])
        return found

    def send(self, control: Control, timeout: float = 1.5) -> list[Seen]:
        """The control's packets; where something is amiss a short ``timeout`` will do, where all is well it may not."""
        return [self.packets.send(control.client, control.to, timeout=timeout) for _ in range(control.tries)]

    def different_rows(self) -> dict[tuple[str, str, str], str]:
        """The rows that `kproxy verify` finds different, with what is different."""
        rows = json.loads(self.lab.run("verify", "--no-why", "-o", "json", expected=(1,)))
        return {key(row): f"{row['expected']} {row['seen']} {row['notes']}" for row in rows if not row["ok"]}


def key(row: Row) -> tuple[str, str, str]:
    return row["client"], row["service"], row["frontend"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # A load balancer of the lab's own would answer where a missing rule lets a packet go.
    cluster = tmp_path_factory.mktemp("none") / "cluster.yaml"
    cluster.write_text(
        "apiVersion: kproxy.dev/v1alpha1\nkind: Cluster\nmetadata: {name: x}\nspec: {loadBalancer: {kind: none}}\n"
    )
    with fresh_lab("-f", str(cluster)) as lab:
        for obj in SERVICES:
            name = obj["metadata"]["name"]
            lab.client.create(SERVICE, obj, "default")
            if name in BALANCER:
                status = {"status": {"loadBalancer": {"ingress": [{"ip": BALANCER[name]}]}}}
                lab.client.patch(SERVICE, name, status, "default", subresource="status")
        manifest = {"apiVersion": "v1", "kind": "List", "items": PODS}
        lab.run("apply", "-f", "-", stdin=json.dumps(manifest))
        packets = Packets(lab.client)
        yield World(lab, packets)
        packets.close()


@pytest.fixture(scope="module")
def all_rows(world: World) -> list[Row]:
    """The rows of the proof, every one of them as promised: exit status 0."""
    rows: list[Row] = json.loads(world.lab.run("verify", "--no-why", "-o", "json"))
    assert rows
    assert all(row["ok"] for row in rows)
    return rows


def is_noticed(world: World, control: Control) -> bool:
    """Whether a packet fares otherwise now.

    Where it would go to a router without a route, that answers one packet a second (net.ipv4.route.error_cost, which no
    namespace can set): silence is no news until it has lasted.
    """
    for _ in range(6):
        if not control.works(world.send(control, timeout=0.2)):
            return True
        time.sleep(1.1)
    return False


def all_different_rows(world: World, expected: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """The rows that one of up to six proofs finds different; is_noticed says why one proof may not do."""
    different: dict[tuple[str, str, str], str] = {}
    for _ in range(6):
        different |= world.different_rows()
        if set(different) >= expected:
            break
        time.sleep(1.1)
    return different


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_missing_rule_is_noticed(world: World, all_rows: list[Row], control: Control) -> None:
    assert control.works(world.send(control))
    expected = {key(row) for row in all_rows if control.concerned(row)}
    assert expected
    try:
        deleted = world.delete(control)
        assert is_noticed(world, control), deleted
        different = all_different_rows(world, expected)
        assert set(different) == expected, (deleted, different)
    finally:
        world.lab.run("lab", "resync")
    assert control.works(world.send(control))


def test_the_localhost_rule_counts_what_the_next_one_would_take(world: World) -> None:
    control = Control("d0", rf"\[\d+:\d+\] -A KUBE-NODEPORTS -d 127\.0\.0\.0/8 .*--dport {NODE_PORTS['web']}", "node1",
                      f"127.0.0.1:{NODE_PORTS['web']}", all_are("answered"), lambda row: False)  # fmt: skip
    if not counted(world, control.rule):
        pytest.skip("this kernel has no nfacct: the rule is left out")
    assert control.works(world.send(control))
    assert counted(world, control.rule) == [1]
    try:
        world.delete(replace(control, rule=control.rule.partition("] ")[2]))
        assert control.works(world.send(control))
    finally:
        world.lab.run("lab", "resync")


def counted(world: World, rule: str) -> list[int]:
    """Packets that the rules have counted."""
    lines = world.iptables("node1", "-save", "-c", "-t", "nat").splitlines()
    return [int(line[1:].partition(":")[0]) for line in lines if re.match(rule, line)]


def test_the_health_check_rule_accepts_before_others_drop(world: World) -> None:
    control = Control("e", r'-A KUBE-NODEPORTS .*"default/edge:http health check node port"', "client", "node1:31999",
                      lambda packets: packets[0].verdict != "dropped", lambda row: False, table="filter")  # fmt: skip
    drop = ["INPUT", "-p", "tcp", "--dport", "31999", "-j", "DROP"]
    world.iptables("node1", "", "-A", *drop)
    try:
        assert control.works(world.send(control))
        world.delete(control)
        assert not control.works(world.send(control, timeout=0.2))
    finally:
        world.iptables("node1", "", "-D", *drop)
        world.lab.run("lab", "resync")
    assert control.works(world.send(control))
