"""What is promised to a load balancer address of the lab's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_oracle import OUTSIDE, P1, P2, TWO, answered, cluster, endpoint, frontend, place

from kproxy.insight.oracle import (
    KEPT,
    BalancerKind,
    BalancerView,
    ClusterView,
    Place,
    Promise,
    Verdict,
    promise,
)
from kproxy.insight.verify import Seen, is_kept

VIP = "198.51.100.9"
LOCAL = {"externalTrafficPolicy": "Local"}
ROUTER = "192.168.1.1"
CLOSED = Promise(Verdict.REFUSED, is_closed=True)
UNCLAIMED = Promise(Verdict.NO_ROUTE, is_unclaimed=True)


def world(
    kind: str, endpoints: list[dict[str, Any]], announcer: str = "", *, serves_cluster: bool = False, **spec: Any
) -> ClusterView:
    balancer = BalancerView(
        "default/web",
        BalancerKind(kind),
        (VIP,),
        serves_cluster=serves_cluster,
        announcers={VIP: announcer} if announcer else {},
    )
    return replace(cluster(endpoints, **spec), balancers=(balancer,), router_addresses=(ROUTER,))


def seen(view: ClusterView, who: str) -> Promise:
    client = place(who)
    if who == "client":
        client = replace(client, routes=(*OUTSIDE.routes, "198.51.100.0/24"))
    return promise(view, client, frontend(view, "lb"))


def test_l2_is_what_the_announcing_node_does() -> None:
    assert seen(world("l2", TWO, "node3"), "client") == answered((P1, "192.168.1.4", 3), (P2, "192.168.1.4", 3))
    assert seen(world("l2", TWO, "node2", **LOCAL), "client") == answered((P2, KEPT, 2))


def test_an_announcer_that_must_not_be_one_is_not_believed() -> None:
    assert seen(world("l2", TWO, "node3", **LOCAL), "client") == answered((P1, KEPT, 2))


def test_nobody_claims_an_address_that_no_node_may_serve() -> None:
    assert seen(world("l2", [], "node1", **LOCAL), "client") == UNCLAIMED
    leaving = seen(world("l2", [endpoint(1, "ST")], "node1", **LOCAL), "client")
    # A router that still remembers node1 gets an answer from it.
    assert leaving == replace(UNCLAIMED, answers=answered((P1, KEPT, 2)).answers)
    for found, is_fine in (
        (Seen(Verdict.NO_ROUTE), True),
        (Seen(Verdict.REFUSED), True),
        (Seen(Verdict.ANSWERED, leaving.answers), True),
        (Seen(Verdict.ANSWERED, answered((P2, KEPT, 2)).answers), False),
    ):
        assert is_kept(leaving, found) is is_fine


def test_l2_without_endpoints_refuses_under_a_cluster_policy() -> None:
    assert seen(world("l2", [], "node1"), "client") == Promise(Verdict.REFUSED)


def test_nlb_may_go_by_any_node_that_may_serve() -> None:
    assert seen(world("nlb", TWO, **LOCAL), "client") == answered((P1, KEPT, 2), (P2, KEPT, 2))
    by_all = seen(world("nlb", TWO), "client")
    assert len(by_all.answers) == 6
    assert {answer.source for answer in by_all.answers} >= {"192.168.1.2", "192.168.1.3", "192.168.1.4", "10.244.1.1"}


@pytest.mark.parametrize("kind", ["nlb", "classic"])
def test_the_router_refuses_when_no_node_may_serve(kind: str) -> None:
    assert seen(world(kind, []), "client") == CLOSED
    assert seen(world(kind, [endpoint(1, "notReady")], **LOCAL), "client") == CLOSED


@pytest.mark.parametrize("kind", ["nlb", "classic"])
def test_the_router_keeps_source_ranges(kind: str) -> None:
    view = world(kind, TWO, loadBalancerSourceRanges=["192.168.1.0/24"], serves_cluster=True)
    assert seen(view, "client") == Promise(Verdict.DROPPED)
    assert seen(view, "node/node1").verdict is Verdict.ANSWERED


def test_inside_the_cluster_nodes_serve_a_vip_themselves() -> None:
    for kind in ("l2", "nlb", "classic"):
        assert (
            seen(world(kind, TWO, "node3", **LOCAL), "node/node1").answers
            == seen(world("l2", TWO, "node3", **LOCAL), "node/node1").answers
        )


def test_with_ip_mode_proxy_nodes_come_by_the_balancer_with_its_address() -> None:
    found = seen(world("nlb", TWO, serves_cluster=True, **LOCAL), "node/node3")
    assert found == answered((P1, ROUTER, 2), (P2, ROUTER, 2))


def test_classic_ends_the_connection_itself() -> None:
    view = world("classic", TWO, serves_cluster=True)
    assert seen(view, "client") == answered((f"{VIP}:80", KEPT, 0))
    assert seen(view, "node/node1") == answered((f"{VIP}:80", KEPT, 0))
    router = Place("router/router", None, False, (ROUTER,), ("192.168.1.0/24",), is_router=True)
    local = world("classic", TWO, **LOCAL)
    assert promise(local, router, frontend(local, "nodeport:1")) == answered((P1, KEPT, 1))


def test_nlb_sticks_to_an_endpoint_by_the_clients_address() -> None:
    assert seen(world("nlb", TWO, sessionAffinity="ClientIP"), "client").is_sticky
