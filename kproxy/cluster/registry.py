"""What create, update, patch, delete and apply mean for each kind, between the HTTP API and the store.

Law: everything that a request changes happens in one transaction of the store; an object that is stored has passed
``known_fields.check``, defaulting, admission and validation, in this order.
"""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import SystemRandom
from typing import Any, TypeVar

import msgspec

from kproxy.api import defaults, known_fields, validation
from kproxy.api.field_errors import DUPLICATE, FORBIDDEN, NOT_FOUND, REQUIRED, UNKNOWN_FIELD, FieldError, required
from kproxy.api.kinds import (
    BY_API,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    KINDS,
    NAMESPACE,
    NODE,
    POD,
    REPLICA_SET,
    SERVICE,
    SERVICE_CIDR,
    Kind,
)
from kproxy.api.merge_patch import merge_patch
from kproxy.api.types import Object
from kproxy.cluster import statuses, warnings
from kproxy.cluster.admission import (
    Claims,
    ClusterSettings,
    ServiceAdmission,
    hide,
    needs_node_port,
    networks_of,
)
from kproxy.cluster.store import Store, Transaction
from kproxy.errors import ApiError

INITIAL_NAMESPACES = ("default", "kube-system", "kube-public")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""No vowels and nothing that looks like another letter (Kubernetes: apimachinery/pkg/util/rand)."""

_WITH_GENERATION = frozenset((DEPLOYMENT, REPLICA_SET, ENDPOINT_SLICE, POD))
_WITH_STATUS = frozenset((NAMESPACE, NODE, POD, SERVICE, DEPLOYMENT, REPLICA_SET, SERVICE_CIDR))
_FIRST_STATUS: Mapping[Kind, Object] = {
    NAMESPACE: {"phase": "Active"},
    POD: {"phase": "Pending"},
    SERVICE: {"loadBalancer": {}},
    DEPLOYMENT: {},
    REPLICA_SET: {"replicas": 0},
}
_SERVER_METADATA = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
_ALLOCATED = ("spec.clusterIP", "spec.ipFamil", "spec.healthCheckNodePort")
_SPARABLE = ("spec.", "metadata.annotations", "metadata.labels")
"""Fields that may be of a wrong type, and the object still has a kind and a name by which to look at the rest."""
_GENERATED_NAME_TRIES = 8
_LONGEST_GRACE = 2**31 - 1  # seconds; more than a date can hold is a mistake anyway

T = TypeVar("T")


@dataclass(frozen=True)
class DeleteOptions:
    """How to delete.

    Attributes:
        grace_seconds: for pods; None means the pod's own period, 0 removes the object at once.
        uid: when not empty, the only uid that is meant.
        resource_version: when not empty, the only resourceVersion that is meant.
    """

    grace_seconds: int | None = None
    uid: str = ""
    resource_version: str = ""


@dataclass(frozen=True)
class Answer:
    """An object as it is (or for a dry run would be) stored, and what a person should know about it."""

    object: Object
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Manner:
    """How a write is meant.

    Attributes:
        subresource: "status", or "" for the object itself.
        is_thorough: name everything that is wrong, also behind what cannot be allocated.
    """

    subresource: str = ""
    is_thorough: bool = False


_PLAIN = _Manner()
_THOROUGH = _Manner(is_thorough=True)


class Registry:
    """The objects of one lab and the rules that they keep.

    Usable from any thread; writes happen one at a time.

    Args:
        store: where the objects are.
        settings: the cluster's ranges and families.
    """

    def __init__(self, store: Store, settings: ClusterSettings) -> None:
        self._store = store
        self._settings = settings
        self._claims = Claims(store.all_of(SERVICE)[0])
        self._writing = threading.Lock()

    def bootstrap(self) -> None:
        """Makes what every cluster has from its start: the first namespaces and the ServiceCIDR ``kubernetes``."""
        self._transact(self._bootstrap)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """The object of that name.

        Raises:
            NotFound: there is none.
        """
        found = self._store.get(kind, namespace, name)
        if found is None:
            raise statuses.not_found(kind, name)
        return found

    def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Answer:
        """Stores a new object.

        Raises:
            AlreadyExists, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            named = _addressed(kind, namespace, obj)
            _check_namespace(transaction, kind, named["metadata"])
            return self._create(transaction, kind, named)

        return self._transact(change, dry_run)

    def update(
        self, kind: Kind, key: tuple[str, str], obj: Object, subresource: str = "", *, dry_run: bool = False
    ) -> Answer:
        """Replaces an object, or its status.

        Raises:
            NotFound, Conflict, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            old = self._existing(transaction, kind, key)
            named = _addressed(kind, key[0], obj, name=key[1])
            return self._update(transaction, kind, old, named, _Manner(subresource))

        return self._transact(change, dry_run)

    def patch(
        self, kind: Kind, key: tuple[str, str], patch: Object, subresource: str = "", *, dry_run: bool = False
    ) -> Answer:
        """Merges a patch into an object, or into its status.

        Raises:
            NotFound, Conflict, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            old = self._existing(transaction, kind, key)
            patched = _addressed(kind, key[0], merge_patch(old, patch), name=key[1])
            return self._update(transaction, kind, old, patched, _Manner(subresource))

        return self._transact(change, dry_run)

    def bind(self, namespace: str, name: str, node: str) -> None:
        """Gives a pod its node (the ``binding`` subresource).

        Raises:
            NotFound: no such pod.
            Conflict: it has a node, or is being deleted.
        """

        def change(transaction: Transaction) -> None:
            pod = self._existing(transaction, POD, (namespace, name))
            if pod["spec"].get("nodeName"):
                raise statuses.conflict(
                    POD, name, f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
                )
            if pod["metadata"].get("deletionTimestamp"):
                raise statuses.conflict(POD, name, f"pod {name} is being deleted, cannot be assigned to a host")
            status = {**pod["status"], "conditions": _scheduled(pod["status"].get("conditions") or ())}
            transaction.put(POD, {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status})

        self._transact(change)

    def delete(
        self, kind: Kind, key: tuple[str, str], options: DeleteOptions | None = None, *, dry_run: bool = False
    ) -> Object:
        """Deletes an object, or marks it as being deleted while something still has to end; returns its last state.

        Raises:
            NotFound, Conflict, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Object:
            return self._delete(transaction, kind, key, options or DeleteOptions())

        return self._transact(change, dry_run)

    def apply(self, documents: Sequence[Mapping[str, Any]], *, dry_run: bool = False, delete: bool = False) -> Object:
        """Makes all documents so in one transaction, or none of them.

        An object that exists is changed as ``kubectl apply`` does it: what the last apply named and this one does not
        is removed, what others have set stays.

        Returns:
            ``{"results": [...], "warnings": [...], "resourceVersion": "..."}``.

        Raises:
            Invalid: ``details.causes`` has every error of every document, each with its ``index``.
        """
        applied = _Apply(self, documents)
        result = self._transact(applied.delete_all if delete else applied.apply_all, dry_run)
        for entry in result["results"] if not dry_run else ():
            entry.pop("object", None)
        return result

    # ----- inside a transaction

    def _transact(self, change: Callable[[Transaction], T], dry_run: bool = False) -> T:
        with self._writing:
            try:
                result = self._store.transact(change, dry_run=dry_run)
            except BaseException:
                self._claims.roll_back()
                raise
            if dry_run:
                self._claims.roll_back()
            self._claims.keep()
            return result

    def _bootstrap(self, transaction: Transaction) -> None:
        for name in INITIAL_NAMESPACES:
            if transaction.get(NAMESPACE, "", name) is None:
                self._create(transaction, NAMESPACE, {**_head(NAMESPACE), "metadata": {"name": name}})
        if transaction.get(SERVICE_CIDR, "", "kubernetes") is None:
            spec = {"cidrs": list(self._settings.service_cidrs)}
            self._create(
                transaction, SERVICE_CIDR, {**_head(SERVICE_CIDR), "metadata": {"name": "kubernetes"}, "spec": spec}
            )

    def _existing(self, transaction: Transaction, kind: Kind, key: tuple[str, str]) -> Object:
        found = transaction.get(kind, *key)
        if found is None:
            raise statuses.not_found(kind, key[1])
        return found

    def _create(self, transaction: Transaction, kind: Kind, obj: Object, manner: _Manner = _PLAIN) -> Answer:
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            raise statuses.bad_request("resourceVersion should not be set on objects to be created")
        created, errors = self._admitted(transaction, kind, obj, None, manner)
        name = str(created["metadata"].get("name") or metadata.get("generateName", ""))
        if errors:
            raise statuses.invalid(kind, name, errors)
        if transaction.get(kind, metadata.get("namespace", ""), name) is not None:
            raise statuses.already_exists(kind, name)
        self._hold(kind, created)
        stored = transaction.put(kind, created)
        return Answer(stored, tuple(warnings.of_object(kind, obj, stored, self._settings)))

    def _update(self, transaction: Transaction, kind: Kind, old: Object, obj: Object, manner: _Manner) -> Answer:
        metadata, name = obj["metadata"], old["metadata"]["name"]
        if metadata.get("uid") not in (None, "", old["metadata"]["uid"]):
            raise statuses.conflict(kind, name, _precondition("UID", metadata["uid"], old["metadata"]["uid"]))
        if metadata.get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
            raise statuses.modified(kind, name)
        if manner.subresource == "status":
            obj = {**old, "status": obj.get("status") or {}}
        elif kind in _WITH_STATUS:
            obj = {**obj, "status": old.get("status", {})}
        updated, errors = self._admitted(transaction, kind, obj, old, manner)
        if errors:
            raise statuses.invalid(kind, name, errors)
        self._hold(kind, updated)
        if updated == old:
            return Answer(old)
        if old["metadata"].get("deletionTimestamp") and _may_go(kind, old, updated):
            return Answer(self._remove(transaction, kind, old))
        stored = transaction.put(kind, updated)
        told = () if manner.subresource else warnings.of_object(kind, obj, stored, self._settings)
        return Answer(stored, tuple(told))

    def _admitted(
        self, transaction: Transaction, kind: Kind, obj: Object, old: Object | None, manner: _Manner
    ) -> tuple[Object, list[FieldError]]:
        """The object as it would be stored, and what is wrong with it.

        What cannot be allocated is, as in Kubernetes, all that is said; a thorough look goes on and finds everything.
        """
        unknown = known_fields.check(obj)
        if _is_ill_typed(unknown):
            return obj, unknown
        admitted = defaults.default(obj)
        if old is None:
            _begin(kind, admitted, transaction)
        else:
            _continue(kind, admitted, old)
        allocation_errors: list[FieldError] = []
        if kind is SERVICE:
            networks = networks_of(transaction.all_of(SERVICE_CIDR), self._settings)
            admission = ServiceAdmission(self._settings, self._claims, networks)
            admitted, allocation_errors = admission.admit(admitted, old, is_thorough=manner.is_thorough)
        if allocation_errors and not manner.is_thorough:
            return admitted, unknown + allocation_errors
        validation_errors = validation.validate(admitted, old)
        if allocation_errors:  # what could not be allocated is not also missing
            validation_errors = [error for error in validation_errors if not error.field.startswith(_ALLOCATED)]
        if kind is SERVICE:
            hide(admitted)
        errors = unknown + allocation_errors
        return admitted, errors + [error for error in validation_errors if error not in errors]

    def errors_instead(self, transaction: Transaction, kind: Kind, obj: Object, old: Object | None) -> list[FieldError]:
        """Everything that is wrong with an applied object that is refused anyway: it is ill-typed, or not the only one.

        Ensures that it is not blamed for what an object of its name applied before it has taken, nor for what follows
        from a field of a wrong type being left out.

        Args:
            transaction: the request's.
            kind: the object's.
            obj: as it was applied.
            old: what was stored before the request; None if there was nothing.
        """
        errors = known_fields.check(obj)
        sound = known_fields.well_typed(obj, errors)
        if _is_ill_typed(known_fields.check(sound)):
            return errors
        other = transaction.get(kind, *_key(obj))
        if kind is SERVICE and other is not None:
            self._claims.release(other)
        merged = sound if old is None else _three_way_merge(old, sound)
        found = self._admitted(transaction, kind, merged, old, _THOROUGH)[1]
        missing = [error.field for error in errors if error.kind is not UNKNOWN_FIELD]
        return errors + [error for error in found if error not in errors and not _follows(error, missing)]

    def _hold(self, kind: Kind, obj: Object) -> None:
        if kind is SERVICE:
            self._claims.hold(obj)

    def _delete(self, transaction: Transaction, kind: Kind, key: tuple[str, str], options: DeleteOptions) -> Object:
        old = self._existing(transaction, kind, key)
        _check_preconditions(kind, old, options)
        if kind is NAMESPACE and key[1] in INITIAL_NAMESPACES:
            raise statuses.forbidden(kind, key[1], "this namespace may not be deleted")
        grace = _grace_seconds(kind, old, options)
        has_content = kind is NAMESPACE and _has_content(transaction, key[1])
        if not grace and not has_content and not old["metadata"].get("finalizers"):
            return self._remove(transaction, kind, old)
        dying = _dying(kind, old, grace)
        return old if dying == old else transaction.put(kind, dying)

    def _remove(self, transaction: Transaction, kind: Kind, old: Object) -> Object:
        if kind is SERVICE:
            self._claims.release(old)
        return transaction.delete(kind, *_key(old))


class _Apply:
    """One apply or delete of many documents: errors and warnings by document, results in the documents' order."""

    def __init__(self, registry: Registry, documents: Sequence[Mapping[str, Any]]) -> None:
        self._registry = registry
        self._objects = [document.get("object") for document in documents]
        self._causes: list[Object] = []
        self._results: dict[int, Object] = {}
        self._warnings: list[Object] = []

    def apply_all(self, transaction: Transaction) -> Object:
        """Applies every document, and refuses all when one is refused."""
        before: dict[tuple[Kind, str, str], Object | None] = {}
        for index in self._in_order():
            read = self._read(index)
            if read is None:
                continue
            kind, obj = read
            key = (kind, *_key(obj))
            is_repeated = key in before
            old = before.setdefault(key, transaction.get(kind, *key[1:]))
            if is_repeated:
                self._blame(index, [FieldError("metadata.name", DUPLICATE, key[2], "two documents have this name")])
            if is_repeated or _is_ill_typed(known_fields.check(obj)):
                self._blame(index, self._registry.errors_instead(transaction, kind, obj, old))
            else:
                self._one(index, kind, obj, transaction)
        for index, message in warnings.of_apply(
            {index: entry["object"] for index, entry in self._results.items()}, transaction
        ):
            self._warnings.append({"index": index, "message": message})
        return self._finish(transaction)

    def delete_all(self, transaction: Transaction) -> Object:
        """Deletes every object that a document names, and none when one of them is not there."""
        for index in range(len(self._objects)):
            read = self._read(index)
            if read is None:
                continue
            kind, obj = read
            key = _key(obj)
            if transaction.get(kind, *key) is None:
                self._blame(index, [FieldError("metadata.name", NOT_FOUND, key[1])])
                continue
            try:
                deleted = self._registry._delete(transaction, kind, key, DeleteOptions())
            except ApiError as error:
                self._blame_status(index, error)
                continue
            self._record(index, kind, deleted, "deleted")
        return self._finish(transaction)

    def _in_order(self) -> list[int]:
        """Namespaces before what lives in them, chosen addresses and node ports before automatic ones."""
        return sorted(range(len(self._objects)), key=lambda index: (_rank(self._objects[index]), index))

    def _read(self, index: int) -> tuple[Kind, Object] | None:
        obj = self._objects[index]
        if not isinstance(obj, dict):
            self._blame(index, [required("", "a document is a mapping with apiVersion, kind and metadata")])
            return None
        errors = known_fields.check(obj)
        kind = _kind_of(obj)
        if kind is None:
            errors = errors or [FieldError("kind", NOT_FOUND, obj["kind"], "the lab's API does not serve this kind")]
        if kind is None or _is_ill_typed(error for error in errors if not error.field.startswith(_SPARABLE)):
            self._blame(index, errors)
            return None
        obj = _with_default_namespace(kind, obj)
        if not obj["metadata"].get("name"):
            self._blame(index, [required("metadata.name", "name is required")])
            return None
        return kind, obj

    def _one(self, index: int, kind: Kind, obj: Object, transaction: Transaction) -> None:
        old = transaction.get(kind, *_key(obj))
        try:
            if old is None:
                self._check_namespace(index, kind, obj, transaction)
                named = _with_last_applied(obj, obj)
                answer = self._registry._create(transaction, kind, named, _THOROUGH)
            else:
                merged = _three_way_merge(old, obj)
                answer = self._registry._update(transaction, kind, old, merged, _THOROUGH)
        except ApiError as error:
            self._blame_status(index, error)
            return
        outcome = "created" if old is None else "unchanged" if answer.object is old else "configured"
        self._record(index, kind, answer.object, outcome)
        told = [*answer.warnings, *warnings.of_document(kind, obj)]
        self._warnings += [{"index": index, "message": message} for message in dict.fromkeys(told)]

    def _check_namespace(self, index: int, kind: Kind, obj: Object, transaction: Transaction) -> None:
        try:
            _check_namespace(transaction, kind, obj["metadata"])
        except ApiError as error:
            self._blame_status(index, error)

    def _record(self, index: int, kind: Kind, obj: Object, outcome: str) -> None:
        namespace, name = _key(obj)
        entry = {"index": index, "kind": kind.name, "namespace": namespace, "name": name}
        self._results[index] = entry | {"outcome": outcome, "object": obj}

    def _blame(self, index: int, errors: Sequence[FieldError]) -> None:
        self._causes += [{"index": index} | error.cause() for error in errors]

    def _blame_status(self, index: int, error: ApiError) -> None:
        details = error.status.get("details", {})
        # The one other object that a refusal is about is the namespace that has to be there.
        field = "metadata.namespace" if details.get("kind") == NAMESPACE.plural else ""
        causes = details.get("causes") or [{"reason": error.reason, "message": str(error), "field": field}]
        self._causes += [{"index": index} | cause for cause in causes]

    def _finish(self, transaction: Transaction) -> Object:
        if self._causes:
            raise statuses.invalid_documents(sorted(self._causes, key=lambda cause: int(cause["index"])))
        results = [self._results[index] for index in sorted(self._results)]
        told = sorted(self._warnings, key=lambda entry: int(entry["index"]))
        return {"results": results, "warnings": told, "resourceVersion": str(transaction.revision)}


