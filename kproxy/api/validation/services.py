"""Services. Kubernetes: pkg/apis/core/validation/validation.go, ValidateService and ValidateServiceUpdate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kproxy.api import formats
from kproxy.api.defaults import is_externally_accessible
from kproxy.api.field_errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from kproxy.api.types import Object
from kproxy.api.validation.metadata import check_labels, said

TYPES: Final = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
POLICIES: Final = ("Cluster", "Local")
FAMILIES: Final = ("IPv4", "IPv6")
FAMILY_POLICIES: Final = ("PreferDualStack", "RequireDualStack", "SingleStack")
AFFINITIES: Final = ("ClientIP", "None")
DISTRIBUTIONS: Final = ("PreferClose", "PreferSameZone", "PreferSameNode")
MAX_AFFINITY_SECONDS: Final = 86400

_TOPOLOGY_MODE: Final = "service.kubernetes.io/topology-mode"
_TOPOLOGY_HINTS: Final = "service.kubernetes.io/topology-aware-hints"
_SOURCE_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"
_ONLY_LOAD_BALANCER: Final = "may only be used when `type` is 'LoadBalancer'"
_NOT_EXTERNAL_NAME: Final = "may not be set for ExternalName services"
_ONCE: Final = "may not change once set"


def check(obj: Object) -> Iterator[FieldError]:
    """Errors in a Service's annotations, spec and status, in Kubernetes' order."""
    spec = obj.get("spec") or {}
    annotations = (obj.get("metadata") or {}).get("annotations") or {}
    yield from _check_topology(annotations)
    yield from _check_what_type_demands(spec)
    yield from _check_each_port(spec)
    yield from check_labels(spec.get("selector") or {}, "spec.selector")
    yield from _check_affinity(spec)
    yield from check_cluster_ips(spec)
    for index, address in enumerate(spec.get("externalIPs") or []):
        complaints = formats.ip_address(address) or formats.ordinary_ip(address)
        yield from said(f"spec.externalIPs[{index}]", address, complaints)
    yield from _check_type(spec)
    yield from _check_ports_together(spec)
    yield from _check_source_ranges(spec, annotations)
    yield from _check_load_balancer(spec)
    yield from _check_policies(spec)
    yield from _check_status(obj)


def check_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """Errors of what may not change while a Service lives."""
    spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    if "ExternalName" not in (spec.get("type"), old_spec.get("type")):
        headless = _is_headless(spec), _is_headless(old_spec)
        if not all(headless):
            yield from _check_kept_addresses(spec, old_spec)
        if not any(headless):
            yield from _check_kept_families(spec, old_spec)
    if spec.get("type") == old_spec.get("type") == "LoadBalancer":
        load_balancer_class = spec.get("loadBalancerClass")
        if load_balancer_class != old_spec.get("loadBalancerClass"):
            yield invalid("spec.loadBalancerClass", load_balancer_class, _ONCE)
    if _needs_health_check(spec) and _needs_health_check(old_spec):
        old_port = old_spec.get("healthCheckNodePort") or 0
        if old_port and (spec.get("healthCheckNodePort") or 0) != old_port:
            yield forbidden("spec.healthCheckNodePort", "field is immutable")


def _check_kept_addresses(spec: Object, old_spec: Object) -> Iterator[FieldError]:
    """The primary address stays; the second one may come, and go with the policy SingleStack."""
    new, old, path = spec.get("clusterIPs") or [], old_spec.get("clusterIPs") or [], "spec.clusterIPs"
    if len(new) == len(old):
        for index, value in enumerate(old):
            if new[index] != value:
                yield invalid(f"{path}[{index}]", new, _ONCE)
        return
    if not new:
        yield invalid(f"{path}[0]", new, "primary clusterIP can not be unset")
    elif old and new[0] != old[0]:
        yield invalid(f"{path}[0]", new, _ONCE)
    yield from _check_release(spec, len(new), len(old), "clusterIP")


def _check_kept_families(spec: Object, old_spec: Object) -> Iterator[FieldError]:
    new, old, path = spec.get("ipFamilies") or [], old_spec.get("ipFamilies") or [], "spec.ipFamilies[0]"
    if len(new) == len(old):
        for before, after in zip(old, new, strict=True):
            if before != after:
                yield invalid(path, new, _ONCE)
        return
    if len(new) < len(old) and not spec.get("clusterIPs"):
        yield invalid(path, new, "primary ipFamily can not be unset")
    if new and old and new[0] != old[0]:
        # Kubernetes shows the addresses here, not the families.
        yield invalid(path, spec.get("clusterIPs") or [], _ONCE)
    yield from _check_release(spec, len(new), len(old), "ipFamily")


def _check_release(spec: Object, count: int, count_before: int, what: str) -> Iterator[FieldError]:
    policy = spec.get("ipFamilyPolicy")
    if count == 1 < count_before and policy != "SingleStack":
        yield invalid(
            "spec.ipFamilyPolicy", policy, f"must be set to 'SingleStack' when releasing the secondary {what}"
        )


def _is_headless(spec: Object) -> bool:
    return spec.get("clusterIP") == "None" or list(spec.get("clusterIPs") or []) == ["None"]


def _needs_health_check(spec: Object) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _check_topology(annotations: dict[str, str]) -> Iterator[FieldError]:
    mode, hints = annotations.get(_TOPOLOGY_MODE), annotations.get(_TOPOLOGY_HINTS)
    if mode is not None and hints is not None and mode != hints:
        reason = f"must match annotations[{_TOPOLOGY_HINTS}] when both are specified"
        yield invalid(f"metadata.annotations[{_TOPOLOGY_MODE}]", mode, reason)


def _check_what_type_demands(spec: Object) -> Iterator[FieldError]:
    service_type = spec.get("type") or ""
    if not spec.get("ports") and not _is_headless(spec) and service_type != "ExternalName":
        yield required("spec.ports")
    if service_type in ("LoadBalancer", "NodePort") and _is_headless(spec):
        yield invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {service_type} services")
    if service_type == "ExternalName":
        if spec.get("clusterIPs") or spec.get("clusterIP"):
            yield forbidden("spec.clusterIPs", _NOT_EXTERNAL_NAME)
        for key in ("ipFamilies", "ipFamilyPolicy"):
            if spec.get(key):
                yield forbidden(f"spec.{key}", _NOT_EXTERNAL_NAME)
        target = (spec.get("externalName") or "").removesuffix(".")
        if target:
            yield from said("spec.externalName", target, formats.dns_subdomain(target))
        else:
            yield required("spec.externalName")


def _check_type(spec: Object) -> Iterator[FieldError]:
    service_type = spec.get("type") or ""
    if not service_type:
        yield required("spec.type")
    elif service_type not in TYPES:
        yield not_supported("spec.type", service_type, TYPES)


def _check_each_port(spec: Object) -> Iterator[FieldError]:
    ports = spec.get("ports") or []
    names: set[str] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        yield from check_port_name(port.get("name") or "", path, names, is_required=len(ports) > 1)
        yield from _check_port(port, path)


def _check_ports_together(spec: Object) -> Iterator[FieldError]:
    numbered = [(f"spec.ports[{index}]", port) for index, port in enumerate(spec.get("ports") or [])]
    if spec.get("type") == "ClusterIP":
        for path, port in numbered:
            if port.get("nodePort"):
                yield forbidden(f"{path}.nodePort", "may not be used when `type` is 'ClusterIP'")
    node_ports: set[tuple[str, int]] = set()
    for path, port in numbered:
        key = port.get("protocol") or "", port.get("nodePort") or 0
        if key[1] and key in node_ports:
            yield duplicate(f"{path}.nodePort", key[1])
        node_ports.add(key)
    frontends: set[tuple[str, int]] = set()
    for path, port in numbered:
        key = port.get("protocol") or "", port.get("port") or 0
        if key in frontends:
            yield duplicate(path, _as_go_prints_it(*key))
        frontends.add(key)


def _as_go_prints_it(protocol: str, port: int) -> Object:
    """The internal ServicePort, whose Go field names show in Kubernetes' message."""
    return {"Name": "", "Protocol": protocol, "AppProtocol": None, "Port": port, "TargetPort": 0, "NodePort": 0}


