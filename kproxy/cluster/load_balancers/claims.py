"""What a Service asks of a load balancer: which kind, which addresses, for whom.

Law: pure; a Service is read here and nowhere else.

The words are the lab's own (``kproxy.dev/...``); those of MetalLB for the same things are understood too, so that
manifests written for it can be applied as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from kproxy.api.types import Object, Service, view

L2: Final = "l2"
NLB: Final = "nlb"
CLASSIC: Final = "classic"
KINDS: Final = (L2, NLB, CLASSIC)
NONE: Final = "none"
CLASS_PREFIX: Final = "kproxy.dev/"
KIND_ANNOTATION: Final = "kproxy.dev/load-balancer"
IP_MODE_ANNOTATION: Final = "kproxy.dev/load-balancer-ip-mode"
PROXY_PROTOCOL_ANNOTATION: Final = "kproxy.dev/proxy-protocol"
ADDRESSES_ANNOTATIONS: Final = (
    "kproxy.dev/load-balancer-ips",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
)
SHARING_ANNOTATIONS: Final = (
    "kproxy.dev/allow-shared-ip",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
)
PROXY_PROTOCOLS: Final = {"v1": "send-proxy", "v2": "send-proxy-v2"}
"""PROXY protocol versions, with HAProxy's words for them."""
VIP: Final = "VIP"
PROXY: Final = "Proxy"
HOST_DOMAIN: Final = "lb.kproxy.example"
"""Where classic balancers have their names; .example belongs to nobody (RFC 2606)."""

Key = tuple[str, str]
"""Namespace and name of a Service."""


@dataclass(frozen=True)
class ClaimPort:
    """One port of a balancer; node_port is 0 where none is allocated."""

    protocol: str
    port: int
    node_port: int


@dataclass(frozen=True)
class Claim:
    """What one Service asks for.

    Attributes:
        kind: one of `KINDS`.
        versions: 4 and 6, the primary family first.
        held: the addresses that its status has now.
        requested: addresses that it must have, one a family; empty means any.
        sharing_key: Services of one key may share addresses; empty means nobody.
        sharing_scope: what must be equal beside the key: where packets may go.
        health_check_port: 0 unless externalTrafficPolicy is Local.
        proxy_protocol: `v1`, `v2` or empty.
        mistakes: what in it cannot be; such a claim gets no address.
    """

    key: Key
    uid: str
    kind: str
    ports: tuple[ClaimPort, ...]
    versions: tuple[int, ...]
    held: tuple[str, ...] = ()
    requested: tuple[str, ...] = ()
    sharing_key: str = ""
    sharing_scope: str = ""
    is_local: bool = False
    health_check_port: int = 0
    source_ranges: tuple[str, ...] = ()
    is_sticky: bool = False
    ip_mode: str = VIP
    proxy_protocol: str = ""
    mistakes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """``default/web``."""
        return "/".join(self.key)

    @property
    def hostname(self) -> str:
        """The name that a classic balancer has beside its address; empty for the others."""
        return f"{self.key[1]}.{self.key[0]}.{HOST_DOMAIN}" if self.kind == CLASSIC else ""

    def ingress(self, addresses: tuple[str, ...]) -> list[Object]:
        """``status.loadBalancer.ingress`` with these addresses."""
        named: Object = {"hostname": self.hostname} if self.hostname else {}
        return [{"ip": address, **named, "ipMode": self.ip_mode} for address in addresses]


def kind_of(obj: Object, default: str) -> str:
    """Which kind serves a Service: its annotation's, else its class's, else the lab's; `NONE` for somebody else's.

    Args:
        obj: a Service.
        default: the cluster file's.
    """
    service = view(obj, Service)
    if service.spec.type != "LoadBalancer" or service.metadata.deletion_timestamp:
        return NONE
    chosen = service.metadata.annotations.get(KIND_ANNOTATION)
    if chosen is None and service.spec.load_balancer_class is not None:
        chosen = service.spec.load_balancer_class
        chosen = chosen.removeprefix(CLASS_PREFIX) if chosen.startswith(CLASS_PREFIX) else NONE
    if chosen is None:
        chosen = default
    return chosen if chosen in KINDS else NONE


