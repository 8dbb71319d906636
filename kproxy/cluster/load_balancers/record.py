"""What the balancer last said of itself: a file that is replaced whole."""

from __future__ import annotations

import msgspec

from kproxy.cluster.layout import Layout
from kproxy.cluster.status import LoadBalancersStatus


def read(layout: Layout) -> LoadBalancersStatus | None:
    """Who serves which Service now; None while no Service has ever asked for a balancer."""
    try:
        return msgspec.json.decode(layout.load_balancers_file.read_bytes(), type=LoadBalancersStatus)
    except FileNotFoundError:
        return None


def write(layout: Layout, said: LoadBalancersStatus) -> None:
    """Replaces what was said before."""
    fresh = layout.load_balancers_file.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(said))
    fresh.rename(layout.load_balancers_file)
