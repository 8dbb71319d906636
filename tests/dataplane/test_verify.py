"""`kproxy verify` on whole labs: the demo's table is all ok, whatever the network, families and iptables variant.

How many rows there must be, and which chains, is worked out here from the objects, not asked of the code under test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kproxy.api.kinds import ENDPOINT_SLICE, SERVICE
from kproxy.api.types import Object
from kproxy.insight.oracle import ProxyView
from kproxy.insight.rows import rows as rows_of
from kproxy.insight.view import look
from kproxy.testing.labs import Lab, fresh_lab, run_kproxy

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
LABS = {
    "default": (),
    "vxlan": ("--network", "vxlan"),
    "dual stack": ("--ip-family", "dual"),
    "vxlan, dual stack": ("--network", "vxlan", "--ip-family", "dual"),
    "nft": ("--iptables-variant", "nft"),
}


def demo() -> list[str]:
    """The scenarios that ``make demo`` applies."""
    (found,) = re.findall(r"^DEMO\s*[:?]?=\s*(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [str(ROOT / "manifests" / name) for name in found.split()]


@dataclass(frozen=True)
class Proven:
    lab: Lab
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module", params=LABS.values(), ids=LABS.keys())
def proven(request: pytest.FixtureRequest) -> Iterator[Proven]:
    options: tuple[str, ...] = request.param
    if "nft" in options and shutil.which("iptables-nft-restore") is None:
        pytest.fail("iptables-nft-restore is missing")
    with fresh_lab(*options) as lab:
        lab.run("apply", *(word for path in demo() for word in ("-f", path)))
        yield Proven(lab, json.loads(lab.run("verify", "-o", "json", expected=(0, 1))))


def test_every_row_is_as_promised(proven: Proven) -> None:
    assert proven.rows
    assert [row for row in proven.rows if not row["ok"]] == []


def test_the_rows_are_services_times_places_times_frontends(proven: Proven) -> None:
    lab = proven.lab
    services = [obj for obj in lab.client.list(SERVICE).items if obj["metadata"]["name"] != "kubernetes"]
    slices = lab.client.list(ENDPOINT_SLICE).items
    expected = {
        f"{service['metadata']['namespace']}/{service['metadata']['name']}:{port.get('name') or port['port']}": sum(
            places(lab, endpoints) * frontends(lab, service, port, has_endpoint=bool(endpoints))
            for family in service["spec"]["ipFamilies"]
            for endpoints in [ready_pods(lab, slices, service, family)]
        )
        for service in services
        for port in service["spec"]["ports"]
    }
    found = {name: sum(row["service"] == name for row in proven.rows) for name in expected}
    assert found == expected
    assert len(proven.rows) == sum(expected.values())


def ready_pods(lab: Lab, slices: list[Object], service: Object, family: str) -> list[str]:
    """Names of the pods that are ready endpoints."""
    return [
        endpoint["targetRef"]["name"]
        for part in slices
        if part["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service["metadata"]["name"]
        and part["addressType"] == family
        for endpoint in part.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
    ]


def places(lab: Lab, endpoints: list[str]) -> int:
    status = lab.status
    if not endpoints:
        return 1 + 1 + len(status.clients)
    homes = {pod.name: pod.node for pod in status.pods}
    nodes_with = {homes[name] for name in endpoints}
    has_neighbour = any(list(homes.values()).count(homes[name]) > 1 for name in endpoints)
    has_others = len(set(homes.values())) > 1
    has_node_without = len(nodes_with) < len(status.nodes)
    return 1 + has_neighbour + has_others + 1 + has_node_without + len(status.clients)


def frontends(lab: Lab, service: Object, port: dict[str, Any], *, has_endpoint: bool) -> int:
    on_nodes = len(lab.status.nodes) if port.get("nodePort") else 0
    return has_endpoint + 1 + on_nodes + len(service["spec"].get("externalIPs") or ())


def test_why_names_the_chains_of_that_service(proven: Proven) -> None:
    """The chains' names are worked out as Kubernetes does: from the Service port's name and protocol."""
    unnamed = {
        f"{obj['metadata']['namespace']}/{obj['metadata']['name']}:{port['port']}"
        for obj in proven.lab.client.list(SERVICE).items
        for port in obj["spec"]["ports"]
        if not port.get("name")
    }
    checked = 0
    for row in proven.rows:
        name = row["service"].rpartition(":")[0] if row["service"] in unnamed else row["service"]
        text = name + row["protocol"].lower()
        digest = base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]
        ours = {f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT")}
        service_chains = {chain for chain in row["why"] if re.match(r"KUBE-(SVC|SVL|EXT)-", chain)}
        assert service_chains <= ours, row
        if row["kind"] != "pod" and row["seen"]["verdict"] == "answered":
            assert service_chains & {f"KUBE-SVC-{digest}", f"KUBE-SVL-{digest}"}, row
            assert any(chain.startswith("KUBE-SEP-") for chain in row["why"]), row
            checked += 1
    assert checked


def test_why_says_that_a_source_was_rewritten(proven: Proven) -> None:
    for row in proven.rows:
        sources = {path["source"] for path in row["seen"]["paths"]}
        if row["expected"]["lost"]:
            continue  # the packet of the second pass may have gone to either kind of endpoint
        if sources and "kept" not in sources:
            assert "KUBE-MARK-MASQ" in row["why"], row
        # A node that dials is masqueraded to its own address.
        if sources == {"kept"} and not row["client"].startswith("node/"):
            assert "KUBE-MARK-MASQ" not in row["why"], row


def test_why_says_which_table_stopped_a_packet(proven: Proven) -> None:
    stopped = [row for row in proven.rows if row["seen"]["verdict"] == "refused"]
    assert stopped
    for row in stopped:
        chain = "KUBE-SERVICES" if row["kind"] == "ClusterIP" else "KUBE-EXTERNAL-SERVICES"
        assert chain in row["why"], row


# -- one lab is enough for the rest -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Lab]:
    with fresh_lab() as lab:
        lab.run("apply", "-f", str(ROOT / "manifests" / "clusterip"), "-f", str(ROOT / "manifests" / "no-endpoints"))
        yield lab


def test_junit_is_for_ci(small: Lab) -> None:
    root = ET.fromstring(small.run("verify", "--no-why", "-o", "junit"))
    rows = json.loads(small.run("verify", "--no-why", "-o", "json"))
    assert (root.get("tests"), root.get("failures")) == (str(len(rows)), "0")


def test_the_table_ends_with_its_sum(small: Lab) -> None:
    text = small.run("verify", "hello", "--no-why")
    assert "Service default/hello" in text
    assert "Service default/nobody" not in text
    count = sum(line.rstrip().endswith(" ok") for line in text.splitlines())
    assert text.splitlines()[-1] == f"{count} of {count} rows as promised"


@pytest.mark.parametrize("words", [("nothing-here",), ("-n", "kube-public")])
def test_what_is_not_there_cannot_be_verified(small: Lab, words: tuple[str, ...]) -> None:
    done = run_kproxy(["verify", *words], lab=small.name)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_verify_changes_nothing(small: Lab) -> None:
    before = [small.run("exec", node, "--", "iptables-save") for node in ("node1", "node2", "node3")]
    small.run("verify")
    after = [small.run("exec", node, "--", "iptables-save") for node in ("node1", "node2", "node3")]
    assert [rules_of(text) for text in before] == [rules_of(text) for text in after]


def rules_of(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if not line.startswith(("#", ":"))]


# -- other configurations of the proxies ------------------------------------------------------------------------------

FLAGS = {
    "masquerade all": '{masquerade-all: "true"}',
    "NodeCIDR": "{detect-local-mode: NodeCIDR}",
    "InterfaceNamePrefix": "{detect-local-mode: InterfaceNamePrefix, pod-interface-name-prefix: veth}",
}

CLUSTER = """
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
metadata: {name: unused}
spec:
  externalRoutes: [{to: 198.51.100.0/24, via: node2}]
  clients: [{name: one}, {name: two}]
  proxy: {flags: FLAGS}
