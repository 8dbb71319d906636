"""Which addresses and ports are handed out."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.cluster.allocation import Range, RangeFull, address_of, address_range, port_range

BANDS = [
    # CIDR, first, last, how many of the lowest are left to people
    ("10.96.0.0/12", "10.96.0.1", "10.111.255.254", 256),
    ("10.0.0.0/24", "10.0.0.1", "10.0.0.254", 16),
    ("10.0.0.0/22", "10.0.0.1", "10.0.3.254", 64),
    ("10.0.0.0/28", "10.0.0.1", "10.0.0.14", 0),
    ("fd00:10:96::/112", "fd00:10:96::1", "fd00:10:96::ffff", 256),
]


@pytest.mark.parametrize(("cidr", "first", "last", "band"), BANDS)
def test_usable_addresses_and_their_static_band(cidr: str, first: str, last: str, band: int) -> None:
    network = ipaddress.ip_network(cidr)
    usable = address_range(network)
    family = f"IPv{network.version}"
    assert (address_of(usable.first, family), address_of(usable.last, family), usable.band) == (first, last, band)


PORT_BANDS = [((30000, 32767), 86), ((30000, 30015), 0), ((30000, 30016), 16), ((1, 65535), 128)]


@pytest.mark.parametrize(("ports", "band"), PORT_BANDS)
def test_static_band_of_node_ports(ports: tuple[int, int], band: int) -> None:
    assert port_range(*ports) == Range(*ports, band)


SIZES = st.integers(1, 60)


@given(size=SIZES, seed=st.integers(), taken=st.sets(st.integers(1000, 1060)))
def test_a_pick_is_free_and_inside_and_avoids_the_band_while_it_can(size: int, seed: int, taken: set[int]) -> None:
    numbers = port_range(1000, 1000 + size - 1)
    everything = set(range(numbers.first, numbers.last + 1))
    chance = random.Random(seed)
    if everything <= taken:
        with pytest.raises(RangeFull):
            numbers.pick(taken.__contains__, chance.randrange)
        return
    picked = numbers.pick(taken.__contains__, chance.randrange)
    assert picked in everything - taken
    dynamic = set(range(numbers.first + numbers.band, numbers.last + 1))
    assert picked in dynamic or dynamic <= taken


@given(size=SIZES, seed=st.integers())
def test_a_range_is_used_up_without_handing_anything_out_twice(size: int, seed: int) -> None:
    numbers = port_range(1000, 1000 + size - 1)
    chance = random.Random(seed)
    taken: set[int] = set()
    for _ in range(size):
        taken.add(numbers.pick(taken.__contains__, chance.randrange))
    assert taken == set(range(1000, 1000 + size))
    with pytest.raises(RangeFull):
        numbers.pick(taken.__contains__, chance.randrange)


@given(seed=st.integers())
def test_the_same_chances_give_the_same_choice(seed: int) -> None:
    usable = address_range(ipaddress.ip_network("10.96.0.0/12"))
    first, second = (usable.pick(lambda _: False, random.Random(seed).randrange) for _ in range(2))
    assert first == second
