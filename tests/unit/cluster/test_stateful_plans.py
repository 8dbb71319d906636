"""Which pods of StatefulSets and DaemonSets come and go next: pure, no API."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.types import Object
from kproxy.cluster.controllers import daemon_plans, stateful_plans
from kproxy.cluster.controllers.owned_pods import Availability
from kproxy.cluster.controllers.revisions import HASH_LABEL


def pod(name: str, state: str = "ready", revision: str = "new", node: str = "") -> Object:
    """A pod that is `ready`, `starting`, `ending` (ready, and asked to end) or `failed`."""
    is_ready = state in ("ready", "ending")
    phases = {"starting": "Pending", "failed": "Failed"}
    condition = {"type": "Ready", "status": "True" if is_ready else "False"}
    metadata: Object = {"name": name, "labels": {HASH_LABEL: revision}}
    if state == "ending":
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"phase": phases.get(state, "Running"), "conditions": [condition]}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


def stateful(replicas: int, **spec: Any) -> Object:
    return {"metadata": {"name": "db"}, "spec": {"replicas": replicas, **spec}, "status": {}}


PARALLEL = {"podManagementPolicy": "Parallel"}


def rolling(**how: Any) -> Object:
    return {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": how}}


STEPS: list[tuple[str, int, Object, list[tuple[Any, ...]], list[Any], list[str]]] = [
    # name, replicas, spec, pods -> ordinals (and their revisions) to create, pods to delete
    ("the first comes first", 3, {}, [], [(0, "new")], []),
    ("the second when the first is ready", 3, {}, [("db-0",)], [(1, "new")], []),
    ("and not before", 3, {}, [("db-0", "starting")], [], []),
    ("all at once", 3, PARALLEL, [], [(0, "new"), (1, "new"), (2, "new")], []),
    ("a gap is filled first", 3, {}, [("db-0",), ("db-2",)], [(1, "new")], []),
    ("numbers may begin elsewhere", 1, {"ordinals": {"start": 5}}, [], [(5, "new")], []),
    ("down from the end", 1, {}, [("db-0",), ("db-1",), ("db-2",)], [], ["db-2"]),
    ("down one at a time", 1, {}, [("db-0",), ("db-1",), ("db-2", "ending")], [], []),
    ("down all at once", 1, PARALLEL, [("db-0",), ("db-1",), ("db-2",)], [], ["db-2", "db-1"]),
    ("not down while one is unwell", 1, {}, [("db-0", "starting"), ("db-1",)], [], []),
    ("one that failed is made again", 1, {}, [("db-0", "failed")], [], ["db-0"]),
    ("update from the end", 2, {}, [("db-0", "ready", "old"), ("db-1", "ready", "old")], [], ["db-1"]),
    ("update waits", 2, {}, [("db-0", "ready", "old"), ("db-1", "starting")], [], []),
    ("update goes on", 2, {}, [("db-0", "ready", "old"), ("db-1",)], [], ["db-0"]),
    (
        "only from the partition on",
        3,
        rolling(partition=2),
        [("db-0", "ready", "old"), ("db-1", "ready", "old"), ("db-2", "ready")],
        [],
        [],
    ),
    (
        "below the partition the old revision comes again",
        3,
        rolling(partition=2),
        [("db-0", "ready", "old"), ("db-2", "ready")],
        [(1, "old")],
        [],
    ),
    (
        "several at a time",
        3,
        rolling(maxUnavailable=2),
        [(f"db-{n}", "ready", "old") for n in range(3)],
        [],
        ["db-2", "db-1"],
    ),
    ("on delete", 1, {"updateStrategy": {"type": "OnDelete"}}, [("db-0", "ready", "old")], [], []),
    ("to nothing", 0, {}, [("db-0",)], [], ["db-0"]),
]


@pytest.mark.parametrize(
    ("replicas", "spec", "pods", "create", "delete"), [case[1:] for case in STEPS], ids=[case[0] for case in STEPS]
)
def test_next_step_of_a_stateful_set(
    replicas: int, spec: Object, pods: list[tuple[Any, ...]], create: list[Any], delete: list[str]
) -> None:
    made = stateful(replicas, **spec)
    plan = stateful_plans.plan_pods(made, [pod(*one) for one in pods], "old", "new", Availability(0))
    assert (plan.create, [item["metadata"]["name"] for item in plan.delete]) == (create, delete)


def test_an_update_is_over_when_all_pods_are_ready_and_new() -> None:
    made = stateful(2)
    half = [pod("db-0", revision="old"), pod("db-1")]
    status = stateful_plans.stateful_set_status(made, half, "old", "new", Availability(0))
    assert (status["currentRevision"], status["updateRevision"], status["updatedReplicas"]) == ("old", "new", 1)
    status = stateful_plans.stateful_set_status(made, [pod("db-0"), pod("db-1")], "old", "new", Availability(0))
    assert (status["currentRevision"], status["currentReplicas"], status["availableReplicas"]) == ("new", 2, 2)


def daemon(**spec: Any) -> Object:
    return {
        "metadata": {"name": "agent", "namespace": "default", "uid": "u"},
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "spec": {"template": {"metadata": {}, "spec": spec.pop("template", {})}, **spec},
    }


def node(name: str, *, taints: Any = (), **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}}


TWO = [node("node1"), node("node2")]
OLD_PODS = [("a", "ready", "old", "node1"), ("b", "ready", "old", "node2")]
DAEMON_STEPS: list[tuple[str, Object, list[Object], list[tuple[Any, ...]], list[str], list[str]]] = [
    ("one a node", {}, TWO, [], ["node1", "node2"], []),
    ("not where one is", {}, TWO, [("a", "ready", "new", "node1")], ["node2"], []),
    ("not while one is ending", {}, TWO[:1], [("a", "ending", "new", "node1")], [], []),
    (
        "not where it does not fit",
        {"template": {"nodeSelector": {"disk": "ssd"}}},
        [*TWO, node("n", disk="ssd")],
        [],
        ["n"],
        [],
    ),
    ("not on a tainted node", {}, [node("n", taints=[{"key": "gpu", "effect": "NoSchedule"}])], [], [], []),
    (
        "one that is there may stay",
        {},
        [node("n", taints=[{"key": "gpu", "effect": "NoSchedule"}])],
        [("a", "ready", "new", "n")],
        [],
        [],
    ),
    (
        "but not for NoExecute",
        {},
        [node("n", taints=[{"key": "gpu", "effect": "NoExecute"}])],
        [("a", "ready", "new", "n")],
        [],
        ["a"],
    ),
    (
        "cordoned nodes too",
        {},
        [node("n", taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])],
        [],
        ["n"],
        [],
    ),
    ("its node is gone", {}, [], [("a", "ready", "new", "node1")], [], ["a"]),
    ("one that failed is made again", {}, TWO[:1], [("a", "failed", "new", "node1")], [], ["a"]),
    ("update one at a time", {}, TWO, OLD_PODS, [], ["a"]),
    ("update waits", {}, TWO, [("a", "starting", "new", "node1"), OLD_PODS[1]], [], []),
    ("what is unavailable goes first", {}, TWO, [("a", "starting", "old", "node1"), OLD_PODS[1]], [], ["a"]),
    ("two at a time", {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}, TWO, OLD_PODS, [], ["a", "b"]),
    (
        "new before old",
        {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
        TWO,
        OLD_PODS,
        ["node1"],
        [],
    ),
    (
        "then the old one goes",
        {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
        TWO,
        [*OLD_PODS, ("c", "ready", "new", "node1")],
        ["node2"],
        ["a"],
    ),
    ("on delete", {"updateStrategy": {"type": "OnDelete"}}, TWO, OLD_PODS, [], []),
]


@pytest.mark.parametrize(
    ("spec", "nodes", "pods", "create", "delete"), [case[1:] for case in DAEMON_STEPS], ids=[c[0] for c in DAEMON_STEPS]
)
def test_next_step_of_a_daemon_set(
    spec: Object, nodes: list[Object], pods: list[tuple[Any, ...]], create: list[str], delete: list[str]
) -> None:
    plan = daemon_plans.plan_pods(daemon(**spec), nodes, [pod(*one) for one in pods], "new", Availability(0))
    assert (plan.create, [item["metadata"]["name"] for item in plan.delete]) == (create, delete)


def test_a_daemons_pod_can_go_to_its_node_alone() -> None:
    made = daemon_plans.new_pod(daemon(), "node2", "abc")
    assert daemon_plans.node_of(made) == "node2"
    assert made["metadata"]["labels"][HASH_LABEL] == "abc"
    assert {item["key"] for item in made["spec"]["tolerations"]} >= {"node.kubernetes.io/unschedulable"}


def test_the_status_of_a_daemon_set_counts_nodes() -> None:
    pods = [pod("a", "ready", "new", "node1"), pod("b", "starting", "old", "node2"), pod("c", "ready", "new", "gone")]
    status = daemon_plans.daemon_set_status(daemon(), TWO, pods, "new", Availability(0))
    assert status == {
        "desiredNumberScheduled": 2,
        "currentNumberScheduled": 2,
        "numberMisscheduled": 0,
        "numberReady": 1,
        "updatedNumberScheduled": 1,
        "numberAvailable": 1,
        "numberUnavailable": 1,
        "observedGeneration": 1,
    }
