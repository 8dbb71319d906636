"""A node's proxy against a fake clock, fake tools and a scripted stream of events: no sockets, no threads, no sleeps.

A seed decides everything. What is real: the agent with its trackers and runners, the part of the source that turns
lists and watch events into changes, and the writer. What is fake: the API server behind the source, the iptables tools
(which fail when they are told to, and which somebody else uses too), conntrack and the health check ports.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
from fake_iptables import FakeIptables, Table, target_of

from kproxy.api.types import Object
from kproxy.client import RawEvent, RawSnapshot
from kproxy.errors import HostError
from kproxy.proxy.agent import CANARY_PATIENCE, Agent, Command, Proxier, Reports
from kproxy.proxy.backends.iptables.host import Tools
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.changes import Change, HealthCheck, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.progress import Progress
from kproxy.proxy.runner import MAX_INTERVAL, Runner
from kproxy.proxy.services import ServiceName
from kproxy.proxy.setup import HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources.api import Known
from kproxy.proxy.stale_flows import Place, UdpFrontends, UdpPorts, answerers, frontends, is_stale

EVENTS = 200
NODE = "node1"
NODE_IPS = {Family.IPV4: "192.168.1.2", Family.IPV6: "fd00:1::2"}
KINDS = ("Node", "Service", "EndpointSlice")
SERVICES = ("a", "b", "c", "d")
SLICES = ("s1", "s2", "s3", "s4", "s5")
FOREIGN = "-A INPUT -p icmp -j ACCEPT"
"""A rule of somebody else's, which nothing that the proxy does may take away."""


