"""GET of objects and collections, and of what the lab says about itself."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kproxy.cluster.apiserver import list_options, requests, responses
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.representations import negotiate
from kproxy.cluster.apiserver.sending import send
from kproxy.cluster.apiserver.watching import watch
from kproxy.cluster.paging import page_of


async def get(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """One object."""
    form = negotiate(request, target)
    found = backend.registry.get(target.kind, *target.key)
    return web.Response(body=form.of_object(found), content_type=form.content_type)


async def list_or_watch(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """A collection, or the changes to it."""
    form = negotiate(request, target)
    if requests.is_true(request, "watch"):
        return await watch(backend, request, target, list_options.watching(request, target), form)
    page = page_of(backend.store, list_options.listing(request, target))
    return await send(request, form.of_list(page.events, page.metadata), form.content_type)


async def show_lab(backend: Backend, _: web.Request) -> web.StreamResponse:
    """What the lab is made of."""
    return responses.json(await asyncio.to_thread(backend.lab_status))


async def show_health(_: Backend, __: web.Request) -> web.StreamResponse:
    """That the server answers."""
    return web.Response(text="ok")
