"""The API over its socket: verbs, errors, watches."""

from __future__ import annotations

import http.client
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running_cluster import Api, eventually, running

from kproxy.api.kinds import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE, SERVICE_CIDR
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot, WatchEvent
from kproxy.cluster.apiserver.paths import Target, resolve
from kproxy.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Gone,
    Invalid,
    KproxyError,
    NotFound,
    Unreachable,
    UserError,
)


def service(name: str = "web", **spec: Any) -> Object:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def pod(name: str = "p", **spec: Any) -> Object:
    labels = {"app": name}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "e"}], **spec}}


PATHS = [
    ("/api/v1/pods", Target(POD)),
    ("/api/v1/namespaces/default/pods", Target(POD, "default")),
    ("/api/v1/namespaces/default/pods/p/status", Target(POD, "default", "p", "status")),
    ("/api/v1/namespaces/default/pods/p/binding", Target(POD, "default", "p", "binding")),
    ("/api/v1/namespaces/default", Target(NAMESPACE, "", "default")),
    ("/api/v1/namespaces/default/status", Target(NAMESPACE, "", "default", "status")),
    ("/api/v1/nodes/node1", Target(NODE, "", "node1")),
    ("/apis/discovery.k8s.io/v1/endpointslices", Target(ENDPOINT_SLICE)),
    ("/apis/networking.k8s.io/v1/servicecidrs/kubernetes", Target(SERVICE_CIDR, "", "kubernetes")),
    ("/api/v1/pods/p", None),
    ("/api/v1/namespaces/default/nodes", None),
    ("/api/v1/namespaces//pods", None),
    ("/api/v1/namespaces/default/pods/", Target(POD, "default")),
    ("/api/v1/namespaces/default/services/web/binding", None),
    ("/api/v1/secrets", None),
    ("/apis/apps/v1beta1/deployments", None),
    ("/api/v1", None),
    ("/", None),
]


@pytest.mark.parametrize(("path", "target"), PATHS)
def test_paths(path: str, target: Target | None) -> None:
    assert resolve(path) == target


def test_the_socket_is_its_owners_alone(api: Api) -> None:
    mode = api.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    api.stop()
    assert not api.socket.exists()
    api.start()


def test_a_cluster_begins_with_its_namespaces_and_service_cidr(client: Client) -> None:
    names = [item["metadata"]["name"] for item in client.list(NAMESPACE).items]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system"]
    assert client.get(SERVICE_CIDR, "kubernetes")["spec"]["cidrs"] == ["10.96.0.0/12"]


