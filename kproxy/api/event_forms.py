"""The two forms of an Event: as the core group names its fields, and as events.k8s.io does.

Law: an Event is stored in the core group's form; the other is the same object under other names, back and forth.
Source: Kubernetes, pkg/apis/events/v1/conversion.go.
"""

from __future__ import annotations

from typing import Any, Final

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
    """A stored Event in the form of events.k8s.io.

    An event of the older kind has no eventTime, on which typed clients insist in this form: it gets the one it had.
    """
    seen = next((event[key] for key in ("eventTime", "firstTimestamp", "lastTimestamp") if event.get(key)), None)
    moment = seen or event["metadata"].get("creationTimestamp")
    return _renamed(event, _TO_GROUP) | {"apiVersion": EVENT_OF_GROUP.api_version, "eventTime": moment}


def of_core(event: Object) -> Object:
    """An Event of events.k8s.io in the form that is stored."""
    return _renamed(event, _TO_CORE) | {"apiVersion": EVENT.api_version}


def patch_of_core(patch: Any) -> Any:
    """A patch of an Event of events.k8s.io as one of the Event that is stored; anything else is left as it is."""
    if isinstance(patch, dict):
        core = _renamed(patch, _TO_CORE)
        return core | {"apiVersion": EVENT.api_version} if "apiVersion" in patch else core
    return [_step_of_core(step) for step in patch] if isinstance(patch, list) else patch


def _step_of_core(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    places = {key: step[key] for key in ("path", "from") if isinstance(step.get(key), str)}
    return step | {key: _place_of_core(place) for key, place in places.items()}


def _place_of_core(place: str) -> str:
    steps = place.split("/")
    return "/".join(_TO_CORE.get(step, step) if index == 1 else step for index, step in enumerate(steps))


def _renamed(event: Object, names: dict[str, str]) -> Object:
    return {names.get(key, key): value for key, value in event.items()}
