"""Connections to a Kubernetes API, over a unix socket, TCP or TLS, and what is shown to be let in."""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from kproxy.errors import UserError

_REQUEST_TIMEOUT = 60.0  # seconds; an apply of 10,000 objects takes a few


class Credentials(Protocol):
    """Whom a client trusts and what it shows; both may change while it lives. Called from any thread."""

    def ssl_context(self) -> Any:
        """For a new connection by https: an ssl.SSLContext, or None for the system's authorities."""

    def headers(self) -> Mapping[str, str]:
        """Sent with every request, such as Authorization."""

    def renew(self) -> bool:
        """After the server said 401: whether there is something else to show now."""


@dataclass(frozen=True)
class FixedCredentials:
    """Credentials that never change."""

    context: Any
    shown: Mapping[str, str]

    def ssl_context(self) -> Any:
        """See Credentials."""
        return self.context

    def headers(self) -> Mapping[str, str]:
        """See Credentials."""
        return self.shown

    def renew(self) -> bool:
        """See Credentials."""
        return False


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_REQUEST_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise


class _TlsConnection(http.client.HTTPSConnection):
    """HTTPS to a server whose certificate may bear another name."""

    def __init__(self, host: str, port: int | None, context: Any, server_name: str) -> None:
        super().__init__(host, port, timeout=_REQUEST_TIMEOUT, context=context)
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        if not self._server_name or self._tls is None:
            super().connect()
            return
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


class ThreadConnection:
    """A connection that is closed when its thread ends."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


def connector(
    url: str, credentials: Credentials, by_way_of: str, server_name: str
) -> Callable[[], http.client.HTTPConnection]:
    """What makes connections to that address.

    Raises:
        UserError: it is no address of a Kubernetes API.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        path = unquote(parts.path)
        return lambda: _UnixConnection(path)
    if parts.hostname and parts.scheme in ("http", "https") and not (parts.query or parts.fragment):
        return lambda: _tcp_connection(parts, credentials, by_way_of, server_name)
    raise UserError(f"{url!r} is no address of a Kubernetes API: unix:///path, http://host:port or https://host:port")


def _tcp_connection(
    parts: SplitResult, credentials: Credentials, by_way_of: str, server_name: str
) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_REQUEST_TIMEOUT)
    if not by_way_of:
        return _TlsConnection(host, port, credentials.ssl_context(), server_name)
    proxy = urlsplit(by_way_of)
    connection = _TlsConnection(proxy.hostname or "", proxy.port or 80, credentials.ssl_context(), server_name or host)
    connection.set_tunnel(host, port or 443)
    return connection


def is_readable(idle: socket.socket) -> bool:
    """Whether an idle connection has something to say: that is its end."""
    poll = select.poll()
    poll.register(idle, select.POLLIN)
    return bool(poll.poll(0))


def hang_up(watched: socket.socket) -> None:
    """Ends a connection that another thread reads from."""
    try:
        watched.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return
