"""GET, PUT and PATCH of the subresource ``scale``."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from kproxy.api import scale
from kproxy.api.kinds import SCALE
from kproxy.api.types import Object
from kproxy.cluster import patches, statuses
from kproxy.cluster.apiserver import requests, responses
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.write_options import manner

_PATCH_TYPES = tuple(media for media in patches.MEDIA_TYPES if media != patches.APPLY_PATCH)


async def get(backend: Backend, _: web.Request, target: Target) -> web.StreamResponse:
    """The Scale of one workload."""
    return responses.json(scale.of(backend.registry.get(target.kind, *target.key)))


async def update(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Scales a workload as the body says."""
    wanted = await requests.body(request)
    return await _scale(backend, request, target, lambda _: wanted)


async def patch(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Scales a workload as a patch of its Scale says."""
    media_type = request.content_type
    if media_type not in _PATCH_TYPES:
        raise statuses.unsupported_media_type(_PATCH_TYPES)
    change = await requests.value(request)
    return await _scale(backend, request, target, lambda old: patches.patched(SCALE, old, media_type, change))


async def _scale(
    backend: Backend, request: web.Request, target: Target, wanted_for: Callable[[Object], Object]
) -> web.StreamResponse:
    def alteration(workload: Object) -> Object:
        wanted = {"apiVersion": SCALE.api_version, "kind": SCALE.name, **wanted_for(scale.of(workload))}
        if errors := scale.check(wanted):
            raise statuses.invalid(SCALE, target.name, errors)
        return scale.applied(workload, wanted)

    answer = await backend.write(backend.registry.alter, target.kind, target.key, alteration, manner(request, target))
    response = responses.json(scale.of(answer.object))
    responses.warn(response, answer.warnings)
    return response
