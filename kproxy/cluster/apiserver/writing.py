"""POST, PUT, PATCH and DELETE: requests that become one write of the registry."""

from __future__ import annotations

import msgspec
from aiohttp import web

from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests, responses
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.representations import Representation, negotiate
from kproxy.cluster.apiserver.requests import OBJECT_LIMIT, REQUEST_LIMIT, body, is_dry_run, object_sent
from kproxy.cluster.writes import Answer

_MERGE_PATCH = "application/merge-patch+json"


async def create(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Stores a new object."""
    form = negotiate(request, target)
    obj = await object_sent(request, target)
    if target.kind.namespaced and not target.namespace:
        raise statuses.method_not_allowed()
    if obj.get("metadata") is None:
        obj["metadata"] = {}
    answer = await backend.write(
        backend.registry.create, target.kind, target.namespace, obj, dry_run=is_dry_run(request)
    )
    return _answered(form, answer, 201)


async def bind(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Gives a pod its node."""
    binding = await body(request)
    bound_to = binding.get("target")
    node = bound_to.get("name") if isinstance(bound_to, dict) else None
    if not isinstance(node, str) or not node:
        raise statuses.bad_request("target.name: Required value")
    await backend.write(backend.registry.bind, *target.key, node)
    return responses.json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)


async def update(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Replaces an object, or its status."""
    form = negotiate(request, target)
    obj = await object_sent(request, target)
    answer = await backend.write(
        backend.registry.update, target.kind, target.key, obj, target.subresource, dry_run=is_dry_run(request)
    )
    return _answered(form, answer)


async def patch(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Changes an object, or its status."""
    form = negotiate(request, target)
    if request.content_type != _MERGE_PATCH:
        raise statuses.unsupported_media_type((_MERGE_PATCH,))
    change = await body(request)
    answer = await backend.write(
        backend.registry.patch, target.kind, target.key, change, target.subresource, dry_run=is_dry_run(request)
    )
    return _answered(form, answer)


async def delete(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Deletes an object, or begins to."""
    form = negotiate(request, target)
    options = requests.delete_options(request, await body(request) if request.can_read_body else {})
    deleted = await backend.write(
        backend.registry.delete, target.kind, target.key, options, dry_run=is_dry_run(request)
    )
    return web.Response(body=form.of_object(deleted), content_type=form.content_type)


async def apply(backend: Backend, request: web.Request) -> web.StreamResponse:
    """Makes many documents so in one transaction, or none of them."""
    asked = await body(request, REQUEST_LIMIT)
    documents = asked.get("documents")
    if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
        raise statuses.bad_request("documents: a list of objects is needed")
    for index, document in enumerate(documents):
        if len(msgspec.json.encode(document)) > OBJECT_LIMIT:
            raise statuses.bad_request(f"document {index} is larger than {OBJECT_LIMIT} bytes")
    options = {"dry_run": asked.get("dryRun") is True, "delete": asked.get("delete") is True}
    return responses.json(await backend.write(backend.registry.apply, documents, **options))


def _answered(form: Representation, answer: Answer, status: int = 200) -> web.Response:
    response = web.Response(body=form.of_object(answer.object), status=status, content_type=form.content_type)
    responses.warn(response, answer.warnings)
    return response
