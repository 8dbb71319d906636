"""The fields that ``--field-selector`` takes, for each kind.

Source: Kubernetes, pkg/apis/*/v1/conversion.go (AddFieldLabelConversionFunc) and the kinds' strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kproxy.api.kinds import EVENT, NAMESPACE, NODE, POD, REPLICA_SET, SERVICE, Kind

Paths = Mapping[str, tuple[str, ...]]
"""What a selector calls a field, and where an object has it."""


def _at(*names: str) -> Paths:
    return {name: tuple(name.split(".")) for name in names}


_INVOLVED: Final = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_EVERY: Final = _at("metadata.name", "metadata.namespace")
_OWN: Final[Mapping[Kind, Paths]] = {
    POD: _at(
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    NODE: _at("spec.unschedulable"),
    NAMESPACE: {**_at("status.phase"), "name": ("metadata", "name")},
    SERVICE: _at("spec.clusterIP", "spec.type"),
    REPLICA_SET: _at("status.replicas"),
    EVENT: {
        **_at(*(f"involvedObject.{name}" for name in _INVOLVED)),
        **{f"regarding.{name}": ("involvedObject", name) for name in _INVOLVED},
        **_at("reason", "reportingComponent", "type"),
        "source": ("source", "component"),
        "reportingController": ("reportingComponent",),
    },
}


def selectable(kind: Kind) -> Paths:
    """The fields of a kind's objects that can be selected by."""
    return {**_EVERY, **_OWN.get(kind, {})}
