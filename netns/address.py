"""Addresses: requests that put them on interfaces."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from netns.link import required_index
from netns.netlink import Batch
from netns.topology import AddressSpec

# From linux/if_addr.h
_IFA_F_NODAD = 0x02


def add_address(batch: Batch, spec: AddressSpec) -> None:
    """Puts the address on its interface, in the calling thread's namespace; one that is there already stays.

    Raises:
        NetnsError: there is no such interface.
    """
    interface = ipaddress.ip_interface(spec.address)
    is_v6 = interface.version == 6
    arguments: dict[str, Any] = {"flags": _IFA_F_NODAD} if is_v6 else {}
    batch.add(
        f"add address {spec.address} to {spec.ifname} of {spec.namespace}",
        "addr",
        "replace",
        index=required_index(spec.ifname, spec.namespace),
        family=socket.AF_INET6 if is_v6 else socket.AF_INET,
        address=str(interface.ip),
        prefixlen=interface.network.prefixlen,
        **arguments,
    )
