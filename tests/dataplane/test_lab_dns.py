"""Names in a lab: from the question in a pod to the answer of the host outside, through the lab's own dataplane."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from kproxy.api.kinds import DEPLOYMENT, SERVICE
from kproxy.cluster.layout import Layout
from kproxy.testing.labs import Lab, fresh_lab
from netns.namespace import named, run_in

pytestmark = pytest.mark.root

SERVER = "10.96.0.10"
PATIENCE = 20.0
MANY = 40
CLUSTER = """
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
spec:
  clients:
    - name: client
    - name: database
      names: [my.database.com]
      ports: [5432]
"""


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "web", "image": "nginx", "ports": [{"name": "web", "containerPort": 8080}]}
    metadata = {"name": name, "labels": {"app": "web"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}


def many_endpoints() -> dict[str, Any]:
    metadata = {"name": "many-1", "labels": {"kubernetes.io/service-name": "many"}}
    endpoints = [{"addresses": [f"192.0.2.{number}"]} for number in range(1, 1 + MANY)]
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "endpoints": endpoints, "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
    }  # fmt: skip


PORTS = [{"port": 80, "targetPort": "web", "name": "http"}]
OBJECTS = [
    service("web", clusterIP="10.96.9.9", selector={"app": "web"}, ports=PORTS),
    service("peers", clusterIP="None", selector={"app": "web"}, ports=PORTS),
    service("many", clusterIP="None", ports=[{"port": 80}]),
    service("db", type="ExternalName", externalName="my.database.com"),
    many_endpoints(),
    pod("web-0", hostname="web-0", subdomain="peers"),
    pod("web-1", hostname="web-1", subdomain="peers"),
    {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
        "spec": {"containers": [{"name": "shell", "image": "x", "command": ["sleep", "infinity"]}]},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    path = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    path.write_text(CLUSTER)
    with fresh_lab("-f", str(path), names=True) as found:
        found.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": OBJECTS}))
        until(lambda: len(values(ask(found, "peers.default.svc.cluster.local"))) == 2)
        yield found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not become so"
        time.sleep(0.1)


def ask(lab: Lab, name: str, record_type: str = "A", *, tcp: bool = False) -> dns.message.Message:
    """What the cluster's server answers to a node; asked again when a datagram is lost."""
    layout = Layout(lab.name)
    node = named(layout.netns("node3"), layout.namespaces)
    query = dns.message.make_query(name, record_type)
    exchange = dns.query.tcp if tcp else dns.query.udp
    for _ in range(4):
        try:
            return run_in(node, lambda: exchange(query, SERVER, timeout=5))
        except (dns.exception.Timeout, OSError):
            time.sleep(0.5)
    raise AssertionError("the DNS server does not answer")


def values(reply: dns.message.Message) -> list[str]:
    return sorted(str(item) for answer in reply.answer for item in answer)


def in_pod(lab: Lab, *command: str, expected: tuple[int, ...] = (0,)) -> str:
    return lab.run("exec", "app", "--", *command, expected=expected)


def test_a_service_by_its_names(lab: Lab) -> None:
    for name in ("web", "web.default", "web.default.svc.cluster.local"):
        assert in_pod(lab, "getent", "hosts", name).split()[0] == "10.96.9.9"
        assert in_pod(lab, "curl", "-s", "--max-time", "5", f"http://{name}/hostname").strip() in ("web-0", "web-1")
    assert in_pod(lab, "getent", "hosts", "nobody", expected=(2,)) == ""


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_records(lab: Lab, tcp: bool) -> None:
    zone = "default.svc.cluster.local"
    assert values(ask(lab, f"web.{zone}", tcp=tcp)) == ["10.96.9.9"]
    assert values(ask(lab, f"_http._tcp.web.{zone}", "SRV", tcp=tcp)) == [f"0 100 80 web.{zone}."]
    assert values(ask(lab, f"_http._tcp.peers.{zone}", "SRV", tcp=tcp)) == [
        f"0 50 8080 web-0.peers.{zone}.",
        f"0 50 8080 web-1.peers.{zone}.",
    ]
    assert values(ask(lab, "9.9.96.10.in-addr.arpa", "PTR", tcp=tcp)) == [f"web.{zone}."]
    assert values(ask(lab, "1-2-3-4.default.pod.cluster.local", tcp=tcp)) == ["1.2.3.4"]
    unknown, empty = ask(lab, f"nobody.{zone}", tcp=tcp), ask(lab, f"web.{zone}", "AAAA", tcp=tcp)
    assert (unknown.rcode(), empty.rcode()) == (dns.rcode.NXDOMAIN, dns.rcode.NOERROR)
    assert not unknown.answer
    assert not empty.answer


