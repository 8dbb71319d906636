"""The API by TLS: who is let in, with which token, and what the others hear."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kproxy.api.kinds import NODE, POD, SERVICE
from kproxy.client import Client
from kproxy.cluster import certificates, tokens
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import serve
from kproxy.cluster.rights import ADMIN, DNS, Identity, node_identity
from kproxy.cluster.store import Store
from kproxy.cluster.tokens import Tokens
from kproxy.errors import ApiError, Unreachable, UserError

NODE1 = node_identity("node1")
LOOPBACK = "127.0.0.1"


class Door(NamedTuple):
    """A served API."""

    folder: Path
    port: int
    known: Tokens

    @property
    def trusted(self) -> ssl.SSLContext:
        """Trusts the API's authority."""
        return ssl.create_default_context(cafile=str(self.folder / "pki" / certificates.CA_CERTIFICATE))

    def client(self, who: Identity | None = None, token: str = "") -> Client:
        """A client with the token of somebody."""
        shown = self.known.of(who) if who else token
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        return Client(f"https://{LOOPBACK}:{self.port}", ssl_context=self.trusted, headers=headers)

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any]:
        """A request as it is, and its answer."""
        connection = http.client.HTTPSConnection(LOOPBACK, self.port, context=self.trusted, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith(b"{") else text.decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    store = Store(folder / "state.db")
    known = tokens.ensure(folder / "tokens.json", ["node1", "node2"])
    certificates.ensure(folder / "pki", [LOOPBACK, "kubernetes"])
    server = serve(store, folder / "api.sock", cluster=ClusterSettings(), lab_status=dict, tokens=known)
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    server.open_door(listener, certificates.server_context(folder / "pki"))
    try:
        _fill(Client(f"unix://{folder / 'api.sock'}"))
        yield Door(folder, listener.getsockname()[1], known)
    finally:
        server.stop()
        store.close()


def _fill(root: Client) -> None:
    for name in ("node1", "node2"):
        root.create(NODE, {"metadata": {"name": name}})
        pod = {
            "metadata": {"name": f"on-{name}", "namespace": "default"},
            "spec": {"nodeName": name, "containers": [{"name": "c", "image": "echo"}]},
        }
        root.create(POD, pod)
    root.create(SERVICE, {"metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}})


LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
SERVICES = "/api/v1/namespaces/default/services"
LEASE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "node1"}, "spec": {}}
OTHERS_LEASE = {**LEASE, "metadata": {"name": "node2"}}
EVENT = {
    "apiVersion": "v1",
    "kind": "Event",
    "metadata": {"name": "e.1", "namespace": "default"},
    "involvedObject": {"namespace": "default"},
}
STATUS = {"status": {"conditions": []}}

ASKED = [
    # who, method, path, body, code, what the refusal is about
    (ADMIN, "GET", "/api/v1/services", None, 200, ""),
    (ADMIN, "GET", "/apis/kproxy.dev/v1alpha1/lab", None, 200, ""),
    (NODE1, "GET", "/api/v1/services", None, 200, ""),
    (NODE1, "GET", "/apis/discovery.k8s.io/v1/endpointslices", None, 200, ""),
    (NODE1, "GET", "/apis/networking.k8s.io/v1/servicecidrs", None, 200, ""),
    (NODE1, "GET", "/api/v1/nodes/node1", None, 200, ""),
    (NODE1, "GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dnode1", None, 200, ""),
    (NODE1, "PATCH", "/api/v1/nodes/node1/status", STATUS, 200, ""),
    (NODE1, "GET", "/api/v1/namespaces/default/pods/on-node1", None, 200, ""),
    (NODE1, "PATCH", "/api/v1/namespaces/default/pods/on-node1/status", STATUS, 200, ""),
    (NODE1, "POST", LEASES, LEASE, 201, ""),
    (NODE1, "POST", "/api/v1/namespaces/default/events", EVENT, 201, ""),
    (DNS, "GET", "/api/v1/namespaces", None, 200, ""),
    (DNS, "GET", "/api/v1/services", None, 200, ""),
    (
        NODE1,
        "POST",
        SERVICES,
        {},
        403,
        'services is forbidden: User "system:node:node1" cannot create resource "services" in API group "" in the '
        'namespace "default"',
    ),
    (
        NODE1,
        "GET",
        f"{SERVICES}/web",
        None,
        403,
        'services "web" is forbidden: User "system:node:node1" cannot get resource "services" in API group "" in '
        'the namespace "default"',
    ),
    (
        NODE1,
        "GET",
        "/api/v1/nodes",
        None,
        403,
        'nodes is forbidden: User "system:node:node1" cannot list resource "nodes" in API group "" at the cluster '
        "scope",
    ),
    (NODE1, "GET", "/api/v1/nodes/node2", None, 403, 'nodes "node2" is forbidden'),
    (
        NODE1,
        "GET",
        "/api/v1/nodes?fieldSelector=metadata.name%3Dnode2&watch=1",
        None,
        403,
        'nodes "node2" is forbidden: User "system:node:node1" cannot watch',
    ),
    (
        NODE1,
        "PATCH",
        "/api/v1/nodes/node1",
        STATUS,
        403,
        'nodes "node1" is forbidden: User "system:node:node1" cannot patch',
    ),
    (
        NODE1,
        "PATCH",
        "/api/v1/namespaces/default/pods/on-node2/status",
        STATUS,
        403,
        'cannot patch resource "pods/status"',
    ),
    (NODE1, "PATCH", "/api/v1/namespaces/default/pods/absent/status", STATUS, 403, 'pods "absent" is forbidden'),
    (NODE1, "GET", "/api/v1/pods", None, 403, "pods is forbidden"),
    (NODE1, "DELETE", "/api/v1/namespaces/default/pods/on-node1", None, 403, 'pods "on-node1" is forbidden'),
    (NODE1, "GET", "/api/v1/configmaps", None, 403, "configmaps is forbidden"),
    (NODE1, "GET", "/api/v1/namespaces/default/events", None, 403, "events is forbidden"),
    (NODE1, "POST", LEASES, OTHERS_LEASE, 403, 'leases.coordination.k8s.io "node2" is forbidden'),
    (NODE1, "POST", LEASES, {}, 403, "leases.coordination.k8s.io is forbidden"),
    (NODE1, "POST", "/apis/kproxy.dev/v1alpha1/applies", {"documents": []}, 403, "applies.kproxy.dev is forbidden"),
    (NODE1, "GET", "/apis/kproxy.dev/v1alpha1/lab", None, 403, "lab.kproxy.dev is forbidden"),
    (
        DNS,
        "GET",
        "/api/v1/nodes",
        None,
        403,
        f'User "{DNS.user}" cannot list resource "nodes"',
    ),
    (DNS, "POST", "/api/v1/namespaces", {}, 403, "namespaces is forbidden"),
    (
        DNS,
        "GET",
        "/metrics",
        None,
        403,
        f'forbidden: User "{DNS.user}" cannot get path "/metrics"',
    ),
]


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "code", "words"),
    ASKED,
    ids=[f"{row[0].role.value} {row[1]} {row[2]}" for row in ASKED],
)
def test_what_each_may_ask(door: Door, who: Identity, method: str, path: str, body: Any, code: int, words: str) -> None:
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    headers = {"Authorization": f"Bearer {door.known.of(who)}", "Content-Type": kind}
    status, answer = door.ask(method, path, headers, None if body is None else json.dumps(body).encode())
    assert status == code, answer
    if code == 403:
        assert answer["reason"] == "Forbidden"
        assert words in answer["message"]


