"""The network of a case: the node with all its addresses, and around it everybody who sends or answers.

outside   external clients, reached through the node's eth0; their default route is the node
sink      the node's default route; owns every address that the flows name and nobody else has
other     the endpoints that are not on the node, behind an overlay whose node address is none of the case's
podN      endpoints and clients on the node, each behind a veth of its own
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from corpus import Case, version_of

from netns.topology import AddressSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec

NODE, OUTSIDE, SINK, OTHER = "node", "outside", "sink", "other"
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}

# The node's own addresses towards others: none is one of a case's, so that masquerading shows.
TOWARDS_PODS = {4: "100.64.0.1", 6: "fd64::1"}
TOWARDS_OTHER = {4: "100.64.1.1", 6: "fd64:1::1"}
TOWARDS_SINK = {4: "100.64.2.1", 6: "fd64:2::1"}
OTHER_END = {4: "100.64.1.2", 6: "fd64:1::2"}
SINK_END = {4: "100.64.2.2", 6: "fd64:2::2"}
LINK_BITS = {4: 30, 6: 64}

# The last address but one of the subnet that the node's first address of the family is in.
ROUTER_HOST = -2


class Listener(NamedTuple):
    """Where somebody answers."""

    place: str
    protocol: str
    address: str
    port: int


@dataclass(frozen=True)
class CaseNetwork:
    """Who is where.

    Attributes:
        pods: address to place, of endpoints and clients on the node.
        others: addresses of the endpoints elsewhere.
    """

    case: Case
    prefix: str
    pods: dict[str, str]
    others: frozenset[str]

    @property
    def places(self) -> tuple[str, ...]:
        return (NODE, OUTSIDE, SINK, OTHER, *self.pods.values())

    def name(self, place: str) -> str:
        """The name of a place's namespace."""
        return f"{self.prefix}-{place}"

    def place_of_client(self, origin: str, source: str) -> str:
        return {"pod": self.pods.get(source, ""), "external": OUTSIDE}.get(origin, NODE)

    def place_of_endpoint(self, address: str) -> str:
        return self.pods.get(address, OTHER)

    def place_beyond(self, address: str) -> str:
        """Where packets to an address go that no rule touches."""
        if address in self.case.local_addresses:
            return NODE
        return self.pods.get(address, OTHER if address in self.others else SINK)

    def node_address_towards(self, address: str) -> str:
        """What an endpoint sees when its client is masqueraded."""
        return (TOWARDS_PODS if address in self.pods else TOWARDS_OTHER)[version_of(address)]

    def listeners(self) -> set[Listener]:
        """Endpoints on all their ports, in the protocols that are used, and whoever owns an address that is sent to."""
        found = set()
        spoken = {flow.protocol for flow in self.case.flows}
        for _, address, ports in _endpoints(self.case):
            place = self.place_of_endpoint(address)
            found |= {Listener(place, protocol, address, port) for protocol, port in ports if protocol in spoken}
        for flow in self.case.flows:
            if flow.expect.verdict != "accept":  # the proxy itself answers
                found.add(Listener(self.place_beyond(flow.address), flow.protocol, flow.address, flow.port))
        return found

    def topology(self) -> Topology:
        nodes = {NODE: Role.NODE, OUTSIDE: Role.CLIENT, SINK: Role.CLIENT, OTHER: Role.CLIENT}
        spaces = tuple(NamespaceSpec(self.name(place), nodes.get(place, Role.POD)) for place in self.places)
        return Topology(
            namespaces=spaces,
            veths=tuple(VethSpec(self._end(NODE, name), self._end(place, "eth0")) for name, place in self._links()),
            addresses=tuple(self._addresses()),
            routes=tuple(self._routes()),
        )

    def _end(self, place: str, ifname: str) -> End:
        return End(self.name(place), ifname)

    def _links(self) -> Iterator[tuple[str, str]]:
        """The node's interfaces and who is behind them."""
        yield from (("eth0", OUTSIDE), ("sink", SINK), ("overlay", OTHER))
        prefix = self.case.config.get("podInterfaceNamePrefix") or "veth"
        for number, place in enumerate(self.pods.values()):
            yield f"{prefix}{number}", place

    def _on(self, place: str, ifname: str, *addresses: str) -> Iterator[AddressSpec]:
        for address in addresses:
            yield AddressSpec(self.name(place), ifname, address)

    def _addresses(self) -> Iterator[AddressSpec]:
        for ifname, addresses in self.case.interfaces.items():
            if ifname != "lo":
                yield from self._on(NODE, ifname, *addresses)
        for version in (4, 6):
            bits = LINK_BITS[version]
            yield from self._on(NODE, "overlay", f"{TOWARDS_OTHER[version]}/{bits}")
            yield from self._on(NODE, "sink", f"{TOWARDS_SINK[version]}/{bits}")
            yield from self._on(OTHER, "eth0", f"{OTHER_END[version]}/{bits}")
            yield from self._on(SINK, "eth0", f"{SINK_END[version]}/{bits}")
            yield from self._on(OUTSIDE, "eth0", str(self._router(version)))
            for ifname, place in self._links():
                if place in self.pods.values():
                    yield from self._on(NODE, ifname, _host(TOWARDS_PODS[version]))
        for address, place in self.pods.items():
            yield from self._on(place, "eth0", _host(address))
        yield from self._on(OTHER, "lo", *map(_host, sorted(self.others)))
        yield from self._on(OUTSIDE, "lo", *map(_host, sorted(self._external())))
        yield from self._on(SINK, "lo", *map(_host, sorted(self._beyond())))

    def _routes(self) -> Iterator[RouteSpec]:
        for version, everything in DEFAULT.items():
            yield RouteSpec(self.name(NODE), everything, via=SINK_END[version], dev="sink")
            yield RouteSpec(self.name(SINK), everything, via=TOWARDS_SINK[version], dev="eth0")
            yield RouteSpec(self.name(OTHER), everything, via=TOWARDS_OTHER[version], dev="eth0")
            yield RouteSpec(self.name(OUTSIDE), everything, via=str(self._eth0(version).ip), dev="eth0")
            for place in self.pods.values():
                gateway = TOWARDS_PODS[version]
                yield RouteSpec(self.name(place), everything, via=gateway, dev="eth0", onlink=True)
        for address in sorted(self._beyond()):
            # Also those that one of the node's subnets holds: there they would be lost without a trace.
            yield RouteSpec(self.name(NODE), _host(address), via=SINK_END[version_of(address)], dev="sink")
        for address in sorted(self._external()):
            via = str(self._router(version_of(address)).ip)
            yield RouteSpec(self.name(NODE), _host(address), via=via, dev="eth0")
        for address in sorted(self.others):
            yield RouteSpec(self.name(NODE), _host(address), via=OTHER_END[version_of(address)], dev="overlay")
        for (ifname, place), address in zip(list(self._links())[3:], self.pods, strict=True):
            assert self.pods[address] == place
            yield RouteSpec(self.name(NODE), _host(address), dev=ifname)

    def _external(self) -> set[str]:
        return {source for flow in self.case.flows if flow.origin == "external" for source in flow.sources}

    def _beyond(self) -> set[str]:
        return {flow.address for flow in self.case.flows if self.place_beyond(flow.address) == SINK}

    def _eth0(self, version: int):
        return next(one for one in map(ip_interface, self.case.interfaces["eth0"]) if one.version == version)

    def _router(self, version: int):
        """The outside's own address on the link to the node."""
        network = self._eth0(version).network
        return ip_interface(f"{network[ROUTER_HOST]}/{network.prefixlen}")


def network_of(case: Case, prefix: str) -> CaseNetwork:
    endpoints = list(_endpoints(case))
    here = {address for node, address, _ in endpoints if node == case.node}
    here |= {source for flow in case.flows if flow.origin == "pod" for source in flow.sources}
    others = {address for _, address, _ in endpoints} - here
    return CaseNetwork(case, prefix, {address: f"pod{n}" for n, address in enumerate(sorted(here))}, frozenset(others))


def _endpoints(case: Case) -> Iterator[tuple[str, str, set[tuple[str, int]]]]:
    """Node (empty: not said), address, and protocols with ports."""
    for step in case.steps:
        for obj in step.objects:
            if obj["kind"] == "EndpointSlice" and obj["addressType"] != "FQDN":
                ports = {(port.get("protocol", "TCP").lower(), port["port"]) for port in obj.get("ports") or ()}
                for one in obj["endpoints"] or ():
                    for address in one["addresses"]:
                        yield one.get("nodeName", ""), address, ports


def _host(address: str) -> str:
    return str(ip_network(address))
