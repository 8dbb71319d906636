"""Containers as a kubelet would run them: what they are told, how they are looked at and ended, what they may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import apply, is_ready, pod, running, until

from kproxy.api.kinds import EVENT, POD
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.fork_server import LOG_LIMIT
from kproxy.cluster.layout import Layout
from kproxy.cluster.logs import older
from kproxy.errors import NotFound
from kproxy.testing.labs import run_kproxy
from netns import cgroup
from netns.errors import NetnsError

pytestmark = pytest.mark.root
PATIENCE = 60.0


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Layout, Client]]:
    with running(f"ek{os.getpid() % 10000}", nodes=1) as both:
        yield both


def commanded(name: str, script: str, container: Object | None = None, **spec: Any) -> Object:
    obj = pod(name, command=["sh", "-c", script], **spec)
    obj["spec"]["containers"][0] |= container or {}
    return obj


def log_of(layout: Layout, name: str) -> str:
    try:
        return layout.log(f"default.{name}.main").read_text()
    except FileNotFoundError:
        return ""


def container_of(client: Client, name: str) -> Object:
    statuses = (client.get(POD, name, "default").get("status") or {}).get("containerStatuses") or [{}]
    found: Object = statuses[0]
    return found


def reasons(client: Client, name: str) -> set[str]:
    events = client.list(EVENT, "default", field_selector=f"involvedObject.name={name}").items
    return {str(event["reason"]) for event in events}


def is_gone(client: Client, name: str) -> bool:
    try:
        client.get(POD, name, "default")
    except NotFound:
        return True
    return False


def test_variables_come_from_the_pod_its_config_and_the_services(up: tuple[Layout, Client]) -> None:
    layout, client = up
    env = [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "paint", "key": "colour"}}},
        {"name": "BOTH", "value": "$(COLOUR) on $(NODE), $$(NODE)"},
    ]
    script = "echo $BOTH; echo $ADDRESS; echo $KUBERNETES_SERVICE_HOST; echo $0; echo $SIZE; exec sleep 1000"
    obj = commanded("told", script, {"env": env, "args": ["$(COLOUR)"]})
    obj["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "paint"}}]
    client.apply([{"object": obj}])
    waiting = until(lambda: (container_of(client, "told").get("state") or {}).get("waiting"), "no ConfigMap yet")
    until(
        lambda: container_of(client, "told")["state"]["waiting"]["reason"] == "CreateContainerConfigError", "a reason"
    )
    assert waiting["reason"] in ("ContainerCreating", "CreateContainerConfigError")
    data = {"colour": "red", "SIZE": "7"}
    apply(client, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "paint"}, "data": data})
    until(lambda: is_ready(client.get(POD, "told", "default")), "ready", PATIENCE)
    own = client.get(POD, "told", "default")["status"]["podIP"]
    lines = until(lambda: len(found := log_of(layout, "told").splitlines()) == 5 and found, "five lines")
    assert lines == ["red on node1, $(NODE)", own, "10.96.0.1", "red", "7"]


def test_what_is_not_alive_is_started_again(up: tuple[Layout, Client]) -> None:
    layout, client = up
    probe = {"exec": {"command": ["test", "!", "-e", "/tmp/dead"]}, "periodSeconds": 1, "failureThreshold": 2}
    script = "trap 'echo asked; exit 0' TERM; echo began; sleep 0.5; touch /tmp/dead; while :; do sleep 0.05; done"
    apply(client, commanded("mortal", script, {"livenessProbe": probe}))
    until(lambda: container_of(client, "mortal").get("restartCount"), "a restart", PATIENCE)
    until(lambda: older(layout.log("default.mortal.main")).exists(), "the log of the first run")
    assert older(layout.log("default.mortal.main")).read_text() == "began\nasked\n"
    assert run_kproxy(["logs", "-p", "mortal"], lab=layout.lab).stdout == "began\nasked\n"
    until(lambda: {"Unhealthy", "Killing", "Started"} <= reasons(client, "mortal"), "events")


def test_nobody_asks_how_it_is_before_it_has_started(up: tuple[Layout, Client]) -> None:
    _, client = up
    started = {"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 60}
    alive = {"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "sleep 3; touch /tmp/started; exec sleep 1000"
    apply(client, commanded("slow", script, {"startupProbe": started, "livenessProbe": alive}))
    until(lambda: (container_of(client, "slow").get("state") or {}).get("running"), "running", PATIENCE)
    first = container_of(client, "slow")
    assert (first["started"], first["ready"]) == (False, False)
    until(lambda: is_ready(client.get(POD, "slow", "default")), "ready", PATIENCE)
    found = container_of(client, "slow")
    assert (found["started"], found["restartCount"]) == (True, 0)


def test_a_hook_comes_before_the_end(up: tuple[Layout, Client]) -> None:
    layout, client = up
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >/tmp/said; sleep 0.5"]}}}
    script = "trap 'cat /tmp/said; echo asked; exit 0' TERM; echo began; while :; do sleep 0.05; done"
    apply(client, commanded("hooked", script, {"lifecycle": hook}))
    until(lambda: log_of(layout, "hooked") == "began\n", "its begin", PATIENCE)
    client.delete(POD, "hooked", "default")
    until(lambda: is_gone(client, "hooked"), "its end", PATIENCE)
    assert log_of(layout, "hooked") == "began\nhook\nasked\n"
    assert "Killing" in reasons(client, "hooked")


def limited() -> bool:
    try:
        cgroup.find()
    except NetnsError:
        return False
    return True


needs_groups = pytest.mark.skipif(not limited(), reason="this host has no control groups that can be written")


@needs_groups
def test_one_that_takes_too_much_memory_is_ended_alone(up: tuple[Layout, Client]) -> None:
    _, client = up
    limits = {"resources": {"limits": {"memory": "32Mi"}}}
    hungry = commanded("hungry", "", limits, restartPolicy="Never")
    hungry["spec"]["containers"][0]["command"] = ["python3", "-c", "x = bytearray(256 << 20)"]
    apply(client, commanded("modest", "exec sleep 1000", limits), hungry)
    until(lambda: client.get(POD, "hungry", "default")["status"]["phase"] == "Failed", "failure", PATIENCE)
    ended = container_of(client, "hungry")["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    assert is_ready(
        until(lambda: (found := client.get(POD, "modest", "default")) and is_ready(found) and found, "ready")
    )


@needs_groups
def test_one_that_makes_ever_more_processes_runs_out_of_them(up: tuple[Layout, Client]) -> None:
    layout, client = up
    script = "i=0; while [ $i -lt 2000 ]; do sleep 1000 & i=$((i + 1)); done; echo all"
    apply(client, commanded("many", script, restartPolicy="Never"))
    until(lambda: client.get(POD, "many", "default")["status"]["phase"] == "Failed", "failure", PATIENCE)
    assert "all" not in log_of(layout, "many")
    assert "ork" in log_of(layout, "many")  # Cannot fork


def test_a_log_never_grows_beyond_two_files_and_the_program_goes_on(up: tuple[Layout, Client]) -> None:
    layout, client = up
    line = "x" * 1023
    script = f"""import sys, time
