"""A node's kernel against its plan: what the node's proxy, with its own flags, makes of the API's objects now.

It looks and changes nothing. On the legacy variant the kernel is read through libiptc, on nft with iptables-save.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kproxy.api.kinds import ENDPOINT_SLICE, NODE, SERVICE
from kproxy.api.types import Node, Object
from kproxy.api.types import view as typed
from kproxy.client import Client
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.controllers.node_proxy import arguments, programmed
from kproxy.cluster.layout import Layout
from kproxy.cluster.status import LabStatus
from kproxy.errors import HostError, NotFound, UserError
from kproxy.insight.rule_counters import open_reader
from kproxy.insight.rule_drift import Audited, compare, plan_of
from kproxy.proxy.backends.iptables.host import Variant, features, find_tools
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.changes import Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.endpoints import HEADLESS_LABEL
from kproxy.proxy.family import Family
from kproxy.proxy.flags import parse_arguments
from kproxy.proxy.netlink import local_addresses, read_counters
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.services import SERVICE_PROXY_NAME_LABEL
from kproxy.proxy.setup import HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources.api import Known
from netns.errors import NetnsError
from netns.namespace import Namespace, named, run_in

PATIENCE = 5.0
"""Seconds that a proxy has to program what the API holds."""
ATTEMPTS = 5
"""So many times it is tried to read the kernel between two equal answers of the API."""


@dataclass(frozen=True)
class FamilyAudit:
    """One address family of a node.

    Attributes:
        reader: what read the kernel: ``libiptc`` or ``iptables-save``.
        rules: each planned and each found one.
    """

    family: Family
    reader: str
    rules: tuple[Audited, ...]

    @property
    def drifts(self) -> tuple[Audited, ...]:
        """The rules that are not as planned."""
        return tuple(rule for rule in self.rules if rule.drift is not None)


@dataclass(frozen=True)
class _Subject:
    """What is known of the node before its kernel is looked at.

    Attributes:
        config: its proxy's flags.
        facts: its Node object's.
    """

    name: str
    namespace: Namespace
    variant: Variant
    config: ProxyConfig
    facts: NodeFacts


def audit(client: Client, layout: Layout, status: LabStatus, node: str) -> tuple[FamilyAudit, ...]:
    """Compares one node's kernel with its plan, family by family.

    Raises:
        UserError: there is no such node, or it runs another proxy than ours.
        HostError: the node's proxy has not programmed what the API holds, or the kernel could not be read.
    """
    subject = _subject(client, layout, status, node)
    for _ in range(ATTEMPTS):
        before = _objects(client)
        _wait_until_programmed(layout, node, before[1])
        found = tuple(_audit_family(subject, family, before[0]) for family in _families(subject))
        if _objects(client)[0] == before[0]:
            return found
    raise HostError(f"the objects changed whenever {node} was looked at", left="try again when they rest")


def _subject(client: Client, layout: Layout, status: LabStatus, name: str) -> _Subject:
    nodes = {node.name: node for node in status.nodes}
    if name not in nodes:
        raise UserError(f'node "{name}" not found; there are: {", ".join(nodes)}')
    cluster = msgspec.json.decode(layout.cluster_file.read_bytes(), type=ClusterConfig)
    own = next(node for node in cluster.nodes if node.name == name)
    if own.proxy.mode == "none":
        raise UserError(f'node "{name}" runs no proxy of ours: there is no plan to compare its kernel with')
    variant: Variant = "nft" if status.proxy.variant == "nft" else "legacy"
    config = parse_arguments(arguments(cluster, own, layout, variant)[1:])
    if config.is_nftables:
        raise UserError(
            f'node "{name}" works in mode nftables, whose rules have no counters: audit compares iptables rules. '
            f"`kproxy exec {name} -- nft list table ip kube-proxy` shows the table, `kproxy lab resync` writes it anew"
        )
    try:
        node = typed(client.get(NODE, name), Node)
    except NotFound:
        node = None
    return _Subject(name, named(layout.netns(name), layout.namespaces), variant, config, facts(node))


def _objects(client: Client) -> tuple[tuple[Sequence[Object], Sequence[Object]], str]:
    """The Services and EndpointSlices that a proxy watches, and how new they are."""
    services = client.list(
        SERVICE, label_selector=f"!{SERVICE_PROXY_NAME_LABEL}", field_selector="spec.clusterIP!=None"
    )
    slices = client.list(ENDPOINT_SLICE, label_selector=f"!{HEADLESS_LABEL}")
    newest = max(services.resource_version, slices.resource_version, key=int)
    return (services.items, slices.items), newest


def _wait_until_programmed(layout: Layout, node: str, version: str) -> None:
    """A proxy that does not answer is no reason to wait: its rules are there all the same, and are compared."""
    try:
        told = programmed(layout, node, version=version, seconds=PATIENCE)
    except (OSError, NetnsError):
        return
    if int(told["resourceVersion"]) < int(version):
        why = told.get("lastError") or "it says no error"
        raise HostError(f"the proxy of {node} has not programmed what the API holds within {PATIENCE:g} s", stderr=why)


def _families(subject: _Subject) -> Iterable[Family]:
    return Family if run_in(subject.namespace, _has_ipv6) else (Family.IPV4,)


def _has_ipv6() -> bool:
    """Whether this thread's network namespace has IPv6; ``/proc/net`` would be that of the process."""
    if not Path("/proc/thread-self/net/if_inet6").exists():
        return False
    return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text(encoding="ascii").strip() != "1"


def _audit_family(subject: _Subject, family: Family, objects: tuple[Sequence[Object], Sequence[Object]]) -> FamilyAudit:
    host, addresses = run_in(subject.namespace, _look_at_node, subject.variant, family)
    rules = RuleSet(iptables_settings(subject.config, subject.facts, family, host))
    tracker = Tracker(family, subject.name)
    for kind, items in zip(("Service", "EndpointSlice"), objects, strict=True):
        tracker.take(Known(kind).replace([msgspec.json.encode({"items": items})]))
    around = circumstances(subject.config, subject.name, subject.facts, family)
    scope = node_port_scope(subject.config, subject.facts, family, addresses)
    rules.take(tracker.delta(around, scope, is_full=True))
    reader = open_reader(subject.namespace.path, subject.variant)
    try:
        found = reader.read(4 if family is Family.IPV4 else 6)
    finally:
        reader.close()
    how = "libiptc" if subject.variant == "legacy" else "iptables-save"
    return FamilyAudit(family, how, compare(plan_of(rules.saved()), found))


def _look_at_node(variant: Variant, family: Family) -> tuple[HostFeatures, tuple[str, ...]]:
    """What the proxy of this network namespace saw when it started, and the namespace's addresses."""
    counters = frozenset(read_counters(COUNTERS))
    return features(find_tools(variant, family), counters), local_addresses()
