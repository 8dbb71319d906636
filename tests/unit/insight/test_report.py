"""When a promise is kept, what is counted against it, and how the three reports tell it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from kproxy.api.types import Service
from kproxy.api.types import view as typed
from kproxy.insight import report
from kproxy.insight.oracle import KEPT, Answer, Frontend, FrontendKind, Place, Promise, Verdict
from kproxy.insight.rows import Row
from kproxy.insight.verify import BATCH, Proof, Seen, Tally, is_kept
from netns.probe import Outcome, Result, Sighting

SERVICE = typed({"metadata": {"namespace": "default", "name": "web"}, "spec": {"ports": [{"port": 80}]}}, Service)
PLACE = Place("pod/default/a", "node1", True, ("10.244.1.2",))
FRONTEND = Frontend(FrontendKind.CLUSTER_IP, "10.96.0.5", 80, "TCP", SERVICE, SERVICE.spec.ports[0])
ONE, TWO = Answer("10.244.1.2:8080", "10.244.1.1", 1), Answer("10.244.2.2:8080", KEPT, 2)
BOTH = Promise(Verdict.ANSWERED, (ONE, TWO))


@dataclass(frozen=True)
class Case:
    name: str
    promise: Promise
    seen: Seen
    kept: bool


STICKY = replace(BOTH, is_sticky=True)
LOSSY = Promise(Verdict.ANSWERED, (ONE,), lost=("10.244.2.2:8080",))
CASES = [
    Case("all of it", BOTH, Seen(Verdict.ANSWERED, (ONE, TWO)), True),
    Case("one endpoint is missing", BOTH, Seen(Verdict.ANSWERED, (ONE,)), False),
    Case("one too many", BOTH, Seen(Verdict.ANSWERED, (ONE, TWO, Answer("10.244.3.2:8080", KEPT, 2))), False),
    Case("another source", BOTH, Seen(Verdict.ANSWERED, (replace(ONE, source=KEPT), TWO)), False),
    Case("another way", BOTH, Seen(Verdict.ANSWERED, (replace(ONE, hops=2), TWO)), False),
    Case("two sources", BOTH, Seen(Verdict.ANSWERED, (ONE, replace(ONE, source=KEPT), TWO)), False),
    Case("refused", BOTH, Seen(Verdict.REFUSED), False),
    Case("a note", BOTH, Seen(Verdict.ANSWERED, (ONE, TWO), notes=("1 of 9 connections: refused",)), False),
    Case("affinity, one", STICKY, Seen(Verdict.ANSWERED, (TWO,)), True),
    Case("affinity, both", STICKY, Seen(Verdict.ANSWERED, (ONE, TWO)), False),
    Case("affinity, another", STICKY, Seen(Verdict.ANSWERED, (Answer("10.244.3.2:8080", KEPT, 2),)), False),
    Case("lost as promised", LOSSY, Seen(Verdict.ANSWERED, (ONE,), lost=LOSSY.lost), True),
    Case("affinity, lost as promised", replace(LOSSY, is_sticky=True), Seen(Verdict.DROPPED, lost=LOSSY.lost), True),
    Case("affinity, dropped on the way", replace(LOSSY, is_sticky=True), Seen(Verdict.DROPPED), False),
    Case("affinity, lost, not promised", STICKY, Seen(Verdict.DROPPED, lost=LOSSY.lost), False),
    Case("lost, not promised", BOTH, Seen(Verdict.ANSWERED, (ONE, TWO), lost=LOSSY.lost), False),
    Case("dropped", Promise(Verdict.DROPPED), Seen(Verdict.DROPPED), True),
    Case("dropped, refused", Promise(Verdict.DROPPED), Seen(Verdict.REFUSED), False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_promise_is_kept_by_all_of_it_and_nothing_else(case: Case) -> None:
    assert is_kept(case.promise, case.seen) is case.kept


# -- counting -------------------------------------------------------------------------------------------------------


def row(promise: Promise) -> Row:
    return Row(PLACE, "the pod itself", FRONTEND, promise)


def outcome(token: int, result: Result = Result.ANSWERED, detail: str = "") -> Outcome:
    return Outcome(result, token, "10.244.1.2", 10_000 + token, detail)


def arrival(token: int, endpoint: str = "10.244.2.2", source: str = "10.244.1.2", ttl: int = 62) -> Sighting:
    return Sighting("", "local", "syn", source, 10_000, endpoint, 8080, ttl, token, token)


def tally(promise: Promise, outcomes: list[Outcome], arrivals: list[Sighting]) -> Tally:
    found = Tally(row(promise), outcomes=outcomes)
    for seen in arrivals:
        found.arrive(seen)
    return found


def test_arrivals_become_answers_with_source_and_hops() -> None:
    seen = tally(BOTH, [outcome(1), outcome(2)], [arrival(1), arrival(2, "10.244.1.2", "10.244.1.1", 63)]).seen()
    assert seen == Seen(Verdict.ANSWERED, (ONE, TWO))


@pytest.mark.parametrize(
    ("promise", "outcomes", "note"),
    [
        (BOTH, [outcome(1), outcome(2)], "1 of 2 connections were answered by nobody that is watched"),
        (BOTH, [outcome(1), outcome(3, Result.REFUSED)], "1 of 2 connections: refused"),
        (BOTH, [outcome(1), outcome(3, Result.SILENT)], "1 of 2 connections got no answer and reached no endpoint"),
        (Promise(Verdict.REFUSED), [outcome(3, Result.REFUSED, "rst")], "refused by a RST"),
    ],
)
def test_what_does_not_fit_is_noted(promise: Promise, outcomes: list[Outcome], note: str) -> None:
    (found,) = tally(promise, outcomes, [arrival(1)]).seen().notes
    assert found.startswith(note)


def test_silence_at_an_endpoint_is_a_lost_answer() -> None:
    seen = tally(LOSSY, [outcome(1, Result.SILENT)], [arrival(1)]).seen()
    assert (seen.verdict, seen.lost, seen.notes) == (Verdict.DROPPED, ("10.244.2.2:8080",), ())


def test_silence_without_a_working_control_proves_nothing() -> None:
    found = tally(Promise(Verdict.DROPPED), [outcome(1, Result.SILENT)], [])
    assert is_kept(found.row.promise, found.seen())
    found.control_failed = True
    assert not is_kept(found.row.promise, found.seen())


def test_a_program_need_not_answer_a_datagram() -> None:
    datagrams = replace(row(BOTH), frontend=replace(FRONTEND, protocol="UDP"))
    found = Tally(datagrams, outcomes=[outcome(1, Result.SILENT)])
    found.arrive(arrival(1))
    found.excuse({"10.244.9.9"})
    assert found.is_silent
    found.excuse({"10.244.2.2"})
    assert found.seen() == Seen(Verdict.ANSWERED, (TWO,))


def test_connections_go_on_until_every_endpoint_was_seen() -> None:
    first = [outcome(token) for token in range(BATCH)]
    assert tally(BOTH, first[:1], []).wants() == BATCH
    assert tally(BOTH, first, [arrival(1)]).wants() > 0
    assert tally(BOTH, first, [arrival(1), arrival(2, "10.244.1.2")]).wants() == 0
    assert tally(STICKY, first, [arrival(1)]).wants() == 0
    assert tally(BOTH, [outcome(token) for token in range(200)], [arrival(1)]).wants() == 0
    assert tally(Promise(Verdict.REFUSED), [outcome(1, Result.REFUSED)], []).wants() == 0


# -- telling --------------------------------------------------------------------------------------------------------

GOOD = Proof(
    row(BOTH), Seen(Verdict.ANSWERED, (ONE, TWO)), ("KUBE-SERVICES", "KUBE-SVC-CDGGSHYLG3RE2FKL", "KUBE-POSTROUTING")
)
BAD = Proof(row(Promise(Verdict.DROPPED)), Seen(Verdict.REFUSED))


def test_json_has_the_agreed_shape() -> None:
    good, bad = report.as_json([GOOD, BAD])
    assert good["client"] == "pod/default/a"
    assert good["service"] == "default/web:80"
    assert (good["frontend"], good["protocol"], good["ok"]) == ("10.96.0.5:80", "TCP", True)
    assert good["why"] == ["KUBE-SERVICES", "KUBE-SVC-CDGGSHYLG3RE2FKL", "KUBE-POSTROUTING"]
    assert good["seen"] == good["expected"]
    assert good["seen"] == {
        "verdict": "answered",
        "endpoints": ["10.244.1.2:8080", "10.244.2.2:8080"],
        "source": "10.244.1.1,kept",
        "hops": 2,
        "paths": [
            {"endpoint": "10.244.1.2:8080", "source": "10.244.1.1", "hops": 1},
            {"endpoint": "10.244.2.2:8080", "source": "kept", "hops": 2},
        ],
        "lost": [],
    }
    assert (bad["ok"], bad["seen"]["endpoints"], bad["seen"]["source"], bad["seen"]["hops"]) == (False, [], None, None)


def test_junit_has_a_failure_for_each_difference() -> None:
    root = ET.fromstring(report.as_junit([GOOD, BAD]))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    (failure,) = root.iter("failure")
    assert failure.get("message") == "promised dropped, seen refused"


def test_the_table_names_pods_and_marks_differences() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.as_table([GOOD, BAD], {"10.244.1.2": "a", "10.244.2.2": "[b]"}))
    text = capture.get()
    assert "a: 10.244.1.1; [b]: kept" in text
    assert "SERVICES SVC-CDGG" in text
    assert "POSTROUTING" not in text
    assert "DIFFERENT" in text
    assert "1 of 2 rows as promised" in text


@pytest.mark.parametrize(
    ("chain", "short"),
    [
        ("KUBE-SVC-CDGGSHYLG3RE2FKL", "SVC-CDGG"),
        ("KUBE-SEP-CDGGSHYLG3RE2FKL", "SEP-CDGG"),
        ("KUBE-MARK-MASQ", "MARK-MASQ"),
    ],
)
def test_chains_are_shortened_for_the_table(chain: str, short: str) -> None:
    assert report.short_chain(chain) == short
