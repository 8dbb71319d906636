"""Two writers, one kernel state: iptables-restore and python-iptables over the objects of every conformance case."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rule_worlds import NAMES, SERVICES, bare_nodes, deltas, full_delta, read_case, saved

from kproxy.errors import TransactionError
from kproxy.proxy.backends.iptables.host import find_tools
from kproxy.proxy.backends.iptables.python_iptables import PythonIptablesBackend
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import make_counters
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.setup import HostFeatures, iptables_settings
from netns.namespace import Namespace, run_in

pytestmark = pytest.mark.root


@dataclass
class Pair:
    """Two namespaces, one for each writer."""

    restored: Namespace
    libiptc: Namespace
    counters: frozenset[str]
    compared: set[str]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with bare_nodes("twr", "restore", "libiptc") as (restored, libiptc):
        counters = [run_in(namespace, make_counters, COUNTERS) for namespace in (restored, libiptc)]
        assert counters[0] == counters[1]
        yield Pair(restored, libiptc, counters[0], set())


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", NAMES)
def test_both_writers_leave_the_same_rules(pair: Pair, name: str, family: Family) -> None:
    """Step by step, so that syncs of some chains and the deletion of stale ones are compared too."""
    case = read_case(name)
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


def test_a_refused_write_is_reported_and_leaves_every_table_whole() -> None:
    """Rules that name a counter which is not there: the kernel refuses the table."""
    tools = find_tools("legacy", Family.IPV4)
    good = iptables_settings(ProxyConfig(), NodeFacts(), Family.IPV4, HostFeatures())
    bad = iptables_settings(ProxyConfig(), NodeFacts(), Family.IPV4, HostFeatures(frozenset(COUNTERS)))
    with bare_nodes("twb", "node") as (namespace,):
        run_in(namespace, PythonIptablesBackend(tools, good).apply, full_delta(ProxyConfig(), SERVICES))
        before = saved(namespace, Family.IPV4)
        assert "-A KUBE-SEP-" in before

        with pytest.raises(TransactionError, match="python-iptables refused the rules"):
            run_in(namespace, PythonIptablesBackend(tools, bad).apply, full_delta(ProxyConfig(), SERVICES))

        assert saved(namespace, Family.IPV4) == before


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
