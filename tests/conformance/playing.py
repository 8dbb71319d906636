"""Plays a case: builds its network, runs the node proxy in it, sends each step's flows, reads the kernel's rules."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from case_network import NODE, network_of
from corpus import IPTABLES, NFTABLES, Case, Flow, Step, version_of
from exchange import Connection, Exchange, Probe, Seen
from judge import ALL_THE_SAME, Evidence, choices, complaints
from netns_world import ROOT, World, take_down, world

from netns.address import add_address
from netns.build import build
from netns.namespace import Namespace, named, run_in, socket_in
from netns.netlink import Batch
from netns.topology import AddressSpec

CHECKOUT = Path(__file__).parents[2]
PREFIX = "conf"
"""Of the names of namespaces; the number of the process follows, since somebody else may be testing beside us."""

START_SECONDS = 30.0

PROBES_OF_A_VERDICT = 3
PROBES_OF_A_CLIENT = 4
PROBES_OF_ENDPOINTS = 20
"""At least so many: an endpoint that should get nothing, but gets half, is overlooked once in 2^20 times."""
PROBES_PER_ENDPOINT = 6
MISSED_IS_MISSED = 10
"""So many times each endpoint's share of connections are made before an endpoint counts as never reached."""
MARKS = 63

VALUE_FLAGS = {
    "clusterCIDR": "cluster-cidr",
    "podInterfaceNamePrefix": "pod-interface-name-prefix",
    "podBridgeInterface": "pod-bridge-interface",
}

Meddle = Callable[["Stage", Step], None]


@dataclass
class Record:
    """What became of a case.

    Attributes:
        wrong: complaints, by step and flow.
        flows: how many flows were sent.
        tables: what iptables-save said, by step and IP version.
        evidence: rules, conntrack, addresses and the proxy's log, of each step in which something was wrong.
    """

    wrong: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    flows: int = 0
    tables: dict[tuple[str, int], str] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)

    def report(self) -> str:
        """All complaints, then the evidence; empty when nothing is wrong."""
        lines = [f"{step} / {flow}: {'; '.join(what)}" for (step, flow), what in self.wrong.items()]
        return "\n".join([*lines, *(f"==== {step}\n{text}" for step, text in self.evidence.items())])


NFTABLES_MODE = "nftables"
"""Stands where a variant of iptables may, for the mode that needs none."""


def mode_of(variant: str) -> str:
    """The mode that a variant belongs to."""
    return NFTABLES if variant == NFTABLES_MODE else IPTABLES


def play(case: Case, variant: str, *, has_proxy: bool = True, meddle: Meddle | None = None) -> Record:
    """Plays all steps.

    Args:
        variant: legacy or nft, of mode iptables; or `NFTABLES_MODE`.
        has_proxy: False: nobody writes rules.
        meddle: called in each step when the proxy has settled, before the flows are sent.
    """
    record = Record()
    with world(own_prefix()) as place, Stage(case, variant, place, has_proxy=has_proxy).built() as stage:
        for step in case.steps:
            stage.prepare(step)
            record.tables |= {(step.name, version): stage.saved(version) for version in (4, 6)}
            if meddle is not None:
                meddle(stage, step)
            wrong = stage.send(step.flows)
            if [ALL_THE_SAME] in wrong.values():
                stage.forget_affinity()
                wrong = stage.send(step.flows)
            record.flows += len(step.flows)
            if wrong:
                record.wrong |= {(step.name, flow): what for flow, what in wrong.items()}
                record.evidence[step.name] = stage.evidence()
    return record


@cache
def own_prefix() -> str:
    """A prefix that no other process uses. What processes that are gone have left is taken down first."""
    for folder in ROOT.glob(f"{PREFIX}[0-9]*"):
        if not Path("/proc", folder.name.removeprefix(PREFIX)).exists():
            take_down(World(folder.name, folder))
    return f"{PREFIX}{os.getpid()}"


