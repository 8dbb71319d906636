"""Deployments, ReplicaSets, StatefulSets and DaemonSets. Kubernetes: pkg/apis/apps/validation/validation.go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, forbidden, invalid, not_supported, required
from kproxy.api.labels import matches
from kproxy.api.types import LabelSelector, Object, view
from kproxy.api.validation.metadata import IMMUTABLE, check_labels, said
from kproxy.api.validation.pods import NOT_NEGATIVE, check_spec, template_labels

_STRATEGIES: Final = ("Recreate", "RollingUpdate")
_ROLLING, _ON_DELETE = "RollingUpdate", "OnDelete"
_STATEFUL_MUTABLE: Final = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def check_deployment(obj: Object) -> Iterator[FieldError]:
    """Errors in a Deployment's spec."""
    spec = obj.get("spec") or {}
    yield from _check_counts(spec, ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"))
    deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds") or 0
    if deadline is not None and 0 <= deadline <= ready:
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")
    yield from _check_selector(spec, "ReplicaSet")
    yield from _check_strategy(spec.get("strategy") or {})


def check_replica_set(obj: Object) -> Iterator[FieldError]:
    """Errors in a ReplicaSet's spec."""
    spec = obj.get("spec") or {}
    yield from _check_counts(spec, ("replicas", "minReadySeconds"))
    yield from _check_selector(spec, "ReplicaSet")


def check_stateful_set(obj: Object) -> Iterator[FieldError]:
    """Errors in a StatefulSet's spec."""
    spec = obj.get("spec") or {}
    policy = spec.get("podManagementPolicy") or ""
    if not policy:
        yield required("spec.podManagementPolicy")
    elif policy not in ("OrderedReady", "Parallel"):
        yield invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'")
    yield from _check_stateful_strategy(spec.get("updateStrategy") or {})
    yield from _check_counts(spec, ("replicas", "minReadySeconds", "revisionHistoryLimit"))
    start = (spec.get("ordinals") or {}).get("start") or 0
    if start < 0:
        yield invalid("spec.ordinals.start", start, NOT_NEGATIVE)
    yield from _check_selector(spec, "StatefulSet")


def check_stateful_set_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """A StatefulSet keeps what its pods and their storage are named and found by."""
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    if any(new_spec.get(key) != old_spec.get(key) for key in {*new_spec, *old_spec} - set(_STATEFUL_MUTABLE)):
        named = ", ".join(f"'{key}'" for key in _STATEFUL_MUTABLE[:-1])
        words = f"updates to statefulset spec for fields other than {named} and '{_STATEFUL_MUTABLE[-1]}' are forbidden"
        yield forbidden("spec", words)


def check_daemon_set(obj: Object) -> Iterator[FieldError]:
    """Errors in a DaemonSet's spec."""
    spec = obj.get("spec") or {}
    yield from _check_selector(spec, "DaemonSet")
    yield from _check_counts(spec, ("minReadySeconds", "revisionHistoryLimit"))
    yield from _check_daemon_strategy(spec.get("updateStrategy") or {})


def check_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """The selector of a workload stays as it is."""
    selector = (obj.get("spec") or {}).get("selector")
    if selector != (old.get("spec") or {}).get("selector"):
        yield invalid("spec.selector", selector, IMMUTABLE)


def _check_counts(spec: Object, keys: tuple[str, ...]) -> Iterator[FieldError]:
    for key in keys:
        if (spec.get(key) or 0) < 0:
            yield invalid(f"spec.{key}", spec[key], NOT_NEGATIVE)


def _check_selector(spec: Object, kind: str) -> Iterator[FieldError]:
    selector, template = spec.get("selector"), spec.get("template") or {}
    complaints: list[FieldError] = []
    if selector is None:
        complaints.append(required("spec.selector"))
    else:
        complaints += check_label_selector(selector, "spec.selector")
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            # Kubernetes says "deployment" for ReplicaSets too.
            word = "deployment" if kind == "ReplicaSet" else kind.lower()
            complaints.append(invalid("spec.selector", selector, f"empty selector is invalid for {word}"))
    yield from complaints
    labels = template_labels(template)
    path = "spec.template.metadata.labels"
    yield from check_labels(labels, path)
    if selector is not None and not complaints and not matches(view(selector, LabelSelector), labels):
        yield invalid(path, dict(sorted(labels.items())), "`selector` does not match template `labels`")
    yield from _check_template(template, kind)


def _check_template(template: Object, kind: str) -> Iterator[FieldError]:
    pod = template.get("spec") or {}
    yield from check_spec(pod, "spec.template.spec")
    policy = pod.get("restartPolicy")
    if policy in ("OnFailure", "Never"):
        yield not_supported("spec.template.spec.restartPolicy", policy, ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        reason = f"activeDeadlineSeconds in {kind} is not Supported"
        yield forbidden("spec.template.spec.activeDeadlineSeconds", reason)


def check_label_selector(selector: Object, path: str) -> Iterator[FieldError]:
    """Errors in matchLabels and matchExpressions of the selector at ``path``."""
    yield from check_labels(selector.get("matchLabels") or {}, f"{path}.matchLabels")
    for index, expression in enumerate(selector.get("matchExpressions") or []):
        below = f"{path}.matchExpressions[{index}]"
        operator, values = expression.get("operator") or "", expression.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                yield required(f"{below}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                reason = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield forbidden(f"{below}.values", reason)
        else:
            yield invalid(f"{below}.operator", operator, "not a valid selector operator")
        key = expression.get("key") or ""
        yield from said(f"{below}.key", key, formats.qualified_name(key))


def _check_strategy(strategy: Object) -> Iterator[FieldError]:
    path, rolling = "spec.strategy", strategy.get("rollingUpdate")
    if strategy.get("type") not in _STRATEGIES:
        yield not_supported(f"{path}.type", strategy.get("type") or "", _STRATEGIES)
    elif strategy["type"] == "Recreate":
        if rolling is not None:
            reason = "may not be specified when strategy `type` is 'Recreate'"
            yield forbidden(f"{path}.rollingUpdate", reason)
    else:
        yield from _check_rolling_update(rolling or {}, f"{path}.rollingUpdate")


def _check_rolling_update(rolling: Object, path: str) -> Iterator[FieldError]:
    yield from _check_shares(rolling, path)
    unavailable, surge = rolling.get("maxUnavailable", "25%"), rolling.get("maxSurge", "25%")
    if _is_nothing(unavailable) and _is_nothing(surge):
        yield invalid(f"{path}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0")
    if isinstance(unavailable, str) and not formats.percentage(unavailable) and _is_more_than_all(unavailable):
        yield invalid(f"{path}.maxUnavailable", unavailable, "must not be greater than 100%")


def _check_stateful_strategy(strategy: Object) -> Iterator[FieldError]:
    path, kind, rolling = "spec.updateStrategy", strategy.get("type") or "", strategy.get("rollingUpdate")
    if not kind:
        yield required(path)
    elif kind not in (_ROLLING, _ON_DELETE):
        yield invalid(path, strategy, f"must be '{_ROLLING}' or '{_ON_DELETE}'")
    elif kind == _ON_DELETE and rolling is not None:
        yield invalid(f"{path}.rollingUpdate", rolling, f"only allowed for updateStrategy '{_ROLLING}'")
    partition = (rolling or {}).get("partition") or 0
    if partition < 0:
        yield invalid(f"{path}.rollingUpdate.partition", partition, NOT_NEGATIVE)


def _check_daemon_strategy(strategy: Object) -> Iterator[FieldError]:
    path, rolling = "spec.updateStrategy.rollingUpdate", strategy.get("rollingUpdate")
    if strategy.get("type") not in (_ROLLING, _ON_DELETE):
        yield not_supported("spec.updateStrategy.type", strategy.get("type") or "", (_ROLLING, _ON_DELETE))
    if strategy.get("type") != _ROLLING:
        return
    if rolling is None:
        yield required(path)
        return
    yield from _check_shares(rolling, path)
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    if _is_nothing(unavailable) and _is_nothing(surge):
        yield required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")
    elif not _is_nothing(unavailable) and not _is_nothing(surge):
        yield invalid(f"{path}.maxSurge", surge, "may not be set when maxUnavailable is non-zero")


def _check_shares(rolling: Object, path: str) -> Iterator[FieldError]:
    """Numbers of pods or percentages of them."""
    for key in ("maxUnavailable", "maxSurge"):
        value = rolling.get(key, 0)
        if isinstance(value, str):
            yield from said(f"{path}.{key}", value, formats.percentage(value))
        elif value < 0:
            yield invalid(f"{path}.{key}", value, NOT_NEGATIVE)


def _is_more_than_all(percentage: str) -> bool:
    digits = percentage.removesuffix("%").lstrip("0")
    return len(digits) > 3 or int(digits or "0") > 100


def _is_nothing(value: Any) -> bool:
    return value == 0 or (isinstance(value, str) and value.endswith("%") and value.strip("0") == "%")
