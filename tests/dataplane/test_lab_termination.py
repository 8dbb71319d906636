"""Graceful termination: who is asked, how long it may take, and what its Services do meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from lab_support import answers, apply, config, get, is_ready, pod, running, service, until, wait_until_programmed

from kproxy.api.kinds import ENDPOINT_SLICE, POD, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from kproxy.errors import NotFound

pytestmark = pytest.mark.root

NODES = {"node1": "192.168.1.2", "node2": "192.168.1.3"}
OUTSIDE = "203.0.113.10"


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Layout, Client]]:
    with running(f"et{os.getpid() % 10000}", nodes=2) as both:
        yield both


@pytest.fixture(autouse=True)
def nothing_left(up: tuple[Layout, Client]) -> Iterator[None]:
    yield
    _, client = up
    for obj in client.list(POD, "default").items:
        client.delete(POD, obj["metadata"]["name"], "default", grace_seconds=0)
    until(lambda: not client.list(POD, "default").items, "pods gone")


def lingering(name: str, node: str, seconds: int, **container: object) -> Object:
    """An echo server that goes on serving for some seconds after its pod was deleted."""
    obj = pod(name, nodeName=node)
    obj["spec"]["containers"][0] |= {"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}, **container}
    return obj


def local_service(client: Client, name: str) -> int:
    """The node port of a Service whose outside traffic stays on the node that it came to."""
    apply(client, service(name, type="NodePort", externalTrafficPolicy="Local"))
    return int(client.get(SERVICE, name, "default")["spec"]["ports"][0]["nodePort"])


def conditions(client: Client, name: str) -> dict[str, tuple[bool, bool, bool]]:
    """Ready, serving and terminating of a Service's endpoints, by pod."""
    slices = client.list(ENDPOINT_SLICE, "default", label_selector=f"kubernetes.io/service-name={name}").items
    keys = ("ready", "serving", "terminating")
    return {
        endpoint["targetRef"]["name"]: tuple(endpoint["conditions"][key] for key in keys)
        for item in slices
        for endpoint in item.get("endpoints") or ()
    }


def programmed(up: tuple[Layout, Client], name: str, expected: dict[str, tuple[bool, bool, bool]]) -> None:
    layout, client = up
    until(lambda: conditions(client, name) == expected, f"{expected}")
    wait_until_programmed(layout, client, list(NODES))


READY, LEAVING, LEAVING_DEAF = (True, True, False), (False, True, True), (False, False, True)


def test_terminating_endpoints_alone_go_on_answering_the_outside(up: tuple[Layout, Client]) -> None:
    layout, client = up
    port = local_service(client, "web")
    apply(client, lingering("web-1", "node1", 20))
    programmed(up, "web", {"web-1": READY})
    assert get(layout, "client", NODES["node1"], port)["client"] == OUTSIDE
    client.delete(POD, "web-1", "default")
    programmed(up, "web", {"web-1": LEAVING})
    for _ in range(5):
        seen = get(layout, "client", NODES["node1"], port)
        assert (seen["pod"], seen["client"]) == ("web-1", OUTSIDE)
    with pytest.raises(TimeoutError):
        get(layout, "client", NODES["node2"], port)


def test_terminating_endpoints_get_nothing_while_there_are_others(up: tuple[Layout, Client]) -> None:
    layout, client = up
    port = local_service(client, "web")
    apply(client, lingering("web-1", "node1", 20), lingering("web-2", "node1", 20))
    programmed(up, "web", {"web-1": READY, "web-2": READY})
    client.delete(POD, "web-1", "default")
    programmed(up, "web", {"web-1": LEAVING, "web-2": READY})
    assert {get(layout, "client", NODES["node1"], port)["pod"] for _ in range(12)} == {"web-2"}
    client.delete(POD, "web-2", "default")
    programmed(up, "web", {"web-1": LEAVING, "web-2": LEAVING})
    seen = [get(layout, "client", NODES["node1"], port)["pod"] for _ in range(24)]
    assert set(seen) == {"web-1", "web-2"}


