"""Probes and lifecycle handlers of containers. Kubernetes: pkg/apis/core/validation/validation.go, validateHandler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, forbidden, invalid, not_supported, required
from kproxy.api.types import Object
from kproxy.api.validation.metadata import said

PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS: Final = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_NUMBERS: Final = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
_SCHEMES: Final = ("HTTP", "HTTPS")
_HEADER_NAME: Final = re.compile(r"[-A-Za-z0-9]+")
_NO_HEADER_NAME: Final = (
    "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', "
    "regex used for validation is '[-A-Za-z0-9]+')"
)
_NOT_NEGATIVE: Final = "must be greater than or equal to 0"


def check(container: Object, path: str, grace: int, *, is_init: bool) -> Iterator[FieldError]:
    """Errors in a container's probes and lifecycle handlers.

    Args:
        container: the container, defaulted.
        path: where it is.
        grace: the pod's terminationGracePeriodSeconds.
        is_init: it is run to its end before the others, and has no use for any of them.
    """
    for key in (*PROBES, "lifecycle"):
        value = container.get(key)
        if value is None:
            continue
        if is_init:
            yield forbidden(f"{path}.{key}", "may not be set for init containers without restartPolicy=Always")
        elif key == "lifecycle":
            for turn in ("postStart", "preStop"):
                if value.get(turn) is not None:
                    yield from _check_handler(value[turn], f"{path}.lifecycle.{turn}", grace)
        else:
            yield from _check_probe(key, value, f"{path}.{key}", grace)


def _check_probe(kind: str, probe: Object, path: str, grace: int) -> Iterator[FieldError]:
    yield from _check_handler(probe, path, grace)
    for key in _NUMBERS:
        if (probe.get(key) or 0) < 0:
            yield invalid(f"{path}.{key}", probe[key], _NOT_NEGATIVE)
    own_grace = probe.get("terminationGracePeriodSeconds")
    if own_grace is not None and own_grace <= 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", own_grace, "must be greater than 0")
    if kind == "readinessProbe":
        if own_grace is not None:
            yield invalid(f"{path}.terminationGracePeriodSeconds", own_grace, "must not be set for readinessProbes")
    elif probe.get("successThreshold", 1) != 1:
        yield invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")


def _check_handler(handler: Object, path: str, grace: int) -> Iterator[FieldError]:
    given = [key for key in _HANDLERS if handler.get(key) is not None]
    if not given:
        yield required(path, "must specify a handler type")
    for key in given[1:]:
        yield forbidden(f"{path}.{key}", "may not specify more than 1 handler type")
    for key in given[:1]:
        yield from _check_action(key, handler[key], f"{path}.{key}", grace)


def _check_action(kind: str, action: Object, path: str, grace: int) -> Iterator[FieldError]:
    match kind:
        case "exec":
            if not action.get("command"):
                yield required(f"{path}.command")
        case "sleep":
            seconds = action.get("seconds") or 0
            if not 0 <= seconds <= grace:
                words = f"must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                yield invalid(path, seconds, words)
        case "grpc":
            yield from said(f"{path}.port", action.get("port") or 0, formats.port_number(action.get("port") or 0))
        case "httpGet":
            yield from _check_request(action, path)
            yield from _check_port(action.get("port"), f"{path}.port")
        case _:
            yield from _check_port(action.get("port"), f"{path}.port")


def _check_request(action: Object, path: str) -> Iterator[FieldError]:
    if not action.get("path"):
        yield required(f"{path}.path")
    if action.get("scheme") not in _SCHEMES:
        yield not_supported(f"{path}.scheme", action.get("scheme") or "", _SCHEMES)
    for header in action.get("httpHeaders") or []:
        name = header.get("name") or ""
        if not _HEADER_NAME.fullmatch(name):
            yield invalid(f"{path}.httpHeaders", name, _NO_HEADER_NAME)


def _check_port(port: Any, path: str) -> Iterator[FieldError]:
    if isinstance(port, str):
        yield from said(path, port, formats.port_name(port))
    else:
        yield from said(path, port or 0, formats.port_number(port or 0))
