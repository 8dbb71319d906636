"""What the writer does to real tables, in a network namespace of its own, with both variants of iptables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from iptables_world import network_namespace, rules_of, tools_within

from kproxy.errors import TransactionError
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.iptables import writer
from kproxy.proxy.backends.iptables.host import Tools, Variant, find_tools, run_tool
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import JUMPS, Settings
from kproxy.proxy.backends.iptables.writer import IptablesBackend, clean_up
from kproxy.proxy.changes import Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope, PlanDelta
from kproxy.proxy.sources.directory import read_directory

pytestmark = pytest.mark.root

MANIFESTS = Path(__file__).parents[2] / "golden" / "rules" / "worked-example"
AROUND = Circumstances(NodeIdentity("A"), ("192.168.1.2",), has_detector=True)
SETTINGS = Settings(Family.IPV4, detector=Detector(DetectBy.SOURCE, "10.244.0.0/16"))


@pytest.fixture
def namespace() -> Iterator[int]:
    """The pid of a process in a network namespace that lives as long as the test."""
    with network_namespace() as pid:
        yield pid


@pytest.fixture(params=["legacy", "nft"])
def tools(request: pytest.FixtureRequest, namespace: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """One variant's tools for IPv4, each running in the namespace."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    return tools_within(find_tools(request.param, Family.IPV4), namespace, tmp_path)


def objects() -> dict[ObjectKey, Tracked]:
    found, findings, _, _ = read_directory(MANIFESTS)
    assert not findings
    return found


def full(world: dict[ObjectKey, Tracked]) -> PlanDelta:
    tracker = Tracker(Family.IPV4, "A")
    tracker.take(Change(key, None, value) for key, value in world.items())
    return tracker.delta(AROUND, NodePortScope(None, includes_loopback=True), is_full=True)


def saved(tools: Tools) -> dict[tuple[str, str], list[str]]:
    return rules_of(run_tool((tools.save,)))


def expected(delta: PlanDelta) -> dict[tuple[str, str], list[str]]:
    rules = RuleSet(SETTINGS)
    rules.take(delta)
    return rules_of(rules.saved())


def test_kernel_holds_what_is_rendered_also_after_a_second_full_sync(tools: Tools) -> None:
    backend = IptablesBackend(tools, SETTINGS)
    delta = full(objects())

    for _ in range(2):
        backend.apply(delta)
        assert saved(tools) == expected(delta)
    assert sum(len(rules) for (_, chain), rules in saved(tools).items() if not chain.startswith("KUBE-")) == len(JUMPS)


def test_partial_sync_touches_the_changed_service_alone(tools: Tools) -> None:
    world = objects()
    tracker = Tracker(Family.IPV4, "A")
    tracker.take(Change(key, None, value) for key, value in world.items())
    backend = IptablesBackend(tools, SETTINGS)
    backend.apply(tracker.delta(AROUND, NodePortScope(None, includes_loopback=True), is_full=True))
    counted = "[7:700] -A KUBE-SVC-CDGGSHYLG3RE2FKL -m comment --comment counted"
    run_tool((tools.restore, "--noflush", "--counters"), f"*nat\n{counted}\nCOMMIT\n")

    key = ObjectKey("EndpointSlice", "default", "edge-1")
    tracker.take([Change(key, world[key], None)])
    backend.apply(tracker.delta(AROUND, NodePortScope(None, includes_loopback=True)))

    assert "[7:700] -A KUBE-SVC-CDGGSHYLG3RE2FKL" in run_tool((tools.save, "-c", "-t", "nat"))
    run_tool((tools.restore, "--noflush"), f"*nat\n-D{counted.partition('-A')[2]}\nCOMMIT\n")
    del world[key]
    assert saved(tools) == expected(full(world))


def test_leavings_of_an_earlier_proxy_go_and_rules_of_others_stay(tools: Tools) -> None:
    left = "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]\n:MINE - [0:0]\n"
    left += "-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB\n-A PREROUTING -j MINE\nCOMMIT\n"
    left += "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n"
    run_tool((tools.restore, "--noflush"), left)
    delta = full(objects())

    IptablesBackend(tools, SETTINGS).apply(delta)

    assert saved(tools) == expected(delta)
    text = run_tool((tools.save,))
    assert "-A PREROUTING -j MINE" in text
    assert "-A INPUT -p icmp -j ACCEPT" in text


def test_canary_tells_whether_chains_are_lost(tools: Tools) -> None:
    backend = IptablesBackend(tools, SETTINGS)
    backend.apply(full(objects()))
    assert backend.condition() is Condition.INTACT

    run_tool((tools.restore,), "*mangle\nCOMMIT\n")
    assert backend.condition() is Condition.BEING_LOST
    run_tool((tools.restore,), "*nat\nCOMMIT\n*filter\nCOMMIT\n")
    assert backend.condition() is Condition.LOST

    backend.apply(full(objects()))
    assert saved(tools) == expected(full(objects()))


def test_refused_line_is_named_and_the_next_full_sync_mends_it(tools: Tools) -> None:
    world = objects()
    bad = Settings(Family.IPV4, counters=frozenset({"ct_state_invalid_dropped_pkts"}))

    with pytest.raises(TransactionError) as refused:  # that counter does not exist in this namespace
        IptablesBackend(tools, bad).apply(full(world))

    assert refused.value.line > 0
    IptablesBackend(tools, SETTINGS).apply(full(world))
    assert saved(tools) == expected(full(world))


