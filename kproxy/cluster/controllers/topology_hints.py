"""Topology hints: which zones and nodes each endpoint is meant for.

Law: pure; endpoints are values that come and go, and the same cluster gives the same hints. Rules: Kubernetes,
staging/src/k8s.io/endpointslice (trafficdist, topologycache).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from kproxy.api.types import Object

ZONE_LABEL = "topology.kubernetes.io/zone"
_MODE = "service.kubernetes.io/topology-mode"
_OLDER_MODE = "service.kubernetes.io/topology-aware-hints"
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_OVERLOAD = 0.2
"""How much more than its share of the traffic an endpoint may be exposed to."""


def with_hints(
    service: Object, endpoints: Sequence[Object], nodes: Iterable[Object], before: Mapping[int, str] | None = None
) -> tuple[list[Object], str]:
    """The endpoints of one address family with the hints that the Service asks for.

    Args:
        service: its annotation ``topology-mode: Auto`` goes before its ``trafficDistribution``.
        endpoints: all of the family, without hints, in a stable order.
        nodes: all of the cluster.
        before: the zone that the endpoint at an index was hinted for so far; kept where it still fits.

    Returns:
        The endpoints, and why topology-mode gives them no hints (empty when it does, or was not asked for).
    """
    if is_automatic(service):
        zones, reason = _automatic(endpoints, list(nodes), before or {})
        hinted = [
            endpoint if zone is None else {**endpoint, "hints": {"forZones": [{"name": zone}]}}
            for endpoint, zone in zip(endpoints, zones, strict=True)
        ]
        return hinted, reason
    distribution = service["spec"].get("trafficDistribution")
    return [_near(endpoint, distribution) if distribution else endpoint for endpoint in endpoints], ""


def is_automatic(service: Object) -> bool:
    """Whether the Service's annotations ask for hints; the deprecated one wins when both are there."""
    annotations = service["metadata"].get("annotations") or {}
    return annotations.get(_OLDER_MODE, annotations.get(_MODE)) in ("Auto", "auto")


def zone_of(node: Object) -> str:
    """The zone that a node's label names, or empty."""
    return str((node["metadata"].get("labels") or {}).get(ZONE_LABEL, ""))


def _near(endpoint: Object, distribution: str) -> Object:
    zone, node = endpoint.get("zone"), endpoint.get("nodeName")
    hints: Object = {}
    if endpoint["conditions"]["ready"]:
        if zone:
            hints["forZones"] = [{"name": zone}]
        if distribution == "PreferSameNode" and node:
            hints["forNodes"] = [{"name": node}]
    return {**endpoint, "hints": hints} if hints else endpoint


# ----- topology-mode: Auto


def cpu_shares(nodes: Iterable[Object]) -> dict[str, float]:
    """Each zone's share of the ready nodes' CPU; empty when a node does not say, or all are in one zone."""
    by_zone: dict[str, Decimal] = {}
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        if any(label in labels for label in _CONTROL_PLANE) or not _is_ready(node):
            continue
        zone, cpu = zone_of(node), _cpu(node)
        if not zone or not cpu:
            return {}
        by_zone[zone] = by_zone.get(zone, Decimal(0)) + cpu
    total = sum(by_zone.values())
    return {zone: float(cpu / total) for zone, cpu in sorted(by_zone.items())} if len(by_zone) > 1 else {}


def _automatic(
    endpoints: Sequence[Object], nodes: Sequence[Object], before: Mapping[int, str]
) -> tuple[list[str | None], str]:
    none: list[str | None] = [None] * len(endpoints)
    ready = [index for index, endpoint in enumerate(endpoints) if endpoint["conditions"]["ready"]]
    shares = cpu_shares(nodes)
    if not shares:
        return none, "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
    if len(ready) < len(shares):
        return none, f"Insufficient number of endpoints ({len(ready)} endpoints, {len(shares)} zones)"
    minimum = {zone: math.ceil(share * len(ready) / (1 + _OVERLOAD)) for zone, share in shares.items()}
    if sum(minimum.values()) > len(ready):
        counts = f"({len(ready)} endpoints, {len(shares)} zones)"
        return none, f"Unable to allocate minimum required endpoints to each zone without exceeding threshold {counts}"
    if any(not endpoints[index].get("zone") for index in ready):
        return none, "One or more endpoints do not have a zone specified"
    zones = [endpoints[index].get("zone") if index in set(ready) else None for index in range(len(endpoints))]
    kept = [before.get(index) for index in range(len(endpoints))]
    if _is_fair(kept, ready, minimum):
        return [kept[index] if index in set(ready) else None for index in range(len(endpoints))], ""
    wanted = {zone: max(share * len(ready), float(minimum[zone])) for zone, share in shares.items()}
    _redistribute(zones, wanted)
    return zones, ""


def _is_fair(zones: Sequence[str | None], ready: Sequence[int], minimum: Mapping[str, int]) -> bool:
    """Whether hints as they are leave every zone what it needs at least, so that nothing has to move."""
    given = [zones[index] for index in ready]
    return all(zone in minimum for zone in given) and all(given.count(zone) >= least for zone, least in minimum.items())


def _redistribute(zones: list[str | None], wanted: Mapping[str, float]) -> None:
    """Moves endpoints from zones with more than their share to zones with less, in place."""
    counts = {zone: zones.count(zone) for zone in {*wanted, *filter(None, zones)}}
    surplus = {zone: counts[zone] - wanted.get(zone, 0.0) for zone in sorted(counts) if zone in wanted}
    while True:
        giver = max(surplus, key=lambda zone: surplus[zone])
        taker = min(surplus, key=lambda zone: surplus[zone])
        give, take = surplus[giver], -surplus[taker]
        if min(give, take) < 0.5 or max(give, take) < 1.0 or giver not in zones:
            return
        zones[zones.index(giver)] = taker
        surplus[giver] -= 1
        surplus[taker] += 1


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _cpu(node: Object) -> Decimal:
    """Allocatable CPUs; 0 when the node does not say."""
    text = str(((node.get("status") or {}).get("allocatable") or {}).get("cpu", "0"))
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(m?)", text)
    return Decimal(0) if found is None else Decimal(found[1]) / (1000 if found[2] else 1)