def claim_of(obj: Object, default: str) -> Claim | None:
    """What a Service asks for; None when it is none of ours."""
    kind = kind_of(obj, default)
    if kind == NONE:
        return None
    service = view(obj, Service)
    spec, annotations = service.spec, service.metadata.annotations
    is_local = spec.external_traffic_policy == "Local"
    mistakes: list[str] = []
    return Claim(
        key=(service.metadata.namespace, service.metadata.name),
        uid=service.metadata.uid,
        kind=kind,
        ports=tuple(ClaimPort(port.protocol, port.port, port.node_port) for port in spec.ports),
        versions=tuple(4 if family == "IPv4" else 6 for family in spec.ip_families),
        held=tuple(entry.ip for entry in service.status.load_balancer.ingress if entry.ip),
        requested=_requested(spec.load_balancer_ip, annotations, mistakes),
        sharing_key=_first(annotations, SHARING_ANNOTATIONS),
        sharing_scope=_scope(spec.selector) if is_local else "",
        is_local=is_local,
        health_check_port=spec.health_check_node_port if is_local else 0,
        source_ranges=tuple(text.strip() for text in spec.load_balancer_source_ranges),
        is_sticky=spec.session_affinity == "ClientIP",
        ip_mode=_ip_mode(kind, annotations, mistakes),
        proxy_protocol=_proxy_protocol(kind, annotations, mistakes),
        mistakes=(*mistakes, *_port_mistakes(kind, service)),
    )


def source_ranges_of(claim: Claim, version: int) -> tuple[str, ...]:
    """Who may use the balancer, by the family's networks; empty means everybody (kube-proxy: serviceport.go)."""
    networks = [ip_network(text, strict=False) for text in claim.source_ranges]
    own = [network for network in networks if network.version == version]
    return () if any(network.prefixlen == 0 for network in own) else tuple(str(network) for network in own)


def version_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def _first(annotations: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if name in annotations), "")


def _scope(selector: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((selector or {}).items()))


def _requested(load_balancer_ip: str, annotations: Mapping[str, str], mistakes: list[str]) -> tuple[str, ...]:
    given = _first(annotations, ADDRESSES_ANNOTATIONS) or load_balancer_ip
    found: dict[int, str] = {}
    for text in filter(None, (part.strip() for part in given.split(","))):
        try:
            address = ip_address(text)
        except ValueError:
            mistakes.append(f'"{text}" is no IP address')
            continue
        if "%" in text:  # of a link, and the scope may be any text at all
            mistakes.append(f'"{text}" is an address of one link')
            continue
        if found.setdefault(address.version, str(address)) != str(address):
            mistakes.append(f"{found[address.version]} and {address} are two addresses of one family")
    return tuple(found.values())


def _ip_mode(kind: str, annotations: Mapping[str, str], mistakes: list[str]) -> str:
    """A proxying balancer wants traffic from inside the cluster too, so Proxy is its default (KEP-1860)."""
    mode = annotations.get(IP_MODE_ANNOTATION, PROXY if kind == CLASSIC else VIP)
    if mode not in (VIP, PROXY):
        mistakes.append(f'{IP_MODE_ANNOTATION} is "{mode}"; it may be VIP or Proxy')
    if kind == L2 and mode == PROXY:
        mistakes.append(
            f"{IP_MODE_ANNOTATION} cannot be Proxy with {L2}: the node that answers for the address serves it"
        )
    return mode


def _proxy_protocol(kind: str, annotations: Mapping[str, str], mistakes: list[str]) -> str:
    chosen = annotations.get(PROXY_PROTOCOL_ANNOTATION, "")
    if chosen and chosen not in PROXY_PROTOCOLS:
        mistakes.append(f'{PROXY_PROTOCOL_ANNOTATION} is "{chosen}"; it may be v1 or v2')
    if chosen and kind != CLASSIC:
        mistakes.append(f"{PROXY_PROTOCOL_ANNOTATION} needs a {CLASSIC} balancer: {kind} passes packets on as they are")
    return chosen


def _port_mistakes(kind: str, service: Service) -> tuple[str, ...]:
    if kind == L2:
        return ()
    if any(not port.node_port for port in service.spec.ports):
        return (f"{kind} sends to node ports, and allocateLoadBalancerNodePorts is false",)
    if kind == CLASSIC and (others := sorted({port.protocol for port in service.spec.ports} - {"TCP"})):
        return (f"{CLASSIC} speaks TCP alone, not {', '.join(others)}",)
    return ()
