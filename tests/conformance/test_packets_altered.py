"""Negative controls, rule by rule: each kind of rule is deleted, then altered, and the named flow must fare otherwise.

``ROWS`` follows kube-proxy's table of rules. A row names a case and its step, one rule of the kernel's, and what
becomes of it; a flow that is as expected before and after the edit must not be so in between. What no packet can tell
is left out: rule d0 only counts, since rule d takes the same packets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import exchange
import pytest
from corpus import Step, case
from playing import Stage, play

pytestmark = pytest.mark.root

Edit = tuple[str, str] | None
"""Text in the rule, and what takes its place; None: the rule is deleted."""


class Row(NamedTuple):
    """One kind of rule.

    Attributes:
        rule: pattern of its line in iptables-save; where a kind needs several rules, all of them match.
        flow: the flow that must fare otherwise, by its name ...
        edits: ... with each of these edits.
        step: the case's step; its first one if empty.
        table: where the rule is.
    """

    rule: str
    flow: str
    edits: tuple[Edit, ...]
    step: str = ""
    table: str = "nat"


ROWS: Mapping[str, Mapping[str, Row]] = {
    "overall-rules": {
        "a: cluster IP": Row(
            r"-A KUBE-SERVICES .*ns2/svc2:p80 cluster IP", "pod to svc2 cluster IP",
            (None, ("--dport 80", "--dport 81"), ("172.30.0.42", "172.30.0.142"),
             ("KUBE-SVC-GNZBNJ2PO5MGZ6GT", "KUBE-SVC-X27LE4BHSL4DOUIK"))),
        "a': no endpoints": Row(
            r"-A KUBE-SERVICES .*ns6/svc6:p80 has no endpoints", "node to svc6 cluster IP",
            (None, ("-j REJECT --reject-with icmp-port-unreachable", "-j DROP"), ("--dport 80", "--dport 81"),
             ("icmp-port-unreachable", "tcp-reset")), table="filter"),
        "b: external IP": Row(
            r"-A KUBE-SERVICES .*ns2/svc2:p80 external IP", "pod to svc2 external IP",
            (None, ("192.168.99.22/32", "192.168.99.23/32"),
             ("KUBE-EXT-GNZBNJ2PO5MGZ6GT", "KUBE-EXT-X27LE4BHSL4DOUIK"))),
        "c: load balancer": Row(
            r"-A KUBE-SERVICES .*ns2/svc2:p80 loadbalancer IP", "pod to svc2 LB IP",
            (None, ("--dport 80", "--dport 8080"))),
        "c: to FW": Row(
            r"-A KUBE-SERVICES .*ns5/svc5:p80 loadbalancer IP", "blocked external to svc5 LB IP",
            (("-j KUBE-FW-", "-j KUBE-EXT-"),)),
        "c2: not accepted by FW": Row(
            r"-A KUBE-PROXY-FIREWALL .*ns5/svc5:p80", "blocked external to svc5 LB IP",
            (None, ("-j DROP", "-j RETURN"), ("-j DROP", "-j REJECT")), table="filter"),
        "c': load balancer without local endpoints": Row(
            r"-A KUBE-EXTERNAL-SERVICES -d 1\.2\.3\.4/32 .*no local endpoints", "external to svc2 LB IP",
            (None, ("-j DROP", "-j REJECT"), ("--dport 80", "--dport 81")), table="filter"),
        "d: node port": Row(
            r"-A KUBE-NODEPORTS -p tcp .*ns3/svc3:p80", "external to svc3 NodePort",
            (None, ("--dport 3003", "--dport 3009"), ("-j KUBE-EXT-X27LE4BHSL4DOUIK", "-j KUBE-SVC-X27LE4BHSL4DOUIK"))),
        "d': node port without local endpoints": Row(
            r"-A KUBE-EXTERNAL-SERVICES -p tcp .*no local endpoints.*--dst-type LOCAL", "external to svc2 NodePort",
            (None, ("-j DROP", "-j REJECT"), ("--dst-type LOCAL", "--dst-type BROADCAST")), table="filter"),
        "SVC: masquerade what is not from a pod": Row(
            r"-A KUBE-SVC-XPGD46QRK7WJZT7O ! -s .*KUBE-MARK-MASQ", "external to svc1 cluster IP",
            (None, ("! -s 10.0.0.0/8", "-s 10.0.0.0/8"), ("! -s 10.0.0.0/8", "! -s 203.0.113.0/24"))),
        "EXT Cluster: masquerade": Row(
            r'-A KUBE-EXT-.*"masquerade traffic for ns3/svc3:p80 external destinations"', "external to svc3 NodePort",
            (None, ("-j KUBE-MARK-MASQ", "-j RETURN"), ("-m comment", "-s 10.0.0.0/8 -m comment"))),
        "EXT Cluster: to SVC": Row(
            r"-A KUBE-EXT-X27LE4BHSL4DOUIK -j KUBE-SVC-", "external to svc3 NodePort",
            (None, ("KUBE-SVC-X27LE4BHSL4DOUIK", "KUBE-SVC-GNZBNJ2PO5MGZ6GT"))),
        "EXT Local: pods": Row(
            r'-A KUBE-EXT-.*"pod traffic for ns2/svc2:p80 external destinations"', "pod to svc2 external IP",
            (None, ("-s 10.0.0.0/8", "-s 10.128.0.0/9"))),
        "EXT Local: masquerade the node's own": Row(
            r'-A KUBE-EXT-.*"masquerade LOCAL traffic for ns2/svc2:p80', "node to svc2 LB IP",
            (None, ("--src-type LOCAL", "--src-type BROADCAST"))),
        "EXT Local: route the node's own": Row(
            r'-A KUBE-EXT-.*"route LOCAL traffic for ns2/svc2:p80', "node to svc2 LB IP",
            (None, ("--src-type LOCAL", "! --src-type LOCAL"))),
        "SEP: DNAT": Row(
            r"-A KUBE-SEP-RS4RBKLTHTF2IUXJ .*-j DNAT", "pod to svc2 cluster IP",
            (None, ("10.180.0.2:80", "10.180.0.3:80"), ("10.180.0.2:80", "10.180.0.2:81"))),
        "KUBE-POSTROUTING: leave the unmarked alone": Row(
            r"-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "pod to svc2 cluster IP",
            (None, ("! --mark", "--mark"))),
        "KUBE-POSTROUTING: whom it leaves alone": Row(
            r"-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "external to svc3 NodePort",
            (("0x4000/0x4000", "0x8000/0x8000"),)),
        "KUBE-POSTROUTING: masquerade": Row(
            r"-A KUBE-POSTROUTING .*-j MASQUERADE", "external to svc3 NodePort",
            (None, ("-j MASQUERADE --random-fully", "-j SNAT --to-source 192.168.0.99"))),
        "KUBE-MARK-MASQ": Row(
            r"-A KUBE-MARK-MASQ -j MARK", "external to svc3 NodePort", (None, ("0x4000/0x4000", "0x8000/0x8000"))),
        "KUBE-SERVICES: the last rule": Row(
            r"-A KUBE-SERVICES .*must be the last rule", "external to svc3 NodePort",
            (None, ("--dst-type LOCAL", "--dst-type BROADCAST"), ("-m addrtype", "-s 10.0.0.0/8 -m addrtype"))),
    },
    "no-endpoints-reject": {
        "b': external IP": Row(
            r"-A KUBE-EXTERNAL-SERVICES -d 192\.168\.99\.11/32 .*no endpoints",
            "external to external IP with no endpoints",
            (None, ("-j REJECT --reject-with icmp-port-unreachable", "-j RETURN")), table="filter"),
        "c': load balancer": Row(
            r"-A KUBE-EXTERNAL-SERVICES -d 1\.2\.3\.4/32 .*no endpoints",
            "external to LoadBalancer IP with no endpoints", (None, ("--dport 80", "--dport 81")), table="filter"),
        "d': node port": Row(
            r"-A KUBE-EXTERNAL-SERVICES -p tcp .*no endpoints", "external to NodePort with no endpoints",
            (None, ("--dport 3001", "--dport 3002")), table="filter"),
    },
    "trace-packet-v4": {
        "b': external IP without local endpoints": Row(
            r"-A KUBE-EXTERNAL-SERVICES -d 192\.168\.99\.22/32 .*no local endpoints", "DROP",
            (None, ("-j DROP", "-j REJECT"), ("-d 192.168.99.22/32", "-d 192.168.99.23/32")), table="filter"),
        "e: health check node port": Row(
            r"-A KUBE-NODEPORTS .*health check node port", "ACCEPT (NodePortHealthCheck)",
            (None, ("--dport 30000", "--dport 30001"), ("-j ACCEPT", "-j DROP")), table="filter"),
    },
    "categorize-internaltrafficpolicy-local-but-all-endpoints-are-remote": {
        "a': no local endpoints": Row(
            r"-A KUBE-SERVICES .*has no local endpoints", "pod to cluster IP",
            (None, ("-j DROP", "-j REJECT"), ("--dport 80", "--dport 81")), table="filter"),
    },
    "loadbalancer": {
        "FW: a source range": Row(
            r"-A KUBE-FW-\S+ -s 203\.0\.113\.0/25 ", "accepted external to LB1",
            (None, ("203.0.113.0/25", "203.0.113.128/25"), ("-j KUBE-EXT-", "-j KUBE-SVC-"))),
        "FW: a range that is too wide": Row(
            r"-A KUBE-FW-\S+ -s 203\.0\.113\.0/25 ", "blocked external to LB1",
            (("203.0.113.0/25", "203.0.113.0/24"),)),
        "FW: the node's own way to the load balancer": Row(
            r"-A KUBE-FW-\S+ -s 1\.2\.3\.4/32 ", "same node to LB1, SNATted to LB1 (implicitly allowed)",
            (None, ("-s 1.2.3.4/32", "-s 5.6.7.9/32"))),
    },
    "own-etp-local-nodeport": {
        "EXT Local: to SVL": Row(
            r"-A KUBE-EXT-\S+ -j KUBE-SVL-", "client IP is kept", (None, ("-j KUBE-SVL-", "-j KUBE-SVC-"))),
        "SVL: balance": Row(
            r"-A KUBE-SVL-\S+ .*--probability", "client IP is kept",
            (None, ("0.50000000000", "1.00000000000")), step="two endpoints here"),
        "SVL: the last endpoint": Row(
            r"-A KUBE-SVL-\S+ (?!.*--probability)", "client IP is kept", (None,), step="two endpoints here"),
    },
    "own-distribution": {
        "SVC: balance": Row(
            r"-A KUBE-SVC-\S+ .*--probability 0\.25000000000", "cluster IP",
            (None, ("0.25000000000", "1.00000000000"), ("0.25000000000", "0.05000000000"))),
        "SVC: the last endpoint": Row(
            r"-A KUBE-SVC-\S+ .*-> 10\.180\.1\.2:80", "cluster IP", (None,)),
    },
    "own-hairpin": {
        "SEP: hairpin": Row(
            r"-A KUBE-SEP-\S+ -s 10\.180\.0\.1/32 .*ns1/svc1", "to itself through its cluster IP",
            (None, ("10.180.0.1/32", "10.180.0.9/32"), ("-j KUBE-MARK-MASQ", "-j RETURN"))),
    },
    "own-affinity-tcp": {
        "SVC: affinity": Row(
            r"-A KUBE-SVC-\S+ .*--rcheck", "every client sticks, clients differ",
            (None, ("--rcheck", "! --rcheck"))),
        "SEP: remember the client": Row(
            r"-A KUBE-SEP-\S+ .*--set ", "every client sticks, clients differ",
            (("--set", "--remove"), ("--name KUBE-SEP-", "--name KUBE-SEB-"))),
    },
}  # fmt: skip


def edited(text: str, rule: str, edit: Edit) -> str:
    """A table in which the rules that match are different or gone."""
    lines = []
    for line in text.splitlines():
        if not re.match(rule, line):
            lines.append(line)
        elif edit is not None:
            assert edit[0] in line, line
            lines.append(line.replace(*edit))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ROWS)
def test_every_rule_that_is_gone_or_altered_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(name)
    overlooked: list[str] = []
    looked_at = 0

    def meddle(stage: Stage, step: Step) -> None:
        nonlocal looked_at
        flows = {flow.name: flow for flow in one.step(step.name).flows}
        for title, row in ROWS[name].items():
            if (row.step or one.steps[0].name) != step.name:
                continue
            flow = flows[row.flow]
            for edit in row.edits:
                stage.forget_affinity()
                before = stage.run("iptables-legacy-save", "-t", row.table)
                stage.edit(4, row.table, lambda text, row=row, edit=edit: edited(text, row.rule, edit))  # type: ignore[misc]
                with monkeypatch.context() as patched:
                    patched.setattr(exchange, "PATIENCE", exchange.SILENCE)  # most edits end in silence
                    if not stage.send([flow]):
                        overlooked.append(f"{title}: {edit or 'deleted'}")
                stage.run("iptables-legacy-restore", text=before)
                looked_at += 1
        stage.forget_affinity()

    wanted = {row.step or one.steps[0].name for row in ROWS[name].values()}
    steps = tuple(step for step in one.steps if step.name in wanted)
    record = play(replace(one, steps=steps), "legacy", meddle=meddle)

    assert looked_at == sum(len(row.edits) for row in ROWS[name].values())
    assert not overlooked
    assert not record.wrong, f"although the rules are back:\n{record.report()}"
