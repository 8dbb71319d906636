"""A rolling update under load: with readiness and a graceful end no request fails, without them some do.

KPROXY_SOAK=1 updates ten times instead of twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_support import until

from kproxy.api.kinds import DEPLOYMENT, POD
from kproxy.testing.labs import Lab, fresh_lab

pytestmark = pytest.mark.root

SCENARIO = Path(__file__).resolve().parents[2] / "manifests" / "deployment-rolling-update"
UPDATES = 10 if os.environ.get("KPROXY_SOAK") else 2
RATE = 200


@pytest.fixture(scope="module")
def up() -> Iterator[Lab]:
    with fresh_lab() as lab:
        lab.run("apply", "-f", str(SCENARIO))
        yield lab


@contextlib.contextmanager
def load(lab: Lab, address: str) -> Iterator[list[str]]:
    """Requests from outside while the body runs; what came of them is in the list afterwards."""
    said: list[str] = []
    command = ["exec", "client", "--", sys.executable, str(SCENARIO / "load.py"), f"http://{address}/"]
    asking = subprocess.Popen(
        [sys.executable, "-P", "-m", "kproxy", *command, f"--rate={RATE}", "--seconds=600"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KPROXY_LAB": lab.name, "PYTHONPATH": str(SCENARIO.parents[1])},
    )
    try:
        yield said
    finally:
        asking.send_signal(signal.SIGINT)
        try:
            said += asking.communicate(timeout=60)[0].splitlines()
        except subprocess.TimeoutExpired:
            asking.kill()
            asking.communicate()
            raise


def update(lab: Lab, name: str, version: int) -> None:
    """Replaces all pods of a Deployment, and waits until the last old one is gone."""
    env = [{"name": "VERSION", "value": str(version)}]
    old = {pod["metadata"]["name"] for pod in pods(lab, name)}
    deployment = lab.client.get(DEPLOYMENT, name, "default")
    deployment["spec"]["template"]["spec"]["containers"][0]["env"] = env
    generation = lab.client.update(DEPLOYMENT, deployment)["metadata"]["generation"]

    def is_done() -> bool:
        status = lab.client.get(DEPLOYMENT, name, "default")["status"]
        counts = {status.get(field, 0) for field in ("replicas", "updatedReplicas", "availableReplicas")}
        return status["observedGeneration"] >= generation and counts == {8}

    until(is_done, f"update {version} of {name}", 120)
    until(lambda: not old & {pod["metadata"]["name"] for pod in pods(lab, name)}, "the old pods are gone", 60)


def pods(lab: Lab, name: str) -> list[dict[str, dict[str, str]]]:
    return lab.client.list(POD, "default", label_selector=f"app={name}").items


def failed_and_total(said: list[str]) -> tuple[int, int]:
    match = re.fullmatch(r"(?:error: )?(\d+) of (\d+) requests failed", said[-1])
    assert match is not None, said
    return int(match[1]), int(match[2])


def test_with_care_no_request_fails(up: Lab) -> None:
    with load(up, "198.51.100.80") as said:
        for number in range(UPDATES):
            update(up, "careful", 2 + number)
    failed, total = failed_and_total(said)
    assert failed == 0, said
    assert total > 100 * UPDATES, said
    versions = {line.split()[-1] for line in said[:-1]}
    assert versions == {str(number) for number in range(1, UPDATES + 2)}, said


def test_without_it_some_do(up: Lab) -> None:
    with load(up, "198.51.100.81") as said:
        update(up, "careless", 2)
    failed, total = failed_and_total(said)
    assert 0 < failed < total, said
    assert any("Connection refused" in line for line in said), said