"""

# A pod in its node's network, named ports with different numbers, hints, and an external address that is a node's own.
OBJECTS = """
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {app: host}}
spec:
  hostNetwork: true
  nodeName: node1
  containers: [{name: main, image: echo, ports: [{containerPort: 7777}, {containerPort: 7777, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: mix-1, labels: {app: mix}}
spec: {nodeName: node1, containers: [{name: main, image: echo, ports: [{name: web, containerPort: 7777}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mix-3, labels: {app: mix}}
spec: {nodeName: node3, containers: [{name: main, image: echo, ports: [{name: web, containerPort: 8888}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: host}
spec:
  type: NodePort
  selector: {app: host}
  ports: [{name: t, port: 80, targetPort: 7777}, {name: u, port: 80, targetPort: 7777, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: host-local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: host}
  externalIPs: [198.51.100.7]
  ports: [{port: 80, targetPort: 7777}]
---
apiVersion: v1
kind: Service
metadata: {name: mix}
spec:
  type: NodePort
  trafficDistribution: PreferSameZone
  selector: {app: mix}
  externalIPs: [198.51.100.8, 192.168.1.4]
  ports: [{name: t, port: 81, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: mix-local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: mix}
  externalIPs: [198.51.100.9]
  ports: [{name: t, port: 82, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {type: NodePort, selector: {app: nobody}, externalIPs: [198.51.100.10], ports: [{port: 83}]}
"""


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_other_configurations_are_promised_and_kept(flags: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER.replace("FLAGS", flags))
    with fresh_lab("-f", str(tmp_path / "cluster.yaml")) as lab:
        lab.run("apply", "-f", "-", stdin=OBJECTS)
        rows = json.loads(lab.run("verify", "--no-why", "-o", "json", expected=(0, 1)))
    assert [row for row in rows if not row["ok"]] == []
    assert {row["client"] for row in rows} >= {"client/one", "client/two"}


# -- one lab whose nodes are all different ----------------------------------------------------------------------------

# node1 masquerades everything and has no node ports on its address, node2 has no proxy, node3 takes for a pod whatever
# comes by its uplink. Half of the external addresses are routed to node1, half to node2.
MIXED_CLUSTER = """
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
metadata: {name: unused}
spec:
  ipFamilies: [IPv4, IPv6]
  nodes:
  - {name: node1, proxy: {flags: {masquerade-all: true, nodeport-addresses: "10.244.0.0/16,fd00:10:244::/48"}}}
  - {name: node2, proxy: {mode: none}}
  - {name: node3, proxy: {flags: {detect-local-mode: InterfaceNamePrefix, pod-interface-name-prefix: eth}}}
  - {name: node4}
  externalRoutes:
  - {to: 198.51.100.0/25, via: node1}
  - {to: 198.51.100.128/25, via: node2}
  - {to: "2001:db8:51::/64", via: node1}
  - {to: "2001:db8:51:1::/64", via: node2}
  proxy: {flags: {cluster-cidr: ""}}
"""


def mixed_objects() -> str:
    """A pod on every node; Services of one pod, of all and of none, with addresses that are routed to either node."""
    services = {
        "one": ({"on": "node1"}, ["198.51.100.1", "2001:db8:51::1"], "Cluster"),
        "two": ({"on": "node2"}, ["198.51.100.202", "2001:db8:51:1::2"], "Cluster"),
        "four": ({"on": "node4"}, ["198.51.100.4", "2001:db8:51::4"], "Local"),
        "all": ({"app": "mix"}, ["198.51.100.5", "2001:db8:51::5"], "Local"),
        "nobody": ({"app": "nobody"}, ["198.51.100.6", "198.51.100.206", "2001:db8:51::6"], "Cluster"),
    }
    found: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"on-{node}", "labels": {"app": "mix", "on": node}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "main", "image": "echo", "ports": [{"containerPort": 7777}]}],
            },
        }
        for node in ("node1", "node2", "node3", "node4")
    ]
    found += [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "type": "NodePort",
                "ipFamilyPolicy": "RequireDualStack",
                "selector": selector,
                "externalIPs": addresses,
                "externalTrafficPolicy": policy,
                "ports": [{"port": 80, "targetPort": 7777}],
            },
        }
        for name, (selector, addresses, policy) in services.items()
    ]
    return "\n---\n".join(json.dumps(obj) for obj in found)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    path = tmp_path_factory.mktemp("mixed") / "cluster.yaml"
    path.write_text(MIXED_CLUSTER)
    with fresh_lab("-f", str(path)) as lab:
        lab.run("apply", "-f", "-", stdin=mixed_objects())
        yield lab


def test_each_node_is_promised_as_its_own_proxy_is_configured(mixed: Lab) -> None:
    rows = json.loads(mixed.run("verify", "--no-why", "-o", "json", expected=(0, 1)))
    assert [row for row in rows if not row["ok"]] == []
    # Negative control: had all nodes the same plain proxy, much of what was seen would be wrong.
    around = look(mixed.client)
    plain = replace(around.view, nodes=tuple(replace(node, proxy=ProxyView()) for node in around.view.nodes))
    seen = {(row["client"], row["frontend"]): row["expected"] for row in rows}
    differing = {
        (row.place.node, str(row.frontend.kind))
        for row in rows_of(plain, plain.services)
        if (found := seen.get((row.place.client, row.frontend.text))) is not None
        and (found["verdict"], len(found["paths"])) != (row.promise.verdict, len(row.promise.answers))
    }
    assert {("node2", "ClusterIP"), ("node2", "NodePort"), ("node2", "ExternalIP"), (None, "NodePort")} <= differing


def test_status_says_how_each_proxy_is_configured(mixed: Lab) -> None:
    nodes = {node["name"]: node for node in json.loads(mixed.run("lab", "status", "-o", "json"))["nodes"]}
    assert nodes["node1"]["proxySettings"] == {
        "mode": "iptables",
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDRs": [],
        "podBridgeInterface": "",
        "podInterfaceNamePrefix": "",
        "masqueradeAll": True,
        "nodePortAddresses": ["10.244.0.0/16", "fd00:10:244::/48"],
        "localhostNodePorts": False,
    }
    assert nodes["node2"]["proxySettings"] is None
    assert nodes["node3"]["proxySettings"]["podInterfaceNamePrefix"] == "eth"


def test_a_proxy_of_somebody_elses_is_held_to_what_kube_proxy_would_do() -> None:
    nodeport = str(ROOT / "manifests" / "nodeport")
    with fresh_lab("--proxy-mode", "none", "--nodes", "2") as lab, ExitStack() as guests:
        lab.run("apply", "-f", nodeport)
        status = json.loads(lab.run("lab", "status", "-o", "json"))
        assert {node["proxy"] for node in status["nodes"]} == {"none"}
        for node in status["nodes"]:
            guest = [sys.executable, "-m", "kproxy", "proxy", "--master", f"unix://{status['apiSocket']}"]
            guest += ["--hostname-override", node["name"], "--cluster-cidr", "10.244.0.0/16", "--oom-score-adj=0"]
            guest += ["--conntrack-max-per-core=0"]
            process = subprocess.Popen(
                ["ip", "netns", "exec", node["namespace"], *guest],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.DEVNULL,
            )
            guests.callback(process.wait)
            guests.callback(process.kill)
        lab.run("apply", "-f", nodeport)  # names the nodes as not asked: whether they are ready has to be looked at
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            rows = json.loads(lab.run("verify", "--no-why", "-o", "json", expected=(0, 1)))
            if all(row["ok"] for row in rows) and any("31000" in row["frontend"] for row in answered(rows)):
                break
        assert [row for row in rows if not row["ok"]] == []
        assert {row["frontend"] for row in answered(rows) if row["client"] == "client/client"} == {
            "192.168.1.2:31000",
            "192.168.1.3:31000",
        }
        nodes = json.loads(lab.run("lab", "status", "-o", "json"))["nodes"]
        assert [node["proxy"] for node in nodes] == ["other", "other"]


def answered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["seen"]["verdict"] == "answered"]
