"""/healthz, /livez and health check node ports, step by step as kube-proxy's own tests go."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.api.types import Node, NodeSpec, ObjectMeta, Taint
from kproxy.proxy.changes import Change, HealthCheck, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.endpoints import NodeIdentity, from_slices, local_ready_addresses
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health, rfc3339
from kproxy.proxy.metrics import HEALTHZ, LIVEZ, Metrics
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.plan import Circumstances, NodePortScope
from kproxy.proxy.service_health import ServiceHealthServers
from kproxy.proxy.services import ServiceName
from kproxy.proxy.setup import health_check_addresses
from kproxy.proxy.sources import key_of, typed

TABLE = yaml.safe_load((Path(__file__).parent / "healthcheck.yaml").read_text())
MISC = yaml.safe_load((Path(__file__).parent / "misc.yaml").read_text())
SERVICE_CASES = {case["name"]: case for case in TABLE["serviceHealth"]["cases"]}


class World:
    """A proxy's health with a clock that only the steps move."""

    def __init__(self, timeout: float) -> None:
        self.now = 1_000_000.0
        self.updates: list[float] = []
        self.metrics = Metrics(lambda: self.now)
        metric = {"/healthz": HEALTHZ, "/livez": LIVEZ}
        self.health = Health(
            timeout,
            lambda: self.now,
            lambda: int(self.now * 1e9),
            lambda path, status: self.metrics.add(metric[path], str(status)),
        )
        self.node()

    def node(self, taint: str = "", *, is_deleted: bool = False) -> None:
        taints = (Taint(key=taint),) if taint else ()
        metadata = ObjectMeta(name="n", deletion_timestamp="2026-01-01T00:00:00Z" if is_deleted else None)
        self.health.node_is_eligible(facts(Node(metadata=metadata, spec=NodeSpec(taints=taints))).is_eligible)

    def do(self, words: str) -> None:
        """One step of the table, in its words."""
        if words.startswith("node"):
            self.node(words.split('"')[1] if "tainted" in words else "", is_deleted="deletionTimestamp" in words)
            return
        for part in words.replace(", then ", ", ").split(", "):
            families = [family for family in Family if family.value in part]
            if "queued" in part:
                for family in families:
                    self.health.queued(family, self.now)
            elif "updated" in part:
                for family in families:
                    self.health.updated(family)
                self.updates.append(self.now)
            if "25 s pass" in part or "5 s pass" in part:
                self.now += 25 if "25 s" in part else 5


@pytest.mark.parametrize("case", TABLE["proxyHealth"]["cases"], ids=lambda case: case["name"])
def test_health_of_the_proxy(case: dict[str, Any]) -> None:
    world = World(TABLE["proxyHealth"]["healthTimeoutSeconds"])
    answers = {"200": 0, "503": 0}
    for step in case["steps"]:
        world.do(step["do"])
        told = world.health.healthz() if case["path"] == "/healthz" else world.health.livez()
        body = json.loads(told.body)

        assert told.status == step["status"], step
        assert told.content_type == "application/json"
        assert told.headers == {"X-Content-Type-Options": "nosniff"}
        assert body["healthy"] == step["healthy"], step
        assert body.get("nodeEligible") == step.get("nodeEligible"), step
        for family, key in (("IPv4", "ipv4Healthy"), ("IPv6", "ipv6Healthy")):
            if world.updates and key in step:
                assert body["status"][family]["healthy"] == step[key], step
        now = rfc3339(int(world.now * 1e9))
        assert body["currentTime"] == now
        if told.status == 200:
            assert body["lastUpdated"] == now
        elif world.updates:
            assert body["lastUpdated"] == rfc3339(int(max(world.updates) * 1e9)), step
        answers[str(told.status)] += 1
        counted = world.metrics.snapshot()[HEALTHZ if case["path"] == "/healthz" else LIVEZ]
        assert counted == {(code,): count for code, count in answers.items() if count}


def _served(port: int) -> tuple[int, dict[str, str], Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())


