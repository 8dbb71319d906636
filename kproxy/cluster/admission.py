"""What the API adds to a Service before it is stored: families, cluster addresses, node ports.

Law: the object that comes in is never altered; what is taken comes from ``Claims`` and nowhere else. The order of
steps is Kubernetes' (pkg/registry/core/service/storage/{storage,alloc}.go and strategy.go).
"""

from __future__ import annotations

import copy
import ipaddress
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kproxy.api.field_errors import (
    DUPLICATE,
    INTERNAL,
    FieldError,
    invalid,
    not_supported,
)
from kproxy.api.types import Object
from kproxy.cluster.allocation import (
    Network,
    Range,
    RangeFull,
    address_of,
    address_range,
    family_of,
    parse_network,
    port_range,
)

FAMILIES = ("IPv4", "IPv6")
_DUAL_STACK_POLICIES = ("PreferDualStack", "RequireDualStack")
_OUT_OF_RANGE = "the provided network does not match the current range"
_TAKEN = "provided IP is already allocated"


@dataclass(frozen=True)
class ClusterSettings:
    """What the API has to know of the cluster it serves.

    Attributes:
        service_cidrs: where cluster addresses come from, at most one per family; the first is the primary family's.
        ip_families: the cluster's families, the primary one first.
        node_port_range: lowest and highest node port, both included.
        api_addresses: where the API answers, for the endpoints of ``default/kubernetes``; may be empty.
        api_port: the port there.
        image_patterns: globs of container images that stand for a local command; all others become the echo server.
    """

    service_cidrs: tuple[str, ...] = ("10.96.0.0/12",)
    ip_families: tuple[str, ...] = ("IPv4",)
    node_port_range: tuple[int, int] = (30000, 32767)
    api_addresses: tuple[str, ...] = ()
    api_port: int = 6443
    image_patterns: tuple[str, ...] = ()

    @property
    def is_dual_stack(self) -> bool:
        """Whether Services may have two families."""
        return len(self.ip_families) > 1


@dataclass(frozen=True)
class Held:
    """What one Service has."""

    addresses: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()


class Claims:
    """Who has which cluster address and which node port.

    Changes are tentative until ``keep``; ``roll_back`` undoes them, newest first. Owners are ``namespace/name``.
    """

    def __init__(self, services: Iterable[Object] = ()) -> None:
        self._held: dict[str, Held] = {}
        self._address_owners: dict[str, str] = {}
        self._port_owners: dict[int, str] = {}
        self._undo: list[tuple[str, Held]] = []
        for service in services:
            self.hold(service)
        self.keep()

    def owner_of_address(self, address: str) -> str | None:
        """Who has this address (in canonical form), or None."""
        return self._address_owners.get(address)

    def owner_of_port(self, port: int) -> str | None:
        """Who has this node port, or None."""
        return self._port_owners.get(port)

    def hold(self, service: Object) -> None:
        """Gives the Service what its spec names, and nothing else."""
        spec = service["spec"]
        addresses = (canonical(text) for text in spec.get("clusterIPs", ()) if text != "None")
        ports = [port.get("nodePort", 0) for port in spec.get("ports") or ()] + [spec.get("healthCheckNodePort", 0)]
        self._replace(owner_name(service), Held(frozenset(addresses), frozenset(filter(None, ports))))

    def release(self, service: Object) -> None:
        """Takes everything from the Service."""
        self._replace(owner_name(service), Held())

    def keep(self) -> None:
        """Makes everything since the last ``keep`` permanent."""
        self._undo.clear()

    def roll_back(self) -> None:
        """Undoes everything since the last ``keep``."""
        undo, self._undo = self._undo, []
        for owner, held in reversed(undo):
            self._replace(owner, held)
        self._undo.clear()

    def _replace(self, owner: str, held: Held) -> None:
        before = self._held.get(owner, Held())
        self._undo.append((owner, before))
        for address in before.addresses:
            del self._address_owners[address]
        for port in before.ports:
            del self._port_owners[port]
        self._address_owners.update(dict.fromkeys(held.addresses, owner))
        self._port_owners.update(dict.fromkeys(held.ports, owner))
        self._held[owner] = held
        if not held.addresses and not held.ports:
            del self._held[owner]


