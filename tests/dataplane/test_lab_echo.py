"""The echo server, forked into a namespace of its own: what it answers, and what is out of its reach."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.cluster.fork_server import POD_UID
from kproxy.cluster.layout import python, python_environment
from netns import namespace, sysctl
from netns.namespace import Namespace
from netns.topology import Role

pytestmark = pytest.mark.root


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Namespace]:
    place = namespace.create(f"e-echo-{os.getpid()}", tmp_path / "netns")
    try:
        sysctl.apply(place, sysctl.SYSCTLS[Role.POD])
        namespace.run_in(place, subprocess.run, ["ip", "link", "set", "lo", "up"], check=True)
        yield place
    finally:
        namespace.remove(place)


@pytest.fixture
def fork_server() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        python("kproxy.cluster.fork_server", str(theirs.fileno())),
        pass_fds=[theirs.fileno()],
        env=python_environment(),
    )
    theirs.close()
    with ours:
        yield ours
    assert process.wait(5) == 0


@pytest.fixture
def echo(pod: Namespace, fork_server: socket.socket, tmp_path: Path) -> Iterator[tuple[int, socket.socket]]:
    request = {
        "netns": str(pod.path),
        "control": str(tmp_path / "echo.sock"),
        "log": str(tmp_path / "log"),
        "scratch": str(tmp_path),
        "hostname": "web-1",
        "pod": "web-1",
        "namespace": "default",
        "node": "node1",
    }
    fork_server.send(json.dumps(request).encode())
    pid = json.loads(fork_server.recv(65536))["pid"]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(5)
            control.connect(request["control"])
            listen(control)  # answered once it is enclosed
            yield pid, control
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def listen(control: socket.socket, *ports: tuple[str, int]) -> dict[str, list[list[object]]]:
    control.send(json.dumps({"ports": ports}).encode())
    answer: dict[str, list[list[object]]] = json.loads(control.recv(65536))
    return answer


def socket_in(pod: Namespace, family: int, kind: int) -> socket.socket:
    sock = namespace.socket_in(pod, family, kind)
    sock.settimeout(5)
    return sock


@contextlib.contextmanager
def http_to(pod: Namespace, address: str, port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(address, port)
    with socket_in(pod, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect((address, port))
        connection.sock = sock
        yield connection


def hostname_from(pod: Namespace, address: str, port: int) -> str:
    with http_to(pod, address, port) as connection:
        return get(connection, "/hostname")


def get(connection: http.client.HTTPConnection, path: str, **headers: str) -> str:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read().decode()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_connection_answers_many_requests(pod: Namespace, echo: tuple[int, socket.socket], address: str) -> None:
    assert listen(echo[1], ("TCP", 80)) == {"listening": [["TCP", 80]], "failed": []}
    with http_to(pod, address, 80) as connection:
        source = connection.sock.getsockname()[1]
        joined = f"[{address}]:{source}" if ":" in address else f"{address}:{source}"
        assert get(connection, "/hostname") == "web-1\n"
        assert get(connection, "/clientip") == f"{joined}\n"
        assert f"client: {joined}\n" in get(connection, "/")
        expected = {
            "pod": "web-1",
            "namespace": "default",
            "node": "node1",
            "address": address,
            "port": 80,
            "client": address,
            "clientPort": source,
            "protocol": "TCP",
            "ttl": 64,
        }
        assert json.loads(get(connection, "/json")) == expected
        assert json.loads(get(connection, "/", Accept="application/json")) == expected
        connection.request("POST", "/hostname", body=b"x" * 100_000)
        assert connection.getresponse().read() == b"web-1\n"
        connection.request("HEAD", "/hostname")
        assert connection.getresponse().read() == b""
        assert connection.sock.getsockname()[1] == source


@pytest.mark.parametrize(("address", "family"), [("127.0.0.5", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_datagram_is_answered_from_the_address_that_was_dialled(
    pod: Namespace, echo: tuple[int, socket.socket], address: str, family: int
) -> None:
    listen(echo[1], ("UDP", 53))
    with socket_in(pod, family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 53))  # takes datagrams from there alone
        sock.send(b"json")
        seen = json.loads(sock.recv(65536))
        assert (seen["address"], seen["port"], seen["protocol"], seen["ttl"]) == (
            address,
            53,
            "UDP",
            64,
        )
        assert seen["clientPort"] == sock.getsockname()[1]
        sock.send(b"hostname\n")
        assert sock.recv(65536) == b"web-1\n"
        sock.send(b"")
        assert sock.recv(65536).startswith(b"pod: web-1\n")


def test_ports_change_while_it_runs(pod: Namespace, echo: tuple[int, socket.socket]) -> None:
    listen(echo[1], ("TCP", 80), ("TCP", 81))
    with http_to(pod, "127.0.0.1", 80) as open_connection:
        assert listen(echo[1], ("TCP", 82)) == {
            "listening": [["TCP", 82]],
            "failed": [],
        }
        assert get(open_connection, "/hostname") == "web-1\n"
    assert hostname_from(pod, "127.0.0.1", 82) == "web-1\n"
    with pytest.raises(ConnectionRefusedError):
        hostname_from(pod, "127.0.0.1", 81)


def test_who_is_connected_when_a_port_is_closed_is_served(pod: Namespace, echo: tuple[int, socket.socket]) -> None:
    for _ in range(20):
        listen(echo[1], ("TCP", 80))
        with http_to(pod, "127.0.0.1", 80) as first, http_to(pod, "127.0.0.1", 80) as second:
            listen(echo[1])
            assert [get(connection, "/hostname") for connection in (first, second)] == ["web-1\n"] * 2


def test_a_port_that_is_taken_is_named(pod: Namespace, echo: tuple[int, socket.socket]) -> None:
    with socket_in(pod, socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("0.0.0.0", 80))
        taken.listen()
        answer = listen(echo[1], ("TCP", 80), ("TCP", 81))
    assert answer == {
        "listening": [["TCP", 81]],
        "failed": [["TCP", 80, "Address already in use"]],
    }


def test_text_that_is_no_http_gets_the_words_alone(pod: Namespace, echo: tuple[int, socket.socket]) -> None:
    listen(echo[1], ("TCP", 80))
    with socket_in(pod, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("127.0.0.1", 80))
        sock.send(b"hello\n")
        assert sock.recv(65536).startswith(b"pod: web-1\n")
        assert sock.recv(65536) == b""


def test_a_head_without_end_is_cut_off(pod: Namespace, echo: tuple[int, socket.socket]) -> None:
    listen(echo[1], ("TCP", 80))
    with socket_in(pod, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("127.0.0.1", 80))
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 3000)
        while chunk := sock.recv(65536):
            last = chunk
        assert last.endswith(b"ttl: 64\n")


def test_it_has_no_capability_no_file_and_no_other_process_to_see(
    echo: tuple[int, socket.socket],
) -> None:
    pid, _ = echo
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["CapEff"] == status["CapPrm"] == "0000000000000000"
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == [str(POD_UID)] * 4
    assert status["Groups"].strip() == ""
    assert status["NSpid"].split()[-1] == "1"
    assert list(Path(f"/proc/{pid}/root").iterdir()) == []
    assert len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) == 1
    for kind in ("mnt", "pid", "uts", "ipc", "net"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()


def test_it_costs_little_memory(echo: tuple[int, socket.socket]) -> None:
    sizes = {
        line.split()[0]: int(line.split()[1])
        for line in Path(f"/proc/{echo[0]}/smaps_rollup").read_text().splitlines()[1:]
    }
    assert sizes["Private_Dirty:"] + sizes["Private_Clean:"] <= 3 * 1024


def test_it_outlives_the_fork_server_and_leaves_on_sigterm(
    pod: Namespace, echo: tuple[int, socket.socket], fork_server: socket.socket
) -> None:
    pid, control = echo
    fork_server.shutdown(socket.SHUT_RDWR)
    listen(control, ("TCP", 80))
    assert hostname_from(pod, "127.0.0.1", 80) == "web-1\n"
    os.kill(pid, signal.SIGTERM)
    assert control.recv(65536) == b""
