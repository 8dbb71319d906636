"""What a cluster looks like as network namespaces, links and routes: values computed from a `ClusterConfig`.

    client ── br-outside ── router ── br-nodes ── node ── pod        (both bridges live in LAB-fabric, layer 2 only)

Law: nothing here touches the system, and the same configuration always gives the same names, addresses and MACs.

Nodes reach each other's pods by routes to the node's address (`host-gw`) or through a tunnel (`vxlan`). A tunnel end
carries the node's own address as /32, so that a node speaks to pods with one and the same source in both modes. The
outside has routes to node addresses, to the load balancers' pool, to what `externalRoutes` names, and to nothing else.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Final

from kproxy.cluster.clusterfile import ClusterConfig, NodeConfig
from kproxy.cluster.layout import file_name
from netns.topology import (
    AddressSpec,
    BridgeSpec,
    End,
    ForwardingSpec,
    NamespaceSpec,
    NeighbourSpec,
    Role,
    RouteSpec,
    Topology,
    VethSpec,
    VxlanSpec,
    derived_name,
    merge,
)

UPLINK: Final = "eth0"
"""The first interface of every node, client and pod."""
ROUTER_OUTSIDE: Final = "eth1"
NODES_BRIDGE: Final = "br-nodes"
OUTSIDE_BRIDGE: Final = "br-outside"
TUNNEL: Final = "vxlan0"
VNI: Final = 1
MTU: Final = 1500
TUNNEL_OVERHEAD: Final = {4: 50, 6: 70}
"""Bytes that VXLAN adds, by the family of the underlay: outer Ethernet is not counted, inner Ethernet is."""
ANY: Final = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True)
class PodPlace:
    """Where a pod's namespace goes.

    Attributes:
        namespace: Kubernetes namespace.
        name: the pod's name.
        node: its node's name.
        addresses: one a family, in the cluster's order.
    """

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]


def namespace_name(config: ClusterConfig, member: str) -> str:
    """The network namespace of a node, client, `router` or `fabric`."""
    return f"{config.name}-{member}"


def pod_namespace_name(config: ClusterConfig, namespace: str, name: str) -> str:
    """The network namespace of a pod. Names of nodes have no dots, so the two never meet."""
    return file_name(f"{config.name}-{namespace}.{name}")


def pod_gateway(pod_cidr: str) -> str:
    """The address at the node's end of its pods' links, and the source of a masqueraded hairpin: PODCIDR.1."""
    return str(ipaddress.ip_network(pod_cidr)[1])


def pod_mtu(config: ClusterConfig) -> int:
    """What pods' links carry: the underlay's MTU, less the tunnel's overhead with vxlan."""
    if config.pod_network != "vxlan":
        return MTU
    return MTU - TUNNEL_OVERHEAD[_version(config.node_networks[0])]


def infrastructure(config: ClusterConfig) -> Topology:
    """Everything but the pods: fabric, router, nodes, clients."""
    parts = [_fabric(config), _router(config)]
    parts += [_node(config, node) for node in config.nodes]
    parts += [_client(config, index) for index in range(len(config.clients))]
    return merge(*parts)


def pod_parts(config: ClusterConfig, namespace: str, name: str, node: str) -> Topology:
    """What goes when a pod goes: its namespace and its link."""
    inside = pod_namespace_name(config, namespace, name)
    own = End(inside, UPLINK, _mac(config, inside, UPLINK))
    ifname = pod_port(namespace, name)
    outside = End(namespace_name(config, node), ifname, _mac(config, node, ifname))
    return Topology(
        namespaces=(NamespaceSpec(own.namespace, Role.POD),),
        veths=(VethSpec(own, outside, mtu=pod_mtu(config)),),
        alias=_alias(config),
    )


def pod_port(namespace: str, name: str) -> str:
    """The interface at the node's end of a pod's link."""
    return derived_name("veth", namespace, name)


