"""The node proxy as a process: puts the parts together, in kube-proxy's order, and runs the loop."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from kproxy.api.types import Node
from kproxy.errors import HostError, UserError
from kproxy.proxy import sysctls
from kproxy.proxy.agent import Agent, Command, Proxier, Reports
from kproxy.proxy.backends.iptables.host import Variant, choose_variant, find_tools
from kproxy.proxy.backends.iptables.writer import clean_up
from kproxy.proxy.changes import Batch, Tracker, joined
from kproxy.proxy.collector import Collector
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.conntrack import ConntrackReconciler
from kproxy.proxy.events import Tell, no_health_check, starting
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health, programmed
from kproxy.proxy.metrics import HEALTHZ, LIVEZ, Metrics
from kproxy.proxy.modes import delete_nftables, mode_of
from kproxy.proxy.netlink import local_addresses
from kproxy.proxy.node import NodeFacts, facts
from kproxy.proxy.progress import Progress
from kproxy.proxy.runner import Runner
from kproxy.proxy.service_health import ServiceHealthServers
from kproxy.proxy.serving import Routes, serve, split_bind_address
from kproxy.proxy.setup import (
    health_check_addresses,
    is_loopback,
    node_ip,
    node_port_scope,
)
from kproxy.proxy.sources import Source
from kproxy.proxy.status_pages import status_pages

_LOG = logging.getLogger(__name__)

NODE_PATIENCE = 30.0
"""Seconds to wait for a Node with an address (kube-proxy: server.go, getNodeIPs)."""
POD_CIDR_PATIENCE = 300.0
"""Seconds to wait for the Node's podCIDR in mode NodeCIDR."""

CONFIG_POLL_SECONDS = 1.0

ENDINGS = {Command.STOP, Command.FAIL}

Inbox = SimpleQueue[Batch | Command]


def run(config: ProxyConfig) -> int:
    """Run the node proxy until SIGTERM or SIGINT; returns the exit status.

    What was written stays when it ends: traffic goes on.

    Raises:
        UserError: the configuration cannot work.
        HostError: the host cannot do what is needed.
    """
    if config.cleanup:
        return clean(config)
    name = node_name(config)
    inbox: Inbox = SimpleQueue()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inbox.put(Command.STOP))
    signal.signal(signal.SIGUSR1, lambda *_: inbox.put(Command.RESYNC))
    threading.excepthook = _fail_with(inbox)
    if config.config:
        _watch_file(Path(config.config), inbox, stop)
    collector = Collector(time.monotonic())
    source = make_source(config, name)
    source.start(inbox.put, stop)
    try:
        return _run(config, name, source, inbox, collector)
    finally:
        stop.set()


def _run(config: ProxyConfig, name: str, source: Source, inbox: Inbox, collector: Collector) -> int:
    node, early = wait_for_node(config, name, inbox, is_patient=source.is_patient)
    if ENDINGS & _commands(early):
        return status_of(early)
    reports = make_reports(config)
    sysctls.set_up_conntrack(config)
    proxiers = make_proxiers(config, name, node, reports, source.tell)
    if config.init_only:
        return 0
    sysctls.set_oom_score(config.oom_score_adj)
    _serve(config, reports)
    source.tell(starting(name))
    agent = Agent(config, name, proxiers, reports, local_addresses)
    return loop(agent, inbox, early, collector)


def loop(agent: Agent, inbox: Inbox, events: list[Batch | Command], collector: Collector) -> int:
    """Handle events and do what is due, until told to end; returns the exit status.

    Args:
        agent: who handles them.
        inbox: where they come from.
        events: those that have come already; the list is emptied, for they hold all objects of the start.
        collector: told when there is time to tidy up.
    """
    while True:
        if ENDINGS & _commands(events):
            return status_of(events)
        changes = _handle(agent, events)
        events.clear()
        agent.work(time.monotonic)
        collector.rest(changes, time.monotonic(), is_idle=inbox.empty())
        events = next_events(inbox, agent.next_due())


def _handle(agent: Agent, events: Iterable[Batch | Command]) -> int:
    """Tell the agent what has happened, all changes at once; returns how many they are."""
    batches = [event for event in events if isinstance(event, Batch)]
    for command in _commands(events):
        agent.handle(command, time.monotonic())
    if batches:
        agent.handle(joined(batches), time.monotonic())
    return sum(len(batch.changes) for batch in batches)


