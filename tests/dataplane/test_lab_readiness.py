"""Readiness probes as kubelet's: what they ask, from where, and that a pod leaves its Service and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import (
    apply,
    cluster_ips,
    config,
    get,
    pod,
    running,
    service,
    until,
    wait_until_programmed,
)

from kproxy.api.kinds import ENDPOINT_SLICE, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from kproxy.cluster.logs import older
from kproxy.errors import NotFound

pytestmark = pytest.mark.root

PROGRAM = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    is_well = True
    def do_GET(self):
        if self.path in ("/sick", "/well"):
            Handler.is_well = self.path == "/well"
        print(self.client_address[0], self.path, self.headers["User-Agent"], flush=True)
        self.send_response(200 if Handler.is_well or self.path != "/healthz" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
HEALTHZ = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}


def probed(name: str, probe: Object, *, command: list[str] | None = None, **spec: Any) -> Object:
    """A pod with a readiness probe; the echo server if it has no command."""
    obj = pod(name, command=command, **spec) if command else pod(name, **spec)
    obj["spec"]["containers"][0]["readinessProbe"] = probe
    obj["spec"]["terminationGracePeriodSeconds"] = 1
    obj["metadata"]["labels"] = {"app": name}
    return obj


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Layout, Client]]:
    with running(f"ey{os.getpid() % 10000}", nodes=2) as both:
        yield both


@pytest.fixture(autouse=True)
def no_pods(up: tuple[Layout, Client]) -> Iterator[None]:
    yield
    _, client = up
    for obj in client.list(POD, "default").items:
        client.delete(POD, obj["metadata"]["name"], "default", grace_seconds=0)


def ready_of(client: Client, name: str) -> Object:
    conditions = (client.get(POD, name, "default").get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == "Ready"), {"status": "Unknown"})


def wait_for(client: Client, name: str, status: str, seconds: float = 10) -> Object:
    return until(lambda: (found := ready_of(client, name))["status"] == status and found, f"Ready {status}", seconds)


def endpoints(client: Client, name: str) -> list[Object]:
    slices = client.list(ENDPOINT_SLICE, "default", label_selector=f"kubernetes.io/service-name={name}").items
    return [endpoint for item in slices for endpoint in item.get("endpoints") or ()]


def test_a_pod_that_is_not_ready_leaves_its_service_and_comes_back(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(
        client,
        service("turns", selector={"app": "turns"}),
        probed("turns", HEALTHZ, command=["python3", "-c", PROGRAM], nodeName="node1"),
    )
    wait_for(client, "turns", "True")
    own, virtual = client.get(POD, "turns", "default")["status"]["podIP"], cluster_ips(client, "turns")[0]

    def programmed(ready: bool) -> None:
        until(lambda: [entry["conditions"]["ready"] for entry in endpoints(client, "turns")] == [ready], "slice")
        wait_until_programmed(layout, client, ["node1", "node2"])

    programmed(True)
    assert answers_at(layout, "node2", virtual, 80)
    get(layout, "node1", own, 8080, "/sick")
    complaint = wait_for(client, "turns", "False")
    assert complaint["message"].endswith("main: HTTP probe failed with statuscode: 503")
    programmed(False)
    for node in ("node1", "node2"):
        with pytest.raises(ConnectionRefusedError):
            get(layout, node, virtual, 80, "/")
    assert answers_at(layout, "node2", own, 8080), "the pod itself is still there"
    get(layout, "node1", own, 8080, "/well")
    wait_for(client, "turns", "True")
    programmed(True)
    assert answers_at(layout, "node2", virtual, 80)


def answers_at(layout: Layout, place: str, address: str, port: int) -> bool:
    try:
        get(layout, place, address, port, "/")
    except OSError:
        return False
    return True


def test_a_probe_comes_from_the_node_and_says_who_asks(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, probed("asked", HEALTHZ, command=["python3", "-c", PROGRAM], nodeName="node2"))
    wait_for(client, "asked", "True")
    assert set(layout.log("default.asked.main").read_text().splitlines()) == {"10.244.2.1 /healthz kube-probe/1.36"}


PROBES = {
    "http, a named port of the echo server": {"httpGet": {"path": "any", "port": "http"}},
    "http, the name of a header's host": {"httpGet": {"port": 8080, "httpHeaders": [{"name": "Host", "value": "a.b"}]}},
    "tcp": {"tcpSocket": {"port": 8080}},
    "exec beside the echo server, on the pod's network": {
        "exec": {"command": ["bash", "-c", "</dev/tcp/127.0.0.1/8080"]}
    },
}


@pytest.mark.parametrize("network", ["its own", "host"])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_what_answers_is_ready(up: tuple[Layout, Client], probe: Object, network: str) -> None:
    _, client = up
    obj = probed("good", probe, hostNetwork=network == "host")
    obj["spec"]["containers"][0]["ports"][0]["name"] = "http"
    apply(client, obj)
    wait_for(client, "good", "True")


FAILURES = {
    "http, nobody listens": ({"httpGet": {"port": 9}}, "GET http://10.244.1.*:9/: Connection refused"),
    "http, a name that no port has": ({"httpGet": {"port": "nosuch"}}, 'no port of the container is called "nosuch"'),
    "http, of another language": ({"httpGet": {"port": 7}}, "GET http://10.244.1.*:7/: this is no HTTP: 'SSH-2.0'"),
    "http, no end in sight": ({"httpGet": {"port": 6}}, "GET http://10.244.1.*:6/: timed out after 1 s"),
    "tcp": ({"tcpSocket": {"port": 9}}, "connection to 10.244.1.*:9: Connection refused"),
    "exec, a status": ({"exec": {"command": ["sh", "-c", "exit 3"]}}, "command sh -c exit 3: exit status 3"),
    "exec, its words": ({"exec": {"command": ["sh", "-c", "echo sorry; exit 1"]}}, "sorry"),
    "exec, too long": ({"exec": {"command": ["sleep", "100"]}}, "command sleep 100: timed out after 1 s"),
}
TALKERS = """
import socket, time
listeners = [socket.create_server(("", port)) for port in (6, 7)]
kept = []
while True:
    for listener in listeners:
        listener.setblocking(False)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            time.sleep(0.01)
            continue
        kept.append(connection)
        connection.setblocking(True)
        if listener is listeners[1]:
            connection.sendall(b"SSH-2.0\\n")
