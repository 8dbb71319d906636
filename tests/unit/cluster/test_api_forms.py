"""What the API says about itself, and the forms in which it answers and is asked."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from running_cluster import Api, Cluster, eventually

from kproxy.api import known_fields, openapi, protobuf
from kproxy.api.kinds import CONFIG_MAP, DEPLOYMENT, ENDPOINT_SLICE, EVENT, EVENT_OF_GROUP, KINDS, NODE, POD, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.apiserver import discovery, dispatch
from kproxy.cluster.apiserver.negotiation import accepted
from kproxy.cluster.apiserver.paths import SERVED

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
WEB: Object = {
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "e"}]},
        },
    },
}


class Answer:
    """Status, headers and body of one response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.code = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


class Door:
    """The API as bytes on a socket, with every header as the test wants it."""

    def __init__(self, api: Api) -> None:
        self._path = str(api.socket)

    def __call__(self, method: str, path: str, body: bytes | Any = None, **headers: str) -> Answer:
        connection = UnixConnection(self._path)
        try:
            content = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=content, headers=sent)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, accept: str = "application/json") -> Answer:
        return self("GET", path, Accept=accept)


@pytest.fixture
def door(api: Api) -> Door:
    return Door(api)


# ----- discovery


def test_discovery_lists_every_kind_once(door: Door) -> None:
    groups = [group["name"] for group in door.get("/apis").json["groups"]]
    assert groups == sorted({kind.group for kind in SERVED} - {""})
    assert door.get("/api").json["versions"] == ["v1"]
    listed = {}
    for root in ("/api/v1", *(f"/apis/{group}/v1" for group in groups)):
        answer = door.get(root).json
        for resource in answer["resources"]:
            if "/" not in resource["name"]:
                listed[answer["groupVersion"], resource["kind"]] = resource
    assert set(listed) == {(kind.api_version, kind.name) for kind in SERVED}
    assert listed["v1", "Pod"]["shortNames"] == ["po"]
    assert listed["apps/v1", "Deployment"]["categories"] == ["all"]
    assert door.get("/apis/apps").json["preferredVersion"]["groupVersion"] == "apps/v1"


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
def test_aggregated_discovery_says_the_same(door: Door, version: str) -> None:
    accept = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
    found = {}
    for root in ("/api", "/apis"):
        answer = door.get(root, accept)
        wanted = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
        assert answer.headers["Content-Type"] == wanted
        assert answer.json["apiVersion"] == f"apidiscovery.k8s.io/{version}"
        for group in answer.json["items"]:
            for served in group["versions"]:
                for resource in served["resources"]:
                    found[group["metadata"].get("name", ""), resource["resource"]] = resource
    assert set(found) == {(kind.group, kind.plural) for kind in SERVED}
    scale = next(one for one in found["apps", "deployments"]["subresources"] if one["subresource"] == "scale")
    assert scale["responseKind"] == {"group": "autoscaling", "version": "v1", "kind": "Scale"}


def test_every_verb_that_is_promised_is_served() -> None:
    methods = {
        "create": ("POST", False),
        "list": ("GET", False),
        "watch": ("GET", False),
        "get": ("GET", True),
        "update": ("PUT", True),
        "patch": ("PATCH", True),
        "delete": ("DELETE", True),
        "deletecollection": ("DELETE", False),
    }
    promised = {(*methods[verb], "") for verb in discovery.OBJECT_VERBS}
    for name, subresource in discovery.SUBRESOURCES.items():
        promised |= {(methods[verb][0], True, name) for verb in subresource.verbs}
    assert promised == set(dispatch._VERBS)
    assert {name for kind in KINDS for name in kind.subresources} == set(discovery.SUBRESOURCES)


def test_version_and_root(door: Door) -> None:
    version = door.get("/version").json
    assert re.fullmatch(r"v1\.\d+\.\d+\+kproxy", version["gitVersion"])
    assert all(isinstance(value, str) for value in version.values())
    for path in door.get("/").json["paths"]:
        assert door.get(path).code == 200, path


# ----- OpenAPI


@pytest.fixture(scope="module")
def documents() -> dict[str, Object]:
    pairs = {(kind.group, kind.version) for kind in SERVED}
    return {f"{group}/{version}": json.loads(discovery._document(group, version)[0]) for group, version in pairs}


