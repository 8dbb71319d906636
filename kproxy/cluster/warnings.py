"""What a person should know about an object that is accepted all the same.

Law: never an error, never changes anything. The texts of ``of_object`` that Kubernetes also gives are Kubernetes'
(pkg/api/service/warnings.go); those of ``of_document`` and ``of_apply`` are the lab's own.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from kproxy.api import known_fields
from kproxy.api.kinds import DEPLOYMENT, POD, REPLICA_SET, SERVICE, Kind
from kproxy.api.labels import matches
from kproxy.api.types import Object
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.store import Transaction

_WITH_PODS = (POD, DEPLOYMENT, REPLICA_SET)


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
    spec = service["spec"]
    is_headless = spec.get("clusterIP") == "None"
    if is_headless and spec.get("sessionAffinity", "None") != "None":
        yield "spec.SessionAffinity is ignored for headless services"
    if is_headless and spec.get("externalIPs"):
        yield 'spec.externalIPs is ignored when spec.clusterIP is "None"'
    if is_headless and spec.get("loadBalancerIP"):
        yield 'spec.loadBalancerIP is ignored when spec.clusterIP is "None"'
    if spec.get("externalIPs") and spec["type"] == "ExternalName":
        yield 'spec.externalIPs is ignored when spec.type is "ExternalName"'
    elif spec.get("externalIPs"):
        yield "spec.externalIPs is deprecated and will be removed in a future release"
    if spec.get("externalName") and spec["type"] != "ExternalName":
        yield 'spec.externalName is ignored when spec.type is not "ExternalName"'
    if "service.kubernetes.io/topology-aware-hints" in (service["metadata"].get("annotations") or {}):
        yield (
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use "
            "service.kubernetes.io/topology-mode instead"
        )
    if spec.get("trafficDistribution") == "PreferClose":
        yield "spec.trafficDistribution: PreferClose is deprecated, use PreferSameZone"


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