def test_an_answer_too_long_for_a_datagram(lab: Lab) -> None:
    cut, whole = ask(lab, "many.default.svc.cluster.local"), ask(lab, "many.default.svc.cluster.local", tcp=True)
    assert cut.flags & dns.flags.TC
    assert len(values(whole)) == MANY
    assert len(set(in_pod(lab, "getent", "ahostsv4", "many").split())) > MANY  # glibc has asked again over TCP


def test_a_pods_own_name(lab: Lab) -> None:
    assert in_pod(lab, "curl", "-s", "--max-time", "5", "http://web-1.peers:8080/hostname").strip() == "web-1"


def test_a_name_outside_leads_to_the_host_outside(lab: Lab) -> None:
    answer = json.loads(in_pod(lab, "curl", "-s", "--max-time", "5", "http://db:5432/json"))
    assert (answer["pod"], answer["address"]) == ("database", "203.0.113.11")
    assert in_pod(lab, "getent", "hosts", "my.database.com").split()[0] == "203.0.113.11"
    assert ask(lab, "other.database.com").rcode() == dns.rcode.NXDOMAIN


def test_a_service_comes_and_goes(lab: Lab) -> None:
    name = "later.default.svc.cluster.local"
    assert ask(lab, name).rcode() == dns.rcode.NXDOMAIN
    made = lab.client.create(SERVICE, service("later", ports=[{"port": 80}]), "default")
    until(lambda: values(ask(lab, name)) == [made["spec"]["clusterIP"]])
    lab.client.delete(SERVICE, "later", "default")
    until(lambda: ask(lab, name).rcode() == dns.rcode.NXDOMAIN)


def test_a_server_that_dies_is_not_missed_for_long(lab: Lab) -> None:
    name = lab.run("get", "pods", "-n", "kube-system", "-o", "name").split()[0]
    lab.run("delete", name, "-n", "kube-system", "--grace-period", "0")
    assert values(ask(lab, "web.default.svc.cluster.local")) == ["10.96.9.9"]


def test_without_servers_nobody_has_a_name(lab: Lab) -> None:
    """The control of all the others: names do come from these pods, through this Service."""
    lab.client.patch(DEPLOYMENT, "kube-dns", {"spec": {"replicas": 0}}, "kube-system")
    try:
        until(lambda: not lab.run("get", "pods", "-n", "kube-system", "-o", "name").split())
        lab.settle()
        assert in_pod(lab, "getent", "hosts", "web", expected=(2,)) == ""
    finally:
        lab.client.patch(DEPLOYMENT, "kube-dns", {"spec": {"replicas": 2}}, "kube-system")
    until(lambda: in_pod(lab, "getent", "hosts", "web", expected=(0, 2)) != "")


def test_the_servers_program_is_a_pod_like_others(lab: Lab) -> None:
    name = lab.run("get", "pods", "-n", "kube-system", "-o", "name").split()[0]
    look = "ls /opt/kproxy; ls /root /run/kproxy /mnt/0 2>/dev/null; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    seen = lab.run("exec", "-n", "kube-system", name, "--", "sh", "-c", look).split()
    assert seen == ["dnslib", "kproxy", "msgspec", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    assert not Path("/opt/kproxy").exists()
    assert not Path("/mnt/0").exists()
