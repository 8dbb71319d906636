"""Waiting for what an apply set going: workloads ready, their slices written, every node's rules in the kernel.

Nothing here decides what is right; it asks the API and the node proxies until they say so or the time is over.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kproxy.api.columns import is_ready
from kproxy.api.kinds import (
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    NODE,
    POD,
    REPLICA_SET,
    SERVICE,
    STATEFUL_SET,
    Kind,
)
from kproxy.api.labels import matches
from kproxy.api.types import LabelSelector, Object, view
from kproxy.client import Client
from kproxy.cluster.controllers.node_proxy import programmed
from kproxy.cluster.layout import Layout
from kproxy.cluster.load_balancers import record
from kproxy.cluster.load_balancers.claims import NONE, kind_of
from kproxy.cluster.pods import EXEC_FAILED
from kproxy.cluster.status import LabStatus, LoadBalancersStatus, NodeStatus
from kproxy.errors import NotFound, UserError
from netns.errors import NetnsError

PAUSE = 0.02
"""Seconds between two looks at the API; a pod takes longer than that to start."""

SERVE_PATIENCE = 5.0
"""Seconds that nodes get to tell a load balancer that they may serve; they are asked three times a second."""

WORKLOADS = (POD, REPLICA_SET, DEPLOYMENT, STATEFUL_SET, DAEMON_SET)
"""What is waited for until it is ready."""

_IDLE = "no node serves it yet"

RARELY = 10
"""Every so many looks, pods that are not ready are asked for the reason."""


class Deadline:
    """A moment after which nothing is waited for any more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())

    def until(self, problems: Callable[[], Sequence[str]]) -> None:
        """Ask until there are no problems.

        Raises:
            UserError: naming the problems that were left when the time was over.
        """
        while found := problems():
            if not self.left:
                raise self.over(found)
            time.sleep(PAUSE)

    def over(self, problems: Sequence[str]) -> UserError:
        """The error that says what was not ready in time."""
        return UserError(f"applied, but not ready after {self.seconds:g} s:\n  " + "\n  ".join(problems))


