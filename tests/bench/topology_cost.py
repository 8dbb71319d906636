"""What a topology costs: built by netns, built again, taken down, and beside it ip(8) in batches, in the same run.

    sudo python tests/bench/topology_cost.py [--pods 12,100] [--rounds 5]

The topology is a lab's: a fabric, a router, three nodes with pods behind them, an outside client.
"""

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

from netns.build import build, tear_down
from netns.ip_batch import measure
from netns.journal import Journal
from netns.topology import (
    AddressSpec,
    BridgeSpec,
    End,
    NamespaceSpec,
    Role,
    RouteSpec,
    Topology,
    VethSpec,
    derived_name,
    merge,
)

FOLDER = Path("/run/kproxy-bench")
NODES = 3


def infrastructure() -> Topology:
    """A switch, a router, three nodes and a client behind the router."""
    nodes = [f"bench-node{number}" for number in range(1, NODES + 1)]
    names = [("bench-router", Role.ROUTER), ("bench-client", Role.CLIENT), *((name, Role.NODE) for name in nodes)]
    return Topology(
        (NamespaceSpec("bench-fabric", Role.FABRIC), *(NamespaceSpec(name, role) for name, role in names)),
        (
            *(VethSpec(End(name, "eth0"), End("bench-fabric", name)) for name in ("bench-router", *nodes)),
            VethSpec(End("bench-router", "eth1"), End("bench-client", "eth0")),
        ),
        (BridgeSpec("bench-fabric", "br0", ("bench-router", *nodes)),),
        addresses=(
            AddressSpec("bench-router", "eth0", "192.168.1.1/24"),
            AddressSpec("bench-router", "eth1", "203.0.113.1/24"),
            AddressSpec("bench-client", "eth0", "203.0.113.10/24"),
            *(AddressSpec(name, "eth0", f"192.168.1.{number}/24") for number, name in enumerate(nodes, 2)),
        ),
        routes=(
            RouteSpec("bench-client", "192.168.1.0/24", "203.0.113.1", "eth0"),
            *(RouteSpec(name, "0.0.0.0/0", "192.168.1.1", "eth0") for name in nodes),
            *(
                RouteSpec(name, f"10.244.{other}.0/24", f"192.168.1.{other + 1}", "eth0")
                for number, name in enumerate(nodes, 1)
                for other in range(1, NODES + 1)
                if other != number
            ),
        ),
        alias="kproxy:bench",
    )


def pod(number: int) -> Topology:
    """A routed pod behind one of the nodes."""
    of_node, position = number % NODES + 1, number // NODES + 2
    node, name = f"bench-node{of_node}", f"bench-default.pod{number}"
    port, address, gateway = derived_name("veth", name), f"10.244.{of_node}.{position}", f"10.244.{of_node}.1"
    return Topology(
        (NamespaceSpec(name, Role.POD),),
        (VethSpec(End(node, port), End(name, "eth0")),),
        addresses=(AddressSpec(node, port, f"{gateway}/32"), AddressSpec(name, "eth0", f"{address}/32")),
        routes=(
            RouteSpec(node, f"{address}/32", dev=port),
            RouteSpec(name, "0.0.0.0/0", gateway, "eth0", onlink=True),
        ),
    )


def one_round(topology: Topology) -> tuple[float, float, float, float]:
    """Seconds for: building, building again, taking down, ip(8)."""
    journal = Journal(FOLDER / "journal", "bench")
    try:
        times = [time.monotonic()]
        build(topology, journal, FOLDER / "netns")
        times.append(time.monotonic())
        build(topology, journal, FOLDER / "netns")
        times.append(time.monotonic())
    finally:
        tear_down(journal)
        journal.close()
    times.append(time.monotonic())
    built, again, down = (after - before for before, after in pairwise(times))
    return built, again, down, measure(topology)


def main() -> int:
    """Prints a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", default="12,100", help="how many pods, several with commas")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is shown")
    arguments = parser.parse_args()
    print(f"{'pods':>6} {'build':>9} {'again':>9} {'down':>9} {'ip -batch':>11}   (ms, median of {arguments.rounds})")  # noqa: T201
    for count in map(int, arguments.pods.split(",")):
        topology = merge(infrastructure(), *(pod(number) for number in range(count)))
        rounds = [one_round(topology) for _ in range(arguments.rounds)]
        build_ms, again_ms, down_ms, ip_ms = (statistics.median(column) * 1000 for column in zip(*rounds, strict=True))
        print(f"{count:>6} {build_ms:>9.1f} {again_ms:>9.1f} {down_ms:>9.1f} {ip_ms:>11.1f}")  # noqa: T201
    (FOLDER / "netns").rmdir()
    FOLDER.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
