"""`kill -9` after every single step that changes the system, during up, apply and down: `lab down` leaves nothing.

The steps number themselves (KPROXY_CRASH_AT). A first run without a crash tells how many there are; then each of them
is the last one of a run of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_support import apply, assert_nothing_is_left, is_ready, pod, service, until

from kproxy.api.kinds import NODE, POD
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from kproxy.errors import KproxyError
from kproxy.testing.labs import guarded
from netns.journal import CRASH_AT, Journal

pytestmark = pytest.mark.root

UP = "import sys; from lab_support import config, lab; lab.up(config(sys.argv[1], nodes=1))"
DOWN = "import sys; from lab_support import lab; lab.down(sys.argv[1])"
PODS = 3


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name, with things of other people's beside it that carry almost the same."""
    name = f"ec{os.getpid() % 10000}"
    theirs = f"{name}-theirs"
    with guarded(name):
        yield from beside(name, theirs)


def beside(name: str, theirs: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", theirs], check=True)
    try:
        subprocess.run(
            ["ip", "-n", theirs, "link", "add", "name", "mine", "type", "bridge"],
            check=True,
        )
        yield name
        shown = subprocess.run(
            ["ip", "-n", theirs, "link", "show", "mine"],
            check=False,
            capture_output=True,
        )
        assert shown.returncode == 0
    finally:
        lab.down(name)
        subprocess.run(["ip", "netns", "del", theirs], check=True)


def run(program: str, name: str, crash_at: str) -> int:
    """The exit status of a step of a lab's life in a process of its own."""
    env = {**os.environ, CRASH_AT: crash_at, "KPROXY_TEST": name}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stderr)  # shown when the test fails
    return done.returncode


def fill(name: str) -> bool:
    """Applies and deletes pods of each kind; false when the control plane died over it."""
    client = Client(Layout(name).api_url)
    try:
        apply(
            client,
            service("web"),
            pod("web"),
            pod("job", command=["sleep", "1000"]),
            pod("on-node", hostNetwork=True),
        )
        until(lambda: sum(map(is_ready, client.list(POD, "default").items)) == PODS, "pods ready", 60)
        client.delete(POD, "web", "default")
        client.delete(POD, "job", "default", grace_seconds=0)
        client.delete(POD, "on-node", "default")
        until(lambda: not client.list(POD, "default").items, "pods gone", 60)
    except KproxyError:
        return False
    finally:
        client.close()
    return True


def steps_of(name: str, role: str) -> tuple[str, ...]:
    journal = Journal(Layout(name).journal, "test")
    try:
        return journal.recorded_steps(role)
    finally:
        journal.close()


def test_nothing_is_left_after_a_crash_at_any_step_of_up_and_apply(name: str) -> None:
    assert run(UP, name, "control-plane:0") == 0
    assert fill(name)
    control_plane = steps_of(name, "control-plane")
    command = steps_of(name, "lab")
    lab.down(name)
    assert_nothing_is_left(name)
    assert len(control_plane) > 30
    assert any("default.web" in what for what in control_plane)
    for role, steps in (("lab", command), ("control-plane", control_plane)):
        for number, what in enumerate(steps, start=1):
            survived = run(UP, name, f"{role}:{number}") == 0 and fill(name)
            assert not survived or role == "lab", f"step {number} of {role} ({what}) was not reached"
            lab.down(name)
            assert_nothing_is_left(name)


def test_a_crash_at_any_third_step_is_mended_by_another_up(name: str) -> None:
    assert run(UP, name, "control-plane:0") == 0
    assert fill(name)
    count = len(steps_of(name, "control-plane"))
    lab.down(name)
    for number in range(1, count + 1, 3):
        if run(UP, name, f"control-plane:{number}") == 0:
            fill(name)
        assert run(UP, name, "none:0") == 0
        client = Client(Layout(name).api_url)
        for obj in client.list(POD, "default").items:
            client.delete(POD, obj["metadata"]["name"], "default", grace_seconds=0)
        until(
            lambda client=client: not client.list(POD, "default").items,
            "pods of the crashed control plane gone",
        )
        client.close()
        assert fill(name), f"step {number}"
        lab.down(name)
        assert_nothing_is_left(name)


def test_down_may_be_killed_at_any_step(name: str) -> None:
    number = 0
    while True:
        number += 1
        assert run(UP, name, "none:0") == 0
        client = Client(Layout(name).api_url)
        apply(client, pod("web"), pod("job", command=["sleep", "1000"]))
        until(
            lambda client=client: sum(map(is_ready, client.list(POD, "default").items)) == 2,
            "pods ready",
        )
        client.close()
        status = run(DOWN, name, f"down:{number}")
        if status == 0:
            break
        assert status == -signal.SIGKILL
        lab.down(name)
        assert_nothing_is_left(name)
    assert number > 10
    assert_nothing_is_left(name)


@pytest.mark.parametrize("role", ["control-plane", "fork-server", "proxy", "pod"])
def test_nothing_is_left_when_one_of_its_processes_was_killed(name: str, role: str) -> None:
    assert run(UP, name, "none:0") == 0
    client = Client(Layout(name).api_url)
    apply(client, pod("web"), pod("job", command=["sleep", "1000"]))
    until(lambda: sum(map(is_ready, client.list(POD, "default").items)) == 2, "pods ready")
    client.close()
    victims = [entry.pid for entry in lab.status(name).processes if entry.role == role]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    lab.down(name)
    assert_nothing_is_left(name)


def test_nothing_is_left_when_everything_was_killed(name: str) -> None:
    assert run(UP, name, "none:0") == 0
    client = Client(Layout(name).api_url)
    apply(client, pod("web"), pod("job", command=["sleep", "1000"]))
    until(lambda: sum(map(is_ready, client.list(POD, "default").items)) == 2, "pods ready")
    client.close()
    for entry in lab.status(name).processes:
        os.kill(entry.pid, signal.SIGKILL)
    lab.down(name)
    assert_nothing_is_left(name)


def test_folders_without_a_record_are_removed(name: str) -> None:
    Layout(name).make()
    assert lab.down(name)
    assert_nothing_is_left(name)


def test_a_node_that_was_registered_by_half_gets_its_addresses(name: str) -> None:
    """The Node and its status are two writes; the kill between them is planted here, for it hardly ever hits."""
    assert run(UP, name, "none:0") == 0
    client = Client(Layout(name).api_url)
    client.patch(NODE, "node1", {"status": {"addresses": None, "conditions": None}}, subresource="status")
    (victim,) = [entry.pid for entry in lab.status(name).processes if entry.role == "control-plane"]
    os.kill(victim, signal.SIGKILL)
    assert run(UP, name, "none:0") == 0
    assert {entry["type"] for entry in client.get(NODE, "node1")["status"]["addresses"]} == {"InternalIP", "Hostname"}
