"""The very input that the node proxy gives to iptables-restore, or to nf_tables, for a cluster and one change of it.

    python tests/bench/bare_input.py MODE SERVICES ENDPOINTS FOLDER

writes FOLDER/full (what goes into empty tables), FOLDER/change (one endpoint of one Service becomes another one) and
FOLDER/back. It is made by the proxy's own code, which in mode nftables really writes it: to be run where that does no
harm.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench_objects import Cluster, node

from kproxy.api.types import Node
from kproxy.proxy.backends.iptables.host import features, find_tools
from kproxy.proxy.backends.iptables.render import Found, RuleSet
from kproxy.proxy.backends.nftables.writer import NetlinkWriter, NftablesBackend
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.node import facts
from kproxy.proxy.plan import PlanDelta
from kproxy.proxy.setup import circumstances, iptables_settings, nftables_settings, node_port_scope
from kproxy.proxy.sources import key_of, typed

CHANGED = 0
"""The Service that changes."""


def deltas(cluster: Cluster, config: ProxyConfig) -> Iterator[PlanDelta]:
    """The first full delta, then one change there and back."""
    tracker = Tracker(Family.IPV4, "node1")
    around = circumstances(config, "node1", _NODE, Family.IPV4)
    scope = node_port_scope(config, _NODE, Family.IPV4, ("192.168.1.2",))
    for number in range(cluster.services):
        objects = [cluster.service(number), *cluster.slices(number)]
        tracker.take(Change(key_of(obj), None, typed(obj)) for obj in objects)
    yield tracker.delta(around, scope, is_full=True)
    for is_changed in (True, False):
        slice_ = cluster.changed(CHANGED, is_changed=is_changed)
        tracker.take([Change(key_of(slice_), None, typed(slice_))])
        yield tracker.delta(around, scope)


def iptables_texts(config: ProxyConfig, variant: Any, changes: Iterator[PlanDelta]) -> Iterator[bytes]:
    """Texts for iptables-restore."""
    host = features(find_tools(variant, Family.IPV4), frozenset())
    rules = RuleSet(iptables_settings(config, _NODE, Family.IPV4, host))
    for delta in changes:
        changed = rules.take(delta)
        text = rules.restore_all(Found()) if delta.is_full else rules.restore_changed(changed)
        yield "".join(text).encode()


def nftables_batches(config: ProxyConfig, changes: Iterator[PlanDelta]) -> Iterator[bytes]:
    """Batches of netlink messages."""
    sent: list[bytes] = []

    class Recorded(socket.socket):
        def send(self, message: Any, flags: int = 0) -> int:
            sent.append(message)
            return super().send(message, flags)

    class AtAnyGeneration(NetlinkWriter):
        """One whose batches can be sent a second time."""

        def found(self) -> Any:
            return super().found()[0], None

    with patch("kproxy.proxy.netlink.socket.socket", Recorded):
        backend = NftablesBackend(nftables_settings(config, _NODE, Family.IPV4), AtAnyGeneration(Family.IPV4))
    for delta in changes:
        sent.clear()
        backend.apply(delta)
        yield sent[-1]


def main(mode: str, services: str, endpoints: str, folder: str) -> None:
    """Write the three inputs."""
    is_nftables = mode == "nftables"
    config = ProxyConfig(proxy_mode="nftables" if is_nftables else "iptables", cluster_cidr=("10.128.0.0/9",))
    changes = deltas(Cluster(int(services), int(endpoints)), config)
    variant = mode.removeprefix("iptables-")
    inputs = nftables_batches(config, changes) if is_nftables else iptables_texts(config, variant, changes)
    for name, content in zip(("full", "change", "back"), inputs, strict=True):
        Path(folder, name).write_bytes(content)


_NODE_OBJECT = typed(node())
assert isinstance(_NODE_OBJECT, Node)
_NODE = facts(_NODE_OBJECT)

if __name__ == "__main__":
    main(*sys.argv[1:])
