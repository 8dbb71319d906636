"""The Kubernetes HTTP API over the store.

Law: what an object may be is the registry's business; here HTTP becomes a call of it and its answer becomes HTTP.

A request goes ``listening`` (sockets) -> ``entrance`` (by TLS: how many may come in) -> ``dispatch`` (which handler) ->
``paths`` (what is named) and ``requests`` (what is asked) -> ``reading``, ``watching`` or ``writing`` ->
``representations`` (in which form it is answered) and ``responses``.
"""

from kproxy.cluster.apiserver.listening import Server, serve

__all__ = ["Server", "serve"]
