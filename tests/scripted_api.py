"""An API server that answers what a test says, remembers what it was asked, and knows certificates and tokens."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from kproxy.cluster import certificates


class Request(NamedTuple):
    """What it was asked."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    certificate: str


class Answer(NamedTuple):
    """What it answers; lines of a watch one by one, then the end."""

    code: int = 200
    body: Any = None
    lines: tuple[Any, ...] = ()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go at any time."""


Script = Callable[[Request], Answer]


class ScriptedApi:
    """Serves by TLS on 127.0.0.1.

    Args:
        folder: where the certificates go.
        script: what it answers.
        client_authority: PEM; clients have to show a certificate of it.
    """

    def __init__(self, folder: Path, script: Script, client_authority: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.authority = folder / "pki" / certificates.CA_CERTIFICATE
        certificates.ensure(folder / "pki", ["127.0.0.1", "kubernetes"])
        context = certificates.server_context(folder / "pki")
        if client_authority is not None:
            context.load_verify_locations(client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
        self._server = _Server(("127.0.0.1", 0), self._handler(script))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self, script: Script) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.do_GET()

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                shown = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
                subject = dict(pair[0] for pair in shown.get("subject", ()))
                query = dict(parse_qsl(parts.query))
                token = self.headers.get("Authorization", "")
                asked = Request(self.command, parts.path, query, token, subject.get("commonName", ""))
                outer.requests.append(asked)
                answer = script(asked)
                body = json.dumps(answer.body).encode() if answer.body is not None else b""
                for line in answer.lines:
                    body += json.dumps(line).encode() + b"\n"
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(answer.code)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def listing(*items: Any, version: str = "7", more: str = "") -> Answer:
    """A list, or a page of one."""
    metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
    return Answer(body={"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": list(items)})


def refusal(code: int, reason: str) -> Answer:
    """A failure."""
    return Answer(code, {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason})
