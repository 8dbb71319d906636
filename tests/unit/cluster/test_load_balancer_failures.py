"""What one node or one Service that fails means for the balancer's others: nothing. Real API, no network."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import pytest
from running_cluster import Api

from kproxy.api.kinds import NODE, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster import clusterfile, layout
from kproxy.cluster.clusterfile import LoadBalancerConfig
from kproxy.cluster.controllers.informer import name_of
from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers import balancer, record
from kproxy.cluster.load_balancers.balancer import Balancer
from kproxy.cluster.load_balancers.claims import CLASS_PREFIX, NLB
from kproxy.cluster.load_balancers.health import Target
from kproxy.errors import HostError, Invalid
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import Namespace

NAMES = ("a", "b", "c", "d", "e", "f")


class World:
    """What fails now, and what the nodes' interfaces were told.

    Attributes:
        broken: nodes whose namespace or uplink is missing, with what is raised.
        refused: Services whose status is refused.
        answers: the addresses that each node answers for.
        announced: addresses that a node has announced, in order.
    """

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.refused: set[str] = set()
        self.answers: dict[str, set[str]] = {}
        self.announced: list[str] = []


class Uplink:
    """Stands in for a node's interface, which only root can open."""

    def __init__(self, world: World, node: str) -> None:
        if node in world.broken:
            raise world.broken[node]
        self.sockets: tuple[socket.socket, ...] = ()
        self._world = world
        self._node = node

    def answer_for(self, addresses: Collection[str]) -> None:
        self._world.answers[self._node] = set(addresses)

    def announce(self, address: str) -> None:
        self._world.announced.append(address)


class Healthy:
    """Every node is."""

    def watch(self, targets: Collection[Target]) -> None:
        """Nobody is asked."""

    def is_healthy(self, target: Target) -> bool:
        return bool(target)


class Refusing(Client):
    """Refuses the status of some Services."""

    world: World

    def patch(
        self, kind: Kind, name: str, patch: Object, namespace: str | None = None, subresource: str = ""
    ) -> Object:
        if name in self.world.refused:
            raise Invalid({"code": 422, "reason": "Invalid", "message": "that status is refused"})
        return super().patch(kind, name, patch, namespace, subresource)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def balancing(api: Api, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Balancer]:
    monkeypatch.setattr(layout, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(layout, "STATE_ROOT", tmp_path / "state")
    place = Layout("one")
    place.make()

    def open_uplink(namespace: Namespace, ifname: str) -> Uplink:
        del ifname
        return Uplink(world, next(node for node in ("node1", "node2") if place.netns(node) == namespace.name))

    monkeypatch.setattr(balancer, "Announcer", open_uplink)
    config = clusterfile.read([])
    config = msgspec.structs.replace(config, load_balancer=LoadBalancerConfig("l2", ("203.0.113.0/28",)))
    for number in (1, 2):
        api.client.create(NODE, {"metadata": {"name": f"node{number}"}})
        address = {"type": "InternalIP", "address": f"192.0.2.{number}"}
        api.client.patch(NODE, f"node{number}", {"status": {"addresses": [address]}}, subresource="status")
    for name in NAMES:
        spec = {"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"port": 80}]}
        api.client.create(SERVICE, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    client = Refusing(api.url)
    client.world = world
    journal = Journal(place.journal, "load-balancer")
    made = Balancer(place, config, client, journal)
    monkeypatch.setattr(made, "_checker", Healthy())
    try:
        yield made
    finally:
        journal.close()
        client.close()


def rounds(balancing: Balancer, api: Api, count: int = 2) -> None:
    for _ in range(count):
        for kind in (NODE, SERVICE):
            balancing._objects[kind] = {name_of(obj): obj for obj in api.client.list(kind).items}
        balancing._note()
        balancing._reconcile_if_noted()


def ingress(api: Api) -> dict[str, str]:
    """The address that each Service has in its status; of those that have one."""
    found = {}
    for obj in api.client.list(SERVICE, "default").items:
        for entry in ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
            found[obj["metadata"]["name"]] = entry["ip"]
    return found


def unobserved(place: Layout) -> set[str]:
    said = record.read(place)
    assert said is not None
    return {one.service.removeprefix("default/") for one in said.services if one.observed == "0"}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_a_refused_status_is_one_services_matter(
    balancing: Balancer, api: Api, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.refused = {"a", "c"}
    rounds(balancing, api)
    assert set(ingress(api)) == set(NAMES) - world.refused
    assert unobserved(Layout("one")) == world.refused
    assert warnings(caplog) == ["default/a: that status is refused", "default/c: that status is refused"]

    world.refused = set()
    rounds(balancing, api, 1)
    assert set(ingress(api)) == set(NAMES)
    assert not unobserved(Layout("one"))


@pytest.mark.parametrize("error", [NetnsError("there is no such namespace"), OSError(19, "No such device")], ids=str)
def test_a_node_that_cannot_speak_is_its_addresses_matter(
    balancing: Balancer, api: Api, world: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    world.broken = {"node1": error}
    rounds(balancing, api)
    served = ingress(api)
    assert served, "none of the addresses is node2's: the table of this test is not what it was"
    assert set(NAMES) - set(served), "none of the addresses is node1's: the table of this test is not what it was"
    assert world.answers == {"node2": set(served.values())}
    assert unobserved(Layout("one")) == set(NAMES) - set(served)
    assert warnings(caplog) == [f"node node1: {error}"]

    world.broken = {}
    world.announced.clear()
    rounds(balancing, api, 1)
    everything = ingress(api)
    assert set(everything) == set(NAMES)
    late = set(everything.values()) - set(served.values())
    assert world.answers == {"node1": late, "node2": set(served.values())}
    assert set(world.announced) == late, "announced when the node is back, and the others not once more"
    assert not unobserved(Layout("one"))


def test_a_router_that_takes_no_rules_is_no_matter_of_those_that_nodes_answer_for(
    balancing: Balancer, api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer, "TOOLS", {})  # whatever this host has
    spec = {"type": "LoadBalancer", "loadBalancerClass": f"{CLASS_PREFIX}{NLB}", "ports": [{"port": 80}]}
    api.client.create(SERVICE, {"metadata": {"name": "far", "namespace": "default"}, "spec": spec})

    def refuse(_: object) -> None:
        raise HostError("nft refused")

    with monkeypatch.context() as failing:
        failing.setattr(balancing, "_pass_on", refuse)
        rounds(balancing, api)
    assert set(ingress(api)) == set(NAMES)
    assert unobserved(Layout("one")) == {"far"}
    assert warnings(caplog) == ["the router: nft refused"]

    monkeypatch.setattr(balancing, "_pass_on", lambda _: None)
    rounds(balancing, api, 1)
    assert set(ingress(api)) == {*NAMES, "far"}
