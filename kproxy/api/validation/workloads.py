"""Deployments and ReplicaSets. Kubernetes: pkg/apis/apps/validation/validation.go."""

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


def check_deployment(obj: Object) -> Iterator[FieldError]:
    """Errors in a Deployment's spec."""
    spec = obj.get("spec") or {}
    yield from _check_counts(spec, ("replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"))
    deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds") or 0
    if deadline is not None and 0 <= deadline <= ready:
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")
    yield from _check_selector(spec)
    yield from _check_strategy(spec.get("strategy") or {})


def check_replica_set(obj: Object) -> Iterator[FieldError]:
    """Errors in a ReplicaSet's spec."""
    spec = obj.get("spec") or {}
    yield from _check_counts(spec, ("replicas", "minReadySeconds"))
    yield from _check_selector(spec)


def check_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """The selector of a workload stays as it is."""
    selector = (obj.get("spec") or {}).get("selector")
    if selector != (old.get("spec") or {}).get("selector"):
        yield invalid("spec.selector", selector, IMMUTABLE)


def _check_counts(spec: Object, keys: tuple[str, ...]) -> Iterator[FieldError]:
    for key in keys:
        if (spec.get(key) or 0) < 0:
            yield invalid(f"spec.{key}", spec[key], NOT_NEGATIVE)


def _check_selector(spec: Object) -> Iterator[FieldError]:
    selector, template = spec.get("selector"), spec.get("template") or {}
    complaints: list[FieldError] = []
    if selector is None:
        complaints.append(required("spec.selector"))
    else:
        complaints += check_label_selector(selector, "spec.selector")
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            # Kubernetes says "deployment" for ReplicaSets too.
            complaints.append(invalid("spec.selector", selector, "empty selector is invalid for deployment"))
    yield from complaints
    labels = template_labels(template)
    path = "spec.template.metadata.labels"
    yield from check_labels(labels, path)
    if selector is not None and not complaints and not matches(view(selector, LabelSelector), labels):
        yield invalid(path, dict(sorted(labels.items())), "`selector` does not match template `labels`")
    yield from _check_template(template)


def _check_template(template: Object) -> Iterator[FieldError]:
    pod = template.get("spec") or {}
    yield from check_spec(pod, "spec.template.spec")
    policy = pod.get("restartPolicy")
    if policy in ("OnFailure", "Never"):
        yield not_supported("spec.template.spec.restartPolicy", policy, ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        reason = "activeDeadlineSeconds in ReplicaSet is not Supported"
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
    for key in ("maxUnavailable", "maxSurge"):
        value = rolling.get(key, "25%")
        if isinstance(value, str):
            yield from said(f"{path}.{key}", value, formats.percentage(value))
        elif value < 0:
            yield invalid(f"{path}.{key}", value, NOT_NEGATIVE)
    unavailable, surge = rolling.get("maxUnavailable", "25%"), rolling.get("maxSurge", "25%")
    if _is_nothing(unavailable) and _is_nothing(surge):
        yield invalid(f"{path}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0")
    if isinstance(unavailable, str) and not formats.percentage(unavailable) and _is_more_than_all(unavailable):
        yield invalid(f"{path}.maxUnavailable", unavailable, "must not be greater than 100%")


def _is_more_than_all(percentage: str) -> bool:
    digits = percentage.removesuffix("%").lstrip("0")
    return len(digits) > 3 or int(digits or "0") > 100


def _is_nothing(value: Any) -> bool:
    return value == 0 or (isinstance(value, str) and value.endswith("%") and value.strip("0") == "%")