@dataclass(frozen=True)
class Named:
    """One object; namespace is empty for a kind without namespaces."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.kind.name} "{"/".join(filter(None, (self.namespace, self.name)))}"'


@dataclass(frozen=True)
class Programmed:
    """What the nodes said: those that hold the change, and those that run no proxy of ours."""

    nodes: tuple[str, ...]
    not_asked: tuple[str, ...]

    def sentence(self, seconds: float) -> str:
        """``programmed on 3 of 3 nodes in 41 ms``."""
        total = len(self.nodes) + len(self.not_asked)
        took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
        others = f"; not asked, as no kproxy runs there: {', '.join(self.not_asked)}" if self.not_asked else ""
        return f"programmed on {len(self.nodes)} of {total} nodes in {took}{others}"


def wait_for_workloads(client: Client, objects: Iterable[Named], deadline: Deadline) -> None:
    """Wait until the pods, and what makes pods, among ``objects`` are ready.

    Raises:
        UserError: naming those that are not when the time is over, or as soon as one of them never will be.
    """
    waiting = [named for named in objects if named.kind in WORKLOADS]
    looks = itertools.count(1)

    def problems() -> list[str]:
        # Only the first one that is not ready is asked for until the end: one small request per look.
        while waiting:
            problem = _unready(client, waiting[0])
            if not problem:
                del waiting[0]
            elif deadline.left and next(looks) % RARELY:
                return [problem]
            else:
                return _explained(client, waiting, deadline)
        return []

    deadline.until(problems)


def _unready(client: Client, named: Named) -> str:
    """What is missing, in words; empty when the object is ready, or gone because somebody deleted it meanwhile."""
    try:
        obj = client.get(named.kind, named.name, named.namespace)
    except NotFound:
        return ""
    problem = pod_problem(obj) if named.kind == POD else replicas_problem(obj)
    return f"{named}: {problem}" if problem else ""


def _explained(client: Client, waiting: Iterable[Named], deadline: Deadline) -> list[str]:
    """What is missing of each, and which of its pods are not ready and why.

    Raises:
        UserError: there is time left, but one of them will not become ready in it.
    """
    problems: list[str] = []
    is_hopeless = False
    for named in waiting:
        if not (problem := _unready(client, named)):
            continue
        pods = [pod for pod in _pods_of(client, named) if pod_problem(pod)]
        is_hopeless = is_hopeless or any(is_never_ready(pod) for pod in pods)
        problems.append(problem)
        if named.kind != POD:
            problems += [
                f"  {Named(POD, named.namespace, pod['metadata']['name'])}: {pod_problem(pod)}" for pod in pods
            ]
    if is_hopeless and deadline.left:
        raise UserError("applied, but it does not become ready:\n  " + "\n  ".join(problems))
    return problems


def _pods_of(client: Client, named: Named) -> list[Object]:
    """The pod itself, or those that the workload selects and that are to stay."""
    try:
        obj = client.get(named.kind, named.name, named.namespace)
    except NotFound:
        return []
    if named.kind == POD:
        return [obj]
    selector = view(obj["spec"]["selector"], LabelSelector)
    return [pod for pod in client.list(POD, named.namespace).items if _is_one_of(pod, selector)]


def _is_one_of(pod: Object, selector: LabelSelector) -> bool:
    metadata = pod["metadata"]
    return matches(selector, metadata.get("labels") or {}) and not metadata.get("deletionTimestamp")


def is_never_ready(pod: Object) -> bool:
    """Whether more patience is in vain: it has failed for good, or a command could not be started twice."""
    status = pod.get("status") or {}
    return status.get("phase") == "Failed" or any(
        _said(container).startswith(EXEC_FAILED) and container.get("restartCount", 0) > 1
        for container in status.get("containerStatuses") or ()
    )


def pod_problem(pod: Object) -> str:
    """Why a pod is not ready; empty when it is, or when it has done its work."""
    status = pod.get("status") or {}
    if is_ready(pod) or status.get("phase") == "Succeeded":
        return ""
    words = [str(status[key]) for key in ("phase", "reason", "message") if status.get(key)]
    words += filter(None, map(_container_problem, status.get("containerStatuses") or ()))
    return ", ".join(words) or "Pending"


def _container_problem(container: Object) -> str:
    """``main: CrashLoopBackOff: exec failed: ...``; empty for one that runs, begins or has done its work."""
    state = container.get("state") or {}
    reason = (state.get("waiting") or state.get("terminated") or {}).get("reason", "")
    if reason in ("", "ContainerCreating", "Completed"):
        return ""
    if "terminated" in state and not _said(container):
        return f"{container['name']}: {reason}: it ended with exit code {state['terminated'].get('exitCode')}"
    return ": ".join(filter(None, (container["name"], reason, _said(container))))


def _said(container: Object) -> str:
    state = container.get("state") or {}
    return str((state.get("waiting") or state.get("terminated") or {}).get("message", ""))


def replicas_problem(obj: Object) -> str:
    """Why what makes pods has not those that its spec asks for; empty when it has."""
    status = obj.get("status") or {}
    if status.get("observedGeneration", 0) < obj["metadata"].get("generation", 0):
        return "not looked at yet"
    if obj["kind"] == DAEMON_SET.name:
        return _daemons_problem(status)
    wanted = obj["spec"].get("replicas", 1)
    if _takes_the_new_template(obj) and status.get("updatedReplicas", 0) != wanted:
        return f"{status.get('updatedReplicas', 0)} of {wanted} pods have the new template"
    if status.get("replicas", 0) > wanted:
        return f"{status['replicas']} pods, {wanted} wanted"
    ready = status.get("readyReplicas", 0)
    return "" if ready == wanted else f"{ready} of {wanted} pods ready"


def _takes_the_new_template(obj: Object) -> bool:
    """Whether all pods are to be of it by themselves; a StatefulSet can leave that to people, or to some of them."""
    if obj["kind"] == STATEFUL_SET.name:
        strategy = obj["spec"].get("updateStrategy") or {}
        return strategy.get("type") != "OnDelete" and not (strategy.get("rollingUpdate") or {}).get("partition")
    return bool(obj["kind"] == DEPLOYMENT.name)


def _daemons_problem(status: Object) -> str:
    wanted = status.get("desiredNumberScheduled", 0)
    updated, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
    if updated != wanted:
        return f"{updated} of {wanted} pods have the new template"
    return "" if ready == wanted else f"{ready} of {wanted} pods ready"


def wait_for_slices(client: Client, namespaces: frozenset[str], deadline: Deadline) -> None:
    """Wait until the EndpointSlices of these namespaces say what their Services select.

    Raises:
        UserError: naming the Services whose slices lag when the time is over.
    """

    def problems() -> list[str]:
        lagging: list[str] = []
        # A pod whose Node object somebody deleted is in no slice.
        nodes = {node["metadata"]["name"] for node in client.list(NODE).items}
        for namespace in sorted(namespaces):
            services = client.list(SERVICE, namespace).items
            pods = [pod for pod in client.list(POD, namespace).items if pod["spec"].get("nodeName") in nodes]
            lagging += lagging_services(services, pods, client.list(ENDPOINT_SLICE, namespace).items)
        return lagging

    deadline.until(problems)


def lagging_services(services: Sequence[Object], pods: Sequence[Object], slices: Sequence[Object]) -> list[str]:
    """The Services of one namespace whose slices do not name just the ready pods that they select, in words."""
    problems = []
    for service in services:
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            continue
        name = service["metadata"]["name"]
        written = _ready_pods_in(slices, name)
        selected = {pod["metadata"]["name"]: pod for pod in pods if _is_selected(service, pod)}
        missing = {name for name, pod in selected.items() if _has_a_port(service, pod)} - written
        surplus = written - selected.keys()
        if missing or surplus:
            place = f'Service "{service["metadata"]["namespace"]}/{name}"'
            problems.append(f"{place}: its EndpointSlices lag behind pods {', '.join(sorted(missing | surplus))}")
    return problems


def _ready_pods_in(slices: Sequence[Object], service: str) -> set[str]:
    return {
        endpoint["targetRef"]["name"]
        for piece in slices
        if (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == service
        for endpoint in piece.get("endpoints") or ()
        if (endpoint.get("targetRef") or {}).get("kind") == "Pod"
        and (endpoint.get("conditions") or {}).get("ready") is not False
    }


def _is_selected(service: Object, pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in service["spec"]["selector"].items()):
        return False
    if pod["metadata"].get("deletionTimestamp") or not (pod.get("status") or {}).get("podIP"):
        return False
    return is_ready(pod) or bool(service["spec"].get("publishNotReadyAddresses"))


def _has_a_port(service: Object, pod: Object) -> bool:
    """Whether any port of the Service exists in the pod; a named targetPort that no container has makes no endpoint."""
    names = {port.get("name") for container in pod["spec"]["containers"] for port in container.get("ports") or ()}
    ports = service["spec"].get("ports") or ()
    return not ports or any(
        not isinstance(port.get("targetPort"), str) or port["targetPort"] in names for port in ports
    )


def wait_for_load_balancers(
    layout: Layout, client: Client, status: LabStatus, objects: Iterable[Named], deadline: Deadline
) -> list[str]:
    """Wait until the lab's load balancers serve the Services among ``objects`` as they are now.

    A Service with endpoints gets `SERVE_PATIENCE` until some node may serve it: perhaps none ever will.

    Returns:
        What is in the way of those that get no address, in words; nobody need wait for them.

    Raises:
        UserError: naming those that were not looked at when the time was over.
    """
    services = [named for named in objects if named.kind == SERVICE]
    patience = Deadline(SERVE_PATIENCE if any(node.proxy != "none" for node in status.nodes) else 0)
    notes: dict[Named, str] = {}

    def problems() -> list[str]:
        said = record.read(layout) or status.load_balancers
        found = [(named, *_unbalanced(client, said, named)) for named in services]
        notes.update({named: f"{named}: {reason}" for named, _, reason in found if reason})
        return [f"{named}: {problem}" for named, problem, _ in found if problem and (patience.left or problem != _IDLE)]

    deadline.until(problems)
    return list(notes.values())


def _unbalanced(client: Client, said: LoadBalancersStatus, named: Named) -> tuple[str, str]:
    """What is to be waited for, and what is wrong for good; both empty when all is well or not the lab's business."""
    try:
        obj = client.get(SERVICE, named.name, named.namespace)
    except NotFound:
        return "", ""
    if kind_of(obj, said.kind) == NONE:
        return "", ""
    text = f"{named.namespace}/{named.name}"
    entry = next((one for one in said.services if one.service == text), None)
    if entry is None or int(entry.observed) < int(obj["metadata"]["resourceVersion"]):
        return "its load balancer has not looked at it yet", ""
    if entry.reason or entry.nodes:
        return "", entry.reason
    return _IDLE if _ready_pods_in(client.list(ENDPOINT_SLICE, named.namespace).items, named.name) else "", ""


