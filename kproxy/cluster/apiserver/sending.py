"""Writing to clients that may not read.

Law: what waits for a client is at most one piece. Who does not take it for ``PATIENCE`` seconds is hung up on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

PATIENCE = 30.0
"""Seconds that a client may let a write wait."""
PIECE: Final = 256 * 1024
"""Bytes of one write, more or less: so much may wait for each of many slow readers."""


class HasStalled(Exception):
    """The client does not read."""


async def write(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Writes one piece.

    Raises:
        HasStalled: the client does not take it.
    """
    async with _patience():
        await response.write(data)


async def end(response: web.StreamResponse) -> None:
    """Ends an answer.

    Raises:
        HasStalled: the client does not take what is left of it.
    """
    async with _patience():
        await response.write_eof()


def hang_up(request: web.Request) -> None:
    """Ends the connection at once, and lets go of what waits for it."""
    if request.transport is not None:
        request.transport.abort()


async def send(request: web.Request, body: bytes, content_type: str) -> web.StreamResponse:
    """Answers with a body that may be large."""
    if len(body) <= PIECE:
        return web.Response(body=body, content_type=content_type)
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.content_length = len(body)
    await response.prepare(request)
    view = memoryview(body)
    try:
        for place in range(0, len(body), PIECE):
            await write(response, view[place : place + PIECE])
        await end(response)
    except HasStalled:
        hang_up(request)
    return response


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    limit = asyncio.timeout(PATIENCE)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise HasStalled from error
        raise
