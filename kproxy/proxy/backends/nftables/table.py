"""One family's table as it ought to be, and the steps from what it was to what it is.

Law: pure. A full sync is the delta from nothing, through the same code as any other: what differs is only that every
container and chain is emptied first, in the same transaction.

Endpoints keep their numbers: a new one gets the next, and when one goes the last takes its place. So a change of one
endpoint is one element, whatever the number of endpoints. In which order a Service's endpoints are numbered therefore
depends on what happened before; that the numbers have no gap does not, and nothing else depends on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import msgspec

from kproxy.proxy.backends.nftables import names
from kproxy.proxy.backends.nftables.containers import (
    Container,
    Data,
    fixed_containers,
    hairpin_key,
    node_port_addresses,
    number,
    packed_address,
    packed_endpoint,
)
from kproxy.proxy.backends.nftables.layout import (
    Encoded,
    Frontend,
    Layout,
    Rules,
    Settings,
    fixed_chains,
    frontends_of,
)
from kproxy.proxy.plan import EndpointSet, NodePortScope, PlanDelta, PortPlan
from kproxy.proxy.services import ServicePortName

Elements = dict[bytes, Data]


class Found(msgspec.Struct, frozen=True):
    """What the kernel holds before a full sync.

    Attributes:
        chains: names of the table's chains.
        containers: names of its sets and maps.
        is_foreign: something in it bears a name of ours and is not what we would have made of it.
        udp_frontends: (address, port) of every UDP frontend; the address of node ports is empty.
        exists: the table is there.
    """

    chains: frozenset[str] = frozenset()
    containers: frozenset[str] = frozenset()
    is_foreign: bool = False
    udp_frontends: frozenset[tuple[str, int]] = frozenset()
    exists: bool = False


class Steps(msgspec.Struct):
    """What has to be done to the table, in the order of the attributes.

    Attributes:
        is_full: all chains and all sets and maps, but for those of clients that stay, are emptied first.
        containers: sets and maps to make, unless they are there.
        chains: chains to make, unless they are there, each with all its rules.
        rewritten: those of them that are there and have other rules.
        deleted: elements to take away, per container.
        added: elements to put in, per container; afterwards, so that a key may stand in both.
        unused_chains: chains that nothing leads to any more.
        unused_containers: sets that no rule uses any more.
    """

    is_full: bool = False
    containers: dict[str, Container] = {}
    chains: dict[str, Rules] = {}
    rewritten: set[str] = set()
    deleted: dict[str, dict[bytes, None]] = {}
    added: dict[str, Elements] = {}
    unused_chains: set[str] = set()
    unused_containers: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        own = (self.containers, self.chains, self.deleted, self.added, self.unused_chains, self.unused_containers)
        return not (self.is_full or any(own))

    def put(self, container: str, key: bytes, data: Data = b"") -> None:
        """Put an element in."""
        self.added.setdefault(container, {})[key] = data

    def take(self, container: str, key: bytes) -> None:
        """Take away an element that was there before."""
        self.deleted.setdefault(container, {})[key] = None


class Held(msgspec.Struct, gc=False):
    """A service port in the table.

    Attributes:
        plan: as it was written.
        owned: its frontends, but for those that are another's; None when it has all that it claims.
        cluster: endpoints for policy Cluster by number.
        local: endpoints for policy Local by number.
    """

    plan: PortPlan
    owned: tuple[Frontend, ...] | None
    cluster: Sequence[str]
    local: Sequence[str]

    def numbered(self, which: EndpointSet) -> Sequence[str]:
        """The endpoints of a set by number."""
        return self.cluster if which is EndpointSet.CLUSTER else self.local


class Claims:
    """Which service port a frontend belongs to: of several that claim it, the one whose name comes first."""

    def __init__(self) -> None:
        self._owner: dict[Frontend, ServicePortName] = {}
        self._contested: dict[Frontend, set[ServicePortName]] = {}

    def claim(self, frontend: Frontend, name: ServicePortName) -> Iterable[ServicePortName]:
        """Take a claim in; returns whom else it concerns."""
        owner = self._owner.setdefault(frontend, name)
        if owner == name:
            return ()
        rivals = self._contested.setdefault(frontend, {owner})
        others = set(rivals)
        rivals.add(name)
        self._owner[frontend] = min(rivals)
        return others - {name}

    def release(self, frontend: Frontend, name: ServicePortName) -> Iterable[ServicePortName]:
        """Forget a claim; returns whom else it concerns."""
        rivals = self._contested.get(frontend)
        if rivals is None:
            if self._owner.get(frontend) == name:
                del self._owner[frontend]
            return ()
        rivals.discard(name)
        others = set(rivals)
        self._owner[frontend] = min(rivals)
        if len(rivals) == 1:
            del self._contested[frontend]
        return others

    def owned(self, frontends: Sequence[Frontend], name: ServicePortName) -> tuple[Frontend, ...] | None:
        """Those that are the port's own; None when all of them are."""
        if all(self._owner[frontend] == name for frontend in frontends):
            return None
        return tuple(frontend for frontend in frontends if self._owner[frontend] == name)


