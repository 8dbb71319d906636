"""Which nodes serve which claim, and who answers for its addresses.

Law: pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kproxy.api.types import Node, Object, view
from kproxy.cluster.controllers.node_proxy import HEALTH_PORT
from kproxy.cluster.load_balancers.claims import L2, Claim, version_of
from kproxy.cluster.load_balancers.health import Target

EXCLUDED_LABEL: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
HEALTH_PAGE: Final = "/healthz"


@dataclass(frozen=True)
class Member:
    """A node as a balancer sees it; one address a family."""

    name: str
    addresses: tuple[str, ...]

    def address(self, version: int) -> str:
        """Its address of that family; empty when it has none."""
        return next((address for address in self.addresses if version_of(address) == version), "")


@dataclass(frozen=True)
class Balance:
    """A claim that has addresses, and the nodes that may serve it now.

    Attributes:
        announcers: the node that answers for each address, `l2` only; an address that nobody may serve is missing.
    """

    claim: Claim
    addresses: tuple[str, ...]
    members: tuple[Member, ...]
    announcers: tuple[tuple[str, str], ...] = ()


def member_of(obj: Object) -> Member | None:
    """A Node as a balancer sees it; None for one that balancers are to leave out (KEP-1143)."""
    node = view(obj, Node)
    if EXCLUDED_LABEL in node.metadata.labels:
        return None
    addresses = tuple(entry.address for entry in node.status.addresses if entry.type == "InternalIP")
    return Member(node.metadata.name, addresses)


def target_of(claim: Claim, member: Member) -> Target | None:
    """What tells whether a node may serve a claim; None when the node has no address of the claim's family.

    With externalTrafficPolicy Local the health check node port. Else `l2` asks the node's proxy, because that is who
    takes the packets in, and the others the node port that they would send to.
    """
    address = next(filter(None, (member.address(version) for version in claim.versions)), "")
    if not address:
        return None
    if claim.is_local:
        return Target(address, claim.health_check_port, HEALTH_PAGE)
    node_port = next((port.node_port for port in claim.ports if port.protocol == "TCP" and port.node_port), 0)
    if claim.kind == L2 or not node_port:
        return Target(address, HEALTH_PORT, HEALTH_PAGE)
    return Target(address, node_port)


def balance(
    claim: Claim, addresses: Sequence[str], members: Iterable[Member], is_healthy: Callable[[Target], bool | None]
) -> Balance:
    """Who serves a claim now."""
    able = tuple(
        member for member in members if (target := target_of(claim, member)) is not None and is_healthy(target)
    )
    announcers: list[tuple[str, str]] = []
    if claim.kind == L2:
        for address in addresses:
            order = preference(address, [member.name for member in able if member.address(version_of(address))])
            announcers += [(address, name) for name in order[:1]]
    return Balance(claim, tuple(addresses), able, tuple(announcers))


def preference(address: str, names: Iterable[str]) -> list[str]:
    """The nodes in the order in which they take an address over, the same for all that know the names.

    It is MetalLB's (layer2_controller.go, ShouldAnnounce): addresses spread over the nodes, and need no memory.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{name}#{address}".encode()).digest())
