"""The API by TLS: who is let in, with which token, and what the others hear."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running_cluster import eventually

from kproxy.api.kinds import NODE, POD, SERVICE
from kproxy.client import Client
from kproxy.cluster import certificates, tokens
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import Server, serve
from kproxy.cluster.apiserver.dispatch import make_app
from kproxy.cluster.apiserver.entrance import Limits
from kproxy.cluster.rights import ADMIN, DNS, Identity, node_identity
from kproxy.cluster.store import Store
from kproxy.cluster.tokens import Tokens
from kproxy.errors import ApiError, Unreachable, UserError

NODE1 = node_identity("node1")
LOOPBACK = "127.0.0.1"
MEGABYTE = 1024 * 1024


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
STATUS: dict[str, Any] = {"status": {"conditions": []}}

ASKED: list[tuple[Identity, str, str, Any, int, str]] = [
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


# ----- who says nothing


LIMITS = Limits(total=6, per_address=3, handshake_seconds=5)
DEADLINE = 60


class Crowded(NamedTuple):
    """An API with little room at its doors, and pods that can be got into."""

    port: int
    trusted: ssl.SSLContext
    authorization: str
    folder: Path

    def connect(self, source: str = LOOPBACK) -> socket.socket:
        """A connection from an address."""
        return socket.create_connection((LOOPBACK, self.port), timeout=DEADLINE, source_address=(source, 0))

    def shake_hands(self, source: str = LOOPBACK) -> ssl.SSLSocket:
        """A connection over which requests can be sent."""
        return self.trusted.wrap_socket(self.connect(source), server_hostname=LOOPBACK)

    def is_served(self, source: str) -> bool:
        """Whether somebody from there is answered."""
        try:
            with self.shake_hands(source) as tls:
                tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return tls.recv(12) == b"HTTP/1.1 200"
        except OSError:
            return False

    def begin(self, tls: ssl.SSLSocket, request: str) -> bytes:
        """Sends a request as the admin; the beginning of its answer."""
        tls.sendall(f"{request}\r\nHost: x\r\nAuthorization: {self.authorization}\r\n\r\n".encode())
        return tls.recv(12)


def _is_hung_up(connection: socket.socket) -> bool:
    """Whether the other end closes a connection, before the deadline."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


class _NoProgram:
    """Ways into pods that lead nowhere."""

    def log(self, namespace: str, name: str, container: str, *, is_previous: bool = False) -> Path:
        raise NotImplementedError

    def command(
        self, namespace: str, name: str, container: str, argv: Sequence[str], *, is_terminal: bool
    ) -> list[str]:
        return ["/nonexistent/program"] if argv[0] == "absent" else list(argv)


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Crowded]:
    store = Store(tmp_path / "state.db")
    known = tokens.ensure(tmp_path / "tokens.json", [])
    certificates.ensure(tmp_path / "pki", [LOOPBACK])
    app = make_app(store, cluster=ClusterSettings(), lab_status=dict, tokens=known, pods=_NoProgram())
    listener = socket.create_server((LOOPBACK, 0))
    with Server(app, tmp_path / "api.sock", limits=LIMITS, idle_seconds=5) as server:
        server.open_door(listener, certificates.server_context(tmp_path / "pki"))
        _fill(Client(f"unix://{tmp_path / 'api.sock'}"))
        trusted = ssl.create_default_context(cafile=str(tmp_path / "pki" / certificates.CA_CERTIFICATE))
        yield Crowded(listener.getsockname()[1], trusted, f"Bearer {known.of(ADMIN)}", tmp_path)
    store.close()


WATCH = "GET /api/v1/pods?watch=1 HTTP/1.1"
SLEEP = "GET /api/v1/namespaces/default/pods/on-node1/exec?command=sleep&command=1000&stdin=1&stdout=1 HTTP/1.1"
UPGRADE = (
    "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io"
)


