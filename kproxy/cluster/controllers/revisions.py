"""The revisions of StatefulSets and DaemonSets: every template they have had, as ControllerRevision objects.

Law: ``Revisions`` alone writes these objects; what a revision holds is never changed, only its number. Rules:
Kubernetes, pkg/controller/history.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from kproxy.api.kinds import CONTROLLER_REVISION
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster.controllers.informer import Informers, name_of
from kproxy.cluster.controllers.ownership import controller_of, controller_reference
from kproxy.cluster.identity import NAME_ALPHABET
from kproxy.errors import AlreadyExists

HASH_LABEL = "controller-revision-hash"
"""On a pod of a StatefulSet (the name of its revision) or DaemonSet (the hash alone), as Kubernetes has it."""
_BY_CONTROLLER = "by-controller"
_HASH_LENGTH = 10


@dataclass(frozen=True)
class Revision:
    """One template that a workload has or had.

    Attributes:
        name: of the object that holds it.
        template: the pods' template.
    """

    name: str
    template: Object

    @property
    def hash(self) -> str:
        """What its name ends in."""
        return self.name.rpartition("-")[2]


def revision_hash(template: Object) -> str:
    """A short name for a template, in Kubernetes' letters (by another hash: Kubernetes' is of a Go struct)."""
    digest = hashlib.sha256(msgspec.json.encode(template, order="sorted")).digest()
    return "".join(NAME_ALPHABET[byte % len(NAME_ALPHABET)] for byte in digest[:_HASH_LENGTH])


class Revisions:
    """The revisions of all workloads of a kind.

    Args:
        client: for writes.
        informers: for reads; to be made before they run.
    """

    def __init__(self, client: Client, informers: Informers) -> None:
        self._client = client
        self._objects = informers.of(CONTROLLER_REVISION)
        self._objects.add_index(_BY_CONTROLLER, _controllers_uid)

    def current(self, owner: Object) -> Revision:
        """The revision of the workload's template; it is made, or becomes the newest again.

        Raises:
            ApiError: it could not be written.
        """
        wanted = _data(owner)
        known = self._of(owner)
        newest = max((item["revision"] for item in known), default=0)
        same = next((item for item in known if item["data"] == wanted), None)
        if same is None:
            same = self._make(owner, wanted, newest + 1)
        elif same["revision"] != newest:
            same = self._client.update(CONTROLLER_REVISION, {**same, "revision": newest + 1})
            self._objects.observe(same)
        return Revision(same["metadata"]["name"], owner["spec"]["template"])

    def named(self, owner: Object, name: str) -> Revision | None:
        """The workload's revision of that name, or None."""
        found = self._objects.get((owner["metadata"]["namespace"], name))
        if found is None or (controller_of(found) or {}).get("uid") != owner["metadata"]["uid"]:
            return None
        template = {key: value for key, value in found["data"]["spec"]["template"].items() if key != "$patch"}
        return Revision(name, copy.deepcopy(template))

    def trim(self, owner: Object, in_use: Collection[str]) -> None:
        """Deletes the oldest revisions above the workload's limit, except those in use."""
        limit = owner["spec"].get("revisionHistoryLimit", 10)
        idle = [item for item in self._of(owner) if item["metadata"]["name"] not in in_use]
        for item in idle[: max(0, len(idle) - limit)]:
            namespace, name = name_of(item)
            self._client.delete(CONTROLLER_REVISION, name, namespace, uid=item["metadata"]["uid"])
            self._objects.forget(item)

    def _of(self, owner: Object) -> list[Object]:
        """Its revisions, oldest first."""
        found = self._objects.indexed(_BY_CONTROLLER, owner["metadata"]["uid"])
        return sorted(found, key=lambda item: int(item["revision"]))

    def _make(self, owner: Object, data: Object, number: int) -> Object:
        metadata = owner["metadata"]
        name_hash = revision_hash(owner["spec"]["template"])
        labels = (owner["spec"]["template"].get("metadata") or {}).get("labels") or {}
        obj: Object = {
            "apiVersion": CONTROLLER_REVISION.api_version,
            "kind": CONTROLLER_REVISION.name,
            "metadata": {
                "name": f"{metadata['name']}-{name_hash}",
                "namespace": metadata["namespace"],
                "labels": {**labels, HASH_LABEL: name_hash},
                "annotations": _without_apply(metadata.get("annotations") or {}),
                "ownerReferences": [controller_reference(owner)],
            },
            "data": data,
            "revision": number,
        }
        try:
            made = self._client.create(CONTROLLER_REVISION, obj)
        except AlreadyExists:  # made by us before a restart, and not seen yet
            made = self._client.get(CONTROLLER_REVISION, obj["metadata"]["name"], metadata["namespace"])
        self._objects.observe(made)
        return made


def _data(owner: Object) -> Object:
    """What `kubectl rollout undo` patches the workload with (stateful_set_utils.go, getPatch)."""
    return {"spec": {"template": {**owner["spec"]["template"], "$patch": "replace"}}}


def _without_apply(annotations: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if not key.startswith("kubectl.kubernetes.io/")}


def _controllers_uid(obj: Object) -> Iterable[str]:
    owner = controller_of(obj)
    return () if owner is None else (owner["uid"],)
