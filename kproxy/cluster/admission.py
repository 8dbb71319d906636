"""What the API adds to a Service before it is stored: families, cluster addresses, node ports.

Law: the object that comes in is never altered; what is free is asked of ``Claims``, which changes only when the whole
object is accepted. The order of steps is Kubernetes' (pkg/registry/core/service: storage/storage.go, storage/alloc.go,
strategy.go).
"""

from __future__ import annotations

import copy
import ipaddress
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kproxy.api.defaults import is_externally_accessible
from kproxy.api.field_errors import INTERNAL, FieldError, invalid
from kproxy.api.types import Object
from kproxy.api.validation.services import check_cluster_ips
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

_OTHER_FAMILY = {"IPv4": "IPv6", "IPv6": "IPv4"}
_OUT_OF_RANGE = "the provided network does not match the current range"
_TAKEN = "provided IP is already allocated"
_PORT_TAKEN = "provided port is already allocated"


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
        claims: what is taken; the accepted object is to be held there.
        networks: the service CIDRs as they are now.
        source: where chances come from; a test gives its own.
    """

    settings: ClusterSettings
    claims: Claims
    networks: Sequence[Network]
    source: random.Random = field(default_factory=random.SystemRandom)

    def admit(
        self, service: Object, old: Object | None, *, is_thorough: bool = False
    ) -> tuple[Object, list[FieldError]]:
        """The Service as it will be stored, and what could not be allocated; it holds nothing of it yet.

        Args:
            service: defaulted.
            old: the stored one that it replaces.
            is_thorough: go on after a refusal and name all of them, where Kubernetes stops at the first.
        """
        admitted = copy.deepcopy(service)
        spec = admitted["spec"]
        old_spec = None if old is None else old["spec"]
        _carry_over(spec, old_spec)
        errors = self._set_families(spec, old_spec)
        owner = owner_name(admitted)
        if not errors:
            for errors_of_step in self._allocate(spec, old_spec, owner):
                errors += errors_of_step
                if errors and not is_thorough:
                    errors = errors[:1]
                    break
        if old_spec is not None:
            _wipe(admitted, old_spec)
        return admitted, errors

    def _allocate(self, spec: Object, old: Object | None, owner: str) -> Iterator[list[FieldError]]:
        yield self._set_addresses(spec, old, owner)
        yield self._set_node_ports(spec, old)
        yield self._set_health_check_port(spec, old)

    # ----- families

    def _set_families(self, spec: Object, old: Object | None) -> list[FieldError]:
        """Kubernetes: alloc.go, initIPFamilyFields."""
        if spec.get("type") == "ExternalName" or (old is not None and _keeps_its_families(spec, old)):
            return []
        is_lenient = _is_headless(spec) and not spec.get("selector")
        if spec.get("ipFamilyPolicy") is None:
            inherited = None if old is None else old.get("ipFamilyPolicy")
            spec["ipFamilyPolicy"] = inherited or ("RequireDualStack" if is_lenient else "SingleStack")
        if errors := list(check_cluster_ips(spec)):
            return errors
        errors = [] if old is None else _release(spec, old)
        if errors := errors + _single_stack_errors(spec) + self._infer_families(spec):
            return errors
        if not is_lenient and (errors := self._configuration_errors(spec)):
            return errors
        families = spec.get("ipFamilies") or list(self.settings.ip_families[:1])
        # Headless without selector may have both families on any cluster: its endpoints are somebody else's business.
        has_both = self.settings.is_dual_stack or is_lenient
        if spec["ipFamilyPolicy"] != "SingleStack" and len(families) == 1 and has_both:
            families = [*families, _OTHER_FAMILY[families[0]]]
        spec["ipFamilies"] = families
        return []

    def _infer_families(self, spec: Object) -> list[FieldError]:
        """Adds the families of addresses that come without one."""
        families = list(spec.get("ipFamilies") or ())
        errors = []
        for index, text in enumerate(_addresses(spec)):
            family = family_of(ipaddress.ip_address(text))
            if index < len(families):
                continue
            if family in self.settings.ip_families:
                families.append(family)
            else:
                detail = f"{family} is not configured on this cluster"
                errors.append(invalid(f"spec.clusterIPs[{index}]", spec["clusterIPs"], detail))
        if families:
            spec["ipFamilies"] = families
        return errors

    def _configuration_errors(self, spec: Object) -> list[FieldError]:
        errors = []
        policy = spec["ipFamilyPolicy"]
        if policy == "RequireDualStack" and not self.settings.is_dual_stack:
            detail = "this cluster is not configured for dual-stack services"
            errors.append(invalid("spec.ipFamilyPolicy", policy, detail))
        return errors + [
            invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
            for index, family in enumerate(spec.get("ipFamilies") or ())
            if family not in self.settings.ip_families
        ]

    # ----- addresses

    def _set_addresses(self, spec: Object, old: Object | None, owner: str) -> list[FieldError]:
        """Fills in the addresses that are missing; those that may not change are left to validation."""
        if spec.get("type") == "ExternalName" or _is_headless(spec):
            return []
        given = list(spec.get("clusterIPs") or ())
        wanted = range(len(spec["ipFamilies"]))
        if old is not None and _needs_cluster_ip(old):
            is_upgrade = not _is_headless(old) and len(old.get("ipFamilies") or ()) == 1
            wanted = wanted[1:] if is_upgrade else wanted[:0]
        for index in wanted:
            given += [""] * (index + 1 - len(given))
            try:
                text = given[index] or self._pick_address(spec["ipFamilies"][index])
            except RangeFull as error:
                return [FieldError("spec.clusterIPs", INTERNAL, None, f"failed to allocate a serviceIP: {error}")]
            if reason := self._refusal(text, owner):
                return [invalid("spec.clusterIPs", given, f"failed to allocate IP {text}: {reason}")]
            given[index] = text
        if given:
            spec["clusterIPs"] = given
            spec.setdefault("clusterIP", given[0])
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

    def _set_node_ports(self, spec: Object, old: Object | None) -> list[FieldError]:
        if spec.get("type") not in ("NodePort", "LoadBalancer"):
            return []
        chosen = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
        before = {port.get("nodePort", 0) for port in (old or {}).get("ports") or ()}
        by_number: dict[int, int] = {}
        errors = []
        for index, port in enumerate(spec.get("ports") or ()):
            path = f"spec.ports[{index}].nodePort"
            shared = _requested(port, spec["ports"], by_number) if old is None else 0
            wanted = port.get("nodePort") or (shared if needs_node_port(spec) else 0)
            if wanted:
                is_new = wanted not in before and wanted not in by_number.values()
                if is_new and (reason := self._port_refusal(wanted)):
                    errors.append(invalid(path, wanted, reason))
            elif needs_node_port(spec):
                try:
                    wanted = self._pick_port(chosen)
                except RangeFull as error:
                    return [FieldError(path, INTERNAL, None, f"failed to allocate a nodePort: {error}")]
            if wanted:
                port["nodePort"] = wanted
                chosen.add(wanted)
                by_number.setdefault(port.get("port", 0), wanted)
        return errors

    def _set_health_check_port(self, spec: Object, old: Object | None) -> list[FieldError]:
        """A port of its own when it begins to be needed; while it is needed it stays, which validation sees to."""
        if not needs_health_check_port(spec) or (old is not None and needs_health_check_port(old)):
            return []
        path = "spec.healthCheckNodePort"
        own = {port.get("nodePort") for port in spec.get("ports") or ()}
        port = spec.get("healthCheckNodePort", 0)
        if port:
            reason = _PORT_TAKEN if port in own else self._port_refusal(port)
            detail = f"failed to allocate requested HealthCheck NodePort {port}: {reason}"
            return [FieldError(path, INTERNAL, None, detail)] if reason else []
        try:
            spec["healthCheckNodePort"] = self._pick_port(own)
        except RangeFull as error:
            return [FieldError(path, INTERNAL, None, f"failed to allocate a HealthCheck NodePort: {error}")]
        return []

    def _port_refusal(self, port: int) -> str:
        if port not in self._ports():
            low, high = self.settings.node_port_range
            return f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
        return _PORT_TAKEN if self.claims.owner_of_port(port) is not None else ""

    def _pick_port(self, chosen: Iterable[int | None]) -> int:
        own = frozenset(chosen)
        return self._ports().pick(
            lambda port: port in own or self.claims.owner_of_port(port) is not None, self.source.randrange
        )


def hide(service: Object) -> None:
    """Drops what the API does not show of a valid Service: an ExternalName has no internal traffic."""
    if service["spec"].get("type") == "ExternalName":
        _drop(service["spec"], "internalTrafficPolicy")


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


def _has_node_ports(spec: Object) -> bool:
    return spec.get("type") in ("NodePort", "LoadBalancer")


def _needs_cluster_ip(spec: Object) -> bool:
    return spec.get("type") != "ExternalName"


def _is_headless(spec: Object) -> bool:
    return spec.get("clusterIP") == "None" or (spec.get("clusterIPs") or [""])[0] == "None"


def _addresses(spec: Object) -> list[str]:
    return [text for text in spec.get("clusterIPs") or () if text != "None"]


def _carry_over(spec: Object, old: Object | None) -> None:
    """Fills in what a client may leave out: what was allocated before (storage.go, patchAllocatedValues)."""
    if old is not None and _needs_cluster_ip(spec) and _needs_cluster_ip(old):
        for name in ("clusterIP", "clusterIPs"):
            if not spec.get(name):
                _copy(spec, old, name)
        if spec.get("clusterIP") != old.get("clusterIP") and spec.get("clusterIPs") == old.get("clusterIPs"):
            # Only the singular was changed: the plural is meant to follow (normalizeClusterIPs).
            spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    if old is None:
        return
    if _has_node_ports(spec) and _has_node_ports(old):
        _carry_over_node_ports(spec, old)
    if needs_health_check_port(spec) and needs_health_check_port(old) and not spec.get("healthCheckNodePort"):
        _copy(spec, old, "healthCheckNodePort")


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


def _keeps_its_families(spec: Object, old: Object) -> bool:
    """Whether a PreferDualStack Service stays as it is: only an edit of its family fields adds a second address."""
    names = ("type", "ipFamilyPolicy", "clusterIP", "clusterIPs", "ipFamilies")
    return spec.get("ipFamilyPolicy") == "PreferDualStack" and all(spec.get(name) == old.get(name) for name in names)


def _release(spec: Object, old: Object) -> list[FieldError]:
    """Drops the second family when only the policy became SingleStack, and refuses to drop it without that."""
    errors = []
    for name, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
        values, before = spec.get(name) or [], old.get(name) or []
        if spec["ipFamilyPolicy"] == "SingleStack":
            if values and values == before:
                spec[name] = values[:1]
        elif 0 < len(values) < len(before):
            detail = f"must be 'SingleStack' to release the secondary {what}"
            errors.append(invalid("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], detail))
    return errors


def _single_stack_errors(spec: Object) -> list[FieldError]:
    policy = spec["ipFamilyPolicy"]
    return [
        invalid(
            "spec.ipFamilyPolicy",
            policy,
            f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified",
        )
        for name, what in (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families"))
        if policy == "SingleStack" and len(spec.get(name) or ()) > 1
    ]


def _requested(port: Object, ports: Sequence[Object], by_number: Mapping[int, int]) -> int:
    """The node port that this port shares with another of its number (53/TCP and 53/UDP), or 0."""
    number = port.get("port", 0)
    asked = (other["nodePort"] for other in ports if other.get("port", 0) == number and other.get("nodePort"))
    return by_number.get(number) or next(asked, 0)


def _wipe(service: Object, old: Object) -> None:
    """Drops what the new type lacks, if the request did not also change it (strategy.go, dropTypeDependentFields)."""
    spec = service["spec"]
    if _needs_cluster_ip(old) and not _needs_cluster_ip(spec):
        if spec.get("clusterIPs") == old.get("clusterIPs"):
            _drop(spec, "clusterIP", "clusterIPs")
        _drop_unchanged(spec, old, "ipFamilies", "ipFamilyPolicy")
    if _has_node_ports(old) and not _has_node_ports(spec):
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
