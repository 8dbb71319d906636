"""How pods are told from others on this node (kube-proxy: pkg/proxy/util/localdetector.go).

Law: pure.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family


class DetectBy(Enum):
    """What a packet is looked at for."""

    SOURCE = "source address"
    INTERFACE = "interface it came in by"
    INTERFACE_PREFIX = "how the name of that interface begins"


class Detector(msgspec.Struct, frozen=True):
    """Packets from ``value`` (a CIDR, an interface, the beginning of interfaces' names) come from local pods."""

    by: DetectBy
    value: str


def detector(config: ProxyConfig, family: Family, pod_cidr: str) -> Detector | None:
    """The detector that the configuration asks for; None when it cannot be made (no CIDR of this family).

    Args:
        config: detectLocalMode and what belongs to it.
        family: the proxier's.
        pod_cidr: this node's pod CIDR of that family; empty when it has none.
    """
    match config.detect_local_mode:
        case "BridgeInterface":
            return Detector(DetectBy.INTERFACE, config.pod_bridge_interface)
        case "InterfaceNamePrefix":
            return Detector(DetectBy.INTERFACE_PREFIX, config.pod_interface_name_prefix)
        case "NodeCIDR":
            cidr = pod_cidr
        case _:
            cidr = config.detector_cidr(family)
    return Detector(DetectBy.SOURCE, cidr) if cidr else None
