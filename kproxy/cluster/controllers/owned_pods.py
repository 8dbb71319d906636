"""The pods of a workload: which are its own, and how they are made and deleted, for every kind of workload alike.

Rules: Kubernetes, pkg/controller/controller_utils.go and controller_ref_manager.go.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from kproxy.api.kinds import POD, Kind
from kproxy.api.labels import matches
from kproxy.api.types import LabelSelector, Object
from kproxy.client import Client
from kproxy.cluster.controllers.endpoint_slices import is_pod_ready
from kproxy.cluster.controllers.informer import Informer, Informers, Name, name_of
from kproxy.cluster.controllers.ownership import controller_change, controller_of, controller_reference
from kproxy.cluster.events import Recorder
from kproxy.errors import AlreadyExists, ApiError, NotFound

_BY_CONTROLLER = "by-controller"
"""The index of pods by the uid of the object that manages them."""
_ORPHANS = "orphans"
"""The index of pods that nobody manages by their namespace."""


def selector_of(workload: Object) -> LabelSelector:
    """A workload's selector."""
    return msgspec.convert(workload["spec"]["selector"], LabelSelector)


def is_selected(workload: Object, obj: Object) -> bool:
    """Whether a workload's selector fits an object's labels."""
    return matches(selector_of(workload), obj["metadata"].get("labels") or {})


def has_ended(pod: Object) -> bool:
    """Whether the pod has done its work or failed for good."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Whether a pod counts: it has not ended and is not being deleted."""
    return not has_ended(pod) and not pod["metadata"].get("deletionTimestamp")


def unavailable_for(pod: Object, min_ready_seconds: int, now: datetime) -> float | None:
    """Seconds until the pod counts as available; 0 when it does, None while it is not ready (podutils.IsPodAvailable).

    Args:
        pod: the pod.
        min_ready_seconds: how long it has to have been ready.
        now: the time, with its zone.
    """
    if not is_pod_ready(pod):
        return None
    if not min_ready_seconds:
        return 0.0
    since = _ready_since(pod)
    if since is None:
        return None
    return max(0.0, min_ready_seconds - (now - since).total_seconds())


def _ready_since(pod: Object) -> datetime | None:
    for condition in pod["status"]["conditions"]:
        if condition["type"] == "Ready" and condition.get("lastTransitionTime"):
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None


class Availability:
    """Which pods are available, and when to look again.

    Args:
        min_ready_seconds: of the workload.

    Attributes:
        next_look: seconds until a pod that is ready becomes available; None when none is about to.
    """

    def __init__(self, min_ready_seconds: int) -> None:
        self.next_look: float | None = None
        self._min_ready_seconds = min_ready_seconds
        self._now = datetime.now(UTC)

    def is_available(self, pod: Object) -> bool:
        """Whether the pod is."""
        left = unavailable_for(pod, self._min_ready_seconds, self._now)
        if left:
            self.next_look = left if self.next_look is None else min(left, self.next_look)
        return left == 0


def pod_from_template(owner: Object, *, name: str = "") -> Object:
    """A new pod of a workload's template; without a name the server makes one up."""
    template = copy.deepcopy(owner["spec"]["template"])
    metadata = template.get("metadata") or {}
    named = {"name": name} if name else {"generateName": f"{owner['metadata']['name']}-"}
    return {
        "apiVersion": POD.api_version,
        "kind": POD.name,
        "metadata": {
            **named,
            "namespace": owner["metadata"]["namespace"],
            "labels": metadata.get("labels") or {},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": template["spec"],
    }


class OwnedPods:
    """The pods that objects of one kind manage.

    Args:
        client: for writes.
        informers: for reads; to be made before they run.
        kind: of the owners.
        recorder: told of every pod that is made or deleted.
    """

    def __init__(self, client: Client, informers: Informers, kind: Kind, recorder: Recorder) -> None:
        self._client = client
        self._pods: Informer = informers.of(POD)
        self._kind = kind
        self._recorder = recorder
        self._pods.add_index(_BY_CONTROLLER, _controllers_uid)
        self._pods.add_index(_ORPHANS, _namespace_of_orphan)

    def owned(self, owner: Object) -> list[Object]:
        """All pods that it manages, by name; those that have ended or are being deleted too."""
        return self._pods.indexed(_BY_CONTROLLER, owner["metadata"]["uid"])

    def claim(self, owner: Object) -> list[Object]:
        """Its pods, after letting go those whose labels no longer fit and taking in orphans that do."""
        selector = selector_of(owner)
        for pod in self.owned(owner):
            if not matches(selector, pod["metadata"].get("labels") or {}):
                self._set_owner(pod, None)
        for pod in self._pods.indexed(_ORPHANS, owner["metadata"]["namespace"]):
            if is_active(pod) and matches(selector, pod["metadata"].get("labels") or {}):
                self._set_owner(pod, owner)
        return self.owned(owner)

    def managers(self, pod: Object, owners: Informer) -> Iterable[Name]:
        """The names of the objects that have to look at a change of this pod: its manager, or all that would take it.

        Args:
            pod: as it is, or was.
            owners: all objects of the kind.
        """
        return managers_of(pod, self._kind, owners)

    def create(self, owner: Object, pod: Object) -> None:
        """Makes a pod.

        Raises:
            ApiError: it was refused, which has been told.
        """
        try:
            made = self._client.create(POD, pod)
        except AlreadyExists:
            raise
        except ApiError as error:
            self._recorder.warning(owner, "FailedCreate", f"Error creating: {error}")
            raise
        self._pods.observe(made)
        self._recorder.normal(owner, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")

    def delete(self, owner: Object, pod: Object) -> None:
        """Begins to delete a pod; one that is gone already is fine."""
        namespace, name = name_of(pod)
        self._recorder.normal(owner, "SuccessfulDelete", f"Deleted pod: {name}")
        with contextlib.suppress(NotFound):
            deleted = self._client.delete(POD, name, namespace, uid=pod["metadata"]["uid"])
            if deleted["metadata"].get("deletionTimestamp"):
                self._pods.observe(deleted)
                return
        self._pods.forget(pod)

    def _set_owner(self, pod: Object, owner: Object | None) -> None:
        namespace, name = name_of(pod)
        self._pods.observe(self._client.patch(POD, name, controller_change(pod, owner), namespace))


def managers_of(obj: Object, kind: Kind, owners: Informer) -> Iterable[Name]:
    """The names of the objects that have to look at a change of this one: its manager, or all that would take it.

    Args:
        obj: as it is, or was.
        kind: of the managers.
        owners: all objects of that kind.
    """
    namespace = obj["metadata"]["namespace"]
    owner = controller_of(obj)
    if owner is not None:
        if owner["kind"] == kind.name:
            yield namespace, owner["name"]
        return
    for candidate in owners.all_of(namespace):
        if is_selected(candidate, obj):
            yield name_of(candidate)


def _controllers_uid(pod: Object) -> Iterable[str]:
    owner = controller_of(pod)
    return () if owner is None else (owner["uid"],)


def _namespace_of_orphan(pod: Object) -> Iterable[str]:
    return (pod["metadata"]["namespace"],) if controller_of(pod) is None else ()