def _check_port(port: Object, path: str) -> Iterator[FieldError]:
    number = port.get("port") or 0
    yield from said(f"{path}.port", number, formats.port_number(number))
    yield from check_protocol(port.get("protocol") or "", path)
    target = port.get("targetPort")
    if isinstance(target, str):
        yield from said(f"{path}.targetPort", target, formats.port_name(target))
    elif target is not None:
        yield from said(f"{path}.targetPort", target, formats.port_number(target))
    if (app_protocol := port.get("appProtocol")) is not None:
        yield from said(f"{path}.appProtocol", app_protocol, formats.qualified_name(app_protocol))


def check_port_name(name: str, path: str, names: set[str], *, is_required: bool) -> Iterator[FieldError]:
    """Errors in the name of a port of a Service or of Endpoints.

    Args:
        name: may be empty when it is the only port.
        path: the port's.
        names: those seen before; the name is added.
        is_required: whether there are several ports.
    """
    if not name:
        if is_required:
            yield required(f"{path}.name")
        return
    yield from said(f"{path}.name", name, formats.dns_label(name))
    if name in names:
        yield duplicate(f"{path}.name", name)
    names.add(name)


def check_protocol(protocol: str, path: str) -> Iterator[FieldError]:
    """Errors in the protocol of the port at ``path``."""
    if not protocol:
        yield required(f"{path}.protocol")
    elif protocol not in PROTOCOLS:
        yield not_supported(f"{path}.protocol", protocol, PROTOCOLS)


