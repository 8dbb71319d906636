"""What a plan is in the table: elements of shared maps, and chains shared by all that have the same shape.

A packet takes at most two looks into maps, however many Services there are: ``service-ips`` (or ``service-nodeports``)
tells by address, protocol and port in which chain it goes on; the chain draws a number below its number of endpoints,
and ``endpoints`` tells by the same address, protocol, port and that number where the packet goes. A chain is the same
for all Services with as many endpoints and the same policies.

::

    service-ips   10.96.0.50 . tcp . 80             -> goto internal-cluster-2
    endpoints     10.96.0.50 . tcp . 80 . 0         -> 10.244.1.5 . 8080
                  10.96.0.50 . tcp . 80 . 1         -> 10.244.2.7 . 8080

Service ports with client affinity have chains of their own, as in kube-proxy: nft's language cannot say "the endpoint
that this map has for this client, unless it is gone".

Law: pure, and nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec

from kproxy.proxy.backends.nftables import names, statements
from kproxy.proxy.backends.nftables.containers import (
    Container,
    Decision,
    address_key,
    clients,
    node_port_key,
)
from kproxy.proxy.backends.nftables.messages import BaseChain
from kproxy.proxy.backends.nftables.statements import Rule, Statement, goto
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Branch, Clients, EndpointSet, NodePortScope, PortPlan, Refusal, Traffic

Rules = tuple[Rule, ...]

_BEFORE_NAT, _NAT, _FILTER, _AFTER_ROUTING = -110, -100, 0, 100
_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = 0, 1, 2, 3, 4

BASE_CHAINS = {
    "filter-prerouting-pre-dnat": BaseChain("filter", _PREROUTING, "prerouting", _BEFORE_NAT),
    "filter-output-pre-dnat": BaseChain("filter", _OUTPUT, "output", _BEFORE_NAT),
    "filter-input": BaseChain("filter", _INPUT, "input", _FILTER),
    "filter-forward": BaseChain("filter", _FORWARD, "forward", _FILTER),
    "filter-output": BaseChain("filter", _OUTPUT, "output", _FILTER),
    "nat-prerouting": BaseChain("nat", _PREROUTING, "prerouting", _NAT),
    "nat-output": BaseChain("nat", _OUTPUT, "output", _NAT),
    "nat-postrouting": BaseChain("nat", _POSTROUTING, "postrouting", _AFTER_ROUTING),
}
"""Where packets enter (kube-proxy: nftables/proxier.go, nftablesBaseChains)."""

_NEW_ONLY = {
    "filter-prerouting-pre-dnat": (names.FIREWALL_CHECK,),
    "filter-output-pre-dnat": (names.FIREWALL_CHECK,),
    "filter-input": (names.NODE_PORT_ENDPOINTS_CHECK, names.SERVICE_ENDPOINTS_CHECK),
    "filter-forward": (names.SERVICE_ENDPOINTS_CHECK, names.CLUSTER_IPS_CHECK),
    "filter-output": (names.SERVICE_ENDPOINTS_CHECK, names.CLUSTER_IPS_CHECK),
}
_ALWAYS = {
    "nat-prerouting": names.SERVICES,
    "nat-output": names.SERVICES,
    "nat-postrouting": names.MASQUERADING,
}


class Settings(msgspec.Struct, frozen=True):
    """What rules depend on beside the plans; the same from start to end.

    Attributes:
        family: the proxier's.
        mark: the bit that says "masquerade this packet".
        detector: None when pods cannot be told from others.
    """

    family: Family
    mark: int = 1 << 14
    detector: Detector | None = None


class Frontend(NamedTuple):
    """An address, protocol and port, or a protocol and node port; as the bytes of a key."""

    key: bytes
    is_node_port: bool = False


class Balanced(NamedTuple):
    """A frontend whose endpoints are looked up in a map."""

    frontend: Frontend
    which: EndpointSet


class Encoded(NamedTuple):
    """One service port in the table.

    Attributes:
        elements: elements of verdict maps, as (map, key) and verdict.
        balanced: the frontends that need an element for each endpoint.
        shared: chains that it goes through, and which others may share.
        own: chains that are its alone.
        sets: sets of clients that are its alone.
    """

    elements: dict[tuple[str, bytes], Decision]
    balanced: tuple[Balanced, ...]
    shared: dict[str, Rules]
    own: dict[str, Rules]
    sets: tuple[Container, ...]


def frontends_of(plan: PortPlan) -> tuple[Frontend, ...]:
    """All frontends of a service port, the cluster IP first."""
    protocol = plan.name.protocol
    addresses = dict.fromkeys((plan.cluster_ip, *plan.external_ips, *plan.load_balancer_ips))
    found = [Frontend(address_key(address, protocol, plan.port)) for address in addresses]
    if plan.node_port:
        found.append(Frontend(node_port_key(protocol, plan.node_port), is_node_port=True))
    return tuple(found)


def fixed_chains(settings: Settings, scope: NodePortScope, service_cidrs: tuple[str, ...]) -> dict[str, Rules]:
    """The chains that are there whatever Services there are, base chains first (kube-proxy: setupNFTables)."""
    family = settings.family
    frontend = statements.frontend_key(family, is_node_port=False)
    daddr = statements.destination(family)
    held: dict[str, Rules] = {name: tuple(_entry(name)) for name in BASE_CHAINS}
    held[names.SERVICES] = (
        _rule(statements.verdict_map(frontend, names.SERVICE_IPS)),
        _rule(*_at_node_ports(family, scope), _node_port_verdict(names.SERVICE_NODE_PORTS)),
    )
    held[names.MASQUERADING] = (
        _rule(statements.has_mark(settings.mark), statements.flip_mark(settings.mark), statements.masquerade()),
        _rule(
            statements.is_translated(),
            statements.in_set((statements.source(family), *frontend), names.HAIRPIN_CONNECTIONS),
            statements.masquerade(),
        ),
    )
    held[names.CLUSTER_IPS_CHECK] = (
        _rule(
            statements.in_set((daddr,), names.CLUSTER_IPS),
            statements.reject(family),
            comment="Reject traffic to invalid ports of ClusterIPs",
        ),
        *(
            _rule(
                statements.in_network(daddr, cidr),
                statements.verdict(statements.DROP),
                comment="Drop traffic to unallocated ClusterIPs",
            )
            for cidr in service_cidrs
        ),
    )
    held[names.SERVICE_ENDPOINTS_CHECK] = (_rule(statements.verdict_map(frontend, names.NO_ENDPOINT_SERVICES)),)
    held[names.NODE_PORT_ENDPOINTS_CHECK] = (
        _rule(*_where_node_ports_are(family, scope), _node_port_verdict(names.NO_ENDPOINT_NODE_PORTS)),
    )
    held[names.FIREWALL_CHECK] = (_rule(statements.verdict_map(frontend, names.FIREWALL_IPS)),)
    held[names.REJECT] = (_rule(statements.reject(family)),)
    return held


def _entry(chain: str) -> Iterator[Rule]:
    for target in _NEW_ONLY.get(chain, ()):
        yield _rule(statements.is_new(), statements.verdict(statements.jump(target)))
    if chain in _ALWAYS:
        yield _rule(statements.verdict(statements.jump(_ALWAYS[chain])))


def _rule(*parts: Statement, comment: str = "") -> Rule:
    return Rule(parts, comment)


def _node_port_verdict(name: str) -> Statement:
    return statements.verdict_map(statements.frontend_key(Family.IPV4, is_node_port=True), name)


def _at_node_ports(family: Family, scope: NodePortScope) -> tuple[Statement, ...]:
    local = () if scope.addresses is not None else (statements.is_local_destination(),)
    return (*local, *_where_node_ports_are(family, scope))


def _where_node_ports_are(family: Family, scope: NodePortScope) -> tuple[Statement, ...]:
    daddr = statements.destination(family)
    if scope.addresses is not None:
        return (statements.in_set((daddr,), names.NODE_PORT_IPS),)
    loopback = "127.0.0.0/8" if family is Family.IPV4 else "::1/128"
    return (statements.in_network(daddr, loopback, negated=True),)


class Layout:
    """Puts service ports into the table of one family.

    Args:
        settings: the proxier's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[str, tuple[Branch, ...]], Rules] = {}

    def encode(self, plan: PortPlan, owned: Iterable[Frontend]) -> Encoded:
        """One service port in the table.

        Args:
            plan: what becomes of its packets.
            owned: its frontends, but for those that belong to another Service.
        """
        return _Encoder(plan, frozenset(owned), self._settings, self._known).encoded()


