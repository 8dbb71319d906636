"""The small HTTP server of a node proxy: paths, answers, and threads that serve them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY
from socketserver import TCPServer
from urllib.parse import urlsplit

import msgspec

from kproxy.errors import HostError

_LOG = logging.getLogger(__name__)

BIND_RETRY_SECONDS = 5.0
PLAIN_TEXT = "text/plain; charset=utf-8"
NO_SNIFF = {"X-Content-Type-Options": "nosniff"}


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer."""

    status: int
    body: str
    headers: dict[str, str] = {}
    content_type: str = "application/json"


Routes = dict[str, Callable[[str], Answer]]
"""Path -> what answers its query string; the path "" answers all others."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # http.server's own asks DNS for this host's name, which may take its time

    def handle_error(self, request: object, client_address: object) -> None:
        # a client that hangs up while it waits is no news; http.server would print a traceback
        _LOG.debug("an HTTP request from %s ended early", client_address, exc_info=True)


def _handler(routes: Routes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or the body waits 40 ms for the client to acknowledge the head

        def answer(self) -> None:
            path, query = urlsplit(self.path)[2:4]
            answer_to = routes.get(path) or routes.get("")
            answer = answer_to(query) if answer_to else Answer(404, "404 page not found\n", NO_SNIFF, PLAIN_TEXT)
            body = answer.body.encode()
            self.send_response_only(answer.status)
            self.send_header("Date", self.date_time_string())
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - http.server's own names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name
            _LOG.debug(format, *args)

    return Handler


class _Server6(_Server):
    address_family = AF_INET6


class _OnlyServer6(_Server6):
    def server_bind(self) -> None:
        self.socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        super().server_bind()


def listen(address: str, port: int, routes: Routes, *, is_one_family: bool = False) -> ThreadingHTTPServer:
    """Serve routes on one address, in threads.

    Args:
        address: where; ``::`` takes IPv4 as well, unless ``is_one_family``.
        port: where.
        routes: what to answer.
        is_one_family: leave the other family's port alone.

    Raises:
        HostError: the address cannot be bound.
    """
    six = _OnlyServer6 if is_one_family else _Server6
    server_type = six if ":" in address else _Server
    try:
        server = server_type((address, port), _handler(routes))
    except OSError as error:
        raise HostError(f"cannot listen on {address} port {port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, args=(0.5,), name=f"http-{port}", daemon=True).start()
    return server


def split_bind_address(text: str) -> tuple[str, int]:
    """Address and port of ``0.0.0.0:10256`` or ``[::]:10256``."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def serve(address: str, port: int, routes: Routes, *, is_hard_fail: bool) -> None:
    """Serve routes, trying again every 5 s where the address cannot be bound.

    Raises:
        HostError: it cannot be bound, and ``is_hard_fail`` says that this is fatal.
    """
    try:
        listen(address, port, routes)
    except HostError as error:
        if is_hard_fail:
            raise
        _LOG.error("%s; trying again", error)
        threading.Thread(target=_keep_trying, args=(address, port, routes), daemon=True).start()


def _keep_trying(address: str, port: int, routes: Routes) -> None:
    while True:
        time.sleep(BIND_RETRY_SECONDS)
        try:
            listen(address, port, routes)
        except HostError:
            continue
        return