def values_of(value: Any, wanted: str) -> Iterator[Any]:
    if isinstance(value, dict):
        if wanted in value:
            yield value[wanted]
        for inner in value.values():
            yield from values_of(inner, wanted)
    elif isinstance(value, list):
        for inner in value:
            yield from values_of(inner, wanted)


def test_every_reference_has_its_schema(documents: dict[str, Object]) -> None:
    for document in documents.values():
        schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
        assert set(values_of(document, "$ref")) <= schemas


def test_kubectl_finds_what_it_looks_for(documents: dict[str, Object]) -> None:
    for kind in SERVED:
        document = documents[f"{kind.group}/{kind.version}"]
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.name}
        schemas = document["components"]["schemas"].values()
        (schema,) = (one for one in schemas if gvk in one.get("x-kubernetes-group-version-kind", ()))
        assert set(schema["properties"]) == set(
            known_fields.fields_of(known_fields.kinds()[kind.api_version, kind.name])
        )
        path = kind.path("{namespace}" if kind.namespaced else None) + "/{name}"
        operation = document["paths"][path]["patch"]
        assert operation["x-kubernetes-group-version-kind"] == gvk
        assert "fieldValidation" in {parameter["name"] for parameter in operation["parameters"]}
        assert set(operation["requestBody"]["content"]) == set(openapi.PATCH_TYPES)


def test_lists_are_merged_by_kubernetes_keys(documents: dict[str, Object]) -> None:
    schemas = documents["/v1"]["components"]["schemas"]
    ports = schemas["io.k8s.api.v1.ServiceSpec"]["properties"]["ports"]
    assert ports["x-kubernetes-list-map-keys"] == ["port", "protocol"]
    assert (ports["x-kubernetes-patch-merge-key"], ports["x-kubernetes-patch-strategy"]) == ("port", "merge")
    assert schemas["io.k8s.api.v1.Container"]["required"] == ["name"]


def test_openapi_is_read_once(door: Door) -> None:
    (url,) = (
        entry["serverRelativeURL"] for name, entry in door.get("/openapi/v3").json["paths"].items() if name == "api/v1"
    )
    answer = door.get(url)
    again = door("GET", url, If_None_Match=answer.headers["ETag"])
    assert (answer.code, again.code, again.body) == (200, 304, b"")
    assert door.get("/openapi/v3/apis/nobody/v1").code == 404


# ----- the forms of an answer