class Stage:
    """A case's network with a proxy in it."""

    def __init__(self, case: Case, variant: str, place: World, *, has_proxy: bool) -> None:
        self.case = case
        self.variant = variant
        self._place = place
        self._has_proxy = has_proxy
        self._folder = place.folder / "case"
        self._network = network_of(case, place.prefix)
        self._journal = place.journal()
        self._exchange = Exchange({name: self._namespace(name) for name in self._network.places})
        self._proxy: subprocess.Popen[bytes] | None = None
        self._generation = 0
        self._objects: tuple[Any, ...] | None = None
        self._held: dict[str, tuple[Connection, Seen]] = {}
        self._choices: dict[str, dict[str, str]] = {}

    @contextlib.contextmanager
    def built(self) -> Iterator[Stage]:
        """The stage while its network is there; what goes with the namespaces is left to the world."""
        with contextlib.ExitStack() as opened:
            opened.callback(self._journal.close)
            self._journal.tree(self._folder)
            (self._folder / "manifests").mkdir(parents=True)
            build(self._network.topology(), self._journal, self._place.private)
            opened.callback(self._exchange.close)
            self._exchange.listen(self._network.listeners())
            self._exchange.watch(name for name in self._network.places if name != NODE)
            self._drop_by_default()
            opened.callback(self._stop_proxy)
            yield self

    @property
    def node(self) -> Namespace:
        return self._namespace(NODE)

    def prepare(self, step: Step) -> None:
        """Does what the step asks for and waits until the proxy has settled."""
        time.sleep(step.wait_seconds)
        if step.restarts_proxy:
            self._stop_proxy()
            if not step.keeps_rules:
                self._run_proxy("--cleanup").wait()
        is_new = self._objects != step.objects
        self._write_objects(step.objects)
        if not self._has_proxy:
            return
        if self._proxy is None:
            self._generation = 1
            self._proxy = self._run_proxy()
        elif is_new:
            self._generation += 1
        self._wait_until_programmed()

    def send(self, flows: Iterable[Flow]) -> dict[str, list[str]]:
        """What is wrong, by the name of the flow; flows that are as expected are left out."""
        plain, on_vip = [], []
        for flow in flows:
            (on_vip if "vip-on-node" in flow.requires else plain).append(flow)
        found = self._send(plain)
        if on_vip:
            with self._addresses_on_node({flow.address for flow in on_vip}):
                found |= self._send(on_vip)
        return {name: what for name, what in found.items() if what}

    def saved(self, version: int) -> str:
        """What the variant's iptables-save, or nft, says on the node."""
        if self.variant == NFTABLES_MODE:
            return self.run("nft", "list", "table", {4: "ip", 6: "ip6"}[version], "kube-proxy")
        tool = {4: "iptables", 6: "ip6tables"}[version]
        return self.run(f"{tool}-{self.variant}-save")

    def edit(self, version: int, table: str, change: Callable[[str], str]) -> None:
        """Replaces a table of the node's by what `change` makes of what iptables-save says."""
        tool = {4: "iptables", 6: "ip6tables"}[version]
        before = self.run(f"{tool}-{self.variant}-save", "-t", table)
        after = change(before)
        assert after != before, "nothing was changed"
        self.run(f"{tool}-{self.variant}-restore", text=after)

    def run(self, *argv: str, text: str = "") -> str:
        """The output of a command on the node."""
        done = run_in(
            self.node, subprocess.run, argv, input=text, capture_output=True, text=True, env=self._environment()
        )
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return str(done.stdout)

    def evidence(self) -> str:
        save = (
            (("nft", "list", "ruleset"),)
            if self.variant == NFTABLES_MODE
            else ((f"iptables-{self.variant}-save", "-c"), (f"ip6tables-{self.variant}-save", "-c"))
        )
        commands = (
            *save,
            ("conntrack", "-L"),
            ("conntrack", "-L", "-f", "ipv6"),
            ("ip", "-o", "address"),
            ("ip", "-4", "route"),
            ("ip", "-6", "route"),
        )
        texts = [f"---- {' '.join(argv)}\n{self.run(*argv)}" for argv in commands]
        return "\n".join([*texts, "---- the proxy's log", self._log.read_text() if self._log.exists() else "none"])

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _namespace(self, place: str) -> Namespace:
        return named(self._network.name(place), self._place.private)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "XTABLES_LOCKFILE": str(self._folder / "xtables.lock")}

    # The proxy

    def _run_proxy(self, *flags: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "kproxy", "proxy", *proxy_flags(self.case), *flags]
        argv += ["--manifests", str(self._folder / "manifests")]
        if self.variant == NFTABLES_MODE:
            argv += ["--proxy-mode", NFTABLES_MODE]
        else:
            argv += ["--iptables-variant", self.variant]
        with self._log.open("ab") as log:
            return run_in(self.node, subprocess.Popen, argv, env=self._environment(), cwd="/", stdout=log, stderr=log)

    def run_proxy(self, *flags: str) -> None:
        """Runs a proxy that ends by itself, in place of the one that goes on."""
        self._stop_proxy()
        assert self._run_proxy(*flags).wait() == 0

    def _stop_proxy(self) -> None:
        if self._proxy is not None:
            self._proxy.send_signal(signal.SIGTERM)
            self._proxy.wait()
        self._proxy = None

    def _write_objects(self, objects: tuple[Any, ...]) -> None:
        self._objects = objects
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        scratch = self._folder / "scratch"
        scratch.write_text(text)
        scratch.replace(self._folder / "manifests/objects.json")

    def _wait_until_programmed(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        assert self._proxy is not None
        while self._proxy.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError):
                answer = self._programmed(deadline - time.monotonic())
                assert not answer["lastError"], answer
                assert int(answer["resourceVersion"]) == self._generation, answer
                return
            time.sleep(0.02)
        pytest.fail(f"the proxy did not come up:\n{self._log.read_text()}")

    def _programmed(self, seconds: float) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", 10256)
        with socket_in(self.node, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds + 5)
            sock.connect(("127.0.0.1", 10256))
            connection.sock = sock
            connection.request("GET", f"/programmed?resourceVersion={self._generation}&timeoutSeconds={seconds:.1f}")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer

    # The node beside the proxy

    def _drop_by_default(self) -> None:
        """A host firewall's rule, in front of which the proxy accepts what has to come through."""
        for flow in self.case.flows:
            if "input-default-drop" in flow.requires:
                tool = {4: "iptables", 6: "ip6tables"}[version_of(flow.address)]
                port = ("-p", flow.protocol, "--dport", str(flow.port))
                variant = "nft" if self.variant == NFTABLES_MODE else self.variant
                self.run(f"{tool}-{variant}", "-A", "INPUT", *port, "-j", "DROP")

    @contextlib.contextmanager
    def _addresses_on_node(self, addresses: set[str]) -> Iterator[None]:
        def add() -> None:
            with Batch() as batch:
                for address in addresses:
                    bits = {4: 32, 6: 128}[version_of(address)]
                    add_address(batch, AddressSpec(NODE, "lo", f"{address}/{bits}"))
                batch.send()

        run_in(self.node, add)
        yield
        for address in addresses:
            self.run("ip", "address", "del", address, "dev", "lo")

    def forget_affinity(self) -> None:
        """Empties the lists of recent clients, so that each client is sent anywhere again."""

        if self.variant == NFTABLES_MODE:
            for family in ("ip", "ip6"):
                for name in re.findall(r"set (affinity-\S+) ", self.run("nft", "list", "sets", family)):
                    self.run("nft", "flush", "set", family, "kube-proxy", name)
            return

        def forget() -> None:
            for path in Path("/proc/thread-self/net/xt_recent").iterdir():
                path.write_text("/\n")

        run_in(self.node, forget)

    # The flows

    def _send(self, flows: list[Flow]) -> dict[str, list[str]]:
        found = {}
        seen: dict[str, dict[str, list[Seen]]] = {flow.name: {} for flow in flows}
        reached: dict[str, frozenset[str]] = {}
        for flow in flows:
            if flow.held:
                connection, first = self._held[flow.held]
                now = self._exchange.ask_again(connection)
                seen[flow.name][flow.sources[0]] = [now]
                if now != first:
                    found[flow.name] = [f"the held connection reaches {now} instead of {first}"]
        fresh = [flow for flow in flows if not flow.held]
        wave = 0
        while asked := [(flow, probe) for flow in fresh for probe in self._probes(flow, fresh, wave, seen[flow.name])]:
            connections = self._exchange.send([probe for _, probe in asked])
            for (flow, probe), connection in zip(asked, connections, strict=True):
                assert connection.seen is not None
                seen[flow.name].setdefault(probe.source, []).append(connection.seen)
                if probe.is_kept:
                    self._held[flow.hold] = (connection, connection.seen)
                if probe.mark:
                    marked = {place for mark, place in self._exchange.reached if mark == probe.mark}
                    reached[flow.name] = frozenset(marked)
            wave += 1
        for flow in flows:
            evidence = self._evidence_of(flow, seen[flow.name], reached.get(flow.name, frozenset()))
            found[flow.name] = [*found.get(flow.name, ()), *dict.fromkeys(complaints(flow, evidence))]
        self._choices |= {flow.name: choices(seen[flow.name]) for flow in flows if len(flow.sources) > 1}
        return found

    def _probes(self, flow: Flow, flows: list[Flow], wave: int, seen: Mapping[str, list[Seen]]) -> Iterator[Probe]:
        """What to send of a flow in one wave; nothing once enough is known."""
        count = probes_of(flow, wave, [one for answers in seen.values() for one in answers])
        for number in range(count):
            source = flow.sources[number % len(flow.sources)]
            yield Probe(
                place=self._network.place_of_client(flow.origin, source),
                source=source,
                source_port=flow.source_port,
                protocol=flow.protocol,
                address=flow.address,
                port=flow.port,
                mark=1 + flows.index(flow) % MARKS if flow.expect.verdict in ("reject", "drop") else 0,
                is_silent=flow.expect.verdict == "drop",
                only_connects=flow.expect.verdict == "accept",
                is_kept=bool(flow.hold) and wave == number == 0,
            )

    def _evidence_of(self, flow: Flow, seen: Mapping[str, list[Seen]], reached: frozenset[str]) -> Evidence:
        return Evidence(
            seen=seen,
            place=self._network.place_of_client(flow.origin, flow.sources[0]),
            reached=reached,
            place_beyond=self._network.place_beyond(flow.address),
            place_of_endpoint=self._network.place_of_endpoint,
            node_address_towards=self._network.node_address_towards,
            before=self._choices.get(flow.client or flow.name, {}),
        )


