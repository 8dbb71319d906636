"""Every case with real packets, through a kproxy that writes real rules: what becomes of its flows, and the rules."""

from __future__ import annotations

import errno
import socket
from functools import cache

import pytest
from corpus import HERE, Case, case, cases
from playing import NFTABLES_MODE, Record, mode_of, play
from rule_text import difference, without_counters

from kproxy.proxy.backends.iptables.host import look_at_host

pytestmark = pytest.mark.root

VARIANTS = ("legacy", "nft")
NAMES = [one.name for one in cases()]
RECORDED = [one.name for one in cases() if one.recorded_rules(one.steps[0], 4)]


@cache
def played(name: str, variant: str) -> Record:
    """A case is played once for all that is asked about it."""
    return play(case(name, mode_of(variant)), variant)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", [*VARIANTS, NFTABLES_MODE])
def test_flows_end_where_kube_proxy_sends_them(name: str, variant: str) -> None:
    if needs_sctp(case(name)) and not has_sctp():
        pytest.skip("this kernel has no SCTP")
    record = played(name, variant)

    assert record.flows > 0
    assert not record.wrong, record.report()


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernel_holds_the_rules_that_kube_proxy_writes(name: str, variant: str) -> None:
    one = case(name)
    tables = played(name, variant).tables

    for step in one.steps:
        for version in (4, 6):
            wanted = one.recorded_rules(step, version)
            wanted = wanted if look_at_host().counters else without_counters(wanted)
            assert difference(wanted, tables[step.name, version]) == [], f"step {step.name!r}, IPv{version}"


def test_every_record_is_compared() -> None:
    compared = {
        f"{name}.{step.name.replace(' ', '-')}.v{version}.rules"
        for name in RECORDED
        for step in case(name).steps
        for version in (4, 6)
    }

    assert compared == {path.name for path in (HERE / "rules").iterdir()}


def test_every_flow_is_sent() -> None:
    """One flow of all needs SCTP; none is left out."""
    assert len({one.name.removesuffix("-sctp") for one in cases()}) == len(list((HERE / "cases").glob("*.yaml")))
    assert sum(len(one.flows) for one in cases()) == sum(
        text.count("\n  - name: ") for text in (path.read_text() for path in (HERE / "cases").glob("*.yaml"))
    )


def needs_sctp(one: Case) -> bool:
    return any(flow.protocol == "sctp" for flow in one.flows)


def has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False
        raise
    return True
