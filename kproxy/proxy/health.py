"""Whether this node's proxy is up to date, and the small HTTP server that says so.

Paths: ``/healthz`` and ``/livez`` as kube-proxy has them, and ``/programmed``, which tells (or waits) how far the
kernel is.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from kproxy.errors import HostError
from kproxy.proxy.family import Family
from kproxy.proxy.progress import Progress

_LOG = logging.getLogger(__name__)

BIND_RETRY_SECONDS = 5.0
MAX_WAIT_SECONDS = 300.0


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer."""

    status: int
    body: str
    headers: dict[str, str] = {}
    content_type: str = "application/json"


class Health:
    """Which proxiers are up to date; safe to use from any thread (kube-proxy: healthcheck/proxy_health.go).

    A proxier is unhealthy when a change has waited longer than ``timeout`` for a successful sync. One that is idle or
    has only just started is healthy.

    Args:
        timeout: seconds, twice the sync period.
        clock: seconds that never go back.
        wall: the time of day.
    """

    def __init__(
        self, timeout: float, clock: Callable[[], float], wall: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._queued: dict[Family, float] = {}
        self._updated: dict[Family, float] = {}
        self._is_eligible = False

    def queued(self, family: Family, now: float) -> None:
        """A change waits for a sync."""
        with self._lock:
            self._queued.setdefault(family, now)

    def updated(self, family: Family, now: float) -> None:
        """A sync succeeded."""
        with self._lock:
            self._updated[family] = now
            self._queued.pop(family, None)

    def node_is_eligible(self, is_eligible: bool) -> None:
        """Whether load balancers may send traffic to this node."""
        with self._lock:
            self._is_eligible = is_eligible

    def is_healthy(self) -> bool:
        """Whether every proxier is up to date (what /livez says)."""
        with self._lock:
            return all(self._is_up_to_date(family) for family in Family)

    def livez(self) -> Answer:
        """The answer to /livez."""
        return self._answer(with_eligibility=False)

    def healthz(self) -> Answer:
        """The answer to /healthz: /livez, and the node may get traffic."""
        return self._answer(with_eligibility=True)

    def _is_up_to_date(self, family: Family) -> bool:
        queued = self._queued.get(family)
        return queued is None or self._clock() - queued < self._timeout

    def _answer(self, *, with_eligibility: bool) -> Answer:
        with self._lock:
            now, today = self._clock(), self._wall()
            healthy = {family: self._is_up_to_date(family) for family in Family}
            status = {
                family.value: {"lastUpdated": _rfc3339(today - _ago(now, at)), "healthy": healthy[family]}
                for family, at in self._updated.items()
            }
            is_eligible = self._is_eligible
            last = min(self._updated.values(), default=now)
        is_healthy = all(healthy.values())
        is_ok = is_healthy and (is_eligible or not with_eligibility)
        body: dict[str, Any] = {
            "lastUpdated": _rfc3339(today if is_ok else today - _ago(now, last)),
            "currentTime": _rfc3339(today),
            **({"nodeEligible": is_eligible} if with_eligibility else {}),
            "healthy": is_healthy,
            **({"status": status} if status else {}),
        }
        return Answer(200 if is_ok else 503, json.dumps(body), {"X-Content-Type-Options": "nosniff"})


def _ago(now: float, then: float) -> timedelta:
    return timedelta(seconds=now - then)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def programmed(progress: Progress, query: str) -> Answer:
    """The answer to /programmed.

    Args:
        progress: how far the kernel is.
        query: ``resourceVersion=N`` waits until the kernel holds N, at most ``timeoutSeconds`` (default 30).
    """
    given = parse_qs(query)
    try:
        wanted = int(given.get("resourceVersion", ["0"])[0])
        seconds = float(given.get("timeoutSeconds", ["30"])[0])
    except ValueError:
        return Answer(400, json.dumps({"error": "resourceVersion and timeoutSeconds have to be numbers"}))
    is_there = progress.wait_for(wanted, min(max(seconds, 0.0), MAX_WAIT_SECONDS))
    return Answer(200 if is_there else 503, json.dumps(progress.as_json()))


Routes = dict[str, Callable[[str], Answer]]
"""Path -> what answers its query string; the path "" answers all others."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        # a client that hangs up while it waits is no news; http.server would print a traceback
        _LOG.debug("an HTTP request from %s ended early", client_address, exc_info=True)


def _handler(routes: Routes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path, query = urlsplit(self.path)[2:4]
            answer_to = routes.get(path) or routes.get("")
            answer = answer_to(query) if answer_to else Answer(404, "404 page not found\n", {}, "text/plain")
            body = answer.body.encode()
            self.send_response(answer.status)
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


def split_bind_address(text: str, default_port: int) -> tuple[str, int]:
    """Address and port of ``0.0.0.0:10256``, ``[::]:10256`` or a bare address."""
    if text.count(":") == 1 or text.startswith("["):
        address, _, port = text.rpartition(":")
        return address.strip("[]"), int(port)
    return text, default_port


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
