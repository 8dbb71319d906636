"""Endpoints: the older mirror of a Service's EndpointSlices, one object a Service, first family only.

Law: kube-proxy never reads it; it is here for people and programs that do (Kubernetes: pkg/controller/endpoint).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

from kproxy.api.kinds import ENDPOINTS, POD, SERVICE
from kproxy.api.labels import matches
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.controller import Controller
from kproxy.cluster.controllers.endpoint_slices import HEADLESS_LABEL, has_slices, is_pod_ready, target_port
from kproxy.cluster.controllers.informer import Informers, Name, name_of
from kproxy.cluster.controllers.trigger_times import ANNOTATION, TriggerTimes
from kproxy.errors import NotFound

MANAGED_BY_LABEL = "endpoints.kubernetes.io/managed-by"
MANAGED_BY = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
MAX_ADDRESSES = 1000


def endpoints_object(service: Object, pods: Iterable[Object]) -> Object:
    """The Endpoints object that a Service with a selector has.

    Args:
        service: the Service.
        pods: the pods of its namespace, by name.
    """
    metadata = service["metadata"]
    labels = {**(metadata.get("labels") or {}), MANAGED_BY_LABEL: MANAGED_BY}
    if service["spec"].get("clusterIP") in (None, "", "None"):
        labels[HEADLESS_LABEL] = ""
    subsets, is_truncated = _subsets(service, pods)
    made: Object = {
        "apiVersion": ENDPOINTS.api_version,
        "kind": ENDPOINTS.name,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
    }
    if is_truncated:
        made["metadata"]["annotations"] = {OVER_CAPACITY: "truncated"}
    if subsets:
        made["subsets"] = subsets
    return made


class EndpointsController(Controller[Name]):
    """Keeps the Endpoints object of every Service that has a selector."""

    def __init__(self, client: Client, informers: Informers) -> None:
        super().__init__(client, informers)
        self._services, self._pods = informers.of(SERVICE), informers.of(POD)
        self._endpoints = informers.of(ENDPOINTS)
        self._triggers = TriggerTimes()
        self._deleted: set[Name] = set()  # Services; their Endpoints go too, whoever wrote them
        self._services.add_handler(self._on_service)
        self._endpoints.add_handler(self._on_endpoints)
        self._pods.add_handler(self._on_pod)

    def reconcile(self, key: Name) -> None:
        """Writes the Endpoints object of the Service of that name."""
        service, present = self._services.get(key), self._endpoints.get(key)
        if service is None:
            self._triggers.forget(key)
            if present is not None and (key in self._deleted or _is_managed(present)):
                with contextlib.suppress(NotFound):
                    self.client.delete(ENDPOINTS, key[1], key[0], uid=present["metadata"]["uid"])
                self._endpoints.forget(present)
            self._deleted.discard(key)
            return
        if not has_slices(service):
            return  # without a selector they are somebody else's
        pods = [pod for pod in self._pods.all_of(key[0]) if _selects(service, pod)]
        wanted = endpoints_object(service, pods)
        if trigger_time := self._triggers.look(service, pods):
            wanted["metadata"].setdefault("annotations", {})[ANNOTATION] = trigger_time
        if present is None:
            self._endpoints.observe(self.client.create(ENDPOINTS, wanted))
        elif not _is_same(present, wanted):
            others = {name: value for name, value in present["metadata"].items() if name != "annotations"}
            kept = (present["metadata"].get("annotations") or {}).items()
            annotations = {key: value for key, value in kept if key not in (OVER_CAPACITY, ANNOTATION)}
            annotations |= wanted["metadata"].get("annotations") or {}
            named = {"annotations": annotations} if annotations else {}
            wanted["metadata"] = {**others, **wanted["metadata"], **named}
            self._endpoints.observe(self.client.update(ENDPOINTS, wanted))

    def _on_service(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        if obj is not None:
            if after is None:
                self._deleted.add(name_of(obj))
            self.queue.add(name_of(obj))

    def _on_endpoints(self, before: Object | None, after: Object | None) -> None:
        obj = after or before
        if obj is not None:
            self.queue.add(name_of(obj))

    def _on_pod(self, before: Object | None, after: Object | None) -> None:
        pods = [pod for pod in (before, after) if pod is not None]
        for service in self._services.all_of(pods[0]["metadata"]["namespace"]):
            if has_slices(service) and any(_selects(service, pod) for pod in pods):
                self.queue.add(name_of(service))


def _is_managed(endpoints: Object) -> bool:
    return bool((endpoints["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY)


def _selects(service: Object, pod: Object) -> bool:
    return matches(service["spec"]["selector"], pod["metadata"].get("labels") or {})


_Port = tuple[tuple[str, Any], ...]
"""A port in a form that can be compared: its sorted fields."""


def _subsets(service: Object, pods: Iterable[Object]) -> tuple[list[Object], bool]:
    """The canonical subsets, and whether addresses were left out.

    Ports that the same addresses have make one subset (Kubernetes: pkg/api/v1/endpoints/util.go, RepackSubsets).
    """
    addresses: dict[tuple[str, str], tuple[Object, bool]] = {}
    by_port: dict[_Port, list[tuple[str, str]]] = {}
    for pod in pods:
        address = _address(service, pod)
        if address is None:
            continue
        key = address["ip"], address["targetRef"]["uid"]
        is_ready = is_pod_ready(pod) or bool(service["spec"].get("publishNotReadyAddresses"))
        addresses[key] = address, is_ready
        for port in _ports(service, pod):
            by_port.setdefault(port, []).append(key)
    by_addresses: dict[tuple[tuple[str, str], ...], list[_Port]] = {}
    for port in sorted(by_port, key=repr):
        by_addresses.setdefault(tuple(sorted(by_port[port])), []).append(port)
    subsets = []
    for keys, ports in by_addresses.items():
        listed = [addresses[key] for key in keys]
        split = {True: [item for item, ready in listed if ready], False: [item for item, ready in listed if not ready]}
        subsets.append((split[True], split[False], [dict(port) for port in ports if port]))
    is_truncated = _truncate(subsets)
    return [_subset(*parts) for parts in subsets if parts[0] or parts[1]], is_truncated


def _truncate(subsets: list[tuple[list[Object], list[Object], list[Object]]]) -> bool:
    """Shortens the lists in place to what one object may hold, each by its share, those that are not ready first."""
    ready, others = (sum(len(parts[at]) for parts in subsets) for at in (0, 1))
    if ready + others <= MAX_ADDRESSES:
        return False
    at, total, room = (0, ready, MAX_ADDRESSES) if ready > MAX_ADDRESSES else (1, others, MAX_ADDRESSES - ready)
    left = room
    for parts in subsets:
        share = min(math.ceil(len(parts[at]) / total * room), left)
        del parts[at][share:]
        left -= len(parts[at])
        if at == 0:
            parts[1].clear()
    return True


def _subset(ready: list[Object], others: list[Object], ports: list[Object]) -> Object:
    named = {"addresses": ready, "notReadyAddresses": others, "ports": ports}
    return {field: value for field, value in named.items() if value}


def _address(service: Object, pod: Object) -> Object | None:
    """The pod's entry, or None when it has none: no address of the first family, ended, or being deleted."""
    spec, status, metadata = service["spec"], pod.get("status") or {}, pod["metadata"]
    if status.get("phase") in ("Succeeded", "Failed") or not _selects(service, pod):
        return None
    if metadata.get("deletionTimestamp") and not spec.get("publishNotReadyAddresses"):
        return None
    is_v6 = (spec.get("ipFamilies") or ["IPv4"])[0] == "IPv6"
    texts = [entry["ip"] for entry in status.get("podIPs") or ()] or [status.get("podIP", "")]
    ip = next((text for text in texts if text and (":" in text) == is_v6), None)
    if ip is None:
        return None
    address: Object = {"ip": ip}
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        address["hostname"] = pod["spec"]["hostname"]
    if pod["spec"].get("nodeName"):
        address["nodeName"] = pod["spec"]["nodeName"]
    reference = {field: metadata[field] for field in ("namespace", "name", "uid")}
    return address | {"targetRef": {"kind": "Pod", **reference}}


def _ports(service: Object, pod: Object) -> list[_Port]:
    """The ports that the pod has for the Service; one empty port stands for a headless Service that names none."""
    if not service["spec"].get("ports"):
        return [()]
    ports = []
    for port in service["spec"].get("ports") or ():
        number = target_port(port, pod)
        if number is None:
            continue
        entry: Object = {"port": number, "protocol": port.get("protocol", "TCP")}
        entry |= {field: port[field] for field in ("name", "appProtocol") if port.get(field)}
        ports.append(tuple(sorted(entry.items())))
    return ports


def _is_same(present: Object, wanted: Object) -> bool:
    metadata, fresh = present["metadata"], wanted["metadata"]
    return (
        present.get("subsets", []) == wanted.get("subsets", [])
        and (metadata.get("labels") or {}) == fresh["labels"]
        and (metadata.get("annotations") or {}).get(OVER_CAPACITY)
        == (fresh.get("annotations") or {}).get(OVER_CAPACITY)
    )
