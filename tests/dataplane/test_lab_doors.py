"""The doors of a lab's API as packets find them: from pods, nodes, clients and the host, before and after kill -9."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import yaml
from lab_support import answers, apply, cluster_ips, config, pod, ready_pods, running, service, until

from kproxy.api.kinds import ENDPOINT_SLICE, EVENT, SERVICE
from kproxy.client import Client
from kproxy.cluster import doors, lab, tokens
from kproxy.cluster.layout import Layout
from kproxy.cluster.rights import ADMIN, node_identity
from kproxy.errors import ApiError, UserError
from kproxy.proxy.api_access import connect
from kproxy.testing.labs import run_kproxy
from netns.namespace import named, run_in, socket_in

pytestmark = pytest.mark.root

API = "192.168.1.1"
PORT = 6443
OURS = {"router": {53, PORT}, "node1": {10256}, "node2": {10256}}
"""What of ours may listen in the lab: DNS for the outside, the API, and kube-proxy's own health port."""


class Up(NamedTuple):
    """A lab with two pods and a Service."""

    layout: Layout
    client: Client

    @property
    def name(self) -> str:
        """Its name."""
        return self.layout.lab

    def token(self, node: str = "") -> str:
        """The admin's token, or a node's."""
        known = tokens.read(self.layout.tokens, ["node1", "node2"])
        return known.of(node_identity(node) if node else ADMIN)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    name = f"c1d{os.getpid() % 10000}"
    with running(name, nodes=2) as (layout, client):
        apply(client, pod("web"), pod("other"), service("web"))
        ready_pods(client, 2)
        yield Up(layout, client)


PLACES = ("default.web", "node1", "client")
"""A pod, a node and a client outside, by the names of their namespaces."""


def ask(
    up: Up,
    place: str,
    path: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    address: str = API,
    port: int = PORT,
    body: Any = None,
) -> tuple[int, Any]:
    """A request from a place in the lab, and its answer."""
    context = ssl.create_default_context(cafile=str(up.layout.certificates / "ca.crt"))
    raw = socket_in(named(up.layout.netns(place), up.layout.namespaces), socket.AF_INET, socket.SOCK_STREAM)
    raw.settimeout(30)
    raw.connect((address, port))
    connection = http.client.HTTPConnection(address)
    connection.sock = context.wrap_socket(raw, server_hostname=address)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else text.decode()
    finally:
        connection.close()


# ----- who is let in


DENIED = [
    ("GET", "/api/v1/services"),
    ("GET", "/api/v1/namespaces/default/pods/web"),
    ("GET", "/api/v1/nodes?watch=1"),
    ("POST", "/api/v1/namespaces/default/services"),
    ("DELETE", "/api/v1/namespaces/default/services/web"),
    ("PATCH", "/api/v1/namespaces/default/services/web"),
    ("GET", "/apis/kproxy.dev/v1alpha1/lab"),
    ("POST", "/apis/kproxy.dev/v1alpha1/applies"),
    ("GET", "/api"),
]


@pytest.mark.parametrize("place", PLACES)
def test_nobody_without_a_token_reads_or_changes_anything(up: Up, place: str) -> None:
    before = up.client.list(SERVICE).items
    for method, path in DENIED:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, answer = ask(up, place, path, headers, method=method, body={} if method != "GET" else None)
            assert (status, answer["reason"]) == (401, "Unauthorized"), (method, path, headers)
    assert ask(up, place, "/healthz", {}) == (200, "ok")
    assert up.client.list(SERVICE).items == before


@pytest.mark.parametrize("place", PLACES)
def test_a_nodes_token_lets_nobody_do_what_nodes_may_not(up: Up, place: str) -> None:
    shown = {"Authorization": f"Bearer {up.token('node1')}"}
    for method, path in [row for row in DENIED if row[1] != "/api"]:
        status, answer = ask(up, place, path, shown, method=method, body={} if method != "GET" else None)
        allowed = (method, path) == ("GET", "/api/v1/services")
        on_node = path.endswith("/pods/web") and status == 200
        assert status == (200 if allowed or on_node else 403), (method, path, answer)
    assert ask(up, place, "/api/v1/nodes/node1", shown)[0] == 200
    assert ask(up, place, "/api/v1/nodes/node2", shown)[0] == 403


def test_the_admins_token_opens_from_everywhere(up: Up) -> None:
    shown = {"Authorization": f"Bearer {up.token()}"}
    for place in PLACES:
        assert ask(up, place, "/api/v1/services", shown)[0] == 200


