"""What a shell offers on TAB: kinds, names of objects, places in the lab, labs, Kubernetes namespaces.

Law: nothing here raises or prints; without root or without a lab there is nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps

import click

from kproxy.api.kinds import KINDS, NAMESPACE, Kind, find
from kproxy.client import Client
from kproxy.cluster import layout
from kproxy.cluster.layout import current_lab
from kproxy.errors import KproxyError

Offer = Callable[[click.Context, click.Parameter, str], list[str]]


def _quietly(offer: Callable[[click.Context], Iterable[str]]) -> Offer:
    @wraps(offer)
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        try:
            return sorted(word for word in offer(ctx) if word.startswith(incomplete))
        except (KproxyError, OSError):
            return []

    return complete


def _client(ctx: click.Context) -> Client:
    root = ctx.find_root()
    client = Client(current_lab(root.params.get("lab") or ctx.params.get("lab")).api_url)
    root.call_on_close(client.close)
    return client


def _names(ctx: click.Context, kind: Kind) -> list[str]:
    namespace = ctx.params.get("namespace") or "default"
    found = _client(ctx).list(kind, namespace if kind.namespaced else None)
    return [obj["metadata"]["name"] for obj in found.items]


@_quietly
def labs(_ctx: click.Context) -> Iterable[str]:
    """Labs that are up."""
    return layout.labs()


@_quietly
def namespaces(ctx: click.Context) -> Iterable[str]:
    """Kubernetes namespaces."""
    return _names(ctx, NAMESPACE)


@_quietly
def resources(ctx: click.Context) -> Iterable[str]:
    """A kind, and after it the names of its objects."""
    words = ctx.params.get("resources") or ctx.params.get("words") or ()
    if not words:
        return [kind.plural for kind in KINDS]
    kind = find(words[0])
    return _names(ctx, kind) if kind else ()


@_quietly
def places(ctx: click.Context) -> Iterable[str]:
    """Where ``exec`` and the like can go: nodes, clients, the router, pods of the namespace."""
    status = _client(ctx).lab_status()
    namespace = ctx.params.get("namespace") or "default"
    pods = [pod["name"] for pod in status["pods"] if pod["podNamespace"] == namespace]
    return ["router", *(place["name"] for place in (*status["nodes"], *status["clients"])), *pods]
