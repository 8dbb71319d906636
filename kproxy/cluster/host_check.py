"""What follows from what this host can do: what a lab lacks here, what will not work without it, and how to get it.

Law: pure. `judge` turns the facts that `host_probes` found into conditions, each kind of them worded in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.host import VARIANTS
from kproxy.cluster.host_facts import FAMILY_TOOLS, FEATURES, HostFacts, HostNetwork, RulesTried, Tried


class State(StrEnum):
    """How bad a condition is."""

    OK = "ok"
    NOTE = "note"
    """It looks as if it mattered, and does not."""
    LIMITED = "limited"
    """A lab comes up, and something in it will not work."""
    MISSING = "missing"
    """No such lab comes up here."""


class Condition(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        what: its name.
        detail: what was found; empty when it simply works.
        effect: what will therefore not work, or why it does not matter.
        remedy: how to get it; empty when nothing need be done.
    """

    what: str
    state: State
    detail: str = ""
    effect: str = ""
    remedy: str = ""


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that was looked at; its JSON is `kproxy lab check -o json`.

    Attributes:
        ok: a lab comes up here.
        variant: the iptables variant that it will use; empty when none works.
        why: why that one.
        loaded_modules: what the kernel loaded by itself for the check, as it does for a lab.
        added_sysctls: net.* keys of the host's namespace that came with them.
    """

    ok: bool
    variant: str
    why: str
    conditions: tuple[Condition, ...]
    loaded_modules: tuple[str, ...]
    added_sysctls: tuple[str, ...]


@dataclass(frozen=True)
class Needs:
    """What a lab is to have.

    Attributes:
        variant: `auto`, `legacy` or `nft`.
        families: `IPv4`, `IPv6`.
        links: kinds of links.
    """

    variant: str = "auto"
    families: tuple[str, ...] = ("IPv4",)
    links: tuple[str, ...] = ("veth", "bridge")

    @property
    def variants(self) -> tuple[str, ...]:
        """The iptables variants that will do, best first."""
        return VARIANTS if self.variant == "auto" else (self.variant,)


def needs(config: ClusterConfig) -> Needs:
    """What this cluster needs."""
    tunnel = ("vxlan",) if config.pod_network == "vxlan" else ()
    return Needs(config.proxy.variant, config.ip_families, ("veth", "bridge", *tunnel))


_OPTIONAL: Final = {
    "match recent": "sessionAffinity: ClientIP",
    "match sctp": "Services with SCTP ports",
}
"""Features that a lab can be without, and what is then not possible."""

_PACKAGES: Final = {
    "bwrap": (
        "bubblewrap",
        "pods with a command of their own do not start, the cluster has no names, and `kproxy exec POD` does not work",
    ),
    "ip": ("iproute2", "`ip netns exec` cannot be used to look into the lab"),
    "nft": ("nftables", "nftables rules cannot be listed"),
    "tcpdump": ("tcpdump", "`kproxy capture` does not work"),
    "conntrack": ("conntrack", "connections cannot be listed by hand"),
}
"""Debian package of a tool, and what does not work without it."""

_FULL_KERNEL: Final = "the kernel of Debian's package linux-image-amd64 has it"


def judge(facts: HostFacts, wanted: Needs) -> Report:
    """What the facts mean for a lab with these needs; probes that were not run are passed over."""
    variant, why = choose_variant(facts.rules, wanted)
    conditions = tuple(_conditions(facts, wanted, variant, why))
    return Report(
        ok=not any(condition.state is State.MISSING for condition in conditions),
        variant=variant,
        why=why,
        conditions=conditions,
        loaded_modules=facts.loaded_modules,
        added_sysctls=facts.added_sysctls,
    )


def choose_variant(rules: Mapping[tuple[str, str], RulesTried], wanted: Needs) -> tuple[str, str]:
    """The iptables variant that a lab uses, and why; empty when none works: legacy if the kernel has it, else nft."""
    against = []
    for variant in wanted.variants:
        tried = {family: rules[variant, family] for family in wanted.families if (variant, family) in rules}
        objection = _objection(tried) if len(tried) == len(wanted.families) else "it was not tried"
        if objection:
            against.append(f"{variant}: {objection}")
            continue
        if wanted.variant != "auto":
            return variant, "it was asked for"
        return variant, f"legacy cannot be used ({against[0].partition(': ')[2]})" if against else "this kernel has it"
    return "", "; ".join(against)


def _objection(tried: Mapping[str, RulesTried]) -> str:
    """Why a lab cannot use a variant; empty when it can."""
    for family, one in tried.items():
        if not one.is_installed:
            return f"{FAMILY_TOOLS[family]}'s tools are not installed"
        lacking = [f"{name} ({said})" for name, said in one.without_consequences().items() if name not in _OPTIONAL]
        if lacking:
            return f"{family}: the kernel refused {', '.join(lacking[:2])}{' and more' if len(lacking) > 2 else ''}"
    return ""


def _conditions(facts: HostFacts, wanted: Needs, variant: str, why: str) -> Iterator[Condition]:
    if not facts.is_root:
        yield Condition(
            "permissions", State.MISSING, "not root", "no lab, and most of this check", "put sudo before it"
        )
    yield from _basics(facts)
    if facts.namespace is not None and facts.namespace.works:
        yield from _links(facts.links, wanted)
        yield from _ipv6(facts.ipv6, wanted)
        yield _iptables(variant, why, wanted)
        yield from _rules(facts.rules, variant)
        yield from _kernel(facts)
    yield from _tools(facts.tools)
    yield from _sandbox(facts.sandbox, facts.tools)
    remedy = (
        "let systemd manage /sys/fs/cgroup, or write +pids +memory into its cgroup.subtree_control; "
        "in a container, docker: --privileged --cgroupns=host"
    )
    effect = "pods start without limits: one that goes wrong can use up the machine's memory and processes"
    yield from _tried("control groups", facts.limits, State.LIMITED, effect, remedy)
    if facts.network is not None:
        yield from _network(facts.network)
    yield from _modules(facts)


def _basics(facts: HostFacts) -> Iterator[Condition]:
    remedy = (
        "run it as root of the machine, or give the container CAP_SYS_ADMIN and CAP_NET_ADMIN (docker: --privileged)"
    )
    yield from _tried("network namespaces", facts.namespace, State.MISSING, "no lab", remedy)
    remedy = "mount /proc/sys for writing (docker: --privileged)"
    yield from _tried("settings of namespaces", facts.settings, State.MISSING, "no lab", remedy)


def _links(links: Mapping[str, Tried], wanted: Needs) -> Iterator[Condition]:
    for kind, tried in links.items():
        state = State.MISSING if kind in wanted.links else State.LIMITED
        effect = "no lab" if kind in Needs().links else f"no lab with `--network {kind}`"
        yield from _tried(f"links: {kind}", tried, state, effect, f"modprobe {kind}; {_FULL_KERNEL}")


def _ipv6(tried: Tried | None, wanted: Needs) -> Iterator[Condition]:
    state = State.MISSING if "IPv6" in wanted.families else State.LIMITED
    effect = "no lab with `--ip-family ipv6` or `dual`; IPv4 is not concerned"
    yield from _tried("IPv6", tried, state, effect, "boot without ipv6.disable=1 on the kernel's command line")


def _iptables(variant: str, why: str, wanted: Needs) -> Condition:
    if variant:
        state = State.OK if variant == wanted.variants[0] else State.NOTE
        return Condition("iptables", state, f"{variant} is used: {why}")
    remedy = f"apt-get install iptables; {_FULL_KERNEL}"
    return Condition("iptables", State.MISSING, why, "no lab: nodes cannot be programmed", remedy)


def _rules(rules: Mapping[tuple[str, str], RulesTried], used: str) -> Iterator[Condition]:
    modules = {feature.name: feature.module for feature in FEATURES}
    for (variant, family), tried in rules.items():
        what = f"{FAMILY_TOOLS[family]}-{variant}"
        state = State.NOTE if used and used != variant else State.LIMITED
        effect = f"no lab with `--iptables-variant {variant}`"
        refused = tried.without_consequences()
        lacking = [name for name in refused if name not in _OPTIONAL]
        if not tried.is_installed:
            yield Condition(what, state, "not installed", effect, "apt-get install iptables")
        elif lacking:
            detail = f"the kernel refused {', '.join(lacking)}: {refused[lacking[0]]}"
            remedy = f"modprobe {' '.join(dict.fromkeys(modules[name] for name in lacking))}; {_FULL_KERNEL}"
            yield Condition(what, state, detail, effect, remedy)
        else:
            yield Condition(what, State.OK)
        for name in sorted(refused.keys() & _OPTIONAL.keys()):
            detail, remedy = (
                f"the kernel refused it: {refused[name]}",
                f"modprobe {modules[name]}; {_FULL_KERNEL}",
            )
            yield Condition(f"{what}: {name}", state, detail, f"no {_OPTIONAL[name]}", remedy)


def _kernel(facts: HostFacts) -> Iterator[Condition]:
    effect = "UDP clients that keep their socket stay with an endpoint after it is gone"
    remedy = f"modprobe nf_conntrack_netlink; {_FULL_KERNEL}"
    yield from _tried("conntrack netlink", facts.conntrack, State.LIMITED, effect, remedy)
    remedy = f"apt-get install nftables; modprobe nf_tables nft_chain_nat; {_FULL_KERNEL}"
    yield from _tried("nftables", facts.nftables, State.LIMITED, "nftables rules cannot be loaded or listed", remedy)
    effect = "on the legacy variant `kproxy verify` cannot say why (`--no-why` leaves that out)"
    remedy = (
        "install kproxy with `make setup`; python-iptables needs the legacy tables of this kernel, gcc and ldconfig"
    )
    yield from _tried("python-iptables", facts.rule_reader, State.LIMITED, effect, remedy)


def _tools(tools: Mapping[str, bool]) -> Iterator[Condition]:
    for tool, is_there in tools.items():
        package, effect = _PACKAGES[tool]
        if is_there:
            yield Condition(tool, State.OK)
        else:
            yield Condition(tool, State.LIMITED, "not installed", effect, f"apt-get install {package}")


def _sandbox(tried: Tried | None, tools: Mapping[str, bool]) -> Iterator[Condition]:
    if tools.get("bwrap"):
        remedy = "allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        yield from _tried("pods' sandbox", tried, State.LIMITED, _PACKAGES["bwrap"][1], remedy)


def _network(network: HostNetwork) -> Iterator[Condition]:
    """Settings of the host's own namespace that break other people's clusters, and not this one."""
    if network.rp_filter not in ("", "0"):
        effect = "harmless: the lab's namespaces set it to 0 for themselves"
        yield Condition("rp_filter", State.NOTE, f"new namespaces may begin with {network.rp_filter}", effect)
    if network.bridge_calls == "1":
        effect = "harmless: the lab's bridges are in a namespace that sets it to 0 for itself"
        yield Condition("br_netfilter", State.NOTE, "loaded, bridge-nf-call-iptables is 1", effect)
    dropping = [tool for tool, policy in network.forward_policies.items() if policy != "ACCEPT"]
    if dropping:
        effect = "harmless: no packet of a lab crosses the host's own namespace"
        yield Condition("FORWARD policy", State.NOTE, f"DROP in {', '.join(dropping)}", effect)
    mixed = [f"{count} of {variant}" for variant, count in network.rule_counts.items() if count]
    if len(mixed) > 1:
        effect = "harmless for labs; a proxy on this machine itself should use the variant that the others use"
        yield Condition("iptables of this machine", State.NOTE, f"rules of both variants: {', '.join(mixed)}", effect)


def _modules(facts: HostFacts) -> Iterator[Condition]:
    effect = "they stay until a reboot; rules ask for them, on this machine as in a lab"
    if facts.loaded_modules:
        yield Condition("kernel modules", State.NOTE, f"the kernel loaded {_list(facts.loaded_modules)}", effect)
    if facts.added_sysctls:
        detail = f"{len(facts.added_sysctls)} new keys: {_list(_prefixes(facts.added_sysctls))}"
        yield Condition("net.* sysctls", State.NOTE, detail, effect)


def _prefixes(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys, those that begin alike in one word: `net.netfilter.nf_conntrack_*`."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault("_".join(key.split("_")[:2]), []).append(key)
    return tuple(alike[0] if len(alike) == 1 else f"{begin}_*" for begin, alike in found.items())


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _tried(what: str, tried: Tried | None, state: State, effect: str, remedy: str) -> Iterator[Condition]:
    if tried is None:
        return
    if tried.works:
        yield Condition(what, State.OK)
    else:
        yield Condition(what, state, tried.said, effect, remedy)


def in_one_line(condition: Condition) -> str:
    """A condition as people are told of it in passing."""
    found = f"{condition.what}: {condition.detail}" if condition.detail else condition.what
    return "; ".join(part for part in (found, condition.effect, condition.remedy) if part)
