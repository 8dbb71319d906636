"""A Service as one family's proxier reads it: one value for each of its ports.

Law: pure. Every field that kube-proxy obeys is read here and nowhere else; what is not read here has no effect.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from kproxy.api.types import Service, ServicePort, ServiceSpec
from kproxy.proxy.family import Family, canonical_address, canonical_cidr

SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
DEFAULT_AFFINITY_SECONDS = 10800


class ServiceName(NamedTuple):
    """Namespace and name of a Service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServicePortName(NamedTuple):
    """What identifies one port of one Service; the protocol belongs to it but not to its text."""

    namespace: str
    service: str
    port: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port}" if self.port else f"{self.namespace}/{self.service}"


class PortSpec(msgspec.Struct, frozen=True, gc=False):
    """One port of a Service in one family.

    Attributes:
        name: its key.
        cluster_ip: canonical address.
        port: port at the cluster IP, external IPs and load balancer IPs.
        node_port: 0 when there is none.
        external_ips: spec.externalIPs of this family.
        load_balancer_ips: ingress addresses of this family whose ipMode is VIP.
        source_ranges: canonical CIDRs that may reach the load balancer IPs; empty means everyone.
        affinity_seconds: ClientIP affinity lasts this long; 0 means no affinity.
        is_internal_local: internalTrafficPolicy is Local.
        is_external_local: externalTrafficPolicy is Local and the API calls the Service externally accessible.
        health_check_node_port: 0 when the Service has none.
    """

    name: ServicePortName
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity_seconds: int = 0
    is_internal_local: bool = False
    is_external_local: bool = False
    health_check_node_port: int = 0

    @property
    def is_externally_accessible(self) -> bool:
        """Whether anything but the cluster IP leads here (kube-proxy: serviceport.go, ExternallyAccessible)."""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)


def port_specs(service: Service, family: Family) -> dict[ServicePortName, PortSpec]:
    """The ports of a Service that this family's proxier handles; empty when it passes the Service over.

    Headless, ExternalName and not-yet-allocated Services are passed over, and those that another proxy claims by
    label (kube-proxy: servicechangetracker.go and the watch's selectors in server.go).
    """
    spec = service.spec
    cluster_ip = cluster_ip_of(spec, family)
    if not cluster_ip or spec.type == "ExternalName" or SERVICE_PROXY_NAME_LABEL in service.metadata.labels:
        return {}
    common = _common_fields(service, family)
    ports = (_port_spec(service, port, cluster_ip, common) for port in spec.ports)
    return {port.name: port for port in ports}


def cluster_ip_of(spec: ServiceSpec, family: Family) -> str:
    """The cluster IP of this family, canonical; empty when there is none (or the Service is headless)."""
    if spec.cluster_ip in ("", "None"):
        return ""
    if not spec.ip_families:
        return canonical_address(spec.cluster_ip) if family.has(spec.cluster_ip) else ""
    for index, name in enumerate(spec.ip_families):
        if name == family.value:
            addresses = spec.cluster_ips or (spec.cluster_ip,)
            return canonical_address(addresses[index]) if index < len(addresses) else ""
    return ""


class _Common(NamedTuple):
    external_ips: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    source_ranges: tuple[str, ...]
    affinity_seconds: int
    is_internal_local: bool
    is_external_local: bool


def _common_fields(service: Service, family: Family) -> _Common:
    spec = service.spec
    return _Common(
        external_ips=_of_family(spec.external_ips, family),
        load_balancer_ips=_load_balancer_ips(service, family),
        source_ranges=_source_ranges(spec.load_balancer_source_ranges, family),
        affinity_seconds=_affinity_seconds(spec),
        is_internal_local=spec.internal_traffic_policy == "Local",
        is_external_local=spec.external_traffic_policy == "Local" and _api_calls_it_external(spec),
    )


def _port_spec(service: Service, port: ServicePort, cluster_ip: str, common: _Common) -> PortSpec:
    spec = service.spec
    has_health_check = spec.type == "LoadBalancer" and common.is_external_local
    return PortSpec(
        name=ServicePortName(service.metadata.namespace, service.metadata.name, port.name, port.protocol),
        cluster_ip=cluster_ip,
        port=port.port,
        node_port=port.node_port,
        external_ips=common.external_ips,
        load_balancer_ips=common.load_balancer_ips,
        source_ranges=common.source_ranges,
        affinity_seconds=common.affinity_seconds,
        is_internal_local=common.is_internal_local,
        is_external_local=common.is_external_local,
        health_check_node_port=spec.health_check_node_port if has_health_check else 0,
    )


def _of_family(addresses: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """Canonical addresses of the family, in order, each once."""
    canonical = (canonical_address(address) for address in addresses if family.has(address))
    return tuple(dict.fromkeys(address for address in canonical if address))


def _load_balancer_ips(service: Service, family: Family) -> tuple[str, ...]:
    ingress = service.status.load_balancer.ingress
    return _of_family(tuple(entry.ip for entry in ingress if entry.ip and entry.ip_mode in (None, "VIP")), family)


def _source_ranges(ranges: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """Ranges of the family; a /0 among them means no filter at all."""
    canonical = (canonical_cidr(cidr) for cidr in ranges if family.has(cidr))
    found = tuple(dict.fromkeys(cidr for cidr in canonical if cidr))
    return () if family.everything in found else found


def _affinity_seconds(spec: ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    return DEFAULT_AFFINITY_SECONDS if seconds is None else seconds


def _api_calls_it_external(spec: ServiceSpec) -> bool:
    """The API's notion, which differs from the proxier's (kube: api/v1/service/util.go, ExternallyAccessible)."""
    if spec.type in ("LoadBalancer", "NodePort"):
        return True
    return spec.type == "ClusterIP" and bool(spec.external_ips)