def random_suffix(length: int = 5) -> str:
    """What is put behind a generateName."""
    return "".join(SystemRandom().choices(NAME_ALPHABET, k=length))


def now() -> str:
    """The time as Kubernetes writes it: UTC, whole seconds."""
    return _timestamp(datetime.now(UTC))


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _scheduled(conditions: Sequence[Object]) -> list[Object]:
    others = [condition for condition in conditions if condition["type"] != "PodScheduled"]
    return [*others, {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}]


def _is_ill_typed(errors: Iterable[FieldError]) -> bool:
    """Whether the rest cannot be looked at: a field that nobody knows does not stand in the way of the others."""
    return any(error.kind is not UNKNOWN_FIELD for error in errors)


def _follows(error: FieldError, missing: Sequence[str]) -> bool:
    """Whether the error may be there only because the fields ``missing`` were left out of the object."""
    if not missing:
        return False
    is_near = any(error.field.startswith(field) or field.startswith(error.field) for field in missing)
    return is_near or error.kind in (REQUIRED, FORBIDDEN)


def _head(kind: Kind) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.name}


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata.get("name") or ""


def _kind_of(obj: Any) -> Kind | None:
    if not isinstance(obj, dict):
        return None
    named = (obj.get("apiVersion"), obj.get("kind"))
    return BY_API.get((str(named[0]), str(named[1])))


