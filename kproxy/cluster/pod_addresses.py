"""Which address a new pod gets.

Law: pure but for the memory of what was given last.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from kproxy.cluster.clusterfile import ClusterConfig

FIRST_POD: Final = 2
"""Host number of the first pod of a node; 1 is the node's end of its pods' links."""
_LIMIT: Final = 65536
"""Pods of a node that are thought of, where its podCIDR has room for more (IPv6)."""


class PodAddresses:
    """The addresses of all nodes' pods, given out in turn, so that a dead pod's is not used again at once.

    Args:
        config: the cluster.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._last: dict[str, int] = {}

    def next(self, node: str, taken: Collection[str]) -> tuple[str, ...]:
        """The addresses, one a family, for a new pod on `node`; empty when there are none left.

        Args:
            node: its name.
            taken: the addresses that other pods have. The first call goes on after the highest of them, as if a
                control plane before this one had given them.
        """
        networks = [ipaddress.ip_network(cidr) for cidr in self._config.node(node).pod_cidrs]
        size = min(network.num_addresses for network in networks) - 1  # the last one is IPv4's broadcast
        count = min(size - FIRST_POD, _LIMIT)
        start = self._last.get(node) or _highest(networks[0], taken)
        for step in range(1, count + 1):
            number = FIRST_POD + (start - FIRST_POD + step) % count
            found = tuple(str(network[number]) for network in networks)
            if not any(address in taken for address in found):
                self._last[node] = number
                return found
        return ()


def _highest(network: ipaddress.IPv4Network | ipaddress.IPv6Network, taken: Collection[str]) -> int:
    """The highest host number in use."""
    addresses = (ipaddress.ip_address(text) for text in taken)
    numbers = [int(address) - int(network.network_address) for address in addresses if address in network]
    return max(numbers, default=FIRST_POD - 1)