class Table:
    """All that one family's table has to hold."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._layout = Layout(settings)
        self._fixed = {container.name: container for container in fixed_containers(settings.family)}
        self._node_port_ips = node_port_addresses(settings.family)
        self._forget_all()

    def _forget_all(self) -> None:
        self._ports: dict[ServicePortName, Held] = {}
        self._claims = Claims()
        self._uses: dict[str, Counter[bytes]] = {names.CLUSTER_IPS: Counter(), names.HAIRPIN_CONNECTIONS: Counter()}
        self._chain_uses: Counter[str] = Counter()
        self._surroundings: tuple[NodePortScope, tuple[str, ...]] = (NodePortScope(), ())

    @property
    def ports(self) -> Mapping[ServicePortName, Held]:
        """The service ports by name."""
        return self._ports

    def containers(self) -> dict[str, Container]:
        """The sets and maps that are there whatever Services there are."""
        if self._surroundings[0].addresses is None:
            return dict(self._fixed)
        return {**self._fixed, names.NODE_PORT_IPS: self._node_port_ips}

    def anew(self) -> tuple[Table, PlanDelta]:
        """A table of nothing, and the delta that makes it this one."""
        scope, cidrs = self._surroundings
        plans = {name: held.plan for name, held in self._ports.items()}
        return Table(self._settings), PlanDelta(plans, node_ports=scope, service_cidrs=cidrs, is_full=True)

    def container(self, name: str) -> Container:
        """One of them by its name."""
        return self._node_port_ips if name == names.NODE_PORT_IPS else self._fixed[name]

    def take(self, delta: PlanDelta, found: Found | None = None) -> Steps:
        """Take a delta in; returns what it takes.

        Args:
            delta: what is different.
            found: with a full delta, what is in the kernel.
        """
        steps = Steps(is_full=delta.is_full)
        if delta.is_full:
            self._forget_all()
        self._take_surroundings(delta, steps)
        for name in self._reclaim(delta):
            self._rewrite(name, delta, steps)
        for name in delta.written:
            if name not in self._ports:
                self._rewrite(name, delta, steps)
        if delta.is_full and found is not None:
            self._clear_away(found, steps)
        return steps

    def _take_surroundings(self, delta: PlanDelta, steps: Steps) -> None:
        """The chains and addresses that no Service has a part in."""
        before, after = self._surroundings, (delta.node_ports, delta.service_cidrs)
        if before == after and not delta.is_full:
            return
        chains = fixed_chains(self._settings, *after)
        old_scope, self._surroundings = before[0], after
        if delta.is_full:
            steps.containers.update(self.containers())
            steps.chains.update(chains)
        else:
            changed = {name for name, rules in fixed_chains(self._settings, *before).items() if rules != chains[name]}
            steps.chains.update({name: rules for name, rules in chains.items() if name in changed})
            steps.rewritten.update(changed)
            self._change_node_port_set(old_scope, delta.node_ports, steps)
        old, new = set(old_scope.addresses or ()), set(delta.node_ports.addresses or ())
        for address in sorted(new - old):
            steps.put(names.NODE_PORT_IPS, packed_address(address))
        for address in sorted(old - new) if delta.node_ports.addresses is not None else ():
            steps.take(names.NODE_PORT_IPS, packed_address(address))

    def _change_node_port_set(self, old: NodePortScope, new: NodePortScope, steps: Steps) -> None:
        """The set is there only where rules look into it."""
        if old.addresses is None and new.addresses is not None:
            steps.containers[names.NODE_PORT_IPS] = self._node_port_ips
        if old.addresses is not None and new.addresses is None:
            steps.unused_containers.add(names.NODE_PORT_IPS)

    def _reclaim(self, delta: PlanDelta) -> set[ServicePortName]:
        """Give up and stake claims; returns the ports that have been in the table and are to be looked at."""
        concerned: set[ServicePortName] = set()
        for name in (*delta.removed, *delta.written):
            if held := self._ports.get(name):
                concerned.add(name)
                for frontend in frontends_of(held.plan):
                    concerned.update(self._claims.release(frontend, name))
        for name, plan in delta.written.items():
            for frontend in frontends_of(plan):
                concerned.update(self._claims.claim(frontend, name))
        return concerned & self._ports.keys()

    def _rewrite(self, name: ServicePortName, delta: PlanDelta, steps: Steps) -> None:
        held = self._ports.get(name)
        plan = None if name in delta.removed else delta.written.get(name) or (held.plan if held else None)
        after = None
        if plan is not None:
            owned = self._claims.owned(frontends_of(plan), name)
            numbers = (held.cluster, held.local) if held else ((), ())
            after = Held(plan, owned, *map(renumbered, numbers, (plan.cluster, plan.local)))
        was = self._encoded(held) if held else _NOTHING
        will_be = self._encoded(after) if after else _NOTHING
        _change_endpoints(held, after, was, will_be, steps)
        _change_elements(was, will_be, steps)
        self._change_uses(held.plan if held else None, plan, steps)
        self._change_shared_chains(was, will_be, steps)
        _change_own(was, will_be, steps)
        if after is None:
            del self._ports[name]
        else:
            self._ports[name] = after

    def _encoded(self, held: Held) -> Encoded:
        owned = frontends_of(held.plan) if held.owned is None else held.owned
        return self._layout.encode(held.plan, owned)

    def _change_uses(self, before: PortPlan | None, after: PortPlan | None, steps: Steps) -> None:
        for container, keys_of in ((names.CLUSTER_IPS, _cluster_ips), (names.HAIRPIN_CONNECTIONS, _hairpins)):
            old, new = keys_of(before), keys_of(after)
            if old == new:
                continue
            uses = self._uses[container]
            for key in new - old:
                uses[key] += 1
                if uses[key] == 1:
                    steps.put(container, key)
            for key in old - new:
                uses[key] -= 1
                if not uses[key]:
                    del uses[key]
                    steps.take(container, key)

    def _change_shared_chains(self, was: Encoded, will_be: Encoded, steps: Steps) -> None:
        for name in was.shared.keys() - will_be.shared.keys():
            self._chain_uses[name] -= 1
            if not self._chain_uses[name]:
                del self._chain_uses[name]
                steps.unused_chains.add(name)
        for name in will_be.shared.keys() - was.shared.keys():
            self._chain_uses[name] += 1
            if self._chain_uses[name] > 1:
                continue
            if name in steps.unused_chains:  # another port has just left it
                steps.unused_chains.discard(name)
            else:
                steps.chains[name] = will_be.shared[name]

    def _clear_away(self, found: Found, steps: Steps) -> None:
        steps.unused_chains.update(found.chains - steps.chains.keys())
        steps.unused_containers.update(found.containers - steps.containers.keys())


def _cluster_ips(plan: PortPlan | None) -> frozenset[bytes]:
    return frozenset((packed_address(plan.cluster_ip),)) if plan else frozenset()


def _hairpins(plan: PortPlan | None) -> frozenset[bytes]:
    return frozenset(hairpin_key(each, plan.name.protocol) for each in plan.on_this_node) if plan else frozenset()


_NOTHING = Encoded({}, (), {}, {}, ())


def _change_elements(was: Encoded, will_be: Encoded, steps: Steps) -> None:
    for place, data in was.elements.items():
        if will_be.elements.get(place) != data:
            steps.take(*place)
    for place, data in will_be.elements.items():
        if was.elements.get(place) != data:
            steps.put(*place, data)


def _change_own(was: Encoded, will_be: Encoded, steps: Steps) -> None:
    for name, rules in will_be.own.items():
        if was.own.get(name) != rules:
            steps.chains[name] = rules
            if name in was.own:
                steps.rewritten.add(name)
    steps.unused_chains.update(was.own.keys() - will_be.own.keys())
    old, new = ({each.name: each for each in encoded.sets} for encoded in (was, will_be))
    steps.containers.update({name: new[name] for name in new.keys() - old.keys()})
    steps.unused_containers.update(old.keys() - new.keys())


def _change_endpoints(held: Held | None, after: Held | None, was: Encoded, will_be: Encoded, steps: Steps) -> None:
    for balanced in dict.fromkeys((*was.balanced, *will_be.balanced)):
        old = held.numbered(balanced.which) if held and balanced in was.balanced else []
        new = after.numbered(balanced.which) if after and balanced in will_be.balanced else []
        if old is new:
            continue
        container = names.endpoints_map(balanced.which, is_node_port=balanced.frontend.is_node_port)
        prefix = balanced.frontend.key
        if not old:
            added = {prefix + number(index): packed_endpoint(each) for index, each in enumerate(new)}
            steps.added.setdefault(container, {}).update(added)
            continue
        for index, (before, now) in enumerate(zip_longest(old, new)):
            if before == now:
                continue
            key = prefix + number(index)
            if before is not None:
                steps.take(container, key)
            if now is not None:
                steps.put(container, key, packed_endpoint(now))


def renumbered(old: Sequence[str], wanted: Sequence[str]) -> Sequence[str]:
    """The endpoints wanted, each at its old number as far as that goes without a gap.

    Args:
        old: by number; empty when there were none.
        wanted: in any order.
    """
    if not old:
        return wanted
    before, after = set(old), set(wanted)
    if before == after:
        return old
    numbered = list(old)
    fresh = sorted(after - before)
    gaps = sorted(map(old.index, before - after))
    for index, each in zip(gaps, fresh, strict=False):
        numbered[index] = each
    numbered += fresh[len(gaps) :]
    for index in reversed(gaps[len(fresh) :]):
        last = numbered.pop()
        if index < len(numbered):
            numbered[index] = last
    return numbered
