"""The forms in which objects are answered.

Law: every object that leaves the API, alone, in a list or in a watch, passes through one of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol as Interface

import msgspec
from aiohttp import web

from kproxy.api.kinds import Kind
from kproxy.api.types import Object
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.responses import JSON
from kproxy.cluster.store import Event


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
        bodies = b",".join(event.body for event in events)
        return msgspec.json.encode(head)[:-1] + b',"items":[' + bodies + b"]}"

    def of_change(self, event: Event) -> bytes:
        """See Representation."""
        return event.body

    def of_bookmark(self, metadata: Object) -> bytes:
        """See Representation."""
        head = {"kind": self._kind.name, "apiVersion": self._kind.api_version}
        return msgspec.json.encode(head | {"metadata": metadata})


def negotiate(request: web.Request, target: Target) -> Representation:
    """The form in which the request wants its answer."""
    del request
    return AsStored(target.form)