def _commands(events: Iterable[Batch | Command]) -> set[Command]:
    return {event for event in events if isinstance(event, Command)}


def status_of(events: Iterable[Batch | Command]) -> int:
    """The exit status that the events mean."""
    return 1 if Command.FAIL in _commands(events) else 0


def _fail_with(inbox: Inbox) -> Callable[[threading.ExceptHookArgs], None]:
    """A watch that dies of a bug must not leave a proxy behind that looks healthy and sees nothing."""

    def fail(died: threading.ExceptHookArgs) -> None:
        trace = (died.exc_type, died.exc_value or died.exc_type(), died.exc_traceback)
        _LOG.critical("thread %s died", died.thread.name if died.thread else "?", exc_info=trace)
        inbox.put(Command.FAIL)

    return fail


def _watch_file(path: Path, inbox: Inbox, stop: threading.Event) -> None:
    """End the process when its configuration changes: it is never read again (kube-proxy: options.go, eventHandler)."""

    def signature() -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def watch() -> None:
        while not stop.wait(CONFIG_POLL_SECONDS):
            if signature() != first:
                _LOG.error("%s has changed: ending, so that it is read anew", path)
                inbox.put(Command.FAIL)
                return

    first = signature()
    threading.Thread(target=watch, name="watch-config", daemon=True).start()


def next_events(inbox: Inbox, due: float) -> list[Batch | Command]:
    """All events that are there, or the first to come before ``due``; none when it passes."""
    events: list[Batch | Command] = []
    timeout = None if due == float("inf") else max(0.0, due - time.monotonic())
    try:
        events.append(inbox.get(timeout=timeout))
        while True:
            events.append(inbox.get_nowait())
    except Empty:
        return events


def node_name(config: ProxyConfig) -> str:
    """This node's name: --hostname-override or the host's own, trimmed and in lower case.

    Raises:
        UserError: it is empty.
    """
    name = (config.hostname_override or socket.gethostname()).strip().lower()
    if not name:
        raise UserError("the node has no name: --hostname-override is empty and the host has none")
    return name


def make_source(config: ProxyConfig, name: str) -> Source:
    """The source that the configuration names.

    Raises:
        UserError: it names none, or one that cannot be.
    """
    if config.manifests:
        from kproxy.proxy.sources.directory import DirectorySource

        return DirectorySource(Path(config.manifests))
    from kproxy.proxy.api_access import connect
    from kproxy.proxy.sources.api import ApiSource

    return ApiSource(connect(config.kubeconfig, config.master), name)


def wait_for_node(
    config: ProxyConfig, name: str, inbox: Inbox, *, is_patient: bool
) -> tuple[NodeFacts, list[Batch | Command]]:
    """Wait until the Node is known, and has what it needs.

    Args:
        config: decides what it needs.
        name: the Node's.
        inbox: where batches arrive.
        is_patient: go on waiting for a Node that the first full list does not hold.

    Returns:
        The facts of the Node (none when it did not come in time) and everything that arrived meanwhile.

    Raises:
        UserError: detectLocalMode is NodeCIDR and the Node has no podCIDR.
    """
    needs_pod_cidr = config.detect_local_mode == "NodeCIDR"
    deadline = time.monotonic() + (POD_CIDR_PATIENCE if needs_pod_cidr else NODE_PATIENCE)
    early: list[Batch | Command] = []
    known = NodeFacts()
    while True:
        events = next_events(inbox, deadline)
        early += events
        known = _last_node(name, events) or known
        is_complete = bool(known.pod_cidrs) if needs_pod_cidr else bool(known.ips)
        is_listed = any(isinstance(event, Batch) and "Node" in event.reached for event in early)
        if is_complete or not events or ENDINGS & _commands(early) or (is_listed and not is_patient):
            break
    if not known.ips:
        _LOG.warning("no Node %r with an address: going on with loopback", name)
    if needs_pod_cidr and not known.pod_cidrs and not ENDINGS & _commands(early):
        raise UserError(f"detectLocalMode is NodeCIDR, but Node {name!r} has no podCIDR")
    return known, early