def test_create_get_update_patch_delete(client: Client) -> None:
    created = client.create(SERVICE, service(), "default")
    assert created["metadata"]["uid"]
    assert created["metadata"]["creationTimestamp"].endswith("Z")
    assert created["spec"]["clusterIPs"] == [created["spec"]["clusterIP"]]
    assert client.get(SERVICE, "web", "default") == created
    updated = client.update(SERVICE, {**created, "spec": {**created["spec"], "sessionAffinity": "ClientIP"}})
    assert updated["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    patched = client.patch(SERVICE, "web", {"metadata": {"labels": {"a": "b"}}}, "default")
    assert patched["metadata"]["labels"] == {"a": "b"}
    assert int(patched["metadata"]["resourceVersion"]) > int(updated["metadata"]["resourceVersion"])
    client.delete(SERVICE, "web", "default")
    with pytest.raises(NotFound, match='services "web" not found'):
        client.get(SERVICE, "web", "default")


def test_a_write_that_changes_nothing_makes_no_revision(client: Client) -> None:
    created = client.create(SERVICE, service(), "default")
    assert client.update(SERVICE, created) == created
    assert client.patch(SERVICE, "web", {"spec": {"type": "ClusterIP"}}, "default") == created


def test_status_is_a_thing_of_its_own(client: Client) -> None:
    client.create(POD, pod() | {"status": {"phase": "Running"}}, "default")
    created = client.get(POD, "p", "default")
    assert created["status"] == {"phase": "Pending"}
    changed = {**created, "spec": created["spec"], "status": running("10.244.1.2")}
    assert client.update(POD, changed)["status"] == {"phase": "Pending"}
    told = client.update(POD, {**changed, "metadata": {**changed["metadata"], "labels": {"x": "y"}}}, "status")
    assert told["status"]["podIP"] == "10.244.1.2"
    assert told["metadata"]["labels"] == {"app": "p"}
    assert told["metadata"]["generation"] == 1


def test_generation_counts_changes_of_spec_alone(client: Client) -> None:
    created = client.create(POD, pod(), "default")
    assert created["metadata"]["generation"] == 1
    assert client.patch(POD, "p", {"metadata": {"labels": {"a": "b"}}}, "default")["metadata"]["generation"] == 1
    image = {"spec": {"containers": [{"name": "c", "image": "other"}]}}
    assert client.patch(POD, "p", image, "default")["metadata"]["generation"] == 2


def test_names_can_be_generated(client: Client) -> None:
    names = set()
    for _ in range(5):
        created = client.create(POD, pod() | {"metadata": {"generateName": "web-"}}, "default")
        names.add(created["metadata"]["name"])
    assert len(names) == 5
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


Refusal = Callable[[Client], Any]
REFUSALS: list[tuple[str, Refusal, type[ApiError], int, str]] = [
    ("taken name", lambda c: c.create(SERVICE, service("there"), "default"), AlreadyExists, 409, "already exists"),
    ("no such object", lambda c: c.patch(POD, "nope", {}, "default"), NotFound, 404, 'pods "nope" not found'),
    ("no such namespace", lambda c: c.create(POD, pod(), "nope"), NotFound, 404, 'namespaces "nope" not found'),
    ("no such path", lambda c: c.request("GET", "/api/v1/secrets"), NotFound, 404, "could not find"),
    ("verb", lambda c: c.request("POST", "/api/v1/pods", body=pod()), ApiError, 405, "does not allow this method"),
    ("verb of an object", lambda c: c.request("POST", "/api/v1/nodes/a", body={}), ApiError, 405, "does not allow"),
    ("not JSON", lambda c: c.request("POST", "/api/v1/nodes", body=msgspec.Raw(b"{")), ApiError, 400, "not JSON"),
    ("deep JSON", lambda c: c.request("POST", "/api/v1/nodes", body=msgspec.Raw(b"[" * 99999)), ApiError, 400, "JSON"),
    ("no object", lambda c: c.request("POST", "/api/v1/nodes", body=[]), ApiError, 400, "not an object"),
    ("metadata", lambda c: c.create(NODE, {"metadata": {"name": 5}}), Invalid, 422, "metadata.name"),
    ("null body", lambda c: c.request("POST", "/api/v1/nodes", body=None), ApiError, 400, "not JSON"),
    ("other kind", lambda c: c.create(POD, service() | {"kind": "Service"}, "default"), ApiError, 400, "this path"),
    ("other namespace", lambda c: c.create(POD, pod() | {"metadata": {"namespace": "a"}}, "b"), ApiError, 400, "match"),
    ("bad selector", lambda c: c.list(POD, label_selector="a in b"), ApiError, 400, "label selector"),
    ("bad field", lambda c: c.list(POD, field_selector="spec.x=1"), ApiError, 400, "not supported: spec.x"),
    ("old version", lambda c: c.update(SERVICE, renewed(c, resourceVersion="1")), Conflict, 409, "has been modified"),
    ("another uid", lambda c: c.update(SERVICE, renewed(c, uid="1-2")), Conflict, 409, "UID in precondition: 1-2"),
    ("uid of a delete", lambda c: c.delete(SERVICE, "there", "default", uid="1"), Conflict, 409, "UID"),
    ("default namespace", lambda c: c.delete(NAMESPACE, "default"), ApiError, 403, "may not be deleted"),
    ("wrong type", lambda c: c.create(SERVICE, service(ports="80"), "default"), Invalid, 422, "spec.ports"),
    ("path as a name", lambda c: c.create(SERVICE, service("../../etc"), "default"), Invalid, 422, "RFC 1123"),
    ("watch of a bad version", lambda c: list(c.watch(POD, resource_version="x")), ApiError, 400, "resourceVersion"),
    ("watch of the future", lambda c: list(c.watch(POD, resource_version="999999")), Gone, 410, "too old"),
    ("3 MB", lambda c: c.create(NODE, {"metadata": {"name": "a" * 3_200_000}}), ApiError, 413, "too large"),
]


def renewed(client: Client, **metadata: str) -> Object:
    there = client.get(SERVICE, "there", "default")
    return {**there, "metadata": {**there["metadata"], **metadata}}


@pytest.mark.parametrize(
    ("ask", "error", "code", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refusals(client: Client, ask: Refusal, error: type[ApiError], code: int, message: str) -> None:
    client.create(SERVICE, service("there"), "default")
    with pytest.raises(error, match=message) as caught:
        ask(client)
    assert caught.value.code == code
    assert caught.value.status["kind"] == "Status"


def test_a_patch_in_another_format_is_refused(client: Client) -> None:
    client.create(SERVICE, service(), "default")
    with pytest.raises(ApiError, match="merge-patch") as caught:
        client.request("PATCH", "/api/v1/namespaces/default/services/web", body={}, content_type="application/json")
    assert caught.value.code == 415


def test_selectors(client: Client) -> None:
    for name in ("a", "b"):
        client.create(POD, pod(name), "default")
    client.create(SERVICE, service("headless", clusterIP="None"), "default")
    client.create(SERVICE, service("usual"), "default")

    def names(kind: Any, **selectors: str) -> list[str]:
        return [item["metadata"]["name"] for item in client.list(kind, **selectors).items]

    assert names(POD, label_selector="app=a") == ["a"]
    assert names(POD, label_selector="app!=a") == ["b"]
    assert names(POD, field_selector="metadata.name=b") == ["b"]
    assert names(SERVICE, field_selector="spec.clusterIP!=None") == ["usual"]


# ----- pods


def test_a_pod_without_a_node_goes_at_once(client: Client) -> None:
    client.create(POD, pod(), "default")
    client.delete(POD, "p", "default")
    assert client.list(POD).items == []


def test_a_pod_on_a_node_is_marked_first_and_goes_with_grace_zero(client: Client) -> None:
    client.create(POD, pod(terminationGracePeriodSeconds=7, nodeName="node1"), "default")
    marked = client.delete(POD, "p", "default")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 7
    assert client.delete(POD, "p", "default") == marked
    shorter = client.delete(POD, "p", "default", grace_seconds=2)
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 2
    client.delete(POD, "p", "default", grace_seconds=0)
    assert client.list(POD).items == []


def test_a_finalizer_keeps_an_object_until_it_is_taken_away(client: Client) -> None:
    client.create(NODE, {"metadata": {"name": "n", "finalizers": ["example.com/wait"]}})
    assert client.delete(NODE, "n")["metadata"]["deletionTimestamp"]
    client.patch(NODE, "n", {"metadata": {"finalizers": None}})
    assert client.list(NODE).items == []


def test_binding_gives_a_pod_its_node_once(client: Client) -> None:
    client.create(POD, pod(), "default")
    binding = {"target": {"kind": "Node", "name": "node1"}}
    client.create(POD, binding, "default", name="p", subresource="binding")
    bound = client.get(POD, "p", "default")
    assert bound["spec"]["nodeName"] == "node1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    with pytest.raises(Conflict, match="already assigned"):
        client.create(POD, binding, "default", name="p", subresource="binding")


# ----- watches


class Watcher:
    """Collects what a watch says, each with the time of its arrival."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.seen: list[Any] = []
        self.times: list[float] = []
        self.error: Exception | None = None
        self._events = events
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for event in self._events:
                self.times.append(time.perf_counter())
                self.seen.append(event)
        except KproxyError as error:
            self.error = error

    def brief(self) -> list[tuple[str, str]]:
        return [
            (event.type, event.object["metadata"].get("name", ""))
            for event in self.seen
            if isinstance(event, WatchEvent) and event.type != "BOOKMARK"
        ]


@pytest.fixture
def watch(api: Api) -> Iterator[Callable[..., Watcher]]:
    own = Client(api.url)
    watchers: list[Watcher] = []

    def start(kind: Any, **options: Any) -> Watcher:
        options.setdefault("resource_version", api.client.list(kind).resource_version)
        watchers.append(Watcher(own.watch(kind, **options)))
        time.sleep(0.05)
        return watchers[-1]

    yield start
    own.close()
    for watcher in watchers:
        watcher.thread.join()


def test_a_watch_tells_what_happens(client: Client, watch: Callable[..., Watcher]) -> None:
    watcher = watch(POD)
    client.create(POD, pod(), "default")
    client.patch(POD, "p", {"metadata": {"labels": {"a": "b"}}}, "default")
    client.delete(POD, "p", "default")
    eventually(watcher.brief, lambda seen: seen == [("ADDED", "p"), ("MODIFIED", "p"), ("DELETED", "p")])
    versions = [int(event.resource_version) for event in watcher.seen]
    assert versions == sorted(versions)


def test_an_object_that_leaves_the_selection_counts_as_deleted(client: Client, watch: Callable[..., Watcher]) -> None:
    watcher = watch(POD, label_selector="app=p")
    client.create(POD, pod("other"), "default")
    client.create(POD, pod(), "default")
    client.patch(POD, "p", {"metadata": {"labels": {"app": "q"}}}, "default")
    client.patch(POD, "p", {"metadata": {"labels": {"app": "p"}}}, "default")
    eventually(watcher.brief, lambda seen: seen == [("ADDED", "p"), ("DELETED", "p"), ("ADDED", "p")])


def test_a_commit_of_something_else_brings_a_bookmark_soon(client: Client, watch: Callable[..., Watcher]) -> None:
    watcher = watch(SERVICE)
    started = time.perf_counter()
    revision = client.create(NODE, {"metadata": {"name": "n"}})["metadata"]["resourceVersion"]
    eventually(lambda: [event.resource_version for event in watcher.seen], lambda seen: revision in seen)
    assert watcher.seen[-1].type == "BOOKMARK"
    assert watcher.times[-1] - started < 20  # about 6 ms; the machine may be busy


def test_bookmarks_come_only_to_those_who_ask(client: Client, watch: Callable[..., Watcher]) -> None:
    watcher = watch(SERVICE, bookmarks=False)
    client.create(NODE, {"metadata": {"name": "n"}})
    client.create(SERVICE, service(), "default")
    eventually(lambda: len(watcher.seen), lambda seen: seen > 0)
    assert [event.type for event in watcher.seen] == ["ADDED"]


def test_every_watch_reaches_the_newest_revision_under_constant_writing(
    client: Client, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(SERVICE)
    started, arrivals = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3 or not watcher.seen:
        assert time.perf_counter() - started < 20, "bookmarks come while others write, not only afterwards"
        client.create(NODE, {"metadata": {"name": f"n{arrivals}"}})
        arrivals += 1
    newest = client.list(NODE).resource_version
    eventually(lambda: watcher.seen[-1].resource_version, lambda seen: seen == newest)


def test_a_watch_without_a_version_begins_with_all_there_is(client: Client, watch: Callable[..., Watcher]) -> None:
    client.create(POD, pod(), "default")
    watcher = watch(POD, resource_version="")
    eventually(watcher.brief, lambda seen: seen == [("ADDED", "p")])


def test_a_watch_ends_after_its_time(client: Client, watch: Callable[..., Watcher]) -> None:
    watcher = watch(POD, timeout_seconds=1)
    watcher.thread.join(5)
    assert not watcher.thread.is_alive()
    assert watcher.error is None


def test_stop_ends_a_quiet_watch(client: Client, watch: Callable[..., Watcher]) -> None:
    stop = threading.Event()
    watcher = watch(POD, stop=stop)
    stop.set()
    watcher.thread.join(5)
    assert not watcher.thread.is_alive()
    assert watcher.error is None


def test_follow_survives_a_restart_and_misses_nothing(api: Api) -> None:
    own = Client(api.url)
    watcher = Watcher(own.follow(POD, bookmarks=False))
    eventually(lambda: len(watcher.seen), lambda seen: seen == 1)
    api.client.create(POD, pod("before"), "default")
    eventually(watcher.brief, lambda seen: seen == [("ADDED", "before")])
    api.stop()
    with pytest.raises(Unreachable):
        api.client.list(POD)
    api.start()
    api.client.create(POD, pod("after"), "default")
    eventually(watcher.brief, lambda seen: seen == [("ADDED", "before"), ("ADDED", "after")])
    assert sum(isinstance(item, Snapshot) for item in watcher.seen) == 1
    own.close()
    watcher.thread.join()


def test_follow_lists_again_when_its_place_is_gone(api: Api) -> None:
    own = Client(api.url)
    for number in range(100):  # more revisions than the next store has by the time the watch is back
        api.client.create(POD, pod(f"old-{number}"), "default")
    watcher = Watcher(own.follow(POD, bookmarks=False))
    eventually(lambda: len(watcher.seen), lambda seen: seen == 1)
    api.stop()
    api.database.unlink()  # another lab: none of its revisions means anything here
    for leftover in api.database.parent.glob("state.db-*"):
        leftover.unlink()
    api.start()
    eventually(lambda: len(watcher.seen), lambda seen: seen == 2)
    assert watcher.seen[1].items == []
    own.close()
    watcher.thread.join()


# ----- applies


def applied(client: Client, *objects: Object, **options: bool) -> list[str]:
    return [entry.outcome for entry in client.apply([{"object": obj} for obj in objects], **options).results]


def full(obj: Object, kind: str = "Service") -> Object:
    return {"apiVersion": "v1", "kind": kind, **obj}


def test_apply_creates_then_configures_then_finds_nothing_to_do(client: Client) -> None:
    first = full(service(type="NodePort", externalTrafficPolicy="Local"))
    assert applied(client, first) == ["created"]
    port = client.get(SERVICE, "web", "default")["spec"]["ports"][0]["nodePort"]
    assert applied(client, first) == ["unchanged"]
    assert applied(client, full(service(type="NodePort"))) == ["configured"]
    spec = client.get(SERVICE, "web", "default")["spec"]
    assert spec["externalTrafficPolicy"] == "Cluster"  # no longer named: back to the default
    assert spec["ports"][0]["nodePort"] == port


def test_apply_leaves_what_others_have_set(client: Client) -> None:
    applied(client, full(service()))
    client.patch(
        SERVICE, "web", {"metadata": {"labels": {"theirs": "1"}}, "spec": {"sessionAffinity": "ClientIP"}}, "default"
    )
    assert applied(client, full(service(selector={"a": "b"}))) == ["configured"]
    changed = client.get(SERVICE, "web", "default")
    assert changed["metadata"]["labels"] == {"theirs": "1"}
    assert changed["spec"]["sessionAffinity"] == "ClientIP"


def test_one_bad_document_and_nothing_of_the_apply_happens(client: Client) -> None:
    before = client.list(SERVICE).resource_version
    with pytest.raises(Invalid) as caught:
        applied(client, full(service("good")), full(service("bad", type="Magic")), full(service("good")))
    causes = caught.value.status["details"]["causes"]
    assert [(cause["index"], cause["field"]) for cause in causes] == [(1, "spec.type"), (2, "metadata.name")]
    assert client.list(SERVICE).resource_version == before
    assert applied(client, full(service("good"))) == ["created"]


def test_every_error_of_every_document_is_told(client: Client) -> None:
    with pytest.raises(Invalid) as caught:
        applied(
            client,
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}},
            full(service("a", prots=1, type="NodePort", externalTrafficPolicy="local")),
            full({"metadata": {"name": "../x", "namespace": "nope"}, "spec": {"ports": [{"port": 0}]}}),
            full({"metadata": {}}),
        )
    told = {(cause["index"], cause["field"]) for cause in caught.value.status["details"]["causes"]}
    assert told >= {
        (0, "kind"),
        (1, "spec.prots"),
        (1, "spec.externalTrafficPolicy"),
        (2, "metadata.namespace"),
        (2, "metadata.name"),
        (2, "spec.ports[0].port"),
        (3, "metadata.name"),
    }


def test_a_chosen_node_port_is_never_taken_by_an_automatic_one(api: Api) -> None:
    client = api.client
    automatic = [full(service(f"auto{number}", type="NodePort")) for number in range(40)]
    chosen = full(
        {"metadata": {"name": "chosen"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}}
    )
    assert set(applied(client, *automatic, chosen)) == {"created"}


def test_a_dry_run_tells_what_would_be_and_does_nothing(client: Client) -> None:
    result = client.apply([{"object": full(service())}], dry_run=True)
    assert result.results[0].outcome == "created"
    assert result.results[0].object["spec"]["clusterIP"]
    assert client.list(SERVICE).items == []
    address = result.results[0].object["spec"]["clusterIP"]
    assert client.create(SERVICE, service(clusterIP=address), "default")  # it was not kept


def test_delete_takes_all_or_nothing(client: Client) -> None:
    applied(client, full(service("a")), full(service("b")))
    with pytest.raises(Invalid, match='Not found: "nope"'):
        applied(client, full(service("a")), full(service("nope")), delete=True)
    assert applied(client, full(service("a")), full(service("b")), delete=True) == ["deleted", "deleted"]
    assert client.list(SERVICE).items == []


def test_a_namespace_and_what_is_in_it_come_in_any_order(client: Client) -> None:
    inside = full({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}})
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    assert applied(client, inside, namespace) == ["created", "created"]


WARNINGS = [
    ("echo", full(pod("p"), "Pod"), "runs as the built-in echo server: c (e)"),
    ("no effect", full(pod("p", hostPID=True), "Pod"), "no effect here: spec.hostPID"),
    ("external IPs", full(service(externalIPs=["1.2.3.4"])), "spec.externalIPs is deprecated"),
    ("SCTP", full(service(ports=[{"port": 80, "protocol": "SCTP"}])), "SCTP ports are programmed, but"),
    ("status", full(service() | {"status": {"loadBalancer": {}}}), "status is not applied"),
]


@pytest.mark.parametrize(("obj", "text"), [case[1:] for case in WARNINGS], ids=[case[0] for case in WARNINGS])
def test_warnings(client: Client, obj: Object, text: str) -> None:
    told = client.apply([{"object": obj}]).warnings
    assert any(entry.message.startswith(text) and entry.index == 0 for entry in told), told


def test_a_named_target_port_that_no_container_has_is_told(client: Client) -> None:
    there = full(service(selector={"app": "p"}, ports=[{"port": 80, "targetPort": "http"}]))
    told = client.apply([{"object": there}, {"object": full(pod("p"), "Pod")}]).warnings
    assert any("spec.ports[0].targetPort" in entry.message and entry.index == 0 for entry in told)


# ----- the client by itself


def test_the_lab_says_what_it_is(client: Client) -> None:
    assert client.lab_status() == {"name": "lab"}


@pytest.mark.parametrize("url", ["ftp://x", "unix:relative", "unix://host/path", "http://h/?sub", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="no address of a Kubernetes API"):
        Client(url)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"does not answer"):
        Client(f"unix://{tmp_path}/nothing").list(POD)


def canned(answers: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server on TCP that gives one fixed answer to each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def run() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                for piece in (answer[start : start + 7] for start in range(0, len(answer), 7)):
                    connection.sendall(piece)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join()


EVENT = b'{"type":"ADDED","object":{"metadata":{"name":"p","resourceVersion":"7"}}}\n'
FRAMINGS = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (EVENT[:9], EVENT[9:] + EVENT))
    + b"0\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * len(EVENT)) + EVENT + EVENT,
    "until closed": b"HTTP/1.0 200 OK\r\n\r\n" + EVENT + EVENT,
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_watch_understands_every_framing(framing: str) -> None:
    for url, _ in canned([FRAMINGS[framing]]):
        client = Client(url)
        assert [event.resource_version for event in client.watch(POD, resource_version="1")] == ["7", "7"]
        client.close()


def test_an_answer_that_is_no_status_is_still_an_error_with_its_text() -> None:
    answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 8\r\nConnection: close\r\n\r\nupstream"
    for url, _ in canned([answer]):
        client = Client(url)
        with pytest.raises(ApiError, match="upstream") as caught:
            client.list(POD)
        assert caught.value.code == 502
        client.close()


def test_an_answer_cut_short_is_unreachable() -> None:
    for url, _ in canned([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"]):
        client = Client(url)
        with pytest.raises(Unreachable):
            client.list(POD)
        client.close()


def test_a_connection_that_idled_away_is_not_written_to(client: Client, api: Api) -> None:
    client.list(POD)
    api.stop()
    api.start()
    assert client.create(POD, pod(), "default")["metadata"]["name"] == "p"


def test_warnings_come_as_headers_too(api: Api) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(api.socket))
    body = msgspec.json.encode(service(externalIPs=["1.2.3.4"]))
    connection.request("POST", "/api/v1/namespaces/default/services", body)
    response = connection.getresponse()
    assert response.status == 201
    assert "spec.externalIPs is deprecated" in (response.headers["Warning"] or "")
    connection.close()