def probes_of(flow: Flow, wave: int, seen: list[Seen]) -> int:
    """How many connections to make in a wave, after what was seen in those before; 0: enough is known."""
    expect = flow.expect
    if flow.source_port:
        return int(wave == 0)
    if expect.affinity:
        return len(flow.sources) if wave < PROBES_OF_A_CLIENT else 0
    if expect.verdict:
        return PROBES_OF_A_VERDICT if wave == 0 else 0
    if wave == 0:
        return max(expect.uniform, PROBES_OF_ENDPOINTS, len(flow.sources), PROBES_PER_ENDPOINT * len(expect.endpoints))
    is_over = wave > MISSED_IS_MISSED or any(one.local not in expect.endpoints for one in seen)
    return (
        0 if is_over or expect.endpoints <= {one.local for one in seen} else PROBES_PER_ENDPOINT * len(expect.endpoints)
    )


def proxy_flags(case: Case) -> list[str]:
    """kube-proxy's flags for a case's configuration."""
    config = case.config
    flags = [
        f"--hostname-override={case.node}",
        f"--masquerade-all={str(config['masqueradeAll']).lower()}",
        f"--iptables-masquerade-bit={config['masqueradeBit']}",
        f"--iptables-localhost-nodeports={str(config.get('localhostNodePorts', True)).lower()}",
        "--iptables-min-sync-period=0s",
        "--conntrack-max-per-core=0",
        "--oom-score-adj=0",
    ]
    if config["detectLocalMode"]:
        flags.append(f"--detect-local-mode={config['detectLocalMode']}")
    for key, flag in VALUE_FLAGS.items():
        if config.get(key):
            flags.append(f"--{flag}={config[key]}")
    if config["nodePortAddresses"]:
        flags.append(f"--nodeport-addresses={','.join(config['nodePortAddresses'])}")
    return flags