def _is_open(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(named: set[int]) -> dict[int, int]:
    """A free port of this host for each port that the table names."""
    with ExitStack() as stack:
        sockets = {port: stack.enter_context(closing(socket.socket())) for port in named}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {port: int(each.getsockname()[1]) for port, each in sockets.items()}


def _wait_until_closed() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("close-"):
            thread.join(5)


def _wanted(step: dict[str, Any], before: dict[ServiceName, HealthCheck]) -> dict[ServiceName, HealthCheck]:
    """What a sync asks for; counts that a step does not give are as before, or 0 where the port is new."""
    found = {}
    for service, port in step["services"].items():
        name = ServiceName(*service.split("/"))
        old = before.get(name)
        kept = old.local_endpoints if old and old.port == port else 0
        found[name] = HealthCheck(port, step["endpoints"].get(service, 0) if "endpoints" in step else kept)
    return found


@pytest.mark.parametrize("name", ["service-health-server", "service-health-server-selective-address"])
def test_health_check_node_ports(name: str) -> None:
    case = SERVICE_CASES[name]
    config = ProxyConfig(nodeport_addresses=tuple(case["config"]["nodePortAddresses"]))
    free = _free_ports({port for step in case["steps"] for port in step["services"].values()})
    is_healthy = True

    def addresses() -> tuple[str, ...]:
        return health_check_addresses(config, NodeFacts(), Family.IPV4, ("127.0.0.1", "::1"))

    servers = ServiceHealthServers(addresses, lambda: is_healthy)
    wanted: dict[ServiceName, HealthCheck] = {}
    for step in case["steps"]:
        is_healthy = step.get("proxyHealthy", is_healthy)
        wanted = _wanted(step, wanted)
        servers.sync({service: check._replace(port=free[check.port]) for service, check in wanted.items()})
        _wait_until_closed()

        if "expectListeners" in step:
            opened = {place.rpartition(":")[2] for place in step["expectListeners"]}
            assert {str(port) for port in free if _is_open(free[port])} == opened, step
        for service, expected in step.get("expect", {}).items():
            status, headers, body = _served(free[step["services"][service]])
            namespace, short = service.split("/")
            assert status == expected["status"], step
            assert headers["X-Load-Balancing-Endpoint-Weight"] == str(expected["localEndpoints"])
            assert headers["Content-Type"] == "application/json"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert body == {
                "service": {"namespace": namespace, "name": short},
                "localEndpoints": expected["localEndpoints"],
                "serviceProxyHealthy": expected["serviceProxyHealthy"],
            }
    servers.sync({})
    _wait_until_closed()


@pytest.mark.parametrize(
    ("cidrs", "family", "addresses"),
    [
        ((), Family.IPV4, ("0.0.0.0",)),
        ((), Family.IPV6, ("::",)),
        (("127.0.0.0/8",), Family.IPV4, ("127.0.0.1",)),
        (("127.0.0.0/8",), Family.IPV6, ("::",)),
        (("192.168.0.0/16", "fd00::/8"), Family.IPV6, ("fd00:1::2",)),
        (("10.0.0.0/8",), Family.IPV4, ()),
    ],
)
def test_where_health_check_node_ports_listen(
    cidrs: tuple[str, ...], family: Family, addresses: tuple[str, ...]
) -> None:
    own = ("127.0.0.1", "192.168.1.2", "::1", "fd00:1::2")

    found = health_check_addresses(ProxyConfig(nodeport_addresses=cidrs), NodeFacts(), family, own)

    assert found == addresses


@pytest.mark.parametrize(
    "step", SERVICE_CASES["local-ready-endpoints-when-terminating"]["steps"], ids=lambda s: s["do"]
)
def test_terminating_endpoints_do_not_count(step: dict[str, Any]) -> None:
    slices = [typed(obj) for obj in step["objects"] if obj["kind"] == "EndpointSlice"]

    found = local_ready_addresses(from_slices(slices, Family.IPV4, "test-node"))  # type: ignore[arg-type]

    assert found == step["expectLocalReadyEndpoints"].get("ns1/svc1", 0)


@pytest.mark.parametrize("case", MISC["noLocalEndpointsMetric"]["cases"], ids=lambda case: case["name"])
def test_ports_without_local_endpoints_are_counted(case: dict[str, Any]) -> None:
    tracker = Tracker(Family.IPV4, "test-node")
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in case["objects"])
    tracker.delta(Circumstances(NodeIdentity("test-node")), NodePortScope())

    assert tracker.without_local_endpoints._asdict() == case["expect"]
