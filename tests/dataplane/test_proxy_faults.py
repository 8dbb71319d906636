"""What is left of real tables when writing them fails, what is said about it, and how it is put right again."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from iptables_world import network_namespace, rules_of, tools_within

from kproxy.api.types import EndpointSlice, ObjectMeta, Service, ServicePort, ServiceSpec, SliceEndpoint, SlicePort
from kproxy.proxy.agent import Agent, Proxier, Reports
from kproxy.proxy.backends.iptables.host import Tools, find_tools, run_tool
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracked, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.health import Health
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.progress import Progress
from kproxy.proxy.runner import Runner
from kproxy.proxy.setup import HostFeatures, iptables_settings

pytestmark = pytest.mark.root

FOREIGN = "-A INPUT -p icmp -j ACCEPT"
Rules = dict[tuple[str, str], list[str]]


class Idle:
    """Conntrack and health check ports, which are not looked at here."""

    def reconcile(self, ports: Any) -> int:
        return 0

    def sync(self, wanted: Any) -> None:
        return None


class Node:
    """A proxier on real tables, with a clock that only the test moves."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.now = 1000.0
        self.config = ProxyConfig(iptables_min_sync_period=0.0, iptables_sync_period=30.0)
        settings = iptables_settings(self.config, NodeFacts(), Family.IPV4, HostFeatures())
        proxier = Proxier(
            family=Family.IPV4,
            tracker=Tracker(Family.IPV4, "node1"),
            backend=IptablesBackend(tools, settings),
            runner=Runner(0.0, 30.0),
            conntrack=Idle(),
            health_checks=Idle(),
        )
        self.progress = Progress()
        reports = Reports(self.progress, Health(60.0, lambda: self.now), Metrics())
        self.agent = Agent(self.config, "node1", [proxier], reports, lambda: ())
        self.known: dict[ObjectKey, Tracked] = {}

    def tell(self, *values: Tracked, version: int) -> None:
        changes = []
        for value in values:
            key = ObjectKey(type(value).__name__, value.metadata.namespace, value.metadata.name)
            changes.append(Change(key, self.known.get(key), value))
            self.known[key] = value
        self.agent.handle(Batch(tuple(changes), {"Service": version, "EndpointSlice": version}), self.now)
        self.agent.work(lambda: self.now)

    def sleep(self, seconds: float) -> None:
        """Let time pass, waking the agent whenever it wants to be woken."""
        end = self.now + seconds
        while (due := self.agent.next_due()) <= end:
            self.now = max(self.now, due)
            self.agent.work(lambda: self.now)
        self.now = end

    def rules(self) -> Rules:
        return rules_of(run_tool((self.tools.save,)))

    @property
    def programmed(self) -> int:
        return int(self.progress.as_json()["resourceVersion"])


def service(name: str, number: int) -> Service:
    spec = ServiceSpec(cluster_ip=f"10.96.0.{number}", ports=(ServicePort(port=80, name="http"),))
    return Service(metadata=ObjectMeta(name=name, namespace="default"), spec=spec)


def endpoints(name: str, *addresses: str) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=f"{name}-1", namespace="default", labels={"kubernetes.io/service-name": name}),
        endpoints=tuple(SliceEndpoint(addresses=(address,)) for address in addresses),
        ports=(SlicePort(name="http", port=8080),),
    )


BEFORE = (service("web", 50), endpoints("web", "10.244.0.2"), service("idle", 60))
AFTER = (endpoints("web", "10.244.0.2", "10.244.0.3"), endpoints("idle", "10.244.0.4"))
"""A change to both tables: chains appear in nat, and a refusal goes from filter."""


def tools_of(variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tools]:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(folder / "lock"))
    with network_namespace() as pid:
        real = msgspec.structs.replace(find_tools(variant, Family.IPV4), lock_wait=1)  # type: ignore[arg-type]
        tools = tools_within(real, pid, folder)
        run_tool((tools.restore, "--noflush"), f"*filter\n{FOREIGN}\nCOMMIT\n")
        yield tools


