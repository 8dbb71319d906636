"""What a Deployment's status says while it moves, gets stuck, is paused and is done: pure, with a clock of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kproxy.api.types import Object
from kproxy.cluster.controllers.deployment_status import deployment_status, seconds_until_late

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def deployment(**spec: Any) -> Object:
    every = {"replicas": 2, "progressDeadlineSeconds": 60, **spec}
    return {"metadata": {"name": "web", "generation": 3}, "spec": every, "status": {}}


def replica_set(available: int, replicas: int = 2, **more: Any) -> Object:
    counts = {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}
    return {"metadata": {"name": "web-1"}, "spec": {"replicas": replicas}, "status": {**counts, **more}}


def at(made: Object, seconds: float, new: Object | None, *old: Object) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition at that time; the Deployment keeps the status."""
    made["status"] = deployment_status(made, new, old, BEGIN + timedelta(seconds=seconds))
    return {item["type"]: (item["status"], item["reason"]) for item in made["status"]["conditions"]}


def test_from_the_first_replica_set_to_the_end() -> None:
    made = deployment()
    assert at(made, 0, replica_set(0, 0)) == {
        "Available": ("False", "MinimumReplicasUnavailable"),
        "Progressing": ("True", "NewReplicaSetCreated"),
    }
    assert at(made, 1, replica_set(0))["Progressing"] == ("True", "ReplicaSetUpdated")
    assert at(made, 2, replica_set(1))["Progressing"] == ("True", "ReplicaSetUpdated")
    done = at(made, 3, replica_set(2))
    assert done == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert made["status"] | {"conditions": []} == {
        "observedGeneration": 3,
        "replicas": 2,
        "updatedReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 2,
        "conditions": [],
    }
    assert made["status"]["conditions"][1]["message"] == 'ReplicaSet "web-1" has successfully progressed.'
    # What is done stays done, though a pod goes away later.
    assert at(made, 500, replica_set(1))["Progressing"] == ("True", "NewReplicaSetAvailable")


def test_one_that_does_not_move_is_late_in_the_end() -> None:
    made = deployment()
    at(made, 0, replica_set(0))
    at(made, 10, replica_set(1))
    assert seconds_until_late(made, BEGIN + timedelta(seconds=20)) == 50
    assert at(made, 69, replica_set(1))["Progressing"] == ("True", "ReplicaSetUpdated")
    assert at(made, 71, replica_set(1))["Progressing"] == ("False", "ProgressDeadlineExceeded")
    assert seconds_until_late(made, BEGIN + timedelta(seconds=99)) is None
    assert at(made, 80, replica_set(2))["Progressing"] == ("True", "NewReplicaSetAvailable")


def test_pauses_do_not_count() -> None:
    made = deployment(paused=True)
    assert at(made, 0, replica_set(1))["Progressing"] == ("Unknown", "DeploymentPaused")
    assert at(made, 999, replica_set(1))["Progressing"] == ("Unknown", "DeploymentPaused")
    made["spec"]["paused"] = False
    assert at(made, 1000, replica_set(1))["Progressing"] == ("Unknown", "DeploymentResumed")
    assert at(made, 1059, replica_set(1))["Progressing"] == ("Unknown", "DeploymentResumed")
    assert at(made, 1061, replica_set(1))["Progressing"] == ("False", "ProgressDeadlineExceeded")


def test_without_a_deadline_nothing_is_said_of_progress() -> None:
    made = deployment()
    del made["spec"]["progressDeadlineSeconds"]
    assert set(at(made, 0, replica_set(0))) == {"Available"}


def test_what_the_replica_set_complains_of_is_passed_on() -> None:
    failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no"}
    made = deployment()
    assert at(made, 0, replica_set(0, conditions=[failed]))["ReplicaFailure"] == ("True", "FailedCreate")
    assert "ReplicaFailure" not in at(made, 1, replica_set(0))
