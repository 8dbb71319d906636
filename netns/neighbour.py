"""Permanent neighbours and tunnel forwarding entries: who is where, without asking."""

from __future__ import annotations

import socket

from netns.link import required_index
from netns.netlink import Batch
from netns.topology import ForwardingSpec, NeighbourSpec

# From linux/socket.h, and linux/neighbour.h: NUD_PERMANENT, NUD_NOARP, NTF_SELF
_AF_BRIDGE = 7
_PERMANENT = 0x80
_NO_ARP = 0x40
_SELF = 0x02


def add_neighbour(batch: Batch, spec: NeighbourSpec) -> None:
    """Sets the neighbour entry, in the calling thread's namespace.

    Raises:
        NetnsError: there is no such interface.
    """
    batch.add(
        f"set neighbour {spec.address} on {spec.dev} of {spec.namespace}",
        "neigh",
        "replace",
        family=socket.AF_INET6 if ":" in spec.address else socket.AF_INET,
        ifindex=required_index(spec.dev, spec.namespace),
        dst=spec.address,
        lladdr=spec.mac,
        state=_PERMANENT,
    )


def add_forwarding(batch: Batch, spec: ForwardingSpec) -> None:
    """Sets where the tunnel sends frames for that address, in the calling thread's namespace.

    Raises:
        NetnsError: there is no such interface.
    """
    batch.add(
        f"set forwarding of {spec.mac} on {spec.dev} of {spec.namespace}",
        "neigh",
        "replace",
        family=_AF_BRIDGE,
        ifindex=required_index(spec.dev, spec.namespace),
        dst=spec.to,
        lladdr=spec.mac,
        state=_PERMANENT | _NO_ARP,
        flags=_SELF,
    )
