"""What the second writer refuses before it touches anything."""

from __future__ import annotations

import pytest

from kproxy.api.types import ObjectMeta, Service, ServicePort, ServiceSpec
from kproxy.errors import HostError, UserError
from kproxy.proxy.backends.iptables.host import Tools
from kproxy.proxy.backends.iptables.python_iptables import MAX_RULES, PythonIptablesBackend, backend_class
from kproxy.proxy.backends.iptables.python_iptables_child import Option, lock, options
from kproxy.proxy.backends.iptables.rules import Settings
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.changes import Change, ObjectKey, Tracker
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.flags import parse_arguments
from kproxy.proxy.plan import Circumstances, NodePortScope

NOWHERE = Tools("legacy", "/nowhere/iptables-legacy-save", "/nowhere/iptables-legacy-restore", (1, 8, 9))


def test_more_rules_than_it_takes_are_refused_with_the_way_out() -> None:
    ports = tuple(ServicePort(name=f"p{number}", port=number, protocol="TCP") for number in range(1, MAX_RULES + 1))
    spec = ServiceSpec(cluster_ip="10.96.0.5", ports=ports)
    service = Service(metadata=ObjectMeta(name="web", namespace="default"), spec=spec)
    tracker = Tracker(Family.IPV4, "node")
    tracker.take([Change(ObjectKey("Service", "default", "web"), None, service)])
    delta = tracker.delta(Circumstances(NodeIdentity("node")), NodePortScope())
    backend = PythonIptablesBackend(NOWHERE, Settings(Family.IPV4))

    with pytest.raises(HostError, match=r"2,0\d\d rules are more than the 2,000") as raised:
        backend.apply(delta)

    assert "use --iptables-writer=iptables-restore" in str(raised.value)


def test_writer_is_chosen_by_flag_and_wants_the_legacy_variant() -> None:
    assert parse_arguments(["--iptables-writer=python-iptables"]).iptables_writer == "python-iptables"
    assert backend_class("python-iptables", "legacy") is PythonIptablesBackend
    assert backend_class("iptables-restore", "nft") is IptablesBackend
    with pytest.raises(UserError, match="writes legacy tables"):
        backend_class("python-iptables", "nft")
    with pytest.raises(UserError, match=r'IPTables.Writer: Invalid value: "iptc": must be one of iptables-restore, '):
        parse_arguments(["--iptables-writer=iptc"])


def test_options_of_a_rule() -> None:
    words = [
        "!",
        "-s",
        "10.0.0.0/8",
        "-m",
        "mark",
        "!",
        "--mark",
        "0x4000/0x4000",
        "-m",
        "recent",
        "--rcheck",
        "--name",
        "KUBE-SEP-X",
        "-j",
        "RETURN",
    ]

    assert list(options(words)) == [
        Option("-s", ("10.0.0.0/8",), True),
        Option("-m", ("mark",), False),
        Option("--mark", ("0x4000/0x4000",), True),
        Option("-m", ("recent",), False),
        Option("--rcheck", (), False),
        Option("--name", ("KUBE-SEP-X",), False),
        Option("-j", ("RETURN",), False),
    ]


def test_lock_that_somebody_else_has_is_waited_for_so_long_and_no_longer(tmp_path: pytest.TempPathFactory) -> None:
    path = str(tmp_path) + "/xtables.lock"

    assert lock(path, 0.0)
    assert not lock(path, 0.05)
