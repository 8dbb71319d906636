"""Which UDP flows no longer go where they should.

A UDP flow has no end that conntrack sees: a client that keeps its socket stays with the endpoint of its first packet,
even when that is gone, until its entry is deleted. TCP is never touched: its peers notice by themselves.

Law: pure. Unlike kube-proxy (pkg/proxy/conntrack/cleanup.go), flows to ports without any serving endpoint and to
frontends that are no more are stale too, and a node port is one at the node's own addresses alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from kproxy.proxy.family import split_host_port
from kproxy.proxy.services import PortSpec

P = TypeVar("P", bound=Hashable)

Place = tuple[str, int]
"""Address and port."""

NODE_PORT_ADDRESS = ""
"""Stands in a frontend's place for every address on which node ports answer."""

Frontends = Mapping[Place, frozenset[Place]]
"""UDP frontends, and the endpoints that may answer for each; none means that nobody may."""

_NOBODY: frozenset[Place] = frozenset()


def frontends(ports: Iterable[tuple[PortSpec, frozenset[str]]]) -> dict[Place, frozenset[Place]]:
    """The frontends of UDP service ports.

    Args:
        ports: each port with its serving endpoints ("ip:port"), whatever policies, topology and readiness say: a flow
            to an endpoint that drains stays.
    """
    found: dict[Place, frozenset[Place]] = {}
    for spec, serving in ports:
        places = frozenset(map(split_host_port, serving))
        own = [(address, spec.port) for address in (spec.cluster_ip, *spec.external_ips, *spec.load_balancer_ips)]
        at_node = [(NODE_PORT_ADDRESS, spec.node_port)] if spec.node_port else []
        for place in (*own, *at_node):
            # two Services may claim one external IP and port: which of them got a flow is not ours to say
            found[place] = found.get(place, _NOBODY) | places
    return found


def answerers(current: Frontends, gone: Iterable[Place], node_port_addresses: Iterable[str]) -> Frontends:
    """Who may answer at each destination that is, or was, a Service's; flows to all others are none of our business.

    Args:
        current: the frontends there are.
        gone: frontends that were there before.
        node_port_addresses: the node's own addresses on which node ports answer.
    """
    addresses = tuple(node_port_addresses)
    known = {**dict.fromkeys(gone, _NOBODY), **current}
    own = {place: serving for place, serving in known.items() if place[0] != NODE_PORT_ADDRESS}
    at_node_ports = {
        (address, port): serving
        for (anywhere, port), serving in known.items()
        if anywhere == NODE_PORT_ADDRESS
        for address in addresses
    }
    return {**at_node_ports, **own}


def is_stale(destination: P, answerer: P, allowed: Mapping[P, frozenset[P]]) -> bool:
    """Whether a UDP flow has to go.

    Args:
        destination: where the client sent its first packet.
        answerer: who answers: the endpoint that it was given, or the destination itself when nobody was.
        allowed: as from `answerers`, with places written as the other two are.
    """
    serving = allowed.get(destination)
    return serving is not None and answerer not in serving