def test_a_table(door: Door, client: Client) -> None:
    client.create(DEPLOYMENT, WEB, "default")
    table = door.get("/apis/apps/v1/namespaces/default/deployments", TABLE).json
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    titles = [column["name"] for column in table["columnDefinitions"]]
    assert titles == ["Name", "Ready", "Up-to-date", "Available", "Age", "Containers", "Images", "Selector"]
    assert [column["priority"] for column in table["columnDefinitions"]] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert table["columnDefinitions"][0]["format"] == "name"
    (row,) = table["rows"]
    assert row["cells"][:4] + row["cells"][5:] == ["web", "0/2", 0, 0, "c", "e", "app=web"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert "spec" not in row["object"]
    assert table["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("include", "has"), [("None", set()), ("Metadata", {"metadata"}), ("Object", {"metadata", "spec"})]
)
def test_a_table_carries_as_much_as_is_asked_for(door: Door, client: Client, include: str, has: set[str]) -> None:
    client.create(DEPLOYMENT, WEB, "default")
    path = f"/apis/apps/v1/namespaces/default/deployments/web?includeObject={include}"
    (row,) = door.get(path, TABLE).json["rows"]
    assert set(row.get("object", {})) & {"metadata", "spec"} == has


def test_every_kind_has_a_table(door: Door) -> None:
    for kind in SERVED:
        assert door.get(kind.path(), TABLE).json["kind"] == "Table", kind


def test_a_watch_of_tables_says_once_what_the_columns_are(door: Door, client: Client) -> None:
    for name in ("a", "b"):
        client.create(CONFIG_MAP, {"metadata": {"name": name}, "data": {"k": "v"}}, "default")
    lines = door.get("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1", TABLE).body.splitlines()
    tables = [msgspec.json.decode(line)["object"] for line in lines]
    assert [len(table["columnDefinitions"]) for table in tables[:2]] == [3, 0]
    assert [table["rows"][0]["cells"][:2] for table in tables[:2]] == [["a", 1], ["b", 1]]


def test_metadata_alone(door: Door, client: Client) -> None:
    client.create(CONFIG_MAP, {"metadata": {"name": "a"}, "data": {"k": "v"}}, "default")
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = door.get("/api/v1/configmaps", accept).json
    assert (listed["kind"], listed["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    assert {frozenset(item) for item in listed["items"]} == {frozenset(("kind", "apiVersion", "metadata"))}
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    assert door.get("/api/v1/namespaces/default/configmaps/a", accept).json["kind"] == "PartialObjectMetadata"


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("", 200),
        ("*/*", 200),
        ("application/*;q=0.5, text/html", 200),
        ("application/vnd.kubernetes.protobuf,application/json", 200),
        ("application/vnd.kubernetes.protobuf", 406),
        ("text/html", 406),
        ("application/json;q=0", 406),
        ("application/json;as=Chair;g=meta.k8s.io;v=v1", 406),
        ("application/json;as=Table;g=meta.k8s.io;v=v9,application/json", 200),
    ],
)
def test_what_is_acceptable(door: Door, accept: str, code: int) -> None:
    answer = door.get("/api/v1/nodes", accept)
    assert answer.code == code
    if code == 406:
        assert (answer.json["reason"], answer.json["status"]) == ("NotAcceptable", "Failure")
    else:
        assert answer.json["kind"] == "NodeList"


def test_the_order_of_what_is_accepted() -> None:
    found = accepted('text/html;q=0.2, application/json; as="Table" ;v=v1, */*;q=x')
    assert [one.media_type for one in found] == ["application/json", "text/html"]
    assert found[0].form == ("Table", "", "v1")


# ----- the forms of a question


def test_yaml_bodies(door: Door) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: 'on'}\n"
    made = door("POST", "/api/v1/namespaces/default/configmaps", text, Content_Type="application/yaml")
    assert (made.code, made.json["data"]) == (201, {"k": "on"})
    bad = door("POST", "/api/v1/namespaces/default/configmaps", b"a: [", Content_Type="application/yaml")
    assert (bad.code, bad.json["reason"]) == (400, "BadRequest")
    two = door("POST", "/api/v1/namespaces/default/configmaps", b"a: 1\n---\nb: 2\n", Content_Type="application/yaml")
    assert "2 documents" in two.json["message"]


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", "application/cbor"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_what_cannot_be_read_is_told_so(door: Door, method: str, media_type: str) -> None:
    path = "/api/v1/namespaces/default/configmaps" + ("" if method == "POST" else "/a")
    answer = door(method, path, b"x", Content_Type=media_type)
    assert (answer.code, answer.json["reason"]) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    ("method", "path", "code", "reason"),
    [
        ("GET", "/nowhere", 404, "NotFound"),
        ("GET", "/apis/nobody/v1/things", 404, "NotFound"),
        ("GET", "/api/v1/secrets", 404, "NotFound"),
        ("POST", "/version", 405, "MethodNotAllowed"),
        ("POST", "/api/v1/nodes/a", 405, "MethodNotAllowed"),
        ("DELETE", "/api/v1/pods", 405, "MethodNotAllowed"),
        ("PATCH", "/api/v1/nodes", 405, "MethodNotAllowed"),
    ],
)
def test_every_failure_is_a_status(door: Door, method: str, path: str, code: int, reason: str) -> None:
    answer = door(method, path)
    assert (answer.code, answer.json["kind"], answer.json["reason"]) == (code, "Status", reason)
    assert answer.json["code"] == code


def test_a_body_that_is_too_large(door: Door) -> None:
    body = b'{"data":{"a":"' + b"x" * (3 * 1024 * 1024) + b'"}}'
    answer = door("POST", "/api/v1/namespaces/default/configmaps", body, Content_Type="application/json")
    assert (answer.code, answer.json["reason"]) == (413, "RequestEntityTooLarge")


# ----- scale