"""


@pytest.mark.parametrize(("probe", "message"), FAILURES.values(), ids=FAILURES)
def test_what_does_not_answer_is_not_ready_and_says_why(up: tuple[Layout, Client], probe: Object, message: str) -> None:
    _, client = up
    apply(client, probed("bad", {**probe, "failureThreshold": 1}, command=["python3", "-c", TALKERS], nodeName="node1"))
    own = until(lambda: client.get(POD, "bad", "default").get("status", {}).get("podIP"), "an address")
    complaint = f"containers with unready status: [main]; main: {message.replace('10.244.1.*', own)}"
    until(lambda: ready_of(client, "bad").get("message") == complaint, f"{complaint}, not {ready_of(client, 'bad')}")
    assert ready_of(client, "bad")["status"] == "False"


def test_a_command_is_run_in_the_container_itself(up: tuple[Layout, Client]) -> None:
    _, client = up
    script = "touch /tmp/healthy; sleep 1.5; rm /tmp/healthy; sleep 1000"
    probe = {"exec": {"command": ["cat", "/tmp/healthy"]}, "periodSeconds": 1, "failureThreshold": 1}
    apply(client, probed("classic", probe, command=sh(script)))
    wait_for(client, "classic", "True")
    complaint = wait_for(client, "classic", "False")
    assert complaint["message"].endswith("main: cat: /tmp/healthy: No such file or directory")


def test_a_command_in_a_container_is_as_confined_as_the_container(up: tuple[Layout, Client]) -> None:
    layout, client = up
    script = "{ id -u; hostname; cat /proc/self/status /etc/shadow; ls / /proc/1/root; env; pwd; } >/tmp/seen 2>&1"
    obj = probed("confined", {"exec": {"command": sh(script)}}, command=["sleep", "1000"])
    obj["spec"]["containers"][0] |= {"env": [{"name": "LD_PRELOAD", "value": "/tmp/x"}], "workingDir": "/usr"}
    apply(client, obj)
    wait_for(client, "confined", "True")
    (process,) = [entry for entry in lab.status(layout.lab).processes if entry.where == "default/confined"]
    seen = seen_by(process.pid)
    status = dict(line.split(":", 1) for line in seen.splitlines() if line.startswith(("Cap", "NoNew", "Groups")))
    assert {name for name, value in status.items() if value.strip() not in ("0000000000000000", "")} == {"NoNewPrivs"}
    assert [line for line in seen.splitlines() if "ERROR" not in line][:2] == ["0", "confined"]
    assert "/etc/shadow: No such file or directory" in seen
    assert "home" not in seen.split()
    assert "LD_PRELOAD=/tmp/x" in seen
    assert seen.rstrip().endswith("/usr")


def seen_by(outer: int) -> str:
    """What the sandbox of that outer process has in /tmp/seen."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == outer:
                    return (folder / "root/tmp/seen").read_text()
    raise AssertionError("no sandbox")