def wait_for_nodes(layout: Layout, status: LabStatus, version: str, deadline: Deadline) -> Programmed:
    """Wait until every node that runs our proxy holds the state of ``version`` in its kernel.

    Raises:
        UserError: naming the nodes that do not when the time is over.
    """
    asked = [node for node in status.nodes if node.proxy == "kproxy"]
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        problems = list(filter(None, pool.map(lambda node: _wait_for_node(layout, node, version, deadline), asked)))
    if problems:
        raise deadline.over(problems)
    others = tuple(node.name for node in status.nodes if node.proxy != "kproxy")
    return Programmed(tuple(node.name for node in asked), others)


def _wait_for_node(layout: Layout, node: NodeStatus, version: str, deadline: Deadline) -> str:
    """What is wrong, in words; empty when the node holds ``version``."""
    problem = "its proxy was not asked: no time was left"
    while deadline.left:
        try:
            answer = programmed(layout, node.name, version=version, seconds=deadline.left)
        except (OSError, NetnsError) as error:
            problem = f"its proxy does not answer: {error}"
            time.sleep(min(PAUSE, deadline.left))
            continue
        if int(answer.get("resourceVersion", 0)) >= int(version):
            return ""
        problem = str(answer.get("lastError") or f"its rules are at resourceVersion {answer.get('resourceVersion')}")
    return f"{node.name}: {problem}"
