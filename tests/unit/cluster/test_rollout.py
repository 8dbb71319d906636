"""Deployments, ReplicaSets and the scheduler decide: pure, no API."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_cluster import running

from kproxy.api.types import Object
from kproxy.cluster.controllers.deployments import template_hash
from kproxy.cluster.controllers.replica_sets import pods_to_delete
from kproxy.cluster.controllers.rollouts import DESIRED, MOST, is_scaled, plan_rollout, plan_scaling


def deployment(replicas: int, **strategy: Any) -> Object:
    return {"metadata": {"name": "web"}, "spec": {"replicas": replicas, "strategy": {"rollingUpdate": strategy}}}


def replica_set(name: str, replicas: int, available: int | None = None) -> Object:
    count = replicas if available is None else available
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "availableReplicas": count},
    }


def test_a_first_replica_set_gets_all_pods_at_once() -> None:
    assert plan_rollout(deployment(5), None, []).new == 5


def test_scaling_is_not_held_back_by_surge() -> None:
    assert plan_rollout(deployment(9), replica_set("new", 3), []).new == 9
    assert plan_rollout(deployment(1), replica_set("new", 3), []).new == 1


STEPS = [
    # replicas, surge, unavailable, old (wanted, available) -> new, old
    (4, "25%", "25%", (4, 4), 1, 3),
    (4, 0, 1, (4, 4), 0, 3),
    (4, 1, 0, (4, 4), 1, 4),
    (3, "100%", 0, (3, 3), 3, 3),
    (4, "25%", "25%", (4, 2), 1, 3),  # one that is not available goes first
    (1, 0, 0, (1, 1), 0, 0),  # never neither: then one may be unavailable
]


@pytest.mark.parametrize(("replicas", "surge", "unavailable", "old", "new_size", "old_size"), STEPS)
def test_first_step_of_a_rolling_update(
    replicas: int, surge: Any, unavailable: Any, old: tuple[int, int], new_size: int, old_size: int
) -> None:
    before = replica_set("old", *old)
    step = plan_rollout(deployment(replicas, maxSurge=surge, maxUnavailable=unavailable), None, [before])
    assert (step.new, step.old["old"]) == (new_size, old_size)


@given(
    replicas=st.integers(0, 12),
    surge=st.integers(0, 5),
    unavailable=st.integers(0, 5),
    old_sizes=st.lists(st.integers(0, 12), max_size=3),
)
def test_a_rolling_update_keeps_its_limits_and_ends(
    replicas: int, surge: int, unavailable: int, old_sizes: list[int]
) -> None:
    made = deployment(replicas, maxSurge=surge, maxUnavailable=unavailable)
    sizes = {f"old{number}": size for number, size in enumerate(old_sizes)}
    least = min(sum(sizes.values()), replicas - max(unavailable, 0 if surge else 1))
    most = max(sum(sizes.values()), replicas + surge)
    new = 0
    for _ in range(60):
        step = plan_rollout(made, replica_set("new", new), [replica_set(name, size) for name, size in sizes.items()])
        # New pods are available only at the next look; old ones go at once.
        assert sum(step.old.values()) + min(new, step.new) >= least
        assert sum(step.old.values()) + step.new <= most
        if (step.new, dict(step.old)) == (new, sizes):
            break
        new, sizes = step.new, dict(step.old)
    assert new == replicas
    assert not any(sizes.values())


def test_recreate_waits_for_the_last_old_pod() -> None:
    made = {"metadata": {"name": "web"}, "spec": {"replicas": 2, "strategy": {"type": "Recreate"}}}
    first = plan_rollout(made, None, [replica_set("old", 2)], old_pods_left=2)
    assert (first.new, first.old) == (0, {"old": 0})
    assert plan_rollout(made, None, [replica_set("old", 0)], old_pods_left=1).new == 0
    assert plan_rollout(made, None, [replica_set("old", 0)]).new == 2


def test_a_template_hash_is_a_label_value_and_tells_templates_apart() -> None:
    one, two = template_hash({"spec": {"a": 1}}), template_hash({"spec": {"a": 2}})
    assert one != two
    assert one == template_hash({"spec": {"a": 1}})
    assert set(one) <= set("bcdfghjklmnpqrstvwxz2456789")


def pod(name: str, node: str = "", *, ready: bool = False, created: str = "2026-01-01T00:00:00Z") -> Object:
    status = running("10.244.1.1", ready=ready) if node else {"phase": "Pending"}
    return {"metadata": {"name": name, "creationTimestamp": created}, "spec": {"nodeName": node}, "status": status}


def test_which_pods_go_first() -> None:
    young = "2026-01-02T00:00:00Z"
    pods = [
        pod("old", "node1", ready=True),
        pod("young", "node1", ready=True, created=young),
        pod("alone", "node2", ready=True, created=young),
        pod("unready", "node2"),
        pod("unbound"),
    ]
    order = [item["metadata"]["name"] for item in pods_to_delete(pods, 5)]
    assert order[:2] == ["unbound", "unready"]
    assert order.index("young") < order.index("old")


def sized(name: str, replicas: int, *, desired: int, most: int) -> Object:
    made = replica_set(name, replicas)
    made["metadata"]["annotations"] = {DESIRED: str(desired), MOST: str(most)}
    return made


SCALINGS = [
    # wanted, surge, new, old (sizes before; desired and most when they were set) -> new, old
    ("only the new one", 5, 1, (3, 3, 4), [], 5, []),
    ("new one is complete, what is left of old goes", 3, 1, (3, 3, 4), [(1, 3, 4)], 3, [0]),
    ("growing in proportion", 20, 5, (5, 10, 15), [(10, 10, 15)], 8, [17]),
    ("shrinking in proportion", 5, 1, (5, 10, 11), [(6, 10, 11)], 3, [3]),
    ("to nothing", 0, 1, (5, 10, 11), [(6, 10, 11)], 0, [0]),
]


@pytest.mark.parametrize(
    ("wanted", "surge", "new", "old", "new_size", "old_sizes"),
    [case[1:] for case in SCALINGS],
    ids=[c[0] for c in SCALINGS],
)
def test_scaling_in_the_middle_of_a_rollout(
    wanted: int, surge: int, new: Any, old: list[Any], new_size: int, old_sizes: list[int]
) -> None:
    sets = [sized(f"old{number}", size, desired=d, most=m) for number, (size, d, m) in enumerate(old)]
    current = sized("new", new[0], desired=new[1], most=new[2])
    made = deployment(wanted, maxSurge=surge, maxUnavailable=1)
    step = plan_scaling(made, current, sets)
    assert (step.new, list(step.old.values())) == (new_size, old_sizes)


def test_a_changed_number_is_known_by_what_the_replica_sets_say() -> None:
    made = deployment(4)
    assert is_scaled(made, [sized("new", 3, desired=3, most=4)])
    assert not is_scaled(made, [sized("new", 3, desired=4, most=5)])
    assert not is_scaled(made, [sized("empty", 0, desired=3, most=4)])
