"""What ``make demo`` shows: every row as promised, and as many rows as its scenarios have clients times frontends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.testing.labs import Lab, fresh_lab

ROOT = Path(__file__).resolve().parents[2]
NODES = 3


def scenarios() -> list[str]:
    (words,) = re.findall(r"^DEMO := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return words.split()


def objects(scenario: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "manifests" / scenario / "objects.yaml").read_text()))


def places(nodes_with_endpoints: int) -> int:
    """The pod itself, a pod beside it, a pod elsewhere, a node with, a node without, and the outside client.

    Without endpoints a pod is a pod and a node a node.
    """
    if not nodes_with_endpoints:
        return 3
    return 6 if nodes_with_endpoints < NODES else 5


def frontends(service: dict[str, Any], nodes_with_endpoints: int) -> int:
    """The bare pod address if there is a pod, the cluster IP, and the node port of each node; for each port."""
    each = bool(nodes_with_endpoints) + 1 + NODES * (service["spec"].get("type") == "NodePort")
    return each * len(service["spec"]["ports"])


def rows_promised(lab: Lab) -> int:
    pods = json.loads(lab.run("get", "pods", "-o", "json"))["items"]
    total = 0
    for service in (obj for scenario in scenarios() for obj in objects(scenario) if obj["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        nodes = {pod["spec"]["nodeName"] for pod in pods if selector <= pod["metadata"]["labels"].items()}
        total += places(len(nodes)) * frontends(service, len(nodes))
    return total


@pytest.mark.root
def test_demo_shows_every_row_as_promised() -> None:
    with fresh_lab() as lab:
        lab.run("apply", *(word for scenario in scenarios() for word in ("-f", f"{ROOT}/manifests/{scenario}")))
        expected = rows_promised(lab)
        rows = json.loads(lab.run("verify", "--no-why", "-o", "json"))
    assert [row for row in rows if not row["ok"]] == []
    assert len(rows) == expected


def test_demo_has_what_it_is_to_show() -> None:
    assert {"clusterip", "nodeport", "nodeport-local", "session-affinity", "no-endpoints"} <= set(scenarios())


def test_all_scenarios_fit_into_one_lab() -> None:
    every = [
        obj
        for path in (ROOT / "manifests").glob("*/objects.yaml")
        if not path.with_name("cluster.yaml").exists()  # that one has a lab of its own
        for obj in yaml.safe_load_all(path.read_text())
    ]
    names = [(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in every]
    services = [obj["spec"] for obj in every if obj["kind"] == "Service"]
    ports = [port.get("nodePort") for service in services for port in service["ports"]]
    addresses = [service.get("clusterIP") for service in services]
    fixed = [address for address in addresses if address not in (None, "None")]
    for values in (names, [port for port in ports if port], fixed):
        assert len(values) == len(set(values))
