"""The process that serves a lab's Services of type LoadBalancer, from the router's network namespace.

Law: it speaks to the cluster by the API alone, keeps nothing that it could not find out again, and writes a Service's
status only when packets to the address have somebody to take them. One thread decides and acts; others only look.

    Services, Nodes ── claims ── pool: addresses ── health: which nodes ─┬─ l2: a node answers ARP and NDP
                                                                         ├─ nlb: DNAT in the router
                                                                         └─ classic: HAProxy in the router
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from kproxy.api.kinds import NODE, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.client import Client, Snapshot
from kproxy.cluster import status
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.controllers.informer import name_of
from kproxy.cluster.events import Events
from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers import passing, record
from kproxy.cluster.load_balancers.claims import CLASSIC, L2, NLB, Claim, Key, claim_of, version_of
from kproxy.cluster.load_balancers.health import Checker, Target
from kproxy.cluster.load_balancers.pool import Share, assign
from kproxy.cluster.load_balancers.proxying import HAProxy
from kproxy.cluster.load_balancers.serving import Balance, Member, balance, member_of, target_of
from kproxy.cluster.reactor import Reactor
from kproxy.cluster.topology import UPLINK
from kproxy.errors import KproxyError, NotFound, Unreachable
from netns.announce import Announcer
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import named

_LOG = logging.getLogger(__name__)
ROLE: Final = "load-balancer"
COMPONENT: Final = "kproxy-load-balancer"
REPEATS: Final = (0.0, 0.5, 1.5, 3.0)
"""Seconds after a move at which the address is announced: a router may miss one."""
TOOLS: Final = {NLB: ("nft", "conntrack"), CLASSIC: ("nft", "conntrack", "haproxy")}
"""Programs that a kind works with."""
TICK: Final = 1.0
"""Seconds after which what could not be done is tried again."""


class Attempts:
    """What is tried in every round, each for itself: a failure is logged once, and does not stop what comes after."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._now: dict[str, str] = {}

    def begin(self) -> None:
        """Begins a round; what was not tried in the last one is forgotten."""
        self._before, self._now = self._now, {}

    def succeeds(self, what: str, action: Callable[[], None]) -> bool:
        """Tries it; whether it could be done.

        Args:
            what: what people know it by.
            action: to be done.

        Raises:
            Unreachable: there is no API, and so nothing that could be tried instead.
        """
        try:
            action()
        except Unreachable:
            raise
        except (KproxyError, NetnsError, OSError) as error:
            if self._before.get(what) != str(error):
                _LOG.warning("%s: %s", what, error)
            self._now[what] = str(error)
            return False
        return True


class Announcements:
    """The nodes' interfaces that answer for addresses.

    Args:
        layout: where the nodes' namespaces are.
        nodes: names of the lab's nodes.
        reactor: reads their questions.
        attempts: told of nodes that cannot be spoken from.
    """

    def __init__(self, layout: Layout, nodes: Collection[str], reactor: Reactor, attempts: Attempts) -> None:
        self._layout = layout
        self._nodes = nodes
        self._reactor = reactor
        self._attempts = attempts
        self._announcers: dict[str, Announcer] = {}
        self._where: dict[str, str] = {}

    def set(self, where: Mapping[str, str]) -> set[str]:
        """Has each address answered for by its node, and those that are new there announced.

        Returns the nodes that cannot answer now, for which it is to be called again.
        """
        # A Node object that somebody made is left out: there is no such machine here.
        wanted = {node for node in where.values() if node in self._nodes}
        failed = {
            node
            for node in sorted(wanted - self._announcers.keys())
            if not self._attempts.succeeds(f"node {node}", lambda node=node: self._open(node))  # type: ignore[misc]
        }
        where = {address: node for address, node in where.items() if node in self._announcers}
        moved = {address: node for address, node in where.items() if self._where.get(address) != node}
        self._where = where
        for node, announcer in self._announcers.items():
            announcer.answer_for([address for address, owner in where.items() if owner == node])
        for address, node in moved.items():
            for seconds in REPEATS:
                self._announce(address, node, seconds)
        return failed

    def _announce(self, address: str, node: str, seconds: float) -> None:
        def speak() -> None:
            if self._where.get(address) == node and node in self._announcers:
                self._announcers[node].announce(address)

        self._reactor.later(seconds, speak) if seconds else speak()

    def _open(self, node: str) -> None:
        announcer = Announcer(named(self._layout.netns(node), self._layout.namespaces), UPLINK)
        for sock in announcer.sockets:
            self._reactor.watch(sock, _reader(announcer, sock))
        self._announcers[node] = announcer


def _reader(announcer: Announcer, sock: socket.socket) -> Callable[[], None]:
    return lambda: announcer.read(sock)


