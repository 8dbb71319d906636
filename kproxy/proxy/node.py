"""This node, as its Node object describes it.

Law: pure.
"""

from __future__ import annotations

import msgspec

from kproxy.api.types import Node
from kproxy.proxy.family import Family, canonical_address, canonical_cidr

ZONE_LABEL = "topology.kubernetes.io/zone"
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


class NodeFacts(msgspec.Struct, frozen=True):
    """What the proxy reads of its Node.

    Attributes:
        zone: empty when it has none.
        ips: one address per family, InternalIP before ExternalIP (kube: node helpers, GetNodeHostIPs).
        addresses: all of its addresses.
        pod_cidrs: first pod CIDR per family.
        is_eligible: load balancers may send traffic here (not being deleted, not tainted by the autoscaler).
    """

    zone: str = ""
    ips: dict[Family, str] = {}
    addresses: tuple[str, ...] = ()
    pod_cidrs: dict[Family, str] = {}
    is_eligible: bool = True


def facts(node: Node | None) -> NodeFacts:
    """The facts of a Node; a node that is not known has none and is not eligible."""
    if node is None:
        return NodeFacts(is_eligible=False)
    addresses = [
        canonical_address(entry.address)
        for kind in ("InternalIP", "ExternalIP")
        for entry in node.status.addresses
        if entry.type == kind
    ]
    cidrs = [canonical_cidr(cidr) for cidr in node.spec.pod_cidrs or (node.spec.pod_cidr,)]
    tainted = any(taint.key == AUTOSCALER_TAINT for taint in node.spec.taints)
    return NodeFacts(
        zone=node.metadata.labels.get(ZONE_LABEL, ""),
        ips=_first_of_each_family(addresses),
        addresses=tuple(address for address in addresses if address),
        pod_cidrs=_first_of_each_family(cidrs),
        is_eligible=node.metadata.deletion_timestamp is None and not tainted,
    )


def _first_of_each_family(texts: list[str]) -> dict[Family, str]:
    found: dict[Family, str] = {}
    for text in texts:
        if text:
            found.setdefault(Family.IPV6 if ":" in text else Family.IPV4, text)
    return found
