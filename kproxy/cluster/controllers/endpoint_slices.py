"""EndpointSlices: which pods stand behind a Service, as Kubernetes' EndpointSlice controller writes them.

Law: ``endpoints_of`` and ``plan_slices`` decide, from values to values; the controller only carries out. Rules:
Kubernetes, staging/src/k8s.io/endpointslice (reconciler.go, utils.go).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kproxy.api.kinds import ENDPOINT_SLICE, NODE, POD, SERVICE
from kproxy.api.labels import matches
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.informer import Informer, Informers, Name, name_of
from kproxy.cluster.controllers.ownership import controller_reference
from kproxy.cluster.controllers.topology_hints import is_automatic, with_hints, zone_of
from kproxy.cluster.controllers.trigger_times import ANNOTATION, TriggerTimes
from kproxy.errors import KproxyError, NotFound

MANAGED_BY = "endpointslice-controller.k8s.io"
MAX_ENDPOINTS = 100
"""kube-controller-manager's --max-endpoints-per-slice."""

MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
_RESERVED_LABELS = (SERVICE_NAME_LABEL, MANAGED_BY_LABEL, HEADLESS_LABEL)
BY_SERVICE = "by-service"
"""The index of slices by ``namespace/service``."""

_LOG = logging.getLogger(__name__)

Ports = tuple[tuple[tuple[str, Any], ...], ...]
"""A resolved port list in a form that can be compared: each port as its sorted fields."""


@dataclass(frozen=True)
class Group:
    """What all endpoints of a slice share."""

    family: str
    ports: Ports


@dataclass(frozen=True)
class SliceOwner:
    """Whose slices they are, and what that makes them look like.

    Attributes:
        namespace: where they are.
        name: what their names begin with.
        labels: all labels that they have.
        reference: the ownerReference that they carry.
        families: for which there are slices.
        keeps_empty: whether an empty slice a family stays when there are no endpoints.
        max_endpoints: of one slice.
        annotations: all annotations that they have; None leaves them to others.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    reference: Object
    families: Sequence[str]
    keeps_empty: bool = True
    max_endpoints: int = MAX_ENDPOINTS
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of a Service.

    Attributes:
        groups: by what all endpoints of a slice share.
        left_out: why pods that are selected are not there yet; they come when their node does.
        without_hints: why topology-mode gives no hints, by address family.
    """

    groups: Mapping[Group, Sequence[Object]]
    left_out: Sequence[str] = ()
    without_hints: Mapping[str, str] = field(default_factory=dict)


@dataclass
class SlicePlan:
    """What has to be written for one owner."""

    create: list[Object] = field(default_factory=list)
    update: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


class NodeMissing(KproxyError):
    """A pod names a node that is not there (yet)."""


def has_slices(service: Object) -> bool:
    """Whether the Service's slices are made here: it has a selector and is no ExternalName.

    ``selector: {}`` counts as none: an empty map does not survive Kubernetes' storage.
    """
    spec = service["spec"]
    return spec.get("type") != "ExternalName" and bool(spec.get("selector"))