class Balancer:
    """Everything that this process does.

    Args:
        layout: the lab's paths.
        config: the cluster.
        client: the API.
        journal: the lab's record.
    """

    def __init__(self, layout: Layout, config: ClusterConfig, client: Client, journal: Journal) -> None:
        self._layout = layout
        self._config = config
        self._client = client
        self._reactor = Reactor()
        self._checker = Checker(self._note)
        self._attempts = Attempts()
        nodes = [node.name for node in config.nodes]
        self._announcements = Announcements(layout, nodes, self._reactor, self._attempts)
        self._haproxy = HAProxy(layout, journal)
        self._events = Events(client)
        self._recorder = self._events.recorder(COMPONENT)
        self._objects: dict[Kind, dict[Key, Object]] = {}
        self._is_noted = False
        self._failure = ""
        self._has_begun = False
        self._said: status.LoadBalancersStatus | None = None
        self._rules = ""
        self._serving: dict[str, frozenset[str]] = {}
        self._told: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """Works until the process is ended."""
        self._events.start()
        for kind in (SERVICE, NODE):
            threading.Thread(target=self._follow, args=(kind,), name=f"follow-{kind.plural}", daemon=True).start()
        self._tick()
        while True:
            self._reactor.turn()

    # ----- looking

    def _follow(self, kind: Kind) -> None:
        """Body of a thread: hands over what the API says."""

        def complain(error: Exception) -> None:
            _LOG.warning("%s: %s", kind.plural, error)

        for item in self._client.follow(kind, bookmarks=False, on_error=complain):
            if isinstance(item, Snapshot):
                objects = {name_of(obj): obj for obj in item.items}
                self._reactor.post(lambda objects=objects: self._objects.update({kind: objects}))  # type: ignore[misc]
            else:
                self._reactor.post(lambda event=item: self._take(kind, event.type, event.object))  # type: ignore[misc]
            self._note()

    def _take(self, kind: Kind, change: str, obj: Object) -> None:
        if change == "DELETED":
            self._objects[kind].pop(name_of(obj), None)
        else:
            self._objects[kind][name_of(obj)] = obj

    def _note(self) -> None:
        """Has everything looked at again soon; from whatever thread."""
        self._is_noted = True
        self._reactor.post(self._reconcile_if_noted)

    def _tick(self) -> None:
        self._is_noted = True
        self._reconcile_if_noted()
        self._reactor.later(TICK, self._tick)

    # ----- deciding and acting

    def _reconcile_if_noted(self) -> None:
        if not self._is_noted or len(self._objects) < len((SERVICE, NODE)):
            return
        self._is_noted = False
        try:
            self._reconcile()
        except (KproxyError, NetnsError, OSError) as error:
            if str(error) != self._failure:
                _LOG.warning("%s", error)
            self._failure = str(error)
        else:
            self._failure = ""

    def _reconcile(self) -> None:
        self._attempts.begin()
        claims = self._claims()
        present = {claim.uid for claim in claims}
        self._told = {topic: message for topic, message in self._told.items() if topic[0] in present}
        members = [member for obj in self._objects[NODE].values() if (member := member_of(obj)) is not None]
        shares = assign(claims, self._config.load_balancer.cidrs)
        served = [claim for claim in claims if shares[claim.key].addresses]
        targets = {claim.key: _targets(claim, members) for claim in served}
        self._checker.watch({target for found in targets.values() for target in found})
        is_known = {
            key: all(self._checker.is_healthy(target) is not None for target in found) for key, found in targets.items()
        }
        # Right after a start nobody is known, and what the one before us has set up stands.
        self._has_begun = self._has_begun or all(is_known.values())
        if not self._has_begun:
            return
        # A new address is announced once, by the node that comes first, not by each that answers before it.
        balances = [
            balance(
                claim, shares[claim.key].addresses, members if is_known[claim.key] else (), self._checker.is_healthy
            )
            for claim in served
        ]
        failed = self._serve(balances)
        for claim in claims:
            if claim.key in failed or not is_known.get(claim.key, True):
                continue
            if not self._attempts.succeeds(claim.text, lambda claim=claim: self._tell(claim, shares[claim.key])):  # type: ignore[misc]
                failed.add(claim.key)
        is_done = {claim.key: claim.key not in failed and is_known.get(claim.key, True) for claim in claims}
        self._publish(claims, shares, balances, is_done)

    def _claims(self) -> list[Claim]:
        """What Services ask for, oldest first."""
        services = sorted(
            self._objects[SERVICE].values(), key=lambda obj: (obj["metadata"]["creationTimestamp"], name_of(obj))
        )
        found = [claim_of(obj, self._config.load_balancer.kind) for obj in services]
        return [_as_far_as_possible(claim) for claim in found if claim is not None]

    def _serve(self, balances: Iterable[Balance]) -> set[Key]:
        """Has packets for all addresses taken where they are to be taken; returns the claims that could not be served.

        One node's failure is its claims', the router's that of all claims in the router: their rules are one
        transaction, and their HAProxy is one process.
        """
        silent = self._announcements.set({address: node for one in balances for address, node in one.announcers})
        failed = {one.claim.key for one in balances if any(node in silent for _, node in one.announcers)}
        in_router = [one for one in balances if one.claim.kind != L2]
        classic = [one for one in in_router if one.claim.kind == CLASSIC]
        if not self._attempts.succeeds("the router", lambda: self._pass_on(in_router)):
            failed |= {one.claim.key for one in in_router}
        # HAProxy binds addresses that are there.
        if not self._attempts.succeeds("HAProxy", lambda: self._haproxy.serve(classic)):
            failed |= {one.claim.key for one in classic}
        return failed

    def _pass_on(self, in_router: Sequence[Balance]) -> None:
        if in_router or self._rules:
            passing.own_addresses({address for one in in_router for address in one.addresses})
            self._write_rules(passing.rules(in_router, self._config.node_networks) if in_router else "")
            self._forget_connections(in_router)

    def _write_rules(self, text: str) -> None:
        if text != self._rules:
            passing.write(text or passing.rules((), ()))
            self._rules = text

    def _forget_connections(self, balances: Iterable[Balance]) -> None:
        """Lets go of connections to nodes that serve no more, so that what is sent again finds another one."""
        serving = {
            address: frozenset(node for member in one.members if (node := member.address(version_of(address))))
            for one in balances
            for address in one.addresses
        }
        for address, before in self._serving.items():
            for node in before - serving.get(address, frozenset()):
                passing.forget_connections(address, node)
        self._serving = serving

    # ----- telling

    def _tell(self, claim: Claim, share: Share) -> None:
        """Writes the addresses into the Service's status, and what is wrong into an event."""
        obj = self._objects[SERVICE][claim.key]
        wanted = claim.ingress(share.addresses)
        present = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        if [_without_ports(entry) for entry in present] != wanted:
            change = {"status": {"loadBalancer": {"ingress": wanted or None}}}
            with contextlib.suppress(NotFound):
                obj = self._client.patch(SERVICE, claim.key[1], change, claim.key[0], subresource="status")
                # Gone meanwhile, and there again: the watch will tell.
                if self._objects[SERVICE][claim.key]["metadata"]["uid"] == obj["metadata"]["uid"]:
                    self._objects[SERVICE][claim.key] = obj
        if share.reason:
            self._say(obj, "SyncLoadBalancerFailed", f"Error syncing load balancer: {share.reason}", is_bad=True)
        else:
            self._say(obj, "EnsuredLoadBalancer", f"Ensured load balancer: {', '.join(share.addresses)}")

    def _say(self, obj: Object, reason: str, message: str, topic: str = "", *, is_bad: bool = False) -> None:
        """Makes an event of it, unless that was the last that was said of the topic."""
        about = (obj["metadata"]["uid"], topic)
        if self._told.get(about) == message:
            return
        self._told[about] = message
        (self._recorder.warning if is_bad else self._recorder.normal)(obj, reason, message)

    def _publish(
        self,
        claims: Iterable[Claim],
        shares: Mapping[Key, Share],
        balances: Iterable[Balance],
        is_done: Mapping[Key, bool],
    ) -> None:
        """Writes down who serves what, for `lab status`."""
        by_key = {one.claim.key: one for one in balances}
        services = []
        for claim in claims:
            obj = self._objects[SERVICE][claim.key]
            one = by_key.get(claim.key)
            for address, node in one.announcers if one is not None and is_done[claim.key] else ():
                message = f'announcing {address} from node "{node}" with protocol "layer2"'
                self._say(obj, "nodeAssigned", message, address)
            services.append(
                status.LoadBalancedService(
                    service=claim.text,
                    kind=claim.kind,
                    observed=obj["metadata"]["resourceVersion"] if is_done[claim.key] else "0",
                    addresses=shares[claim.key].addresses,
                    reason=shares[claim.key].reason,
                    ip_mode=claim.ip_mode,
                    announcers=dict(one.announcers) if one is not None else {},
                    nodes=tuple(member.name for member in one.members) if one is not None else (),
                )
            )
        balancing = self._config.load_balancer
        said = status.LoadBalancersStatus(balancing.kind, balancing.cidrs, tuple(services))
        if said != self._said:
            record.write(self._layout, said)
            self._said = said


def _as_far_as_possible(claim: Claim) -> Claim:
    """The same claim, with what this host lacks for it among its mistakes."""
    missing = [tool for tool in TOOLS.get(claim.kind, ()) if shutil.which(tool) is None]
    reasons = tuple(f"{claim.kind} needs {tool}, which is not installed on this host" for tool in missing)
    return replace(claim, mistakes=(*claim.mistakes, *reasons)) if reasons else claim


def _targets(claim: Claim, members: Iterable[Member]) -> list[Target]:
    return [target for member in members if (target := target_of(claim, member)) is not None]


def _without_ports(entry: Object) -> Object:
    return {name: value for name, value in entry.items() if name != "ports"}


def main() -> None:
    """Serves the lab that is named on the command line until SIGTERM."""
    layout = Layout(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    journal = Journal(layout.journal, ROLE)
    config = msgspec.json.decode(Path(layout.cluster_file).read_bytes(), type=ClusterConfig)
    _LOG.info("serving load balancers since %.2f s after boot", time.monotonic())
    Balancer(layout, config, Client(layout.api_url), journal).run()


if __name__ == "__main__":
    main()
