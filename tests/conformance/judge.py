"""Whether what was seen of a flow is what was expected. Values in, complaints out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from corpus import Expectation, Flow, endpoint
from exchange import Seen

ALL_THE_SAME = "all clients stick to the same endpoint"
"""Also a fair proxy does that now and then: once in 2,187 times for eight clients of three endpoints."""

UNFAIR = 1e-6
"""A fair proxy is called unfair once in a million runs."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one flow.

    Attributes:
        seen: by source address, in the order of the connections.
        place: where the client is.
        reached: the places at which packets of the flow were seen.
        place_beyond: where the packets go when no rule touches them.
        node_address_towards: what an endpoint sees of masqueraded clients.
        before: what each client reached in the flow to compare with.
    """

    seen: Mapping[str, Sequence[Seen]]
    place: str
    reached: frozenset[str]
    place_beyond: str
    place_of_endpoint: Callable[[str], str]
    node_address_towards: Callable[[str], str]
    before: Mapping[str, str]

    @property
    def all(self) -> list[Seen]:
        return [one for seen in self.seen.values() for one in seen]


def complaints(flow: Flow, evidence: Evidence) -> list[str]:
    """What is wrong; nothing if all is as expected."""
    verdict = flow.expect.verdict
    if verdict in ("reject", "drop"):
        return list(_stopped(flow.expect, evidence))
    if verdict == "passthrough":
        return list(_untouched(flow, evidence))
    if verdict == "accept":
        return [f"accept: {one.outcome}" for one in evidence.all if one.outcome != "connected"]
    asked = (_endpoints, _sources, _affinity, _evenness)
    return [complaint for ask in asked for complaint in ask(flow.expect, evidence)]


def choices(seen: Mapping[str, Sequence[Seen]]) -> dict[str, str]:
    """The endpoint that each client reached last."""
    return {source: answers[-1].local for source, answers in seen.items()}


def _stopped(expect: Expectation, evidence: Evidence) -> Iterator[str]:
    wanted = {"reject": "refused", "drop": "silent"}[expect.verdict]
    for one in evidence.all:
        if one.outcome != wanted:
            yield f"{expect.verdict}: {one.outcome} {one.place} {one.local}".rstrip()
    if strayed := evidence.reached - {evidence.place}:
        yield f"{expect.verdict}: packets came to {', '.join(sorted(strayed))}"


def _untouched(flow: Flow, evidence: Evidence) -> Iterator[str]:
    for one in evidence.all:
        if one.outcome != "answered":
            yield f"passthrough: {one.outcome}"
        elif one.place != evidence.place_beyond or one.local != endpoint(flow.address, flow.port):
            yield f"passthrough: came to {one.local} at {one.place}"
        elif one.peer != one.sender:
            yield f"passthrough: {one.sender} became {one.peer}"


def _endpoints(expect: Expectation, evidence: Evidence) -> Iterator[str]:
    for one in evidence.all:
        if one.outcome != "answered":
            yield f"no endpoint: {one.outcome}"
        elif one.local not in expect.endpoints:
            yield f"reached {one.local} at {one.place}"
        elif one.place != evidence.place_of_endpoint(_address(one.local)):
            yield f"{one.local} answered at {one.place}"
    # Clients that stick need not cover all endpoints.
    missed = expect.endpoints - {one.local for one in evidence.all}
    if missed and expect.affinity not in ("sticky", "kept"):
        yield f"never reached {', '.join(sorted(missed))}"


def _sources(expect: Expectation, evidence: Evidence) -> Iterator[str]:
    for one in evidence.all:
        if one.outcome == "answered" and one.local in expect.endpoints:
            node = evidence.node_address_towards(_address(one.local))
            wanted = node if expect.is_masqueraded(one.local) else _address(one.sender)
            if _address(one.peer) != wanted:
                yield f"{one.local} saw {one.peer} instead of {wanted}"


def _affinity(expect: Expectation, evidence: Evidence) -> Iterator[str]:
    if expect.affinity in ("sticky", "kept"):
        for source, seen in evidence.seen.items():
            if len({one.local for one in seen}) != 1:
                yield f"{source} does not stick: {[one.local for one in seen]}"
    now = choices(evidence.seen)
    if expect.affinity == "sticky" and len(expect.endpoints) > 1 and len(now) > 1 and len(set(now.values())) == 1:
        yield ALL_THE_SAME
    if expect.affinity == "kept":
        for source, local in now.items():
            if evidence.before.get(source) != local:
                yield f"{source} went from {evidence.before.get(source)} to {local}"
    if expect.affinity == "expired" and all(evidence.before.get(source) == local for source, local in now.items()):
        yield "no client was sent elsewhere"


def _evenness(expect: Expectation, evidence: Evidence) -> Iterator[str]:
    if expect.uniform:
        counts = Counter(one.local for one in evidence.all)
        if chance_of([counts[one] for one in expect.endpoints]) < UNFAIR:
            yield f"not even: {dict(sorted(counts.items()))}"


def chance_of(counts: Sequence[int]) -> float:
    """How probable it is that a fair choice is at least as uneven: the chi-square test's upper tail."""
    fair = sum(counts) / len(counts)
    if not fair:
        return 0.0
    return _upper_gamma((len(counts) - 1) / 2, sum((count - fair) ** 2 / fair for count in counts) / 2)


def _upper_gamma(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function Q, for whole and half a.

    Q(a, x) = Q(a-1, x) + x^(a-1) e^-x / (a-1)!, down to Q(1, x) = e^-x and Q(1/2, x) = erfc(sqrt(x)).
    """
    if a == 0.5:
        return math.erfc(math.sqrt(x))
    if a == 1:
        return math.exp(-x)
    if a <= 0 or x == 0:
        return 1.0
    return _upper_gamma(a - 1, x) + math.exp((a - 1) * math.log(x) - x - math.lgamma(a))


def _address(name: str) -> str:
    return name.rpartition(":")[0].strip("[]")
