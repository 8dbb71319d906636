"""Which Service gets which addresses of the pool.

Law: pure. Who has an address that it may have keeps it; a requested address is given to nobody else meanwhile; of two
that want the same one the older Service gets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from kproxy.cluster.load_balancers.claims import Claim, Key, version_of

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Share:
    """What one claim gets.

    Attributes:
        addresses: one a family, in the claim's order; empty when it gets none.
        reason: why it gets none.
    """

    addresses: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class _Pool:
    networks: tuple[Network, ...]
    takers: dict[str, list[Claim]] = field(default_factory=dict)

    def take(self, claim: Claim, address: str) -> None:
        self.takers.setdefault(address, []).append(claim)

    def refusal(self, claim: Claim, address: str) -> str:
        """Why the claim cannot have the address; empty when it can."""
        if not any(_holds(network, address) for network in self.networks):
            networks = ", ".join(str(network) for network in self.networks) or "empty"
            return f"{address} is not in the pool ({networks})"
        for other in self.takers.get(address, ()):
            if problem := _conflict(claim, other):
                return f"{address} belongs to {other.text}: {problem}"
        return ""

    def free(self, claim: Claim, version: int) -> str | None:
        """The first address of the family that it can have; None when there is none."""
        hosts = (address for network in self.networks if network.version == version for address in _hosts(network))
        return next((address for address in hosts if not self.refusal(claim, address)), None)


def assign(claims: Sequence[Claim], cidrs: Sequence[str]) -> dict[Key, Share]:
    """What each claim gets.

    Args:
        claims: oldest first.
        cidrs: the pool, one network a family.
    """
    pool = _Pool(tuple(ip_network(cidr) for cidr in cidrs))
    shares = {claim.key: Share(reason="; ".join(claim.mistakes)) for claim in claims if claim.mistakes}
    sound = [claim for claim in claims if not claim.mistakes]
    for claim in filter(_keeps, sound):
        if (share := _share(pool, claim, claim.held)).addresses:
            shares[claim.key] = share
    for claim in sorted(sound, key=lambda claim: not claim.requested):
        if claim.key not in shares:
            shares[claim.key] = _share(pool, claim, claim.requested)
    return shares


def _keeps(claim: Claim) -> bool:
    """Whether it has what it asks for already: one address a family, and the requested ones."""
    versions = [version_of(address) for address in claim.held]
    return sorted(versions) == sorted(claim.versions) and set(claim.requested) <= set(claim.held)


def _share(pool: _Pool, claim: Claim, wanted: Sequence[str]) -> Share:
    chosen: list[str] = []
    for version in claim.versions:
        address = next((text for text in wanted if version_of(text) == version), None)
        if address is not None and (problem := pool.refusal(claim, address)):
            return Share(reason=problem)
        if address is None:
            address = pool.free(claim, version)
        if address is None:
            return Share(reason=f"no IPv{version} address is left in the pool")
        chosen.append(address)
    for address in chosen:
        pool.take(claim, address)
    return Share(tuple(chosen))


def _conflict(one: Claim, other: Claim) -> str:
    """Why two Services cannot share an address; empty when they can (MetalLB: allocator.go, sharing keys)."""
    if not one.sharing_key or one.sharing_key != other.sharing_key:
        return "they have no sharing key in common"
    if one.kind != other.kind:
        return f"it is served by {other.kind}"
    common = {(port.protocol, port.port) for port in one.ports} & {(port.protocol, port.port) for port in other.ports}
    if common:
        protocol, port = sorted(common)[0]
        return f"both have port {port}/{protocol}"
    if (one.is_local, one.sharing_scope) != (other.is_local, other.sharing_scope):
        return "their packets may not go to the same nodes"
    return ""


def _holds(network: Network, address: str) -> bool:
    parsed = ip_address(address)
    return parsed.version == network.version and parsed in network


def _hosts(network: Network) -> Iterator[str]:
    """Every address but the network's own and, of IPv4, the broadcast address."""
    last = network.num_addresses - (1 if network.version == 4 else 0)
    return (str(network[index]) for index in range(1, last))
