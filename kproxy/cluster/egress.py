"""`CNI-EGRESS`: what pods send to the outside leaves with their node's address, as flannel and kindnet do it.

The chain belongs to the lab, not to the proxy: it is there in every node, whoever is the proxy. Packets between pods,
to nodes, and from anything but pods are left alone.
"""

from __future__ import annotations

from typing import Final

from kproxy.cluster import host
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.layout import Layout
from kproxy.errors import HostError

CHAIN: Final = "CNI-EGRESS"
JUMP: Final = f'-A POSTROUTING -m comment --comment "masquerade traffic from pods to the outside" -j {CHAIN}'


def rules(config: ClusterConfig, version: int) -> str:
    """The chain as iptables-restore takes it; empty when the cluster does not have the family.

    Args:
        config: the cluster.
        version: 4 or 6.
    """
    pods = [network for network in config.pod_networks if _version(network) == version]
    if not pods:
        return ""
    nodes = [address for node in config.nodes for address in node.addresses if _version(address) == version]
    lines = ["*nat", f":{CHAIN} - [0:0]"]
    lines += [f"-A {CHAIN} ! -s {network} -j RETURN" for network in pods]
    lines += [f"-A {CHAIN} -d {destination} -j RETURN" for destination in (*pods, *nodes)]
    lines += [f"-A {CHAIN} -j MASQUERADE", "COMMIT", ""]
    return "\n".join(lines)


def write(layout: Layout, config: ClusterConfig, node: str, variant: str) -> None:
    """Ensures that the chain is in the node's kernel, and that packets come to it.

    Raises:
        HostError: the node's kernel does not take it from this variant.
    """
    for version, family in ((4, "iptables"), (6, "ip6tables")):
        text = rules(config, version)
        if not text:
            continue
        if f"-j {CHAIN}" not in host.run_on(layout, node, [_tool(variant, f"{family}-save"), "-t", "nat"]):
            text = text.replace("COMMIT", f"{JUMP}\nCOMMIT")
        host.run_on(layout, node, [_tool(variant, f"{family}-restore"), "--noflush", "--wait"], text)


def usable_variant(layout: Layout, config: ClusterConfig) -> str:
    """The iptables variant of this lab, tried on its first node: legacy if the kernel has it, else nft.

    Raises:
        HostError: the variant that was asked for does not work here, or none does.
    """
    candidates = host.VARIANTS if config.proxy.variant == "auto" else (config.proxy.variant,)
    failures = []
    for variant in candidates:
        try:
            write(layout, config, config.nodes[0].name, variant)
        except HostError as error:
            failures.append(f"{variant}: {error}")
        else:
            return variant
    raise HostError("no iptables variant works here", stderr="\n".join(failures))


def _tool(variant: str, program: str) -> str:
    path = host.tool_path(variant, program)
    if path is None:
        raise HostError(f"{program} of the variant {variant} is not installed", command=[program])
    return path


def _version(address_or_network: str) -> int:
    return 6 if ":" in address_or_network else 4
