"""A short run of the fuzzer, the same inputs each time; `make fuzz` is the long one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from fuzz_manifests import Fuzzer, file_of, run_one
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer() as made:
        yield made


@pytest.mark.parametrize("seed", range(3))
def test_mutated_manifests_get_clean_answers(fuzzer: Fuzzer, seed: int) -> None:
    verdicts = Counter(run_one(fuzzer, seed, number)[0] for number in range(400))
    assert min(verdicts[verdict] for verdict in ("admitted", "refused", "no objects")) > 20


@given(st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_inputs_that_hypothesis_chooses_get_clean_answers(chance: random.Random) -> None:
    with Fuzzer() as fuzzer:
        text, file = fuzzer.input(chance)
        assert fuzzer.judge(text, file)


def test_the_seeds_are_good_ones(fuzzer: Fuzzer) -> None:
    served = fuzzer.texts[:-2]  # without the cluster file, which no API serves, and without all in one
    assert [fuzzer.judge(text, "x.yaml") for text in served] == ["admitted"] * len(served)


def test_an_input_can_be_had_again(fuzzer: Fuzzer) -> None:
    first, again = (fuzzer.input(random.Random("7:7")) for _ in range(2))
    assert first == again


def test_inputs_that_follow_from_others_get_clean_answers(fuzzer: Fuzzer) -> None:
    """The chain that `make fuzz` makes longer, by what it reaches instead of by chance."""
    chance = random.Random(7)
    verdicts = Counter[str]()
    for _ in range(100):
        text = chance.choice(fuzzer.first_inputs())
        for _ in range(3):
            text = fuzzer.next_after(text, 4096, chance)
            assert len(text) <= 4096
            verdicts[fuzzer.judge(text, file_of(text))] += 1
    assert min(verdicts[verdict] for verdict in ("admitted", "refused", "no objects")) > 5