def test_a_pod_reaches_the_api_by_its_service(up: Up) -> None:
    """What a client library does in a pod: kubernetes.default is 10.96.0.1, and the certificate says so."""
    (endpoints,) = up.client.list(
        ENDPOINT_SLICE, "default", label_selector="kubernetes.io/service-name=kubernetes"
    ).items
    assert endpoints["endpoints"][0]["addresses"] == [API]
    shown = {"Authorization": f"Bearer {up.token('node1')}"}
    for place in ("default.web", "default.other", "node1", "node2"):
        assert ask(up, place, "/api/v1/services", shown, address="10.96.0.1", port=443)[0] == 200


def test_a_pod_does_not_find_the_unix_socket(up: Up) -> None:
    done = run_kproxy(["exec", "web", "--", "ls", str(up.layout.run)], lab=up.name)
    assert done.returncode != 0


# ----- what listens


def scan(address: str) -> set[int]:
    """The open TCP ports of an address, by connecting to all of them."""
    found = set()
    for port in range(1, 65536):
        with socket.socket() as probe:
            probe.settimeout(5)
            code = probe.connect_ex((address, port))
        if code == 0:
            found.add(port)
        else:
            assert code == errno.ECONNREFUSED, (port, errno.errorcode.get(code))
    return found


def test_a_scan_from_a_pod_finds_the_api_and_no_other_port_of_ours(up: Up) -> None:
    found = run_in(named(up.layout.netns("default.web"), up.layout.namespaces), scan, API)
    assert PORT in found
    assert found <= OURS["router"]