@dataclass
class ServiceAdmission:
    """Admits Services of one cluster.

    Attributes:
        settings: the cluster's.
        claims: what is taken; ``admit`` adds to it.
        networks: the service CIDRs as they are now.
        source: where chances come from; a test gives its own.
    """

    settings: ClusterSettings
    claims: Claims
    networks: Sequence[Network]
    source: random.Random = field(default_factory=random.SystemRandom)

    def admit(self, service: Object, old: Object | None) -> tuple[Object, list[FieldError]]:
        """The Service as it will be stored, and what is wrong with it.

        Without errors it holds what it was given in ``claims``; with errors its claims are as before.
        """
        admitted = copy.deepcopy(service)
        spec = admitted["spec"]
        old_spec = None if old is None else old["spec"]
        _carry_over(spec, old_spec)
        errors = self._set_families(spec, old_spec)
        owner = owner_name(admitted)
        if not errors:
            errors += self._set_addresses(spec, owner)
            errors += self._set_node_ports(spec, old_spec, owner)
            errors += self._set_health_check_port(spec, owner)
        if old_spec is not None:
            _wipe(admitted, old_spec)
        if not errors:
            self.claims.hold(admitted)
        return admitted, errors

    # ----- families

    def _set_families(self, spec: Object, old: Object | None) -> list[FieldError]:
        if spec.get("type") == "ExternalName":
            return []
        _trim_to_single_stack(spec, old)
        if errors := self._family_errors(spec):
            return errors
        if _is_headless(spec) and not spec.get("selector"):
            self._set_families_of_selectorless(spec)
            return []
        if errors := self._policy_errors(spec, old):
            return errors
        policy = spec.setdefault("ipFamilyPolicy", "SingleStack")
        families = self._known_families(spec)
        if policy != "SingleStack" and not _keeps_single_address(spec, old):
            families += [family for family in self.settings.ip_families if family not in families]
        spec["ipFamilies"] = families
        return []

    def _known_families(self, spec: Object) -> list[str]:
        """The families that the request names, by themselves or by its addresses, in order; else the primary one."""
        inferred = [family_of(ipaddress.ip_address(text)) for text in _addresses(spec)]
        return list(spec.get("ipFamilies") or inferred or self.settings.ip_families[:1])

    def _family_errors(self, spec: Object) -> list[FieldError]:
        errors = []
        families = spec.get("ipFamilies") or []
        lenient = _is_headless(spec) and not spec.get("selector")
        for index, family in enumerate(families):
            path = f"spec.ipFamilies[{index}]"
            if family not in FAMILIES:
                errors.append(not_supported(path, family, FAMILIES))
            elif family in families[:index]:
                errors.append(FieldError(path, DUPLICATE, family))
            elif family not in self.settings.ip_families and not lenient:
                errors.append(invalid(path, family, "not configured on this cluster"))
        for index, text in enumerate(_addresses(spec)):
            errors += self._address_family_errors(index, text, families)
        return errors

    def _address_family_errors(self, index: int, text: str, families: Sequence[str]) -> list[FieldError]:
        path = f"spec.clusterIPs[{index}]"
        address = _parse(text)
        if address is None:
            detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            return [invalid(path, text, detail)]
        family = family_of(address)
        if index < len(families) and families[index] != family:
            detail = f"expected an {families[index]} value as indicated by `ipFamilies[{index}]`"
            return [invalid(path, text, detail)]
        if family not in self.settings.ip_families:
            return [invalid(path, text, f"{family} is not configured on this cluster")]
        return []

    def _set_families_of_selectorless(self, spec: Object) -> None:
        # Headless without selector may have both families on any cluster: its endpoints are somebody else's business.
        families = list(spec.get("ipFamilies") or self.settings.ip_families[:1])
        if spec.get("ipFamilyPolicy") != "SingleStack":
            families += [family for family in FAMILIES if family not in families]
        spec["ipFamilies"] = families
        spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(families) > 1 else "SingleStack")

    def _policy_errors(self, spec: Object, old: Object | None) -> list[FieldError]:
        path = "spec.ipFamilyPolicy"
        policy = spec.get("ipFamilyPolicy")
        given = spec.get("ipFamilies") or ()
        addresses = _addresses(spec)
        if policy == "RequireDualStack" and not self.settings.is_dual_stack:
            return [invalid(path, policy, "this cluster is not configured for dual-stack services")]
        if policy not in _DUAL_STACK_POLICIES:
            for values, what in ((addresses, "cluster IPs"), (given, "IP families")):
                if len(values) > 1:
                    detail = f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                    return [invalid(path, policy, detail)]
            return []
        if old is None or spec.get("ipFamilyPolicy") != old.get("ipFamilyPolicy"):
            return []
        for name, values, what in (("clusterIPs", addresses, "cluster IP"), ("ipFamilies", given, "IP family")):
            if len(old.get(name) or ()) == 2 and len(values) == 1:
                return [invalid(path, policy, f"must be 'SingleStack' to release the secondary {what}")]
        return []

    # ----- addresses

    def _set_addresses(self, spec: Object, owner: str) -> list[FieldError]:
        if spec.get("type") == "ExternalName" or _is_headless(spec):
            return []
        given = list(spec.get("clusterIPs") or ())
        addresses = []
        for index, family in enumerate(spec["ipFamilies"]):
            try:
                text = given[index] if index < len(given) else self._pick_address(family)
            except RangeFull as error:
                return [FieldError("spec.clusterIPs", INTERNAL, None, f"failed to allocate a serviceIP: {error}")]
            if reason := self._refusal(text, owner):
                return [invalid("spec.clusterIPs", given, f"failed to allocate IP {text}: {reason}")]
            addresses.append(text)
        spec["clusterIPs"] = addresses
        spec["clusterIP"] = addresses[0]
        return []

    def _refusal(self, text: str, owner: str) -> str:
        address = ipaddress.ip_address(text)
        has = self.claims.owner_of_address(canonical(text))
        if has == owner:
            return ""
        ranges = [address_range(network) for network in self.networks if address in network]
        if not any(int(address) in usable for usable in ranges):
            return _OUT_OF_RANGE
        return _TAKEN if has else ""

    def _pick_address(self, family: str) -> str:
        for network in self.networks:
            if family_of(network) != family:
                continue
            try:
                number = address_range(network).pick(
                    lambda candidate: self.claims.owner_of_address(address_of(candidate, family)) is not None,
                    self.source.randrange,
                )
            except RangeFull:
                continue
            return address_of(number, family)
        raise RangeFull("range is full")

    # ----- node ports

    def _ports(self) -> Range:
        return port_range(*self.settings.node_port_range)

    def _set_node_ports(self, spec: Object, old: Object | None, owner: str) -> list[FieldError]:
        if spec.get("type") not in ("NodePort", "LoadBalancer"):
            return []
        ports = spec.get("ports") or []
        errors = [
            invalid(f"spec.ports[{index}].nodePort", port["nodePort"], reason)
            for index, port in enumerate(ports)
            if port.get("nodePort") and (reason := self._port_refusal(port["nodePort"], owner))
        ]
        if errors or not needs_node_port(spec):
            return errors
        chosen = {port["nodePort"] for port in ports if port.get("nodePort")}
        shared: dict[int, list[Object]] = {}
        for index, port in enumerate(ports):
            if not port.get("nodePort"):
                number = _shared_node_port(port, shared) if old is None else 0
                try:
                    port["nodePort"] = number or self._pick_port(chosen)
                except RangeFull as error:
                    detail = f"failed to allocate a nodePort: {error}"
                    return [FieldError(f"spec.ports[{index}].nodePort", INTERNAL, None, detail)]
                chosen.add(port["nodePort"])
            shared.setdefault(port.get("port", 0), []).append(port)
        return []

    def _set_health_check_port(self, spec: Object, owner: str) -> list[FieldError]:
        if not needs_health_check_port(spec):
            return []
        path = "spec.healthCheckNodePort"
        own = {port.get("nodePort") for port in spec.get("ports") or ()}
        port = spec.get("healthCheckNodePort", 0)
        if port:
            reason = self._port_refusal(port, owner)
            detail = f"failed to allocate requested HealthCheck NodePort {port}: {reason}"
            return [FieldError(path, INTERNAL, None, detail)] if reason else []
        try:
            spec["healthCheckNodePort"] = self._pick_port(own)
        except RangeFull as error:
            return [FieldError(path, INTERNAL, None, f"failed to allocate a HealthCheck NodePort: {error}")]
        return []

    def _port_refusal(self, port: int, owner: str) -> str:
        if port not in self._ports():
            low, high = self.settings.node_port_range
            return f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
        return "provided port is already allocated" if self.claims.owner_of_port(port) not in (None, owner) else ""

    def _pick_port(self, chosen: Iterable[int | None]) -> int:
        own = frozenset(chosen)
        return self._ports().pick(
            lambda port: port in own or self.claims.owner_of_port(port) is not None, self.source.randrange
        )