def endpoints_of(
    service: Object, pods: Iterable[Object], nodes: Mapping[str, Object], existing: Iterable[Object] = ()
) -> Endpoints:
    """The endpoints of a Service, grouped as slices are.

    Args:
        service: with families and selector.
        pods: the pods of its namespace.
        nodes: all nodes by name.
        existing: its slices as they are, whose hints by topology-mode stay where they still fit.
    """
    listed: dict[str, list[tuple[Ports, Object]]] = {}
    left_out = []
    for pod in pods:
        if not _is_candidate(service, pod):
            continue
        name = pod["spec"].get("nodeName", "")
        if name and name not in nodes and not service["spec"].get("publishNotReadyAddresses"):
            left_out.append(f"pod {'/'.join(name_of(pod))} names node {name!r}, which is not there")
            continue
        ports = _resolve_ports(service, pod)
        for family in service["spec"].get("ipFamilies") or ("IPv4",):
            addresses = _addresses(pod, family)
            if addresses:
                endpoint = _endpoint(service, pod, nodes.get(name), addresses)
                listed.setdefault(family, []).append((ports, endpoint))
    before = _hinted_zones(existing) if is_automatic(service) else {}
    groups: dict[Group, list[Object]] = {}
    without_hints = {}
    for family, found in listed.items():
        known = {
            index: before[identity] for index, (_, item) in enumerate(found) if (identity := _identity(item)) in before
        }
        hinted, reason = with_hints(service, [item for _, item in found], nodes.values(), known)
        if reason:
            without_hints[family] = reason
        for (ports, _), endpoint in zip(found, hinted, strict=True):
            groups.setdefault(Group(family, ports), []).append(endpoint)
    return Endpoints(groups, left_out, without_hints)


def owner_of(service: Object) -> SliceOwner:
    """A Service as the owner of slices."""
    metadata = service["metadata"]
    families = service["spec"].get("ipFamilies") or ("IPv4",)
    return SliceOwner(
        metadata["namespace"], metadata["name"], _labels(service), controller_reference(service), families
    )


def plan_slices(owner: SliceOwner, existing: Sequence[Object], desired: Mapping[Group, Sequence[Object]]) -> SlicePlan:
    """The fewest writes that make the existing slices hold the desired endpoints.

    Args:
        owner: whose slices they are.
        existing: all slices that this controller has made for a Service of that name.
        desired: from ``endpoints_of``.
    """
    plan = SlicePlan()
    owned: list[Object] = []
    for existing_slice in existing:
        (owned if _is_owned(existing_slice, owner) else plan.delete).append(existing_slice)
    for family in owner.families:
        of_family = [item for item in owned if item["addressType"] == family]
        groups = {group.ports: list(items) for group, items in desired.items() if group.family == family}
        if not groups and owner.keeps_empty:
            groups = {(): []}
        _plan_family(plan, owner, family, of_family, groups)
    plan.delete += [item for item in owned if item["addressType"] not in owner.families]
    return plan


def carry_out(client: Client, slices: Informer, plan: SlicePlan) -> None:
    """Writes a plan, and has the informer see it at once."""
    for new in plan.create:
        slices.observe(client.create(ENDPOINT_SLICE, new))
    for changed in plan.update:
        slices.observe(client.update(ENDPOINT_SLICE, changed))
    for gone in plan.delete:
        namespace, name = name_of(gone)
        with contextlib.suppress(NotFound):
            client.delete(ENDPOINT_SLICE, name, namespace, uid=gone["metadata"]["uid"])
        slices.forget(gone)


