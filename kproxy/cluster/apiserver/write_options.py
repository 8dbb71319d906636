"""How a write is meant, read from its query: CreateOptions, UpdateOptions, PatchOptions, DeleteOptions.

Rules: Kubernetes, apimachinery/pkg/apis/meta/v1/validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from aiohttp import web

from kproxy.api.field_errors import FORBIDDEN, TOO_LONG, FieldError, invalid, not_supported, required
from kproxy.api.managed_fields import name_of_client
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.deletion import DeleteOptions
from kproxy.cluster.patches import APPLY_PATCH
from kproxy.cluster.writes import Manner

_LONGEST_MANAGER: Final = 128
_VALIDATIONS: Final = ("Ignore", "Warn", "Strict")
_POLICIES: Final = ("Background", "Foreground", "Orphan")
_OPTIONS: Final[Mapping[str, str]] = {"POST": "CreateOptions", "PUT": "UpdateOptions", "PATCH": "PatchOptions"}


def manner(request: web.Request, target: Target) -> Manner:
    """How the request wants its object written.

    Raises:
        Invalid: it makes no sense.
    """
    errors = list(_errors(request))
    if errors:
        raise statuses.invalid_options(_OPTIONS[request.method], errors)
    query = request.query
    is_apply = request.content_type == APPLY_PATCH
    return Manner(
        subresource=target.subresource,
        dry_run=is_dry_run(request),
        manager=query.get("fieldManager") or name_of_client(request.headers.get("User-Agent", "")) or "unknown",
        force=is_apply and query.get("force") in ("1", "true"),
        # An apply has rules of its own for fields that nobody knows.
        field_validation="" if is_apply else cast(Any, query.get("fieldValidation") or "Warn"),
    )


def is_dry_run(request: web.Request) -> bool:
    """Whether nothing is to be stored."""
    return "All" in request.query.getall("dryRun", ())


def _errors(request: web.Request) -> Iterator[FieldError]:
    query = request.query
    yield from _dry_run_errors(query.getall("dryRun", ()))
    name = query.get("fieldManager", "")
    if len(name) > _LONGEST_MANAGER:
        yield FieldError("fieldManager", TOO_LONG, name, f"may not be more than {_LONGEST_MANAGER} bytes")
    elif not name.isprintable():
        yield invalid("fieldManager", name, "should only contain printable characters")
    validation = query.get("fieldValidation", "")
    if validation and validation not in _VALIDATIONS:
        yield not_supported("fieldValidation", validation, _VALIDATIONS)
    if request.content_type == APPLY_PATCH:
        if not name:
            yield required("fieldManager", "is required for apply patch")
    elif query.get("force") is not None:
        yield FieldError("force", FORBIDDEN, None, "may not be specified for non-apply patch")


def _dry_run_errors(values: Any) -> Iterator[FieldError]:
    for value in values:
        if value not in ("", "All"):
            yield not_supported("dryRun", list(values), ("All",))


def deletion(request: web.Request, body: Object) -> tuple[DeleteOptions, bool]:
    """How to delete, by the body and the query, and whether only to try it.

    Raises:
        ApiError: it makes no sense.
    """
    query = request.query
    tries = body.get("dryRun") if isinstance(body.get("dryRun"), list) else query.getall("dryRun", ())
    errors = list(_dry_run_errors(tries))
    policy = body.get("propagationPolicy", query.get("propagationPolicy"))
    orphans = body.get("orphanDependents", {"true": True, "false": False}.get(query.get("orphanDependents", "")))
    if policy and orphans is not None:
        detail = "orphanDependents and deletionPropagation cannot be both set"
        errors.append(invalid("propagationPolicy", policy, detail))
    elif policy and policy not in _POLICIES:
        errors.append(not_supported("propagationPolicy", policy, [*_POLICIES, "nil"]))
    if errors:
        raise statuses.invalid_options("DeleteOptions", errors)
    if orphans is not None:
        policy = "Orphan" if orphans else "Background"
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise statuses.bad_request("preconditions is not an object")
    options = DeleteOptions(
        grace_seconds=_grace(body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))),
        uid=str(preconditions.get("uid") or ""),
        resource_version=str(preconditions.get("resourceVersion") or ""),
        propagation=str(policy or ""),
    )
    return options, "All" in (tries or ())


def _grace(value: Any) -> int | None:
    if value is None:
        return None
    if not str(value).isascii() or not str(value).isdecimal() or len(str(value)) > 18:
        raise statuses.bad_request(f"gracePeriodSeconds: Invalid value: {value!r}: must be a number, 0 or greater")
    return int(value)