NOBODY: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer \xff"},
    {"Authorization": "Basic YWRtaW46YWRtaW4="},
    {"X-Remote-User": "kubernetes-admin"},
    {"Impersonate-User": "kubernetes-admin"},
]


@pytest.mark.parametrize("headers", NOBODY)
@pytest.mark.parametrize(
    ("method", "path"),
    [(row[1], row[2]) for row in ASKED if row[0] is ADMIN] + [("POST", SERVICES), ("GET", "/api"), ("GET", "/nothing")],
)
def test_nobody_may_ask_anything(door: Door, headers: dict[str, str], method: str, path: str) -> None:
    status, answer = door.ask(method, path, headers)
    assert status == 401
    assert answer == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Unauthorized",
        "reason": "Unauthorized",
        "code": 401,
    }


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_whether_it_is_well_anybody_may_ask_who_shows_no_wrong_token(door: Door, path: str) -> None:
    assert door.ask("GET", path, {})[0] == 200
    assert door.ask("GET", path, {"Authorization": "Bearer wrong"})[0] == 401


def test_nobody_is_taken_for_somebody_else(door: Door) -> None:
    shown = {"Authorization": f"Bearer {door.known.of(ADMIN)}", "Impersonate-User": "jane"}
    status, answer = door.ask("GET", "/api/v1/services", shown)
    assert (status, answer["message"]) == (
        403,
        'users "jane" is forbidden: User "kubernetes-admin" cannot impersonate resource "users" in API group "" '
        "at the cluster scope",
    )


