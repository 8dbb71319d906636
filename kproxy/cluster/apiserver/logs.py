"""The subresource ``log`` of a pod.

A container's log has no times in it: what asks for them gets the lines, and a warning.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiohttp import web

from kproxy.api.kinds import POD
from kproxy.api.types import Object
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests, responses
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.pods import container_named, status_of

_CHUNK = 64 * 1024
_POLL_SECONDS = 0.1
_NO_TIMES = "the lines of a log have no times in a lab: timestamps and since are not taken into account"


@dataclass(frozen=True)
class _Options:
    """What of the log is asked for.

    Attributes:
        is_followed: whether to go on until the container is gone.
        tail: how many lines of what is there; None is all of them.
        limit: how many bytes at most; None is any number.
        warnings: what of the request has no effect.
    """

    is_followed: bool
    tail: int | None
    limit: int | None
    warnings: tuple[str, ...]


async def get(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """What a container has written, and with ``follow`` what it goes on to write."""
    pod = backend.registry.get(POD, *target.key)
    container = container_named(pod, request.query.get("container", ""))
    options = _options(request)
    is_previous = requests.is_true(request, "previous")
    if is_previous and not status_of(pod, container).get("restartCount"):
        raise statuses.bad_request(f'previous terminated container "{container}" in pod "{target.name}" not found')
    path = backend.pods.log(target.namespace, target.name, container, is_previous=is_previous)
    if not path.exists() and not options.is_followed and (reason := _waiting_for(pod, container)):
        raise statuses.bad_request(f'container "{container}" in pod "{target.name}" is waiting to start: {reason}')
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    responses.warn(response, options.warnings)
    response.enable_chunked_encoding()
    await response.prepare(request)
    left = options.limit
    async for chunk in _read(backend, pod, path, options):
        await response.write(chunk if left is None else chunk[:left])
        left = None if left is None else max(0, left - len(chunk))
        if left == 0:
            break
    await response.write_eof()
    return response


def _options(request: web.Request) -> _Options:
    asks_for_times = requests.is_true(request, "timestamps") or bool(
        request.query.get("sinceSeconds") or request.query.get("sinceTime")
    )
    return _Options(
        requests.is_true(request, "follow"),
        requests.number(request, "tailLines") if "tailLines" in request.query else None,
        requests.number(request, "limitBytes") if "limitBytes" in request.query else None,
        (_NO_TIMES,) if asks_for_times else (),
    )


async def _read(backend: Backend, pod: Object, path: Path, options: _Options) -> AsyncIterator[bytes]:
    while not path.exists():
        if not options.is_followed or _is_over(backend, pod):
            return
        await asyncio.sleep(_POLL_SECONDS)
    with path.open("rb") as file:
        if options.tail is not None:
            file.seek(await asyncio.to_thread(_start_of_last, file, options.tail))
        is_over = False
        while True:
            while chunk := file.read(_CHUNK):
                yield chunk
            if is_over or not options.is_followed or backend.is_stopping:
                return
            is_over = _is_over(backend, pod)  # what was written before it ended is read once more
            await asyncio.sleep(_POLL_SECONDS)


def _start_of_last(file: IO[bytes], lines: int) -> int:
    """Where the last so many lines of the file begin."""
    position = file.seek(0, os.SEEK_END)
    if lines == 0:
        return position
    seen = 0
    is_last_byte = True
    while position > 0:
        size = min(_CHUNK, position)
        position -= size
        file.seek(position)
        chunk = file.read(size)
        for index in range(size - 1, -1, -1):
            if chunk[index] == ord("\n") and not is_last_byte:
                seen += 1
                if seen == lines:
                    return position + index + 1
            is_last_byte = False
    return 0


def _waiting_for(pod: Object, container: str) -> str:
    waiting = (status_of(pod, container).get("state") or {}).get("waiting") or {}
    return str(waiting.get("reason", "") or ("" if pod["spec"].get("nodeName") else "not scheduled yet"))


def _is_over(backend: Backend, pod: Object) -> bool:
    """Whether nothing more is written: this very pod is no more, or has done its work."""
    now = backend.store.get(POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
    if now is None or now["metadata"]["uid"] != pod["metadata"]["uid"]:
        return True
    return (now.get("status") or {}).get("phase") in ("Succeeded", "Failed")
