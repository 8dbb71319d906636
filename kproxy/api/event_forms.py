"""The two forms of an Event: as the core group names its fields, and as events.k8s.io does.

Law: an Event is stored in the core group's form; the other is the same object under other names, back and forth.
Source: Kubernetes, pkg/apis/events/v1/conversion.go.
"""

from __future__ import annotations

from typing import Final

from kproxy.api.kinds import EVENT, EVENT_OF_GROUP
from kproxy.api.types import Object

_NAMES: Final = (
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
)
_TO_GROUP: Final = dict(_NAMES)
_TO_CORE: Final = {group: core for core, group in _NAMES}


def of_group(event: Object) -> Object:
    """A stored Event in the form of events.k8s.io."""
    return _renamed(event, _TO_GROUP) | {"apiVersion": EVENT_OF_GROUP.api_version}


def of_core(event: Object) -> Object:
    """An Event of events.k8s.io in the form that is stored."""
    return _renamed(event, _TO_CORE) | {"apiVersion": EVENT.api_version}


def _renamed(event: Object, names: dict[str, str]) -> Object:
    return {names.get(key, key): value for key, value in event.items()}
