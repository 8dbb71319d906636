"""POST, PUT, PATCH and DELETE: requests that become one write of the registry."""

from __future__ import annotations

import msgspec
from aiohttp import web

from kproxy.api.event_forms import patch_of_core
from kproxy.api.kinds import POD, SERVICE
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests, responses
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.representations import Representation, negotiate
from kproxy.cluster.apiserver.requests import OBJECT_LIMIT, REQUEST_LIMIT, body, object_sent
from kproxy.cluster.apiserver.write_options import deletion, manner
from kproxy.cluster.patches import APPLY_PATCH, MEDIA_TYPES
from kproxy.cluster.store import state
from kproxy.cluster.writes import Answer

_SHOWN_WHEN_GONE = (POD, SERVICE)
"""Kinds whose objects are the answer to their deletion (Kubernetes: ReturnDeletedObject); others' is a Status."""


async def create(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Stores a new object."""
    form = negotiate(request, target)
    obj = await object_sent(request, target)
    if target.kind.namespaced and not target.namespace:
        raise statuses.method_not_allowed()
    how = manner(request, target)
    answer = await backend.write(backend.registry.create, target.kind, target.namespace, obj, how)
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
    how = manner(request, target)
    answer = await backend.write(backend.registry.update, target.kind, target.key, obj, how)
    return _answered(form, answer)


async def patch(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Changes an object, or its status, as the patch says; what is applied and not there yet is created."""
    form = negotiate(request, target)
    media_type = request.content_type
    if media_type not in MEDIA_TYPES:
        raise statuses.unsupported_media_type(MEDIA_TYPES)
    change = await requests.value(request, is_yaml=media_type == APPLY_PATCH)
    if target.seen_as is not None:
        change = patch_of_core(change)
    how = manner(request, target)
    answer = await backend.write(backend.registry.patch, target.kind, target.key, change, media_type, how)
    return _answered(form, answer, 201 if answer.is_new else 200)


async def delete(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Deletes an object, or begins to."""
    form = negotiate(request, target)
    options, dry_run = deletion(request, await body(request) if request.can_read_body else {})
    deleted = await backend.write(backend.registry.delete, target.kind, target.key, options, dry_run=dry_run)
    if target.kind in _SHOWN_WHEN_GONE or deleted["metadata"].get("deletionTimestamp"):
        return web.Response(body=form.of_object(deleted), content_type=form.content_type)
    return responses.json(_gone(target, deleted))


async def delete_collection(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Deletes all objects that the selectors choose, and answers with their last states."""
    form = negotiate(request, target)
    if target.kind.namespaced and not target.namespace:
        raise statuses.method_not_allowed()
    chosen = requests.selection(request, target)
    options, dry_run = deletion(request, await body(request) if request.can_read_body else {})
    deleted = await backend.write(
        backend.registry.delete_collection, target.kind, target.namespace, chosen, options, dry_run=dry_run
    )
    states = (state(target.kind, obj) for obj in deleted)
    listed = form.of_list(states, {"resourceVersion": str(backend.store.revision)})
    return web.Response(body=listed, content_type=form.content_type)


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


def _gone(target: Target, deleted: Object) -> Object:
    """The Status for an object that is no more."""
    kind = target.form
    details = {"name": target.name, "group": kind.group, "kind": kind.plural, "uid": deleted["metadata"]["uid"]}
    told = {key: value for key, value in details.items() if value}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": told}


def _answered(form: Representation, answer: Answer, status: int = 200) -> web.Response:
    response = web.Response(body=form.of_object(answer.object), status=status, content_type=form.content_type)
    responses.warn(response, answer.warnings)
    return response
