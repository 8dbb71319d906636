"""Plans as rules: each rule is one line of text, in the very form in which iptables-save gives it back.

iptables-restore takes that form as well, so what is written, rendered and read back are the same text. The form's
order is the tools' own (libxtables prints source, destination, interface and protocol first, then the matches in their
order, the protocol's own match where it was given); numbers are as the kernel rounds them.

Law: pure, and nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain as chain_rules
from typing import NamedTuple

import msgspec

from kproxy.proxy.backends.iptables import chains
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.family import Family, split_host_port
from kproxy.proxy.plan import Branch, Clients, EndpointSet, NodePortScope, PortPlan, Refusal, Traffic

CT_INVALID_COUNTER = "ct_state_invalid_dropped_pkts"
LOCALHOST_NODE_PORTS_COUNTER = "localhost_nps_accepted_pkts"
COUNTERS = (CT_INVALID_COUNTER, LOCALHOST_NODE_PORTS_COUNTER)
"""nfacct counters that rules name, where the kernel has them."""

_NODE_PORT_TAIL = '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
_NEW = "-m conntrack --ctstate NEW"


class Settings(msgspec.Struct, frozen=True):
    """What rules depend on beside the plans; the same from start to end.

    Attributes:
        family: the proxier's.
        mark: the bit that says "masquerade this packet".
        detector: None when pods cannot be told from others.
        has_localhost_node_ports: node ports answer on 127.0.0.1 (IPv4 only).
        drops_invalid: packets in conntrack state INVALID are dropped (nf_conntrack_tcp_be_liberal was 0 at start).
        counters: nfacct counters that exist.
        has_random_fully: MASQUERADE knows --random-fully (iptables 1.6.2 or newer).
    """

    family: Family
    mark: int = 1 << 14
    detector: Detector | None = None
    has_localhost_node_ports: bool = True
    drops_invalid: bool = True
    counters: frozenset[str] = frozenset()
    has_random_fully: bool = True


class ServiceRules(msgspec.Struct, frozen=True, gc=False):
    """The rules of one service port in chains that all share, and the names of its own.

    Attributes:
        filter: rules in the shared chains of table filter, as (chain, rule).
        nat: rules in the shared chains of table nat.
        chains: nat chains of its own, in the order of ``own_chains``.
        count: how many rules those chains hold.
    """

    filter: tuple[tuple[str, str], ...] = ()
    nat: tuple[tuple[str, str], ...] = ()
    chains: tuple[str, ...] = ()
    count: int = 0


class Jump(msgspec.Struct, frozen=True):
    """A rule in a built-in chain that leads to one of ours."""

    table: str
    chain: str
    rule: str


def _line(chain: str, *parts: str) -> str:
    return " ".join(("-A", chain, *(part for part in parts if part)))


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


def _to(chain: str) -> str:
    return f"-j {chain}"


def _jump(table: str, chain: str, match: str, to: str) -> Jump:
    return Jump(table, chain, _line(chain, match, _to(to)))


_EXTERNAL_PORTALS = f"{_NEW} {_comment('kubernetes externally-visible service portals')}"
_PORTALS = f"{_NEW} {_comment('kubernetes service portals')}"
_FIREWALL = f"{_NEW} {_comment('kubernetes load balancer firewall')}"

JUMPS: tuple[Jump, ...] = (
    _jump("filter", "INPUT", _EXTERNAL_PORTALS, chains.EXTERNAL_SERVICES),
    _jump("filter", "FORWARD", _EXTERNAL_PORTALS, chains.EXTERNAL_SERVICES),
    _jump("filter", "INPUT", _comment("kubernetes health check service ports"), chains.NODE_PORTS),
    _jump("filter", "FORWARD", _PORTALS, chains.SERVICES),
    _jump("filter", "OUTPUT", _PORTALS, chains.SERVICES),
    _jump("filter", "FORWARD", _comment("kubernetes forwarding rules"), chains.FORWARD),
    _jump("filter", "INPUT", _FIREWALL, chains.PROXY_FIREWALL),
    _jump("filter", "OUTPUT", _FIREWALL, chains.PROXY_FIREWALL),
    _jump("filter", "FORWARD", _FIREWALL, chains.PROXY_FIREWALL),
    _jump("nat", "OUTPUT", _comment("kubernetes service portals"), chains.SERVICES),
    _jump("nat", "PREROUTING", _comment("kubernetes service portals"), chains.SERVICES),
    _jump("nat", "POSTROUTING", _comment("kubernetes postrouting rules"), chains.POSTROUTING),
    _jump("filter", "INPUT", "", chains.KUBELET_FIREWALL),
    _jump("filter", "OUTPUT", "", chains.KUBELET_FIREWALL),
)
"""In the order in which missing ones are inserted at position 1: later ones end up above earlier ones."""

CLEANED_JUMPS = tuple(jump for jump in JUMPS if not jump.rule.endswith(chains.KUBELET_FIREWALL))
"""Those that --cleanup takes away; the jumps to KUBE-FIREWALL are kubelet's too and stay."""


