"""A whole lab: up, pods that answer through Services from every node, recovery after kill -9, down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_support import (
    answers,
    apply,
    assert_nothing_is_left,
    cluster_ips,
    config,
    get,
    host_state,
    pod,
    ready_pods,
    running,
    service,
    until,
    wait_until_programmed,
)

from kproxy.api.kinds import ENDPOINT_SLICE, POD
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from kproxy.errors import NotFound, UserError

pytestmark = pytest.mark.root

NODES = ["node1", "node2", "node3"]


@pytest.fixture(scope="module")
def lab_name() -> str:
    return f"el{os.getpid() % 10000}"


@pytest.fixture
def up(lab_name: str) -> Iterator[tuple[Layout, Client]]:
    with running(lab_name) as both:
        yield both
    assert_nothing_is_left(lab_name)


def wait_for_endpoints(client: Client, count: int) -> None:
    def look() -> bool:
        slices = client.list(ENDPOINT_SLICE, "default").items
        ready = [
            endpoint
            for item in slices
            for endpoint in item.get("endpoints") or ()
            if endpoint["conditions"]["ready"] and item["metadata"]["labels"].get("kubernetes.io/service-name") == "web"
        ]
        return len(ready) == count

    until(look, f"{count} endpoints")


def wait_until_answering(up: tuple[Layout, Client], endpoints: int) -> str:
    layout, client = up
    wait_for_endpoints(client, endpoints)
    wait_until_programmed(layout, client, NODES)
    return cluster_ips(client, "web")[0]


def test_twelve_pods_answer_through_their_service_in_a_few_seconds(
    lab_name: str,
) -> None:
    began = time.monotonic()
    with running(lab_name) as (layout, client):
        apply(client, service("web"), *(pod(f"web-{number}") for number in range(12)))
        addresses = ready_pods(client, 12)
        address = wait_until_answering((layout, client), 12)
        answers = {node: get(layout, node, address, 80) for node in NODES}
        took = time.monotonic() - began
        assert all(answer["address"] in addresses.values() for answer in answers.values())
        inside = get(layout, "default.web-0", address, 80)
        assert inside["client"] in (addresses["web-0"], "10.244.1.1")
        # About 3 s on two idle cores; others may be at work here.
        assert took < 60, took
    assert_nothing_is_left(lab_name)


def test_the_host_is_the_same_before_during_and_after(lab_name: str) -> None:
    with running(lab_name):
        pass  # what the kernel loads by itself at the first lab is there from now on
    before = host_state()
    with running(lab_name) as (layout, client):
        apply(client, service("web"), pod("web-1"), pod("job", command=["sleep", "100"]))
        ready_pods(client, 2)
        assert (
            get(
                layout,
                "node2",
                wait_until_answering((layout, client), 1),
                80,
                "/hostname",
            )
            == "web-1\n"
        )
        assert host_state() == before
    assert host_state() == before


def test_up_twice_says_so_and_another_configuration_is_refused(up: tuple[Layout, Client], lab_name: str) -> None:
    assert lab.up(config(lab_name)).was_up
    with pytest.raises(UserError, match="another configuration"):
        lab.up(config(lab_name, nodes=1))


def test_only_who_asks_for_nothing_is_content_with_what_is_there() -> None:
    name = f"lk{os.getpid() % 10000}"
    with running(name, nodes=1, proxy_mode="none"):
        assert len(lab.up(config(name, dns_replicas=None)).status.nodes) == 1
        with pytest.raises(UserError, match="another configuration"):
            lab.up(config(name), is_stated=True)


def test_down_without_a_lab_has_nothing_to_do(lab_name: str) -> None:
    assert lab.down(lab_name) is False


def test_somebody_elses_namespace_of_the_same_name_is_refused_and_left_alone(
    lab_name: str,
) -> None:
    theirs = f"{lab_name}-node2"
    subprocess.run(["ip", "netns", "add", theirs], check=True)
    try:
        with pytest.raises(UserError, match="made by somebody else"):
            lab.up(config(lab_name))
        assert lab.down(lab_name) is False
        assert Path("/run/netns", theirs).is_file()
    finally:
        subprocess.run(["ip", "netns", "del", theirs], check=True)
    assert_nothing_is_left(lab_name)


def test_a_pod_that_is_deleted_takes_its_address_along(
    up: tuple[Layout, Client],
) -> None:
    layout, client = up
    apply(client, pod("web-1"))
    (address,) = ready_pods(client, 1).values()
    node = client.get(POD, "web-1", "default")["spec"]["nodeName"]
    assert get(layout, node, address, 8080, "/hostname") == "web-1\n"
    client.delete(POD, "web-1", "default")

    def is_gone() -> bool:
        try:
            client.get(POD, "web-1", "default")
        except NotFound:
            return True
        return False

    until(is_gone, "pod deleted")
    assert not Path("/run/netns", layout.netns("default.web-1")).is_symlink()
    assert not answers(layout, node, address, 8080)
    apply(client, pod("web-2"))
    assert address not in ready_pods(client, 1).values()


def test_everything_goes_on_when_the_control_plane_is_killed(up: tuple[Layout, Client], lab_name: str) -> None:
    layout, client = up
    apply(
        client,
        service("web"),
        pod("web-1"),
        pod("job", command=["sh", "-c", "sleep 1000"]),
    )
    addresses = ready_pods(client, 2)
    address = wait_until_answering(up, 1)
    before = {(entry.role, entry.where): entry.pid for entry in lab.status(lab_name).processes}
    os.kill(before["control-plane", "host"], signal.SIGKILL)
    assert get(layout, "node3", address, 80, "/hostname") == "web-1\n"
    until(lambda: not layout.api_socket.exists() or not _answers(lab_name), "API gone")
    assert not lab.up(config(lab_name)).was_up
    assert ready_pods(client, 2) == addresses
    after = {(entry.role, entry.where): entry.pid for entry in lab.status(lab_name).processes}
    replaced = {place for place, pid in before.items() if after[place] != pid}
    assert replaced == {("control-plane", "host"), ("fork-server", "host")}
    apply(client, pod("web-2"))
    ready_pods(client, 3)
    wait_until_answering(up, 2)


def _answers(name: str) -> bool:
    try:
        lab.status(name)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("role", ["proxy", "fork-server", "pod"])
def test_what_is_killed_is_started_again(up: tuple[Layout, Client], lab_name: str, role: str) -> None:
    layout, client = up
    apply(client, service("web"), pod("web-1"))
    ready_pods(client, 1)
    address = wait_until_answering(up, 1)
    victims = [entry for entry in lab.status(lab_name).processes if entry.role == role]
    assert victims
    for entry in victims:
        os.kill(entry.pid, signal.SIGKILL)
    apply(client, pod("web-2"))
    until(lambda: len(ready_pods(client, 2)) == 2, "both pods ready again")

    def pids() -> set[int]:
        return {entry.pid for entry in lab.status(lab_name).processes if entry.role == role}

    until(
        lambda: len(pids() - {entry.pid for entry in victims}) >= len(victims),
        f"a new {role}",
    )
    wait_until_answering(up, 2)
    for node in NODES:
        assert get(layout, node, address, 80)["pod"] in ("web-1", "web-2")


def test_resync_mends_what_somebody_has_broken(up: tuple[Layout, Client], lab_name: str) -> None:
    layout, client = up
    apply(client, service("web"), pod("web-1"))
    address = wait_until_answering(up, 1)
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            layout.netns("node2"),
            str(layout.tools / "iptables"),
            "-t",
            "nat",
            "-F",
            "KUBE-SERVICES",
        ],
        check=True,
    )
    assert not answers(layout, "node2", address, 80)
    lab.resync(lab_name)
    assert get(layout, "node2", address, 80, "/hostname") == "web-1\n"


def test_the_echo_server_listens_where_services_send(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, pod("web-1", ports=()), service("web", target=9376))
    (address,) = ready_pods(client, 1).values()
    until(lambda: answers(layout, "node1", address, 9376), "port of the first Service")
    apply(client, service("other", target=9999))
    until(lambda: answers(layout, "node1", address, 9999), "port of a later Service")