class Api:
    """An API server, and a watch of each kind that lags, breaks off and starts over."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.version = 1
        self.objects: dict[tuple[str, str], Object] = {}
        self.told: dict[str, deque[RawSnapshot | RawEvent]] = {kind: deque() for kind in KINDS}
        self.known = {kind: Known(kind) for kind in KINDS}

    def put(self, obj: Object) -> None:
        """Create or update an object."""
        self.version += 1
        key = obj["kind"], obj["metadata"]["name"]
        obj["metadata"]["resourceVersion"] = str(self.version)  # the last change that is made to it
        kind = "MODIFIED" if key in self.objects else "ADDED"
        self.objects[key] = obj
        self._tell(obj["kind"], kind, obj)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, if it is there."""
        obj = self.objects.pop((kind, name), None)
        if obj is not None:
            self.version += 1
            metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
            self._tell(kind, "DELETED", {**obj, "metadata": metadata})

    def bookmark(self) -> None:
        """Tell every watch how far it is."""
        for kind in KINDS:
            self._tell(kind, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def relist(self, kind: str) -> None:
        """A watch broke off too long ago: what it has not told yet is lost, and a list comes instead."""
        items = [obj for (of, _), obj in sorted(self.objects.items()) if of == kind]
        page = msgspec.json.encode({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        self.told[kind] = deque([RawSnapshot([page], str(self.version))])

    def _tell(self, kind: str, event: Any, obj: Object) -> None:
        self.told[kind].append(RawEvent(event, msgspec.json.encode(obj), str(self.version)))


class FakeConntrack:
    """UDP flows of one family, as (destination, answerer)."""

    def __init__(self) -> None:
        self.flows: set[tuple[Place, Place]] = set()
        self.does_fail = False
        self._frontends = UdpFrontends()
        self._ports: dict[ServiceName, UdpPorts] = {}

    def reconcile(self, changed: Mapping[ServiceName, UdpPorts]) -> int:
        """Forget flows to who may not answer, as ``ConntrackReconciler`` does."""
        self._frontends.take(changed)
        self._ports.update(changed)
        if self.does_fail:
            self.does_fail = False
            raise HostError("cannot reconcile conntrack: told to fail")
        allowed = self._frontends.allowed(NODE_IPS.values())
        self._frontends.done()
        stale = {flow for flow in self.flows if is_stale(*flow, allowed)}
        self.flows -= stale
        return len(stale)

    def refuses(self, place: Place) -> bool:
        """Whether there is a rule that refuses packets to it: then no entry of them is made."""
        found = frontends(port for ports in self._ports.values() for port in ports)
        return found.get(place) == frozenset()


class FakeHealthChecks:
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.wanted: dict[ServiceName, HealthCheck] = {}

    def sync(self, wanted: Mapping[ServiceName, HealthCheck]) -> bool:
        """Listen on exactly these ports."""
        self.wanted = dict(wanted)
        return True


class Side:
    """One family: its proxier and what it works on."""

    def __init__(self, family: Family, config: ProxyConfig, metrics: Metrics) -> None:
        self.family = family
        self.kernel = FakeIptables()
        self.kernel.run(("restore",), f"*filter\n{FOREIGN}\nCOMMIT\n")
        self.conntrack = FakeConntrack()
        self.health_checks = FakeHealthChecks()
        self.damaged_at = -math.inf
        self.checked: list[Table] = []
        self.settings: Settings = iptables_settings(config, NodeFacts(ips=NODE_IPS), family, HostFeatures())
        tools = Tools("legacy", "iptables-save", "iptables-restore", (1, 8, 9))
        self.proxier = Proxier(
            family=family,
            tracker=Tracker(family, NODE),
            backend=IptablesBackend(
                tools, self.settings, lambda total, last: metrics.rules(family.value, total, last), self.kernel.run
            ),
            runner=Runner(config.iptables_min_sync_period, config.iptables_sync_period),
            conntrack=self.conntrack,
            health_checks=self.health_checks,
        )

    @property
    def is_damaged(self) -> bool:
        """Whether somebody changed tables since everything was written."""
        return self.damaged_at >= self.proxier.last_full_sync


class Simulation:
    """One run.

    Args:
        seed: decides everything that happens.

    Attributes:
        script: what has happened so far, a line each.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.script: list[str] = []
        self.now = 1000.0
        self.config = ProxyConfig(
            iptables_min_sync_period=self.rng.choice([0.0, 1.0]),
            cluster_cidr=("10.244.0.0/16", "fd00:10:244::/48"),
            masquerade_all=self.rng.random() < 0.2,
        )
        self.api = Api(self.rng)
        self.metrics = Metrics(lambda: self.now)
        self.health = Health(2 * self.config.iptables_sync_period, lambda: self.now, lambda: int(self.now * 1e9))
        self.progress = Progress()
        families = list(Family) if self.rng.random() < 0.3 else [self.rng.choice(list(Family))]
        self.sides = [Side(family, self.config, self.metrics) for family in families]
        reports = Reports(self.progress, self.health, self.metrics)
        self.agent = Agent(self.config, NODE, [side.proxier for side in self.sides], reports, lambda: ())
        self._programmed = 0

    # the script

    def run(self) -> None:
        """Start, let ``EVENTS`` things happen, then quiet; every promise is looked at on the way."""
        self.api.put(self._node())
        for kind in KINDS:
            self.api.relist(kind)
        steps = (
            (self._change_service, 20),
            (self._change_slice, 30),
            (self._change_node, 2),
            (self._bookmark, 3),
            (self._relist, 3),
            (self._resync, 1),
            (self._break_tools, 4),
            (self._break_conntrack, 2),
            (self._interfere, 3),
            (self._start_flow, 8),
            (self._pass_time, 24),
        )
        actions, weights = zip(*steps, strict=True)
        for action in self.rng.choices(actions, weights, k=EVENTS):
            action()
            self._deliver(self.rng.random())
            self._work()
            self._check_on_the_way()
        self._quiet()

    def _note(self, words: str) -> None:
        self.script.append(f"{self.now:9.2f} {words}")

    def _deliver(self, share: float) -> None:
        """Hand the agent some of what the watches have to tell: each in its order, none waiting for another."""
        for kind, queue in self.api.told.items():
            count = len(queue) if share > 0.9 else self.rng.randint(0, len(queue))
            for _ in range(count):
                self.agent.handle(self.api.known[kind].batch(queue.popleft()), self.now)

    def _work(self) -> None:
        for _ in range(100):
            if self.agent.next_due() > self.now:
                return
            self.agent.work(lambda: self.now)
        raise AssertionError("the agent never comes to rest")

    def _sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.agent.next_due()) <= end:
            self.now = max(self.now, due)
            self._work()
        self.now = end

    def _pass_time(self) -> None:
        often, rarely = [0.01, 0.3, 0.3, 1.1, 1.1, 5.2, 31.0], [MAX_INTERVAL + 1]
        seconds = self.rng.choice(often * 4 + rarely)
        self._note(f"{seconds} s pass")
        self._sleep(seconds)

    def _change_service(self) -> None:
        name = self.rng.choice(SERVICES)
        if self.rng.random() < 0.2:
            self._note(f"Service {name} is deleted")
            self.api.delete("Service", name)
            return
        service = self._service(name)
        if self.rng.random() < 0.03:
            service["spec"]["ports"] = "none of your business"
        self._note(f"Service {name}: {service['spec']}")
        self.api.put(service)

    def _change_slice(self) -> None:
        name = self.rng.choice(SLICES)
        if self.rng.random() < 0.15:
            self._note(f"EndpointSlice {name} is deleted")
            self.api.delete("EndpointSlice", name)
            return
        slice_ = self._slice(name)
        if self.rng.random() < 0.03:
            slice_["endpoints"] = {"not": "a list"}
        self._note(f"EndpointSlice {name}: {slice_['metadata']['labels']} {slice_['endpoints']} {slice_['ports']}")
        self.api.put(slice_)

    def _change_node(self) -> None:
        node = self._node(self.rng.choice(["", "z1", "z2"]))
        self._note(f"Node: {node['metadata']['labels']}")
        self.api.put(node)

    def _bookmark(self) -> None:
        self.api.bookmark()

    def _relist(self) -> None:
        kind = self.rng.choice(KINDS)
        self._note(f"the watch of {kind} starts over")
        self.api.relist(kind)

    def _resync(self) -> None:
        self._note("a person asks for everything to be written")
        self.agent.handle(Command.RESYNC, self.now)

    def _break_tools(self) -> None:
        side = self.rng.choice(self.sides)
        kinds = self.rng.choices(["missing", "locked", "refused", "killed", "save", ""], k=self.rng.randint(1, 3))
        side.kernel.faults = [(kind, self.rng.random()) for kind in kinds]
        self._note(f"{side.family.value}: the next calls of the tools: {side.kernel.faults}")

    def _break_conntrack(self) -> None:
        self.rng.choice(self.sides).conntrack.does_fail = True
        self._note("conntrack fails once")

    def _start_flow(self) -> None:
        """A client's flow to any frontend there is, answered by any endpoint of it."""
        side = self.rng.choice(self.sides)
        found = frontends(self._fresh(side).udp_ports())
        if not found:
            return
        (address, port), places = self.rng.choice(sorted(found.items()))
        if not places and side.conntrack.refuses((address, port)):
            return
        answerer = self.rng.choice(sorted(places) or [(address, port)])
        side.conntrack.flows.add(((address or NODE_IPS[side.family], port), answerer))
        self._note(f"a UDP flow to {address}:{port}, answered by {answerer}")

    def _interfere(self) -> None:
        """Somebody else works on the tables."""
        side = self.rng.choice(self.sides)
        tables = side.kernel.tables
        what = self.rng.choice(["flush everything", "take a jump", "empty a chain", "take the canary of mangle"])
        self._note(f"{side.family.value}: somebody does: {what}")
        faults, side.kernel.faults = side.kernel.faults, []
        if what == "flush everything":
            _flush(side.kernel)
        elif what == "take the canary of mangle":
            tables["mangle"].chains.pop("KUBE-PROXY-CANARY", None)
        else:
            table = tables[self.rng.choice(["filter", "nat"])]
            chains = sorted(
                chain
                for chain, rules in table.chains.items()
                if any("KUBE-" in rule for rule in rules) and (chain in table.policies) == (what == "take a jump")
            )
            if chains:
                chain = self.rng.choice(chains)
                kept = [rule for rule in table.chains[chain] if "KUBE-" not in rule]
                table.chains[chain] = (
                    kept if what == "empty a chain" else [*kept, *_without_one(self.rng, table, chain)]
                )
        side.kernel.faults = faults
        side.damaged_at, side.checked = self.now, []

    # objects

    def _node(self, zone: str = "") -> Object:
        labels = {"topology.kubernetes.io/zone": zone} if zone else {}
        addresses = [{"type": "InternalIP", "address": address} for address in NODE_IPS.values()]
        return {
            "kind": "Node",
            "metadata": {"name": NODE, "labels": labels},
            "spec": {},
            "status": {"addresses": addresses},
        }

    def _service(self, name: str) -> Object:
        choose, number = self.rng.choice, SERVICES.index(name) + 1
        kind = choose(["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer"])
        protocols = choose([["TCP"], ["UDP"], ["TCP", "UDP"], ["SCTP", "UDP"]])
        ports = [
            {
                "name": f"p{index}",
                "port": choose([80, 81]) + index,
                "protocol": protocol,
                **({"nodePort": 30000 + 10 * number + index} if kind != "ClusterIP" else {}),
            }
            for index, protocol in enumerate(protocols)
        ]
        addresses = choose([[f"10.96.0.{number}"], [f"fd00:96::{number}"], [f"10.96.0.{number}", f"fd00:96::{number}"]])
        return {
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": kind,
                "clusterIP": addresses[0],
                "clusterIPs": addresses,
                "ports": ports,
                "sessionAffinity": choose(["None", "None", "ClientIP"]),
                "externalIPs": choose([[], [], [f"192.0.2.{number}"]]),
                "internalTrafficPolicy": choose(["Cluster", "Cluster", "Local"]),
                "externalTrafficPolicy": choose(["Cluster", "Local"]),
                "healthCheckNodePort": 30900 + number,
                "loadBalancerSourceRanges": choose([[], [], ["203.0.113.0/24"], ["192.168.0.0/16"]]),
            },
            "status": {"loadBalancer": {"ingress": [{"ip": f"198.51.100.{number}"}] if kind == "LoadBalancer" else []}},
        }

    def _slice(self, name: str) -> Object:
        choose = self.rng.choice
        is_four = choose([True, True, False])
        labels = {"kubernetes.io/service-name": choose([*SERVICES, *SERVICES, "nobody"])}
        if self.rng.random() < 0.03:
            labels["service.kubernetes.io/headless"] = ""
        endpoints = [
            {
                "addresses": [choose(["10.244.0.", "10.244.1."]) + str(number) if is_four else f"fd00:244::{number}"],
                "conditions": choose(
                    [
                        {"ready": True},
                        {"ready": True},
                        {},
                        {"ready": False},
                        {"ready": False, "serving": True, "terminating": True},
                    ]
                ),
                "nodeName": choose([NODE, "node2", "nowhere"]),
                **({"hints": {"forZones": [{"name": choose(["z1", "z2"])}]}} if choose([True, False, False]) else {}),
            }
            for number in self.rng.sample(range(2, 9), self.rng.randint(0, 4))
        ]
        ports = [
            {"name": f"p{index}", "port": choose([8080, 8081]), "protocol": protocol}
            for index in (0, 1)
            for protocol in ("TCP", "UDP")
        ]
        return {
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "addressType": "IPv4" if is_four else "IPv6",
            "endpoints": endpoints,
            "ports": ports,
        }

    # what has to be true

    def _fresh(self, side: Side) -> Tracker:
        """A tracker that sees what the source knows now for the first time."""
        tracker = Tracker(side.family, NODE)
        for known in self.api.known.values():
            tracker.take(Change(key, None, value) for key, value in known.objects.items())
        return tracker

    def _expected(self, side: Side) -> dict[tuple[str, str], list[str]]:
        node = next(iter(self.api.known["Node"].objects.values()), None)
        around = circumstances(self.config, NODE, facts(node), side.family)  # type: ignore[arg-type]
        scope = node_port_scope(self.config, facts(node), side.family, ())  # type: ignore[arg-type]
        rules = RuleSet(side.settings)
        rules.take(self._fresh(side).delta(around, scope, is_full=True))
        return comparable(rules.saved())

    def _check_on_the_way(self) -> None:
        told = self.progress.as_json()
        version = int(told["resourceVersion"])
        assert version >= self._programmed, "what is programmed went back"
        self._programmed = version
        for side in self.sides:
            if side.checked != list(side.kernel.tables.values()):
                side.checked = list(side.kernel.tables.values())
                _check_tables(side.kernel)
            settled = side.proxier.runner.is_settled and not side.proxier.tracker.is_dirty
            if settled and not side.is_damaged and self.rng.random() < 0.05:
                self._check_rules(side)

    def _check_rules(self, side: Side) -> None:
        found, expected = comparable(side.kernel.save()), self._expected(side)
        assert found == expected, f"{side.family.value}: {different(found, expected)}"

    def _quiet(self) -> None:
        """Nothing happens any more, and nothing fails: soon all is as if it had been written at once."""
        self._note("quiet")
        for name in SERVICES:
            if ("Service", name) in self.api.objects:
                self.api.put(self._service(name))
        for name in SLICES:
            if ("EndpointSlice", name) in self.api.objects:
                self.api.put(self._slice(name))
        self.api.bookmark()
        for side in self.sides:
            side.kernel.faults = []
        self._deliver(1.0)
        # what nobody can see without looking at every rule is mended within the hour
        is_damaged = any(side.is_damaged for side in self.sides)
        self._sleep(MAX_INTERVAL + 40 if is_damaged else 3 * self.config.iptables_sync_period)
        assert int(self.progress.as_json()["resourceVersion"]) == self.api.version, "not all is programmed"
        assert self.progress.as_json()["lastError"] == ""
        assert self.health.healthz().status == 200
        for side in self.sides:
            self._check_rules(side)
            fresh = self._fresh(side)
            assert side.health_checks.wanted == fresh.health_checks
            allowed = answerers(frontends(fresh.udp_ports()), (), NODE_IPS.values())
            stale = [flow for flow in side.conntrack.flows if is_stale(*flow, allowed)]
            assert not stale, f"{side.family.value}: flows that go nowhere: {stale}"
            restores = side.kernel.restores
            self._sleep(self.config.iptables_sync_period)
            assert side.kernel.restores == restores, "rules are written although nothing has changed"
        for side in self.sides:
            _flush(side.kernel)
        self._sleep(self.config.iptables_sync_period + CANARY_PATIENCE + 1)
        for side in self.sides:
            self._check_rules(side)


def _check_tables(kernel: FakeIptables) -> None:
    assert FOREIGN in kernel.tables["filter"].chains["INPUT"], "somebody else's rule is gone"
    for table in kernel.tables.values():
        jumps = {target_of(rule) for rules in table.chains.values() for rule in rules}
        nowhere = {jump for jump in jumps if jump.startswith("KUBE-")} - table.chains.keys()
        assert not nowhere, f"jumps to nowhere: {nowhere}"


def _flush(kernel: FakeIptables) -> None:
    """Somebody takes all our chains away, as a firewall's restart does."""
    for table in kernel.tables.values():
        for chain in list(table.chains):
            if chain in table.policies:
                table.chains[chain] = [rule for rule in table.chains[chain] if "KUBE-" not in rule]
            else:
                del table.chains[chain]


def _without_one(rng: random.Random, table: Table, chain: str) -> list[str]:
    jumps = [rule for rule in table.chains[chain] if "KUBE-" in rule]
    jumps.remove(rng.choice(jumps))
    return jumps


def comparable(saved: str) -> dict[tuple[str, str], list[str]]:
    """Our rules per table and chain; the jumps in the built-in chains sorted: one that was lost comes back on top."""
    table, found = "", {}
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":KUBE-") and table != "mangle":
            found.setdefault((table, line[1:].split(" ", 1)[0]), [])
        elif line.startswith("-A ") and "KUBE-" in line and table != "mangle":
            found.setdefault((table, line.split(" ", 2)[1]), []).append(line)
    return {key: rules if key[1].startswith("KUBE-") else sorted(rules) for key, rules in found.items()}


def different(found: dict[Any, list[str]], expected: dict[Any, list[str]]) -> str:
    """The chains that are not as they should be."""
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return "\n".join(f"{key}: is {found.get(key)}, not {expected.get(key)}" for key in keys)
