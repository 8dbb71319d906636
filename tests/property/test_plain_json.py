"""What the fast road for JSON takes, the thorough reader takes too, and it means the same."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.api.types import EndpointSlice, Service
from kproxy.proxy.changes import ObjectKey, Tracked
from kproxy.proxy.endpoints import from_slices, service_of
from kproxy.proxy.family import Family
from kproxy.proxy.services import port_specs
from kproxy.proxy.sources.directory import read_thoroughly
from kproxy.proxy.sources.plain_json import read_plain

SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop", "labels": {"app.kubernetes.io/name": "web", "x": ""}},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "selector": {"app": "web"},
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
    },
    "status": {"loadBalancer": {}},
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {
        "name": "web-1",
        "generation": 3,
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
    },
    "addressType": "IPv4",
    "ports": [{"name": "", "protocol": "TCP", "port": 8080}],
    "endpoints": [
        {
            "addresses": ["10.244.1.2"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": "node1",
            "zone": "a",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "1"},
        },
        {"addresses": ["10.244.1.3"], "conditions": {"ready": False}},
    ],
}
NODE: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}

VALUES = (
    *(
        None,
        True,
        0,
        -1,
        80,
        70000,
        80.0,
        1 << 70,
        "",
        "x",
        "a.b",
        "a/b",
        "-a",
        "A",
        "a" * 64,
        "ä",
        "\0",
        "UDP",
        "None",
    ),
    *("10.0.0.1", "010.0.0.1", "127.0.0.1", "224.0.0.1", "10.0.0.256", "::1", "fd00::1", "IPv6", "Local", "NodePort"),
    *([], {}, [None], ["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], {"a": None}, {"a_.-b": "a..b"}, {"A/b": "c"}),
)
KEYS = ("nodePort", "annotations", "externalIPs", "hints", "hostname", "finalizers", "unknown", "name", "appProtocol")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of an object."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in places(inner)]


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """A good object with up to two places set to something else, taken away, or added to."""
    obj = copy.deepcopy(draw(st.sampled_from([SERVICE, SLICE, NODE])))
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(places(obj)))
        match draw(st.sampled_from(["set", "remove", "add"])):
            case "set":
                container[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "remove":
                del container[key]
            case _ if isinstance(container, dict):
                container[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case _:
                container.append(copy.deepcopy(draw(st.sampled_from(VALUES))))
    return obj


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """An object or a list of them as JSON, now and then with a stretch of its text twice or gone."""
    items = draw(st.lists(objects(), min_size=1, max_size=3))
    value = items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}
    text = json.dumps(value, indent=draw(st.sampled_from([None, 1])))
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(text)))
        stretch = text[start : start + draw(st.integers(1, 40))]
        text = text[:start] + draw(st.sampled_from(["", stretch * 2])) + text[start + len(stretch) :]
    return text.encode()


def meaning(objects: dict[ObjectKey, Tracked]) -> dict[ObjectKey, object]:
    """What proxiers make of objects."""
    return {key: _meaning(value) for key, value in objects.items()}


def _meaning(value: Tracked) -> object:
    if isinstance(value, Service):
        return [port_specs(value, family) for family in Family]
    if isinstance(value, EndpointSlice):
        merged = [from_slices([value], family, "node1") for family in Family]
        return service_of(value), value.address_type, value.metadata.annotations, merged
    return value


@given(text=texts())
def test_the_fast_road_takes_only_what_is_good_and_means_the_same(text: bytes) -> None:
    plain = read_plain(text, {})
    if plain is None:
        return
    thorough = read_thoroughly(text, "objects.json")

    assert not thorough.findings
    assert not thorough.passed_over
    assert meaning({read.key: read.value for read in plain.values()}) == meaning(thorough.objects)


@pytest.mark.parametrize("indent", [None, 2])
def test_the_fast_road_is_taken_by_plain_objects(indent: int | None) -> None:
    items = [SERVICE, SLICE, NODE]
    for value in (*items, {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}):
        plain = read_plain(json.dumps(value, indent=indent).encode(), {})
        assert plain is not None
        assert read_plain(json.dumps(value, indent=indent).encode(), plain) == plain


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a: 1",
        b"[]",
        b'{"apiVersion": "v1", "kind": "List", "items": []}',
        b'{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"}, "spec": {}}',
        b'{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}}',
        json.dumps(SLICE).replace('"zone": "a"', '"zone": "a", "zone": "b"').encode(),
        json.dumps(NODE).replace('"name": "node1"', '"name": "node1", "name": "node1"').encode(),
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [NODE, NODE]}).encode(),
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [NODE]}).replace("{", '{"items": [], ', 1).encode(),
    ],
)
def test_what_is_doubtful_is_left_to_the_thorough_reader(text: bytes) -> None:
    assert read_plain(text, {}) is None