MOVED = """
import http.server, os, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        moved = {"/old": "/healthz", "/away": "http://192.0.2.1/", "/round": "/round"}.get(self.path)
        self.send_response(302 if moved else 200 if self.path == "/healthz" else 404)
        if moved:
            self.send_header("Location", moved)
        self.send_header("Content-Length", "0")
        self.end_headers()
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
open("/tmp/pem", "w").write(os.environ["PEM"])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/healthz", ""),
        ("/old", ""),
        ("/away", ""),
        ("/none", "HTTP probe failed with statuscode: 404"),
        ("/round", "stopped after 10 redirects"),
    ],
)
def test_whoever_answers_over_tls_is_taken_and_redirects_are_followed(
    up: tuple[Layout, Client], path: str, complaint: str
) -> None:
    _, client = up
    probe = {"httpGet": {"path": path, "port": 8443, "scheme": "HTTPS"}, "failureThreshold": 1}
    obj = probed("secure", probe, command=["python3", "-c", MOVED])
    obj["spec"]["containers"][0]["env"] = [{"name": "PEM", "value": self_signed()}]
    apply(client, obj)
    if complaint:
        until(lambda: ready_of(client, "secure").get("message", "").endswith(complaint), complaint)
    else:
        wait_for(client, "secure", "True")


def self_signed() -> str:
    request = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    request += ["-subj", "/CN=nobody", "-keyout", "-", "-out", "-"]
    return subprocess.run(request, capture_output=True, text=True, check=True).stdout


def test_nothing_is_asked_before_its_time(up: tuple[Layout, Client]) -> None:
    _, client = up
    began = time.monotonic()
    apply(client, probed("late", {"tcpSocket": {"port": 8080}, "initialDelaySeconds": 2}))
    wait_for(client, "late", "False")
    wait_for(client, "late", "True")
    assert time.monotonic() - began > 1.9


def test_one_failure_of_three_is_none(up: tuple[Layout, Client]) -> None:
    _, client = up
    # Fails every other time, which is never twice in a row.
    script = "test -e /tmp/odd && rm /tmp/odd || { touch /tmp/odd; exit 1; }"
    probe = {"exec": {"command": sh(script)}, "periodSeconds": 1, "failureThreshold": 2}
    apply(client, probed("flaky", probe, command=["sleep", "1000"]))
    since = wait_for(client, "flaky", "True")["lastTransitionTime"]
    time.sleep(3)
    found = ready_of(client, "flaky")
    assert (found["status"], found["lastTransitionTime"]) == ("True", since)


def test_a_container_that_is_started_again_has_to_show_it_again(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, probed("again", {**HEALTHZ, "periodSeconds": 100}, command=["python3", "-c", PROGRAM]))
    wait_for(client, "again", "True")
    log = layout.log("default.again.main")
    asked = len(log.read_text().splitlines())
    (process,) = [entry for entry in lab.status(layout.lab).processes if entry.where == "default/again"]
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: older(log).exists() and len(log.read_text().splitlines()) >= asked, "another probe")
    wait_for(client, "again", "True")


def test_readiness_survives_the_control_plane(up: tuple[Layout, Client]) -> None:
    layout, client = up
    slow = {**HEALTHZ, "initialDelaySeconds": 0, "periodSeconds": 60}
    apply(
        client, probed("kept", slow, command=["python3", "-c", PROGRAM]), probed("echo", {"tcpSocket": {"port": 8080}})
    )
    apply(client, service("kept", selector={"app": "kept"}))
    for name in ("kept", "echo"):
        wait_for(client, name, "True")
    before = {name: client.get(POD, name, "default")["status"] for name in ("kept", "echo")}
    (control_plane,) = [entry.pid for entry in lab.status(layout.lab).processes if entry.role == "control-plane"]
    os.kill(control_plane, signal.SIGKILL)
    lab.up(config(layout.lab, nodes=2))
    assert {name: client.get(POD, name, "default")["status"] for name in ("kept", "echo")} == before


def test_a_pod_that_is_gone_is_asked_no_more(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(
        client,
        probed("short", {"exec": {"command": ["sleep", "100"]}, "timeoutSeconds": 100}, command=["sleep", "1000"]),
    )
    until(lambda: is_started(client, "short"), "start")
    time.sleep(0.3)
    client.delete(POD, "short", "default", grace_seconds=0)
    until(lambda: not is_there(client, "short"), "end")
    until(lambda: not any(entry.where == "default/short" for entry in lab.status(layout.lab).processes), "its end")


def is_started(client: Client, name: str) -> bool:
    statuses = (client.get(POD, name, "default").get("status") or {}).get("containerStatuses") or [{}]
    return bool(statuses[0].get("started"))


def is_there(client: Client, name: str) -> bool:
    try:
        client.get(POD, name, "default")
    except NotFound:
        return False
    return True
