"""What create, update, patch, delete and apply mean for each kind, between the HTTP API and the store.

Law: everything that a request changes happens in one transaction of the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from kproxy.api.kinds import NAMESPACE, POD, SERVICE, SERVICE_CIDR, Kind
from kproxy.api.types import Object
from kproxy.cluster import patches, server_side_apply, statuses
from kproxy.cluster.admission import Claims, ClusterSettings
from kproxy.cluster.applies import Apply
from kproxy.cluster.deletion import DeleteOptions
from kproxy.cluster.identity import addressed, check_namespace, head, key_of, now
from kproxy.cluster.store import Store, Transaction
from kproxy.cluster.writes import INITIAL_NAMESPACES, PLAIN, Answer, Manner, Writes

T = TypeVar("T")


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
        self._writes = Writes(settings, self._claims)
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

    def create(self, kind: Kind, namespace: str, obj: Object, manner: Manner = PLAIN) -> Answer:
        """Stores a new object.

        Raises:
            AlreadyExists, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            named = addressed(kind, namespace, obj)
            check_namespace(transaction, kind, named["metadata"])
            return self._writes.create(transaction, kind, named, manner)

        return self._transact(change, manner.dry_run)

    def update(self, kind: Kind, key: tuple[str, str], obj: Object, manner: Manner = PLAIN) -> Answer:
        """Replaces an object, or its status.

        Raises:
            NotFound, Conflict, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            old = self._writes.existing(transaction, kind, key)
            named = addressed(kind, key[0], obj, name=key[1])
            return self._writes.update(transaction, kind, old, named, manner)

        return self._transact(change, manner.dry_run)

    def patch(self, kind: Kind, key: tuple[str, str], patch: Any, media_type: str, manner: Manner = PLAIN) -> Answer:
        """Changes an object, or its status, as the patch says; one that is applied and not there yet is created.

        Args:
            kind: the object's.
            key: its namespace and name.
            patch: of the form that ``media_type`` names.
            media_type: one of ``patches.MEDIA_TYPES``.
            manner: how it is meant; a server-side apply needs a manager.

        Raises:
            NotFound, Conflict, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            if media_type == patches.APPLY_PATCH:
                return self._apply_one(transaction, kind, key, patch, manner)
            old = self._writes.existing(transaction, kind, key)
            patched = addressed(kind, key[0], patches.patched(kind, old, media_type, patch), name=key[1])
            return self._writes.update(transaction, kind, old, patched, manner)

        return self._transact(change, manner.dry_run)

    def alter(
        self, kind: Kind, key: tuple[str, str], alteration: Callable[[Object], Object], manner: Manner = PLAIN
    ) -> Answer:
        """Replaces an object by what ``alteration`` makes of it as it is then.

        Raises:
            NotFound, Conflict, Invalid, ApiError: it cannot be.
        """

        def change(transaction: Transaction) -> Answer:
            old = self._writes.existing(transaction, kind, key)
            return self._writes.update(transaction, kind, old, alteration(old), manner)

        return self._transact(change, manner.dry_run)

    def delete_collection(
        self,
        kind: Kind,
        namespace: str,
        chosen: Callable[[Object], bool],
        options: DeleteOptions | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Object]:
        """Deletes all objects that are chosen, or none; returns their last states.

        Args:
            kind: theirs.
            namespace: "" for all of them.
            chosen: whether an object is meant.
            options: how to delete each.
            dry_run: leave everything as it is.

        Raises:
            ApiError: one of them cannot be deleted.
        """

        def change(transaction: Transaction) -> list[Object]:
            found = [obj for obj in transaction.all_of(kind, namespace or None) if chosen(obj)]
            how = options or DeleteOptions()
            return [self._writes.delete(transaction, kind, key_of(obj), how) for obj in found]

        return self._transact(change, dry_run)

    def bind(self, namespace: str, name: str, node: str) -> None:
        """Gives a pod its node (the ``binding`` subresource).

        Raises:
            NotFound: no such pod.
            Conflict: it has a node, or is being deleted.
        """

        def change(transaction: Transaction) -> None:
            pod = self._writes.existing(transaction, POD, (namespace, name))
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
            return self._writes.delete(transaction, kind, key, options or DeleteOptions())

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
        applied = Apply(self._writes, documents)
        result = self._transact(applied.delete_all if delete else applied.apply_all, dry_run)
        for entry in result["results"] if not dry_run else ():
            entry.pop("object", None)
        return result

    # ----- inside a transaction

    def _apply_one(
        self, transaction: Transaction, kind: Kind, key: tuple[str, str], patch: Any, manner: Manner
    ) -> Answer:
        old = transaction.get(kind, *key)
        if old is None and manner.subresource:
            raise statuses.not_found(kind, key[1])
        named = addressed(kind, key[0], patches.configuration(kind, patch), name=key[1])
        merged, entries = server_side_apply.applied(kind, old, named, manner)
        manner = replace(manner, entries=entries)
        if old is not None:
            return self._writes.update(transaction, kind, old, merged, manner)
        check_namespace(transaction, kind, merged["metadata"])
        return self._writes.create(transaction, kind, merged, manner)

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
                self._writes.create(transaction, NAMESPACE, {**head(NAMESPACE), "metadata": {"name": name}})
        if transaction.get(SERVICE_CIDR, "", "kubernetes") is None:
            spec = {"cidrs": list(self._settings.service_cidrs)}
            self._writes.create(
                transaction, SERVICE_CIDR, {**head(SERVICE_CIDR), "metadata": {"name": "kubernetes"}, "spec": spec}
            )


def _scheduled(conditions: Sequence[Object]) -> list[Object]:
    others = [condition for condition in conditions if condition["type"] != "PodScheduled"]
    return [*others, {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}]