def owner_name(service: Object) -> str:
    """``namespace/name``."""
    return f"{service['metadata'].get('namespace', '')}/{service['metadata']['name']}"


def canonical(text: str) -> str:
    """An address in its one canonical form."""
    return str(ipaddress.ip_address(text))


def networks_of(service_cidrs: Iterable[Object], settings: ClusterSettings) -> list[Network]:
    """The ranges that cluster addresses come from: the ServiceCIDR objects', else the settings'."""
    texts = [text for cidr in service_cidrs for text in cidr.get("spec", {}).get("cidrs") or ()]
    return [parse_network(text) for text in texts or settings.service_cidrs]


def needs_node_port(spec: Object) -> bool:
    """Whether each port gets a node port without being asked for."""
    if spec.get("type") == "LoadBalancer":
        return spec.get("allocateLoadBalancerNodePorts") is not False
    return spec.get("type") == "NodePort"


def needs_health_check_port(spec: Object) -> bool:
    """Whether load balancers ask the nodes if they have endpoints (Kubernetes: NeedsHealthCheck)."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_externally_accessible(spec: Object) -> bool:
    """Kubernetes: pkg/api/v1/service, ExternallyAccessible."""
    has_external = bool(spec.get("externalIPs"))
    return spec.get("type") in ("LoadBalancer", "NodePort") or (spec.get("type") == "ClusterIP" and has_external)


def _needs_cluster_ip(spec: Object) -> bool:
    return spec.get("type") != "ExternalName"


def _is_headless(spec: Object) -> bool:
    return spec.get("clusterIP") == "None" or (spec.get("clusterIPs") or [""])[0] == "None"


def _addresses(spec: Object) -> list[str]:
    return [text for text in spec.get("clusterIPs") or () if text != "None"]


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _carry_over(spec: Object, old: Object | None) -> None:
    """Fills in what a client may leave out: what was allocated before (storage.go, patchAllocatedValues)."""
    if old is not None and _needs_cluster_ip(spec) and _needs_cluster_ip(old):
        if not spec.get("clusterIP") and not spec.get("clusterIPs"):
            _copy(spec, old, "clusterIP")
        if not spec.get("clusterIPs") and spec.get("clusterIP") == old.get("clusterIP"):
            _copy(spec, old, "clusterIPs")
        if spec.get("ipFamilyPolicy") is None:
            _copy(spec, old, "ipFamilyPolicy")
        if not spec.get("ipFamilies") and spec.get("clusterIPs") == old.get("clusterIPs"):
            _copy(spec, old, "ipFamilies")
    if old is not None and needs_node_port(spec) and needs_node_port(old):
        _carry_over_node_ports(spec, old)
    if old is not None and needs_health_check_port(spec) and needs_health_check_port(old):
        spec.setdefault("healthCheckNodePort", old.get("healthCheckNodePort", 0))
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]


def _carry_over_node_ports(spec: Object, old: Object) -> None:
    by_name = {port.get("name", ""): port.get("nodePort", 0) for port in old.get("ports") or ()}
    used = {port.get("nodePort", 0) for port in spec.get("ports") or ()} & set(by_name.values())
    for port in spec.get("ports") or ():
        before = by_name.get(port.get("name", ""), 0)
        if not port.get("nodePort") and before and before not in used:
            port["nodePort"] = before
            used.add(before)


def _copy(spec: Object, old: Object, name: str) -> None:
    if name in old:
        spec[name] = copy.deepcopy(old[name])


def _trim_to_single_stack(spec: Object, old: Object | None) -> None:
    """Drops the second family when only the policy became SingleStack (alloc.go, trimFieldsForDualStackDowngrade)."""
    if old is None or spec.get("ipFamilyPolicy") != "SingleStack" or old.get("ipFamilyPolicy") == "SingleStack":
        return
    for name in ("clusterIPs", "ipFamilies"):
        if spec.get(name) == old.get(name) and spec.get(name):
            spec[name] = spec[name][:1]


def _keeps_single_address(spec: Object, old: Object | None) -> bool:
    """Whether a PreferDualStack Service stays as it is: only an edit of its family fields adds a second address."""
    if old is None or old.get("ipFamilyPolicy") != "PreferDualStack" or spec.get("ipFamilyPolicy") != "PreferDualStack":
        return False
    return all(spec.get(name) == old.get(name) for name in ("clusterIPs", "ipFamilies")) and bool(
        spec.get("clusterIPs")
    )


def _shared_node_port(port: Object, shared: dict[int, list[Object]]) -> int:
    """The node port of an earlier port of the same number and another protocol (53/TCP and 53/UDP), or 0."""
    for earlier in shared.get(port.get("port", 0), ()):
        if earlier.get("protocol", "TCP") != port.get("protocol", "TCP"):
            return int(earlier["nodePort"])
    return 0


def _wipe(service: Object, old: Object) -> None:
    """Drops what the new type lacks, if the request did not also change it (strategy.go, dropTypeDependentFields)."""
    spec = service["spec"]
    if _needs_cluster_ip(old) and not _needs_cluster_ip(spec):
        if spec.get("clusterIPs") == old.get("clusterIPs"):
            _drop(spec, "clusterIP", "clusterIPs")
        _drop_unchanged(spec, old, "ipFamilies", "ipFamilyPolicy")
    has_node_ports = ("NodePort", "LoadBalancer")
    if old.get("type") in has_node_ports and spec.get("type") not in has_node_ports:
        _wipe_node_ports(spec, old)
    if needs_health_check_port(old) and not needs_health_check_port(spec):
        _drop_unchanged(spec, old, "healthCheckNodePort")
    if old.get("type") == "LoadBalancer" and spec.get("type") != "LoadBalancer":
        _drop_unchanged(spec, old, "allocateLoadBalancerNodePorts", "loadBalancerClass")
        service["status"] = {"loadBalancer": {}}
    if is_externally_accessible(old) and not is_externally_accessible(spec):
        _drop_unchanged(spec, old, "externalTrafficPolicy")


def _wipe_node_ports(spec: Object, old: Object) -> None:
    before = {port.get("nodePort", 0) for port in old.get("ports") or ()}
    ports = spec.get("ports") or ()
    if {port.get("nodePort", 0) for port in ports} - {0} <= before:
        for port in ports:
            _drop(port, "nodePort")


def _drop_unchanged(spec: Object, old: Object, *names: str) -> None:
    for name in names:
        if spec.get(name) == old.get(name):
            _drop(spec, name)


def _drop(spec: Any, *names: str) -> None:
    for name in names:
        spec.pop(name, None)
