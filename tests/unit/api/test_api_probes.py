"""Probes and lifecycle handlers: what Kubernetes refuses, in its words."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.defaults import default
from kproxy.api.validation import validate

PATH = "spec.containers[0]"
PORTS = "must be between 1 and 65535, inclusive"
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "all is well": (
        {"readinessProbe": {"httpGet": {"port": "http", "httpHeaders": [{"name": "X-A", "value": "b"}]}}},
        [],
    ),
    "no handler": (
        {"readinessProbe": {"periodSeconds": 1}},
        ["readinessProbe: Required value: must specify a handler type"],
    ),
    "two handlers": (
        {"readinessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 80}}},
        ["readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"],
    ),
    "no command": ({"readinessProbe": {"exec": {}}}, ["readinessProbe.exec.command: Required value"]),
    "no port": ({"readinessProbe": {"tcpSocket": {}}}, [f"readinessProbe.tcpSocket.port: Invalid value: 0: {PORTS}"]),
    "a port too high": (
        {"readinessProbe": {"httpGet": {"port": 65536}}},
        [f"readinessProbe.httpGet.port: Invalid value: 65536: {PORTS}"],
    ),
    "a port's name": (
        {"readinessProbe": {"tcpSocket": {"port": "web_1"}}},
        [
            'readinessProbe.tcpSocket.port: Invalid value: "web_1": '
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
        ],
    ),
    "a scheme": (
        {"readinessProbe": {"httpGet": {"port": 80, "scheme": "https"}}},
        ['readinessProbe.httpGet.scheme: Unsupported value: "https": supported values: "HTTP", "HTTPS"'],
    ),
    "a header": (
        {"readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": "c"}]}}},
        [
            'readinessProbe.httpGet.httpHeaders: Invalid value: "a b": a valid HTTP header must consist of '
            "alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')"
        ],
    ),
    "a negative number": (
        {"readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": -1}},
        ["readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"],
    ),
    "a grace of its own": (
        {"readinessProbe": {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 1}},
        [
            "readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes",
        ],
    ),
    "liveness after several": (
        {"livenessProbe": {"grpc": {"port": 80}, "successThreshold": 2}},
        ["livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    ),
    "a pause longer than the grace": (
        {"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}},
        [
            "lifecycle.preStop.sleep: Invalid value: 31: "
            "must be non-negative and less than terminationGracePeriodSeconds (30)"
        ],
    ),
    "a pause": ({"lifecycle": {"preStop": {"sleep": {"seconds": 30}}}}, []),
    "nothing to do": (
        {"lifecycle": {"postStart": {}}},
        ["lifecycle.postStart: Required value: must specify a handler type"],
    ),
}


@pytest.mark.parametrize(("fields", "expected"), CASES.values(), ids=CASES)
def test_containers(fields: dict[str, Any], expected: list[str]) -> None:
    assert messages("containers", {"name": "a", "image": "x", **fields}) == [f"{PATH}.{text}" for text in expected]


def test_what_runs_to_its_end_is_not_probed_but_a_sidecar_may_be() -> None:
    probe = {"readinessProbe": {"tcpSocket": {"port": 80}}}
    words = "may not be set for init containers without restartPolicy=Always"
    init = {"name": "i", "image": "x", **probe}
    assert messages("initContainers", init) == [f"spec.initContainers[0].readinessProbe: Forbidden: {words}"]
    assert messages("initContainers", {**init, "restartPolicy": "Always"}) == []


def messages(place: str, container: dict[str, Any]) -> list[str]:
    spec: dict[str, Any] = {"containers": [{"name": "a", "image": "x"}]}
    spec[place] = [container]
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"}, "spec": spec}
    return [error.message() for error in validate(default(obj), None)]
