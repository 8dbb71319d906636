"""Rule sets of every kind, for tests that put them into kernels and read them back."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from netns_world import world

from kproxy.api.types import Node
from kproxy.proxy.backends.iptables.host import Variant, find_tools
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.changes import Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.plan import PlanDelta
from kproxy.proxy.setup import LOOPBACK, HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources import TYPES, key_of, typed
from netns.build import build
from netns.namespace import Namespace, run_in
from netns.topology import NamespaceSpec, Role, Topology

CASES = Path(__file__).parents[1] / "conformance" / "cases"
NAMES = sorted(path.stem for path in CASES.glob("*.yaml"))


@contextlib.contextmanager
def bare_nodes(prefix: str, *names: str) -> Iterator[list[Namespace]]:
    """Namespaces with nothing in them, and an xtables lock of their own; gone whatever happens."""
    with (
        world(prefix) as place,
        pytest.MonkeyPatch.context() as patched,
        contextlib.closing(place.journal()) as journal,
    ):
        locks = place.folder / "locks"
        journal.tree(locks)
        locks.mkdir()
        patched.setenv("XTABLES_LOCKFILE", str(locks / "xtables.lock"))
        specs = tuple(NamespaceSpec(f"{place.prefix}-{name}", Role.NODE) for name in names)
        build(Topology(specs, alias=f"test:{place.prefix}"), journal, place.private)
        yield [place.namespace(name) for name in names]


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


def saved(namespace: Namespace, family: Family, variant: Variant = "legacy") -> str:
    """All tables, without time stamps; counters would show packets, of which there are none."""
    tool = find_tools(variant, family).save
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


def read_case(name: str) -> dict[str, Any]:
    """A conformance case."""
    case: dict[str, Any] = yaml.load((CASES / f"{name}.yaml").read_text(), yaml.CSafeLoader)
    return case


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
