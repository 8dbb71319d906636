"""What is lost behind each kind of load balancer when something dies, and for how long.

    sudo python tests/bench/failover.py [--rounds 5]

A lab of three nodes with pods on node1 and node2. The client opens 25 connections a second to each address, one request
each; one that is not answered within 0.9 seconds is lost. Prints the table of docs/load-balancers.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dataplane"))

from balancer_world import ADDRESSES, Steady, cut_off, fill, healed, kill_pod, proxy_dead
from lab_support import apply, pod

from kproxy.testing.labs import Lab, fresh_lab

WATCHED = 4.0
"""Seconds after the event that are looked at."""


@contextmanager
def pod_killed(lab: Lab, name: str, node: str) -> Iterator[None]:
    kill_pod(lab.client, name)
    try:
        yield
    finally:
        apply(lab.client, pod(name, ports=(80,), nodeName=node))


Event = Callable[[Lab], AbstractContextManager[None]]

EVENTS: dict[str, tuple[Event, tuple[str, ...]]] = {
    "a node without a pod is cut off": (lambda lab: cut_off(lab, "node3"), ("l2", "nlb", "classic")),
    "a node with a pod is cut off, Local": (
        lambda lab: cut_off(lab, "node1"),
        ("l2-local", "nlb-local", "classic-local"),
    ),
    "a node's last pod is killed, Local": (
        lambda lab: pod_killed(lab, "web-1", "node1"),
        ("l2-local", "nlb-local", "classic-local"),
    ),
    "a node's proxy is killed and stays dead": (lambda lab: proxy_dead(lab, "node3"), ("l2", "nlb", "classic")),
}


def measure(lab: Lab, event: Event, names: tuple[str, ...]) -> list[tuple[int, float]]:
    """How many requests to each Service were lost after the event, and how many seconds after it the last one began."""
    addresses = [ADDRESSES[name].partition(",")[0] for name in names]
    with ExitStack() as stack:
        requests = [stack.enter_context(Steady(lab, address)) for address in addresses]
        time.sleep(1.0)
        moment = time.monotonic()
        with event(lab):
            time.sleep(WATCHED)
            end = time.monotonic()
        time.sleep(1.0)
    found = []
    for one in requests:
        inside = [request for request in one.settled(moment) if request.began < end]
        losses = [request.began - moment for request in inside if not request.is_answered]
        found.append((len(losses), max(losses, default=0.0)))
    healed(lab)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    say = sys.stdout.write
    with fresh_lab("--ip-family", "dual") as lab:
        fill(lab)
        say("| what happens | kind | lost of 100 requests in 4 s (median, most) | last loss after (median, most) |\n")
        say("|---|---|---|---|\n")
        for what, (event, names) in EVENTS.items():
            seen = [measure(lab, event, names) for _ in range(rounds)]
            for index, name in enumerate(names):
                lost = [one[index][0] for one in seen]
                last = [one[index][1] for one in seen]
                say(
                    f"| {what} | {name.removesuffix('-local')} | {statistics.median(lost):.0f}, {max(lost)} "
                    f"| {statistics.median(last):.2f} s, {max(last):.2f} s |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
