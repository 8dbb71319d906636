"""Which cluster addresses and node ports are handed out next.

Law: nothing here reads or writes anything; the same answers and the same chances give the same choice. A band at the
lower end of each range is left to people who choose for themselves, as far as there is room elsewhere (KEP-3070,
KEP-3668).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class RangeFull(Exception):
    """Every value of the range is taken."""


@dataclass(frozen=True)
class Range:
    """Numbers that are handed out, with a band at their lower end for those who choose themselves.

    Attributes:
        first: the lowest that may be handed out.
        last: the highest.
        band: how many of the lowest are left alone until all others are taken.
    """

    first: int
    last: int
    band: int

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def pick(self, is_taken: Callable[[int], bool], random_below: Callable[[int], int]) -> int:
        """A number that is not taken.

        Scans the upper band from a random start, around its end, and then the lower band (Kubernetes:
        ipallocator, allocateFromRange; portallocator).

        Args:
            is_taken: whether a number is in use.
            random_below: a random number from 0 to its argument - 1.

        Raises:
            RangeFull: every one is taken.
        """
        dynamic = self.first + self.band
        for low, high in ((dynamic, self.last), (self.first, dynamic - 1)):
            size = high - low + 1
            if size <= 0:
                continue
            start = random_below(size)
            for step in range(size):
                number = low + (start + step) % size
                if not is_taken(number):
                    return number
        raise RangeFull("range is full")


def port_range(low: int, high: int) -> Range:
    """The node ports from ``low`` to ``high``, both included (Kubernetes: portallocator, calculateRangeOffset)."""
    size = high - low + 1
    return Range(low, high, min(max(16, size // 32), 128) if size > 16 else 0)


def address_range(network: Network) -> Range:
    """The usable addresses of a service CIDR, as numbers.

    IPv4 leaves out the network and the broadcast address, IPv6 the first (Kubernetes: ipallocator/cidrallocator).
    """
    size = network.num_addresses
    last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
    return Range(int(network.network_address) + 1, last, min(max(16, size // 16), 256) if size > 16 else 0)


def address_of(number: int, family: str) -> str:
    """The address that a number of ``address_range`` stands for; family is IPv4 or IPv6."""
    return str(IPv4Address(number) if family == "IPv4" else IPv6Address(number))


def family_of(address: Address | Network) -> str:
    """IPv4 or IPv6."""
    return f"IPv{address.version}"


def parse_network(text: str) -> Network:
    """A CIDR whose host bits are zero.

    Raises:
        ValueError: it is none.
    """
    return ipaddress.ip_network(text)
