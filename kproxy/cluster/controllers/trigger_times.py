"""When what the endpoints of a Service have to follow happened, for the annotation that latencies are measured by.

Rules: Kubernetes, staging/src/k8s.io/endpointslice/util/trigger_time_tracker.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kproxy.api.types import Object
from kproxy.cluster.controllers.informer import Name, name_of

ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"


class TriggerTimes:
    """What was known of each Service and its pods at the last look."""

    def __init__(self) -> None:
        self._known: dict[Name, dict[str, datetime]] = {}

    def look(self, service: Object, pods: Iterable[Object]) -> str:
        """The first moment at which something changed since the last look, as its object says it.

        Args:
            service: the Service.
            pods: all pods that it selects.

        Returns:
            RFC 3339; empty when nothing is known to have changed.
        """
        before = self._known.get(name_of(service))
        created = service["metadata"].get("creationTimestamp") or ""
        texts = {"": created} | {pod["metadata"]["name"]: _readiness_time(pod) for pod in pods}
        now = {name: moment for name, text in texts.items() if (moment := _parsed(text)) is not None}
        self._known[name_of(service)] = now
        if before is None:
            return created
        changed = [name for name, moment in now.items() if name not in before or moment > before[name]]
        return texts[min(changed, key=lambda name: now[name])] if changed else ""

    def forget(self, service: Name) -> None:
        """Forgets a Service that is gone."""
        self._known.pop(service, None)


def _readiness_time(pod: Object) -> str:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((item.get("lastTransitionTime") or "" for item in conditions if item["type"] == "Ready"), "")


def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