def _addressed(kind: Kind, namespace: str, obj: Object, name: str = "") -> Object:
    """The object with the kind, namespace and name that the request's path gives it.

    Raises:
        ApiError: it says otherwise itself.
    """
    stated = {"apiVersion": obj.get("apiVersion") or kind.api_version, "kind": obj.get("kind") or kind.name}
    if stated != _head(kind):
        raise statuses.bad_request(
            f"{stated['apiVersion']} {stated['kind']} does not belong at this path ({kind.name})"
        )
    metadata = obj.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise statuses.bad_request("metadata is not an object")
    metadata = dict(metadata)
    if kind.namespaced:
        if metadata.setdefault("namespace", namespace) != namespace:
            raise statuses.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
    else:
        metadata.pop("namespace", None)
    if name and metadata.setdefault("name", name) != name:
        raise statuses.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    return {**obj, **stated, "metadata": metadata}


def _check_namespace(transaction: Transaction, kind: Kind, metadata: Object) -> None:
    if not kind.namespaced:
        return
    namespace = transaction.get(NAMESPACE, "", metadata["namespace"])
    if namespace is None:
        raise statuses.not_found(NAMESPACE, metadata["namespace"])
    if namespace["metadata"].get("deletionTimestamp"):
        reason = f"unable to create new content in namespace {metadata['namespace']} because it is being terminated"
        raise statuses.forbidden(kind, metadata.get("name", ""), reason)