def static_filter_rules(settings: Settings) -> list[tuple[str, str]]:
    """Rules of table filter that no Service has a part in, as (chain, rule)."""
    mark = f"{settings.mark:#x}"
    rules = []
    if settings.has_localhost_node_ports and settings.family is Family.IPV4:
        guard = _line(
            chains.KUBELET_FIREWALL,
            "! -s 127.0.0.0/8 -d 127.0.0.0/8",
            _comment("block incoming localnet connections"),
            "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        )
        rules.append((chains.KUBELET_FIREWALL, guard))
    if settings.drops_invalid:
        invalid = "-m conntrack --ctstate INVALID"
        counter = _counter(CT_INVALID_COUNTER, settings)
        rules.append((chains.FORWARD, _line(chains.FORWARD, invalid, counter, "-j DROP")))
    marked = _line(chains.FORWARD, _comment("kubernetes forwarding rules"), f"-m mark --mark {mark}/{mark} -j ACCEPT")
    known = _line(
        chains.FORWARD,
        _comment("kubernetes forwarding conntrack rule"),
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )
    return [*rules, (chains.FORWARD, marked), (chains.FORWARD, known)]


def static_nat_rules(settings: Settings) -> list[tuple[str, str]]:
    """Rules of table nat that no Service has a part in, without the node port tail, as (chain, rule)."""
    mark = f"{settings.mark:#x}"
    masquerade = "-j MASQUERADE --random-fully" if settings.has_random_fully else "-j MASQUERADE"
    posting = (
        f"-m mark ! --mark {mark}/{mark} -j RETURN",
        # clears the bit, so that the packet is not masqueraded again when it comes by a second time
        f"-j MARK --set-xmark {mark}/0x0",
        f"{_comment('kubernetes service traffic requiring SNAT')} {masquerade}",
    )
    rules = [(chains.POSTROUTING, _line(chains.POSTROUTING, rule)) for rule in posting]
    rules.append((chains.MARK_MASQ, _line(chains.MARK_MASQ, f"-j MARK --set-xmark {mark}/{mark}")))
    return rules


def node_port_tail(scope: NodePortScope, family: Family) -> list[tuple[str, str]]:
    """The rules that must be the last in nat KUBE-SERVICES: they lead to the node ports, as (chain, rule)."""
    to = _to(chains.NODE_PORTS)
    if scope.addresses is not None:
        return [
            (chains.SERVICES, _line(chains.SERVICES, f"-d {address}/{family.host_bits}", _NODE_PORT_TAIL, to))
            for address in scope.addresses
        ]
    loopback = "127.0.0.0/8" if family is Family.IPV4 else "::1/128"
    guard = "" if scope.includes_loopback else f"! -d {loopback}"
    return [(chains.SERVICES, _line(chains.SERVICES, guard, _NODE_PORT_TAIL, "-m addrtype --dst-type LOCAL", to))]


def service_rules(plan: PortPlan, settings: Settings) -> ServiceRules:
    """The part of one service port in shared chains, and the names of its own.

    Args:
        plan: what becomes of its packets.
        settings: the proxier's.
    """
    encoder = _Encoder(plan, settings, ())
    own = tuple(encoder.own_chains())
    names, size = tuple(chain.name for chain in own), sum(chain.size for chain in own)
    return ServiceRules(tuple(encoder.filter_rules()), tuple(encoder.nat_rules()), names, size)


def own_chains(
    plan: PortPlan, settings: Settings, names: Sequence[str] = (), *, has_comments: bool = True
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each chain that belongs to one service port alone, with its rules in order.

    Args:
        plan: what becomes of its packets.
        settings: the proxier's.
        names: of the chains, if they are known: most of the work is to find them.
        has_comments: False leaves the comments of endpoint rules out, as kube-proxy does in large clusters.
    """
    for chain in _Encoder(plan, settings, names, has_comments).own_chains():
        yield chain.name, tuple(chain.rules)


class _Chain(NamedTuple):
    """A chain whose rules are made when they are wanted."""

    name: str
    size: int
    rules: Iterable[str]


def _counter(name: str, settings: Settings) -> str:
    return f"-m nfacct --nfacct-name {name}" if name in settings.counters else ""


@lru_cache(maxsize=1024)
def probability(remaining: int) -> str:
    """1/``remaining`` as xt_statistic keeps it (31 bits) and iptables-save prints it (11 digits)."""
    # 10 digits first: kube-proxy hands the tool that text, and the kernel's value is rounded from it
    written = float(f"{1 / remaining:.10f}")
    return f"{round(written * 0x80000000) / 0x80000000:.11f}"


class _Encoder:
    """One service port's rules; the numbering of the rules is kube-proxy's (syncProxyRules)."""

    def __init__(self, plan: PortPlan, settings: Settings, names: Sequence[str], has_comments: bool = True) -> None:
        self._plan = plan
        self._names = names
        self._settings = settings
        self._has_comments = has_comments
        self._name = str(plan.name)
        self._protocol = plan.name.protocol.lower()
        self._bits = settings.family.host_bits
        self._external = chains.external(plan.name)
        self._own_endpoint_comment = self._endpoint_comment(self._name)

    # shared chains

    def filter_rules(self) -> Iterator[tuple[str, str]]:
        """Refusals, the load balancer firewall and the health check node port."""
        plan = self._plan
        if plan.internal.refusal:
            yield chains.SERVICES, self._refuse(chains.SERVICES, self._at(plan.cluster_ip), plan.internal.refusal)
        if plan.external.refusal:
            for address in (*plan.external_ips, *plan.load_balancer_ips):
                rule = self._refuse(chains.EXTERNAL_SERVICES, self._at(address), plan.external.refusal)
                yield chains.EXTERNAL_SERVICES, rule
            if plan.node_port:
                yield chains.EXTERNAL_SERVICES, self._refuse_node_port(plan.external.refusal)
        if self._has_firewall:
            for address in plan.load_balancer_ips:
                comment = f"{self._name} traffic not accepted by {chains.firewall(plan.name)}"
                rule = self._frontend(chains.PROXY_FIREWALL, self._at(address), comment, plan.port, "-j DROP")
                yield chains.PROXY_FIREWALL, rule
        if plan.health_check_node_port:
            comment = f"{self._name} health check node port"
            # TCP whatever the Service's protocol: the health check is HTTP
            match = f"-m tcp --dport {plan.health_check_node_port}"
            yield chains.NODE_PORTS, _line(chains.NODE_PORTS, "-p tcp", _comment(comment), match, "-j ACCEPT")

    def nat_rules(self) -> Iterator[tuple[str, str]]:
        """Where each frontend leads."""
        plan = self._plan
        for branch in plan.internal.branches:
            to = _to(chains.endpoint_set(plan.name, branch.to))
            rule = self._frontend(chains.SERVICES, self._at(plan.cluster_ip), f"{self._name} cluster IP", plan.port, to)
            yield chains.SERVICES, rule
        if not plan.external.branches:
            return
        for address in plan.external_ips:
            comment = f"{self._name} external IP"
            to = _to(self._external)
            yield chains.SERVICES, self._frontend(chains.SERVICES, self._at(address), comment, plan.port, to)
        for address in plan.load_balancer_ips:
            comment = f"{self._name} loadbalancer IP"
            to = _to(chains.firewall(plan.name) if self._has_firewall else self._external)
            yield chains.SERVICES, self._frontend(chains.SERVICES, self._at(address), comment, plan.port, to)
        if plan.node_port:
            yield from self._node_port_rules()

    def _node_port_rules(self) -> Iterator[tuple[str, str]]:
        to = _to(self._external)
        counter = _counter(LOCALHOST_NODE_PORTS_COUNTER, self._settings)
        if counter and self._settings.has_localhost_node_ports and self._settings.family is Family.IPV4:
            counted = f"{counter} {to}"
            rule = self._frontend(chains.NODE_PORTS, "-d 127.0.0.0/8", self._name, self._plan.node_port, counted)
            yield chains.NODE_PORTS, rule
        yield chains.NODE_PORTS, self._frontend(chains.NODE_PORTS, "", self._name, self._plan.node_port, to)

    # chains of its own

    def own_chains(self) -> Iterator[_Chain]:
        """Each chain that belongs to this port alone, those of endpoints last."""
        plan = self._plan
        internal_sets = {branch.to: branch for branch in plan.internal.branches}
        targets = self._targets()
        if plan.external.branches:
            if self._has_firewall:
                rules = tuple(self._firewall_chain())
                yield _Chain(chains.firewall(plan.name), len(rules), rules)
            rules = tuple(self._external_chain(plan.external))
            yield _Chain(self._external, len(rules), rules)
        per_endpoint = 2 if plan.affinity_seconds else 1
        for which in EndpointSet:
            if endpoints := plan.endpoints(which):
                chain = chains.endpoint_set(plan.name, which)
                own = internal_sets.get(which)
                masquerade = tuple(self._internal_masquerade(chain, own)) if own else ()
                which_targets = ((address, targets[address]) for address in endpoints)
                size = len(masquerade) + per_endpoint * len(endpoints)
                yield _Chain(chain, size, chain_rules(masquerade, self._balance(chain, which_targets)))
        for address, chain in targets.items():
            yield _Chain(chain, 2, self._endpoint_chain(chain, address))

    def _targets(self) -> dict[str, str]:
        """The chain of each endpoint, by its address."""
        plan = self._plan
        addresses = dict.fromkeys((*plan.cluster, *plan.local)) if plan.local else dict.fromkeys(plan.cluster)
        if self._names:
            return dict(zip(addresses, self._names[len(self._names) - len(addresses) :], strict=True))
        return {address: chains.endpoint(plan.name, address) for address in addresses}

    @property
    def _has_firewall(self) -> bool:
        return bool(self._plan.allowed_sources and self._plan.external.branches)

    def _firewall_chain(self) -> Iterator[str]:
        chain = chains.firewall(self._plan.name)
        comment = _comment(f"{self._name} loadbalancer IP")
        for source in self._plan.allowed_sources:
            cidr = source if "/" in source else f"{source}/{self._bits}"
            yield _line(chain, f"-s {cidr}", comment, _to(self._external))
        # no target: the packet falls out of the chain, un-DNATed, and meets KUBE-PROXY-FIREWALL in table filter
        yield _line(chain, _comment(f"other traffic to {self._name} will be dropped by {chains.PROXY_FIREWALL}"))

    def _external_chain(self, traffic: Traffic) -> Iterator[str]:
        for branch in traffic.branches:
            to = _to(chains.endpoint_set(self._plan.name, branch.to))
            destinations = f"{self._name} external destinations"
            match branch.clients:
                case Clients.PODS:
                    yield _line(self._external, *self._pods("", _comment(f"pod traffic for {destinations}")), to)
                case Clients.NODE:
                    local = "-m addrtype --src-type LOCAL"
                    masquerade = _comment(f"masquerade LOCAL traffic for {destinations}")
                    yield _line(self._external, masquerade, local, _to(chains.MARK_MASQ))
                    yield _line(self._external, _comment(f"route LOCAL traffic for {destinations}"), local, to)
                case _:
                    if branch.masqueraded:
                        comment = _comment(f"masquerade traffic for {destinations}")
                        yield _line(self._external, comment, _to(chains.MARK_MASQ))
                    yield _line(self._external, to)

    def _internal_masquerade(self, chain: str, branch: Branch) -> Iterator[str]:
        """The destination is matched again: external traffic that shares the chain is not meant."""
        if branch.masqueraded is None:
            return
        comment = f"{self._name} cluster IP"
        at = self._at(self._plan.cluster_ip)
        to = _to(chains.MARK_MASQ)
        if branch.masqueraded is Clients.ALL:
            yield self._frontend(chain, at, comment, self._plan.port, to)
        else:
            yield self._frontend(chain, " ".join(self._pods("! ", at)), comment, self._plan.port, to)

    def _balance(self, chain: str, targets: Iterable[tuple[str, str]]) -> Iterator[str]:
        """One rule for each endpoint (with affinity one more), the last one for all that is left.

        These and the endpoints' own chains are nearly all the rules that there are, so they are put together at once.
        """
        rules = [
            (f"-A {chain} {self._endpoint_comment(f'{self._name} -> {address}')}", f"-j {target}", target)
            for address, target in targets
        ]
        if seconds := self._plan.affinity_seconds:
            for head, jump, target in rules:
                yield f"{head}-m recent --rcheck --seconds {seconds} --reap {self._recent_list(target)} {jump}"
        for remaining, (head, jump, _) in zip(range(len(rules), 0, -1), rules, strict=True):
            chance = f"-m statistic --mode random --probability {probability(remaining)} " if remaining > 1 else ""
            yield f"{head}{chance}{jump}"

    def _endpoint_chain(self, chain: str, address: str) -> Iterator[str]:
        ip, _ = split_host_port(address)
        comment, protocol = self._own_endpoint_comment, self._protocol
        remember = f"-m recent --set {self._recent_list(chain)} " if self._plan.affinity_seconds else ""
        yield f"-A {chain} -s {ip}/{self._bits} {comment}-j {chains.MARK_MASQ}"
        yield f"-A {chain} -p {protocol} {comment}{remember}-m {protocol} -j DNAT --to-destination {address}"

    # parts of rules

    def _at(self, address: str) -> str:
        return f"-d {address}/{self._bits}"

    def _frontend(self, chain: str, where: str, comment: str, port: int, target: str) -> str:
        protocol = self._protocol
        return _line(chain, where, f"-p {protocol}", _comment(comment), f"-m {protocol} --dport {port}", target)

    def _refuse(self, chain: str, where: str, refusal: Refusal) -> str:
        return self._frontend(chain, where, self._no_endpoints(refusal), self._plan.port, self._refuse_target(refusal))

    def _refuse_node_port(self, refusal: Refusal) -> str:
        protocol = self._protocol
        return _line(
            chains.EXTERNAL_SERVICES,
            f"-p {protocol}",
            _comment(self._no_endpoints(refusal)),
            f"-m addrtype --dst-type LOCAL -m {protocol} --dport {self._plan.node_port}",
            self._refuse_target(refusal),
        )

    def _no_endpoints(self, refusal: Refusal) -> str:
        return f"{self._name} has no endpoints" if refusal is Refusal.REJECT else f"{self._name} has no local endpoints"

    def _refuse_target(self, refusal: Refusal) -> str:
        if refusal is Refusal.DROP:
            return "-j DROP"
        icmp = "icmp-port-unreachable" if self._settings.family is Family.IPV4 else "icmp6-port-unreachable"
        return f"-j REJECT --reject-with {icmp}"

    def _pods(self, negation: str, rest: str) -> Iterable[str]:
        """The detector's match and ``rest`` in the order of iptables-save: source, destination, interface."""
        detector = self._settings.detector
        if detector is None:
            return (rest,)
        if detector.by is DetectBy.SOURCE:
            return (f"{negation}-s {detector.value}", rest)
        wildcard = "+" if detector.by is DetectBy.INTERFACE_PREFIX else ""
        match = f"{negation}-i {detector.value}{wildcard}"
        return (rest, match) if rest.startswith("-d") else (match, rest)

    def _endpoint_comment(self, text: str) -> str:
        """With a blank after it; empty when there are to be none."""
        return f"{_comment(text)} " if self._has_comments else ""

    def _recent_list(self, chain: str) -> str:
        mask = "255.255.255.255" if self._settings.family is Family.IPV4 else ":".join(["ffff"] * 8)
        return f"--name {chain} --mask {mask} --rsource"