@pytest.fixture(params=["legacy", "nft"])
def node(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for tools in tools_of(request.param, tmp_path, monkeypatch):
        yield Node(tools)


@pytest.fixture
def legacy_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for tools in tools_of("legacy", tmp_path, monkeypatch):
        yield Node(tools)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def generations(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Rules, Rules]:
    """The rules before the change, which the node then holds, and what they will be after it."""
    (tmp_path / "twin").mkdir()
    for tools in tools_of(node.tools.variant, tmp_path / "twin", monkeypatch):
        twin = Node(tools)
        twin.tell(*BEFORE, version=1)
        twin.tell(*AFTER, version=2)
        after = twin.rules()
    node.tell(*BEFORE, version=1)
    return node.rules(), after


def table_of(rules: Rules, table: str) -> Rules:
    return {key: value for key, value in rules.items() if key[0] == table}


def check_each_table_is_whole(node: Node, before: Rules, after: Rules) -> None:
    found = node.rules()
    for table in ("filter", "nat"):
        assert table_of(found, table) in (table_of(before, table), table_of(after, table)), table
    assert FOREIGN in run_tool((node.tools.save,)).splitlines()


def check_recovery(node: Node, after: Rules, told: pytest.LogCaptureFixture) -> None:
    """The next try is a full one, it succeeds, and all that was ever said is one error and its end."""
    full = node.progress.as_json()["fullSyncs"]
    node.sleep(30.0)
    assert node.rules() == after
    assert node.programmed == 2
    assert node.progress.as_json()["fullSyncs"] == full + 1
    words = [record.getMessage() for record in told.records if record.levelno >= logging.INFO]
    assert len(words) == 2, words
    assert words[1] == "IPv4: syncs work again"


def test_bad_rule(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture) -> None:
    before, after = generations(node, tmp_path, monkeypatch)
    bad = "-A KUBE-SVC-LOOMI6RMOWXPPC2V -m nonsense --bogus 1 -j KUBE-MARK-MASQ"
    with monkeypatch.context() as patch:
        for name in ("restore_all", "restore_changed"):
            original = getattr(RuleSet, name)

            def restore(self: RuleSet, *arguments: Any, original: Any = original, **keywords: Any) -> list[str]:
                text = "".join(original(self, *arguments, **keywords))
                head, line, rest = text.rpartition("-A KUBE-SVC-")
                return [f"{head}{bad}\n{line}{rest}"]

            patch.setattr(RuleSet, name, restore)
        node.tell(*AFTER, version=2)
        node.sleep(65.0)
        check_each_table_is_whole(node, before, after)
        assert table_of(node.rules(), "nat") == table_of(before, "nat")
        assert node.programmed == 1
        assert bad in node.progress.as_json()["lastError"]

    check_recovery(node, after, told)
    assert bad in told.records[0].getMessage()


def test_rule_that_only_the_kernel_refuses(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    before, after = generations(node, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        for name in ("restore_all", "restore_changed"):
            original = getattr(RuleSet, name)

            def restore(self: RuleSet, *arguments: Any, original: Any = original, **keywords: Any) -> list[str]:
                text = "".join(original(self, *arguments, **keywords))
                return [text.replace("-j DNAT --to-destination 10.244.0.3", "-m tcp -j REJECT\n# 10.244.0.3")]

            patch.setattr(RuleSet, name, restore)  # table nat has no REJECT
        node.tell(*AFTER, version=2)
        check_each_table_is_whole(node, before, after)
        assert table_of(node.rules(), "nat") == table_of(before, "nat")

    check_recovery(node, after, told)
    assert "line " in told.records[0].getMessage()


def test_lock_that_somebody_holds(
    legacy_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    node = legacy_node
    before, after = generations(node, tmp_path, monkeypatch)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.tell(*AFTER, version=2)
        node.sleep(35.0)
        assert node.rules() == before
        assert "holding the xtables lock" in node.progress.as_json()["lastError"]

    check_recovery(node, after, told)


def test_tool_that_is_missing(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    before, after = generations(node, tmp_path, monkeypatch)
    restore = Path(node.tools.restore)
    away = restore.rename(restore.with_suffix(".away"))
    node.tell(*AFTER, version=2)
    node.sleep(65.0)
    assert node.rules() == before
    assert "could not be run: No such file or directory" in node.progress.as_json()["lastError"]

    away.rename(restore)
    check_recovery(node, after, told)


KILLED = """#!/bin/sh
# the real tool gets everything up to the middle of table nat, and is then killed; and so are we
cat > {folder}/input
mkfifo {folder}/fifo
{real} "$@" < {folder}/fifo &
exec 3> {folder}/fifo
sed '/^\\*nat/,$d' {folder}/input >&3
sed -n '/^\\*nat/,$p' {folder}/input | head -n 5 >&3
sleep 0.3
kill -9 $!
wait $! 2> /dev/null
rm {folder}/fifo
kill -9 $$
"""


def test_tool_that_is_killed_half_way(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    before, after = generations(node, tmp_path, monkeypatch)
    restore = Path(node.tools.restore)
    away = restore.rename(restore.with_suffix(".away"))
    restore.write_text(KILLED.format(folder=tmp_path, real=away))
    restore.chmod(0o755)

    node.tell(*AFTER, version=2)

    check_each_table_is_whole(node, before, after)
    assert table_of(node.rules(), "nat") == table_of(before, "nat")
    assert table_of(node.rules(), "filter") == table_of(after, "filter")
    assert "died of signal 9" in node.progress.as_json()["lastError"]
    away.rename(restore)
    check_recovery(node, after, told)
