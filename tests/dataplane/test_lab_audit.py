"""`kproxy audit` in a lab: it says what somebody did to a node's rules, and `lab resync` undoes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import answers, apply, pod, ready_pods, running, service, until, wait_until_programmed

from kproxy.api.kinds import SERVICE
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.host import run_on
from kproxy.cluster.layout import Layout, python_environment

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[2]
READERS = {"legacy": "libiptc", "nft": "iptables-save"}


@pytest.fixture(scope="module", params=READERS)
def up(request: pytest.FixtureRequest) -> Iterator[tuple[Layout, Client, str]]:
    with running(f"au{os.getpid() % 10000}", iptables_variant=request.param, ip_families=("IPv4", "IPv6")) as lab_up:
        layout, client = lab_up
        both = {"ipFamilyPolicy": "RequireDualStack"}
        apply(
            client,
            *(pod(f"web-{number}", nodeName=f"node{number}") for number in (1, 2)),
            service("web", type="NodePort", sessionAffinity="ClientIP", **both),
            service("local", type="LoadBalancer", externalTrafficPolicy="Local", **both),
        )
        ready_pods(client, 2)
        wait_until_programmed(layout, client, ["node1", "node2"])
        yield layout, client, request.param


def kproxy(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "kproxy", "--lab", layout.lab, *arguments]
    environment = {**python_environment(), "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)


def audit(layout: Layout, node: str) -> dict[str, Any]:
    done = kproxy(layout, "audit", node, "-o", "json")
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if said["ok"] else 1)
    return said


def drifts(said: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (family["family"], row["table"], row["chain"], row["drift"])
        for family in said["families"]
        for row in family["rules"]
        if row["drift"]
    ]


def packets(said: dict[str, Any], address: str) -> int:
    """What the rule that takes packets to a cluster IP has counted."""
    rules = [row for row in said["families"][0]["rules"] if row["table"] == "nat" and f"-d {address}/32" in row["rule"]]
    counts: list[int] = [row["packets"] for row in rules if row["chain"] == "KUBE-SERVICES"]
    assert len(counts) == 1
    return counts[0]


def test_untouched_nodes_are_as_planned_and_rules_are_shown_with_their_packets(up: tuple[Layout, Client, str]) -> None:
    layout, client, variant = up
    address = client.get(SERVICE, "web", "default")["spec"]["clusterIP"]
    until(lambda: answers(layout, "node1", address, 80), "the Service's endpoints in the kernel")
    before = packets(audit(layout, "node1"), address)
    for _ in range(3):
        assert answers(layout, "node1", address, 80)

    said = audit(layout, "node1")

    assert (said["ok"], drifts(said)) == (True, [])
    assert [family["reader"] for family in said["families"]] == 2 * [READERS[variant]]
    assert packets(said, address) == before + 3
    assert audit(layout, "node2")["ok"]


DAMAGE = {
    "a jump is deleted": (
        ["iptables", "-t", "nat", "-D", "PREROUTING", "1"],
        [("IPv4", "nat", "PREROUTING", "deleted")],
    ),
    "a mask is changed": (
        ["iptables", "-t", "nat", "-R", "KUBE-MARK-MASQ", "1", "-j", "MARK", "--set-xmark", "0x4000/0x4001"],
        [("IPv4", "nat", "KUBE-MARK-MASQ", "changed")],
    ),
    "a rule is added": (
        ["iptables", "-A", "KUBE-FORWARD", "-j", "DROP"],
        [("IPv4", "filter", "KUBE-FORWARD", "not planned")],
    ),
    "a chain of IPv6 is emptied": (
        ["ip6tables", "-t", "nat", "-F", "KUBE-MARK-MASQ"],
        [("IPv6", "nat", "KUBE-MARK-MASQ", "deleted")],
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_resync_repairs_it(up: tuple[Layout, Client, str], what: str) -> None:
    layout, *_ = up
    command, expected = DAMAGE[what]

    run_on(layout, "node1", command)

    assert drifts(audit(layout, "node1")) == expected
    assert audit(layout, "node2")["ok"]
    lab.resync(layout.lab)
    assert audit(layout, "node1")["ok"]


def test_moved_jump_and_foreign_rule(up: tuple[Layout, Client, str]) -> None:
    """Others may have rules in built-in chains; ours keep their order among themselves."""
    layout, *_ = up
    run_on(layout, "node1", ["iptables", "-I", "FORWARD", "1", "-i", "eth77", "-j", "ACCEPT"])
    assert audit(layout, "node1")["ok"]
    saved = run_on(layout, "node1", ["iptables-save", "-t", "filter"]).splitlines()
    jump = next(line for line in saved if line.startswith("-A FORWARD") and line.endswith("-j KUBE-FORWARD"))
    text = "\n".join(("*filter", f"-D{jump[2:]}", jump, "COMMIT", ""))
    run_on(layout, "node1", ["iptables-restore", "--noflush"], text)

    done = kproxy(layout, "audit", "node1", "--drift-only")

    assert done.returncode == 1
    assert "^ moved: it is rule 5 of FORWARD" in done.stdout
    assert "`kproxy lab resync`" in done.stdout
    lab.resync(layout.lab)
    assert audit(layout, "node1")["ok"]
    run_on(layout, "node1", ["iptables", "-D", "FORWARD", "-i", "eth77", "-j", "ACCEPT"])


def test_what_cannot_be_audited_is_said(up: tuple[Layout, Client, str]) -> None:
    layout, *_ = up

    done = kproxy(layout, "audit", "node9")

    assert done.returncode == 1
    assert done.stderr == 'error: node "node9" not found; there are: node1, node2, node3\n'
