"""What a person should know about an object that is accepted all the same.

Law: never an error, never changes anything. The texts of ``of_object`` that Kubernetes also gives are Kubernetes'
(pkg/api/service/warnings.go); those of ``of_document`` and ``of_apply`` are the lab's own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from kproxy.api import formats, known_fields
from kproxy.api.kinds import DEPLOYMENT, POD, REPLICA_SET, SERVICE, Kind
from kproxy.api.labels import matches
from kproxy.api.types import Object
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.store import Transaction

_WITH_PODS = (POD, DEPLOYMENT, REPLICA_SET)
_TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"
_OLDER_TOPOLOGY_MODE = "service.kubernetes.io/topology-aware-hints"


def of_object(kind: Kind, request: Object, stored: Object, settings: ClusterSettings) -> Iterator[str]:
    """Warnings that concern one object by itself.

    Args:
        kind: its kind.
        request: the object as it was sent.
        stored: the object as it is stored.
        settings: the cluster's.
    """
    if kind is SERVICE:
        yield from _of_service(stored)
    if kind in _WITH_PODS and not request["metadata"].get("ownerReferences"):
        yield from _of_pod(_pod_of(kind, stored), settings)


def of_document(kind: Kind, document: Object) -> Iterator[str]:
    """Warnings about what an applied document says that has no effect in the lab."""
    idle = known_fields.without_effect(document)
    if idle:
        yield f"no effect here: {', '.join(idle)}"
    if document.get("status") and kind is SERVICE:
        yield "status is not applied: it belongs to the cluster (patch the status subresource to set it)"
    if kind is SERVICE and any(
        port.get("protocol") == "SCTP" for port in (document.get("spec") or {}).get("ports") or ()
    ):
        yield "SCTP ports are programmed, but no echo server answers there, and verify passes them over"


def of_apply(applied: Mapping[int, Object], transaction: Transaction) -> Iterator[tuple[int, str]]:
    """Warnings that concern several objects together, each with the index of the Service that it is about.

    Args:
        applied: the objects of this apply by the index of their document.
        transaction: everything as it will be after the apply.
    """
    for index, obj in applied.items():
        if obj["kind"] == SERVICE.name:
            for message in _of_selected(obj, transaction):
                yield index, message


def _of_service(service: Object) -> Iterator[str]:
    """Kubernetes: GetWarningsForService, in its order."""
    spec = service["spec"]
    external_ips, is_external_name = spec.get("externalIPs") or [], spec["type"] == "ExternalName"
    is_headless = spec["type"] == "ClusterIP" and spec.get("clusterIP") == "None"
    if _OLDER_TOPOLOGY_MODE in (service["metadata"].get("annotations") or {}):
        yield f"annotation {_OLDER_TOPOLOGY_MODE} is deprecated, please use {_TOPOLOGY_MODE} instead"
    for index, address in enumerate(spec.get("clusterIPs") or []):
        yield from _of_ip(f"spec.clusterIPs[{index}]", address)
    if is_headless:
        yield from _of_headless(spec)
    for index, address in enumerate(external_ips):
        yield from _of_ip(f"spec.externalIPs[{index}]", address)
    if external_ips and not is_headless and not is_external_name:
        yield "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
    yield from _of_ip("spec.loadBalancerIP", spec.get("loadBalancerIP") or "")
    for index, cidr in enumerate(spec.get("loadBalancerSourceRanges") or []):
        yield from _of_cidr(f"spec.loadBalancerSourceRanges[{index}]", cidr)
    yield from _of_type(spec)
    if spec.get("trafficDistribution") == "PreferClose":
        yield 'spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"'


def _of_headless(spec: Object) -> Iterator[str]:
    for key in ("loadBalancerIP", "externalIPs"):
        if spec.get(key):
            yield f"spec.{key} is ignored for headless services"
    if spec.get("sessionAffinity", "None") != "None":
        yield "spec.SessionAffinity is ignored for headless services"


def _of_type(spec: Object) -> Iterator[str]:
    if spec["type"] == "ExternalName" and spec.get("externalIPs"):
        yield 'spec.externalIPs is ignored when spec.type is "ExternalName"'
    if spec["type"] != "ExternalName" and spec.get("externalName"):
        yield 'spec.externalName is ignored when spec.type is not "ExternalName"'


def _of_ip(path: str, text: str) -> Iterator[str]:
    address = formats.parse_ip(text)
    if address is not None and address.version == 6 and str(address) != text:
        yield f'{path}: IPv6 address "{text}" should be in RFC 5952 canonical format ("{address}")'


def _of_cidr(path: str, text: str) -> Iterator[str]:
    network = formats.parse_cidr(text.strip())
    if network is not None and network.version == 6 and str(network) != text.strip():
        yield f'{path}: IPv6 CIDR value "{text}" should be in RFC 5952 canonical format ("{network}")'


def _of_pod(pod: Object, settings: ClusterSettings) -> Iterator[str]:
    spec = pod.get("spec") or {}
    containers = spec.get("containers") or []
    echoes = [container for container in containers if not _has_command(container, settings)]
    if not echoes:
        return
    named = ", ".join(f"{container.get('name')} ({container.get('image', 'no image')})" for container in echoes)
    yield f"runs as the built-in echo server: {named}"
    if not any(container.get("ports") for container in containers):
        yield "declares no ports: the echo server listens on the numeric targetPorts of the Services that select it"


def _has_command(container: Object, settings: ClusterSettings) -> bool:
    image = container.get("image", "")
    return bool(container.get("command")) or any(fnmatch.fnmatchcase(image, glob) for glob in settings.image_patterns)


def _of_selected(service: Object, transaction: Transaction) -> Iterator[str]:
    spec = service["spec"]
    named = [port for port in spec.get("ports") or () if isinstance(port.get("targetPort"), str)]
    if not spec.get("selector") or not named:
        return
    pods = list(_selected_pods(service, transaction))
    for index, port in enumerate(spec["ports"]):
        if pods and port in named and not any(_has_port(pod, port) for pod in pods):
            path = f"spec.ports[{index}].targetPort"
            wanted = f'{port["protocol"]} port named "{port["targetPort"]}"'
            yield f"{path}: no container of the selected pods has a {wanted}: no endpoints"


def _selected_pods(service: Object, transaction: Transaction) -> Iterator[Object]:
    for kind in _WITH_PODS:
        for obj in transaction.all_of(kind, service["metadata"]["namespace"]):
            pod = _pod_of(kind, obj)
            if matches(service["spec"]["selector"], (pod.get("metadata") or {}).get("labels") or {}):
                yield pod


def _pod_of(kind: Kind, obj: Object) -> Object:
    template: Object = obj if kind is POD else obj["spec"].get("template") or {}
    return template


def _has_port(pod: Object, wanted: Mapping[str, Any]) -> bool:
    spec = pod.get("spec") or {}
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    return any(
        port.get("name") == wanted["targetPort"] and port.get("protocol", "TCP") == wanted["protocol"]
        for container in [*(spec.get("containers") or ()), *sidecars]
        for port in container.get("ports") or ()
    )
