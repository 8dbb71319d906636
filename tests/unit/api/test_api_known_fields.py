"""The table of known fields: what is refused, what is accepted, what is named as having no effect."""

import json
import pkgutil
from typing import Any

import pytest

from kproxy.api.kinds import KINDS
from kproxy.api.known_fields import check, child, without_effect


def obj(kind: str = "Service", api_version: str = "v1", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, **parts}


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (obj(), []),
        ({}, ["apiVersion: Required value", "kind: Required value"]),
        ({"apiVersion": "v1", "kind": ""}, ["kind: Required value"]),
        ({"apiVersion": 1, "kind": "Pod"}, ["apiVersion: Invalid value: 1: must be a string"]),
        (
            obj("service"),
            ['kind: Invalid value: "service": no matches for kind "service" in version "v1", did you mean "Service"?'],
        ),
        (obj("Deployment"), ['apiVersion: Unsupported value: "v1": supported values: "apps/v1"']),
        (obj("Gadget"), ['kind: Invalid value: "Gadget": no matches for kind "Gadget" in version "v1"']),
        (obj(spec={"prots": []}), ['unknown field "spec.prots", did you mean "ports"?']),
        (obj(spec={"xyzzy": 1}), ['unknown field "spec.xyzzy"']),
        (obj(spec={"": 1}), ['unknown field "spec[]"']),
        (obj(spec={"a b": 1}), ['unknown field "spec[a b]"']),
        (obj(spec=[]), ["spec: Invalid value: []: must be an object"]),
        (obj(spec=None, metadata=None), []),
        (obj(spec={"ports": {}}), ["spec.ports: Invalid value: {}: must be a list"]),
        (obj(spec={"ports": [None]}), ['spec.ports[0]: Invalid value: "null": must be an object']),
        (obj(spec={"ports": [{"port": True}]}), ["spec.ports[0].port: Invalid value: true: must be an integer"]),
        (obj(spec={"ports": [{"port": 2**63}]}), [f"spec.ports[0].port: Invalid value: {2**63}: must be an integer"]),
        (obj(spec={"ports": [{"targetPort": "http"}, {"targetPort": 80}]}), []),
        (obj(spec={"selector": {"a": None, "b": "c"}}), []),
        (obj(metadata={"labels": {"a": 1}}), ["metadata.labels.a: Invalid value: 1: must be a string"]),
        (
            obj(metadata={"annotations": {"a.b/c": []}}),
            ["metadata.annotations[a.b/c]: Invalid value: []: must be a string"],
        ),
        (obj("Pod", spec={"containers": [{"resources": {"limits": {"cpu": 1, "memory": "64Mi"}}}]}), []),
        (
            obj("Pod", spec={"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}),
            [
                'spec.containers[0].resources.limits.cpu: Invalid value: "lots": '
                "must be a quantity, such as 500m or 64Mi"
            ],
        ),
        (obj("Cluster", "kproxy.dev/v1alpha1", spec={"proxy": {"flags": {"v": 4, "masquerade-all": True}}}), []),
        (
            obj("Cluster", "kproxy.dev/v1alpha1", spec={"nods": []}),
            ['unknown field "spec.nods", did you mean "nodes"?'],
        ),
    ],
)
def test_what_check_says(value: dict[str, Any], messages: list[str]) -> None:
    assert [error.message() for error in check(value)] == messages


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_the_project_has_its_table(kind: Any) -> None:
    assert check(obj(kind.name, kind.api_version, metadata={"name": "a"})) == []


def test_the_table_refers_to_nothing_that_it_does_not_hold() -> None:
    data = pkgutil.get_data("kproxy.api", "known_fields.json")
    assert data is not None
    table = json.loads(data)
    scalars = {"string", "integer", "number", "boolean", "any", "int-or-string", "quantity"}
    named = {type_name.strip("[]{}") for fields in table["types"].values() for type_name in fields.values()}
    assert named - scalars <= set(table["types"])
    assert set(table["kinds"].values()) <= set(table["types"])


def test_fields_without_effect_are_named_once() -> None:
    container = {
        "name": "a",
        "image": "b",
        "resources": {},
        "livenessProbe": {"grpc": {"port": 1}},
        "ports": [{"hostPort": 1}],
    }
    pod = {"containers": [container, container], "volumes": [], "tolerations": None, "hostNetwork": True}
    assert without_effect(obj("Pod", spec=pod, status={"phase": "Running"})) == [
        "spec.containers[*].livenessProbe.grpc",
        "spec.containers[*].ports[*].hostPort",
        "spec.volumes",
    ]
    assert without_effect(
        obj("Deployment", "apps/v1", spec={"template": {"spec": pod}, "strategy": {}, "paused": True})
    ) == [
        "spec.template.spec.containers[*].livenessProbe.grpc",
        "spec.template.spec.containers[*].ports[*].hostPort",
        "spec.template.spec.volumes",
    ]
    assert without_effect(obj(spec={"ports": [{"port": 80}], "type": "NodePort"})) == []


def test_of_probes_and_turns_of_life_those_without_effect_are_named() -> None:
    container = {
        "name": "a",
        "image": "b",
        "readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "b"}]}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"exec": {"command": ["true"]}}},
    }
    other = {"name": "b", "image": "b", "readinessProbe": {"grpc": {"port": 80}}, "startupProbe": {}}
    assert without_effect(obj("Pod", spec={"containers": [container, other]})) == [
        "spec.containers[*].lifecycle.postStart",
        "spec.containers[*].readinessProbe.grpc",
    ]
    assert without_effect({"kind": 3}) == []


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [("", "spec", "spec"), ("spec", "ports", "spec.ports"), ("a", "x.y/z", "a[x.y/z]"), ("a", "1", "a[1]")],
)
def test_paths_are_written_as_kubernetes_writes_them(path: str, key: str, expected: str) -> None:
    assert child(path, key) == expected