def _begin(kind: Kind, obj: Object, transaction: Transaction) -> None:
    """Gives a new object what only the server gives."""
    metadata = obj.setdefault("metadata", {})
    for name in (*_SERVER_METADATA, "resourceVersion", "managedFields", "selfLink"):
        metadata.pop(name, None)
    if metadata.get("generateName") and not metadata.get("name"):
        metadata["name"] = _generated_name(kind, metadata, transaction)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()
    if kind in _WITH_GENERATION:
        metadata["generation"] = 1
    if kind is NAMESPACE:
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata.get("name", "")
    if kind in _FIRST_STATUS:
        obj["status"] = copy.deepcopy(_FIRST_STATUS[kind])


def _generated_name(kind: Kind, metadata: Object, transaction: Transaction) -> str:
    base = str(metadata["generateName"])[: 63 - 5]  # Kubernetes: names.maxGeneratedNameLength
    name = base + random_suffix()
    for _ in range(_GENERATED_NAME_TRIES):
        if transaction.get(kind, metadata.get("namespace", ""), name) is None:
            break
        name = base + random_suffix()
    return name


def _continue(kind: Kind, obj: Object, old: Object) -> None:
    """Keeps what only the server changes."""
    metadata, before = obj["metadata"], old["metadata"]
    for name in (*_SERVER_METADATA, "resourceVersion"):
        metadata.pop(name, None)
        if name in before:
            metadata[name] = before[name]
    without_meaning = ("metadata", "status")
    changed = any(obj.get(name) != old.get(name) for name in {*obj, *old} - set(without_meaning))
    if kind in _WITH_GENERATION and changed:
        metadata["generation"] = before.get("generation", 0) + 1


