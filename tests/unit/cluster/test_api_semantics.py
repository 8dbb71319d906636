"""What the API's verbs mean over a real socket: pages, revisions, watches, patches, managers, deletion."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from running_cluster import Api, Cluster, eventually

from kproxy.api.kinds import CONFIG_MAP, DEPLOYMENT, NODE, POD, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.client import Client, WatchEvent
from kproxy.cluster.patches import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH
from kproxy.errors import ApiError, Conflict, Gone, Invalid, NotFound

MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, **spec: Any) -> Object:
    return {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "x"}], **spec},
    }


def ask(client: Client, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Any:
    return json.loads(client.request(method, path, query=query, body=body, content_type=kind))


def names(listing: Any) -> list[str]:
    return [item["metadata"]["name"] for item in listing["items"]]


def managers(obj: Object) -> list[tuple[str, str, str]]:
    return [
        (entry["manager"], entry["operation"], entry.get("subresource", ""))
        for entry in obj["metadata"]["managedFields"]
    ]


# ----- lists


def test_pages_show_one_revision(client: Client) -> None:
    for name in "abcde":
        client.create(CONFIG_MAP, config_map(name), "default")
    first = ask(client, "GET", MAPS, limit="2")
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    client.delete(CONFIG_MAP, "c", "default")
    client.create(CONFIG_MAP, config_map("cc"), "default")
    client.patch(CONFIG_MAP, "d", {"data": {"new": "1"}}, "default")
    second = ask(client, "GET", MAPS, limit="2", **{"continue": first["metadata"]["continue"]})
    third = ask(client, "GET", MAPS, limit="2", **{"continue": second["metadata"]["continue"]})
    assert names(second) + names(third) == ["c", "d", "e"]
    assert all("new" not in item.get("data", {}) for item in second["items"])
    assert {page["metadata"]["resourceVersion"] for page in (first, second, third)} == {
        first["metadata"]["resourceVersion"]
    }
    assert "continue" not in third["metadata"]


def test_a_page_with_selectors_does_not_say_how_many_are_left(client: Client) -> None:
    for name in "abc":
        client.create(POD, pod(name), "default")
    page = ask(client, "GET", "/api/v1/pods", limit="1", labelSelector="app!=a")
    assert names(page) == ["b"]
    assert "remainingItemCount" not in page["metadata"]


@pytest.mark.parametrize("history", [4])
def test_a_token_that_has_become_too_old_is_told_so_and_offers_another(api: Api, client: Client, history: int) -> None:
    api.stop()
    api.start(history=history)
    for name in "abc":
        client.create(CONFIG_MAP, config_map(name), "default")
    first = ask(client, "GET", MAPS, limit="1")
    for number in range(12):
        client.patch(CONFIG_MAP, "a", {"data": {"n": str(number)}}, "default")
    client.create(CONFIG_MAP, config_map("bb"), "default")
    with pytest.raises(Gone, match="The provided continue parameter is too old") as caught:
        ask(client, "GET", MAPS, limit="1", **{"continue": first["metadata"]["continue"]})
    assert (caught.value.code, caught.value.reason) == (410, "Expired")
    rest = ask(client, "GET", MAPS, **{"continue": caught.value.status["metadata"]["continue"]})
    assert names(rest) == ["b", "bb", "c"], "inconsistent, as was told"
    old = str(int(first["metadata"]["resourceVersion"]))
    with pytest.raises(Gone, match="The resourceVersion for the provided list is too old"):
        ask(client, "GET", MAPS, resourceVersion=old, resourceVersionMatch="Exact")


def test_a_list_as_it_was(client: Client) -> None:
    client.create(CONFIG_MAP, config_map("a", x="1"), "default")
    then = client.create(CONFIG_MAP, config_map("b"), "default")["metadata"]["resourceVersion"]
    client.delete(CONFIG_MAP, "a", "default")
    client.create(CONFIG_MAP, config_map("c"), "default")
    exact = ask(client, "GET", MAPS, resourceVersion=then, resourceVersionMatch="Exact")
    assert (names(exact), exact["metadata"]["resourceVersion"]) == (["a", "b"], then)
    for query in ({"resourceVersion": "0"}, {"resourceVersion": then, "resourceVersionMatch": "NotOlderThan"}):
        assert names(ask(client, "GET", MAPS, **query)) == ["b", "c"]


LIST_REFUSALS = [
    ("match without a version", {"resourceVersionMatch": "Exact"}, 422, "forbidden unless resourceVersion is provided"),
    ("no such match", {"resourceVersionMatch": "Near", "resourceVersion": "1"}, 422, "Unsupported value"),
    ("exactly any", {"resourceVersionMatch": "Exact", "resourceVersion": "0"}, 422, "is forbidden for resourceVersion"),
    ("initial events of a list", {"sendInitialEvents": "true"}, 422, "sendInitialEvents is forbidden for list"),
    ("a token and a version", {"continue": "e30", "resourceVersion": "1"}, 400, "not allowed when using continue"),
    ("no token", {"continue": "xyz"}, 400, "continue key is not valid"),
    ("a foreign token", {"continue": "eyJ2IjoieCIsInJ2IjoxLCJzdGFydCI6ImEifQ"}, 400, "does not recognize"),
    ("the future", {"resourceVersion": "99999"}, 504, "Too large resource version: 99999, current"),
    ("no version", {"resourceVersion": "x"}, 400, "resourceVersion"),
    ("no limit", {"limit": "-1"}, 400, "limit"),
    ("no such field", {"fieldSelector": "spec.foo=1"}, 400, "field label not supported: spec.foo"),
    ("another kind's field", {"fieldSelector": "spec.nodeName=1"}, 400, "field label not supported"),
    ("match of a watch", {"watch": "1", "resourceVersionMatch": "NotOlderThan"}, 422, "forbidden for watch unless"),
    (
        "initial without match",
        {"watch": "1", "sendInitialEvents": "true"},
        422,
        "requires setting resourceVersionMatch",
    ),
    (
        "initial with another match",
        {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "Exact", "resourceVersion": "1"},
        422,
        "sendInitialEvents requires setting",
    ),
]


@pytest.mark.parametrize(
    ("query", "code", "message"), [c[1:] for c in LIST_REFUSALS], ids=[c[0] for c in LIST_REFUSALS]
)
def test_lists_and_watches_that_make_no_sense(client: Client, query: dict[str, str], code: int, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        ask(client, "GET", MAPS, **query)
    assert caught.value.code == code


# ----- watches


def lines_of(api: Api, **query: str) -> Iterator[Any]:
    """Raw lines of a watch of ConfigMaps that ends by itself."""
    own = Client(api.url)
    try:
        answer = own.request("GET", MAPS, query={"watch": "1", "timeoutSeconds": "1", **query})
    finally:
        own.close()
    return map(json.loads, answer.splitlines())


def test_a_watch_that_begins_with_what_is_there_says_where_that_ends(api: Api, client: Client) -> None:
    client.create(CONFIG_MAP, config_map("a"), "default")
    asked = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    for version in ({}, {"resourceVersion": "0"}, {"resourceVersion": "1"}):
        added, bookmark = itertools.islice(lines_of(api, **asked, **version), 2)
        assert (added["type"], added["object"]["metadata"]["name"]) == ("ADDED", "a")
        assert bookmark["type"] == "BOOKMARK"
        assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert int(bookmark["object"]["metadata"]["resourceVersion"]) == api.store.revision


def test_where_a_watch_begins(api: Api, client: Client) -> None:
    then = client.create(CONFIG_MAP, config_map("a"), "default")["metadata"]["resourceVersion"]
    client.create(CONFIG_MAP, config_map("b"), "default")
    seen = {
        version: [(line["type"], line["object"]["metadata"]["name"]) for line in lines_of(api, **query)]
        for version, query in (
            ("unset", {}),
            ("0", {"resourceVersion": "0"}),
            ("N", {"resourceVersion": then}),
            ("now", {"sendInitialEvents": "false", "resourceVersionMatch": "NotOlderThan"}),
        )
    }
    everything = [("ADDED", "a"), ("ADDED", "b")]
    assert seen == {"unset": everything, "0": everything, "N": [("ADDED", "b")], "now": []}


def test_a_watch_from_before_the_log_gets_a_410_event(api: Api, client: Client) -> None:
    api.stop()
    api.start(history=4)
    for number in range(12):
        client.create(CONFIG_MAP, config_map(f"m{number}"), "default")
    (line,) = lines_of(api, resourceVersion="1")
    assert line["type"] == "ERROR"
    assert (line["object"]["kind"], line["object"]["code"], line["object"]["reason"]) == ("Status", 410, "Expired")
    assert "too old resource version: 1" in line["object"]["message"]


def test_an_object_that_leaves_a_selection_is_deleted_as_it_was_there(api: Api, client: Client) -> None:
    client.create(POD, pod("p"), "default")
    events: list[WatchEvent] = []
    own = Client(api.url)
    watched = own.watch(POD, resource_version=str(api.store.revision), label_selector="app=p", timeout_seconds=20)
    thread = threading.Thread(target=lambda: events.append(next(watched)))
    thread.start()
    changed = client.patch(POD, "p", {"metadata": {"labels": {"app": "q"}}}, "default")
    thread.join()
    watched.close()  # type: ignore[attr-defined]
    own.close()
    (event,) = events
    assert event.type == "DELETED"
    assert event.object["metadata"]["labels"] == {"app": "p"}
    assert event.resource_version == changed["metadata"]["resourceVersion"]


# ----- writes


def test_four_kinds_of_patches(client: Client) -> None:
    client.create(POD, pod("p"), "default")
    path = "/api/v1/namespaces/default/pods/p"
    label = [
        {"op": "test", "path": "/metadata/labels/app", "value": "p"},
        {"op": "remove", "path": "/metadata/labels/app"},
    ]
    assert not ask(client, "PATCH", path, label, JSON_PATCH)["metadata"].get("labels")
    with pytest.raises(Invalid, match="is not there") as caught:
        ask(client, "PATCH", path, label, JSON_PATCH)
    assert caught.value.code == 422
    image = {"spec": {"containers": [{"name": "c", "image": "y"}]}}
    patched = ask(client, "PATCH", path, image, STRATEGIC_MERGE_PATCH)
    assert [(item["name"], item["image"]) for item in patched["spec"]["containers"]] == [("c", "y")]
    assert patched["spec"]["containers"][0]["imagePullPolicy"], "merged, not replaced"
    assert (
        ask(client, "PATCH", path, {"metadata": {"labels": {"x": "1"}}}, MERGE_PATCH)["metadata"]["labels"]["x"] == "1"
    )
    applied = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"y": "2"}}}
    labels = ask(client, "PATCH", path, applied, APPLY_PATCH, fieldManager="me")["metadata"]["labels"]
    assert (labels["x"], labels["y"]) == ("1", "2")


PATCH_REFUSALS: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    (
        "an apply by nobody",
        APPLY_PATCH,
        config_map("a"),
        {},
        422,
        "fieldManager: Required value: is required for apply",
    ),
    ("force without apply", MERGE_PATCH, {}, {"force": "true"}, 422, "may not be specified for non-apply patch"),
    ("an apply of another kind", APPLY_PATCH, {"kind": "Pod"}, {"fieldManager": "m"}, 400, "incorrect type"),
    ("no such dry run", MERGE_PATCH, {}, {"dryRun": "Some"}, 422, "dryRun: Unsupported value"),
    ("no such validation", MERGE_PATCH, {}, {"fieldValidation": "Hard"}, 422, "fieldValidation: Unsupported value"),
    ("a long manager", MERGE_PATCH, {}, {"fieldManager": "m" * 129}, 422, "fieldManager: Too long"),
    ("an unprintable manager", MERGE_PATCH, {}, {"fieldManager": "\x01"}, 422, "printable"),
    ("a merge patch that is a list", MERGE_PATCH, [], {}, 400, "not a JSON object"),
    ("a JSON patch that is none", JSON_PATCH, {}, {}, 400, "list of operations"),
    (
        "a long JSON patch",
        JSON_PATCH,
        [{"op": "test"}] * 10_001,
        {},
        413,
        "maximum operations in a JSON patch is 10000",
    ),
    ("a strategic patch", STRATEGIC_MERGE_PATCH, {"data": {"$patch": "paint"}}, {}, 400, "unknown patch type"),
    ("another version", MERGE_PATCH, {"metadata": {"resourceVersion": "1"}}, {}, 409, "the object has been modified"),
    (
        "fields that nobody knows",
        APPLY_PATCH,
        {**config_map("a"), "dada": {}},
        {"fieldManager": "m"},
        400,
        r"failed to create typed patch object \(default/a; v1, Kind=ConfigMap\): \.dada: field not declared in schema",
    ),
    (
        "managers of its own",
        APPLY_PATCH,
        {**config_map("a"), "metadata": {"name": "a", "managedFields": [{"manager": "x"}]}},
        {"fieldManager": "m"},
        400,
        "metadata.managedFields must be nil",
    ),
]


@pytest.mark.parametrize(
    ("kind", "patch", "query", "code", "message"), [c[1:] for c in PATCH_REFUSALS], ids=[c[0] for c in PATCH_REFUSALS]
)
def test_patches_that_make_no_sense(
    client: Client, kind: str, patch: Any, query: dict[str, str], code: int, message: str
) -> None:
    client.create(CONFIG_MAP, config_map("a"), "default")
    with pytest.raises(ApiError, match=message) as caught:
        ask(client, "PATCH", f"{MAPS}/a", patch, kind, **query)
    assert caught.value.code == code


def test_a_server_side_apply_creates_conflicts_and_gives_up(client: Client) -> None:
    path = f"{MAPS}/a"
    one = ask(client, "PATCH", path, config_map("a", x="1", y="1"), APPLY_PATCH, fieldManager="one")
    assert managers(one) == [("one", "Apply", "")]
    assert one["metadata"]["managedFields"][0]["fieldsV1"] == {"f:data": {"f:x": {}, "f:y": {}}}
    with pytest.raises(Conflict) as caught:
        ask(client, "PATCH", path, config_map("a", x="2"), APPLY_PATCH, fieldManager="two")
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "one": .data.x'
    assert caught.value.status["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.x"}
    ]
    two = ask(client, "PATCH", path, config_map("a", x="2"), APPLY_PATCH, fieldManager="two", force="true")
    assert (two["data"], managers(two)) == ({"x": "2", "y": "1"}, [("one", "Apply", ""), ("two", "Apply", "")])
    same = ask(client, "PATCH", path, config_map("a", x="2"), APPLY_PATCH, fieldManager="two")
    assert same["metadata"]["resourceVersion"] == two["metadata"]["resourceVersion"], "nothing new is no write"
    nothing = {"apiVersion": "v1", "kind": "ConfigMap"}
    gone = ask(client, "PATCH", path, nothing, APPLY_PATCH, fieldManager="two")
    assert (gone["data"], managers(gone)) == ({"y": "1"}, [("one", "Apply", "")])


def test_an_apply_may_be_written_in_yaml(api: Api) -> None:
    own = Client(api.url, headers={"Content-Type": APPLY_PATCH})
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: why\ndata:\n  a: b\n"
    connection = own._connect()
    try:
        connection.request("PATCH", f"{MAPS}/why?fieldManager=me", text, {"Content-Type": APPLY_PATCH})
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert (response.status, answer.get("data")) == (201, {"a": "b"}), answer.get("message")
    finally:
        connection.close()
        own.close()


def test_writers_are_noted_by_name_or_program(api: Api) -> None:
    own = Client(api.url, headers={"User-Agent": "tool/1.2 (linux)"})
    created = own.create(POD, pod("p"), "default")
    assert managers(created) == [("tool", "Update", "")]
    told = ask(own, "PATCH", "/api/v1/namespaces/default/pods/p/status", {"status": {"phase": "Running"}}, MERGE_PATCH)
    assert managers(told) == [("tool", "Update", ""), ("tool", "Update", "status")]
    other = ask(
        own,
        "PATCH",
        "/api/v1/namespaces/default/pods/p",
        {"metadata": {"labels": {"a": "b"}}},
        MERGE_PATCH,
        fieldManager="me",
    )
    assert ("me", "Update", "") in managers(other)
    own.close()


def test_what_the_cluster_allocates_belongs_to_nobody(client: Client) -> None:
    spec = {"type": "NodePort", "ports": [{"port": 80}]}
    service = client.create(SERVICE, {"metadata": {"name": "web"}, "spec": spec}, "default")
    fields = service["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]
    assert "f:clusterIP" not in fields
    assert "f:nodePort" not in fields["f:ports"]['k:{"port":80,"protocol":"TCP"}']
    assert service["spec"]["clusterIP"]


@pytest.mark.parametrize("level", ["Strict", "Warn", "Ignore", ""])
def test_fields_that_nobody_knows(api: Api, level: str) -> None:
    own = Client(api.url)
    connection = own._connect()
    body = json.dumps({**config_map("x"), "dada": 1})
    try:
        connection.request(
            "POST", MAPS + (f"?fieldValidation={level}" if level else ""), body, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
    finally:
        connection.close()
        own.close()
    warned = response.headers.get_all("Warning") or []
    if level == "Strict":
        assert (response.status, answer["message"]) == (
            400,
            'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dada"',
        )
    else:
        assert (response.status, "dada" in answer) == (201, False)
        assert len(warned) == (0 if level == "Ignore" else 1)


def dry(kind: Kind, name: str, method: str) -> tuple[str, str, Any, str]:
    path = kind.path("default") + ("" if method in ("POST", "DELETE-ALL") else f"/{name}")
    body: Any = {"metadata": {"name": name, "labels": {"dry": "run"}}}
    if method == "POST":
        return method, path, config_map("fresh"), "application/json"
    if method == "PUT":
        return method, path, {**config_map(name), **body}, "application/json"
    if method == "PATCH":
        return method, path, body, MERGE_PATCH
    return "DELETE", path, None, "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETE-ALL"])
def test_a_dry_run_says_what_would_be_and_changes_nothing(api: Api, client: Client, method: str) -> None:
    client.create(CONFIG_MAP, config_map("a", x="1"), "default")
    before = api.store.revision
    if method == "APPLY":
        asked = ("PATCH", f"{MAPS}/new", config_map("new"), APPLY_PATCH)
        answer = ask(client, *asked, fieldManager="me", dryRun="All")
    else:
        answer = ask(client, *dry(CONFIG_MAP, "a", method), dryRun="All")
    assert answer["kind"] in ("ConfigMap", "ConfigMapList", "Status")
    assert api.store.revision == before
    assert names(ask(client, "GET", MAPS)) == ["a"]


def test_deleting_a_collection(client: Client) -> None:
    for name in "abc":
        client.create(POD, pod(name), "default")
    gone = ask(client, "DELETE", "/api/v1/namespaces/default/pods", labelSelector="app!=b")
    assert (gone["kind"], names(gone)) == ("PodList", ["a", "c"])
    assert names(ask(client, "GET", "/api/v1/namespaces/default/pods")) == ["b"]
    with pytest.raises(ApiError) as caught:
        ask(client, "DELETE", "/api/v1/pods")
    assert caught.value.code == 405


def test_generation_counts_changes_of_the_spec_alone(client: Client) -> None:
    labels = {"matchLabels": {"a": "b"}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}
    made = client.create(
        DEPLOYMENT, {"metadata": {"name": "d"}, "spec": {"selector": labels, "template": template}}, "default"
    )
    assert made["metadata"]["generation"] == 1
    labelled = client.patch(DEPLOYMENT, "d", {"metadata": {"labels": {"x": "y"}}}, "default")
    status = client.patch(DEPLOYMENT, "d", {"status": {"replicas": 1}, "spec": {"replicas": 9}}, "default", "status")
    assert (labelled["metadata"]["generation"], status["metadata"]["generation"]) == (1, 1)
    assert (status["spec"]["replicas"], status["status"]["replicas"]) == (1, 1), (
        "the spec is not written through the status"
    )
    spec = client.patch(DEPLOYMENT, "d", {"spec": {"replicas": 2}, "status": {"replicas": 9}}, "default")
    assert (spec["metadata"]["generation"], spec["status"]["replicas"]) == (2, 1), "nor the other way round"
    for name in ("uid", "creationTimestamp"):
        forged = client.patch(DEPLOYMENT, "d", {"metadata": {"generation": 99}}, "default")
        assert forged["metadata"][name] == made["metadata"][name]
        assert forged["metadata"]["generation"] == 2


def test_an_object_with_a_finalizer_waits_for_it(client: Client) -> None:
    client.create(CONFIG_MAP, {**config_map("a"), "metadata": {"name": "a", "finalizers": ["x.io/wait"]}}, "default")
    marked = client.delete(CONFIG_MAP, "a", "default")
    assert marked["metadata"]["deletionTimestamp"]
    again = client.delete(CONFIG_MAP, "a", "default")
    assert again["metadata"]["deletionTimestamp"] == marked["metadata"]["deletionTimestamp"]
    client.patch(CONFIG_MAP, "a", {"metadata": {"finalizers": None}}, "default")
    with pytest.raises(NotFound):
        client.get(CONFIG_MAP, "a", "default")


DELETE_REFUSALS: list[tuple[str, Any, int, str]] = [
    ("policy", {"propagationPolicy": "Sideways"}, 422, "propagationPolicy: Unsupported value"),
    ("both", {"propagationPolicy": "Orphan", "orphanDependents": True}, 422, "cannot be both set"),
    ("grace", {"gracePeriodSeconds": -1}, 400, "gracePeriodSeconds"),
    ("uid", {"preconditions": {"uid": "1"}}, 409, "UID in precondition: 1"),
    ("version", {"preconditions": {"resourceVersion": "1"}}, 409, "ResourceVersion in precondition: 1"),
]


@pytest.mark.parametrize(
    ("options", "code", "message"), [c[1:] for c in DELETE_REFUSALS], ids=[c[0] for c in DELETE_REFUSALS]
)
def test_deletions_that_make_no_sense(client: Client, options: Any, code: int, message: str) -> None:
    client.create(CONFIG_MAP, config_map("a"), "default")
    with pytest.raises(ApiError, match=message) as caught:
        ask(client, "DELETE", f"{MAPS}/a", options)
    assert caught.value.code == code
    client.get(CONFIG_MAP, "a", "default")


# ----- owners


def owned(name: str, owner: Object, *, blocks: bool = True, finalizers: tuple[str, ...] = ()) -> Object:
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": blocks,
    }
    return {
        **config_map(name),
        "metadata": {"name": name, "ownerReferences": [reference], "finalizers": list(finalizers)},
    }


def maps_left(client: Client) -> list[str]:
    return names(ask(client, "GET", MAPS))


def test_background_deletion_takes_the_owner_first(cluster: Cluster) -> None:
    client = cluster.client
    owner = client.create(CONFIG_MAP, config_map("owner"), "default")
    client.create(CONFIG_MAP, owned("child", owner), "default")
    ask(client, "DELETE", f"{MAPS}/owner", {"propagationPolicy": "Background"})
    eventually(lambda: maps_left(client), lambda left: left == [])


def test_foreground_deletion_takes_the_owner_last(cluster: Cluster) -> None:
    client = cluster.client
    owner = client.create(CONFIG_MAP, config_map("owner"), "default")
    client.create(CONFIG_MAP, owned("child", owner, finalizers=("x.io/wait",)), "default")
    ask(client, "DELETE", f"{MAPS}/owner", {"propagationPolicy": "Foreground"})

    def child_is_dying() -> Any:
        return client.get(CONFIG_MAP, "child", "default")["metadata"].get("deletionTimestamp")

    eventually(child_is_dying, bool)
    assert client.get(CONFIG_MAP, "owner", "default")["metadata"]["finalizers"] == ["foregroundDeletion"]
    client.patch(CONFIG_MAP, "child", {"metadata": {"finalizers": None}}, "default")
    eventually(lambda: maps_left(client), lambda left: left == [])


def test_orphans_are_released(cluster: Cluster) -> None:
    client = cluster.client
    owner = client.create(CONFIG_MAP, config_map("owner"), "default")
    client.create(CONFIG_MAP, owned("child", owner), "default")
    ask(client, "DELETE", f"{MAPS}/owner", {"propagationPolicy": "Orphan"})
    eventually(lambda: maps_left(client), lambda left: left == ["child"])
    assert not client.get(CONFIG_MAP, "child", "default")["metadata"].get("ownerReferences")


def test_an_object_with_several_owners_outlives_all_but_the_last(cluster: Cluster) -> None:
    client = cluster.client
    first, second = (client.create(CONFIG_MAP, config_map(name), "default") for name in ("first", "second"))
    child = owned("child", first)
    child["metadata"]["ownerReferences"] += owned("child", second)["metadata"]["ownerReferences"]
    client.create(CONFIG_MAP, child, "default")
    client.delete(CONFIG_MAP, "first", "default")

    def references() -> Any:
        return client.get(CONFIG_MAP, "child", "default")["metadata"]["ownerReferences"]

    eventually(references, lambda left: [reference["name"] for reference in left] == ["second"])
    client.delete(CONFIG_MAP, "second", "default")
    eventually(lambda: maps_left(client), lambda left: left == [])


def test_a_cluster_scoped_collection_can_be_deleted(client: Client) -> None:
    for name in ("n1", "n2"):
        client.create(NODE, {"metadata": {"name": name}})
    ask(client, "DELETE", "/api/v1/nodes", fieldSelector="metadata.name=n1")
    assert names(ask(client, "GET", "/api/v1/nodes")) == ["n2"]
