"""Which nodes a pod may run on, and why not the others: the scheduler's filters, and what a DaemonSet asks of them.

Law: pure, from values to values. Words and rules: Kubernetes, pkg/scheduler/framework/plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kproxy.api.types import Object

UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
_NO_NAME: Final = "node(s) didn't match the requested node name"
_CORDONED: Final = "node(s) were unschedulable"
_NO_AFFINITY: Final = "node(s) didn't match Pod's node affinity/selector"
_BLOCKING: Final = ("NoSchedule", "NoExecute")


def objection(pod: Object, node: Object) -> str:
    """Why the pod may not be put on the node, in the scheduler's words; empty if it may."""
    spec = pod["spec"]
    if spec.get("nodeName") and spec["nodeName"] != node["metadata"]["name"]:
        return _NO_NAME
    if (node.get("spec") or {}).get("unschedulable") and not _tolerates_cordon(spec):
        return _CORDONED
    taint = next(untolerated(spec, node, _BLOCKING), None)
    if taint is not None:
        return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    return "" if fits_affinity(spec, node) else _NO_AFFINITY


def fits_affinity(spec: Object, node: Object) -> bool:
    """Whether a pod's nodeSelector and required node affinity fit the node."""
    labels = node["metadata"].get("labels") or {}
    if not (spec.get("nodeSelector") or {}).items() <= labels.items():
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(fits_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def fits_term(term: Object, node: Object) -> bool:
    """Whether a node fits a nodeSelectorTerm; one without requirements fits none."""
    labels = node["metadata"].get("labels") or {}
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    named = {"metadata.name": node["metadata"]["name"]}
    if not expressions and not fields:
        return False
    return all(_holds(item, labels) for item in expressions) and all(_holds(item, named) for item in fields)


def preference(spec: Object, node: Object) -> int:
    """How much a pod's preferred node affinity speaks for the node: the sum of the weights that fit."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(int(item["weight"]) for item in preferred if fits_term(item["preference"], node))


def untolerated(spec: Object, node: Object, effects: Sequence[str]) -> Iterator[Object]:
    """The node's taints of these effects that the pod does not tolerate."""
    tolerations = spec.get("tolerations") or ()
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint["effect"] in effects and not any(tolerates(toleration, taint) for toleration in tolerations):
            yield taint


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether a toleration is for a taint (core/v1/toleration.go, ToleratesTaint)."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def seconds_tolerated(spec: Object, node: Object) -> float | None:
    """How long the pod may stay on the node in spite of its NoExecute taints (pkg/controller/tainteviction).

    Returns:
        0 when it has to go at once; None when it may stay for ever.
    """
    taints = [taint for taint in (node.get("spec") or {}).get("taints") or () if taint["effect"] == "NoExecute"]
    shortest: float | None = None
    for taint in taints:
        fitting = [item for item in spec.get("tolerations") or () if tolerates(item, taint)]
        if not fitting:
            return 0.0
        limited = [item["tolerationSeconds"] for item in fitting if item.get("tolerationSeconds") is not None]
        if limited:
            least = max(0.0, float(min(limited)))
            shortest = least if shortest is None else min(shortest, least)
    return shortest


def _tolerates_cordon(spec: Object) -> bool:
    taint = {"key": UNSCHEDULABLE, "effect": "NoSchedule"}
    return any(tolerates(toleration, taint) for toleration in spec.get("tolerations") or ())


def _holds(requirement: Object, values: Mapping[str, str]) -> bool:
    key, operator, wanted = requirement["key"], requirement["operator"], requirement.get("values") or []
    has = values.get(key)
    match operator:
        case "Exists":
            return has is not None
        case "DoesNotExist":
            return has is None
        case "In":
            return has in wanted
        case "NotIn":
            return has not in wanted
        case _:
            return _compares(operator, has, wanted)


def _compares(operator: str, has: str | None, wanted: Sequence[Any]) -> bool:
    """Gt and Lt: both sides are whole numbers, or it does not hold."""
    try:
        number, limit = int(has or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return number > limit if operator == "Gt" else number < limit


def counted_reasons(reasons: Iterable[str], node_count: int) -> str:
    """The scheduler's sentence: `0/3 nodes are available: 1 ..., 2 ....` (framework/types.go, FitError)."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
    return f"0/{node_count} nodes are available: {listed}." if listed else f"0/{node_count} nodes are available."
