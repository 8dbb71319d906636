"""Which node a pod gets, and why not the others: pure, no API."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.types import Object
from kproxy.cluster.controllers.placement import seconds_tolerated, tolerates
from kproxy.cluster.controllers.scheduling import Choice, Picture

HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def node(name: str, *, zone: str = "", taints: Any = (), unschedulable: bool = False, **labels: str) -> Object:
    every = {HOSTNAME: name, **({ZONE: zone} if zone else {}), **labels}
    return {"metadata": {"name": name, "labels": every}, "spec": {"unschedulable": unschedulable, "taints": taints}}


def pod(name: str = "p", *, app: str = "", owner: str = "", namespace: str = "default", **spec: Any) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "uid": name, "labels": {"app": app} if app else {}}
    if owner:
        metadata["ownerReferences"] = [{"controller": True, "uid": owner, "kind": "ReplicaSet", "name": owner}]
    return {"metadata": metadata, "spec": spec, "status": {}}


def near(app: str, key: str, **more: Any) -> Object:
    return {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key, **more}


def affinity(kind: str, *terms: Object, weight: int = 0) -> Object:
    if weight:
        listed = [{"weight": weight, "podAffinityTerm": term} for term in terms]
        return {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": listed}}}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}}


def required(*expressions: Object) -> Object:
    terms = [{"matchExpressions": list(expressions)}]
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": rule}}


def picture(nodes: list[Object], *placed: tuple[Object, str]) -> Picture:
    made = Picture(nodes={item["metadata"]["name"]: item for item in nodes})
    for number, (item, where) in enumerate(placed):
        item["metadata"]["uid"] = f"placed-{number}"
        made.put(item, where)
    return made


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
ZONED = [node("node1", zone="a"), node("node2", zone="a"), node("node3", zone="b")]
PLACES = [
    ("fewest pods", [node("node1"), node("node2")], [(pod(), "node1")], {}, "node2"),
    ("equal", [node("node2"), node("node1")], [], {}, "node1"),
    ("numbers count", [node("node10"), node("node2")], [], {}, "node2"),
    ("selector", [node("node1"), node("node2", disk="ssd")], [], {"nodeSelector": {"disk": "ssd"}}, "node2"),
    ("cordoned", [node("node1", unschedulable=True), node("node2")], [], {}, "node2"),
    ("tainted", [node("node1", taints=[TAINT]), node("node2")], [], {}, "node2"),
    ("tolerated", [node("n", taints=[TAINT])], [], {"tolerations": [{"key": "gpu", "operator": "Exists"}]}, "n"),
    ("avoided", [node("node1", taints=[{**TAINT, "effect": "PreferNoSchedule"}]), node("node2")], [], {}, "node2"),
    ("in", ZONED, [], required({"key": ZONE, "operator": "In", "values": ["b"]}), "node3"),
    ("not in", ZONED, [], required({"key": ZONE, "operator": "NotIn", "values": ["a"]}), "node3"),
    ("exists", [*ZONED, node("node4", disk="x")], [], required({"key": "disk", "operator": "Exists"}), "node4"),
    ("greater", [node("n", rank="7")], [], required({"key": "rank", "operator": "Gt", "values": ["3"]}), "n"),
    ("near", ZONED, [(pod(app="db"), "node2")], affinity("podAffinity", near("db", HOSTNAME)), "node2"),
    ("near in the zone", ZONED, [(pod(app="db"), "node3")], affinity("podAffinity", near("db", ZONE)), "node3"),
    ("away", ZONED[:2], [(pod(app="db"), "node1")], affinity("podAntiAffinity", near("db", HOSTNAME)), "node2"),
    ("away from the zone", ZONED, [(pod(app="db"), "node2")], affinity("podAntiAffinity", near("db", ZONE)), "node3"),
    ("rather near", ZONED, [(pod(app="d"), "node2")], affinity("podAffinity", near("d", HOSTNAME), weight=5), "node2"),
    (
        "rather away",
        ZONED[:2],
        [(pod(app="db"), "node1"), (pod(), "node2"), (pod(), "node2")],
        affinity("podAntiAffinity", near("db", HOSTNAME), weight=5),
        "node2",
    ),
    (
        "another namespace does not count",
        ZONED[:2],
        [(pod(app="db", namespace="other"), "node1")],
        affinity("podAntiAffinity", near("db", HOSTNAME)),
        "node2",  # for its number of pods
    ),
    (
        "unless it is named",
        [node("node1"), node("node2", disk="ssd")],
        [(pod(app="db", namespace="other"), "node2")],
        affinity("podAffinity", near("db", HOSTNAME, namespaces=["other"])),
        "node2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "placed", "spec", "expected"), [case[1:] for case in PLACES], ids=[case[0] for case in PLACES]
)
def test_where_a_pod_goes(nodes: list[Object], placed: list[Any], spec: Object, expected: str) -> None:
    assert picture(nodes, *placed).choose(pod("new", **spec)) == Choice(expected)


REFUSALS = [
    ("no nodes", [], [], {}, "no nodes available to schedule pods"),
    (
        "several reasons",
        [node("node1", taints=[TAINT]), node("node2", unschedulable=True), node("node3")],
        [],
        {"nodeSelector": {"disk": "ssd"}},
        "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
        "1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable.",
    ),
    (
        "nobody to be near",
        ZONED,
        [],
        affinity("podAffinity", near("db", HOSTNAME)),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.",
    ),
    (
        "everywhere one already",
        ZONED[:2],
        [(pod(app="db"), "node1"), (pod(app="db"), "node2")],
        affinity("podAntiAffinity", near("db", HOSTNAME)),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.",
    ),
    (
        "not wanted by those who are there",
        ZONED[:1],
        [(pod(app="db", **affinity("podAntiAffinity", near("new", HOSTNAME))), "node1")],
        {"app": "new"},
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.",
    ),
]


@pytest.mark.parametrize(
    ("nodes", "placed", "spec", "why_not"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_why_a_pod_goes_nowhere(nodes: list[Object], placed: list[Any], spec: Object, why_not: str) -> None:
    assert picture(nodes, *placed).choose(pod("new", **spec)) == Choice(None, why_not)


def test_the_first_of_pods_that_want_to_be_together_goes_anywhere() -> None:
    together = affinity("podAffinity", near("web", HOSTNAME))
    made = picture([node("node1"), node("node2")])
    first = pod("first", app="web", **together)
    assert made.choose(first) == Choice("node1")
    made.put(first, "node1")
    assert made.choose(pod("second", app="web", **together)) == Choice("node1")


def test_pods_of_one_workload_are_spread_before_all_others_count() -> None:
    made = picture([node("node1"), node("node2")], (pod(owner="web"), "node2"), (pod(), "node1"), (pod(), "node1"))
    assert made.choose(pod("next", owner="web")) == Choice("node1")
    assert made.choose(pod("next", owner="other")) == Choice("node2")


def test_a_pod_that_went_away_no_longer_counts() -> None:
    made = picture([node("node1"), node("node2")])
    made.put(pod("a"), "node1")
    assert made.choose(pod("b")) == Choice("node2")
    assert made.remove("a")
    assert not made.remove("a")
    assert made.choose(pod("b")) == Choice("node1")


TOLERATIONS = [
    ({"operator": "Exists"}, True),
    ({"key": "gpu", "operator": "Exists"}, True),
    ({"key": "gpu", "value": "yes"}, True),
    ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
    ({"key": "gpu", "value": "no"}, False),
    ({"key": "other", "operator": "Exists"}, False),
    ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
]


@pytest.mark.parametrize(("toleration", "expected"), TOLERATIONS)
def test_what_a_toleration_is_for(toleration: Object, expected: bool) -> None:
    assert tolerates(toleration, TAINT) is expected


STAYS = [
    ([], [], None),
    ([TAINT], [], None),  # only NoExecute drives pods out
    ([{**TAINT, "effect": "NoExecute"}], [], 0.0),
    ([{**TAINT, "effect": "NoExecute"}], [{"operator": "Exists"}], None),
    ([{**TAINT, "effect": "NoExecute"}], [{"operator": "Exists", "tolerationSeconds": 5}], 5.0),
]


@pytest.mark.parametrize(("taints", "tolerations", "expected"), STAYS)
def test_how_long_a_pod_may_stay(taints: list[Object], tolerations: list[Object], expected: float | None) -> None:
    assert seconds_tolerated({"tolerations": tolerations}, node("node1", taints=taints)) == expected
