"""Events of the API: what kube-proxy lets people see with `kubectl get events`.

Law: pure; whoever tells one goes on at once, and what cannot be written is lost, for the log has it too.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kproxy.proxy.services import ServiceName


class Event(msgspec.Struct, frozen=True):
    """Something to tell about an object.

    Attributes:
        kind: of the object.
        name: of the object; the namespace of one that has none is empty.
        uid: of the object, or what kube-proxy puts there: it knows names alone.
        type: Normal or Warning.
        reason: one word in kube-proxy's spelling.
        action: what was done or tried, likewise.
        note: a sentence for people; may be empty.
    """

    kind: str
    name: ServiceName
    uid: str
    type: str
    reason: str
    action: str
    note: str = ""


Tell = Callable[[Event], None]
"""Where events go; returns at once."""


def starting(node_name: str) -> Event:
    """The proxy begins to work (kube-proxy: server.go, birthCry)."""
    return Event("Node", ServiceName("", node_name), node_name, "Normal", "Starting", "StartKubeProxy")


def no_health_check(service: ServiceName, node_name: str, port: int, error: str) -> Event:
    """A health check node port could not be opened (kube-proxy: healthcheck/service_health.go)."""
    note = f'node {node_name} failed to start healthcheck "{service}" on port {port}: {error}'
    reason = "FailedToStartServiceHealthcheck"
    return Event("Service", service, str(service), "Warning", reason, "Listen", note)
