"""One apply or delete of many documents: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kproxy.api import known_fields
from kproxy.api.field_errors import DUPLICATE, NOT_FOUND, FieldError, required
from kproxy.api.kinds import NAMESPACE, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.cluster import statuses, warnings
from kproxy.cluster.admission import needs_node_port
from kproxy.cluster.deletion import DeleteOptions
from kproxy.cluster.documents import three_way_merge, with_last_applied
from kproxy.cluster.identity import check_namespace, key_of, kind_of, with_default_namespace
from kproxy.cluster.store import Transaction
from kproxy.cluster.writes import THOROUGH, Writes, is_ill_typed
from kproxy.errors import ApiError

_SPARABLE = ("spec.", "metadata.annotations", "metadata.labels")
"""Fields that may be of a wrong type, and the object still has a kind and a name by which to look at the rest."""


class Apply:
    """One apply or delete of many documents: errors and warnings by document, results in the documents' order."""

    def __init__(self, writes: Writes, documents: Sequence[Mapping[str, Any]]) -> None:
        self._writes = writes
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
            key = (kind, *key_of(obj))
            is_repeated = key in before
            old = before.setdefault(key, transaction.get(kind, *key[1:]))
            if is_repeated:
                self._blame(index, [FieldError("metadata.name", DUPLICATE, key[2], "two documents have this name")])
            if is_repeated or is_ill_typed(known_fields.check(obj)):
                self._blame(index, self._writes.errors_instead(transaction, kind, obj, old))
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
            key = key_of(obj)
            if transaction.get(kind, *key) is None:
                self._blame(index, [FieldError("metadata.name", NOT_FOUND, key[1])])
                continue
            try:
                deleted = self._writes.delete(transaction, kind, key, DeleteOptions())
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
        kind = kind_of(obj)
        if kind is None:
            errors = errors or [FieldError("kind", NOT_FOUND, obj["kind"], "the lab's API does not serve this kind")]
        if kind is None or is_ill_typed(error for error in errors if not error.field.startswith(_SPARABLE)):
            self._blame(index, errors)
            return None
        obj = with_default_namespace(kind, obj)
        if not obj["metadata"].get("name"):
            self._blame(index, [required("metadata.name", "name is required")])
            return None
        return kind, obj

    def _one(self, index: int, kind: Kind, obj: Object, transaction: Transaction) -> None:
        old = transaction.get(kind, *key_of(obj))
        try:
            if old is None:
                self._check_namespace(index, kind, obj, transaction)
                named = with_last_applied(obj, obj)
                answer = self._writes.create(transaction, kind, named, THOROUGH)
            else:
                merged = three_way_merge(old, obj)
                answer = self._writes.update(transaction, kind, old, merged, THOROUGH)
        except ApiError as error:
            self._blame_status(index, error)
            return
        outcome = "created" if old is None else "unchanged" if answer.object is old else "configured"
        self._record(index, kind, answer.object, outcome)
        told = [*answer.warnings, *warnings.of_document(kind, obj)]
        self._warnings += [{"index": index, "message": message} for message in dict.fromkeys(told)]

    def _check_namespace(self, index: int, kind: Kind, obj: Object, transaction: Transaction) -> None:
        try:
            check_namespace(transaction, kind, obj["metadata"])
        except ApiError as error:
            self._blame_status(index, error)

    def _record(self, index: int, kind: Kind, obj: Object, outcome: str) -> None:
        namespace, name = key_of(obj)
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


def _rank(obj: Any) -> int:
    kind = kind_of(obj)
    if kind is NAMESPACE:
        return 0
    if kind is not SERVICE or not isinstance(obj.get("spec"), dict):
        return 1
    spec = obj["spec"]
    ports = spec.get("ports") if isinstance(spec.get("ports"), list) else []
    has_ports = all(isinstance(port, dict) and port.get("nodePort") for port in ports or ())
    has_address = spec.get("clusterIP") or spec.get("clusterIPs")
    return 1 if has_address and (has_ports or not needs_node_port(spec)) else 2 if has_ports and ports else 3
