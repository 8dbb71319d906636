"""How one object is created, replaced and removed inside a transaction.

Law: an object that is stored has passed ``known_fields.check``, defaulting, admission and validation, in this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kproxy.api import defaults, known_fields, managed_fields, merge_rules, validation
from kproxy.api.field_errors import FORBIDDEN, REQUIRED, UNKNOWN_FIELD, FieldError
from kproxy.api.kinds import NAMESPACE, SERVICE, SERVICE_CIDR, Kind
from kproxy.api.types import Object
from kproxy.cluster import statuses, warnings
from kproxy.cluster.admission import Claims, ClusterSettings, ServiceAdmission, hide, networks_of
from kproxy.cluster.deletion import (
    DeleteOptions,
    check_preconditions,
    dying,
    finalizers_of,
    grace_seconds,
    has_content,
    may_go,
    precondition_failed,
)
from kproxy.cluster.documents import three_way_merge
from kproxy.cluster.identity import WITH_STATUS, begin, carry_on, key_of, now
from kproxy.cluster.store import Transaction

INITIAL_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")

_ALLOCATED = ("spec.clusterIP", "spec.ipFamil", "spec.healthCheckNodePort")


@dataclass(frozen=True)
class Answer:
    """An object as it is (or for a dry run would be) stored, and what a person should know about it."""

    object: Object
    warnings: tuple[str, ...] = ()
    is_new: bool = False


@dataclass(frozen=True)
class Manner:
    """How a write is meant.

    Attributes:
        subresource: "status", or "" for the object itself.
        is_thorough: name everything that is wrong, also behind what cannot be allocated.
        dry_run: leave everything as it is.
        manager: who is noted as the manager of what changes; "" for nobody.
        entries: the managers as they are to be noted, when that has been found out already.
        force: take fields from other managers (server-side apply alone).
        field_validation: what becomes of fields that nobody knows; "" refuses the object with a cause for each.
    """

    subresource: str = ""
    is_thorough: bool = False
    dry_run: bool = False
    manager: str = ""
    entries: tuple[managed_fields.Entry, ...] | None = None
    force: bool = False
    field_validation: Literal["", "Ignore", "Warn", "Strict"] = ""


PLAIN = Manner()
THOROUGH = Manner(is_thorough=True, manager=managed_fields.CLIENT_SIDE_APPLY)


class Writes:
    """The rules by which objects are written; to be used inside a transaction of the store, one at a time.

    Args:
        settings: the cluster's ranges and families.
        claims: which Service has what; changed tentatively.
    """

    def __init__(self, settings: ClusterSettings, claims: Claims) -> None:
        self._settings = settings
        self._claims = claims

    def existing(self, transaction: Transaction, kind: Kind, key: tuple[str, str]) -> Object:
        """The object of that name.

        Raises:
            NotFound: there is none.
        """
        found = transaction.get(kind, *key)
        if found is None:
            raise statuses.not_found(kind, key[1])
        return found

    def create(self, transaction: Transaction, kind: Kind, obj: Object, manner: Manner = PLAIN) -> Answer:
        """Stores a new object.

        Raises:
            AlreadyExists, Invalid, ApiError: it cannot be.
        """
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            raise statuses.bad_request("resourceVersion should not be set on objects to be created")
        obj, told = _with_known_fields(kind, obj, manner)
        created, errors = self._admitted(transaction, kind, obj, None, manner)
        name = str(created["metadata"].get("name") or metadata.get("generateName", ""))
        if errors:
            raise statuses.invalid(kind, name, errors)
        if transaction.get(kind, metadata.get("namespace", ""), name) is not None:
            raise statuses.already_exists(kind, name)
        self._hold(kind, created)
        stored = _told(transaction.put(kind, created), None, manner)
        return Answer(stored, (*told, *warnings.of_object(kind, obj, stored, self._settings)), is_new=True)

    def update(self, transaction: Transaction, kind: Kind, old: Object, obj: Object, manner: Manner) -> Answer:
        """Replaces ``old`` by ``obj``, or one subresource of it.

        Raises:
            Conflict, Invalid, ApiError: it cannot be.
        """
        metadata, name = obj["metadata"], old["metadata"]["name"]
        if metadata.get("uid") not in (None, "", old["metadata"]["uid"]):
            raise statuses.conflict(kind, name, precondition_failed("UID", metadata["uid"], old["metadata"]["uid"]))
        if metadata.get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
            raise statuses.modified(kind, name)
        if manner.subresource == "status":
            obj = {**old, "status": obj.get("status") or {}}
        elif kind in WITH_STATUS:
            obj = {**obj, "status": old.get("status", {})}
        obj, told = _with_known_fields(kind, obj, manner)
        updated, errors = self._admitted(transaction, kind, obj, old, manner)
        if errors:
            raise statuses.invalid(kind, name, errors)
        self._hold(kind, updated)
        if updated == old:
            return Answer(old, told)
        if old["metadata"].get("deletionTimestamp") and may_go(kind, old, updated):
            return Answer(self._remove(transaction, kind, old))
        stored = _told(transaction.put(kind, updated), old, manner)
        if not manner.subresource:
            told = (*told, *warnings.of_object(kind, obj, stored, self._settings))
        return Answer(stored, told)

    def _admitted(
        self, transaction: Transaction, kind: Kind, obj: Object, old: Object | None, manner: Manner
    ) -> tuple[Object, list[FieldError]]:
        """The object as it would be stored, and what is wrong with it.

        What cannot be allocated is, as in Kubernetes, all that is said; a thorough look goes on and finds everything.
        """
        unknown = known_fields.check(obj)
        if is_ill_typed(unknown):
            return obj, unknown
        given = obj["metadata"].get("managedFields")
        admitted = defaults.default({**obj, "metadata": {**obj["metadata"], "managedFields": None}})
        if old is None:
            begin(kind, admitted, transaction)
        else:
            carry_on(kind, admitted, old)
        # What is allocated below belongs to nobody, as in Kubernetes.
        entries = _entries(kind, admitted, old, manner, given)
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
        if entries:
            admitted["metadata"]["managedFields"] = entries
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
        if is_ill_typed(known_fields.check(sound)):
            return errors
        other = transaction.get(kind, *key_of(obj))
        if kind is SERVICE and other is not None:
            self._claims.release(other)
        merged = sound if old is None else three_way_merge(old, sound)
        found = self._admitted(transaction, kind, merged, old, THOROUGH)[1]
        missing = [error.field for error in errors if error.kind is not UNKNOWN_FIELD]
        return errors + [error for error in found if error not in errors and not _follows(error, missing)]

    def _hold(self, kind: Kind, obj: Object) -> None:
        if kind is SERVICE:
            self._claims.hold(obj)

    def delete(self, transaction: Transaction, kind: Kind, key: tuple[str, str], options: DeleteOptions) -> Object:
        """Removes an object, or marks it as being deleted; returns its last state.

        Raises:
            NotFound, Conflict, ApiError: it cannot be.
        """
        old = self.existing(transaction, kind, key)
        check_preconditions(kind, old, options)
        if kind is NAMESPACE and key[1] in INITIAL_NAMESPACES:
            raise statuses.forbidden(kind, key[1], "this namespace may not be deleted")
        grace = grace_seconds(kind, old, options)
        is_full = kind is NAMESPACE and has_content(transaction, key[1])
        finalizers = finalizers_of(old, options)
        if not grace and not is_full and not finalizers:
            return self._remove(transaction, kind, old)
        marked = dying(kind, old, grace, finalizers)
        return old if marked == old else transaction.put(kind, marked)

    def _remove(self, transaction: Transaction, kind: Kind, old: Object) -> Object:
        if kind is SERVICE:
            self._claims.release(old)
        return transaction.delete(kind, *key_of(old))


def _told(stored: Object, old: Object | None, manner: Manner) -> Object:
    """What the client is told of what was stored: when nothing was, it has the resourceVersion that it had."""
    if not manner.dry_run:
        return stored
    metadata = {key: value for key, value in stored["metadata"].items() if key != "resourceVersion"}
    before = {} if old is None else {"resourceVersion": old["metadata"]["resourceVersion"]}
    return {**stored, "metadata": metadata | before}


def _with_known_fields(kind: Kind, obj: Object, manner: Manner) -> tuple[Object, tuple[str, ...]]:
    """The object without fields that nobody knows, if the client puts up with that, and what it is told of them."""
    if not manner.field_validation:
        return obj, ()
    unknown = [error for error in known_fields.check(obj) if error.kind is UNKNOWN_FIELD]
    if not unknown:
        return obj, ()
    told = tuple(f'unknown field "{error.field}"' for error in unknown)
    if manner.field_validation == "Strict":
        raise statuses.bad_request(
            f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: '
            f"strict decoding error: {', '.join(told)}"
        )
    return known_fields.without(obj, unknown), told if manner.field_validation == "Warn" else ()


def _entries(kind: Kind, obj: Object, old: Object | None, manner: Manner, given: Any) -> list[managed_fields.Entry]:
    """Who manages the object once it is written so."""
    if manner.entries is not None:
        return list(manner.entries)
    if not manner.manager:
        return list(old["metadata"].get("managedFields") or ()) if old is not None else []
    if old is None and kind in WITH_STATUS:  # the server's own
        obj = {key: value for key, value in obj.items() if key != "status"}
    manager = managed_fields.Manager(manner.manager, "Update", kind.api_version, manner.subresource)
    rules = merge_rules.of_kind(kind.api_version, kind.name)
    return list(managed_fields.after_update(old, obj, manager, rules, given=given, time=now()))


def is_ill_typed(errors: Iterable[FieldError]) -> bool:
    """Whether the rest cannot be looked at: a field that nobody knows does not stand in the way of the others."""
    return any(error.kind is not UNKNOWN_FIELD for error in errors)


def _follows(error: FieldError, missing: Sequence[str]) -> bool:
    """Whether the error may be there only because the fields ``missing`` were left out of the object."""
    if not missing:
        return False
    is_near = any(error.field.startswith(field) or field.startswith(error.field) for field in missing)
    return is_near or error.kind in (REQUIRED, FORBIDDEN)