def pod(config: ClusterConfig, place: PodPlace) -> Topology:
    """One pod behind its node: a routed veth, the pod's default route onlink through PODCIDR.1.

    Both ends know each other for good: the kernel keeps no more than some thousand neighbours that it has to ask for
    (gc_thresh3, one number for all namespaces).
    """
    node = config.node(place.node)
    parts = pod_parts(config, place.namespace, place.name, node.name)
    own, port = parts.veths[0].a, parts.veths[0].b
    inside, outside, ifname = own.namespace, port.namespace, port.ifname
    addresses: list[AddressSpec] = []
    routes: list[RouteSpec] = []
    neighbours: list[NeighbourSpec] = []
    for address, pod_cidr in zip(place.addresses, node.pod_cidrs, strict=True):
        gateway = pod_gateway(pod_cidr)
        addresses += [
            AddressSpec(outside, ifname, _single(gateway)),
            AddressSpec(inside, UPLINK, _single(address)),
        ]
        routes += [
            RouteSpec(outside, _single(address), dev=ifname),
            RouteSpec(inside, ANY[_version(address)], via=gateway, dev=UPLINK, onlink=True),
        ]
        neighbours += [
            NeighbourSpec(outside, ifname, address, own.mac),
            NeighbourSpec(inside, UPLINK, gateway, port.mac),
        ]
    own_parts = Topology(addresses=tuple(addresses), routes=tuple(routes), neighbours=tuple(neighbours))
    return merge(parts, own_parts)


def _alias(config: ClusterConfig) -> str:
    return f"kproxy:{config.name}"


def _fabric(config: ClusterConfig) -> Topology:
    fabric = namespace_name(config, "fabric")
    to_nodes = (_port("n", "router"), *(_port("n", node.name) for node in config.nodes))
    to_outside = (_port("o", "router"), *(_port("o", client.name) for client in config.clients))
    return Topology(
        namespaces=(NamespaceSpec(fabric, Role.FABRIC),),
        bridges=(
            BridgeSpec(fabric, NODES_BRIDGE, to_nodes, mtu=MTU),
            BridgeSpec(fabric, OUTSIDE_BRIDGE, to_outside, mtu=MTU),
        ),
        alias=_alias(config),
    )


def _port(side: str, member: str) -> str:
    """The fabric's end of a cable: readable where the name is short enough."""
    readable = f"{side}-{member}"
    return readable if len(readable) <= 15 else derived_name(f"{side}-", member)


def _cable(config: ClusterConfig, member: str, ifname: str, side: str) -> VethSpec:
    own = End(namespace_name(config, member), ifname, _mac(config, member, ifname))
    return VethSpec(own, End(namespace_name(config, "fabric"), _port(side, member)), mtu=MTU)


def _router(config: ClusterConfig) -> Topology:
    name = namespace_name(config, "router")
    addresses = [
        AddressSpec(name, ifname, _in_network(address, network))
        for ifname, pairs in (
            (UPLINK, zip(config.router_addresses, config.node_networks, strict=True)),
            (ROUTER_OUTSIDE, zip(config.gateway_addresses, config.outside_networks, strict=True)),
        )
        for address, network in pairs
    ]
    routes = [
        RouteSpec(name, route.to, via=_node_address(config, route.via, route.to), dev=UPLINK)
        for route in config.external_routes
    ]
    # The pool lies on the nodes' network: the router asks there who has an address of it (ARP, NDP).
    routes += [RouteSpec(name, network, dev=UPLINK) for network in config.load_balancer.cidrs]
    return Topology(
        namespaces=(NamespaceSpec(name, Role.ROUTER),),
        veths=(_cable(config, "router", UPLINK, "n"), _cable(config, "router", ROUTER_OUTSIDE, "o")),
        addresses=tuple(addresses),
        routes=tuple(routes),
        alias=_alias(config),
    )


def _client(config: ClusterConfig, index: int) -> Topology:
    client = config.clients[index]
    name = namespace_name(config, client.name)
    addresses = [
        AddressSpec(name, UPLINK, _in_network(address, network))
        for address, network in zip(client.addresses, config.outside_networks, strict=True)
    ]
    routes = [
        RouteSpec(name, to, via=gateway, dev=UPLINK)
        for to in client_routes(config)
        for gateway in config.gateway_addresses
        if _version(gateway) == _version(to)
    ]
    return Topology(
        namespaces=(NamespaceSpec(name, Role.CLIENT),),
        veths=(_cable(config, client.name, UPLINK, "o"),),
        addresses=tuple(addresses),
        routes=tuple(routes),
        alias=_alias(config),
    )


