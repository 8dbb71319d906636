"""JSON patches: the examples of RFC 6902's appendix, what is refused, and laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.api.json_patch import MalformedPatch, PatchFailed, json_patch

CASES = [
    ("A.1 adding a member", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": 1}], {"foo": "bar", "baz": 1}),
    ("A.2 adding an element", {"foo": [1, 3]}, [{"op": "add", "path": "/foo/1", "value": 2}], {"foo": [1, 2, 3]}),
    ("A.3 removing a member", {"baz": 1, "foo": 2}, [{"op": "remove", "path": "/baz"}], {"foo": 2}),
    ("A.4 removing an element", {"foo": [1, 2, 3]}, [{"op": "remove", "path": "/foo/1"}], {"foo": [1, 3]}),
    ("A.5 replacing", {"baz": 1, "foo": 2}, [{"op": "replace", "path": "/baz", "value": 3}], {"baz": 3, "foo": 2}),
    (
        "A.6 moving",
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    (
        "A.7 moving an element",
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    (
        "A.8 testing",
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    ("A.10 a nested member", {"a": 1}, [{"op": "add", "path": "/b", "value": {"c": {}}}], {"a": 1, "b": {"c": {}}}),
    ("A.11 unknown members", {"a": 1}, [{"op": "add", "path": "/b", "value": 2, "xyz": 1}], {"a": 1, "b": 2}),
    ("A.14 escapes", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ("A.16 at the end", {"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["x"]}], {"foo": ["bar", ["x"]]}),
    ("copying", {"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}),
    ("1 is 1.0", {"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
    ("the whole document", {"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ("an empty name", {"": 1}, [{"op": "replace", "path": "/", "value": 2}], {"": 2}),
]


@pytest.mark.parametrize(("target", "patch", "result"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_json_patch(target: Any, patch: Any, result: Any) -> None:
    before = repr(target)
    assert json_patch(target, patch) == result
    assert repr(target) == before


FAILING = [
    ("A.9 a failing test", [{"op": "test", "path": "/baz", "value": "bar"}], PatchFailed, "testing value /baz failed"),
    ("A.12 no parent", [{"op": "add", "path": "/x/bat", "value": 1}], PatchFailed, "/x is not there"),
    ("A.15 a string is no number", [{"op": "test", "path": "/n", "value": "10"}], PatchFailed, "testing value"),
    ("true is not 1", [{"op": "test", "path": "/one", "value": True}], PatchFailed, "testing value"),
    ("removing nothing", [{"op": "remove", "path": "/x"}], PatchFailed, "is not there"),
    ("replacing nothing", [{"op": "replace", "path": "/x", "value": 1}], PatchFailed, "is not there"),
    ("an index too far", [{"op": "add", "path": "/list/3", "value": 1}], PatchFailed, "nothing can be added"),
    ("an index with a leading zero", [{"op": "remove", "path": "/list/00"}], PatchFailed, "is not there"),
    ("into itself", [{"op": "move", "from": "/map", "path": "/map/a/b"}], PatchFailed, "into itself"),
    ("no list", {"op": "remove"}, MalformedPatch, "list of operations"),
    ("no operation", [1], MalformedPatch, "an object"),
    ("unknown operation", [{"op": "paint", "path": "/a"}], MalformedPatch, "unknown operation"),
    ("no path", [{"op": "remove"}], MalformedPatch, "JSON pointer"),
    ("no pointer", [{"op": "remove", "path": "a"}], MalformedPatch, "JSON pointer"),
    ("no value", [{"op": "add", "path": "/a"}], MalformedPatch, "needs a value"),
]


@pytest.mark.parametrize(("patch", "error", "message"), [case[1:] for case in FAILING], ids=[c[0] for c in FAILING])
def test_patches_that_do_not_fit(patch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        json_patch({"baz": "qux", "n": 10, "one": 1, "list": [1, 2], "map": {"a": {}}}, patch)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a/~", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a/~", max_size=2), inner, max_size=3),
)
OBJECTS = st.dictionaries(st.text("a/~", max_size=2), JSON, max_size=4)


def pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


@given(OBJECTS, st.text("a/~", max_size=2), JSON)
def test_what_was_added_is_there_and_goes_when_it_is_removed(target: Any, key: str, value: Any) -> None:
    added = json_patch(target, [{"op": "add", "path": pointer(key), "value": value}])
    assert added == target | {key: value}
    assert json_patch(added, [{"op": "test", "path": pointer(key), "value": value}]) == added
    rest = json_patch(added, [{"op": "remove", "path": pointer(key)}])
    assert rest == {name: item for name, item in target.items() if name != key}


@given(OBJECTS, st.lists(st.tuples(st.text("a/~", max_size=2), JSON), max_size=4))
def test_all_operations_are_done_or_none(target: Any, values: list[tuple[str, Any]]) -> None:
    before = repr(target)
    good = [{"op": "add", "path": pointer(key), "value": value} for key, value in values]
    with pytest.raises(PatchFailed):
        json_patch(target, [*good, {"op": "remove", "path": "/not/there"}])
    assert repr(target) == before
    assert json_patch(target, good) == {**target, **dict(values)}
