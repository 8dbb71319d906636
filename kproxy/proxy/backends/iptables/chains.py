"""Names of chains (kube-proxy: pkg/proxy/iptables/proxier.go).

Law: a per-service chain's name is a prefix and the first 16 characters of the base32 of a SHA-256; with the longest
prefix that makes 25 characters, where netfilter allows 28.
"""

from __future__ import annotations

from base64 import b32encode
from functools import lru_cache
from hashlib import sha256

from kproxy.proxy.plan import EndpointSet
from kproxy.proxy.services import ServicePortName

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBELET_FIREWALL = "KUBE-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"

FILTER_CHAINS = (SERVICES, EXTERNAL_SERVICES, FORWARD, NODE_PORTS, PROXY_FIREWALL)
"""Rewritten at every sync, in this order."""
NAT_CHAINS = (SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ)
"""Rewritten at every sync, in this order."""

CLUSTER_PREFIX = "KUBE-SVC-"
LOCAL_PREFIX = "KUBE-SVL-"
EXTERNAL_PREFIX = "KUBE-EXT-"
FIREWALL_PREFIX = "KUBE-FW-"
ENDPOINT_PREFIX = "KUBE-SEP-"
OWN_PREFIXES = (CLUSTER_PREFIX, LOCAL_PREFIX, ENDPOINT_PREFIX, FIREWALL_PREFIX, EXTERNAL_PREFIX)
"""A nat chain that starts so is a service's or an endpoint's, and goes when that is gone."""

_SET_PREFIX = {EndpointSet.CLUSTER: CLUSTER_PREFIX, EndpointSet.LOCAL: LOCAL_PREFIX}


def _digest(text: str) -> str:
    # ten bytes are sixteen characters; encoding all of them would take three times as long
    return b32encode(sha256(text.encode()).digest()[:10]).decode()


@lru_cache(maxsize=65536)
def _service_digest(name: ServicePortName) -> str:
    return _digest(f"{name}{name.protocol.lower()}")


def endpoint_set(name: ServicePortName, which: EndpointSet) -> str:
    """Balances over the endpoints of a set."""
    return _SET_PREFIX[which] + _service_digest(name)


def external(name: ServicePortName) -> str:
    """Where traffic to anything but the cluster IP enters."""
    return EXTERNAL_PREFIX + _service_digest(name)


def firewall(name: ServicePortName) -> str:
    """Holds loadBalancerSourceRanges."""
    return FIREWALL_PREFIX + _service_digest(name)


def endpoint(name: ServicePortName, address: str) -> str:
    """One endpoint of one service port; ``address`` is "ip:port", IPv6 in brackets."""
    return ENDPOINT_PREFIX + _digest(f"{name}{name.protocol.lower()}{address}")
