"""Readiness probes as values: what is asked, how often, and what the answers come to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kproxy.api.types import Container, view
from kproxy.cluster import probing
from kproxy.cluster.probing import Exec, HttpGet, Impossible, Plan, Result, TcpSocket

STANDARD = (("Host", "10.0.0.9:80"), ("User-Agent", "kube-probe/1.36"), ("Accept", "*/*"))


def plan_of(probe: dict[str, Any], address: str = "10.0.0.9") -> Plan | None:
    ports = [{"name": "http", "containerPort": 80}]
    container = view({"name": "a", "ports": ports, "readinessProbe": probe}, Container)
    return probing.plan(container, container.readiness_probe, address)


LOOKS: dict[str, tuple[dict[str, Any], Any]] = {
    "a number": ({"httpGet": {"port": 80}}, HttpGet("10.0.0.9", 80, "/", STANDARD)),
    "a name": ({"httpGet": {"port": "http", "path": "a b"}}, HttpGet("10.0.0.9", 80, "/a%20b", STANDARD)),
    "digits": ({"tcpSocket": {"port": "81"}}, TcpSocket("10.0.0.9", 81)),
    "another host": ({"tcpSocket": {"port": 81, "host": "127.0.0.1"}}, TcpSocket("127.0.0.1", 81)),
    "own headers": (
        {"httpGet": {"port": 80, "httpHeaders": [{"name": "host", "value": "a"}, {"name": "User-Agent", "value": ""}]}},
        HttpGet("10.0.0.9", 80, "/", (("Accept", "*/*"), ("host", "a"))),
    ),
    "TLS": (
        {"httpGet": {"port": 443, "scheme": "HTTPS"}},
        HttpGet("10.0.0.9", 443, "/", (("Host", "10.0.0.9:443"), *STANDARD[1:]), is_tls=True),
    ),
    "a command": ({"exec": {"command": ["a", "b"]}}, Exec(("a", "b"))),
    "no such port": ({"httpGet": {"port": "nosuch"}}, Impossible('no port of the container is called "nosuch"')),
    "a header in two lines": (
        {"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "b\r\nc: d"}]}},
        Impossible("the header 'a' cannot be sent"),
    ),
}


@pytest.mark.parametrize(("probe", "look"), LOOKS.values(), ids=LOOKS)
def test_a_probe_is_resolved(probe: dict[str, Any], look: object) -> None:
    plan = plan_of(probe)
    assert plan is not None
    assert plan.look == look
    assert (plan.delay, plan.period, plan.timeout, plan.successes, plan.failures) == (0, 10, 1, 1, 3)


@pytest.mark.parametrize("probe", [{}, {"grpc": {"port": 80}}])
def test_what_cannot_be_done_here_is_no_probe(probe: dict[str, Any]) -> None:
    assert plan_of(probe) is None
    assert probing.plan(Container(), None, "10.0.0.9") is None


def test_ipv6_addresses_stand_in_brackets() -> None:
    plan = plan_of({"httpGet": {"port": 80}}, "fd00::9")
    assert plan is not None
    assert isinstance(plan.look, HttpGet)
    assert plan.look.url == "http://[fd00::9]:80/"


REDIRECTS = {
    "/new?a=b": "http://10.0.0.9:8080/new?a=b",
    "new": "http://10.0.0.9:8080/old/new",
    "http://10.0.0.9/new": "http://10.0.0.9:80/new",
    "https://10.0.0.9/new": "https://10.0.0.9:443/new",
    "https://10.0.0.9:8443": "https://10.0.0.9:8443/",
    "http://elsewhere/new": None,
    "http://10.0.0.9:x/": None,
}


@pytest.mark.parametrize(("location", "url"), REDIRECTS.items())
def test_redirects_stay_on_the_host(location: str, url: str | None) -> None:
    followed = HttpGet("10.0.0.9", 8080, "/old/page?x=/y", ()).redirected(location)
    assert (followed.url if followed is not None else None) == url


ROWS = [
    # successes and failures in a row that it takes, what was seen, and the verdict after each
    (1, 3, "+--+---+", "yyyyyyny"),
    (2, 1, "+-++-++", "nnnynny"),
    (1, 1, "-+-", "nyn"),
    (3, 2, "++-+++--", "nnnnnyyn"),
]


@pytest.mark.parametrize(("successes", "failures", "seen", "verdicts"), ROWS)
def test_it_takes_so_many_in_a_row(successes: int, failures: int, seen: str, verdicts: str) -> None:
    readiness = Result(Plan(Exec(()), 0, 1, 1, successes, failures))
    assert "".join("y" if readiness.take(success=one == "+") else "n" for one in seen) == verdicts


def test_what_was_ready_before_stays_so_until_it_has_failed_often_enough() -> None:
    readiness = Result(Plan(Exec(()), 0, 1, 1, 1, 2), initial=True)
    assert [readiness.take(success=False), readiness.take(success=False)] == [True, False]


def test_who_has_not_answered_yet_is_asked_sooner_than_after_a_period() -> None:
    plan = plan_of({"tcpSocket": {"port": 80}, "periodSeconds": 1})
    assert plan is not None
    assert list(itertools.islice(probing.pauses(plan), 6)) == [0.1, 0.2, 0.4, 0.8, 1, 1]


def test_zeros_do_no_harm() -> None:
    numbers = ("periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold")
    plan = plan_of({"tcpSocket": {"port": 80}, **dict.fromkeys(numbers, 0)})
    assert plan is not None
    assert (plan.period, plan.timeout, plan.successes, plan.failures) == (1, 1, 1, 1)
