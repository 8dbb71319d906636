"""The packet-flow cases as values: what is there, what is sent, and what has to become of it in each proxy mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from kproxy.api.types import Object

HERE = Path(__file__).parent
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
IPTABLES, NFTABLES = "iptables", "nftables"


@dataclass(frozen=True)
class Expectation:
    """What has to become of a flow.

    Attributes:
        verdict: reject, drop, passthrough, accept; empty: one of `endpoints` answers.
        endpoints: `ADDRESS:PORT`; exactly these are seen.
        masq: whether the endpoint sees the node instead of the client; may differ between endpoints.
        affinity: sticky, kept, expired; empty: none.
        uniform: how many connections have to spread evenly; 0: not asked.
    """

    verdict: str = ""
    endpoints: frozenset[str] = frozenset()
    masq: bool | Mapping[str, bool] = False
    affinity: str = ""
    uniform: int = 0

    def is_masqueraded(self, endpoint: str) -> bool:
        return self.masq if isinstance(self.masq, bool) else self.masq[endpoint]


@dataclass(frozen=True)
class Flow:
    """New connections from a client to an address.

    Attributes:
        origin: pod, host, localhost or external.
        source_port: all packets leave from it; 0: any.
        hold: the name under which a connection is kept open.
        held: the name of a connection that is to be used again.
        client: the flow whose clients' choices are to compare with; empty: the flow of the same name.
    """

    name: str
    origin: str
    sources: tuple[str, ...]
    protocol: str
    to: str
    address: str
    port: int
    expect: Expectation
    requires: frozenset[str] = frozenset()
    source_port: int = 0
    hold: str = ""
    held: str = ""
    client: str = ""


@dataclass(frozen=True)
class Step:
    """The objects of one moment, what happens before it, and the flows to send once the proxy has settled."""

    name: str
    objects: tuple[Object, ...]
    flows: tuple[Flow, ...]
    wait_seconds: float = 0
    restarts_proxy: bool = False
    keeps_rules: bool = False


@dataclass(frozen=True)
class Case:
    """A node, a configuration of its proxy, and steps."""

    name: str
    node: str
    node_addresses: tuple[str, ...]
    interfaces: Mapping[str, tuple[str, ...]]
    config: Mapping[str, Any]
    steps: tuple[Step, ...]
    mode: str = IPTABLES

    @property
    def flows(self) -> tuple[Flow, ...]:
        return tuple(flow for step in self.steps for flow in step.flows)

    @property
    def local_addresses(self) -> frozenset[str]:
        """What a packet can be sent to without leaving the node."""
        return frozenset((*self.node_addresses, *LOOPBACK.values()))

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def only(self, *protocols: str, name: str = "") -> Case:
        """This case with the flows of some protocols alone."""
        steps = (
            replace(step, flows=tuple(flow for flow in step.flows if flow.protocol in protocols)) for step in self.steps
        )
        return replace(self, name=name or self.name, steps=tuple(steps))

    def recorded_rules(self, step: Step, version: int) -> str:
        """What kube-proxy had written for a step; empty when nobody has recorded it."""
        path = HERE / "rules" / f"{self.name}.{step.name.replace(' ', '-')}.v{version}.rules"
        return path.read_text() if path.exists() else ""


def version_of(address: str) -> int:
    return ip_address(address).version


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if version_of(address) == 6 else f"{address}:{port}"


@cache
def cases(mode: str = IPTABLES) -> tuple[Case, ...]:
    """All cases; flows that need SCTP are cases of their own, since not every kernel has it."""
    return tuple(case for path in sorted((HERE / "cases").glob("*.yaml")) for case in _read(path, mode))


def case(name: str, mode: str = IPTABLES) -> Case:
    return next(found for found in cases(mode) if found.name == name)


def _read(path: Path, mode: str) -> Iterator[Case]:
    data = yaml.load(path.read_bytes(), yaml.CSafeLoader) | {"mode": mode}
    whole = Case(
        name=data["name"],
        node=data["node"]["name"],
        node_addresses=tuple(data["node"]["ips"]),
        interfaces={name: tuple(addresses) for name, addresses in data["node"]["interfaces"].items()},
        config=data["config"],
        steps=tuple(_step(step, data) for step in data["steps"]),
        mode=mode,
    )
    yield whole.only("tcp", "udp")
    sctp = whole.only("sctp", name=f"{whole.name}-sctp")
    if sctp.flows:
        yield sctp


def _step(data: Mapping[str, Any], case: Mapping[str, Any]) -> Step:
    return Step(
        name=data["name"],
        objects=(*data["objects"], *_service_cidrs(case["config"])),
        flows=tuple(_flow(flow, case) for flow in data["flows"] if "skip" not in flow),
        wait_seconds=data.get("waitSeconds", 0),
        restarts_proxy=data.get("restartProxy", False),
        keeps_rules=data.get("keepRules", False),
    )


def _flow(data: Mapping[str, Any], case: Mapping[str, Any]) -> Flow:
    return Flow(
        name=data["name"],
        origin=data["from"],
        sources=tuple(data.get("sourceIPs") or [data["sourceIP"]]),
        protocol=data["protocol"],
        to=data["to"],
        address=data["destIP"],
        port=data["destPort"],
        expect=_expectation(data, case),
        requires=frozenset(data.get("requires", ())),
        source_port=data.get("sourcePort", 0),
        hold=data.get("hold", ""),
        held=data.get("held", ""),
        client=data.get("client", ""),
    )


def _service_cidrs(config: Mapping[str, Any]) -> Iterator[Object]:
    """What an API server makes of its range of cluster IPs."""
    if cidrs := config.get("serviceCIDR"):
        head = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}}
        yield {**head, "spec": {"cidrs": cidrs.split(",")}}


def _expectation(data: Mapping[str, Any], case: Mapping[str, Any]) -> Expectation:
    """What is expected in the case's mode, also of flows that are only known from the other one.

    nftables drops what is sent to unallocated addresses of the service range, and iptables lets it be. Node ports
    answer on the loopback address, and where no address is named on all, in mode iptables alone; so are ports accepted
    that a host firewall would drop.
    """
    mode, known = case["mode"], data.get("modes", case["modes"])
    expect = data["expectByMode"][mode] if "expectByMode" in data else data["expect"]
    if mode not in known and "expectByMode" not in data:
        expect = _as_in_the_other(mode, expect, data, case)
    return Expectation(
        verdict=expect.get("verdict", ""),
        endpoints=frozenset(expect.get("endpoints", ())),
        masq=expect.get("masq", False),
        affinity=expect.get("affinity", ""),
        uniform=expect.get("uniform", 0),
    )


def _as_in_the_other(
    mode: str, expect: Mapping[str, Any], data: Mapping[str, Any], case: Mapping[str, Any]
) -> Mapping[str, Any]:
    verdict = expect.get("verdict", "")
    if mode == IPTABLES:
        return {"verdict": "passthrough"} if data["to"] == "none" and verdict == "drop" else expect
    if verdict == "accept":
        return {"verdict": "drop"}
    if data["to"] in ("nodeport", "localhost-nodeport") and not _answers_at(data["destIP"], case):
        return {"verdict": "passthrough"}
    return expect


def _answers_at(address: str, case: Mapping[str, Any]) -> bool:
    """Whether node ports answer at an address in mode nftables."""
    if ip_address(address).is_loopback:
        return False
    cidrs = case["config"]["nodePortAddresses"]
    if not cidrs:
        return address == next(one for one in case["node"]["ips"] if version_of(one) == version_of(address))
    same = [ip_network(cidr) for cidr in cidrs if ip_network(cidr).version == version_of(address)]
    return not same or any(ip_address(address) in network for network in same)
