"""Who gets which load balancer address."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kproxy.cluster.load_balancers.claims import Claim, ClaimPort, claim_of, kind_of, source_ranges_of
from kproxy.cluster.load_balancers.pool import assign

POOL = ("198.51.100.0/30", "2001:db8:198::/112")
HTTP = ClaimPort("TCP", 80, 30080)
HTTPS = ClaimPort("TCP", 443, 30443)


def claim(name: str, **more: Any) -> Claim:
    return replace(Claim(("default", name), f"uid-{name}", "l2", (HTTP,), (4,)), **more)


def addresses(*claims: Claim) -> dict[str, tuple[str, ...]]:
    return {key[1]: share.addresses for key, share in assign(claims, POOL).items()}


def reason(*claims: Claim) -> str:
    return assign(claims, POOL)[claims[-1].key].reason


def test_addresses_are_given_out_in_order_and_the_networks_own_never() -> None:
    assert addresses(claim("a"), claim("b"), claim("c")) == {
        "a": ("198.51.100.1",),
        "b": ("198.51.100.2",),
        "c": (),
    }
    assert reason(claim("a"), claim("b"), claim("c")) == "no IPv4 address is left in the pool"


def test_dual_stack_gets_one_of_each_family_or_nothing() -> None:
    assert addresses(claim("a", versions=(6, 4))) == {"a": ("2001:db8:198::1", "198.51.100.1")}
    first, second = claim("a"), claim("b")
    assert addresses(first, second, claim("c", versions=(6, 4)))["c"] == ()


def test_who_has_an_address_keeps_it_and_the_others_go_around_it() -> None:
    assert addresses(claim("a"), claim("b", held=("198.51.100.1",))) == {
        "a": ("198.51.100.2",),
        "b": ("198.51.100.1",),
    }
    # An address that it cannot have any more is given up.
    assert addresses(claim("a", held=("192.0.2.1",)))["a"] == ("198.51.100.1",)
    assert addresses(claim("a", held=("198.51.100.2",)), claim("b", held=("198.51.100.2",))) == {
        "a": ("198.51.100.2",),
        "b": ("198.51.100.1",),
    }


def test_a_requested_address_waits_for_who_requested_it() -> None:
    assert addresses(claim("a"), claim("b", requested=("198.51.100.1",))) == {
        "a": ("198.51.100.2",),
        "b": ("198.51.100.1",),
    }
    assert addresses(claim("a", held=("198.51.100.1",), requested=("198.51.100.2",)))["a"] == ("198.51.100.2",)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"requested": ("10.0.0.1",)}, "10.0.0.1 is not in the pool (198.51.100.0/30, 2001:db8:198::/112)"),
        ({"requested": ("198.51.100.1",)}, "198.51.100.1 belongs to default/a: they have no sharing key in common"),
        (
            {"requested": ("198.51.100.1",), "sharing_key": "k"},
            "198.51.100.1 belongs to default/a: both have port 80/TCP",
        ),
        ({"mistakes": ("x is y",)}, "x is y"),
    ],
)
def test_what_cannot_be_is_said(second: dict[str, Any], said: str) -> None:
    assert reason(claim("a", held=("198.51.100.1",), sharing_key="k"), claim("b", **second)) == said


SHARES: dict[str, tuple[dict[str, Any], bool]] = {
    "other port": ({}, True),
    "same port": ({"ports": (HTTP,)}, False),
    "same number, other protocol": ({"ports": (ClaimPort("UDP", 80, 30080),)}, True),
    "other key": ({"sharing_key": "other"}, False),
    "no key": ({"sharing_key": ""}, False),
    "other kind": ({"kind": "nlb"}, False),
    "other policy": ({"is_local": True, "sharing_scope": "app=b"}, False),
}


@pytest.mark.parametrize(("second", "is_shared"), SHARES.values(), ids=SHARES)
def test_services_share_an_address_if_nothing_is_in_the_way(second: dict[str, Any], is_shared: bool) -> None:
    found = addresses(claim("a", sharing_key="k"), claim("b", **{"sharing_key": "k", "ports": (HTTPS,), **second}))
    assert (found["a"] == found["b"]) is is_shared


def service(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "annotations": annotations or {}},
        "spec": {"type": "LoadBalancer", "ports": ports, "ipFamilies": ["IPv4"], **spec},
    }


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "the lab's": (service(), "l2"),
    "a class of ours": (service(loadBalancerClass="kproxy.dev/nlb"), "nlb"),
    "a class of ours that is not there": (service(loadBalancerClass="kproxy.dev/x"), "none"),
    "somebody's class": (service(loadBalancerClass="example.com/x"), "none"),
    "an annotation": (service({"kproxy.dev/load-balancer": "classic"}), "classic"),
    "an annotation over a class": (
        service({"kproxy.dev/load-balancer": "none"}, loadBalancerClass="kproxy.dev/nlb"),
        "none",
    ),
    "another type": (service(type="NodePort"), "none"),
}


@pytest.mark.parametrize(("obj", "kind"), KINDS.values(), ids=KINDS)
def test_who_serves_a_service(obj: dict[str, Any], kind: str) -> None:
    assert kind_of(obj, "l2") == kind


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no node ports": (
        service({"kproxy.dev/load-balancer": "nlb"}, ports=[{"port": 80}]),
        "nlb sends to node ports, and allocateLoadBalancerNodePorts is false",
    ),
    "UDP for classic": (
        service({"kproxy.dev/load-balancer": "classic"}, ports=[{"port": 80, "nodePort": 1, "protocol": "UDP"}]),
        "classic speaks TCP alone, not UDP",
    ),
    "Proxy for l2": (service({"kproxy.dev/load-balancer-ip-mode": "Proxy"}), "cannot be Proxy with l2"),
    "an unknown mode": (service({"kproxy.dev/load-balancer-ip-mode": "vip"}), 'is "vip"; it may be VIP or Proxy'),
    "PROXY protocol without classic": (service({"kproxy.dev/proxy-protocol": "v1"}), "needs a classic balancer"),
    "no address": (service(loadBalancerIP="x"), '"x" is no IP address'),
    "an address with a scope": (service({"kproxy.dev/load-balancer-ips": "fd00::5%a;b"}), "is an address of one link"),
    "two addresses of a family": (
        service({"metallb.io/loadBalancerIPs": "198.51.100.1, 198.51.100.2"}),
        "are two addresses of one family",
    ),
}


@pytest.mark.parametrize(("obj", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(obj: dict[str, Any], said: str) -> None:
    found = claim_of(obj, "l2")
    assert found is not None
    assert any(said in mistake for mistake in found.mistakes), found.mistakes


def test_a_classic_balancer_has_a_name_and_wants_all_traffic() -> None:
    found = claim_of(service({"kproxy.dev/load-balancer": "classic"}), "l2")
    assert found is not None
    assert found.ingress(("198.51.100.1",)) == [
        {"ip": "198.51.100.1", "hostname": "web.default.lb.kproxy.example", "ipMode": "Proxy"}
    ]


def test_source_ranges_are_the_familys_and_everything_is_none() -> None:
    ranges = claim("a", source_ranges=("203.0.113.0/24", "2001:db8::/32"))
    assert (source_ranges_of(ranges, 4), source_ranges_of(ranges, 6)) == (("203.0.113.0/24",), ("2001:db8::/32",))
    assert source_ranges_of(claim("a", source_ranges=("203.0.113.0/24", "0.0.0.0/0")), 4) == ()
