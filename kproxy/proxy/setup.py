"""What a proxier of one family works with, worked out from the configuration, the Node and the host.

Law: pure; what the host has is an argument, so that ``kproxy render`` gets the same answers without one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kproxy.api.types import ServiceCIDR
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.backends.nftables import layout as nftables
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.detection import detector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family, canonical_address, canonical_cidr, contains
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.plan import Circumstances, NodePortScope

LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
UNSPECIFIED = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


class HostFeatures(msgspec.Struct, frozen=True):
    """What the host's kernel and tools can do, as far as rules depend on it.

    Attributes:
        counters: nfacct counters that exist.
        has_random_fully: iptables knows MASQUERADE --random-fully.
        is_liberal: conntrack was told to take TCP packets out of window for valid (nf_conntrack_tcp_be_liberal).
    """

    counters: frozenset[str] = frozenset()
    has_random_fully: bool = True
    is_liberal: bool = False


def node_ip(config: ProxyConfig, node: NodeFacts, family: Family) -> str:
    """The node's address: --bind-address if it says one of this family, else the Node's, else loopback."""
    bound = canonical_address(config.bind_address)
    if bound not in UNSPECIFIED and family.has(bound):
        return bound
    return node.ips.get(family, LOOPBACK[family])


def has_localhost_node_ports(config: ProxyConfig, node: NodeFacts, family: Family) -> bool:
    """Whether node ports answer on 127.0.0.1: never in mode nftables, nor in IPv6, where the kernel cannot route it."""
    if family is Family.IPV6 or config.is_nftables or not config.iptables_localhost_nodeports:
        return False
    cidrs = config.node_port_cidrs(family, node_ip(config, node, family))
    return any(contains(cidr, LOOPBACK[family]) for cidr in cidrs)


def iptables_settings(config: ProxyConfig, node: NodeFacts, family: Family, host: HostFeatures) -> Settings:
    """What rules of this family depend on beside plans."""
    return Settings(
        family=family,
        mark=1 << config.iptables_masquerade_bit,
        detector=detector(config, family, node.pod_cidrs.get(family, "")),
        has_localhost_node_ports=has_localhost_node_ports(config, node, family),
        drops_invalid=not (host.is_liberal or config.conntrack_tcp_be_liberal),
        counters=host.counters,
        has_random_fully=host.has_random_fully,
    )


def nftables_settings(config: ProxyConfig, node: NodeFacts, family: Family) -> nftables.Settings:
    """What the nftables table of this family depends on beside plans."""
    return nftables.Settings(
        family=family,
        mark=1 << config.nftables_masquerade_bit,
        detector=detector(config, family, node.pod_cidrs.get(family, "")),
    )


def circumstances(config: ProxyConfig, name: str, node: NodeFacts, family: Family) -> Circumstances:
    """What plans of this family depend on beside Services."""
    return Circumstances(
        node=NodeIdentity(name, node.zone),
        node_ips=(node_ip(config, node, family),),
        has_detector=detector(config, family, node.pod_cidrs.get(family, "")) is not None,
        masquerade_all=config.masquerade_all,
    )


def service_cidrs(objects: Iterable[ServiceCIDR], family: Family) -> tuple[str, ...]:
    """Where cluster IPs of a family are taken from: all ServiceCIDRs together, canonical, each once, sorted."""
    known = (canonical_cidr(cidr) for each in objects for cidr in each.spec.cidrs)
    return tuple(sorted({cidr for cidr in known if cidr and family.has(cidr)}))


def node_port_scope(
    config: ProxyConfig, node: NodeFacts, family: Family, local_addresses: Iterable[str]
) -> NodePortScope:
    """On which addresses node ports answer now.

    Args:
        config: --nodeport-addresses and --iptables-localhost-nodeports.
        node: this node.
        family: the proxier's.
        local_addresses: the host's own addresses, canonical, loopback included.
    """
    uses_loopback = has_localhost_node_ports(config, node, family)
    cidrs = config.node_port_cidrs(family, node_ip(config, node, family))
    if family.everything in cidrs:
        return NodePortScope(None, uses_loopback)
    chosen = {
        address
        for address in local_addresses
        if family.has(address)
        and any(contains(cidr, address) for cidr in cidrs)
        and (uses_loopback or not is_loopback(address))
    }
    return NodePortScope(tuple(sorted(chosen)), uses_loopback)


def health_check_addresses(
    config: ProxyConfig, node: NodeFacts, family: Family, local_addresses: Iterable[str]
) -> tuple[str, ...]:
    """Where health check node ports listen: on the addresses that --nodeport-addresses chooses, else on all.

    Args:
        config: --nodeport-addresses.
        node: this node.
        family: the proxier's.
        local_addresses: the host's own addresses, canonical, loopback included.
    """
    cidrs = config.node_port_cidrs(family, node_ip(config, node, family))
    if family.everything in cidrs:
        return ("::" if family is Family.IPV6 else "0.0.0.0",)  # noqa: S104 - a load balancer has to reach it
    own = (address for address in local_addresses if family.has(address))
    return tuple(sorted(address for address in own if any(contains(cidr, address) for cidr in cidrs)))


def is_loopback(address: str) -> bool:
    """Whether a canonical address is this very host's alone."""
    return address == "::1" or address.startswith("127.")