def test_whoever_is_silent_takes_a_bounded_number_of_connections_for_a_bounded_time(crowded: Crowded) -> None:
    with ExitStack() as stack:
        inside = [stack.enter_context(crowded.shake_hands("127.0.0.2")) for _ in range(2)]
        assert crowded.begin(inside[0], WATCH) == b"HTTP/1.1 200"
        assert crowded.begin(inside[1], SLEEP + UPGRADE) == b"HTTP/1.1 101"
        silent = [stack.enter_context(crowded.connect()) for _ in range(20)]
        assert all(_is_hung_up(connection) for connection in silent)
        eventually(lambda: crowded.is_served(LOOPBACK), bool, DEADLINE)
        idle = [stack.enter_context(crowded.shake_hands()) for _ in range(2)]
        idle[0].sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert all(_is_hung_up(connection) for connection in idle)
        for connection in inside:
            connection.settimeout(0.1)
            assert not _is_hung_up(connection)


@pytest.mark.parametrize(("held", "served"), [(3, {"127.0.0.2", "127.0.0.3"}), (0, {LOOPBACK, "127.0.0.2"})])
def test_one_address_does_not_take_the_room_of_another(crowded: Crowded, held: int, served: set[str]) -> None:
    with ExitStack() as stack:
        for _ in range(held):
            tls = stack.enter_context(crowded.shake_hands())
            assert crowded.begin(tls, WATCH) == b"HTTP/1.1 200"
        assert crowded.is_served(LOOPBACK) == (held == 0)
        for source in served:
            eventually(partial(crowded.is_served, source), bool, DEADLINE)


def test_all_addresses_together_have_so_much_room(crowded: Crowded) -> None:
    with ExitStack() as stack:
        for source in (*["127.0.0.2"] * 3, *["127.0.0.3"] * 3):
            assert crowded.begin(stack.enter_context(crowded.shake_hands(source)), WATCH) == b"HTTP/1.1 200"
        assert not crowded.is_served(LOOPBACK)
    eventually(lambda: crowded.is_served(LOOPBACK), bool, DEADLINE)


def test_a_terminal_whose_command_cannot_be_started_is_closed(crowded: Crowded) -> None:
    def terminals() -> int:
        links = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                links.append(str(link.readlink()))
        return sum(link.startswith(("/dev/pts/", "/dev/ptmx")) for link in links)

    before = terminals()
    absent = SLEEP.replace("command=sleep&command=1000", "command=absent&tty=1")
    for _ in range(3):
        with crowded.shake_hands() as tls:
            assert crowded.begin(tls, absent + UPGRADE) == b"HTTP/1.1 101"
            told = b""
            while b"could not be started" not in told:
                chunk = tls.recv(4096)
                assert chunk, told
                told += chunk
        eventually(terminals, before.__eq__, DEADLINE)


# ----- large bodies


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize(("who", "path"), [(ADMIN, SERVICES), (NODE1, LEASES)])
def test_a_body_is_refused_as_soon_as_it_is_too_large(door: Door, who: Identity, path: str, is_chunked: bool) -> None:
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {60 * MEGABYTE}"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {door.known.of(who)}\r\n{length}\r\n\r\n"
    with (
        socket.create_connection((LOOPBACK, door.port), timeout=DEADLINE) as raw,
        door.trusted.wrap_socket(raw, server_hostname=LOOPBACK) as tls,
    ):
        tls.sendall(head.encode())
        if is_chunked:
            for _ in range(4):  # and no end
                tls.sendall(b"%x\r\n%s\r\n" % (MEGABYTE, b" " * MEGABYTE))
        assert tls.recv(12) == b"HTTP/1.1 413"


def test_an_apply_may_be_large(door: Door) -> None:
    maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"large-{number}", "namespace": "default"},
            "data": {"value": "x" * (MEGABYTE // 8)},
        }
        for number in range(40)
    ]
    assert len(door.client(ADMIN).apply([{"object": one} for one in maps], dry_run=True).results) == len(maps)