def client_routes(config: ClusterConfig) -> tuple[str, ...]:
    """The networks beyond its own that a client outside has routes to."""
    routed = (route.to for route in config.external_routes)
    return (*config.node_networks, *routed, *config.load_balancer.cidrs)


def _node(config: ClusterConfig, node: NodeConfig) -> Topology:
    name = namespace_name(config, node.name)
    addresses = [
        AddressSpec(name, UPLINK, _in_network(address, network))
        for address, network in zip(node.addresses, config.node_networks, strict=True)
    ]
    routes = [RouteSpec(name, ANY[_version(router)], via=router, dev=UPLINK) for router in config.router_addresses]
    base = Topology(
        namespaces=(NamespaceSpec(name, Role.NODE),),
        veths=(_cable(config, node.name, UPLINK, "n"),),
        addresses=tuple(addresses),
        routes=tuple(routes),
        alias=_alias(config),
    )
    reach = _tunnel(config, node) if config.pod_network == "vxlan" else _direct_routes(config, node)
    return merge(base, reach)


def _others(config: ClusterConfig, node: NodeConfig) -> list[NodeConfig]:
    return [other for other in config.nodes if other.name != node.name]


def _direct_routes(config: ClusterConfig, node: NodeConfig) -> Topology:
    name = namespace_name(config, node.name)
    return Topology(
        routes=tuple(
            RouteSpec(name, pod_cidr, via=address, dev=UPLINK)
            for other in _others(config, node)
            for pod_cidr, address in zip(other.pod_cidrs, other.addresses, strict=True)
        )
    )


def _tunnel(config: ClusterConfig, node: NodeConfig) -> Topology:
    """One tunnel end with a permanent neighbour a node: nothing is learnt, nothing is flooded."""
    name = namespace_name(config, node.name)
    neighbours: list[NeighbourSpec] = []
    forwarding: list[ForwardingSpec] = []
    routes: list[RouteSpec] = []
    for other in _others(config, node):
        mac = _mac(config, other.name, TUNNEL)
        forwarding.append(ForwardingSpec(name, TUNNEL, mac, other.addresses[0]))
        for pod_cidr in other.pod_cidrs:
            # As flannel does: the next hop is the network's own address, which no pod has.
            next_hop = str(ipaddress.ip_network(pod_cidr).network_address)
            neighbours.append(NeighbourSpec(name, TUNNEL, next_hop, mac))
            routes.append(RouteSpec(name, pod_cidr, via=next_hop, dev=TUNNEL, onlink=True))
    tunnel = VxlanSpec(
        name, TUNNEL, VNI, node.addresses[0], UPLINK, mtu=pod_mtu(config), mac=_mac(config, node.name, TUNNEL)
    )
    return Topology(
        vxlans=(tunnel,),
        addresses=tuple(AddressSpec(name, TUNNEL, _single(address)) for address in node.addresses),
        routes=tuple(routes),
        neighbours=tuple(neighbours),
        forwarding=tuple(forwarding),
    )


def _mac(config: ClusterConfig, member: str, ifname: str) -> str:
    """A locally administered MAC that is always the same for the same interface of the same lab."""
    digest = hashlib.sha256("\0".join((config.name, member, ifname)).encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x0A, *digest[:5]))


def _node_address(config: ClusterConfig, node: str, like: str) -> str:
    """The node's address of the family of `like`."""
    return next(address for address in config.node(node).addresses if _version(address) == _version(like))


def _in_network(address: str, network: str) -> str:
    return f"{address}/{ipaddress.ip_network(network).prefixlen}"


def _single(address: str) -> str:
    return f"{address}/{ipaddress.ip_address(address).max_prefixlen}"


def _version(address_or_network: str) -> int:
    return 6 if ":" in address_or_network else 4
