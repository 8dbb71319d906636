"""Which address a new pod gets."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.pod_addresses import PodAddresses


def addresses(**overrides: Any) -> PodAddresses:
    return PodAddresses(clusterfile.read([], Overrides(lab="e2u", **overrides)))


def test_they_are_given_in_turn_and_not_again_at_once() -> None:
    pool = addresses(nodes=2)
    assert [pool.next("node1", set()) for _ in range(2)] == [("10.244.1.2",), ("10.244.1.3",)]
    assert pool.next("node2", {"10.244.1.9"}) == ("10.244.2.2",)
    assert pool.next("node1", {"10.244.1.4"}) == ("10.244.1.5",)


def test_the_first_goes_on_after_the_highest_in_use() -> None:
    assert addresses().next("node1", {"10.244.1.7", "10.244.2.9", "192.168.1.2"}) == ("10.244.1.8",)


def test_after_the_last_comes_the_first_and_then_nothing() -> None:
    pool = addresses()
    taken: set[str] = set()
    for _ in range(253):
        (address,) = pool.next("node1", taken)
        taken.add(address)
    assert (min(taken), "10.244.1.254" in taken, len(taken)) == ("10.244.1.10", True, 253)
    assert pool.next("node1", taken) == ()
    assert pool.next("node1", taken - {"10.244.1.77"}) == ("10.244.1.77",)


@pytest.mark.parametrize("families", [("IPv6",), ("IPv4", "IPv6")])
def test_there_is_one_of_each_family(families: tuple[str, ...]) -> None:
    found = addresses(ip_families=families).next("node3", set())
    assert found == {1: ("fd00:10:244:3::2",), 2: ("10.244.3.2", "fd00:10:244:3::2")}[len(families)]