def _last_node(name: str, events: Iterable[Batch | Command]) -> NodeFacts | None:
    found = None
    for event in events:
        for change in event.changes if isinstance(event, Batch) else ():
            if change.key.kind == "Node" and change.key.name == name and isinstance(change.new, Node):
                found = facts(change.new)
    return found


def make_reports(config: ProxyConfig) -> Reports:
    """Where the agent tells how it goes, and the HTTP servers read it."""
    metrics = Metrics()
    answers = {"/healthz": HEALTHZ, "/livez": LIVEZ}

    def count(path: str, status: int) -> None:
        metrics.add(answers[path], str(status))

    health = Health(2 * config.sync_period, time.monotonic, on_answer=count)
    return Reports(Progress(), health, metrics)


def make_proxiers(config: ProxyConfig, name: str, node: NodeFacts, reports: Reports, tell: Tell) -> list[Proxier]:
    """A proxier for each family that the host supports.

    Raises:
        HostError: the node's own family is not supported.
    """
    mode = mode_of(config)
    primary = Family.IPV6 if list(node.ips)[:1] == [Family.IPV6] else Family.IPV4
    proxiers = []
    for family in (primary, *(other for other in Family if other is not primary)):
        try:
            backend = mode.backend(node, family, reports.metrics, is_primary=family is primary)
        except HostError:
            if family is primary:
                raise
            _LOG.info("no %s: this host has no tables for it", family.value)
            continue
        _LOG.info("%s: %s, node address %s", family.value, mode.title, node_ip(config, node, family))
        node_ports_at = partial(node_port_addresses, config, node, family)
        proxiers.append(
            Proxier(
                family=family,
                tracker=Tracker(family, name),
                backend=backend,
                runner=Runner(config.min_sync_period, config.sync_period),
                conntrack=ConntrackReconciler(family, node_ports_at, backend.earlier_udp_frontends),
                health_checks=ServiceHealthServers(
                    _health_addresses(config, node, family),
                    reports.health.is_healthy,
                    lambda service, port, error: tell(no_health_check(service, name, port, error)),
                ),
            )
        )
    return proxiers


def node_port_addresses(config: ProxyConfig, node: NodeFacts, family: Family) -> tuple[str, ...]:
    """The host's addresses of a family on which node ports answer now."""
    addresses = tuple(address for address in local_addresses() if family.has(address))
    scope = node_port_scope(config, node, family, addresses)
    if scope.addresses is not None:
        return scope.addresses
    return tuple(address for address in addresses if scope.includes_loopback or not is_loopback(address))


def _health_addresses(config: ProxyConfig, node: NodeFacts, family: Family) -> Callable[[], Iterable[str]]:
    def addresses() -> Iterable[str]:
        return health_check_addresses(config, node, family, local_addresses() if config.has_chosen_node_ports else ())

    return addresses


def _serve(config: ProxyConfig, reports: Reports) -> None:
    progress, health, metrics = reports
    if config.healthz_bind_address:
        address, port = split_bind_address(config.healthz_bind_address)
        routes: Routes = {
            "/healthz": lambda _: health.healthz(),
            "/livez": lambda _: health.livez(),
            "/programmed": lambda query: programmed(progress, query),
        }
        serve(address, port, routes, is_hard_fail=config.bind_address_hard_fail)
    address, port = split_bind_address(config.metrics_bind_address)
    serve(address, port, status_pages(config, metrics), is_hard_fail=config.bind_address_hard_fail)


def clean(config: ProxyConfig) -> int:
    """Take everything of a node proxy's off this host (--cleanup), whatever its mode; returns the exit status."""
    both: tuple[Variant, ...] = ("legacy", "nft")
    variants = both if config.iptables_variant == "auto" else (choose_variant(config.iptables_variant),)
    steps: list[Callable[[], None]] = [partial(delete_nftables, family) for family in Family]
    steps += [partial(_clean_tables, variant, family) for variant in variants for family in Family]
    status = 0
    for step in steps:
        try:
            step()
        except HostError as error:
            _LOG.error("%s", error)
            status = 1
    return status


def _clean_tables(variant: Variant, family: Family) -> None:
    clean_up(find_tools(variant, family))
