"""The HTTP answers of a node proxy."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from kproxy.errors import HostError
from kproxy.proxy.changes import HealthCheck
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health, programmed
from kproxy.proxy.progress import Progress
from kproxy.proxy.service_health import ServiceHealthServers, answer
from kproxy.proxy.services import ServiceName
from kproxy.proxy.serving import Answer, Routes, listen, split_bind_address

EDGE = ServiceName("default", "edge")


@contextmanager
def served(routes: Routes) -> Iterator[int]:
    server = listen("127.0.0.1", 0, routes)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Moment:
    """A clock in the test's hands."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_idle_proxier_is_healthy_and_one_that_is_late_is_not() -> None:
    clock = Moment()
    health = Health(60.0, clock)
    health.node_is_eligible(True)
    assert health.healthz().status == 200

    health.updated(Family.IPV4)
    health.queued(Family.IPV4, clock())
    clock.now = 30.0
    health.queued(Family.IPV4, clock())
    clock.now = 59.0
    assert health.is_healthy()
    clock.now = 60.0

    assert not health.is_healthy()
    health.updated(Family.IPV4)
    assert health.is_healthy()


def test_node_that_goes_away_fails_healthz_but_not_livez() -> None:
    health = Health(60.0, Moment())
    health.updated(Family.IPV6)
    health.node_is_eligible(False)

    healthz, livez = health.healthz(), health.livez()

    assert (healthz.status, livez.status) == (503, 200)
    body = json.loads(healthz.body)
    assert list(body) == ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]
    assert body["healthy"] is True
    assert list(body["status"]) == ["IPv6"]
    assert "nodeEligible" not in json.loads(livez.body)


def test_programmed_tells_waits_and_gives_up() -> None:
    progress = Progress()
    with served({"/programmed": lambda query: programmed(progress, query)}) as port:
        assert ask(port, "/programmed")[0] == 200
        assert ask(port, "/programmed?resourceVersion=5&timeoutSeconds=0.01")[0] == 503

        threading.Timer(0.05, progress.reached, (5,)).start()
        status, headers, body = ask(port, "/programmed?resourceVersion=5&timeoutSeconds=5")

        assert status == 200
        assert headers["Content-Type"] == "application/json"
        assert json.loads(body) == {"resourceVersion": "5", "syncs": 0, "fullSyncs": 0, "lastError": ""}
        assert ask(port, "/programmed?resourceVersion=x")[0] == 400
        assert ask(port, "/nowhere")[0] == 404


@pytest.mark.parametrize(("count", "is_healthy", "status"), [(1, True, 200), (0, True, 503), (3, False, 503)])
def test_load_balancers_are_told_what_kube_proxy_tells(count: int, is_healthy: bool, status: int) -> None:
    told = answer(EDGE, count, is_proxy_healthy=is_healthy)

    assert told.status == status
    assert told.headers["X-Load-Balancing-Endpoint-Weight"] == str(count)
    assert told.headers["X-Content-Type-Options"] == "nosniff"
    if count == 1:
        lines = ["{", '\t"service": {', '\t\t"namespace": "default",', '\t\t"name": "edge"', "\t},"]
        assert told.body == "\n".join([*lines, '\t"localEndpoints": 1,', '\t"serviceProxyHealthy": true', "}"])


def test_health_check_ports_open_change_and_close() -> None:
    servers = ServiceHealthServers(lambda: ["127.0.0.1"], lambda: True)
    first, second = free_port(), free_port()

    servers.sync({EDGE: HealthCheck(first, 0)})
    assert ask(first, "/anything", "POST")[0] == 503
    servers.sync({EDGE: HealthCheck(first, 2)})
    assert ask(first, "/")[0] == 200
    servers.sync({EDGE: HealthCheck(second, 2)})
    assert ask(second, "/")[1]["X-Load-Balancing-Endpoint-Weight"] == "2"
    servers.sync({})
    for thread in threading.enumerate():
        if thread.name in (f"close-{first}", f"close-{second}"):
            thread.join(5)

    with pytest.raises(ConnectionRefusedError):
        ask(second, "/")


def test_port_that_is_taken_is_tried_again_at_the_next_sync() -> None:
    servers = ServiceHealthServers(lambda: ["127.0.0.1"], lambda: True)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        servers.sync({EDGE: HealthCheck(port, 1)})
    servers.sync({EDGE: HealthCheck(port, 1)})

    assert ask(port, "/")[0] == 200
    servers.sync({})


def test_one_address_that_is_taken_is_told_once_and_only_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[ServiceName, int, str]] = []
    servers = ServiceHealthServers(lambda: ["127.0.0.1", "127.0.0.2"], lambda: True, lambda *all_: told.append(all_))
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        port = int(other.getsockname()[1])
        for _ in range(3):
            assert not servers.sync({EDGE: HealthCheck(port, 1)})
            assert ask(port, "/")[0] == 200
    assert told == [(EDGE, port, f"cannot listen on 127.0.0.2 port {port}: Address already in use")]
    assert len(caplog.records) == 1

    assert servers.sync({EDGE: HealthCheck(port, 1)})
    with closing(socket.create_connection(("127.0.0.2", port), 5)):
        servers.sync({})


def test_address_that_is_taken_is_an_error_of_the_host() -> None:
    routes: Routes = {"": lambda _: Answer(200, "")}
    with served(routes) as port, pytest.raises(HostError, match="Address already in use"):
        listen("127.0.0.1", port, routes)


@pytest.mark.parametrize(("text", "place"), [("0.0.0.0:10256", ("0.0.0.0", 10256)), ("[::]:10256", ("::", 10256))])
def test_bind_addresses_are_address_and_port(text: str, place: tuple[str, int]) -> None:
    assert split_bind_address(text) == place
