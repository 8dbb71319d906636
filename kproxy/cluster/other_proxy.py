"""Whether somebody else's proxy works in a node that the cluster file leaves to it (`proxy: {mode: none}`)."""

from __future__ import annotations

from typing import Final

from kproxy.cluster import host
from kproxy.cluster.layout import Layout
from kproxy.errors import HostError

_MARKS: Final = ("KUBE-SERVICES", "table ip kube-proxy", "table ip6 kube-proxy")
"""What kube-proxy leaves in the kernel in its iptables and ipvs modes, and in its nftables mode."""


def is_at_work(layout: Layout, node: str) -> bool:
    """Whether the node's kernel holds what kube-proxy writes in any of its modes.

    Listings that make no tables: the *-save tools, not `iptables -S`.
    """
    looks = [
        [path, "-t", "nat"]
        for variant in host.VARIANTS
        for program in ("iptables-save", "ip6tables-save")
        if (path := host.tool_path(variant, program)) is not None
    ]
    looks.append(["nft", "list", "tables"])
    return any(mark in _shown(layout, node, look) for look in looks for mark in _MARKS)


def _shown(layout: Layout, node: str, command: list[str]) -> str:
    try:
        return host.run_on(layout, node, command)
    except HostError:
        return ""  # a variant or family that this host does not have holds nothing
