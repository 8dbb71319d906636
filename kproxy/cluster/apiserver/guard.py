"""Who stands at the door: by which socket and with which token a request came, and whether it may pass.

Law: whoever opens the unix socket is root and may do everything; everybody else shows a token and is held to the table
in ``kproxy.cluster.rights``. Nothing of a request's body is read before its sender is known.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from kproxy.api.types import Object
from kproxy.cluster import rights, statuses
from kproxy.cluster.apiserver import requests, responses
from kproxy.cluster.rights import ADMIN, Asked, Identity
from kproxy.cluster.tokens import Tokens

ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
"""``kubectl auth can-i`` asks here."""
REVIEWS: Final = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
"""``kubectl auth whoami`` asks here."""
_BEARER: Final = "bearer "
_IMPERSONATE: Final = "impersonate-"


class Guard:
    """Lets requests pass, or not.

    Args:
        tokens: who is who; with none nobody passes but root, by the unix socket.
        node_of_pod: the node on which the pod of that namespace and name is; empty when there is none.
    """

    def __init__(self, tokens: Tokens, node_of_pod: Callable[[str, str], str]) -> None:
        self._tokens = tokens
        self._node_of_pod = node_of_pod

    async def admit(self, request: web.Request) -> None:
        """Returns when the request may be answered.

        Raises:
            ApiError: 401 when nobody knows who asks, 403 when they may not ask this.
        """
        asked = rights.asked(request.method, request.raw_path.partition("?")[0], request.query)
        if rights.is_open(asked) and "Authorization" not in request.headers:
            return
        who = self.identify(request)
        _refuse_to_impersonate(who, request)
        if who.role is rights.Role.NODE and asked.resource == "leases" and asked.verb == "create":
            asked = asked._replace(name=await _name_in_body(request))
        if not self._is_allowed(who, asked):
            raise _refusal(who, asked)

    def identify(self, request: web.Request) -> Identity:
        """Who asks.

        Raises:
            ApiError: 401 when nobody knows.
        """
        if _is_from_unix_socket(request):
            return ADMIN
        given = request.headers.get("Authorization", "")
        if given[: len(_BEARER)].lower() == _BEARER:
            known = self._tokens.identify(given[len(_BEARER) :].strip())
            if known is not None:
                return known
        raise statuses.unauthorized()

    async def review_access(self, request: web.Request) -> web.StreamResponse:
        """Answers a SelfSubjectAccessReview."""
        who = self.identify(request)
        review = await requests.body(request)
        is_allowed = self._is_allowed(who, _reviewed(review.get("spec")))
        return responses.json({**review, "status": {"allowed": is_allowed}}, 201)

    async def review(self, request: web.Request) -> web.StreamResponse:
        """Answers a SelfSubjectReview."""
        who = self.identify(request)
        head = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}}
        return responses.json({**head, "status": {"userInfo": {"username": who.user, "groups": who.groups}}}, 201)

    def _is_allowed(self, who: Identity, asked: Asked) -> bool:
        is_about_pod = asked.resource == "pods" and bool(asked.name)
        return rights.is_allowed(who, asked, self._node_of_pod(asked.namespace, asked.name) if is_about_pod else "")


def _refuse_to_impersonate(who: Identity, request: web.Request) -> None:
    """To answer as if nothing had been said would be to answer somebody else."""
    if any(name.lower().startswith(_IMPERSONATE) for name in request.headers):
        asked = Asked("impersonate", "", "", "users", name=request.headers.get("Impersonate-User", ""))
        raise _refusal(who, asked)


def _is_from_unix_socket(request: web.Request) -> bool:
    if request.transport is None:
        return False
    connection = request.transport.get_extra_info("socket")
    return connection is not None and connection.family == socket.AF_UNIX


async def _name_in_body(request: web.Request) -> str:
    """The name of the object that is to be created."""
    metadata = (await requests.body(request)).get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def _reviewed(spec: Any) -> Asked:
    """What a SelfSubjectAccessReview is about.

    Raises:
        ApiError: it is about nothing.
    """
    about: Object = spec if isinstance(spec, dict) else {}
    if isinstance(path := about.get("nonResourceAttributes"), dict):
        return Asked(str(path.get("verb", "")), path=str(path.get("path", "")))
    if not isinstance(resource := about.get("resourceAttributes"), dict):
        raise statuses.bad_request("spec: exactly one of nonResourceAttributes or resourceAttributes must be specified")
    texts = {name: str(resource.get(name) or "") for name in Asked._fields if name != "path"}
    return Asked(**texts)


def _refusal(who: Identity, asked: Asked) -> Exception:
    return statuses.not_permitted(asked.group, asked.resource, asked.name, rights.reason_of_refusal(who, asked))