def test_a_large_body_of_nobodys_is_not_waited_for(door: Door) -> None:
    with (
        socket.create_connection((LOOPBACK, door.port), timeout=30) as raw,
        door.trusted.wrap_socket(raw, server_hostname=LOOPBACK) as tls,
    ):
        tls.sendall(b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n{")
        assert tls.recv(12) == b"HTTP/1.1 401"


def test_the_unix_socket_is_the_owners_alone(door: Door) -> None:
    assert (door.folder / "api.sock").stat().st_mode & 0o777 == 0o600


def test_keys_and_tokens_are_the_owners_alone(door: Door) -> None:
    files = [*(door.folder / "pki").iterdir(), door.folder / "tokens.json"]
    assert len(files) == 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (door.folder / "pki").stat().st_mode & 0o777 == 0o700


def test_what_opens_the_doors_is_made_once(door: Door) -> None:
    before = {path.name: path.read_bytes() for path in (door.folder / "pki").iterdir()}
    certificates.ensure(door.folder / "pki", ["elsewhere"])
    assert {path.name: path.read_bytes() for path in (door.folder / "pki").iterdir()} == before
    again = tokens.ensure(door.folder / "tokens.json", ["node1", "node2", "node3"])
    assert again.of(NODE1) == door.known.of(NODE1)
    assert len({again.of(who) for who in (ADMIN, DNS, NODE1, node_identity("node2"), node_identity("node3"))}) == 5
    assert min(len(again.of(who)) for who in (ADMIN, DNS, NODE1)) >= 43  # 256 bits


def test_certificates_that_were_begun_are_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "pki.new").mkdir()
    (tmp_path / "pki.new" / "ca.key").write_text("half")
    certificates.ensure(tmp_path / "pki", ["kubernetes"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pki"]
    certificates.server_context(tmp_path / "pki")


def test_an_api_with_another_authority_is_not_trusted(door: Door, tmp_path: Path) -> None:
    certificates.ensure(tmp_path / "pki", [LOOPBACK])
    context = ssl.create_default_context(cafile=str(tmp_path / "pki" / certificates.CA_CERTIFICATE))
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        Client(f"https://{LOOPBACK}:{door.port}", ssl_context=context).list(SERVICE)


def test_a_damaged_file_of_tokens_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(UserError, match="remove it"):
        tokens.ensure(tmp_path / "tokens.json", [])
    with pytest.raises(UserError, match="does not hold the tokens"):
        tokens.read(tmp_path / "absent.json", [])


REVIEWS = [
    (ADMIN, {"resourceAttributes": {"verb": "create", "resource": "services"}}, True),
    (NODE1, {"resourceAttributes": {"verb": "create", "resource": "services"}}, False),
    (NODE1, {"resourceAttributes": {"verb": "list", "resource": "endpointslices", "group": "discovery.k8s.io"}}, True),
    (NODE1, {"nonResourceAttributes": {"verb": "get", "path": "/version"}}, True),
    (NODE1, {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}, False),
]


@pytest.mark.parametrize(("who", "spec", "allowed"), REVIEWS)
def test_whoever_asks_what_they_may_hears_it(door: Door, who: Identity, spec: Any, allowed: bool) -> None:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    body = door.client(who).request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    assert json.loads(body)["status"]["allowed"] is allowed


def test_a_review_of_nothing_is_refused(door: Door) -> None:
    with pytest.raises(ApiError, match="must be specified"):
        door.client(ADMIN).request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body={"spec": {}})


def test_whoever_asks_who_they_are_hears_it(door: Door) -> None:
    body = door.client(NODE1).request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body={})
    user = json.loads(body)["status"]["userInfo"]
    assert user == {"username": "system:node:node1", "groups": ["system:nodes", "system:authenticated"]}
