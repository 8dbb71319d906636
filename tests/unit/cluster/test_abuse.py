"""Bad input and bad luck: each gets an error that it understands, and everybody else is served."""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from running_cluster import Api, eventually

from kproxy.api.kinds import CONFIG_MAP, NODE, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.apiserver import sending
from kproxy.errors import ApiError, Unreachable

MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, value: str = "") -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, api: Api) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(api.socket))

    def ask(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> None:
        fields = f"Host: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
        head = f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n"
        try:
            self.socket.sendall(head.encode() + body)
        except ConnectionError:
            return  # it said its part in the middle of ours

    def answer(self) -> tuple[int, Any]:
        with self.socket.makefile("rb") as file:
            code = int(file.readline().split()[1])
            length = 0
            while (line := file.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return code, json.loads(file.read(length))

    def is_hung_up(self) -> bool:
        """Whether the other end closes the connection without anything being read from it."""
        hang_up = select.poll()
        hang_up.register(self.socket, 0)
        return bool(hang_up.poll(20_000))

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def raw(api: Api) -> Iterator[Callable[[], Raw]]:
    made: list[Raw] = []

    def connect() -> Raw:
        made.append(Raw(api))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


DEEP = 200_000
BODIES: list[tuple[str, bytes, int, str]] = [
    ("over 3 MB", b'{"data": "' + b"x" * (3 << 20) + b'"}', 413, "Request entity too large: limit is 3145728"),
    ("deep lists", b"[" * DEEP + b"]" * DEEP, 400, ""),
    ("deep objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400, ""),
    (
        "deep where anything goes",
        json.dumps(config_map("a")).encode()[:-1] + b',"x":' + b"[" * 900 + b"]" * 900 + b"}",
        400,
        "levels deep",
    ),
    ("invalid UTF-8", b'{"metadata": {"name": "\xff\xfe"}}', 400, "not JSON"),
    ("half a surrogate", b'{"metadata": {"name": "a"}, "data": {"x": "\\ud800"}}', 400, "not JSON"),
    ("a NUL", b'{"metadata": {"name": "a\\u0000b"}}', 422, "RFC 1123"),
    ("a huge number", b'{"metadata": {"name": "a", "generation": 1' + b"0" * 400 + b"}}", 422, ""),
    ("no number", b'{"metadata": {"name": "a", "generation": NaN}}', 400, "not JSON"),
    ("no JSON", b"hello", 400, "not JSON"),
    ("nothing", b"", 400, ""),
    ("no object", b"[]", 400, "not an object"),
    ("metadata that is none", b'{"metadata": []}', 422, "metadata.name"),
    ("a name that is none", b'{"metadata": {"name": ["a"]}}', 422, "metadata.name"),
    ("labels that are none", b'{"metadata": {"name": "a", "labels": [1]}}', 422, "metadata.labels"),
    ("managers that are none", b'{"metadata": {"name": "a", "managedFields": 7}}', 422, "metadata.managedFields"),
]


@pytest.mark.parametrize(("body", "code", "message"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_bodies_that_nobody_should_send(
    raw: Callable[[], Raw], client: Client, body: bytes, code: int, message: str
) -> None:
    connection = raw()
    connection.ask("POST", MAPS, body)
    seen, status = connection.answer()
    assert (seen, message in str(status.get("message"))) == (code, True), status
    assert client.list(CONFIG_MAP).resource_version


@pytest.mark.parametrize("kind", ["json-patch", "merge-patch", "strategic-merge-patch", "apply-patch"])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b"\xff",
        b"null",
        b"7",
        b'"x"',
        b'{"metadata": 7}',
        b"a: &a [*a]",
    ],
    ids=["deep lists", "deep objects", "no UTF-8", "null", "a number", "a string", "no metadata", "itself"],
)
def test_patches_that_nobody_should_send(raw: Callable[[], Raw], client: Client, kind: str, body: bytes) -> None:
    client.create(CONFIG_MAP, config_map("a"), "default")
    ending, query = ("yaml", "?fieldManager=x") if kind == "apply-patch" else ("json", "")
    connection = raw()
    connection.ask("PATCH", f"{MAPS}/a{query}", body, f"application/{kind}+{ending}")
    code, status = connection.answer()
    assert 400 <= code < 500, status
    assert status["kind"] == "Status"
    assert client.get(CONFIG_MAP, "a", "default")["data"] == {"value": ""}


@pytest.mark.parametrize("depth", [50, 90, 400, 900])
def test_what_is_deep_in_a_patch_is_refused_or_stored_whole(client: Client, depth: int) -> None:
    client.create(CONFIG_MAP, config_map("a"), "default")
    patch: Any = {}
    for _ in range(depth):
        patch = {"a": patch}
    for kind in ("merge-patch+json", "strategic-merge-patch+json"):
        if depth < 100:
            client.request("PATCH", f"{MAPS}/a", body=patch, content_type=f"application/{kind}")
            continue
        with pytest.raises(ApiError, match="levels deep") as caught:
            client.request("PATCH", f"{MAPS}/a", body=patch, content_type=f"application/{kind}")
        assert caught.value.code == 400
    client.get(CONFIG_MAP, "a", "default")


# ----- clients that do not read


def large_listing(client: Client) -> None:
    for number in range(24):
        client.create(CONFIG_MAP, config_map(f"m{number}", "x" * 500_000), "default")


def test_a_watch_that_is_never_read_is_closed(
    api: Api, client: Client, raw: Callable[[], Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PATIENCE", 0.3)
    stuck = raw()
    stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.ask("GET", f"{MAPS}?watch=1&resourceVersion={api.store.revision}")
    large_listing(client)  # served all the while
    assert stuck.is_hung_up()


def test_a_list_that_is_never_read_is_closed(
    client: Client, raw: Callable[[], Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_listing(client)
    monkeypatch.setattr(sending, "PATIENCE", 0.3)
    stuck = raw()
    stuck.ask("GET", MAPS)
    assert len(client.list(CONFIG_MAP).items) == 24, "others are served meanwhile"
    assert stuck.is_hung_up()


def test_clients_that_die_in_the_middle_of_a_list(client: Client, raw: Callable[[], Raw]) -> None:
    large_listing(client)
    for _ in range(10):
        dying = raw()
        dying.ask("GET", MAPS)
        dying.socket.recv(1000)
        dying.close()
        assert client.get(CONFIG_MAP, "m1", "default")
    assert len(client.list(CONFIG_MAP).items) == 24


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_two_hundred_watches_at_once_some_of_them_slow(api: Api, client: Client, raw: Callable[[], Raw]) -> None:
    begin = api.store.revision
    idle = [raw() for _ in range(100)]
    for connection in idle:
        connection.ask("GET", f"{MAPS}?watch=1&resourceVersion={begin}")
    followers = [Client(api.url) for _ in range(100)]

    def follow(one: Client) -> list[str]:
        seen = []
        for event in one.watch(CONFIG_MAP, resource_version=str(begin), bookmarks=False, timeout_seconds=60):
            seen.append(event.object["metadata"]["name"])
            if len(seen) == 20:
                break
        return seen

    with ThreadPoolExecutor(100) as pool:
        seen = [pool.submit(follow, one) for one in followers]
        for number in range(20):
            client.create(CONFIG_MAP, config_map(f"m{number:02}", "x" * 2000), "default")
        assert all(one.result(60) == [f"m{number:02}" for number in range(20)] for one in seen)
    for one in followers:
        one.close()
    for connection in idle:
        told = b""
        while told.count(b'"ADDED"') < 20:
            told += connection.socket.recv(1 << 16)


# ----- a full disk


class SmallDisk:
    """A file system of a few megabytes in a mount namespace of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        script = 'mount -t tmpfs -o size=4m none "$1" && echo mounted && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n"

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--")

    def remove(self, name: str) -> None:
        subprocess.run([*self.prefix, "rm", str(self.folder / name)], check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "small")
    try:
        yield disk
    finally:
        disk.close()


def write_until_refused(client: Client, name: str) -> ApiError:
    """Writes until that is refused; the object is then what it was. (The log has room of its own for a while.)"""
    before = client.get(CONFIG_MAP, name, "default")
    for number in range(200):
        try:
            before = client.patch(CONFIG_MAP, name, {"data": {"value": str(number) + "x" * 100_000}}, "default")
        except ApiError as error:
            assert client.get(CONFIG_MAP, name, "default") == before
            return error
    pytest.fail("the disk never filled up")


@pytest.mark.root
def test_a_full_disk_is_an_error_to_writers_and_to_nobody_else(tmp_path: Path, small_disk: SmallDisk) -> None:
    with ApiProcess(tmp_path, database=small_disk.folder / "state.db", prefix=small_disk.prefix) as api:
        client = Client(api.url)
        client.create(NODE, {"metadata": {"name": "n"}})
        client.create(CONFIG_MAP, config_map("big"), "default")
        names: list[str] = []
        watch = Client(api.url)
        events = watch.watch(CONFIG_MAP, resource_version=client.list(CONFIG_MAP).resource_version, timeout_seconds=120)
        thread = threading.Thread(
            target=lambda: [names.append(event.object["metadata"]["name"]) for event in events if event.type == "ADDED"]
        )
        thread.start()
        api.tell("fill")
        error = write_until_refused(client, "big")
        assert error.code in (500, 507)
        assert "cannot be written" in str(error)
        revision = client.list(CONFIG_MAP).resource_version
        service = {
            "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30123}]},
        }
        for _ in range(3):
            with pytest.raises(ApiError, match="cannot be written"):
                client.create(
                    SERVICE, service | {"metadata": {"name": "web", "annotations": {"a": "x" * 200_000}}}, "default"
                )
        assert client.list(CONFIG_MAP).resource_version == revision, "what is shown is what is on disk"
        assert client.list(SERVICE).items == []
        assert client.get(NODE, "n")["metadata"]["name"] == "n"
        api.tell("free")
        made = client.create(SERVICE, service, "default")
        assert made["spec"]["ports"][0]["nodePort"] == 30123, "what a refused Service had asked for is free"
        assert int(made["metadata"]["resourceVersion"]) == int(revision) + 1
        client.create(CONFIG_MAP, config_map("after"), "default")
        eventually(lambda: tuple(names), lambda seen: seen == ("after",))
        watch.close()
        thread.join()
        client.close()


@pytest.mark.root
def test_a_kill_while_the_disk_is_full_loses_nothing(tmp_path: Path, small_disk: SmallDisk) -> None:
    api = ApiProcess(tmp_path, database=small_disk.folder / "state.db", prefix=small_disk.prefix)
    with api:
        client = Client(api.url)
        client.create(CONFIG_MAP, config_map("big"), "default")
        api.tell("fill")
        write_until_refused(client, "big")
        before = client.list(CONFIG_MAP)
        api.kill()
        with pytest.raises(Unreachable):
            client.list(CONFIG_MAP)
        small_disk.remove("filler")
        api.start()
        after = client.list(CONFIG_MAP)
        assert (after.items, after.resource_version) == (before.items, before.resource_version)
        client.create(CONFIG_MAP, config_map("after"), "default")
        client.close()
