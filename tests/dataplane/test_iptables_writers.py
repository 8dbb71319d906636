"""Two writers, one kernel state: iptables-restore and python-iptables over the objects of every conformance case."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from netns_world import world

from kproxy.api.types import Node
from kproxy.errors import TransactionError
from kproxy.proxy.backends.iptables.host import find_tools
from kproxy.proxy.backends.iptables.python_iptables import PythonIptablesBackend
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS, Settings
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.changes import Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import make_counters
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.plan import PlanDelta
from kproxy.proxy.setup import LOOPBACK, HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources import TYPES, key_of, typed
from netns.namespace import Namespace, create, remove, run_in

pytestmark = pytest.mark.root

CASES = Path(__file__).parents[1] / "conformance" / "cases"
NAMES = sorted(path.stem for path in CASES.glob("*.yaml"))
CANNOT_BE = {"sync-repeated-nftables"}


@dataclass
class Pair:
    """Two namespaces, one for each writer."""

    restored: Namespace
    libiptc: Namespace
    counters: frozenset[str]
    compared: set[str]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with world("twr") as place, pytest.MonkeyPatch.context() as patched:
        place.private.mkdir()
        lock = place.folder / "xtables.lock"
        patched.setenv("XTABLES_LOCKFILE", str(lock))
        made = [create(f"{place.prefix}-{name}", place.private) for name in ("restore", "libiptc")]
        counters = [run_in(namespace, make_counters, COUNTERS) for namespace in made]
        assert counters[0] == counters[1]
        yield Pair(made[0], made[1], counters[0], set())
        for namespace in made:
            remove(namespace)
        lock.unlink(missing_ok=True)


def saved(namespace: Namespace, family: Family) -> str:
    """All tables, without time stamps; counters would show packets, of which there are none."""
    tool = find_tools("legacy", family).save
    done = run_in(namespace, subprocess.run, [tool, "-c"], capture_output=True, text=True, check=True)
    return "\n".join(line for line in str(done.stdout).splitlines() if not line.startswith("#"))


def config_of(case: dict[str, Any]) -> ProxyConfig:
    config = case["config"]
    return ProxyConfig(
        detect_local_mode=config.get("detectLocalMode") or "ClusterCIDR",
        cluster_cidr=tuple((config.get("clusterCIDR") or "").split(",")) if config.get("clusterCIDR") else (),
        masquerade_all=config["masqueradeAll"],
        iptables_masquerade_bit=config["masqueradeBit"],
        iptables_localhost_nodeports=config.get("localhostNodePorts", True),
        nodeport_addresses=tuple(config["nodePortAddresses"]),
    )


def deltas(case: dict[str, Any], family: Family, counters: frozenset[str]) -> Iterator[tuple[Settings, PlanDelta]]:
    """What each step of a case changes; the first is a full one."""
    config, name = config_of(case), case["node"]["name"]
    tracker, known = Tracker(family, name), dict[ObjectKey, Tracked]()
    for step in case["steps"]:
        now = {key_of(obj): typed(obj) for obj in step["objects"] if obj["kind"] in TYPES}
        tracker.take(Change(key, known.get(key), now.get(key)) for key in {**known, **now})
        node = next((facts(value) for value in now.values() if isinstance(value, Node)), NodeFacts())
        around = circumstances(config, name, node, family)
        scope = node_port_scope(config, node, family, (*case["node"]["ips"], LOOPBACK[family]))
        settings = iptables_settings(config, node, family, HostFeatures(counters))
        yield settings, tracker.delta(around, scope, is_full=not known)
        known = now


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", NAMES)
def test_both_writers_leave_the_same_rules(pair: Pair, name: str, family: Family) -> None:
    """Step by step, so that syncs of some chains and the deletion of stale ones are compared too."""
    case = yaml.load((CASES / f"{name}.yaml").read_text(), yaml.CSafeLoader)
    steps = list(deltas(case, family, pair.counters))
    rules = RuleSet(steps[0][0])
    story = "".join(rules.saved() for _, delta in steps if rules.take(delta))
    if story in pair.compared:
        return  # the other family's half of many cases is empty: once is enough
    pair.compared.add(story)
    tools = find_tools("legacy", family)
    restore, libiptc = (backend(tools, steps[0][0]) for backend in (IptablesBackend, PythonIptablesBackend))

    for _, delta in steps:
        run_in(pair.restored, restore.apply, delta)
        run_in(pair.libiptc, libiptc.apply, delta)

        assert saved(pair.libiptc, family) == saved(pair.restored, family)
    assert "-A KUBE-POSTROUTING" in saved(pair.libiptc, family)


SERVICES = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.50",
            "externalIPs": ["198.51.100.7"],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31999,
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "sessionAffinity": "ClientIP",
            "ports": [
                {"name": name, "protocol": protocol, "port": port, "nodePort": 30000 + port}
                for name, protocol, port in (("http", "TCP", 80), ("dns", "UDP", 53), ("none", "TCP", 81))
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": [f"10.244.1.{number}"], "nodeName": "node" if number % 2 else "other"}
            for number in range(2, 9)
        ],
    },
]


def full_delta(config: ProxyConfig, objects: list[dict[str, Any]]) -> PlanDelta:
    tracker = Tracker(Family.IPV4, "node")
    tracker.take(Change(key_of(obj), None, typed(obj)) for obj in objects)
    around = circumstances(config, "node", NodeFacts(), Family.IPV4)
    scope = node_port_scope(config, NodeFacts(), Family.IPV4, ("192.168.0.2", "127.0.0.1"))
    return tracker.delta(around, scope, is_full=True)


@pytest.mark.parametrize(
    "config",
    [
        {"cluster_cidr": ("10.244.0.0/16",)},
        {"detect_local_mode": "BridgeInterface", "pod_bridge_interface": "cni0"},
        {"detect_local_mode": "InterfaceNamePrefix", "pod_interface_name_prefix": "cali"},
        {"masquerade_all": True, "iptables_masquerade_bit": 31, "iptables_localhost_nodeports": False},
        {"nodeport_addresses": ("192.168.0.0/24", "127.0.0.0/8")},
    ],
    ids=lambda config: " ".join(map(str, next(iter(config.items())))),
)
def test_both_writers_agree_on_every_kind_of_rule(pair: Pair, config: dict[str, Any]) -> None:
    chosen = ProxyConfig(**config)
    tools = find_tools("legacy", Family.IPV4)
    host = HostFeatures(pair.counters, has_random_fully="masquerade_all" not in config)
    settings = iptables_settings(chosen, NodeFacts(), Family.IPV4, host)
    delta = full_delta(chosen, SERVICES)

    run_in(pair.restored, IptablesBackend(tools, settings).apply, delta)
    run_in(pair.libiptc, PythonIptablesBackend(tools, settings).apply, delta)

    assert saved(pair.libiptc, Family.IPV4) == saved(pair.restored, Family.IPV4)


def test_a_refused_write_is_reported_and_leaves_every_table_whole(pair: Pair) -> None:
    """Rules that name a counter which is not there: the kernel refuses the table."""
    tools = find_tools("legacy", Family.IPV4)
    good = iptables_settings(ProxyConfig(), NodeFacts(), Family.IPV4, HostFeatures())
    bad = iptables_settings(ProxyConfig(), NodeFacts(), Family.IPV4, HostFeatures(frozenset(COUNTERS)))
    with world("twb") as place:
        place.private.mkdir()
        namespace = create(f"{place.prefix}-node", place.private)
        try:
            run_in(namespace, PythonIptablesBackend(tools, good).apply, full_delta(ProxyConfig(), SERVICES))
            before = saved(namespace, Family.IPV4)
            assert "-A KUBE-SEP-" in before

            with pytest.raises(TransactionError, match="python-iptables refused the rules"):
                run_in(namespace, PythonIptablesBackend(tools, bad).apply, full_delta(ProxyConfig(), SERVICES))

            assert saved(namespace, Family.IPV4) == before
        finally:
            remove(namespace)


def test_it_waits_for_the_lock_of_the_iptables_tools(pair: Pair) -> None:
    tools = find_tools("legacy", Family.IPV4)
    settings = iptables_settings(ProxyConfig(), NodeFacts(), Family.IPV4, HostFeatures())
    lock = Path(os.environ["XTABLES_LOCKFILE"])
    run_in(pair.libiptc, PythonIptablesBackend(tools, settings).apply, full_delta(ProxyConfig(), SERVICES))
    with lock.open("w") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = saved(pair.libiptc, Family.IPV4)
        backend = PythonIptablesBackend(tools, settings)
        written = pool.submit(run_in, pair.libiptc, backend.apply, full_delta(ProxyConfig(), []))
        with pytest.raises(TimeoutError):
            written.result(1.5)
        assert saved(pair.libiptc, Family.IPV4) == before
        fcntl.flock(held, fcntl.LOCK_UN)
        written.result(5)

    assert "KUBE-SEP-" not in saved(pair.libiptc, Family.IPV4)
