"""Which chains of mode nftables a frontend's packets enter on a node, told by the kernel's own maps.

The rules of that mode have no counters: each would cost every packet. So this says where the maps lead, not which of a
chain's rules a packet matched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kproxy.errors import HostError
from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import address_key, node_port_key
from kproxy.proxy.backends.nftables.kernel import KernelTable
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NETLINK_NETFILTER, Netlink
from netns.errors import NetnsError
from netns.namespace import Namespace, run_in

BY_ADDRESS = (names.FIREWALL_IPS, names.SERVICE_IPS, names.NO_ENDPOINT_SERVICES)
BY_NODE_PORT = (names.SERVICE_NODE_PORTS, names.NO_ENDPOINT_NODE_PORTS)
"""The maps in the order in which a packet meets them."""


def chains_of(node: Path, version: int, address: str, protocol: str, port: int) -> tuple[str, ...]:
    """The chains that the maps of a node name for a frontend; ``drop`` where they name that.

    Args:
        node: its network namespace.
        version: IP version of the frontend.
        address: the frontend's; one of the node's own for a node port.
        protocol: TCP, UDP or SCTP.
        port: the frontend's.

    Raises:
        HostError: the maps could not be read.
    """
    family = Family.IPV4 if version == 4 else Family.IPV6

    def look() -> tuple[str, ...]:
        with Netlink(NETLINK_NETFILTER) as netlink:
            table = KernelTable(netlink, family)
            by_address = _found(table, BY_ADDRESS, address_key(address, protocol, port))
            return by_address or _found(table, BY_NODE_PORT, node_port_key(protocol, port))

    try:
        return run_in(Namespace(node.name, node), look)
    except (OSError, NetnsError) as error:
        raise HostError(f"cannot read the maps of {node.name}: {error}") from error


def _found(table: KernelTable, maps: tuple[str, ...], key: bytes) -> tuple[str, ...]:
    found: Mapping[str, str] = {name: verdict for name in maps if (verdict := table.verdict(name, key))}
    return tuple(dict.fromkeys(found.values()))
