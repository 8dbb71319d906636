"""Server-side apply and the managers of updates: stories whose ends Kubernetes' documentation and tests tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.api import field_sets, known_fields, managed_fields, merge_rules
from kproxy.api.managed_fields import Conflicts, MalformedConfiguration, Manager

DEPLOYMENT = merge_rules.of_kind("apps/v1", "Deployment")
SERVICE = merge_rules.of_kind("v1", "Service")
CONFIG_MAP = merge_rules.of_kind("v1", "ConfigMap")
POD = merge_rules.of_kind("v1", "Pod")


class Story:
    """One object and those who write it, one after the other."""

    def __init__(self, rules: merge_rules.Rules) -> None:
        self.rules = rules
        self.object: dict[str, Any] = {"metadata": {"name": "x"}}
        self.time = 0

    def apply(self, who: str, *, force: bool = False, subresource: str = "", **said: Any) -> Story:
        manager = Manager(who, "Apply", "v1", subresource)
        self.time += 1
        merged, entries = managed_fields.apply(
            self.object, said, manager, self.rules, force=force, time=f"{self.time:02}"
        )
        self._store(merged, entries)
        return self

    def update(self, who: str, **wanted: Any) -> Story:
        self.time += 1
        new = {"metadata": {"name": "x"}, **json.loads(json.dumps(wanted))}
        manager = Manager(who, "Update", "v1")
        entries = managed_fields.after_update(self.object, new, manager, self.rules, given=None, time=f"{self.time:02}")
        self._store(new, entries)
        return self

    def _store(self, merged: Any, entries: Any) -> None:
        self.object = {**merged, "metadata": {**merged["metadata"], "name": "x", "managedFields": list(entries)}}

    @property
    def content(self) -> dict[str, Any]:
        metadata = {k: v for k, v in self.object["metadata"].items() if k not in ("name", "managedFields")}
        return {key: value for key, value in {**self.object, "metadata": metadata}.items() if value}

    def owned(self, who: str) -> list[str]:
        return [
            path
            for entry in self.object["metadata"]["managedFields"]
            if entry["manager"] == who
            for path in field_sets.paths(entry["fieldsV1"])
        ]


def test_an_applier_owns_what_it_names_and_nothing_else() -> None:
    story = Story(CONFIG_MAP).update("kubectl-create", data={"a": "1", "b": "2"}).apply("one", data={"c": "3"})
    assert story.content == {"data": {"a": "1", "b": "2", "c": "3"}}
    assert story.owned("one") == [".data.c"]
    assert story.owned("kubectl-create") == [".data", ".data.a", ".data.b"]


def test_another_value_conflicts_and_the_same_value_is_shared() -> None:
    story = Story(CONFIG_MAP).apply("one", data={"a": "1"})
    with pytest.raises(Conflicts) as caught:
        story.apply("two", data={"a": "2"})
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "one": .data.a'
    assert caught.value.fields == (('"one"', ".data.a"),)
    story.apply("two", data={"a": "1"})
    assert story.owned("one") == story.owned("two") == [".data.a"]
    story.apply("one", data={})
    assert story.content == {"data": {"a": "1"}}, "two still wants it"
    story.apply("two", data={})
    assert story.content == {}, "nobody wants it any more"


def test_force_takes_a_field_over() -> None:
    story = Story(CONFIG_MAP).apply("one", data={"a": "1", "b": "1"}).apply("two", force=True, data={"a": "2"})
    assert story.content == {"data": {"a": "2", "b": "1"}}
    assert (story.owned("one"), story.owned("two")) == ([".data.b"], [".data.a"])
    story.apply("one", data={"b": "1"})
    assert story.content == {"data": {"a": "2", "b": "1"}}


def test_an_update_takes_fields_without_asking() -> None:
    story = Story(DEPLOYMENT).apply("ci", spec={"replicas": 3, "paused": True})
    story.update("hpa", spec={"replicas": 5, "paused": True})
    assert (story.owned("ci"), story.owned("hpa")) == ([".spec.paused"], [".spec.replicas"])
    with pytest.raises(Conflicts, match=r'conflict with "hpa" using v1: \.spec\.replicas'):
        story.apply("ci", spec={"replicas": 3, "paused": True})
    story.apply("ci", spec={"paused": True})
    assert story.content == {"spec": {"replicas": 5, "paused": True}}, "given up, not taken away"


def test_what_is_no_longer_applied_goes() -> None:
    containers = [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]
    story = Story(POD).apply("one", spec={"containers": containers, "hostname": "h"})
    story.apply("one", spec={"containers": containers[1:]})
    assert story.content == {"spec": {"containers": containers[1:]}}


def test_an_item_that_somebody_else_has_a_part_in_stays_with_that_part() -> None:
    story = Story(POD).apply("one", spec={"containers": [{"name": "a", "image": "1", "tty": True}]})
    story.apply("two", spec={"containers": [{"name": "a", "workingDir": "/"}]})
    story.apply("one", spec={"containers": [{"name": "b", "image": "1"}]})
    assert story.content == {"spec": {"containers": [{"name": "a", "workingDir": "/"}, {"name": "b", "image": "1"}]}}


def test_defaults_inside_an_item_go_with_it() -> None:
    story = Story(POD).apply("one", spec={"containers": [{"name": "a"}, {"name": "b"}]})
    story.object["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    story.apply("one", spec={"containers": [{"name": "b"}]})
    assert story.content == {"spec": {"containers": [{"name": "b"}]}}


def test_keyed_lists_are_merged_by_their_keys_with_their_defaults() -> None:
    story = Story(SERVICE).apply("one", spec={"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]})
    assert story.owned("one") == [
        '.spec.ports[port=53,protocol="TCP"]',
        '.spec.ports[port=53,protocol="TCP"].port',
        '.spec.ports[port=53,protocol="UDP"]',
        '.spec.ports[port=53,protocol="UDP"].port',
        '.spec.ports[port=53,protocol="UDP"].protocol',
    ]
    story.apply("two", spec={"ports": [{"port": 53, "protocol": "TCP", "targetPort": 5353}, {"port": 80}]})
    assert story.content["spec"]["ports"] == [
        {"port": 53, "protocol": "UDP"},
        {"port": 53, "protocol": "TCP", "targetPort": 5353},
        {"port": 80},
    ]


def test_the_applied_order_counts_and_others_keep_their_places() -> None:
    story = Story(POD).update("u", spec={"containers": [{"name": name} for name in "abcd"]})
    story.apply("one", spec={"containers": [{"name": "d"}, {"name": "x"}, {"name": "b"}]})
    assert [item["name"] for item in story.content["spec"]["containers"]] == ["a", "c", "d", "x", "b"]


def test_sets_and_lists_of_one_value() -> None:
    story = Story(POD).apply("one", metadata={"finalizers": ["a"]}, spec={"tolerations": [{"key": "a"}]})
    story.apply("two", metadata={"finalizers": ["b"]})
    assert story.content["metadata"]["finalizers"] == ["a", "b"]
    assert story.owned("two") == ['.metadata.finalizers[="b"]']
    story.apply("one", spec={"tolerations": [{"key": "a"}]})
    assert story.content["metadata"]["finalizers"] == ["b"]
    with pytest.raises(Conflicts, match=r'conflict with "one": \.spec\.tolerations$'):
        story.apply("two", spec={"tolerations": [{"key": "b"}]})


def test_a_selector_is_one_value() -> None:
    story = Story(SERVICE).apply("one", spec={"selector": {"app": "web"}})
    with pytest.raises(Conflicts, match=r"\.spec\.selector$"):
        story.apply("two", spec={"selector": {"tier": "x"}})
    story.apply("two", force=True, spec={"selector": {"tier": "x"}})
    assert story.content == {"spec": {"selector": {"tier": "x"}}}


def test_several_conflicts_are_listed_by_manager() -> None:
    story = Story(DEPLOYMENT).apply("b", spec={"replicas": 1}).update("a", spec={"replicas": 1, "paused": True})
    with pytest.raises(Conflicts) as caught:
        story.apply("c", spec={"replicas": 2, "paused": False})
    assert str(caught.value) == (
        "Apply failed with 2 conflicts: "
        'conflicts with "a" using v1:\n- .spec.paused\nconflicts with "b":\n- .spec.replicas'
    )


def test_an_object_without_managers_gets_one_for_all_that_was_before() -> None:
    story = Story(CONFIG_MAP)
    story.object["data"] = {"a": "1"}
    with pytest.raises(Conflicts, match="before-first-apply"):
        story.apply("one", data={"a": "2"})
    story.apply("one", data={"b": "2"})
    assert story.owned("before-first-apply") == [".data", ".data.a"]


def test_kubectl_may_change_on_the_server_what_it_applied_from_the_client() -> None:
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1"}}
    annotations = {managed_fields.LAST_APPLIED: json.dumps(applied)}
    story = Story(CONFIG_MAP)
    story.update("kubectl-client-side-apply", metadata={"annotations": annotations}, data={"a": "1"})
    with pytest.raises(Conflicts):
        story.apply("somebody", data={"a": "2"})
    story.apply("kubectl", data={"a": "2"})
    assert story.content["data"] == {"a": "2"}
    assert story.owned("kubectl") == [".data.a"]


def test_the_status_has_managers_of_its_own() -> None:
    story = Story(POD).apply("one", spec={"hostname": "h"})
    story.apply("one", subresource="status", status={"phase": "Running"})
    entries = story.object["metadata"]["managedFields"]
    assert [(entry["manager"], entry.get("subresource")) for entry in entries] == [("one", None), ("one", "status")]
    assert story.content == {"spec": {"hostname": "h"}, "status": {"phase": "Running"}}


def test_nothing_new_leaves_the_entries_as_they_were() -> None:
    story = Story(CONFIG_MAP).apply("one", data={"a": "1"}).update("two", data={"a": "1", "b": "2"})
    before = story.object["metadata"]["managedFields"]
    story.apply("one", data={"a": "1"}).update("two", data={"a": "1", "b": "2"})
    assert story.object["metadata"]["managedFields"] == before


def test_an_empty_entry_forgets_all_managers() -> None:
    old = Story(CONFIG_MAP).apply("one", data={"a": "1"}).object
    manager = Manager("two", "Update", "v1")
    assert managed_fields.after_update(old, old, manager, CONFIG_MAP, given=[{}], time="9") == ()
    kept = managed_fields.after_update(old, old, manager, CONFIG_MAP, given=[{"manager": 1}], time="9")
    assert list(kept) == old["metadata"]["managedFields"], "nonsense is not taken over"


def test_no_more_than_ten_updaters_are_kept_apart() -> None:
    story = Story(CONFIG_MAP)
    data: dict[str, str] = {}
    for number in range(14):
        data[f"k{number:02}"] = ""
        story.update(f"m{number:02}", data=data)
    managers = [entry["manager"] for entry in story.object["metadata"]["managedFields"]]
    assert len(managers) == 10
    assert managers[0] == "ancient-changes"
    assert story.owned("ancient-changes") == [".data", *(f".data.k{number:02}" for number in range(5))]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}, r"\.spec\.containers: duplicate entries for key"),
        ({"spec": {"containers": [{"image": "a"}]}}, "omits all key fields"),
    ],
    ids=["twice", "no key"],
)
def test_lists_whose_items_cannot_be_told_apart_are_refused(said: Any, message: str) -> None:
    with pytest.raises(MalformedConfiguration, match=message):
        Story(POD).apply("one", **said)


LEAVES = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)
SAID = st.fixed_dictionaries({}, optional={"data": LEAVES, "immutable": st.booleans()})


@given(st.lists(st.tuples(st.sampled_from(("one", "two", "three")), SAID), max_size=8))
def test_what_is_applied_is_there_and_what_nobody_applies_is_not(steps: list[tuple[str, dict[str, Any]]]) -> None:
    story = Story(CONFIG_MAP)
    said: dict[str, set[tuple[str, str]]] = {}
    for who, what in steps:
        story.apply(who, force=True, **what)
        pairs = {("data", key) for key in what.get("data", {})} | {(key, "") for key in what if key != "data"}
        said[who] = pairs
        for key, value in what.get("data", {}).items():
            assert story.content["data"][key] == value
        # Whoever is overruled with another value loses the field.
        for other, theirs in said.items():
            owned = set(story.owned(other))
            said[other] = {pair for pair in theirs if "." + ".".join(filter(None, pair)) in owned}
    there = {("data", key) for key in story.content.get("data", {})}
    there |= {(key, "") for key in story.object if key == "immutable"}
    assert there == set().union(*said.values())


SETS = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.sampled_from(("f:a", "f:b", "k:{}")), inner, max_size=3), max_leaves=6
)


def members(fields: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for key, below in fields.items():
        if key != ".":
            if not below or "." in below:
                found.add((*path, key))
            found |= members(below, (*path, key))
    return found


@given(SETS, SETS, SETS)
def test_sets_of_fields_are_sets(one: Any, other: Any, third: Any) -> None:
    left, right = field_sets.union(one, third), field_sets.union(other, third)
    before = repr((left, right))
    assert members(field_sets.union(left, right)) == members(left) | members(right)
    assert members(field_sets.difference(left, right)) == members(left) - members(right)
    assert members(field_sets.intersection(left, right)) == members(left) & members(right)
    assert repr((left, right)) == before


def test_every_list_of_every_kind_says_how_it_is_merged() -> None:
    without = set()
    waiting = [name for (version, _), name in known_fields.kinds().items() if not version.startswith("kproxy.dev/")]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            for field, of in known_fields.fields_of(name).items():
                waiting.append(of.strip("[]{}"))
                if of.startswith("[") and "x-kubernetes-list-type" not in merge_rules.extensions_of(name).get(
                    field, {}
                ):
                    without.add((name, field))
    assert len(seen) > 100
    assert without == set(), "renew merge_rules.json after known_fields.json"
