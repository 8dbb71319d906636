"""What a word on the command line names: a node, a client, the router, or a pod, and the namespace where that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kproxy.cluster.status import LabStatus, PodStatus
from kproxy.errors import UserError

PlaceKind = Literal["node", "client", "router", "pod"]


@dataclass(frozen=True)
class Place:
    """Somewhere in a lab.

    Attributes:
        kind: what it is.
        name: its name; a pod's without its Kubernetes namespace.
        netns: its network namespace, as ``ip netns`` lists it.
        pod_namespace: a pod's Kubernetes namespace, else empty.
    """

    kind: PlaceKind
    name: str
    netns: str
    pod_namespace: str = ""


def find(status: LabStatus, word: str, namespace: str) -> Place:
    """The place that ``word`` means.

    ``node/NAME``, ``client/NAME``, ``pod/NAME``, ``pod/NAMESPACE/NAME`` and ``deployment/NAME`` (its first pod) say
    what they mean; a bare name is a node, a client or the router, and else a pod of ``namespace``.

    Raises:
        UserError: there is no such place, or the pod has no network namespace (yet).
    """
    kind, slash, rest = word.partition("/")
    if not slash:
        return _outside(status, word) or _pod(status, namespace, word)
    if kind in ("node", "client"):
        found = _outside(status, rest)
        if found is None or found.kind != kind:
            raise UserError(f'{kind} "{rest}" not found; there are: {", ".join(_names(status))}')
        return found
    pod_namespace, slash, name = rest.partition("/")
    if not slash:
        pod_namespace, name = namespace, rest
    if kind in ("pod", "pods", "po"):
        return _pod(status, pod_namespace, name)
    if kind in ("deployment", "deployments", "deploy", "deployment.apps"):
        return _first_pod(status, pod_namespace, name)
    raise UserError(
        f'"{word}" names no place: say POD, NODE, CLIENT, pod/NAME, node/NAME, client/NAME or deployment/NAME'
    )


def _outside(status: LabStatus, name: str) -> Place | None:
    if name == "router":
        return Place("router", name, status.router.namespace)
    for node in status.nodes:
        if node.name == name:
            return Place("node", name, node.namespace)
    for client in status.clients:
        if client.name == name:
            return Place("client", name, client.namespace)
    return None


def _pod(status: LabStatus, namespace: str, name: str) -> Place:
    for pod in status.pods:
        if (pod.namespace_, pod.name) == (namespace, name):
            return _place_of(pod)
    raise UserError(f'nothing here is called "{name}": no node, no client, no pod in namespace "{namespace}"')


def _first_pod(status: LabStatus, namespace: str, deployment: str) -> Place:
    """By name: a Deployment's pods are called DEPLOYMENT-HASH-SUFFIX."""
    ours = [pod for pod in status.pods if pod.namespace_ == namespace and pod.name.rsplit("-", 2)[0] == deployment]
    if not ours:
        raise UserError(f'deployment "{deployment}" has no pods in namespace "{namespace}"')
    return _place_of(min(ours, key=lambda pod: (not pod.ready, pod.name)))


def _place_of(pod: PodStatus) -> Place:
    if not pod.namespace:
        raise UserError(f'pod "{pod.namespace_}/{pod.name}" does not run yet')
    return Place("pod", pod.name, pod.namespace, pod.namespace_)


def _names(status: LabStatus) -> Sequence[str]:
    return [*(node.name for node in status.nodes), *(client.name for client in status.clients)]
