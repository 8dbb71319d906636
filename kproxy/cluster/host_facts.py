"""What probes find out about a host, as values.

Law: a value says what was done and what came of it; what that means is `host_check`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

TOOLS: Final = ("bwrap", "ip", "nft", "tcpdump", "conntrack")
"""Programs beside the iptables tools that something here, or a page of the documentation, runs."""
LINKS: Final = ("veth", "bridge", "vxlan")
FAMILY_TOOLS: Final = {"IPv4": "iptables", "IPv6": "ip6tables"}


class Feature(NamedTuple):
    """One thing that rules do, and a rule that does it.

    Attributes:
        name: as netfilter people call it.
        module: the kernel module that has it.
        table: where the rule goes.
        rule: its text behind `-A CHAIN`; `{address}` and `{network}` are filled in by family.
    """

    name: str
    module: str
    table: str
    rule: str

    @property
    def is_table(self) -> bool:
        """Whether it is no more than the table itself."""
        return self.name == f"table {self.table}"


FEATURES: Final = (
    Feature("table filter", "iptable_filter", "filter", "-j RETURN"),
    Feature("table mangle", "iptable_mangle", "mangle", "-j RETURN"),
    Feature("table nat", "iptable_nat", "nat", "-j RETURN"),
    Feature("match comment", "xt_comment", "nat", '-m comment --comment "kproxy lab check" -j RETURN'),
    Feature("match addrtype", "xt_addrtype", "nat", "-m addrtype --dst-type LOCAL -j RETURN"),
    Feature("match conntrack", "xt_conntrack", "filter", "-m conntrack --ctstate NEW -j RETURN"),
    Feature("match mark", "xt_mark", "nat", "-m mark --mark 0x4000/0x4000 -j RETURN"),
    Feature("match statistic", "xt_statistic", "nat", "-m statistic --mode random --probability 0.5 -j RETURN"),
    Feature("match recent", "xt_recent", "nat", "-m recent --name KPROXY-CHECK --rcheck --seconds 9 --reap -j RETURN"),
    Feature("match sctp", "xt_sctp", "nat", "-p sctp -m sctp --dport 80 -j RETURN"),
    Feature("target MARK", "xt_mark", "nat", "-j MARK --or-mark 0x4000"),
    Feature("target DNAT", "xt_nat", "nat", "-p tcp -m tcp --dport 80 -j DNAT --to-destination {address}:80"),
    Feature("target MASQUERADE", "xt_MASQUERADE", "nat", "-j MASQUERADE --random-fully"),
    Feature("target REJECT", "ipt_REJECT", "filter", "-j REJECT"),
)
"""What the proxies' rules, the lab's own and those of externalTrafficPolicy, sessionAffinity and SCTP are made of."""


@dataclass(frozen=True)
class Tried:
    """What came of doing something.

    Attributes:
        works: it did.
        said: what the kernel or the tool said when it did not.
    """

    works: bool
    said: str = ""


@dataclass(frozen=True)
class RulesTried:
    """What came of writing rules with one variant of iptables in one family.

    Attributes:
        is_installed: its tools are there.
        refused: the name of each feature that was refused, and what was said.
    """

    is_installed: bool
    refused: Mapping[str, str] = field(default_factory=dict)

    def without_consequences(self) -> Mapping[str, str]:
        """What was refused, but for rules that had no table to go to."""
        lost = {feature.table for feature in FEATURES if feature.name in self.refused and feature.is_table}
        kept = {feature.name for feature in FEATURES if feature.is_table or feature.table not in lost}
        return {name: said for name, said in self.refused.items() if name in kept}


@dataclass(frozen=True)
class HostNetwork:
    """How the host's own network namespace is set up, as far as people wonder whether that matters.

    Attributes:
        rp_filter: the stricter of `all` and `default` of net.ipv4.conf; empty when unreadable.
        bridge_calls: net.bridge.bridge-nf-call-iptables; empty without br_netfilter.
        forward_policies: policy of the filter table's FORWARD chain, by tool (`iptables-legacy`); only what is there.
        rule_counts: rules by variant, both families together.
    """

    rp_filter: str = ""
    bridge_calls: str = ""
    forward_policies: Mapping[str, str] = field(default_factory=dict)
    rule_counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HostFacts:
    """All that was found out. A probe that was not run is missing in its mapping, or None.

    Attributes:
        is_root: this process has the user id 0.
        namespace: making a network namespace.
        settings: setting the namespace's sysctls.
        tools: which of `TOOLS` are there.
        rules: by iptables variant and family.
        links: by kind of link.
        ipv6: IPv6 in a new namespace.
        conntrack: listing connections over netlink.
        nftables: loading a table with nft.
        sandbox: running a program in a pod's sandbox.
        limits: making a control group with limits.
        rule_reader: reading rules back with python-iptables (legacy variant only).
        network: the host's own network namespace.
        loaded_modules: what the kernel loaded while the probes ran.
        added_sysctls: net.* keys of the host's namespace that were not there before the probes.
    """

    is_root: bool
    namespace: Tried | None = None
    settings: Tried | None = None
    tools: Mapping[str, bool] = field(default_factory=dict)
    rules: Mapping[tuple[str, str], RulesTried] = field(default_factory=dict)
    links: Mapping[str, Tried] = field(default_factory=dict)
    ipv6: Tried | None = None
    conntrack: Tried | None = None
    nftables: Tried | None = None
    sandbox: Tried | None = None
    limits: Tried | None = None
    rule_reader: Tried | None = None
    network: HostNetwork | None = None
    loaded_modules: tuple[str, ...] = ()
    added_sysctls: tuple[str, ...] = ()
