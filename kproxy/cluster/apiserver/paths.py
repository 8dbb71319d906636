"""What a request path names."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.api.kinds import EVENT, EVENT_OF_GROUP, KINDS, Kind
from kproxy.cluster.rights import segments

SERVED: tuple[Kind, ...] = (*KINDS, EVENT_OF_GROUP)
"""Every kind that has a path, in the order of discovery."""

_STORED_AS = {EVENT_OF_GROUP: EVENT}
_BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in SERVED}


@dataclass(frozen=True)
class Target:
    """What a path names.

    Attributes:
        kind: the kind that is stored.
        namespace: "" for all of them, or for a kind without namespaces.
        name: "" for the collection.
        subresource: "" for the object itself.
        seen_as: the kind whose form clients of this path write and read; ``kind`` but for events.k8s.io.
    """

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    seen_as: Kind | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def form(self) -> Kind:
        """The kind by whose names clients of this path know the fields."""
        return self.seen_as or self.kind


def resolve(path: str) -> Target | None:
    """What a request path names, or None when no resource is there.

    Args:
        path: the path as sent, percent-encoded.
    """
    match segments(path):
        case ["api", version, *rest] if rest:
            group = ""
        case ["apis", group, version, *rest] if rest:
            pass
        case _:
            return None
    if len(rest) >= 3 and rest[0] == "namespaces" and (kind := _BY_PATH.get((group, version, rest[2]))):
        return _target(kind, rest[1], rest[3:]) if kind.namespaced and rest[1] else None
    kind = _BY_PATH.get((group, version, rest[0]))
    if kind is None or (kind.namespaced and len(rest) > 1):
        return None
    return _target(kind, "", rest[1:])


def _target(kind: Kind, namespace: str, rest: list[str]) -> Target | None:
    if len(rest) > 2 or "" in rest:
        return None
    name, subresource = (*rest, "", "")[:2]
    if subresource and subresource not in kind.subresources:
        return None
    stored = _STORED_AS.get(kind)
    return Target(stored or kind, namespace, name, subresource, kind if stored else None)
