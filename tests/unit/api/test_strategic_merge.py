"""Strategic merge patches: what Kubernetes makes of them, as a table, and the laws they share with merge patches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.api import merge_rules
from kproxy.api.merge_patch import difference, merge_patch
from kproxy.api.strategic_merge import MalformedPatch, strategic_merge

POD = merge_rules.of_kind("v1", "Pod")
DEPLOYMENT = merge_rules.of_kind("apps/v1", "Deployment")
SERVICE = merge_rules.of_kind("v1", "Service")
NODE = merge_rules.of_kind("v1", "Node")
A, B, C = ({"name": name, "image": f"{name}:1"} for name in "abc")


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def meta(**fields: Any) -> dict[str, Any]:
    return {"metadata": fields}


CASES = [
    (
        "an item is found by its key and merged",
        POD,
        spec(containers=[A, B]),
        spec(containers=[{"name": "b", "image": "b:2"}]),
        spec(containers=[A, {"name": "b", "image": "b:2"}]),
    ),
    (
        "a new item comes first, as kubectl patch shows it",
        POD,
        spec(containers=[A, B]),
        spec(containers=[C]),
        spec(containers=[C, A, B]),
    ),
    (
        "the patch's order counts for the items that it names",
        POD,
        spec(containers=[A, B]),
        spec(containers=[{"name": "b"}, {"name": "a"}]),
        spec(containers=[B, A]),
    ),
    (
        "$patch: delete takes an item away",
        POD,
        spec(containers=[A, B]),
        spec(containers=[{"name": "a", "$patch": "delete"}]),
        spec(containers=[B]),
    ),
    (
        "$patch: delete of an item that is not there",
        POD,
        spec(containers=[A]),
        spec(containers=[{"name": "x", "$patch": "delete"}]),
        spec(containers=[A]),
    ),
    (
        "$patch: replace as an item replaces the list",
        POD,
        spec(containers=[A, B]),
        spec(containers=[C, {"$patch": "replace"}]),
        spec(containers=[C]),
    ),
    (
        "$patch: replace in a map replaces the map",
        POD,
        meta(labels={"a": "1", "b": "2"}),
        meta(labels={"c": "3", "$patch": "replace"}),
        meta(labels={"c": "3"}),
    ),
    (
        "$patch: delete in a map empties it",
        POD,
        meta(labels={"a": "1"}),
        meta(labels={"$patch": "delete"}),
        meta(labels={}),
    ),
    (
        "null takes a field away",
        POD,
        meta(labels={"a": "1", "b": "2"}),
        meta(labels={"a": None}),
        meta(labels={"b": "2"}),
    ),
    ("null for what is not there", POD, meta(labels={"b": "2"}), meta(labels={"a": None}), meta(labels={"b": "2"})),
    (
        "a list without a merge key is replaced",
        POD,
        spec(tolerations=[{"key": "a"}]),
        spec(tolerations=[{"key": "b"}]),
        spec(tolerations=[{"key": "b"}]),
    ),
    (
        "arguments are replaced",
        POD,
        spec(containers=[{**A, "args": ["x", "y"]}]),
        spec(containers=[{"name": "a", "args": ["z"]}]),
        spec(containers=[{**A, "args": ["z"]}]),
    ),
    (
        "scalars that merge are united",
        POD,
        meta(finalizers=["a", "b"]),
        meta(finalizers=["c", "b"]),
        meta(finalizers=["c", "a", "b"]),
    ),
    (
        "$deleteFromPrimitiveList",
        POD,
        meta(finalizers=["a", "b", "c"]),
        {"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}},
        meta(finalizers=["a", "c"]),
    ),
    (
        "$deleteFromPrimitiveList of a list that is not there",
        POD,
        meta(name="x"),
        {"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}},
        meta(name="x"),
    ),
    (
        "$setElementOrder sorts, also without a change",
        POD,
        spec(containers=[A, B]),
        {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}},
        spec(containers=[B, A]),
    ),
    (
        "$setElementOrder puts a new item where it belongs, and the server's own stays where it was",
        POD,
        spec(containers=[A, B]),
        {"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}], "containers": [C]}},
        spec(containers=[A, C, B]),
    ),
    (
        "$setElementOrder with a deletion",
        POD,
        spec(containers=[A, B]),
        {
            "spec": {
                "$setElementOrder/containers": [{"name": "b"}],
                "containers": [{"name": "a", "$patch": "delete"}],
            }
        },
        spec(containers=[B]),
    ),
    (
        "$setElementOrder of scalars",
        POD,
        meta(finalizers=["a", "b"]),
        {"metadata": {"$setElementOrder/finalizers": ["c", "a"], "finalizers": ["c"]}},
        meta(finalizers=["c", "a", "b"]),
    ),
    (
        "$retainKeys drops what it does not name",
        DEPLOYMENT,
        spec(strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}),
        spec(strategy={"$retainKeys": ["type"], "type": "Recreate"}),
        spec(strategy={"type": "Recreate"}),
    ),
    (
        "$retainKeys of a volume turns its source into another",
        POD,
        spec(volumes=[{"name": "v", "emptyDir": {}}]),
        spec(volumes=[{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]),
        spec(volumes=[{"name": "v", "hostPath": {"path": "/x"}}]),
    ),
    (
        "ports of a Service are keyed by their number",
        SERVICE,
        spec(ports=[{"port": 80, "targetPort": 1}, {"port": 81}]),
        spec(ports=[{"port": 80, "targetPort": 2}]),
        spec(ports=[{"port": 80, "targetPort": 2}, {"port": 81}]),
    ),
    (
        "conditions of a node are keyed by their type",
        NODE,
        {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}},
    ),
    (
        "nested lists merge by their own keys",
        POD,
        spec(containers=[{**A, "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]),
        spec(containers=[{"name": "a", "env": [{"name": "X", "value": "3"}, {"name": "Y", "$patch": "delete"}]}]),
        spec(containers=[{**A, "env": [{"name": "X", "value": "3"}]}]),
    ),
    ("a list that was not there", POD, spec(), spec(containers=[A]), spec(containers=[A])),
    ("a field that nobody knows merges as a map", POD, {"x": {"a": 1}}, {"x": {"b": 2}}, {"x": {"a": 1, "b": 2}}),
    ("another type replaces", POD, {"x": [1]}, {"x": {"b": 2}}, {"x": {"b": 2}}),
]


@pytest.mark.parametrize(
    ("rules", "target", "patch", "merged"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_strategic_merge(rules: merge_rules.Rules, target: Any, patch: Any, merged: Any) -> None:
    before = repr((target, patch))
    assert strategic_merge(target, patch, rules) == merged
    assert repr((target, patch)) == before


MALFORMED = [
    ("no merge key", spec(containers=[{"image": "x"}]), "does not contain declared merge key: name"),
    ("unknown directive", meta(labels={"$patch": "paint"}), "unknown patch type found: paint"),
    ("unknown directive of an item", spec(containers=[{"name": "a", "$patch": "paint"}]), "unknown patch type"),
    ("retained keys lack what is set", spec(securityContext={"$retainKeys": ["a"], "b": 1}), "retainKeys"),
    ("a primitive list that is none", {"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}, "primitive list"),
    ("an order that is none", {"spec": {"$setElementOrder/containers": "a"}}, "setElementOrder"),
    (
        "an order that lacks an item",
        {"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a", "image": "x"}]}},
        "doesn't match",
    ),
    ("items of several types", spec(containers=[{"name": "a"}, "b"]), "not identical"),
]


@pytest.mark.parametrize(("patch", "message"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_malformed_patches_are_refused(patch: Any, message: str) -> None:
    with pytest.raises(MalformedPatch, match=message):
        strategic_merge(spec(containers=[A, B]), patch, POD)


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3)
)
OBJECTS = st.dictionaries(st.text("xyz", max_size=2), JSON, max_size=4)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


@given(OBJECTS, OBJECTS)
def test_without_keyed_lists_it_is_a_merge_patch(target: Any, patch: Any) -> None:
    strategic = strategic_merge(without_nulls(target), patch, merge_rules.UNTYPED)
    assert without_lists_nulls(strategic) == without_lists_nulls(merge_patch(without_nulls(target), patch))


def without_lists_nulls(value: Any) -> Any:
    """Lists of a merge patch may hold nulls in their objects, which mean nothing to a strategic one."""
    if isinstance(value, dict):
        return {key: without_lists_nulls(item) for key, item in value.items() if item is not None}
    return [without_lists_nulls(item) for item in value] if isinstance(value, list) else value


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_is_idempotent_and_differences_are_patches(target: Any, other: Any) -> None:
    old, new = without_nulls(target), without_nulls(other)
    once = merge_patch(old, other)
    assert merge_patch(once, other) == once
    assert merge_patch(old, difference(old, new)) == new
