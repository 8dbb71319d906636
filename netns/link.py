"""Links: requests that make, plug, raise and remove veths, bridges and tunnels. Names become indexes late."""

from __future__ import annotations

import errno
import socket
from typing import Any

from netns.errors import NetnsError
from netns.netlink import Batch
from netns.topology import BridgeSpec, VethSpec, VxlanSpec


def index_of(ifname: str) -> int:
    """The index of an interface of the calling thread's namespace; 0 when there is none of that name."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0


def required_index(ifname: str, namespace: str) -> int:
    """The index of an interface of the calling thread's namespace.

    Raises:
        NetnsError: there is none of that name.
    """
    index = index_of(ifname)
    if not index:
        raise NetnsError(f"there is no interface {ifname} in namespace {namespace}", call=f"if_nametoindex {ifname}")
    return index


def add_veth(batch: Batch, veth: VethSpec, other_side: int) -> None:
    """Makes the cable, in the namespace of end `a`; `other_side` is a descriptor of the namespace of end `b`."""
    peer: dict[str, Any] = {"ifname": veth.b.ifname, "net_ns_fd": other_side, "mtu": veth.mtu}
    arguments: dict[str, Any] = {}
    if veth.b.mac:
        peer["address"] = veth.b.mac
    if veth.a.mac:
        arguments["address"] = veth.a.mac
    what = f"add veth {veth.a.ifname} of {veth.a.namespace} to {veth.b.ifname} of {veth.b.namespace}"
    batch.add(what, "link", "add", kind="veth", ifname=veth.a.ifname, mtu=veth.mtu, peer=peer, **arguments)


def add_bridge(batch: Batch, bridge: BridgeSpec) -> None:
    """Makes the switch; spanning tree and multicast snooping are off, so that ports forward at once."""
    arguments: dict[str, Any] = {"address": bridge.mac} if bridge.mac else {}
    batch.add(
        f"add bridge {bridge.ifname} in {bridge.namespace}",
        "link",
        "add",
        kind="bridge",
        ifname=bridge.ifname,
        mtu=bridge.mtu,
        br_stp_state=0,
        br_mcast_snooping=0,
        **arguments,
    )


def add_vxlan(batch: Batch, vxlan: VxlanSpec) -> None:
    """Makes the tunnel end, in the calling thread's namespace, over an interface that is there.

    Raises:
        NetnsError: there is no such interface.
    """
    local = "vxlan_local6" if ":" in vxlan.local else "vxlan_local"
    arguments: dict[str, Any] = {local: vxlan.local}
    if vxlan.mac:
        arguments["address"] = vxlan.mac
    batch.add(
        f"add vxlan {vxlan.ifname} in {vxlan.namespace}",
        "link",
        "add",
        kind="vxlan",
        ifname=vxlan.ifname,
        mtu=vxlan.mtu,
        vxlan_id=vxlan.vni,
        vxlan_port=vxlan.port,
        vxlan_link=required_index(vxlan.underlay, vxlan.namespace),
        vxlan_learning=0,
        **arguments,
    )


def raise_up(batch: Batch, ifname: str, namespace: str, *, alias: str = "", bridge: str = "") -> None:
    """Plugs an interface of the calling thread's namespace into `bridge` (if given), labels it and sets it up.

    Raises:
        NetnsError: there is no such interface.
    """
    arguments: dict[str, Any] = {}
    if bridge:
        arguments["master"] = required_index(bridge, namespace)
    if alias:
        arguments["ifalias"] = alias
    index = required_index(ifname, namespace)
    batch.add(f"set up {ifname} of {namespace}", "link", "set", index=index, state="up", **arguments)


def delete(batch: Batch, ifname: str, namespace: str) -> None:
    """Removes an interface of the calling thread's namespace (and with a veth its other end), if it is there."""
    if index := index_of(ifname):
        batch.add(f"remove {ifname} of {namespace}", "link", "del", (errno.ENODEV,), index=index)