class EndpointSliceController(Controller[Name]):
    """Keeps the EndpointSlices of every Service that has a selector."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._services, self._pods = informers.of(SERVICE), informers.of(POD)
        self._nodes, self._slices = informers.of(NODE), informers.of(ENDPOINT_SLICE)
        self._slices.add_index(BY_SERVICE, service_of_slice)
        self._triggers = TriggerTimes()
        self._unhinted: dict[tuple[Name, str], str] = {}
        self._services.add_handler(lambda before, after: self._add(before, after))
        self._slices.add_handler(self._on_slice)
        self._pods.add_handler(self._on_pod)
        self._nodes.add_handler(self._on_node)

    def reconcile(self, key: Name) -> None:
        """Writes the slices of the Service of that name."""
        service = self._services.get(key)
        slices = [item for item in self._slices.indexed(BY_SERVICE, "/".join(key)) if is_managed(item, MANAGED_BY)]
        if service is None or not has_slices(service):
            self._triggers.forget(key)
            carry_out(self.client, self._slices, SlicePlan(delete=slices))
            return
        nodes = {node["metadata"]["name"]: node for node in self._nodes.all_of()}
        pods = [pod for pod in self._pods.all_of(key[0]) if _selects(service, pod)]
        found = endpoints_of(service, pods, nodes, slices)
        self._tell_about_hints(key, found)
        plan = plan_slices(owner_of(service), slices, found.groups)
        carry_out(self.client, self._slices, _stamped(plan, self._triggers.look(service, pods)))
        if found.left_out:
            raise NodeMissing("; ".join(found.left_out))

    def _tell_about_hints(self, key: Name, found: Endpoints) -> None:
        """Says once that a Service that asks for hints gets none (Kubernetes sends an event)."""
        for family in ("IPv4", "IPv6"):
            reason = found.without_hints.get(family, "")
            if reason and self._unhinted.get((key, family)) != reason:
                _LOG.warning(
                    "Service %s: TopologyAwareHintsDisabled: %s, addressType: %s", "/".join(key), reason, family
                )
            self._unhinted[key, family] = reason

    def _add(self, *objects: Object | None) -> None:
        for obj in objects:
            if obj is not None:
                self.queue.add(name_of(obj))

    def _on_slice(self, before: Object | None, after: Object | None) -> None:
        for obj in (before, after):
            if obj is not None and is_managed(obj, MANAGED_BY):
                for value in service_of_slice(obj):
                    namespace, _, name = value.partition("/")
                    self.queue.add((namespace, name))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        pods = [pod for pod in (before, after) if pod is not None]
        for service in self._services.all_of(pods[0]["metadata"]["namespace"]):
            if has_slices(service) and any(_selects(service, pod) for pod in pods):
                self._add(service)

    def _on_node(self, before: Object | None, after: Object | None) -> None:
        is_new_here = before is None or after is None or zone_of(before) != zone_of(after)
        has_other_means = is_new_here or before is None or after is None or _means(before) != _means(after)
        for service in self._services.all_of():
            if has_slices(service) and (is_new_here or (has_other_means and is_automatic(service))):
                self._add(service)


# ----- endpoints


def _selects(service: Object, pod: Object) -> bool:
    return matches(service["spec"]["selector"], pod["metadata"].get("labels") or {})


def _is_candidate(service: Object, pod: Object) -> bool:
    status = pod.get("status") or {}
    has_address = status.get("podIP") or status.get("podIPs")
    return bool(has_address) and status.get("phase") not in ("Succeeded", "Failed") and _selects(service, pod)


def _addresses(pod: Object, family: str) -> list[str]:
    status = pod["status"]
    texts = [entry["ip"] for entry in status.get("podIPs") or ()] or [status.get("podIP", "")]
    parsed = [ipaddress.ip_address(text) for text in texts if text]
    return [str(address) for address in parsed if f"IPv{address.version}" == family]


def _endpoint(service: Object, pod: Object, node: Object | None, addresses: list[str]) -> Object:
    spec, metadata = pod["spec"], pod["metadata"]
    endpoint: Object = {"addresses": addresses, "conditions": _conditions(service, pod)}
    if spec.get("nodeName"):
        endpoint["nodeName"] = spec["nodeName"]
    zone = zone_of(node) if node is not None else ""
    if zone:
        endpoint["zone"] = zone
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    endpoint["targetRef"] = {
        "kind": "Pod",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    return endpoint


def _conditions(service: Object, pod: Object) -> Object:
    is_serving = is_pod_ready(pod)
    is_terminating = bool(pod["metadata"].get("deletionTimestamp"))
    publishes = bool(service["spec"].get("publishNotReadyAddresses"))
    return {
        "ready": publishes or (is_serving and not is_terminating),
        "serving": is_serving,
        "terminating": is_terminating,
    }


def is_pod_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition is True."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _hinted_zones(slices: Iterable[Object]) -> dict[tuple[Any, ...], str]:
    """The one zone that each endpoint is hinted for, by its identity."""
    zones: dict[tuple[Any, ...], str] = {}
    for item in slices:
        for endpoint in item.get("endpoints") or ():
            named = (endpoint.get("hints") or {}).get("forZones") or []
            if len(named) == 1:
                zones[_identity(endpoint)] = named[0]["name"]
    return zones


def _means(node: Object) -> tuple[Any, ...]:
    """What topology-mode looks at beside the zone."""
    status, labels = node.get("status") or {}, node["metadata"].get("labels") or {}
    readiness = [item.get("status") for item in status.get("conditions") or () if item.get("type") == "Ready"]
    return status.get("allocatable"), readiness, [label for label in labels if label.startswith("node-role.")]


# ----- ports


def _resolve_ports(service: Object, pod: Object) -> Ports:
    resolved = []
    for port in service["spec"].get("ports") or ():
        number = target_port(port, pod)
        if number is None:
            continue
        entry = {"name": port.get("name", ""), "protocol": port.get("protocol", "TCP"), "port": number}
        if port.get("appProtocol") is not None:
            entry["appProtocol"] = port["appProtocol"]
        resolved.append(tuple(sorted(entry.items())))
    return tuple(resolved)


def target_port(port: Object, pod: Object) -> int | None:
    """The number that a Service port's targetPort means in this pod; None when no container has a port of that name.

    Containers come in order, then sidecars (init containers that restart always); name and protocol must both fit.
    """
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    sidecars = [item for item in pod["spec"].get("initContainers") or () if item.get("restartPolicy") == "Always"]
    for container in [*(pod["spec"].get("containers") or ()), *sidecars]:
        for candidate in container.get("ports") or ():
            protocol = candidate.get("protocol", "TCP")
            if candidate.get("name") == target and protocol == port.get("protocol", "TCP"):
                return int(candidate["containerPort"])
    return None


def _ports_of(existing: Object) -> Ports:
    return tuple(tuple(sorted(port.items())) for port in existing.get("ports") or ())


# ----- slices


def service_of_slice(existing: Object) -> Iterator[str]:
    """``namespace/service`` of the Service that a slice belongs to, if it names one."""
    metadata = existing["metadata"]
    service = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    if service:
        yield f"{metadata['namespace']}/{service}"


def is_managed(existing: Object, controller: str) -> bool:
    """Whether a slice is the work of that controller."""
    return bool((existing["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == controller)


def _is_owned(existing: Object, owner: SliceOwner) -> bool:
    references = existing["metadata"].get("ownerReferences") or ()
    return any(reference["uid"] == owner.reference["uid"] for reference in references)


def _plan_family(
    plan: SlicePlan, owner: SliceOwner, family: str, existing: Sequence[Object], groups: Mapping[Ports, list[Object]]
) -> None:
    """Plans the slices of one family (reconciler.go, reconcileByAddressType and finalize)."""
    pending = SlicePlan(delete=[item for item in existing if _ports_of(item) not in groups])
    is_placeholder = list(groups.values()) == [[]]
    for ports, endpoints in groups.items():
        of_group = [item for item in existing if _ports_of(item) == ports]
        _plan_group(pending, _Fill(owner, Group(family, ports), is_placeholder), of_group, endpoints)
    for new in pending.create:  # a slice that would go and one that would come are one update
        if pending.delete:
            old = pending.delete.pop(0)
            changed = {name: new[name] for name in ("endpoints", "ports")}
            plan.update.append(_relabelled({**old, **changed}, owner))
        else:
            plan.create.append(new)
    plan.update += pending.update
    plan.delete += pending.delete


@dataclass(frozen=True)
class _Fill:
    owner: SliceOwner
    group: Group
    keeps_empty: bool


def _plan_group(plan: SlicePlan, fill: _Fill, existing: Sequence[Object], endpoints: Sequence[Object]) -> None:
    """Plans the slices of one port list (reconciler.go, reconcileByPortMapping)."""
    left = {_identity(endpoint): endpoint for endpoint in endpoints}
    touched: list[Object] = []
    untouched: list[Object] = []
    for item in existing:
        kept = [left.pop(identity) for old in item.get("endpoints") or () if (identity := _identity(old)) in left]
        changed = _relabelled({**item, "endpoints": kept}, fill.owner)
        if not kept and not (fill.keeps_empty and not touched and not untouched):
            plan.delete.append(item)
        elif changed == {**item, "endpoints": item.get("endpoints") or []}:
            untouched.append(changed)
        else:
            touched.append(changed)
    rest = list(left.values())
    most = fill.owner.max_endpoints
    for item in sorted(touched, key=lambda candidate: -len(candidate["endpoints"])):
        room = most - len(item["endpoints"])
        item["endpoints"] = item["endpoints"] + rest[:room]
        rest = rest[room:]
    while rest:
        best = _best_fit(untouched, len(rest), most)
        if best is None:
            plan.create.append(_new_slice(fill, rest[:most]))
            rest = rest[most:]
        else:
            touched.append({**best, "endpoints": best["endpoints"] + rest})
            rest = []
    plan.update += touched
    if fill.keeps_empty and not existing:
        plan.create.append(_new_slice(fill, []))


def _best_fit(slices: Sequence[Object], count: int, most: int) -> Object | None:
    """The slice that is fullest once ``count`` endpoints are added, if there is one with room for all of them."""
    fitting = [item for item in slices if len(item["endpoints"]) + count <= most]
    return max(fitting, key=lambda item: len(item["endpoints"]), default=None)


def _identity(endpoint: Object) -> tuple[Any, ...]:
    target = endpoint.get("targetRef") or {}
    return tuple(endpoint["addresses"]), endpoint.get("hostname"), target.get("namespace"), target.get("name")


def _relabelled(item: Object, owner: SliceOwner) -> Object:
    """The slice with the labels and annotations that its owner gives it."""
    metadata = {**item["metadata"], "labels": dict(owner.labels)}
    if owner.annotations is not None and dict(owner.annotations) != (metadata.get("annotations") or {}):
        metadata["annotations"] = dict(owner.annotations)
    return {**item, "metadata": metadata}


def _stamped(plan: SlicePlan, trigger_time: str) -> SlicePlan:
    """The plan with the moment that caused it on every slice that it writes."""
    return SlicePlan(
        [_with_trigger(item, trigger_time) for item in plan.create],
        [_with_trigger(item, trigger_time) for item in plan.update],
        plan.delete,
    )


def _with_trigger(item: Object, trigger_time: str) -> Object:
    annotations = {**(item["metadata"].get("annotations") or {})}
    annotations.pop(ANNOTATION, None)
    if trigger_time:
        annotations[ANNOTATION] = trigger_time
    metadata = {key: value for key, value in item["metadata"].items() if key != "annotations"}
    return {**item, "metadata": {**metadata, "annotations": annotations} if annotations else metadata}


def _labels(service: Object) -> dict[str, str]:
    own = service["metadata"].get("labels") or {}
    labels = {key: value for key, value in own.items() if key not in _RESERVED_LABELS}
    labels[SERVICE_NAME_LABEL] = service["metadata"]["name"]
    labels[MANAGED_BY_LABEL] = MANAGED_BY
    if service["spec"].get("clusterIP") in (None, "", "None"):
        labels[HEADLESS_LABEL] = ""
    return labels


def _new_slice(fill: _Fill, endpoints: list[Object]) -> Object:
    owner = fill.owner
    annotations = {"annotations": dict(owner.annotations)} if owner.annotations else {}
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.name,
        "metadata": {
            "generateName": f"{owner.name}-",
            "namespace": owner.namespace,
            "labels": dict(owner.labels),
            "ownerReferences": [owner.reference],
            **annotations,
        },
        "addressType": fill.group.family,
        "endpoints": endpoints,
        "ports": [dict(port) for port in fill.group.ports],
    }
