"""Routes: requests that put them into the main table."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from netns.link import required_index
from netns.netlink import Batch
from netns.topology import RouteSpec

# From linux/rtnetlink.h; ip(8) gives it to IPv4 routes without next hop.
_SCOPE_LINK = 253


def add_route(batch: Batch, spec: RouteSpec) -> None:
    """Sets the route to that destination, in the calling thread's namespace, whatever it was before.

    Raises:
        NetnsError: there is no such interface.
    """
    destination = ipaddress.ip_network(spec.to)
    arguments: dict[str, Any] = {}
    if spec.via is not None:
        arguments["gateway"] = spec.via
    elif destination.version == 4:
        arguments["scope"] = _SCOPE_LINK
    if spec.dev:
        arguments["oif"] = required_index(spec.dev, spec.namespace)
    if spec.onlink:
        arguments["flags"] = ["onlink"]
    if spec.src is not None:
        arguments["prefsrc"] = spec.src
    batch.add(
        f"set the route of {spec.namespace} to {spec.to}",
        "route",
        "replace",
        family=socket.AF_INET6 if destination.version == 6 else socket.AF_INET,
        dst=str(destination),
        **arguments,
    )
