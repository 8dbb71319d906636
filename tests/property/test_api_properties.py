"""Whatever is thrown at the API layer, it answers with objects or findings, and its laws hold."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.api import known_fields, types
from kproxy.api.defaults import default
from kproxy.api.field_errors import FieldError
from kproxy.api.kinds import BY_API
from kproxy.api.known_fields import check, without_effect
from kproxy.api.labels import parse_field_selector, parse_selector
from kproxy.api.manifest import duplicates, read
from kproxy.api.merge_patch import difference, merge_patch
from kproxy.api.validation import prepare, validate
from kproxy.errors import Finding, UserError

POD_SPEC = {
    "hostNetwork": False,
    "nodeSelector": {"zone": "a"},
    "initContainers": [{"name": "first", "image": "x", "restartPolicy": "Always"}],
    "containers": [
        {
            "name": "web",
            "image": "web:1",
            "command": ["sh", "-c", "true"],
            "ports": [{"name": "http", "containerPort": 80}],
            "env": [{"name": "A", "value": "b"}],
            "securityContext": {"privileged": False},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "readinessProbe": {"httpGet": {"port": "http"}},
        }
    ],
    "volumes": [{"name": "data", "emptyDir": {}}],
}
WORKLOAD_SPEC = {
    "replicas": 2,
    "selector": {
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}],
    },
    "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD_SPEC},
}
MANIFESTS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1"},
        "spec": {"podCIDR": "10.244.1.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.2"}]},
    },
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"app": "web"}}, "spec": POD_SPEC},
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "annotations": {"service.kubernetes.io/topology-mode": "Auto"}},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": "web"},
            "clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "externalIPs": ["203.0.113.9"],
            "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
            "ports": [{"name": "a", "port": 80, "targetPort": "http", "nodePort": 30000, "appProtocol": "http"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
    },
    {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web"},
        "subsets": [{"addresses": [{"ip": "10.244.1.2"}], "ports": [{"name": "a", "port": 80}]}],
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.1.2"],
                "conditions": {"ready": True},
                "nodeName": "node1",
                "hints": {"forZones": [{"name": "a"}]},
            }
        ],
        "ports": [{"name": "a", "port": 8080}],
    },
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": WORKLOAD_SPEC},
    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": WORKLOAD_SPEC},
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.112.0.0/16"]},
    },
    {
        "apiVersion": "kproxy.dev/v1alpha1",
        "kind": "Cluster",
        "metadata": {"name": "lab"},
        "spec": {"nodes": [{"name": "node1", "zone": "a"}], "proxy": {"flags": {"v": 4}}},
    },
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["", "None", "TCP", "10.0.0.1", "::1", "a" * 300, "../../etc", "25%", "\0", "-", "1e400"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here] if here else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += paths(item, (*here, key))
    return found


@st.composite
def mutated_manifests(draw: st.DrawFn) -> dict[str, Any]:
    """A good manifest of any kind with one to three values replaced, removed, renamed or added."""
    manifest = copy.deepcopy(draw(st.sampled_from(MANIFESTS)))
    for _ in range(draw(st.integers(1, 3))):
        if not (places := paths(manifest)):
            break
        *parents, last = draw(st.sampled_from(places))
        owner = manifest
        for key in parents:
            owner = owner[key]
        match draw(st.sampled_from(("replace", "remove", "add"))):
            case "replace":
                owner[last] = draw(VALUES)
            case "remove":
                del owner[last]
            case "add" if isinstance(owner, dict):
                owner[draw(st.text(max_size=6))] = draw(VALUES)
            case _:
                owner.append(draw(VALUES))
    return manifest


def assert_clean(text: bytes, file: str) -> None:
    documents, findings = read(text, file)
    assert documents or findings
    assert all(isinstance(finding, Finding) and finding.file == file and str(finding) for finding in findings)
    last_line = text.count(b"\n") + text.count(b"\r") + text.decode(errors="replace").count("\x85") + 1
    for document in documents:
        assert isinstance(document.obj, dict)
        json.dumps(document.obj, allow_nan=False).encode()
        assert 1 <= document.origin.line <= last_line + text.count("\u2028".encode()) + text.count("\u2029".encode())
        _, errors = prepare(document.obj)
        assert all(str(finding) for finding in document.findings(errors))
        without_effect(document.obj)
    duplicates(documents)


@given(st.binary(max_size=200), st.sampled_from(["x.yaml", "x.json"]))
@settings(deadline=None)
def test_random_bytes_give_objects_or_findings(text: bytes, file: str) -> None:
    assert_clean(text, file)


YAML_PIECES = st.sampled_from([
    *"a1~'\"#{}[],\n\t\x85\u2028\ufeff\xe9", "- ", ": ", "  ", "&x ", "*x", "!t ", "|\n", ">\n", "---\n", "...\n",
    "<<: ", "? ", "0x", "1e9", "\r\n", "\\u", "kind", "%YAML 1.1\n", "apiVersion: v1\n", "kind: List\n", "items:\n",
    "metadata:\n",
])  # fmt: skip


@given(st.lists(YAML_PIECES, max_size=40).map("".join))
@settings(deadline=None, max_examples=300)
def test_text_in_the_shape_of_yaml_gives_objects_or_findings(text: str) -> None:
    assert_clean(text.encode(), "x.yaml")


@given(st.data())
@settings(deadline=None)
def test_manifests_with_damaged_bytes_give_objects_or_findings(data: st.DataObject) -> None:
    text = bytearray(json.dumps(data.draw(st.sampled_from(MANIFESTS)), indent=1).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=4))
    assert_clean(bytes(text), data.draw(st.sampled_from(["x.yaml", "x.json"])))


@given(mutated_manifests())
@settings(deadline=None, max_examples=400)
def test_mutated_manifests_are_refused_with_errors_or_can_be_used(manifest: dict[str, Any]) -> None:
    before = copy.deepcopy(manifest)
    prepared, errors = prepare(manifest)
    assert manifest == before
    assert all(isinstance(error, FieldError) and error.message() and error.cause()["message"] for error in errors)
    without_effect(manifest)
    if errors:
        assert prepared == manifest
        return
    assert check(prepared) == []
    assert default(prepared) == prepared
    assert validate(prepared, prepared, is_complete=False) == []
    if (kind := BY_API.get((prepared["apiVersion"], prepared["kind"]))) is not None:
        types.view(prepared, getattr(types, kind.name, types.Value))


@given(mutated_manifests())
@settings(deadline=None, max_examples=400)
def test_the_quick_look_at_fields_agrees_with_the_thorough_one(manifest: dict[str, Any]) -> None:
    kinds, _ = known_fields._table()
    name = kinds.get(f"{manifest.get('apiVersion')}/{manifest.get('kind')}")
    if name is not None:
        assert known_fields._fits(manifest, name) is not any(known_fields._check_object(manifest, name, ""))


@given(mutated_manifests(), mutated_manifests())
@settings(deadline=None)
def test_updates_are_judged_without_failing(new: dict[str, Any], old: dict[str, Any]) -> None:
    if check(new) or check(old) or new["kind"] != old["kind"]:
        return
    for error in validate(default(new), default(old)):
        assert error.message()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_the_manifests_that_are_mutated_are_good_ones(manifest: dict[str, Any]) -> None:
    assert prepare(manifest)[1] == []


@given(st.dictionaries(st.text(max_size=6), VALUES, min_size=1, max_size=4))
@settings(deadline=None)
def test_json_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates have no bytes
        return
    if b"\0" in text:
        return
    documents, findings = read(text, "x.json")
    if value.get("kind") == "List" or findings:
        return
    assert [document.obj for document in documents] == [value]


@given(mutated_manifests())
@settings(deadline=None)
def test_yaml_and_json_of_one_object_read_alike(manifest: dict[str, Any]) -> None:
    try:
        text = json.dumps(manifest, indent=2).encode("ascii")
    except ValueError:
        return
    as_json, json_findings = read(text, "x.json")
    # The same text, read by the other reader.
    as_yaml, yaml_findings = read(b"# yaml\n" + text, "x.yaml")
    if json_findings or yaml_findings or b"\\u" in text:
        return
    assert [document.obj for document in as_yaml] == [document.obj for document in as_json]
    for in_json, in_yaml in zip(as_json, as_yaml, strict=True):
        assert {path: line + 1 for path, line in in_json.origin.lines.items()} == dict(in_yaml.origin.lines)


OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(OBJECTS, OBJECTS)
def test_the_difference_patched_in_gives_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = copy.deepcopy(old)
    assert merge_patch(old, difference(old, new)) == new
    assert difference(new, new) == {}
    assert old == before


@given(
    st.lists(st.sampled_from(["a", "=", "!=", "==", " in ", "(", ")", ",", "!", "notin", ">", "1", " "]), max_size=10)
)
def test_selectors_are_parsed_or_refused(pieces: list[str]) -> None:
    for parse in (parse_selector, lambda text: parse_field_selector(text, {"a": ("a",)})):
        try:
            predicate = parse("".join(pieces))
        except UserError:
            continue
        assert predicate({"a": "1"}) in (True, False)
