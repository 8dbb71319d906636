"""Which handler answers a request, and what every failure becomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from kproxy.api.kinds import POD
from kproxy.client import APPLIES_PATH, LAB_PATH
from kproxy.cluster import statuses
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import commands, discovery, logs, reading, scaling, writing
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.guard import ACCESS_REVIEWS, REVIEWS, Guard
from kproxy.cluster.apiserver.paths import Target, resolve
from kproxy.cluster.apiserver.pods import PodAccess
from kproxy.cluster.apiserver.requests import check_media_type
from kproxy.cluster.apiserver.responses import failure
from kproxy.cluster.registry import Registry
from kproxy.cluster.store import Store
from kproxy.cluster.tokens import Tokens
from kproxy.errors import ApiError, HostError, NotFound, UserError

_LOG = logging.getLogger(__name__)

_Verb = Callable[[Backend, web.Request, Target], Awaitable[web.StreamResponse]]
_VERBS: Mapping[tuple[str, bool, str], _Verb] = {
    ("GET", False, ""): reading.list_or_watch,
    ("POST", False, ""): writing.create,
    ("DELETE", False, ""): writing.delete_collection,
    ("GET", True, ""): reading.get,
    ("GET", True, "status"): reading.get,
    ("PUT", True, ""): writing.update,
    ("PUT", True, "status"): writing.update,
    ("PATCH", True, ""): writing.patch,
    ("PATCH", True, "status"): writing.patch,
    ("DELETE", True, ""): writing.delete,
    ("GET", True, "scale"): scaling.get,
    ("PUT", True, "scale"): scaling.update,
    ("PATCH", True, "scale"): scaling.patch,
    ("POST", True, "binding"): writing.bind,
    ("GET", True, "log"): logs.get,
    ("GET", True, "exec"): commands.run,
    ("POST", True, "exec"): commands.run,
}
_OWN_PATHS: Mapping[tuple[str, str], Callable[[Backend, web.Request], Awaitable[web.StreamResponse]]] = {
    ("POST", APPLIES_PATH): writing.apply,
    ("GET", LAB_PATH): reading.show_lab,
    ("GET", "/healthz"): reading.show_health,
    ("GET", "/livez"): reading.show_health,
    ("GET", "/readyz"): reading.show_health,
}


def make_app(
    store: Store,
    *,
    cluster: ClusterSettings,
    lab_status: Callable[[], Any],
    tokens: Tokens | None = None,
    pods: PodAccess | None = None,
) -> web.Application:
    """The API as an aiohttp application.

    Args:
        store: where the objects are.
        cluster: its ranges and families.
        lab_status: what ``GET /apis/kproxy.dev/v1alpha1/lab`` answers, as msgspec encodes it; called in a thread.
        tokens: who may ask by other doors than the unix socket; None means nobody.
        pods: the way into pods, for their logs and for commands in them; None when there is none.
    """
    registry = Registry(store, cluster)
    registry.bootstrap()
    backend = Backend(store, registry, lab_status, pods)
    app = web.Application()
    app.on_startup.append(backend.start)
    app.on_shutdown.append(backend.stop)
    app.router.add_route("*", "/{path:.*}", _handler(backend, _guard(tokens, registry)))
    return app


def _guard(tokens: Tokens | None, registry: Registry) -> Guard:
    def node_of_pod(namespace: str, name: str) -> str:
        try:
            return str(registry.get(POD, namespace, name)["spec"].get("nodeName") or "")
        except NotFound:
            return ""

    return Guard(tokens or Tokens({}), node_of_pod)


def _handler(backend: Backend, guard: Guard) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    reviews = {ACCESS_REVIEWS: guard.review_access, REVIEWS: guard.review}

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            await guard.admit(request)
            if request.method == "POST" and (review := reviews.get(request.path)):
                return await review(request)
            return await _answer(backend, request)
        except ApiError as error:
            return failure(error)
        except UserError as error:
            return failure(statuses.bad_request(str(error)))
        except HostError as error:
            _LOG.error("%s %s: %s", request.method, request.path, error)
            return failure(statuses.internal(str(error)))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a bug of ours: the client hears of it, the server goes on
            _LOG.exception("%s %s", request.method, request.path)
            return failure(statuses.internal(f"{type(error).__name__}: {error}"))

    return handle


async def _answer(backend: Backend, request: web.Request) -> web.StreamResponse:
    path = request.raw_path.partition("?")[0]
    if request.method != "PATCH":
        check_media_type(request)
    own = _OWN_PATHS.get((request.method, path))
    if own is not None:
        return await own(backend, request)
    target = resolve(path)
    if target is None and (found := discovery.find(request, path)) is not None:
        if request.method not in ("GET", "HEAD"):
            raise statuses.method_not_allowed()
        return found
    if target is None:
        raise statuses.no_such_path()
    verb = _VERBS.get((request.method, bool(target.name), target.subresource))
    if verb is None:
        raise statuses.method_not_allowed()
    return await verb(backend, request, target)