class _Encoder:
    """One service port's part of the table.

    Args:
        plan: its plan.
        owned: its frontends.
        settings: the proxier's.
        known: rules of shared chains, by name and branches: there are few, and to make them takes longer than all else.
    """

    def __init__(
        self,
        plan: PortPlan,
        owned: frozenset[Frontend],
        settings: Settings,
        known: dict[tuple[str, tuple[Branch, ...]], Rules],
    ) -> None:
        self._known = known
        self._plan = plan
        self._owned = owned
        self._settings = settings
        self._family = settings.family
        self._elements: dict[tuple[str, bytes], Decision] = {}
        self._balanced: dict[Balanced, None] = {}
        self._shared: dict[str, Rules] = {}
        self._own: dict[str, Rules] = {}
        self._sets: list[Container] = []

    def encoded(self) -> Encoded:
        plan, protocol = self._plan, self._plan.name.protocol
        internal = Frontend(address_key(plan.cluster_ip, protocol, plan.port))
        if internal in self._owned:
            self._frontend(internal, "internal", plan.internal)
        for address in (*plan.external_ips, *plan.load_balancer_ips):
            external = Frontend(address_key(address, protocol, plan.port))
            # an address may be a cluster IP as well, of this very port: that came first
            if external in self._owned and external != internal:
                self._frontend(external, "external", plan.external)
        if plan.node_port:
            at_node = Frontend(node_port_key(protocol, plan.node_port), is_node_port=True)
            if at_node in self._owned:
                self._frontend(at_node, "external", plan.external)
        if plan.allowed_sources:
            self._firewall()
        return Encoded(self._elements, tuple(self._balanced), self._shared, self._own, tuple(self._sets))

    def _frontend(self, frontend: Frontend, traffic_name: str, traffic: Traffic) -> None:
        if traffic.branches:
            chain = self._entry_chain(frontend, traffic_name, traffic)
            into = names.SERVICE_NODE_PORTS if frontend.is_node_port else names.SERVICE_IPS
            self._elements[into, frontend.key] = Decision(goto(chain), str(self._plan.name))
        if traffic.refusal:
            verdict = goto(names.REJECT) if traffic.refusal is Refusal.REJECT else statements.DROP
            into = names.NO_ENDPOINT_NODE_PORTS if frontend.is_node_port else names.NO_ENDPOINT_SERVICES
            self._elements[into, frontend.key] = Decision(verdict, str(self._plan.name))

    def _firewall(self) -> None:
        chain = names.firewall_chain(self._plan.allowed_sources)
        self._share(chain, (), self._firewall_rules)
        for address in self._plan.load_balancer_ips:
            key = address_key(address, self._plan.name.protocol, self._plan.port)
            if Frontend(key) in self._owned:
                self._elements[names.FIREWALL_IPS, key] = Decision(goto(chain), str(self._plan.name))

    def _firewall_rules(self) -> Iterator[Rule]:
        source = statements.source(self._family)
        for cidr in self._plan.allowed_sources:
            yield _rule(statements.in_network(source, cidr), statements.verdict(statements.RETURN))
        yield _rule(statements.verdict(statements.DROP))

    def _share(self, chain: str, branches: tuple[Branch, ...], make: Callable[[], Iterator[Rule]]) -> None:
        rules = self._known.get((chain, branches))
        if rules is None:
            rules = self._known[chain, branches] = tuple(make())
        self._shared[chain] = rules

    # which chain a frontend leads to

    def _entry_chain(self, frontend: Frontend, traffic_name: str, traffic: Traffic) -> str:
        if self._plan.affinity_seconds:
            for branch in traffic.branches:
                self._own_balance(branch.to)
            if traffic.branches == (Branch(Clients.ALL, traffic.branches[0].to),):
                return names.service_chain(self._plan.name, traffic.branches[0].to)
            chain = names.service_traffic_chain(self._plan.name, traffic_name)
            self._own[chain] = tuple(self._ways(traffic.branches, self._own_target))
            return chain
        for branch in traffic.branches:
            self._balanced[Balanced(frontend, branch.to)] = None
            name = self._balance_name(frontend, branch.to)
            self._share(name, (), partial(self._balance, frontend, branch.to))

        def target(which: EndpointSet) -> str:
            return self._balance_name(frontend, which)

        if traffic.branches == (Branch(Clients.ALL, traffic.branches[0].to),):
            return target(traffic.branches[0].to)
        counts = "-".join(f"{branch.value}-{len(self._plan.endpoints(branch))}" for branch in _sets_of(traffic))
        prefix = names.NODE_PORT_PREFIX if frontend.is_node_port else ""
        chain = f"{prefix}{traffic_name}-{counts}"
        if len(traffic.branches) > 1:
            chain = chain.replace(traffic_name, f"{traffic_name}-by-client", 1)
        self._share(chain, traffic.branches, partial(self._ways, traffic.branches, target))
        return chain

    def _own_target(self, which: EndpointSet) -> str:
        return names.service_chain(self._plan.name, which)

    def _balance_name(self, frontend: Frontend, which: EndpointSet) -> str:
        return names.balance_chain(which, len(self._plan.endpoints(which)), is_node_port=frontend.is_node_port)

    def _balance(self, frontend: Frontend, which: EndpointSet) -> Iterator[Rule]:
        is_node_port = frontend.is_node_port
        key = statements.frontend_key(self._family, is_node_port=is_node_port)
        fields = (*key, statements.random_number(len(self._plan.endpoints(which))))
        container = names.endpoints_map(which, is_node_port=is_node_port)
        yield _rule(statements.to_mapped_endpoint(self._family, fields, container))

    def _ways(self, branches: tuple[Branch, ...], target: Callable[[EndpointSet], str]) -> Iterator[Rule]:
        """The branches in order, each with the mark for what it masquerades."""
        mark = statements.set_mark(self._settings.mark)
        for branch in branches:
            to = statements.verdict(goto(target(branch.to)))
            match branch.clients:
                case Clients.PODS:
                    yield _rule(*self._from_pods(), to, comment="short-circuit pod traffic")
                case Clients.NODE:
                    local = statements.is_local_source()
                    if branch.masqueraded:
                        yield _rule(local, mark, comment="masquerade local traffic")
                    yield _rule(local, to, comment="short-circuit local traffic")
                case _:
                    if branch.masqueraded is Clients.NOT_PODS:
                        others = self._from_pods(negated=True)
                        yield _rule(*others, mark, comment="masquerade traffic from outside cluster")
                    elif branch.masqueraded:
                        yield _rule(mark, comment="masquerade")
                    yield _rule(to)

    def _from_pods(self, *, negated: bool = False) -> tuple[Statement, ...]:
        detector = self._settings.detector
        if detector is None:
            return ()
        if detector.by is DetectBy.SOURCE:
            return (statements.in_network(statements.source(self._family), detector.value, negated=negated),)
        is_prefix = detector.by is DetectBy.INTERFACE_PREFIX
        return (statements.from_interface(detector.value, is_prefix=is_prefix, negated=negated),)

    # affinity

    def _own_balance(self, which: EndpointSet) -> None:
        """Clients that are known go to their endpoint, others to any."""
        plan = self._plan
        chain = names.service_chain(plan.name, which)
        if chain in self._own:
            return
        endpoints = plan.endpoints(which)
        targets = [(names.endpoint_chain(plan.name, each), names.affinity_set(plan.name, each)) for each in endpoints]
        source = statements.source(self._family)
        rules = [_rule(statements.in_set((source,), known), statements.verdict(goto(to))) for to, known in targets]
        for left, (to, _) in zip(range(len(targets), 0, -1), targets, strict=True):
            chance = (statements.one_in(left),) if left > 1 else ()
            rules.append(_rule(*chance, statements.verdict(goto(to))))
        self._own[chain] = tuple(rules)
        for address, (to, known) in zip(endpoints, targets, strict=True):
            if to not in self._own:
                self._own[to] = self._endpoint_chain(address, known)
                self._sets.append(clients(known, self._family))

    def _endpoint_chain(self, address: str, known: str) -> Rules:
        return (
            _rule(statements.remember_client(self._family, known, self._plan.affinity_seconds)),
            _rule(statements.is_protocol(self._plan.name.protocol), statements.to_endpoint(self._family, address)),
        )


def _sets_of(traffic: Traffic) -> list[EndpointSet]:
    used = {branch.to for branch in traffic.branches}
    return [which for which in EndpointSet if which in used]
