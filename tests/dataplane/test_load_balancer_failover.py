"""Something dies behind a load balancer: packets find another way soon, and not by chance.

How long "soon" is, is measured by tests/bench/failover.py; here only that it comes, and that it does not come when
nobody moves anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from balancer_world import (
    ADDRESSES,
    DEADLINE,
    Steady,
    cut_off,
    fill,
    healed,
    kill_pod,
    proxy_dead,
    serving,
    stopped,
)
from lab_support import apply, pod, until

from kproxy.testing.labs import Lab, fresh_lab

pytestmark = pytest.mark.root

L2_V4, L2_V6 = ADDRESSES["l2"].split(",")
LOCAL = ("l2-local", "nlb-local", "classic-local")
STILL = 60
"""Requests without an answer that show that nothing has moved: more than it takes when something moves it."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab("--ip-family", "dual") as one:
        fill(one)
        yield one


@pytest.fixture(autouse=True)
def whole(lab: Lab) -> Iterator[None]:
    yield
    healed(lab)


def steady(stack: ExitStack, lab: Lab, *addresses: str) -> list[Steady]:
    """Requests to each of the addresses, which flow already."""
    began = time.monotonic()
    found = [stack.enter_context(Steady(lab, address)) for address in addresses]
    flow_again(found, began)
    return found


def flow_again(requests: list[Steady], moment: float) -> None:
    for one in requests:
        until(lambda one=one: one.flows_again(moment), f"requests to {one.address} are answered", DEADLINE)


def test_a_node_that_is_cut_off_gets_nothing_any_more(lab: Lab) -> None:
    with ExitStack() as stack:
        requests = steady(stack, lab, L2_V4, L2_V6, ADDRESSES["nlb"], ADDRESSES["classic"])
        stack.enter_context(cut_off(lab, "node3"))
        flow_again(requests, time.monotonic())
        assert not {"node3"} & {*serving(lab, "l2").announcers.values(), *serving(lab, "nlb").nodes}


def test_a_cut_off_node_with_a_pod_is_left_by_what_goes_to_local_pods(lab: Lab) -> None:
    with ExitStack() as stack:
        requests = steady(stack, lab, *(ADDRESSES[name] for name in LOCAL))
        stack.enter_context(cut_off(lab, "node1"))
        flow_again(requests, time.monotonic())
        until(lambda: [serving(lab, name).nodes for name in LOCAL] == [("node2",)] * 3, "node2 is left", DEADLINE)


def test_nothing_moves_without_the_mover(lab: Lab) -> None:
    with ExitStack() as stack:
        l2_v4, l2_v6, nlb = steady(stack, lab, L2_V4, L2_V6, ADDRESSES["nlb"])
        with stopped(lab, "load-balancer"):
            stack.enter_context(cut_off(lab, "node3"))
            moment = time.monotonic()
            for one in (l2_v4, l2_v6, nlb):
                until(lambda one=one: len(one.settled(moment)) >= STILL, "enough requests", DEADLINE)
            assert not any(one.is_answered for one in (*l2_v4.settled(moment), *l2_v6.settled(moment)))
            # The router goes on sending every third connection to the dead node.
            assert not all(one.is_answered for one in nlb.settled(moment)[-STILL // 2 :])
        flow_again([l2_v4, l2_v6, nlb], time.monotonic())


def test_an_address_leaves_a_node_whose_proxy_is_dead(lab: Lab) -> None:
    with proxy_dead(lab, "node3"):
        until(lambda: "node3" not in serving(lab, "l2").announcers.values(), "the address moves", DEADLINE)
        with Steady(lab, L2_V4) as requests:
            flow_again([requests], time.monotonic())


def test_an_address_leaves_a_node_whose_last_pod_goes(lab: Lab) -> None:
    with ExitStack() as stack:
        requests = steady(stack, lab, *(ADDRESSES[name] for name in LOCAL))
        try:
            kill_pod(lab.client, "web-1")
            flow_again(requests, time.monotonic())
            until(lambda: [serving(lab, name).nodes for name in LOCAL] == [("node2",)] * 3, "node2 is left", DEADLINE)
        finally:
            apply(lab.client, pod("web-1", ports=(80,), nodeName="node1"))
