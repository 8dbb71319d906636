"""What the flags of a node's proxy come to, as far as the packets of Services show it.

Law: pure, and the lab's only reading of these flags; the proxy itself reads them in kproxy.proxy, which nothing here
knows of. Names and defaults are kube-proxy's (cmd/kube-proxy/app/options.go).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from kproxy.api.formats import without_leading_zeros
from kproxy.cluster.status import ProxySettings

PRIMARY: Final = "primary"
IPTABLES: Final = "iptables"
NFTABLES: Final = "nftables"
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")
_LOOPBACK: Final = ip_address("127.0.0.1")


def effective(flags: Mapping[str, str], addresses: Sequence[str]) -> ProxySettings:
    """The settings that a proxy works with.

    Args:
        flags: all flags of its command line, without the dashes; sound ones.
        addresses: its node's, one a family.
    """
    node_port_addresses = _node_port_addresses(flags, addresses)
    mode = flags.get("proxy-mode", IPTABLES)
    return ProxySettings(
        mode=mode,
        detect_local_mode=flags.get("detect-local-mode", "ClusterCIDR"),
        cluster_cidrs=_networks(flags.get("cluster-cidr", "")),
        pod_bridge_interface=flags.get("pod-bridge-interface", ""),
        pod_interface_name_prefix=flags.get("pod-interface-name-prefix", ""),
        masquerade_all=flags.get("masquerade-all", "false") in _TRUE,
        node_port_addresses=node_port_addresses,
        localhost_node_ports=mode == IPTABLES
        and flags.get("iptables-localhost-nodeports", "true") in _TRUE
        and _has_loopback(node_port_addresses),
    )


def _node_port_addresses(flags: Mapping[str, str], addresses: Sequence[str]) -> tuple[str, ...]:
    given = _words(flags.get("nodeport-addresses", ""))
    if given != [PRIMARY] and (given or flags.get("proxy-mode") != NFTABLES):
        return _networks(",".join(given))
    bound = flags.get("bind-address", "")
    own = {ip_address(address).version: ip_address(address) for address in addresses}
    if bound and not ip_address(without_leading_zeros(bound)).is_unspecified:
        stated = ip_address(without_leading_zeros(bound))
        own[stated.version] = stated
    return tuple(str(ip_network(address)) for address in own.values())


def _has_loopback(cidrs: Sequence[str]) -> bool:
    networks = [network for network in map(ip_network, cidrs) if network.version == _LOOPBACK.version]
    return not networks or any(_LOOPBACK in network for network in networks)


def _networks(text: str) -> tuple[str, ...]:
    return tuple(_network(word) for word in _words(text))


def _network(text: str) -> str:
    address, slash, length = text.partition("/")
    return str(ip_network(f"{without_leading_zeros(address)}{slash}{length}", strict=False))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
