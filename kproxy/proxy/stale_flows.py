"""Which UDP flows no longer go where they should.

A UDP flow has no end that conntrack sees: a client that keeps its socket stays with the endpoint of its first packet,
even when that is gone, until its entry is deleted. TCP is never touched: its peers notice by themselves.

Law: pure. Unlike kube-proxy (pkg/proxy/conntrack/cleanup.go), flows to ports without any serving endpoint and to
frontends that are no more are stale too, and a node port is one at the node's own addresses alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from kproxy.proxy.family import split_host_port
from kproxy.proxy.services import PortSpec, ServiceName

P = TypeVar("P", bound=Hashable)

Place = tuple[str, int]
"""Address and port."""

NODE_PORT_ADDRESS = ""
"""Stands in a frontend's place for every address on which node ports answer."""

UdpPorts = tuple[tuple[PortSpec, frozenset[str]], ...]
"""A Service's UDP ports, each with its serving endpoints ("ip:port"), whatever policies, topology and readiness say: a
flow to an endpoint that drains stays."""

Frontends = Mapping[Place, frozenset[Place]]
"""UDP frontends, and the endpoints that may answer for each; none means that nobody may."""

_NOBODY: frozenset[Place] = frozenset()


def frontends(ports: Iterable[tuple[PortSpec, frozenset[str]]]) -> dict[Place, frozenset[Place]]:
    """The frontends of UDP service ports.

    Args:
        ports: each port with its serving endpoints.
    """
    found: dict[Place, frozenset[Place]] = {}
    for spec, serving in ports:
        places = frozenset(map(split_host_port, serving))
        for place in _places(spec):
            # two Services may claim one external IP and port: which of them got a flow is not ours to say
            found[place] = found.get(place, _NOBODY) | places
    return found


def _places(spec: PortSpec) -> Iterator[Place]:
    for address in (spec.cluster_ip, *spec.external_ips, *spec.load_balancer_ips):
        yield address, spec.port
    if spec.node_port:
        yield NODE_PORT_ADDRESS, spec.node_port


def answerers(current: Frontends, gone: Iterable[Place], node_port_addresses: Iterable[str]) -> Frontends:
    """Who may answer at each destination that is, or was, a Service's; flows to all others are none of our business.

    Args:
        current: the frontends there are.
        gone: frontends that were there before.
        node_port_addresses: the node's own addresses on which node ports answer.
    """
    addresses = tuple(node_port_addresses)
    found: dict[Place, frozenset[Place]] = {}
    # what comes later has the last word: what is there over what is gone, a Service's own address over node ports
    for known in (dict.fromkeys(gone, _NOBODY), current):
        for (address, port), serving in known.items():
            if address == NODE_PORT_ADDRESS:
                found.update(((each, port), serving) for each in addresses)
        found.update((place, serving) for place, serving in known.items() if place[0] != NODE_PORT_ADDRESS)
    return found


def is_stale(destination: P, answerer: P, allowed: Mapping[P, frozenset[P]]) -> bool:
    """Whether a UDP flow has to go.

    Args:
        destination: where the client sent its first packet.
        answerer: who answers: the endpoint that it was given, or the destination itself when nobody was.
        allowed: as from `answerers`, with places written as the other two are.
    """
    serving = allowed.get(destination)
    return serving is not None and answerer not in serving


class UdpFrontends:
    """All UDP frontends, kept Service by Service, and which of them have flows that are still to be looked at.

    Law: a change to one Service costs work for its own frontends alone.
    """

    def __init__(self) -> None:
        self._ports: dict[ServiceName, UdpPorts] = {}
        self._owners: dict[Place, frozenset[ServiceName]] = {}
        self._due: set[Place] = set()

    @property
    def due(self) -> frozenset[Place]:
        """Frontends, there or gone, whose flows have to be looked at."""
        return frozenset(self._due)

    def take(self, changed: Mapping[ServiceName, UdpPorts]) -> None:
        """Take in Services whose UDP ports, or the endpoints of these, are different now; one without any is gone."""
        for service, ports in changed.items():
            for place in self._places_of(service):
                self._own(place, self._owners[place] - {service})
            self._ports.pop(service, None)
            if ports:
                self._ports[service] = ports
            for place in self._places_of(service):
                self._own(place, self._owners.get(place, frozenset()) | {service})

    def take_earlier(self, places: Iterable[Place]) -> None:
        """Take in frontends that somebody programmed before; those that are no Service's are gone."""
        self._due.update(place for place in places if place not in self._owners)

    def allowed(self, node_port_addresses: Iterable[str]) -> Frontends:
        """Who may answer at each place that is due.

        Args:
            node_port_addresses: as for `answerers`.
        """
        addresses = tuple(node_port_addresses)
        at_node_ports = {(address, port) for anywhere, port in self._due if not anywhere for address in addresses}
        over_node_ports = {(NODE_PORT_ADDRESS, port) for address, port in self._due if address in addresses}
        places = self._due | at_node_ports | over_node_ports
        owners = {service for place in places for service in self._owners.get(place, ())}
        current = frontends(port for service in owners for port in self._ports[service])
        gone = self._due - self._owners.keys()
        return answerers({place: current[place] for place in places & current.keys()}, gone, addresses)

    def done(self) -> None:
        """All flows at the places that were due are as they should be."""
        self._due.clear()

    def _places_of(self, service: ServiceName) -> set[Place]:
        return {place for spec, _ in self._ports.get(service, ()) for place in _places(spec)}

    def _own(self, place: Place, owners: frozenset[ServiceName]) -> None:
        self._due.add(place)
        if owners:
            self._owners[place] = owners
        else:
            del self._owners[place]
