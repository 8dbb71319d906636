"""EndpointSlices: which pods stand behind a Service, as Kubernetes' EndpointSlice controller writes them.

Law: ``endpoints_of`` and ``plan_slices`` decide, from values to values; the controller only carries out. Rules:
Kubernetes, staging/src/k8s.io/endpointslice (reconciler.go, utils.go).
"""

from __future__ import annotations

import contextlib
import ipaddress
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
from kproxy.errors import KproxyError, NotFound

MANAGED_BY = "endpointslice-controller.k8s.io"
MAX_ENDPOINTS = 100
"""kube-controller-manager's --max-endpoints-per-slice."""

MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
ZONE_LABEL = "topology.kubernetes.io/zone"
_RESERVED_LABELS = (SERVICE_NAME_LABEL, MANAGED_BY_LABEL, HEADLESS_LABEL)
BY_SERVICE = "by-service"
"""The index of slices by ``namespace/service``."""

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
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    reference: Object
    families: Sequence[str]
    keeps_empty: bool = True


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


def endpoints_of(service: Object, pods: Iterable[Object], nodes: Mapping[str, Object]) -> dict[Group, list[Object]]:
    """The endpoints of a Service, grouped as slices are.

    Args:
        service: with families and selector.
        pods: the pods of its namespace.
        nodes: all nodes by name.

    Raises:
        NodeMissing: a selected pod's node is unknown, and the Service does not publish pods that are not ready.
    """
    groups: dict[Group, list[Object]] = {}
    for pod in pods:
        if not _is_candidate(service, pod):
            continue
        node = _node_of(service, pod, nodes)
        ports = _resolve_ports(service, pod)
        for family in service["spec"].get("ipFamilies") or ("IPv4",):
            addresses = _addresses(pod, family)
            if addresses:
                groups.setdefault(Group(family, ports), []).append(_endpoint(service, pod, node, addresses))
    return groups


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
        self._services.add_handler(lambda before, after: self._add(before, after))
        self._slices.add_handler(self._on_slice)
        self._pods.add_handler(self._on_pod)
        self._nodes.add_handler(self._on_node)

    def reconcile(self, key: Name) -> None:
        """Writes the slices of the Service of that name."""
        service = self._services.get(key)
        slices = [item for item in self._slices.indexed(BY_SERVICE, "/".join(key)) if is_managed(item, MANAGED_BY)]
        if service is None or not has_slices(service):
            carry_out(self.client, self._slices, SlicePlan(delete=slices))
            return
        nodes = {node["metadata"]["name"]: node for node in self._nodes.all_of()}
        desired = endpoints_of(service, self._pods.all_of(key[0]), nodes)
        carry_out(self.client, self._slices, plan_slices(owner_of(service), slices, desired))

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
        if before is None or after is None or _zone(before) != _zone(after):
            self._add(*(service for service in self._services.all_of() if has_slices(service)))


# ----- endpoints


def _selects(service: Object, pod: Object) -> bool:
    return matches(service["spec"]["selector"], pod["metadata"].get("labels") or {})


def _is_candidate(service: Object, pod: Object) -> bool:
    status = pod.get("status") or {}
    has_address = status.get("podIP") or status.get("podIPs")
    return bool(has_address) and status.get("phase") not in ("Succeeded", "Failed") and _selects(service, pod)


def _node_of(service: Object, pod: Object, nodes: Mapping[str, Object]) -> Object | None:
    name = pod["spec"].get("nodeName", "")
    node = nodes.get(name)
    if name and node is None and not service["spec"].get("publishNotReadyAddresses"):
        raise NodeMissing(f"pod {'/'.join(name_of(pod))} names node {name!r}, which is not there")
    return node


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
    zone = _zone(node) if node is not None else ""
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
    hints = _hints(service, endpoint)
    if hints:
        endpoint["hints"] = hints
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


def _hints(service: Object, endpoint: Object) -> Object:
    """Hints by trafficDistribution (endpointslice/trafficdist)."""
    distribution = service["spec"].get("trafficDistribution")
    zone, node = endpoint.get("zone"), endpoint.get("nodeName")
    hints: Object = {}
    if not distribution or not endpoint["conditions"]["ready"]:
        return hints
    if zone:
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode" and node:
        hints["forNodes"] = [{"name": node}]
    return hints


def _zone(node: Object) -> str:
    return str((node["metadata"].get("labels") or {}).get(ZONE_LABEL, ""))


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
    for item in sorted(touched, key=lambda candidate: -len(candidate["endpoints"])):
        room = MAX_ENDPOINTS - len(item["endpoints"])
        item["endpoints"] = item["endpoints"] + rest[:room]
        rest = rest[room:]
    if rest and (best := _best_fit(untouched, len(rest))) is not None:
        touched.append({**best, "endpoints": best["endpoints"] + rest})
        rest = []
    plan.update += touched
    plan.create += [
        _new_slice(fill, rest[start : start + MAX_ENDPOINTS]) for start in range(0, len(rest), MAX_ENDPOINTS)
    ]
    if fill.keeps_empty and not existing:
        plan.create.append(_new_slice(fill, []))


def _best_fit(slices: Sequence[Object], count: int) -> Object | None:
    """The slice that is fullest once ``count`` endpoints are added, if there is one with room for all of them."""
    fitting = [item for item in slices if len(item["endpoints"]) + count <= MAX_ENDPOINTS]
    return max(fitting, key=lambda item: len(item["endpoints"]), default=None)


def _identity(endpoint: Object) -> tuple[Any, ...]:
    target = endpoint.get("targetRef") or {}
    return tuple(endpoint["addresses"]), endpoint.get("hostname"), target.get("namespace"), target.get("name")


def _relabelled(item: Object, owner: SliceOwner) -> Object:
    """The slice with the labels that its owner gives it."""
    return {**item, "metadata": {**item["metadata"], "labels": dict(owner.labels)}}


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
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.name,
        "metadata": {
            "generateName": f"{owner.name}-",
            "namespace": owner.namespace,
            "labels": dict(owner.labels),
            "ownerReferences": [owner.reference],
        },
        "addressType": fill.group.family,
        "endpoints": endpoints,
        "ports": [dict(port) for port in fill.group.ports],
    }
