"""Values and failures as HTTP responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from kproxy.errors import ApiError

JSON = "application/json"


def json(value: Any, status: int = 200) -> web.Response:
    """The value, as msgspec encodes it."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=JSON)


def failure(error: ApiError) -> web.Response:
    """The failure as its Status object."""
    return json(error.status, error.code)


def warn(response: web.StreamResponse, warnings: Iterable[str]) -> None:
    """Adds what a person should know (KEP-1693: Warning headers with code 299)."""
    for warning in warnings:
        response.headers.add("Warning", f'299 - "{_header_text(warning)}"')


def _header_text(text: str) -> str:
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return printable.replace("\\", "\\\\").replace('"', '\\"')
