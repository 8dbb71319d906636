"""What kproxy would write, against what kube-proxy 1.36 did write, case by case and rule by rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rule_text import rules_of

from kproxy.api.types import Node
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.node import facts
from kproxy.proxy.setup import LOOPBACK, HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources import TYPES, key_of, typed

HERE = Path(__file__).parent
HOST = HostFeatures(counters=frozenset(COUNTERS))


def recorded_steps() -> list[Any]:
    found = []
    for path in sorted((HERE / "cases").glob("*.yaml")):
        case = yaml.safe_load(path.read_text())
        for step in case["steps"]:
            for family in Family:
                name = f"{case['name']}.{step['name'].replace(' ', '-')}.v{family.value[-1]}"
                if (HERE / "rules" / f"{name}.rules").exists():
                    found.append(pytest.param(case, step, family, name, id=name))
    return found


def rendered(case: dict[str, Any], step: dict[str, Any], family: Family) -> str:
    config = config_of(case["config"])
    node_name = case["node"]["name"]
    tracker = Tracker(family, node_name)
    node = None
    for obj in step["objects"]:
        if obj["kind"] in TYPES:
            value = typed(obj)
            tracker.take([Change(key_of(obj), None, value)])
            if isinstance(value, Node) and value.metadata.name == node_name:
                node = value
    known = facts(node)
    addresses = (*case["node"]["ips"], LOOPBACK[family])
    rules = RuleSet(iptables_settings(config, known, family, HOST))
    around = circumstances(config, node_name, known, family)
    rules.take(tracker.delta(around, node_port_scope(config, known, family, addresses), is_full=True))
    return rules.saved()


def config_of(config: dict[str, Any]) -> ProxyConfig:
    cidr = config.get("clusterCIDR")
    return ProxyConfig(
        detect_local_mode=config.get("detectLocalMode") or "ClusterCIDR",
        cluster_cidr=tuple(cidr.split(",")) if cidr else (),
        masquerade_all=config["masqueradeAll"],
        iptables_masquerade_bit=config["masqueradeBit"],
        iptables_localhost_nodeports=config.get("localhostNodePorts", True),
        nodeport_addresses=tuple(config["nodePortAddresses"]),
    )


@pytest.mark.parametrize(("case", "step", "family", "name"), recorded_steps())
def test_rules_are_those_that_kube_proxy_wrote(
    case: dict[str, Any], step: dict[str, Any], family: Family, name: str
) -> None:
    wanted = rules_of((HERE / "rules" / f"{name}.rules").read_text())

    assert rules_of(rendered(case, step, family)) == wanted


def test_one_wrong_rule_is_noticed() -> None:
    case, step, family, name = recorded_steps()[0].values
    wanted = rules_of((HERE / "rules" / f"{name}.rules").read_text())

    assert rules_of(rendered(case, step, family).replace("--probability 0.5", "--probability 0.6", 1)) != wanted
    assert rules_of(rendered({**case, "config": {**case["config"], "masqueradeBit": 13}}, step, family)) != wanted


def test_every_record_is_compared() -> None:
    compared = {parameter.values[3] for parameter in recorded_steps()}

    assert compared == {path.name.removesuffix(".rules") for path in (HERE / "rules").glob("*.rules")}