for number in range(25 << 10):
    try:
        sys.stdout.write("{line}\\n")
        sys.stdout.flush()
    except OSError:
        pass
    if number % 2048 == 0:
        time.sleep(0.25)
open("/tmp/done", "w")
time.sleep(1000)
"""
    probe = {"exec": {"command": ["test", "-e", "/tmp/done"]}, "periodSeconds": 1}
    obj = commanded("talker", "", {"readinessProbe": probe})
    obj["spec"]["containers"][0]["command"] = ["python3", "-c", script]
    client.apply([{"object": obj}])
    log = layout.log("default.talker.main")

    def is_done() -> bool:
        for path in (log, older(log)):
            assert not path.exists() or path.stat().st_size <= LOG_LIMIT
        return is_ready(client.get(POD, "talker", "default"))

    until(is_done, "its end", PATIENCE)
    assert older(log).exists()
    assert container_of(client, "talker")["restartCount"] == 0


def test_groups_go_with_their_pods(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, commanded("short", "exec sleep 1000"), pod("echo"))
    until(lambda: all(is_ready(client.get(POD, name, "default")) for name in ("short", "echo")), "ready", PATIENCE)
    uids = [client.get(POD, name, "default")["metadata"]["uid"] for name in ("short", "echo")]

    def groups() -> list[Path]:
        places = [
            *Path("/sys/fs/cgroup").glob(f"kproxy-{layout.lab}"),
            *Path("/sys/fs/cgroup").glob(f"*/kproxy-{layout.lab}"),
        ]
        return [folder for place in places for folder in place.iterdir() if folder.name.partition(".")[0] in uids]

    assert bool(groups()) is limited()
    for name in ("short", "echo"):
        client.delete(POD, name, "default", grace_seconds=0)
    until(lambda: not groups(), "no group", PATIENCE)
