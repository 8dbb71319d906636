"""What follows from a host's facts, held beside a table of hosts that lack one thing each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from kproxy.cluster import clusterfile, host_check
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.host_check import Needs, Report, State, judge, needs
from kproxy.cluster.host_facts import FEATURES, LINKS, TOOLS, HostFacts, HostNetwork, RulesTried, Tried

YES = Tried(True)
NO = Tried(False, "Operation not supported")
WORKING = RulesTried(True)
NOT_INSTALLED = RulesTried(False)
NO_TABLES = RulesTried(True, {feature.name: "can't initialize iptables table" for feature in FEATURES})
VARIANTS = [(variant, family) for variant in ("legacy", "nft") for family in ("IPv4", "IPv6")]

ALL_TOOLS = [f"{tool}-{variant}" for tool in ("iptables", "ip6tables") for variant in ("legacy", "nft")]

COMPLETE = HostFacts(
    is_root=True,
    namespace=YES,
    settings=YES,
    tools=dict.fromkeys(TOOLS, True),
    rules=dict.fromkeys(VARIANTS, WORKING),
    links=dict.fromkeys(LINKS, YES),
    ipv6=YES,
    conntrack=YES,
    nftables=YES,
    sandbox=YES,
    rule_reader=YES,
    network=HostNetwork(rp_filter="0", rule_counts={"legacy": 0, "nft": 0}),
)


def rules(**by_variant: RulesTried) -> dict[tuple[str, str], RulesTried]:
    return {(variant, family): by_variant.get(variant, WORKING) for variant, family in VARIANTS}


def not_ok(report: Report) -> dict[str, State]:
    return {one.what: one.state for one in report.conditions if one.state is not State.OK}


def test_a_host_that_has_everything_has_nothing_to_be_told() -> None:
    report = judge(COMPLETE, Needs())
    assert not_ok(report) == {}
    assert (report.ok, report.variant, report.why) == (True, "legacy", "this kernel has it")


HARMLESS = [
    ("br_netfilter is on", {"bridge_calls": "1"}, "br_netfilter"),
    ("rp_filter is strict", {"rp_filter": "1"}, "rp_filter"),
    ("FORWARD drops", {"forward_policies": {"iptables-nft": "DROP"}}, "FORWARD policy"),
    ("both variants have rules", {"rule_counts": {"legacy": 3, "nft": 4}}, "iptables of this machine"),
]


@pytest.mark.parametrize(("network", "what"), [case[1:] for case in HARMLESS], ids=[case[0] for case in HARMLESS])
def test_what_does_not_matter_is_named_as_such(network: dict[str, Any], what: str) -> None:
    report = judge(replace(COMPLETE, network=HostNetwork(**network)), Needs())
    assert report.ok
    assert not_ok(report) == {what: State.NOTE}
    assert all("harmless" in one.effect for one in report.conditions if one.what == what)


LACKS: list[tuple[str, dict[str, Any], dict[str, State]]] = [
    ("conntrack netlink", {"conntrack": NO}, {"conntrack netlink": State.LIMITED}),
    ("IPv6", {"ipv6": NO}, {"IPv6": State.LIMITED}),
    ("vxlan", {"links": {**COMPLETE.links, "vxlan": NO}}, {"links: vxlan": State.LIMITED}),
    ("nftables", {"nftables": NO}, {"nftables": State.LIMITED}),
    ("python-iptables", {"rule_reader": NO}, {"python-iptables": State.LIMITED}),
    ("user namespaces", {"sandbox": NO}, {"pods' sandbox": State.LIMITED}),
    ("bubblewrap", {"tools": {**COMPLETE.tools, "bwrap": False}, "sandbox": NO}, {"bwrap": State.LIMITED}),
    (
        "affinity",
        {"rules": rules(legacy=RulesTried(True, {"match recent": "No such file"}))},
        {"iptables-legacy: match recent": State.LIMITED, "ip6tables-legacy: match recent": State.LIMITED},
    ),
    (
        "the legacy tools",
        {"rules": rules(legacy=NOT_INSTALLED)},
        {"iptables": State.NOTE, "iptables-legacy": State.NOTE, "ip6tables-legacy": State.NOTE},
    ),
    (
        "the legacy tables",
        {"rules": rules(legacy=NO_TABLES)},
        {"iptables": State.NOTE, "iptables-legacy": State.NOTE, "ip6tables-legacy": State.NOTE},
    ),
    (
        "iptables",
        {"rules": rules(legacy=NOT_INSTALLED, nft=NOT_INSTALLED)},
        {"iptables": State.MISSING, **dict.fromkeys(ALL_TOOLS, State.LIMITED)},
    ),
    ("veth", {"links": {**COMPLETE.links, "veth": NO}}, {"links: veth": State.MISSING}),
    ("writable settings", {"settings": NO}, {"settings of namespaces": State.MISSING}),
]  # fmt: skip


@pytest.mark.parametrize(("lack", "expected"), [case[1:] for case in LACKS], ids=[case[0] for case in LACKS])
def test_what_is_lacking_is_named_with_effect_and_remedy(lack: dict[str, Any], expected: dict[str, State]) -> None:
    report = judge(replace(COMPLETE, **lack), Needs())
    assert not_ok(report) == expected
    assert report.ok == (State.MISSING not in expected.values())
    for one in report.conditions:
        if one.state is State.LIMITED or one.state is State.MISSING:
            assert one.detail, one
            assert one.effect, one
            assert one.remedy, one


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (HostFacts(is_root=False, tools=COMPLETE.tools), {"permissions"}),
        (HostFacts(is_root=True, namespace=NO, tools=COMPLETE.tools), {"network namespaces"}),
    ],
)
def test_without_permission_nothing_else_is_guessed(facts: HostFacts, expected: set[str]) -> None:
    report = judge(facts, Needs())
    assert not report.ok
    assert not_ok(report).keys() == expected
    assert {one.what for one in report.conditions} == expected | set(TOOLS)


@pytest.mark.parametrize(
    ("overrides", "lack", "is_ok"),
    [
        ({}, {"ipv6": NO}, True),
        ({"ip_families": ("IPv6",)}, {"ipv6": NO}, False),
        ({"ip_families": ("IPv4", "IPv6")}, {"ipv6": NO}, False),
        ({}, {"links": {**COMPLETE.links, "vxlan": NO}}, True),
        ({"network": "vxlan"}, {"links": {**COMPLETE.links, "vxlan": NO}}, False),
        ({"iptables_variant": "nft"}, {"rules": rules(nft=NO_TABLES)}, False),
        ({"iptables_variant": "legacy"}, {"rules": rules(nft=NO_TABLES)}, True),
        ({}, {"rules": rules(nft=NO_TABLES)}, True),
        ({"ip_families": ("IPv4", "IPv6")}, {"rules": {**rules(), ("legacy", "IPv6"): NO_TABLES}}, True),
        ({}, {"conntrack": NO}, True),
    ],
)
def test_a_cluster_is_refused_only_for_what_it_needs(
    overrides: dict[str, Any], lack: dict[str, Any], is_ok: bool
) -> None:
    config = clusterfile.read([], Overrides(**overrides))
    assert judge(replace(COMPLETE, **lack), needs(config)).ok is is_ok


@pytest.mark.parametrize(
    ("wanted", "tried", "expected"),
    [
        ("auto", {}, ("legacy", "this kernel has it")),
        ("auto", {"legacy": NOT_INSTALLED}, ("nft", "legacy cannot be used (iptables's tools are not installed)")),
        ("nft", {}, ("nft", "it was asked for")),
        (
            "legacy",
            {"legacy": RulesTried(True, {"match mark": "no", "match recent": "no"})},
            ("", "legacy: IPv4: the kernel refused match mark (no)"),
        ),
        ("auto", {"legacy": RulesTried(True, {"match recent": "no"})}, ("legacy", "this kernel has it")),
    ],
)
def test_the_variant_is_chosen_for_a_reason(
    wanted: str, tried: dict[str, RulesTried], expected: tuple[str, str]
) -> None:
    assert host_check.choose_variant(rules(**tried), Needs(variant=wanted)) == expected


def test_a_table_that_is_missing_is_named_and_not_what_would_be_in_it() -> None:
    lacking = {feature.name: "no" for feature in FEATURES if feature.table == "nat"}
    report = judge(replace(COMPLETE, rules=rules(legacy=RulesTried(True, {**lacking, "target REJECT": "no"}))), Needs())
    said = next(one.detail for one in report.conditions if one.what == "iptables-legacy")
    assert said == "the kernel refused table nat, target REJECT: no"
    assert report.why == "legacy cannot be used (IPv4: the kernel refused table nat (no), target REJECT (no))"


def test_what_the_kernel_loaded_is_listed() -> None:
    added = ("net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_max", "net.nf_conntrack_max")
    report = judge(replace(COMPLETE, loaded_modules=("nf_conntrack",), added_sysctls=added), Needs())
    assert not_ok(report) == {"kernel modules": State.NOTE, "net.* sysctls": State.NOTE}
    assert report.ok
    shown = next(one.detail for one in report.conditions if one.what == "net.* sysctls")
    assert shown == "3 new keys: net.netfilter.nf_conntrack_*, net.nf_conntrack_max"
    assert msgspec.json.decode(msgspec.json.encode(report))["addedSysctls"] == list(added)
