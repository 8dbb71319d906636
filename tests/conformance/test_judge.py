"""The judge itself, with made-up sightings: right ones pass, and each wrong one is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from corpus import Expectation, Flow
from exchange import Seen
from judge import ALL_THE_SAME, Evidence, chance_of, complaints

CLIENT, OTHER_CLIENT = "10.0.0.2", "10.0.0.3"
FLOW = Flow("any", "pod", (CLIENT,), "tcp", "clusterip", "172.30.0.41", 80, Expectation())
BOTH = frozenset({"10.180.0.1:80", "10.180.1.1:80"})
STICKY = Expectation(endpoints=BOTH, affinity="sticky")


def answered(local: str, *, peer: str = f"{CLIENT}:5000", place: str = "pod0") -> Seen:
    return Seen("answered", place, local, peer, f"{CLIENT}:5000")


FIRST, SECOND = answered("10.180.0.1:80"), answered("10.180.1.1:80")
MASQUERADED = answered("10.180.0.1:80", peer="100.64.0.1:700")


def verdict(name: str) -> Expectation:
    return Expectation(verdict=name)


def judged(expect: Expectation, *seen: Seen, other: tuple[Seen, ...] = (), **known: Any) -> list[str]:
    evidence = Evidence(
        seen={CLIENT: seen, OTHER_CLIENT: other} if other else {CLIENT: seen},
        place="pod1",
        reached=frozenset(),
        place_beyond="sink",
        place_of_endpoint=lambda address: "pod0",
        node_address_towards=lambda address: "100.64.0.1",
        before={},
    )
    return complaints(replace(FLOW, expect=expect), replace(evidence, **known))


UNTOUCHED = answered("172.30.0.41:80", place="sink")

RIGHT = {
    "all endpoints": (Expectation(endpoints=BOTH), (FIRST, SECOND), {}),
    "masqueraded": (Expectation(endpoints=frozenset({"10.180.0.1:80"}), masq=True), (MASQUERADED,), {}),
    "one masqueraded": (
        Expectation(endpoints=BOTH, masq={"10.180.0.1:80": True, "10.180.1.1:80": False}),
        (MASQUERADED, SECOND),
        {},
    ),
    "refused": (verdict("reject"), (Seen("refused"),), {"reached": frozenset({"pod1"})}),
    "silent": (verdict("drop"), (Seen("silent"),), {}),
    "untouched": (verdict("passthrough"), (UNTOUCHED,), {}),
    "accepted": (verdict("accept"), (Seen("connected"),), {}),
    "sticks": (STICKY, (FIRST, FIRST), {"other": (SECOND, SECOND)}),
    "kept": (replace(STICKY, affinity="kept"), (FIRST, FIRST), {"before": {CLIENT: FIRST.local}}),
    "expired": (replace(STICKY, affinity="expired"), (FIRST, SECOND), {"before": {CLIENT: FIRST.local}}),
    "even": (Expectation(endpoints=BOTH, uniform=100), (FIRST, SECOND) * 50, {}),
}

WRONG = {
    "an endpoint is missed": (Expectation(endpoints=BOTH), (FIRST,), {}, "never reached 10.180.1.1:80"),
    "a strange endpoint": (
        Expectation(endpoints=frozenset({"10.180.0.1:80"})),
        (FIRST, SECOND),
        {},
        "reached 10.180.1.1:80 at pod0",
    ),
    "somebody else answers": (
        Expectation(endpoints=frozenset({"10.180.0.1:80"})),
        (FIRST._replace(place="sink"),),
        {},
        "10.180.0.1:80 answered at sink",
    ),
    "nobody answers": (Expectation(endpoints=BOTH), (FIRST, SECOND, Seen("silent")), {}, "no endpoint: silent"),
    "not masqueraded": (
        Expectation(endpoints=frozenset({"10.180.0.1:80"}), masq=True),
        (FIRST,),
        {},
        "10.180.0.1:80 saw 10.0.0.2:5000 instead of 100.64.0.1",
    ),
    "masqueraded": (
        Expectation(endpoints=frozenset({"10.180.0.1:80"})),
        (MASQUERADED,),
        {},
        "10.180.0.1:80 saw 100.64.0.1:700 instead of 10.0.0.2",
    ),
    "reset is not reject": (verdict("reject"), (Seen("reset"),), {}, "reject: reset"),
    "drop is not reject": (verdict("reject"), (Seen("silent"),), {}, "reject: silent"),
    "reject is not drop": (verdict("drop"), (Seen("refused"),), {}, "drop: refused"),
    "an answer is not drop": (verdict("drop"), (FIRST,), {}, "drop: answered pod0 10.180.0.1:80"),
    "dropped too late": (
        verdict("drop"),
        (Seen("silent"),),
        {"reached": frozenset({"pod1", "sink"})},
        "drop: packets came to sink",
    ),
    "redirected": (verdict("passthrough"), (FIRST,), {}, "passthrough: came to 10.180.0.1:80 at pod0"),
    "source changed": (
        verdict("passthrough"),
        (UNTOUCHED._replace(peer="100.64.2.1:9"),),
        {},
        "passthrough: 10.0.0.2:5000 became 100.64.2.1:9",
    ),
    "not passed": (verdict("passthrough"), (Seen("silent"),), {}, "passthrough: silent"),
    "not accepted": (verdict("accept"), (Seen("silent"),), {}, "accept: silent"),
    "does not stick": (
        STICKY,
        (FIRST, SECOND),
        {},
        "10.0.0.2 does not stick: ['10.180.0.1:80', '10.180.1.1:80']",
    ),
    "all the same": (STICKY, (FIRST,), {"other": (FIRST,)}, ALL_THE_SAME),
    "not kept": (
        replace(STICKY, affinity="kept"),
        (SECOND,),
        {"before": {CLIENT: FIRST.local}},
        "10.0.0.2 went from 10.180.0.1:80 to 10.180.1.1:80",
    ),
    "not expired": (
        replace(STICKY, affinity="expired", endpoints=frozenset({FIRST.local})),
        (FIRST,),
        {"before": {CLIENT: FIRST.local}},
        "no client was sent elsewhere",
    ),
    "uneven": (
        Expectation(endpoints=BOTH, uniform=100),
        (FIRST,) * 80 + (SECOND,) * 20,
        {},
        "not even: {'10.180.0.1:80': 80, '10.180.1.1:80': 20}",
    ),
}


@pytest.mark.parametrize(("expect", "seen", "known"), RIGHT.values(), ids=RIGHT)
def test_right_is_right(expect: Expectation, seen: tuple[Seen, ...], known: dict[str, Any]) -> None:
    assert judged(expect, *seen, **known) == []


@pytest.mark.parametrize(("expect", "seen", "known", "wanted"), WRONG.values(), ids=WRONG)
def test_wrong_is_named(expect: Expectation, seen: tuple[Seen, ...], known: dict[str, Any], wanted: str) -> None:
    assert wanted in judged(expect, *seen, **known)


CHI_SQUARE = {
    "one degree": ([60, 40], 0.0455),
    "two degrees": ([50, 30, 20], 0.000912),
    "three degrees, even": ([100, 100, 100, 100], 1.0),
    "three degrees": ([120, 90, 105, 85], 0.0576),
    "nothing at all": ([0, 0], 0.0),
}


@pytest.mark.parametrize(("counts", "wanted"), CHI_SQUARE.values(), ids=CHI_SQUARE)
def test_chance_is_the_chi_square_tail(counts: list[int], wanted: float) -> None:
    assert chance_of(counts) == pytest.approx(wanted, rel=0.01)