def test_who_leaves_and_is_not_ready_serves_no_more(up: tuple[Layout, Client]) -> None:
    layout, client = up
    port = local_service(client, "web")
    probe = {"exec": {"command": ["bash", "-c", "</dev/tcp/127.0.0.1/8080 && test ! -e /proc/sys/net/ipv4/conf/sick"]}}
    sick = ["ip", "-n", layout.netns("default.web-1"), "link", "add", "name", "sick", "type", "bridge"]
    apply(client, lingering("web-1", "node1", 20, readinessProbe={**probe, "periodSeconds": 1, "failureThreshold": 1}))
    programmed(up, "web", {"web-1": READY})
    client.delete(POD, "web-1", "default")
    programmed(up, "web", {"web-1": LEAVING})
    assert answers(layout, "client", NODES["node1"], port)
    assert os.spawnvp(os.P_WAIT, sick[0], sick) == 0
    programmed(up, "web", {"web-1": LEAVING_DEAF})
    with pytest.raises(ConnectionRefusedError):
        get(layout, "client", NODES["node1"], port)


def test_a_pod_ends_when_its_pause_is_over(up: tuple[Layout, Client]) -> None:
    _, client = up
    apply(client, lingering("web-1", "node1", 1))
    until(lambda: is_ready(client.get(POD, "web-1", "default")), "ready")
    began = time.monotonic()
    client.delete(POD, "web-1", "default")
    until(lambda: is_gone(client, "web-1"), "end")
    assert 0.9 < time.monotonic() - began < 25, "its grace would be 30 s"


@pytest.mark.parametrize("network", ["its own", "host"])
def test_the_command_itself_is_asked_and_nobody_else(up: tuple[Layout, Client], network: str) -> None:
    layout, client = up
    child = "(trap 'echo child asked' TERM; while :; do sleep 0.05; done) &"
    orphan = "sh -c \"trap 'echo orphan asked' TERM; (while :; do sleep 0.05; done) & \""
    script = f"{child} {orphan}; trap 'echo asked; exit 0' TERM; echo started; while :; do sleep 0.05; done"
    name = f"main-{network[:3]}"
    apply(client, pod(name, command=["sh", "-c", script], hostNetwork=network == "host"))
    log = layout.log(f"default.{name}.main")
    until(lambda: log.exists() and "started" in log.read_text(), "start")
    client.delete(POD, name, "default")
    until(lambda: is_gone(client, name), "end")
    assert log.read_text() == "started\nasked\n"


def test_a_second_delete_shortens_the_grace(up: tuple[Layout, Client]) -> None:
    _, client = up
    apply(client, pod("deaf", command=["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]))
    until(lambda: is_ready(client.get(POD, "deaf", "default")), "ready")
    time.sleep(0.1)
    client.delete(POD, "deaf", "default")
    time.sleep(0.5)
    assert not is_gone(client, "deaf")
    began = time.monotonic()
    client.delete(POD, "deaf", "default", grace_seconds=1)
    until(lambda: is_gone(client, "deaf"), "end")
    assert 0.9 < time.monotonic() - began < 25, "its grace would be 30 s"


def test_a_pod_that_is_leaving_outlives_the_control_plane(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, lingering("web-1", "node1", 4), lingering("job", "node2", 4, command=["sleep", "1000"]))
    for name in ("web-1", "job"):
        until(lambda name=name: is_ready(client.get(POD, name, "default")), "ready")
    address = client.get(POD, "web-1", "default")["status"]["podIP"]
    for name in ("web-1", "job"):
        client.delete(POD, name, "default")
    before = processes(layout)
    os.kill(before.pop("host"), signal.SIGKILL)
    lab.up(config(layout.lab, nodes=2))
    assert answers(layout, "node2", address, 8080)
    assert {key: pid for key, pid in processes(layout).items() if key != "host"} == before
    for name in ("web-1", "job"):
        until(lambda name=name: is_gone(client, name), "end", 20)


def processes(layout: Layout) -> dict[str, int]:
    found = lab.status(layout.lab).processes
    return {entry.where: entry.pid for entry in found if entry.role in ("pod", "control-plane")}


def is_gone(client: Client, name: str) -> bool:
    try:
        client.get(POD, name, "default")
    except NotFound:
        return True
    return False