def test_scale(door: Door, client: Client) -> None:
    client.create(DEPLOYMENT, WEB, "default")
    path = "/apis/apps/v1/namespaces/default/deployments/web/scale"
    scale = door.get(path).json
    assert (scale["kind"], scale["spec"], scale["status"]) == (
        *("Scale", {"replicas": 2}),
        {"replicas": 0, "selector": "app=web"},
    )
    wider = door("PUT", path, scale | {"spec": {"replicas": 5}}, Content_Type="application/json")
    assert (wider.code, wider.json["spec"]) == (200, {"replicas": 5})
    assert client.get(DEPLOYMENT, "web", "default")["spec"]["replicas"] == 5
    stale = door("PUT", path, scale | {"spec": {"replicas": 6}}, Content_Type="application/json")
    assert (stale.code, stale.json["reason"]) == (409, "Conflict")
    narrower = {"spec": {"replicas": 1}}
    patched = door("PATCH", path, narrower, Content_Type="application/merge-patch+json")
    assert patched.json["spec"] == narrower["spec"]
    bad = door("PATCH", path, {"spec": {"replicas": -1}}, Content_Type="application/merge-patch+json")
    assert (bad.code, bad.json["details"]["causes"][0]["field"]) == (422, "spec.replicas")
    assert client.get(DEPLOYMENT, "web", "default")["spec"]["replicas"] == 1


# ----- events in both forms


def test_events_are_seen_through_both_groups(door: Door, client: Client) -> None:
    about = {"kind": "Pod", "name": "p", "namespace": "default"}
    old = {
        "metadata": {"name": "a"},
        "involvedObject": about,
        "message": "it is",
        "count": 2,
        "source": {"component": "x"},
    }
    client.create(EVENT, old, "default")
    path = EVENT_OF_GROUP.path("default")
    (seen,) = door.get(path).json["items"]
    assert (seen["apiVersion"], seen["regarding"], seen["note"]) == ("events.k8s.io/v1", about, "it is")
    assert (seen["deprecatedCount"], seen["deprecatedSource"]) == (2, {"component": "x"})
    new = {
        "metadata": {"name": "b"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": about,
        "note": "it was",
        "action": "Doing",
        "reason": "Done",
        "type": "Normal",
        "reportingController": "lab.example/me",
        "reportingInstance": "me-1",
    }
    made = door("POST", path, new, Content_Type="application/json")
    assert (made.code, made.json["note"]) == (201, "it was"), made.body
    patch = {"note": "it will be", "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
    patched = door("PATCH", f"{path}/b", patch, Content_Type="application/strategic-merge-patch+json")
    assert patched.json["note"] == "it will be"
    steps = [{"op": "replace", "path": "/note", "value": "it has been"}]
    door("PATCH", f"{path}/b", steps, Content_Type="application/json-patch+json")
    stored = client.get(EVENT, "b", "default")
    assert (stored["apiVersion"], stored["message"], stored["reportingComponent"]) == (
        "v1",
        "it has been",
        "lab.example/me",
    )
    watched = door.get(f"{path}?watch=1&timeoutSeconds=1").body.splitlines()
    assert {msgspec.json.decode(line)["object"]["apiVersion"] for line in watched} == {"events.k8s.io/v1"}


# ----- protobuf


def in_protobuf(obj: Object) -> bytes:
    """An object as a client of Go writes it: fields that are not set, too, unless they are pointers."""
    table = protobuf._table()
    type_name = table["kinds"][f"{obj['apiVersion']}/{obj['kind']}"]
    head = _piece(1, obj["apiVersion"].encode()) + _piece(2, obj["kind"].encode())
    return b"k8s\0" + _piece(1, head) + _piece(2, _message(obj, type_name))


def _message(obj: Any, type_name: str) -> bytes:
    pieces = []
    for number, (name, field_type, is_pointer) in protobuf._table()["types"][type_name].items():
        if not name:
            pieces.append(_piece(int(number), _message(obj, field_type)))
        elif name in obj:
            pieces += _field(int(number), field_type, obj[name])
        elif not is_pointer and field_type in ("string", "int", "bool"):
            pieces += _field(int(number), field_type, {"string": "", "int": 0, "bool": False}[field_type])
    return b"".join(pieces)


def _field(number: int, field_type: str, value: Any) -> list[bytes]:
    if field_type.startswith("["):
        return [piece for item in value for piece in _field(number, field_type[1:-1], item)]
    if field_type.startswith("{"):
        entries = ((_piece(1, key.encode()), _field(2, field_type[1:-1], item)) for key, item in value.items())
        return [_piece(number, key + b"".join(item)) for key, item in entries]
    match field_type:
        case "string":
            return [_piece(number, value.encode())]
        case "int" | "bool":
            return [_varint(number << 3) + _varint(int(value) & (1 << 64) - 1)]
        case "int-or-string" if isinstance(value, int):
            return [_piece(number, _varint(1 << 3) + b"\0" + _varint(2 << 3) + _varint(value))]
        case "int-or-string":
            return [_piece(number, _varint(1 << 3) + b"\1" + _piece(3, value.encode()))]
        case "quantity":
            return [_piece(number, _piece(1, value.encode()))]
        case _:
            return [_piece(number, _message(value, field_type))]


def _piece(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


DEPLOYMENT_SENT = {"apiVersion": "apps/v1", "kind": "Deployment"} | {
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 0,  # a pointer: it is meant
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "c",
                        "image": "echo",
                        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                        "env": [
                            {"name": "A", "value": "b"},
                            {"name": "É", "valueFrom": {"fieldRef": {"fieldPath": "x"}}},
                        ],
                        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                        "livenessProbe": {"tcpSocket": {"port": 80}},
                        "resources": {"limits": {"cpu": "500m"}},
                    }
                ],
            },
        },
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}, "type": "RollingUpdate"},
    },
}