def test_clean_up_leaves_kubelets_chain_alone(tools: Tools) -> None:
    IptablesBackend(tools, SETTINGS).apply(full(objects()))

    clean_up(tools)
    clean_up(tools)

    left = saved(tools)
    assert {chain for _, chain in left} == {"KUBE-FIREWALL", "INPUT", "OUTPUT"}
    assert ":KUBE-PROXY-CANARY" not in run_tool((tools.save,))


def test_load_that_is_cut_leaves_what_a_whole_one_leaves(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    if tools.variant == "legacy":
        tools = msgspec.structs.replace(tools, variant="nft")  # what is cut is no matter of the tool
    monkeypatch.setattr(writer, "MAX_NFT_RULES", 10)
    monkeypatch.setattr(writer, "_PORTS_AT_A_TIME", 1)
    calls: list[str] = []

    def run(argv: Sequence[str], pieces: Iterable[str]) -> str:
        calls.append(argv[0])
        return run_tool(argv, pieces)

    written: list[Mapping[str, int]] = []
    backend = IptablesBackend(tools, SETTINGS, lambda total, last: written.extend((total, last)), run)
    for _ in range(2):  # into nothing, and over what is there
        backend.apply(full(objects()))
        assert saved(tools) == expected(full(objects()))

    assert written[1]["nat"] == written[0]["nat"] + 1  # that of KUBE-MARK-MASQ, to which the first chains lead
    assert len(calls) > 2 * 3


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(
    "detector",
    [None, Detector(DetectBy.INTERFACE, "cni0"), Detector(DetectBy.INTERFACE_PREFIX, "veth")],
    ids=["cidr", "bridge", "prefix"],
)
def test_every_kind_of_rule_reads_back_as_it_is_rendered(
    variant: Variant,
    family: Family,
    detector: Detector | None,
    namespace: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    found = read_directory(MANIFESTS.parent / "every-kind-of-rule").objects
    tracker = Tracker(family, "A")
    tracker.take(Change(key, None, value) for key, value in found.items())
    cidr = Detector(DetectBy.SOURCE, "10.244.0.0/16" if family is Family.IPV4 else "fd00:10:244::/48")
    settings = Settings(family, detector=detector or cidr, has_localhost_node_ports=family is Family.IPV4)
    addresses = None if detector is None else ("192.168.1.2" if family is Family.IPV4 else "fd00:1::2",)
    delta = tracker.delta(AROUND, NodePortScope(addresses), is_full=True)
    tools = tools_within(find_tools(variant, family), namespace, tmp_path)
    rendered = RuleSet(settings)
    rendered.take(delta)

    IptablesBackend(tools, settings).apply(delta)

    assert saved(tools) == rules_of(rendered.saved())


NETLINK_SCENARIO = """
import socket, subprocess
from kproxy.proxy.conntrack import ConntrackReconciler
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import local_addresses, make_counters
from kproxy.proxy.services import PortSpec, ServiceName, ServicePortName

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("link", "set", "lo", "up")
for address in ("10.244.0.2/32", "10.244.0.3/32", "fd00::2/128"):
    ip("addr", "add", address, "dev", "lo")
ip("route", "add", "10.96.0.0/16", "dev", "lo")
assert local_addresses() == ("10.244.0.2", "10.244.0.3", "127.0.0.1", "::1", "fd00::2"), local_addresses()

assert make_counters(("one", "two")) == make_counters(("one", "two"))
RULES = "*nat\\n-A OUTPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -j DNAT --to-destination %s:5353\\nCOMMIT\\n"

def dnat_to(address):
    subprocess.run(["iptables-legacy-restore"], input=RULES % address, text=True, check=True)

servers = {}
for address in ("10.244.0.2", "10.244.0.3"):
    servers[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    servers[address].bind((address, 5353))
    servers[address].settimeout(0.3)
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.96.0.10", 53))

def who_gets_it():
    client.send(b"x")
    for address, server in servers.items():
        try:
            server.recv(9)
        except TimeoutError:
            continue
        return address

spec = PortSpec(ServicePortName("default", "dns", "", "UDP"), "10.96.0.10", 53)
dns = ServiceName("default", "dns")
reconciler = ConntrackReconciler(Family.IPV4, local_addresses)
dnat_to("10.244.0.2")
assert who_gets_it() == "10.244.0.2"
dnat_to("10.244.0.3")
assert reconciler.reconcile({dns: ((spec, frozenset({"10.244.0.2:5353", "10.244.0.3:5353"})),)}) == 0
assert who_gets_it() == "10.244.0.2"
assert reconciler.reconcile({dns: ((spec, frozenset({"10.244.0.3:5353"})),)}) == 1
assert who_gets_it() == "10.244.0.3"
assert reconciler.reconcile({dns: ()}) == 1
assert reconciler.reconcile({}) == 0
"""


def test_netlink_requests_against_a_real_kernel(tmp_path: Path) -> None:
    """Addresses, packet counters, and a UDP client that follows its Service only when its flow is forgotten."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XTABLES_LOCKFILE": str(tmp_path / "lock")}

    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-W", "ignore::ResourceWarning", "-c", NETLINK_SCENARIO],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert re.sub(r"\s+", " ", done.stderr) == ""
    assert done.returncode == 0