def _check_affinity(spec: Object) -> Iterator[FieldError]:
    affinity, config = spec.get("sessionAffinity") or "", spec.get("sessionAffinityConfig")
    if not affinity:
        yield required("spec.sessionAffinity")
    elif affinity not in AFFINITIES:
        yield not_supported("spec.sessionAffinity", affinity, AFFINITIES)
    path = "spec.sessionAffinityConfig"
    if affinity == "None" and config is not None:
        yield forbidden(path, "must not be set when session affinity is None")
    if affinity == "ClientIP":
        seconds = ((config or {}).get("clientIP") or {}).get("timeoutSeconds")
        if seconds is None:
            yield required(f"{path}.clientIP.timeoutSeconds", "when session affinity type is ClientIP")
        elif not 0 < seconds <= MAX_AFFINITY_SECONDS:
            reason = f"must be greater than 0 and less than {MAX_AFFINITY_SECONDS}"
            yield invalid(f"{path}.clientIP.timeoutSeconds", seconds, reason)


def check_cluster_ips(spec: Object) -> Iterator[FieldError]:
    """Errors in a spec's clusterIPs, ipFamilies and ipFamilyPolicy; asked before anything is allocated, too."""
    if spec.get("type") == "ExternalName":
        return
    path, cluster_ips, first = "spec.clusterIPs", spec.get("clusterIPs") or [], spec.get("clusterIP") or ""
    if first and not cluster_ips:
        yield required(path)
    elif first and cluster_ips[0] != first:
        yield invalid(path, cluster_ips, "first value must match `clusterIP`")
    elif cluster_ips and not first:
        yield invalid(path, cluster_ips, "must be empty when `clusterIP` is not specified")
    yield from _check_families(spec)
    complaints = list(_check_each_cluster_ip(cluster_ips or ([first] if first else [])))
    yield from complaints
    if len(cluster_ips) > 2:
        yield invalid(path, cluster_ips, "may only hold up to 2 values")
    if not complaints and not _is_headless(spec):
        yield from _check_one_of_each_family(cluster_ips, spec.get("ipFamilies") or [])


def _check_each_cluster_ip(cluster_ips: list[str]) -> Iterator[FieldError]:
    for index, address in enumerate(cluster_ips):
        if index == 0 and address == "None":
            if len(cluster_ips) > 1:
                yield invalid("spec.clusterIPs", cluster_ips, "'None' must be the first and only value")
            continue
        yield from said(f"spec.clusterIPs[{index}]", address, formats.ip_address(address))


def _check_one_of_each_family(cluster_ips: list[str], families: list[str]) -> Iterator[FieldError]:
    found = [f"IPv{address.version}" for text in cluster_ips if (address := formats.parse_ip(text)) is not None]
    if len(set(found)) < len(found):
        yield invalid("spec.clusterIPs", cluster_ips, "may specify no more than one IP for each IP family")
        return
    for index, (family, wanted) in enumerate(zip(found, families, strict=False)):
        if family != wanted and wanted in FAMILIES:
            reason = f"expected an {wanted} value as indicated by `ipFamilies[{index}]`"
            yield invalid(f"spec.clusterIPs[{index}]", cluster_ips[index], reason)


def _check_families(spec: Object) -> Iterator[FieldError]:
    seen: set[str] = set()
    for index, family in enumerate(spec.get("ipFamilies") or []):
        if family not in FAMILIES:
            yield not_supported(f"spec.ipFamilies[{index}]", family, FAMILIES)
        if family in seen:
            yield duplicate(f"spec.ipFamilies[{index}]", family)
        seen.add(family)
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in FAMILY_POLICIES:
        yield not_supported("spec.ipFamilyPolicy", policy, FAMILY_POLICIES)