def test_protobuf_is_read_as_the_same_object_in_json() -> None:
    assert protobuf.decode(in_protobuf(DEPLOYMENT_SENT)) == DEPLOYMENT_SENT


def test_protobuf_bodies(door: Door, client: Client) -> None:
    sent = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    spec = {"ports": [{"port": 80, "targetPort": 8080}], "selector": {"app": "web"}}
    made = door(
        "POST",
        SERVICE.path("default"),
        in_protobuf(sent | {"spec": spec}),
        Content_Type=protobuf.MEDIA_TYPE,
        Accept=f"{protobuf.MEDIA_TYPE},application/json",
    )
    assert made.code == 201, made.body
    assert client.get(SERVICE, "web", "default")["spec"]["type"] == "ClusterIP"
    broken = door("POST", SERVICE.path("default"), b"k8s\0\xff", Content_Type=protobuf.MEDIA_TYPE)
    assert (broken.code, broken.json["reason"]) == (400, "BadRequest")


def test_broken_protobuf_is_refused_and_nothing_else() -> None:
    whole = in_protobuf(DEPLOYMENT_SENT)
    for end in range(len(whole)):
        try:
            protobuf.decode(whole[:end])
        except protobuf.NotProtobuf:
            continue
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 0xFF
        try:
            protobuf.decode(bytes(changed))
        except protobuf.NotProtobuf:
            continue


# ----- what typed clients insist on


def missing_fields(value: Any, field_type: str, path: str) -> Iterator[str]:
    if field_type.startswith(("[", "{")):
        for item in value.values() if isinstance(value, dict) else value:
            yield from missing_fields(item, field_type[1:-1], path + "[]")
        return
    for field in known_fields.required_of(field_type):
        if field not in value:
            yield f"{path}.{field}"
    for field, of in known_fields.fields_of(field_type).items():
        if isinstance(value, dict) and value.get(field) is not None and of.strip("[]{}")[:1].isupper():
            yield from missing_fields(value[field], of, f"{path}.{field}")


def test_objects_have_every_field_that_typed_clients_insist_on(door: Door, cluster: Cluster, client: Client) -> None:
    client.create(DEPLOYMENT, WEB, "default")
    client.create(
        SERVICE, {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}, "default"
    )
    slices = eventually(
        lambda: client.list(ENDPOINT_SLICE).items, lambda found: any(one.get("endpoints") for one in found)
    )
    assert slices
    missing = {
        missed
        for kind in KINDS
        if kind not in (NODE, POD)  # those of this test's making: a real lab's are asked for by test_api_clients.py
        for obj in client.list(kind).items
        for missed in missing_fields(obj, known_fields.kinds()[kind.api_version, kind.name], kind.name)
    }
    assert missing == set()