def _check_preconditions(kind: Kind, old: Object, options: DeleteOptions) -> None:
    for field, wanted in (("uid", options.uid), ("resourceVersion", options.resource_version)):
        has = old["metadata"][field]
        if wanted and wanted != has:
            label = "UID" if field == "uid" else "ResourceVersion"
            raise statuses.conflict(kind, old["metadata"]["name"], _precondition(label, wanted, has))


def _precondition(label: str, wanted: str, has: str) -> str:
    return f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {has}"


def _grace_seconds(kind: Kind, old: Object, options: DeleteOptions) -> int:
    """Seconds that the object stays marked before it goes (Kubernetes: podStrategy.CheckGracefulDelete)."""
    if kind is not POD:
        return 0
    if not old["spec"].get("nodeName") or old.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    grace = options.grace_seconds
    if grace is None:
        grace = old["spec"].get("terminationGracePeriodSeconds", 30)
    return min(max(0, int(grace)), _LONGEST_GRACE)


def _dying(kind: Kind, old: Object, grace: int) -> Object:
    """The object marked as being deleted; a second delete can only shorten its grace."""
    metadata = dict(old["metadata"])
    before = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata or (before is not None and grace < before):
        metadata["deletionTimestamp"] = _timestamp(datetime.now(UTC) + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
    dying = {**old, "metadata": metadata}
    if kind is NAMESPACE:
        dying["status"] = {**old.get("status", {}), "phase": "Terminating"}
    return dying


def _may_go(kind: Kind, old: Object, updated: Object) -> bool:
    """Whether the last thing that kept a dying object is gone."""
    had, has = (bool(obj["metadata"].get("finalizers")) for obj in (old, updated))
    return had and not has and not (kind is POD and updated["metadata"].get("deletionGracePeriodSeconds"))


def _has_content(transaction: Transaction, namespace: str) -> bool:
    return any(transaction.all_of(kind, namespace) for kind in KINDS if kind.namespaced)


def _with_default_namespace(kind: Kind, obj: Object) -> Object:
    metadata = dict(obj.get("metadata") or {})
    if kind.namespaced:
        metadata["namespace"] = metadata.get("namespace") or "default"
    else:
        metadata.pop("namespace", None)
    return {**obj, "metadata": metadata}


def _rank(obj: Any) -> int:
    kind = _kind_of(obj)
    if kind is NAMESPACE:
        return 0
    if kind is not SERVICE or not isinstance(obj.get("spec"), dict):
        return 1
    spec = obj["spec"]
    ports = spec.get("ports") if isinstance(spec.get("ports"), list) else []
    has_ports = all(isinstance(port, dict) and port.get("nodePort") for port in ports or ())
    has_address = spec.get("clusterIP") or spec.get("clusterIPs")
    return 1 if has_address and (has_ports or not needs_node_port(spec)) else 2 if has_ports and ports else 3


def _with_last_applied(obj: Object, document: Object) -> Object:
    """The object with the annotation by which the next apply knows what this one named (kubectl's own)."""
    metadata = {key: value for key, value in document["metadata"].items() if key != "annotations"}
    annotations = document["metadata"].get("annotations") or {}
    named = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    recorded = {**document, "metadata": {**metadata, "annotations": named}}
    recorded.pop("status", None)
    text = msgspec.json.encode(recorded, order="sorted").decode() + "\n"
    own = obj["metadata"]
    return {**obj, "metadata": {**own, "annotations": {**(own.get("annotations") or {}), LAST_APPLIED: text}}}


def _three_way_merge(old: Object, document: Object) -> Object:
    annotated = _with_last_applied(document, document)
    before = (old["metadata"].get("annotations") or {}).get(LAST_APPLIED, "{}")
    try:
        last = msgspec.json.decode(before)
    except msgspec.DecodeError:  # somebody else wrote it: then nothing was named before
        last = {}
    merged = merge_patch(old, _removals(last, document))
    return merge_patch(merged, annotated | {"metadata": _without_version(annotated["metadata"])})


def _without_version(metadata: Object) -> Object:
    return {key: value for key, value in metadata.items() if key not in _SERVER_METADATA}


def _removals(last: Any, document: Object) -> Object:
    """A merge patch that removes what ``last`` named and ``document`` does not."""
    removals: Object = {}
    for key, value in last.items() if isinstance(last, dict) else ():
        if key not in document:
            removals[key] = None
        elif isinstance(value, dict) and isinstance(document[key], dict):
            removals[key] = _removals(value, document[key])
    return removals
