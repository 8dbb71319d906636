"""``kproxy render``: what a node's kernel would hold, offline and without root."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kproxy.api.types import Node, ServiceCIDR
from kproxy.errors import InvalidInput, UserError
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.backends.nftables.table import Found, Table
from kproxy.proxy.backends.nftables.text import script
from kproxy.proxy.changes import Change, ObjectKey, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.flags import configuration, parse_flags
from kproxy.proxy.node import facts
from kproxy.proxy.setup import (
    LOOPBACK,
    HostFeatures,
    circumstances,
    iptables_settings,
    nftables_settings,
    node_port_scope,
    service_cidrs,
)
from kproxy.proxy.sources.directory import read_directory

USAGE = """\
Usage: kproxy render --manifests DIR --node NODE [--family ipv4|ipv6] [--features NAME=yes|no,...] [kube-proxy's flags]

Prints what iptables-save would print on NODE once `kproxy proxy` has programmed the Services and EndpointSlices of DIR,
tables filter and nat; with --proxy-mode=nftables the commands that make its table, for `nft -f`. Needs neither root nor
the node.

  --features  nfacct: the kernel has packet counters (nfnetlink_acct); random-fully: MASQUERADE knows --random-fully;
              tcp-be-liberal: conntrack takes packets out of window for valid. Default: what this host has.
"""

FEATURES = ("nfacct", "random-fully", "tcp-be-liberal")


def run(argv: Sequence[str]) -> int:
    """Print the rules; returns the exit status.

    Raises:
        UserError: a flag is wrong, or the manifests are.
    """
    if set(argv) & {"-h", "--help"}:
        sys.stdout.write(USAGE)
        return 0
    own = {"node": False, "family": False, "features": False}
    values = parse_flags(argv, own)
    node_name = values.pop("node", "") or values.get("hostname_override", "")
    family = _family(values.pop("family", "ipv4"))
    features = _features(values.pop("features", ""))
    config = configuration(values)
    if not config.manifests or not node_name:
        raise UserError("--manifests and --node are required")
    sys.stdout.write(rendered(config, node_name, family, features))
    return 0


def rendered(config: ProxyConfig, node_name: str, family: Family, host: HostFeatures) -> str:
    """What iptables-save would print, or what nft takes, for the manifests that ``config`` names.

    Raises:
        InvalidInput: something is wrong with the manifests.
        UserError: they cannot be read.
    """
    reading = read_directory(Path(config.manifests))
    if reading.findings:
        raise InvalidInput(reading.findings)
    if reading.passed_over:
        sys.stderr.write(f"passed over: {', '.join(sorted(reading.passed_over))}\n")
    for sentence in reading.repeated:
        sys.stderr.write(f"{sentence}\n")
    objects = reading.objects
    found = objects.get(ObjectKey("Node", "", node_name))
    node = facts(found if isinstance(found, Node) else None)
    tracker = Tracker(family, node_name)
    tracker.take(Change(key, None, value) for key, value in objects.items())
    around = circumstances(config, node_name, node, family)
    scope = node_port_scope(config, node, family, (*node.addresses, LOOPBACK[family]))
    delta = tracker.delta(around, scope, is_full=True)
    if config.is_nftables:
        cidrs = service_cidrs((obj for obj in objects.values() if isinstance(obj, ServiceCIDR)), family)
        table = Table(nftables_settings(config, node, family))
        steps = table.take(msgspec.structs.replace(delta, service_cidrs=cidrs))
        return "\n".join((*script(steps, table, Found(), family), ""))
    rules = RuleSet(iptables_settings(config, node, family, host))
    rules.take(delta)
    return rules.saved()


def _family(text: str) -> Family:
    for family in Family:
        if family.value.lower() == text.lower():
            return family
    raise UserError(f"--family {text!r}: must be ipv4 or ipv6")


def _features(text: str) -> HostFeatures:
    """Features that the flag names, the rest as this host has them."""
    chosen: dict[str, bool] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in FEATURES or value not in ("yes", "no", "true", "false"):
            raise UserError(f"--features {part!r}: must be one of {', '.join(FEATURES)}, with =yes or =no")
        chosen[name] = value in ("yes", "true")
    host = HostFeatures() if len(chosen) == len(FEATURES) else _of_this_host()
    has_counters = chosen.get("nfacct", bool(host.counters))
    return HostFeatures(
        counters=frozenset(COUNTERS if has_counters else ()),
        has_random_fully=chosen.get("random-fully", host.has_random_fully),
        is_liberal=chosen.get("tcp-be-liberal", host.is_liberal),
    )


def _of_this_host() -> HostFeatures:
    from kproxy.proxy.backends.iptables.host import look_at_host

    return look_at_host()
