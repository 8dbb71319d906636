"""The failures that the API answers with, worded as kube-apiserver words them.

Source: Kubernetes, apimachinery/pkg/api/errors/errors.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from kproxy.api.field_errors import ErrorKind, FieldError, invalid_message
from kproxy.api.kinds import Kind
from kproxy.errors import AlreadyExists, ApiError, Conflict, Gone, Invalid, NotFound

E = TypeVar("E", bound=ApiError)


def resource(kind: Kind) -> str:
    """``services`` or ``deployments.apps``."""
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def not_found(kind: Kind, name: str) -> NotFound:
    """404: no object of that name."""
    return _failure(NotFound, 404, "NotFound", f'{resource(kind)} "{name}" not found', _details(kind, name))


def no_such_path() -> NotFound:
    """404: no resource at that path."""
    return _failure(NotFound, 404, "NotFound", "the server could not find the requested resource")


def already_exists(kind: Kind, name: str) -> AlreadyExists:
    """409: the name is taken."""
    message = f'{resource(kind)} "{name}" already exists'
    return _failure(AlreadyExists, 409, "AlreadyExists", message, _details(kind, name))


def modified(kind: Kind, name: str) -> Conflict:
    """409: the object is no longer the one that was read."""
    return conflict(
        kind, name, "the object has been modified; please apply your changes to the latest version and try again"
    )


def conflict(kind: Kind, name: str, reason: str) -> Conflict:
    """409 with a reason of its own."""
    message = f'Operation cannot be fulfilled on {resource(kind)} "{name}": {reason}'
    return _failure(Conflict, 409, "Conflict", message, _details(kind, name))


def forbidden(kind: Kind, name: str, reason: str) -> ApiError:
    """403: the object may not be treated so, whoever asks."""
    message = f'{resource(kind)} "{name}" is forbidden: {reason}'
    return _failure(ApiError, 403, "Forbidden", message, _details(kind, name))


def unauthorized() -> ApiError:
    """401: nobody knows who asks."""
    return _failure(ApiError, 401, "Unauthorized", "Unauthorized")


def not_permitted(group: str, resource: str, name: str, reason: str) -> ApiError:
    """403: whoever asks may not.

    Args:
        group: of the resource.
        resource: plural; empty when a path was asked for that is no resource.
        name: empty for a collection.
        reason: as ``kproxy.cluster.rights.reason_of_refusal`` words it.
    """
    qualified = f"{resource}.{group}" if group else resource
    subject = f'{qualified} "{name}" is ' if name else f"{qualified} is " if resource else ""
    details = {key: value for key, value in (("name", name), ("group", group), ("kind", resource)) if value}
    return _failure(ApiError, 403, "Forbidden", f"{subject}forbidden: {reason}", details)


def expired(reason: str, token: str = "") -> Gone:
    """410: that resourceVersion is not in the log; ``token`` goes on with a list, at another revision."""
    error = _failure(Gone, 410, "Expired", reason)
    if token:
        error.status["metadata"] = {"continue": token}
    return error


def too_large_revision(wanted: int, newest: int) -> ApiError:
    """504: that resourceVersion has not been yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Too large resource version: {wanted}, current: {newest}"
    return _failure(ApiError, 504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})


def bad_request(reason: str) -> ApiError:
    """400: the request makes no sense."""
    return _failure(ApiError, 400, "BadRequest", reason)


def method_not_allowed() -> ApiError:
    """405: this resource cannot do that."""
    return _failure(
        ApiError, 405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
    )


def unsupported_media_type(supported: Sequence[str]) -> ApiError:
    """415: the body is in a format that this request does not take."""
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(supported)}"
    return _failure(ApiError, 415, "UnsupportedMediaType", message)


def not_acceptable(supported: Sequence[str]) -> ApiError:
    """406: there is no answer in a format that the client takes."""
    message = f"only the following media types are accepted: {', '.join(supported)}"
    return _failure(ApiError, 406, "NotAcceptable", message)


def unprocessable(reason: str) -> ApiError:
    """422: the request is understood and does not fit what it is about."""
    return _failure(
        Invalid, 422, "Invalid", f"the server rejected our request due to an error in our request: {reason}"
    )


def invalid_options(options: str, errors: Sequence[FieldError]) -> Invalid:
    """422: what the query asks makes no sense; ``options`` is ``ListOptions``, ``PatchOptions``, ..."""
    details = {"group": "meta.k8s.io", "kind": options, "causes": [error.cause() for error in errors]}
    return _failure(Invalid, 422, "Invalid", invalid_message(f"{options}.meta.k8s.io", "", errors), details)


def conflicting_managers(reason: str, fields: Sequence[tuple[str, str]]) -> Conflict:
    """409: a server-side apply would change what others manage; each field is given with the words for its manager."""
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": field}
        for manager, field in fields
    ]
    return _failure(Conflict, 409, "Conflict", reason, {"causes": causes})


def too_large_patch(reason: str) -> ApiError:
    """413: a patch has more operations than anybody needs."""
    return _failure(ApiError, 413, "RequestEntityTooLarge", reason)


def too_large(limit: int) -> ApiError:
    """413: the body is larger than the limit, in bytes."""
    return _failure(ApiError, 413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def internal(reason: str) -> ApiError:
    """500: something here failed."""
    return _failure(ApiError, 500, "InternalError", f"Internal error occurred: {reason}")


def invalid(kind: Kind, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 with every error; 500 when one of them is the server's own failure, as Kubernetes has it."""
    for error in errors:
        if error.kind is ErrorKind.INTERNAL:
            return internal(error.detail)
    details = _details(kind, name) | {"kind": kind.name, "causes": [error.cause() for error in errors]}
    return _failure(Invalid, 422, "Invalid", invalid_message(kind.name, name, errors), details)


def invalid_documents(causes: Sequence[Mapping[str, Any]]) -> Invalid:
    """422 for an apply: every error of every document; a cause's ``index`` says of which."""
    count = f"{len(causes)} error{'' if len(causes) == 1 else 's'}"
    listed = "; ".join(f"document {cause['index']}: {cause['field']}: {cause['message']}" for cause in causes[:10])
    more = "; ..." if len(causes) > 10 else ""
    return _failure(
        Invalid, 422, "Invalid", f"nothing was applied: {count}: {listed}{more}", {"causes": [dict(c) for c in causes]}
    )


def _details(kind: Kind, name: str) -> dict[str, Any]:
    details = {"name": name, "group": kind.group, "kind": kind.plural}
    return {key: value for key, value in details.items() if value}


def _failure(error: type[E], code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> E:
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    if details:
        status["details"] = dict(details)
    return error(status)
