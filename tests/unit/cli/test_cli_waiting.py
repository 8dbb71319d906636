from __future__ import annotations

from typing import Any

import pytest

from kproxy.cli.waiting import Deadline, Programmed, is_never_ready, lagging_services, pod_problem, replicas_problem
from kproxy.errors import UserError

READY = [{"type": "Ready", "status": "True"}]


def deployment(wanted: int, /, **status: Any) -> dict[str, Any]:
    seen = {"observedGeneration": 2, **status}
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": wanted}, "status": seen}


def stateful_set(updated: int, **strategy: Any) -> dict[str, Any]:
    found = deployment(3, replicas=3, readyReplicas=3, updatedReplicas=updated)
    return {**found, "kind": "StatefulSet", "spec": {"replicas": 3, "updateStrategy": strategy}}


def daemon_set(**status: int) -> dict[str, Any]:
    return {
        "kind": "DaemonSet",
        "metadata": {"generation": 1},
        "spec": {},
        "status": {"observedGeneration": 1, **status},
    }


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        (stateful_set(3, type="RollingUpdate"), ""),
        (stateful_set(1, type="RollingUpdate"), "1 of 3 pods have the new template"),
        (stateful_set(1, type="RollingUpdate", rollingUpdate={"partition": 2}), ""),
        (stateful_set(0, type="OnDelete"), ""),
        (daemon_set(desiredNumberScheduled=3, updatedNumberScheduled=3, numberReady=3), ""),
        (
            daemon_set(desiredNumberScheduled=3, updatedNumberScheduled=2, numberReady=3),
            "2 of 3 pods have the new template",
        ),
        (daemon_set(desiredNumberScheduled=3, updatedNumberScheduled=3, numberReady=1), "1 of 3 pods ready"),
        (deployment(3, observedGeneration=1), "not looked at yet"),
        (deployment(3, replicas=3, readyReplicas=3), "0 of 3 pods have the new template"),
        (deployment(3, replicas=4, updatedReplicas=3, readyReplicas=4), "4 pods, 3 wanted"),
        (deployment(3, replicas=3, updatedReplicas=3, readyReplicas=2), "2 of 3 pods ready"),
        (deployment(3, replicas=3, updatedReplicas=3, readyReplicas=3), ""),
        (deployment(0), ""),
        ({**deployment(2, replicas=2, readyReplicas=2), "kind": "ReplicaSet"}, ""),
    ],
)
def test_replicas(obj: dict[str, Any], problem: str) -> None:
    assert replicas_problem(obj) == problem


def waits(message: str, *, reason: str = "CrashLoopBackOff", restarts: int = 0) -> dict[str, Any]:
    return {"name": "main", "restartCount": restarts, "state": {"waiting": {"reason": reason, "message": message}}}


def ended(code: int) -> dict[str, Any]:
    return {
        "name": "main",
        "state": {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}},
    }


@pytest.mark.parametrize(
    ("status", "is_hopeless"),
    [
        ({}, False),
        ({"phase": "Running", "containerStatuses": [waits("it ended with exit code 1", restarts=5)]}, False),
        ({"phase": "Running", "containerStatuses": [waits("exec failed: x", restarts=1)]}, False),
        ({"phase": "Running", "containerStatuses": [waits("exec failed: x", restarts=2)]}, True),
        ({"phase": "Failed", "containerStatuses": [ended(3)]}, True),
    ],
)
def test_when_patience_is_in_vain(status: dict[str, Any], is_hopeless: bool) -> None:
    assert is_never_ready({"status": status}) is is_hopeless


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ({}, "Pending"),
        ({"phase": "Failed", "reason": "Error", "message": "exit 2"}, "Failed, Error, exit 2"),
        ({"phase": "Running", "conditions": READY}, ""),
        (
            {"phase": "Running", "containerStatuses": [waits("exec failed: x: No such file or directory")]},
            "Running, main: CrashLoopBackOff: exec failed: x: No such file or directory",
        ),
        ({"phase": "Pending", "containerStatuses": [waits("", reason="ContainerCreating")]}, "Pending"),
        (
            {"phase": "Failed", "containerStatuses": [ended(3), ended(0)]},
            "Failed, main: Error: it ended with exit code 3",
        ),
        ({"phase": "Succeeded"}, ""),
    ],
)
def test_pods(status: dict[str, Any], problem: str) -> None:
    assert pod_problem({"status": status}) == problem


def service(target_port: Any = 80, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": target_port}]
    return {"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"app": "a"}, "ports": ports, **spec}}


def pod(name: str, *, app: str = "a", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"app": app}, **metadata},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"podIP": "10.0.0.1", "conditions": READY},
    }


def slice_of(*pods: str, **conditions: bool) -> dict[str, Any]:
    endpoints = [{"targetRef": {"kind": "Pod", "name": name}, "conditions": conditions} for name in pods]
    return {"metadata": {"labels": {"kubernetes.io/service-name": "s"}}, "endpoints": endpoints}


@pytest.mark.parametrize(
    ("service", "pods", "slices", "lags"),
    [
        pytest.param(service(), [pod("p")], [slice_of("p")], False, id="named"),
        pytest.param(service(), [pod("p")], [], True, id="no slice"),
        pytest.param(service(), [pod("p")], [slice_of("p", ready=False)], True, id="not ready in the slice"),
        pytest.param(service(), [], [slice_of("p")], True, id="a pod that is gone"),
        pytest.param(service(), [pod("p", deletionTimestamp="t")], [slice_of("p")], True, id="a pod on its way out"),
        pytest.param(service(), [pod("p", app="other")], [], False, id="not selected"),
        pytest.param(service("http"), [pod("p")], [], True, id="named port"),
        pytest.param(service("grpc"), [pod("p")], [], False, id="a port that no container has"),
        pytest.param(service(selector=None), [pod("p")], [], False, id="no selector"),
        pytest.param(service(type="ExternalName"), [pod("p")], [], False, id="ExternalName"),
    ],
)
def test_slices_lag(service: Any, pods: Any, slices: Any, lags: bool) -> None:
    assert bool(lagging_services([service], pods, slices)) is lags


def test_time_over_names_what_is_not_ready() -> None:
    with pytest.raises(UserError, match=r'(?s)not ready after 0 s.*Pod "a/b": Pending'):
        Deadline(0).until(lambda: ['Pod "a/b": Pending'])


def test_waiting_ends_when_there_are_no_problems_left() -> None:
    answers = [["x"], ["x"], []]
    Deadline(5).until(lambda: answers.pop(0))
    assert not answers


@pytest.mark.parametrize(
    ("programmed", "seconds", "sentence"),
    [
        (Programmed(("a", "b", "c"), ()), 0.041, "programmed on 3 of 3 nodes in 41 ms"),
        (
            Programmed(("a", "b"), ("c",)),
            1.5,
            "programmed on 2 of 3 nodes in 1.50 s; not asked, as no kproxy runs there: c",
        ),
    ],
)
def test_sentence(programmed: Programmed, seconds: float, sentence: str) -> None:
    assert programmed.sentence(seconds) == sentence
