"""`kproxy lab check` and `lab up` on hosts that lack something: each in namespaces that play the host.

Such a host has a network namespace, mounts, a /run and process ids of its own. What a test breaks is broken there
alone, and all of it, labs included, is gone when the test's first process ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab_support import host_state

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
LAB = "hc"
KPROXY = f"{sys.executable} -P -m kproxy"
SERVE = f"""
{KPROXY} apply -f {ROOT}/manifests/nodeport --wait=20 >/dev/null
{KPROXY} exec client -- curl -s --max-time 5 http://192.168.1.2:31000/hostname
"""


def on_host(prepare: str, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script on a host of its own, prepared first; stops at the first command that fails."""
    begin = "mount -t tmpfs none /run; mkdir -p /run/netns /var/lib/kproxy; mount -t tmpfs none /var/lib/kproxy\n"
    enclose = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.run(
        [*enclose, "bash", "-ec", f"{begin}{prepare}\n{script}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "KPROXY_LAB": LAB},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def hide(*paths: str) -> str:
    return "".join(f"for path in {path}; do mount --bind /dev/null $path; done\n" for path in paths)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {one["what"]: one["state"] for one in report["conditions"]}


NO_LEGACY = hide("/usr/sbin/xtables-legacy-multi")
NO_NFT = hide("/usr/sbin/xtables-nft-multi", "/usr/sbin/nft")
NO_STATISTIC = hide("/usr/lib/*/xtables/libxt_statistic.so")
NO_RECENT = hide("/usr/lib/*/xtables/libxt_recent.so")
STRICT_RP_FILTER = "for each in all default; do echo 1 >/proc/sys/net/ipv4/conf/$each/rp_filter; done"
READ_ONLY = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys\n"

WORKS = [
    ("nothing is wrong", "", {"iptables": "ok"}, "legacy"),
    ("no legacy iptables", NO_LEGACY, {"iptables-legacy": "note", "iptables": "note"}, "nft"),
    ("no nftables", NO_NFT, {"iptables-nft": "note", "nftables": "limited", "nft": "limited"}, "legacy"),
    (
        "FORWARD drops, legacy",
        "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP",
        {"FORWARD policy": "note"},
        "legacy",
    ),
    ("FORWARD drops, nft", "iptables-nft -P FORWARD DROP", {"FORWARD policy": "note"}, "legacy"),
    (
        "strict rp_filter",
        STRICT_RP_FILTER,
        {"rp_filter": "note"},
        "legacy",
    ),
    ("no session affinity", NO_RECENT, {"iptables-legacy: match recent": "limited"}, "legacy"),
    ("no bubblewrap", hide("/usr/bin/bwrap"), {"bwrap": "limited"}, "legacy"),
]


@pytest.mark.parametrize(
    ("prepare", "expected", "variant"), [case[1:] for case in WORKS], ids=[case[0] for case in WORKS]
)
def test_a_lab_works_and_the_condition_is_named(prepare: str, expected: dict[str, str], variant: str) -> None:
    done = on_host(prepare, f"{KPROXY} lab check -o json\necho ---\n{KPROXY} lab up\n{KPROXY} lab status\n{SERVE}")
    assert done.returncode == 0, done.stderr
    text, _, rest = done.stdout.partition("---\n")
    report = json.loads(text)
    assert report["ok"]
    assert report["variant"] == variant
    assert states(report).items() >= expected.items()
    assert ["iptables:", variant] in [line.split() for line in rest.splitlines()]
    assert rest.splitlines()[-1].startswith("front-")
    # What limits a lab is said when one is brought up, too; what is harmless is not.
    said = {what for what in expected if f"note: {what}: " in done.stderr}
    assert said == {what for what, state in expected.items() if state != "ok" and what in SAID_BY_UP}


SAID_BY_UP = ("iptables-legacy", "iptables", "iptables-legacy: match recent", "bwrap")
"""`lab up` looks no further than the variant that it uses."""


def test_bridges_that_call_iptables_are_no_obstacle() -> None:
    key = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    if not Path(key).exists():
        pytest.skip("this kernel has no br_netfilter loaded; the test in the virtual machine loads it")
    done = on_host(f"echo 1 >{key}", f"{KPROXY} lab check -o json\necho ---\n{KPROXY} lab up\n{SERVE}")
    assert done.returncode == 0, done.stderr
    assert states(json.loads(done.stdout.partition("---\n")[0]))["br_netfilter"] == "note"


FAILS = [
    ("no iptables", NO_LEGACY + NO_NFT, "", "iptables: legacy: iptables's tools are not installed; nft: iptables's"),
    ("no match statistic", NO_STATISTIC, "", "match statistic"),
    ("nft was asked for", NO_NFT, "--iptables-variant nft", "nft: iptables's tools are not installed"),
    ("read-only settings", READ_ONLY, "", "settings of namespaces: "),
]


@pytest.mark.parametrize(("prepare", "options", "said"), [case[1:] for case in FAILS], ids=[case[0] for case in FAILS])
def test_where_no_lab_comes_up_nothing_is_made(prepare: str, options: str, said: str) -> None:
    up = f"status=0; {KPROXY} lab up {options} || status=$?"
    done = on_host(prepare, f"{up}; find /run /var/lib/kproxy -mindepth 1 -maxdepth 1 ! -name mount; exit $status")
    assert done.returncode == 1
    assert "this host lacks what the lab needs" in done.stderr
    assert said in done.stderr
    assert done.stdout.split() == ["/run/netns"]


@pytest.mark.parametrize("prepare", [NO_LEGACY + NO_NFT, NO_STATISTIC, READ_ONLY])
def test_check_fails_where_no_lab_comes_up(prepare: str) -> None:
    done = on_host(prepare, f"{KPROXY} lab check")
    assert done.returncode == 1
    assert done.stdout.endswith("\nNo lab comes up here.\n")
    assert " missing " in done.stdout


def test_without_the_capability_the_namespace_is_named() -> None:
    done = on_host("", f"setpriv --bounding-set -sys_admin --inh-caps -sys_admin {KPROXY} lab check -o json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert states(report)["network namespaces"] == "missing"
    assert "Operation not permitted" in next(
        one["detail"] for one in report["conditions"] if one["what"] == "network namespaces"
    )


def test_somebody_who_is_not_root_is_told_so() -> None:
    done = on_host("", f"setpriv --reuid 65534 --clear-groups {KPROXY} lab check -o json")
    assert done.returncode == 1, done.stderr
    assert states(json.loads(done.stdout))["permissions"] == "missing"


def test_checking_leaves_the_host_as_it_was() -> None:
    subprocess.run(
        [sys.executable, "-P", "-m", "kproxy", "lab", "check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )  # what the kernel loads by itself is there from now on
    before = host_state()
    subprocess.run(
        [sys.executable, "-P", "-m", "kproxy", "lab", "check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    assert host_state() == before
