"""The forms in which objects are answered: as they are, as rows of a table, or their metadata alone.

Law: every object that leaves the API, alone, in a list or in a watch, passes through one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from typing import Protocol as Interface

import msgspec
from aiohttp import web

from kproxy.api.columns import Column, columns_of
from kproxy.api.event_forms import of_group
from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver.negotiation import accepted
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.responses import JSON
from kproxy.cluster.store import Event

_META = "meta.k8s.io"
_META_VERSIONS = ("v1", "v1beta1")


class Representation(Interface):
    """One form; made for one request and used for it alone.

    Attributes:
        content_type: of the response.
    """

    content_type: str

    def of_object(self, obj: Object) -> bytes:
        """One object."""

    def of_list(self, events: Iterable[Event], metadata: Object) -> bytes:
        """A collection, each object as its latest change; ``metadata`` is the list's."""

    def of_change(self, event: Event) -> bytes:
        """The object of a watch event, as it is after the change."""

    def of_bookmark(self, metadata: Object) -> bytes:
        """The object of a BOOKMARK event."""


class AsStored:
    """Objects as they are stored: the form of nearly every request."""

    content_type = JSON

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def of_object(self, obj: Object) -> bytes:
        """See Representation."""
        return msgspec.json.encode(obj)

    def of_list(self, events: Iterable[Event], metadata: Object) -> bytes:
        """See Representation."""
        head = {"kind": f"{self._kind.name}List", "apiVersion": self._kind.api_version, "metadata": metadata}
        bodies = b",".join(self.of_change(event) for event in events)
        return msgspec.json.encode(head)[:-1] + b',"items":[' + bodies + b"]}"

    def of_change(self, event: Event) -> bytes:
        """See Representation."""
        return event.body

    def of_bookmark(self, metadata: Object) -> bytes:
        """See Representation."""
        head = {"kind": self._kind.name, "apiVersion": self._kind.api_version}
        return msgspec.json.encode(head | {"metadata": metadata})


class Converted(AsStored):
    """Objects as another kind has them, or with less in them.

    Args:
        kind: what they are called then.
        convert: makes such an object of a stored one.
    """

    def __init__(self, kind: Kind, convert: Callable[[Object], Object]) -> None:
        super().__init__(kind)
        self._convert = convert

    def of_object(self, obj: Object) -> bytes:
        """See Representation."""
        return msgspec.json.encode(self._convert(obj))

    def of_change(self, event: Event) -> bytes:
        """See Representation."""
        return self.of_object(event.object)


class AsTable:
    """Objects as the rows of a Table (``meta.k8s.io/v1``), as ``kubectl get`` prints them.

    Args:
        kind: decides the columns.
        version: ``v1`` or ``v1beta1``.
        embed: what each row carries beside its cells, made of the object; None is nothing.
    """

    content_type = JSON

    def __init__(self, kind: Kind, version: str, embed: Callable[[Object], Object | None]) -> None:
        self._columns = columns_of(kind)
        self._head = {"kind": "Table", "apiVersion": f"{_META}/{version}"}
        self._embed = embed
        self._is_header_due = True

    def of_object(self, obj: Object) -> bytes:
        """See Representation."""
        metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return self._table([obj], metadata, with_header=True)

    def of_list(self, events: Iterable[Event], metadata: Object) -> bytes:
        """See Representation."""
        return self._table([event.object for event in events], metadata, with_header=True)

    def of_change(self, event: Event) -> bytes:
        """See Representation; only the first table of a watch says what its columns are."""
        with_header, self._is_header_due = self._is_header_due, False
        metadata = {"resourceVersion": str(event.revision)}
        return self._table([event.object], metadata, with_header=with_header)

    def of_bookmark(self, metadata: Object) -> bytes:
        """See Representation."""
        return self._table([], metadata, with_header=False)

    def _table(self, objects: Iterable[Object], metadata: Object, *, with_header: bool) -> bytes:
        now = datetime.now(UTC)
        definitions = [_definition(column) for column in self._columns] if with_header else []
        rows = [self._row(obj, now) for obj in objects]
        return msgspec.json.encode(self._head | {"metadata": metadata, "columnDefinitions": definitions, "rows": rows})

    def _row(self, obj: Object, now: datetime) -> dict[str, Any]:
        row: dict[str, Any] = {"cells": [column.cell(obj, now) for column in self._columns]}
        embedded = self._embed(obj)
        return row if embedded is None else row | {"object": embedded}


def negotiate(request: web.Request, target: Target) -> Representation:
    """The form in which the request wants its answer.

    Raises:
        ApiError: 406, none that there is.
    """
    for wanted in accepted(request.headers.get("Accept", "")):
        if not wanted.is_json:
            continue
        found = _form(request, target, *wanted.form)
        if found is not None:
            return found
    raise statuses.not_acceptable((JSON,))


def _form(request: web.Request, target: Target, name: str, group: str, version: str) -> Representation | None:
    seen: Callable[[Object], Object] = of_group if target.seen_as else _unchanged
    if not name:
        return Converted(target.form, seen) if target.seen_as else AsStored(target.kind)
    if group != _META or version not in _META_VERSIONS:
        return None
    partial = _Partial(version)
    if name == "Table":
        embeds: dict[str, Callable[[Object], Object | None]] = {"None": _nothing, "Object": seen}
        return AsTable(target.kind, version, embeds.get(request.query.get("includeObject", ""), partial))
    if name.removesuffix("List") == partial.kind.name:
        return Converted(partial.kind, partial)
    return None


class _Partial:
    """Makes the metadata of an object an object of its own."""

    def __init__(self, version: str) -> None:
        self.kind = Kind("PartialObjectMetadata", _META, version, "", namespaced=False, aliases=())

    def __call__(self, obj: Object) -> Object:
        return {"kind": self.kind.name, "apiVersion": self.kind.api_version, "metadata": obj["metadata"]}


def _unchanged(obj: Object) -> Object:
    return obj


def _nothing(_: Object) -> None:
    return None


def _definition(column: Column) -> dict[str, Any]:
    return {
        "name": column.title,
        "type": column.type,
        "format": column.format,
        "description": "",
        "priority": int(column.is_wide),
    }