def listening(tables: Path) -> set[int]:
    """The TCP ports on which anything but loopback is listened on, in a network namespace."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (tables / table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and not address.endswith("0100007F"):
                found.add(int(port, 16))
    return found


@pytest.mark.parametrize("member", OURS)
def test_nothing_else_of_ours_listens_in_the_lab(up: Up, member: str) -> None:
    inside = named(up.layout.netns(member), up.layout.namespaces)
    assert run_in(inside, listening, Path("/proc/thread-self/net")) <= OURS[member]


def test_on_the_host_one_socket_of_ours_listens(up: Up) -> None:
    pids = [entry.pid for entry in lab.status(up.name).processes if entry.where == "host"]
    held = {link for pid in pids for link in _links(pid)}
    ours = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            is_open = fields[3] == "0A" or table.startswith("udp")
            if is_open and f"socket:[{fields[9]}]" in held:
                ours.append((table, fields[1]))
    port = int(up.layout.api_port.read_text())
    assert ours == [("tcp", f"0100007F:{port:04X}")]


def _links(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield str(entry.readlink())
        except OSError:
            continue


# ----- kubeconfigs


def test_a_kubeconfig_for_the_host(up: Up, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("somebody else's, readable by all")
    assert run_kproxy(["lab", "kubeconfig", "-o", str(path)], lab=up.name).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == run_kproxy(["lab", "kubeconfig"], lab=up.name).stdout
    assert yaml.safe_load(path.read_text())["current-context"] == f"kproxy-{up.name}"
    names = {obj["metadata"]["name"] for obj in connect(str(path), "").list(SERVICE).items}
    assert {"web", "kubernetes"} <= names


def test_a_kubeconfig_for_the_lab(up: Up, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    assert run_kproxy(["lab", "kubeconfig", "--in-lab", "-o", str(path)], lab=up.name).returncode == 0
    for place in PLACES:
        inside = named(up.layout.netns(place), up.layout.namespaces)
        assert run_in(inside, lambda: connect(str(path), "").list(SERVICE)).items


def test_a_nodes_kubeconfig(up: Up, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    assert run_kproxy(["lab", "kubeconfig", "--node", "node1", "-o", str(path)], lab=up.name).returncode == 0
    inside = named(up.layout.netns("node1"), up.layout.namespaces)
    client = connect(str(path), "")
    assert run_in(inside, client.list, SERVICE).items
    with pytest.raises(ApiError, match='User "system:node:node1" cannot create resource "services"'):
        run_in(inside, client.create, SERVICE, service("mine"), "default")
    refused = run_kproxy(["lab", "kubeconfig", "--node", "node9"], lab=up.name)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert 'has no node "node9"; its nodes are node1, node2' in refused.stderr
    nowhere = run_kproxy(["lab", "kubeconfig", "-o", str(tmp_path / "absent" / "file")], lab=up.name)
    assert nowhere.returncode == 1
    assert "No such file or directory" in nowhere.stderr


# ----- a guest: what kube-proxy 1.36 asks for when it starts


SELECTED = {
    "/api/v1/nodes": {"fieldSelector": "metadata.name=node2"},
    "/api/v1/services": {
        "labelSelector": "!service.kubernetes.io/service-proxy-name",
        "fieldSelector": "spec.clusterIP!=None",
    },
    "/apis/discovery.k8s.io/v1/endpointslices": {"labelSelector": "!service.kubernetes.io/headless"},
    "/apis/networking.k8s.io/v1/servicecidrs": {},
}


@pytest.mark.parametrize("path", SELECTED)
def test_what_kube_proxy_watches_is_told_with_the_watch(up: Up, path: str) -> None:
    """It takes its first list from the watch, and waits for the bookmark that ends it."""
    asked = {
        **SELECTED[path],
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
        "sendInitialEvents": "true",
        "timeoutSeconds": "1",
        "watch": "true",
    }
    shown = {
        "Authorization": f"Bearer {up.token('node2')}",
        "Accept": "application/vnd.kubernetes.protobuf, */*",
    }
    context = ssl.create_default_context(cafile=str(up.layout.certificates / "ca.crt"))
    inside = named(up.layout.netns("node2"), up.layout.namespaces)
    raw = socket_in(inside, socket.AF_INET, socket.SOCK_STREAM)
    raw.settimeout(30)
    raw.connect((API, PORT))
    connection = http.client.HTTPConnection(API)
    connection.sock = context.wrap_socket(raw, server_hostname=API)
    connection.request("GET", f"{path}?{urlencode(asked)}", headers=shown)
    response = connection.getresponse()
    events = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    assert response.status == 200, events
    types = [event["type"] for event in events]
    end = next(
        index
        for index, event in enumerate(events)
        if event["object"]["metadata"].get("annotations", {}).get("k8s.io/initial-events-end") == "true"
    )
    assert types[end] == "BOOKMARK"
    assert end >= 1
    assert set(types[:end]) == {"ADDED"}
    names = {event["object"]["metadata"]["name"] for event in events[:end]}
    assert names == {"nodes": {"node2"}, "servicecidrs": {"kubernetes"}}.get(path.rpartition("/")[2], names)


def test_our_own_proxies_say_that_they_have_started(up: Up) -> None:
    """By the same door, with the rights of a node."""

    def started() -> set[str]:
        return {
            event["source"]["host"] if event.get("source") else event.get("reportingInstance", "")
            for event in up.client.list(EVENT).items
            if event.get("reason") == "Starting"
        }

    assert until(lambda: len(started()) >= 2, "the proxies' events", 60)


# ----- after kill -9


def test_what_opens_the_doors_survives_the_control_plane(up: Up, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    run_kproxy(["lab", "kubeconfig", "-o", str(path)], lab=up.name)
    kept = {
        file: file.read_bytes() for file in (*up.layout.certificates.iterdir(), up.layout.tokens, up.layout.api_port)
    }
    _kill_control_plane(up)
    lab.up(config(up.name, nodes=2))
    assert {file: file.read_bytes() for file in kept} == kept
    assert connect(str(path), "").list(SERVICE).items
    # The proxies, which have lived on, follow what happens from now on.
    apply(up.client, service("later"))
    address = cluster_ips(up.client, "later")[0]
    until(lambda: answers(up.layout, "node2", address, 80), "the new Service", 60)


def test_a_port_that_somebody_took_meanwhile_is_another_next_time(up: Up) -> None:
    before = int(up.layout.api_port.read_text())
    _kill_control_plane(up)
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: _binds(somebody, before), "the port")
        somebody.listen()
        lab.up(config(up.name, nodes=2))
    now = int(up.layout.api_port.read_text())
    assert now != before
    text = run_kproxy(["lab", "kubeconfig"], lab=up.name).stdout
    assert yaml.safe_load(text)["clusters"][0]["cluster"]["server"] == f"https://127.0.0.1:{now}"


def _binds(taker: socket.socket, port: int) -> bool:
    try:
        taker.bind(("127.0.0.1", port))
    except OSError:  # threads of the one that was killed still end
        return False
    return True


def _kill_control_plane(up: Up) -> None:
    (pid,) = [entry.pid for entry in lab.status(up.name).processes if entry.role == "control-plane"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: _has_ended(pid), "its end", 60)


def _has_ended(pid: int) -> bool:
    """Whether not one thread of it is left; its parent, which is this process, need not have taken note."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it ended between two looks, whole or in part
        return not tasks.exists()
    return states == ["Z"]


def test_a_lab_that_is_not_there_has_no_kubeconfig() -> None:
    with pytest.raises(UserError, match="does not listen on"):
        doors.host_access(Layout("c1absent"), config("c1absent"))
    assert run_kproxy(["lab", "kubeconfig"], lab="c1absent").returncode == 1