def _check_source_ranges(spec: Object, annotations: dict[str, str]) -> Iterator[FieldError]:
    ranges = spec.get("loadBalancerSourceRanges") or []
    # Kubernetes' own spelling of the path, capital L.
    path, is_field = "spec.LoadBalancerSourceRanges", bool(ranges)
    if not ranges and _SOURCE_RANGES in annotations:
        path = f"metadata.annotations[{_SOURCE_RANGES}]"
        text = annotations[_SOURCE_RANGES].strip()
        ranges = text.split(",") if text else []
    elif not ranges:
        return
    if spec.get("type") != "LoadBalancer":
        yield forbidden(path, _ONLY_LOAD_BALANCER)
    for index, text in enumerate(ranges):
        yield from said(f"{path}[{index}]" if is_field else path, text.strip(), formats.cidr(text.strip()))


def _check_load_balancer(spec: Object) -> Iterator[FieldError]:
    is_load_balancer = spec.get("type") == "LoadBalancer"
    allocates = spec.get("allocateLoadBalancerNodePorts")
    if allocates is not None and not is_load_balancer:
        yield forbidden("spec.allocateLoadBalancerNodePorts", _ONLY_LOAD_BALANCER)
    if allocates is None and is_load_balancer:
        yield required("allocateLoadBalancerNodePorts")
    load_balancer_class = spec.get("loadBalancerClass")
    if load_balancer_class is None:
        return
    if is_load_balancer:
        yield from said("spec.loadBalancerClass", load_balancer_class, formats.qualified_name(load_balancer_class))
    else:
        yield forbidden("spec.loadBalancerClass", _ONLY_LOAD_BALANCER)


def _check_policies(spec: Object) -> Iterator[FieldError]:
    yield from _check_external_policy(spec.get("externalTrafficPolicy") or "", spec)
    yield from _check_health_check(spec)
    internal = spec.get("internalTrafficPolicy")
    if internal is None and spec.get("type") in ("NodePort", "LoadBalancer", "ClusterIP"):
        yield required("spec.internalTrafficPolicy")
    elif internal is not None and internal not in POLICIES:
        yield not_supported("spec.internalTrafficPolicy", internal, POLICIES)
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        yield not_supported("spec.trafficDistribution", distribution, DISTRIBUTIONS)


def _check_external_policy(policy: str, spec: Object) -> Iterator[FieldError]:
    path = "spec.externalTrafficPolicy"
    if not is_externally_accessible(spec):
        if policy:
            yield invalid(path, policy, "may only be set for externally-accessible services")
    elif not policy:
        yield required(path)
    elif policy not in POLICIES:
        yield not_supported(path, policy, POLICIES)


def _check_health_check(spec: Object) -> Iterator[FieldError]:
    path, port = "spec.healthCheckNodePort", spec.get("healthCheckNodePort") or 0
    if not _needs_health_check(spec):
        if port:
            reason = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
            yield invalid(path, port, reason)
    elif not port:
        yield required(path)
    else:
        yield from said(path, port, formats.port_number(port))


def _check_status(obj: Object) -> Iterator[FieldError]:
    path = "status.loadBalancer.ingress"
    ingresses = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    if ingresses and (obj.get("spec") or {}).get("type") != "LoadBalancer":
        yield forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'")
        return
    for index, ingress in enumerate(ingresses):
        for check_part in (_check_ingress_ip, _check_ingress_hostname):
            yield from check_part(ingress, f"{path}[{index}]")


def _check_ingress_ip(ingress: Object, path: str) -> Iterator[FieldError]:
    address, mode = ingress.get("ip") or "", ingress.get("ipMode")
    if address:
        yield from said(f"{path}.ip", address, formats.ip_address(address))
    if mode is None:
        if address:
            yield required(f"{path}.ipMode", "must be specified when `ip` is set")
    elif not address:
        yield forbidden(f"{path}.ipMode", "may not be specified when `ip` is not set")
    elif mode not in ("Proxy", "VIP"):
        yield not_supported(f"{path}.ipMode", mode, ("Proxy", "VIP"))


def _check_ingress_hostname(ingress: Object, path: str) -> Iterator[FieldError]:
    hostname = ingress.get("hostname") or ""
    if not hostname:
        return
    yield from said(f"{path}.hostname", hostname, formats.dns_subdomain(hostname))
    if formats.parse_ip(hostname) is not None:
        yield invalid(f"{path}.hostname", hostname, "must be a DNS name, not an IP address")
