"""The echo server: what answers in a pod whose image has no program here.

It listens on any number of TCP and UDP ports of both families and says who answered and whom it saw. HTTP/1.1 with
keep-alive over TCP (`/`, `/hostname`, `/clientip`, `/json`), the same words as a datagram over UDP.

Law: one thread, few imports (every pod has one of these), and nothing is imported or opened by path once it runs, for
its root folder is empty by then.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from netns import libc

MAX_REQUEST: Final = 16 * 1024
"""Bytes that a request's head may have."""
MAX_CONNECTIONS: Final = 4096
"""Above this the oldest connection is closed."""
CONTROL_MESSAGE: Final = 256 * 1024
_TCP_SAVE_SYN: Final = 27
_TCP_SAVED_SYN: Final = 28
_IP_PKTINFO: Final = 8
_IP_RECVTTL: Final = 12
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
_IPV6_RECVHOPLIMIT: Final = 51
_IPV6_HOPLIMIT: Final = 52
_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.([01])\r?$")
_UDP_WORDS: Final = {b"json": "/json", b"hostname": "/hostname", b"clientip": "/clientip"}

Port = tuple[str, int]
"""`("TCP", 80)`."""


class Identity(NamedTuple):
    """Who answers: the pod's name, its Kubernetes namespace, its node's name."""

    pod: str
    namespace: str
    node: str


class Seen(NamedTuple):
    """One request as it reached the pod.

    Attributes:
        address: the pod's address and port that it reached.
        client: the source that the pod saw.
        ttl: time to live, or hop limit, of the packet that opened the conversation; None if the kernel kept none.
    """

    protocol: str
    address: tuple[str, int]
    client: tuple[str, int]
    ttl: int | None


def body(identity: Identity, seen: Seen, path: str, wants_json: bool) -> tuple[str, str]:
    """The content type and the text of an answer."""
    if wants_json or path == "/json":
        answer = {
            "pod": identity.pod,
            "namespace": identity.namespace,
            "node": identity.node,
            "address": seen.address[0],
            "port": seen.address[1],
            "client": seen.client[0],
            "clientPort": seen.client[1],
            "protocol": seen.protocol,
            "ttl": seen.ttl,
        }
        return "application/json", json.dumps(answer) + "\n"
    if path == "/hostname":
        return "text/plain", f"{identity.pod}\n"
    if path == "/clientip":
        return "text/plain", f"{_joined(seen.client)}\n"
    lines = (
        f"pod: {identity.pod}",
        f"namespace: {identity.namespace}",
        f"node: {identity.node}",
        f"address: {_joined(seen.address)}",
        f"client: {_joined(seen.client)}",
        f"protocol: {seen.protocol}",
        f"ttl: {'unknown' if seen.ttl is None else seen.ttl}",
    )
    return "text/plain", "\n".join(lines) + "\n"


def _joined(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Connection:
    """One TCP connection and what of its next request has arrived."""

    def __init__(self, sock: socket.socket, seen: Seen) -> None:
        self.sock = sock
        self.seen = seen
        self.data = b""
        self.to_skip = 0

    def read(self) -> bool:
        """Takes in what has arrived; false at the end of the connection."""
        try:
            chunk = self.sock.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        skipped = min(self.to_skip, len(chunk))
        self.to_skip -= skipped
        self.data += chunk[skipped:]
        return bool(chunk)

    def next_request(self) -> tuple[str, str, dict[str, str], bool] | None:
        """Method, path, headers and whether the connection stays open; None while the head is incomplete.

        Text that is no HTTP counts as a request for `/` after which the connection is closed.
        """
        first, newline, _ = self.data.partition(b"\n")
        if not newline:
            return ("GET", "/", {}, False) if len(self.data) > MAX_REQUEST else None
        line = _REQUEST_LINE.match(first)
        if line is None:
            return "RAW", "/", {}, False
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return ("GET", "/", {}, False) if len(self.data) > MAX_REQUEST else None
        headers = dict(_header(text) for text in head.decode("latin-1").split("\r\n")[1:])
        length = headers.get("content-length", "0")
        self.to_skip = int(length) if length.isdecimal() and len(length) < 12 else 0
        skipped = min(self.to_skip, len(rest))
        self.to_skip -= skipped
        self.data = rest[skipped:]
        keep = headers.get("connection", "keep-alive" if line[3] == b"1" else "close").lower() != "close"
        return line[1].decode(), line[2].decode("latin-1"), headers, keep and "transfer-encoding" not in headers


def _header(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    return name.strip().lower(), value.strip()


class EchoServer:
    """Serves until SIGTERM; the ports are told over the control socket and may change at any time.

    Args:
        identity: who answers.
        control: a listening SEQPACKET unix socket. Each message is `{"ports": [["TCP", 80], ...]}`, the complete list;
            the answer is `{"listening": [...], "failed": [["TCP", 80, "reason"], ...]}`.
    """

    def __init__(self, identity: Identity, control: socket.socket) -> None:
        self._identity = identity
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[Port, list[socket.socket]] = {}
        self._connections: dict[socket.socket, _Connection] = {}
        control.setblocking(False)
        self._watch(control, lambda: self._accept_control(control))

    def run(self) -> NoReturn:
        """Serves for ever."""
        signal.signal(signal.SIGTERM, _leave)
        libc.allow_open_files()
        while True:
            for key, _ in self._selector.select():
                key.data()

    def set_ports(self, wanted: set[Port]) -> list[tuple[str, int, str]]:
        """Ensures that exactly these ports are listened on, in both families.

        Returns:
            Those that could not be, with the reason.
        """
        for port in set(self._listeners) - wanted:
            for sock in self._listeners.pop(port):
                self._selector.unregister(sock)
                while port[0] == "TCP" and self._accept(sock):
                    pass  # who is connected already is served; the kernel would reset those that wait
                sock.close()
        failed = []
        for port in sorted(wanted - set(self._listeners)):
            try:
                self._listeners[port] = self._listen(port)
            except OSError as error:
                failed.append((*port, error.strerror or str(error)))
        return failed

    def _listen(self, port: Port) -> list[socket.socket]:
        protocol, number = port
        sockets: list[socket.socket] = []
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                try:
                    sock = socket.socket(family, socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM)
                except OSError:
                    if family == socket.AF_INET:
                        raise
                    continue  # a kernel without IPv6
                sockets.append(sock)
                _prepare(sock, family, protocol)
                sock.bind(("0.0.0.0" if family == socket.AF_INET else "::", number))  # noqa: S104
                if protocol == "TCP":
                    sock.listen(1024)
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        for sock in sockets:
            self._watch(sock, self._acceptor(sock) if protocol == "TCP" else self._receiver(sock))
        return sockets

    def _acceptor(self, listener: socket.socket) -> Callable[[], None]:
        def accept() -> None:
            self._accept(listener)

        return accept

    def _receiver(self, sock: socket.socket) -> Callable[[], None]:
        return lambda: self._receive(sock)

    def _watch(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _accept(self, listener: socket.socket) -> bool:
        """Whether there was a connection waiting."""
        try:
            sock, client = listener.accept()
        except OSError:
            return False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            local = sock.getsockname()
        except OSError:
            sock.close()
            return True
        seen = Seen("TCP", (local[0], local[1]), (client[0], client[1]), _syn_ttl(sock))
        connection = _Connection(sock, seen)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(next(iter(self._connections.values())))
        self._connections[sock] = connection
        self._watch(sock, lambda: self._read(connection))
        return True

    def _read(self, connection: _Connection) -> None:
        if connection.sock not in self._connections:
            return  # closed to make room within the same round
        if not connection.read():
            self._close(connection)
            return
        while (request := connection.next_request()) is not None:
            method, path, headers, keep = request
            if not self._answer(connection, method, path, headers, keep) or not keep:
                self._close(connection)
                return

    def _answer(self, connection: _Connection, method: str, path: str, headers: dict[str, str], keep: bool) -> bool:
        wants_json = "application/json" in headers.get("accept", "")
        kind, text = body(self._identity, connection.seen, path.partition("?")[0], wants_json)
        content = text.encode()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(content)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        ).encode()
        _log(f"{_joined(connection.seen.client)} -> {_joined(connection.seen.address)} TCP {method} {path}")
        payload = content if method == "RAW" else head if method == "HEAD" else head + content
        try:
            # A client that does not read its answers loses the connection.
            return connection.sock.send(payload) == len(payload)
        except OSError:
            return False

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock]
        connection.sock.close()

    def _receive(self, sock: socket.socket) -> None:
        try:
            data, ancillary, _, client = sock.recvmsg(65536, 256)
        except OSError:
            return
        local, ttl, reply_info = _datagram_info(ancillary)
        seen = Seen("UDP", (local, sock.getsockname()[1]), (client[0], client[1]), ttl)
        word = data.strip()
        _, text = body(self._identity, seen, _UDP_WORDS.get(word, "/"), False)
        _log(f"{_joined(seen.client)} -> {_joined(seen.address)} UDP {len(data)} bytes")
        with contextlib.suppress(OSError):
            sock.sendmsg([text.encode()], reply_info, 0, client)

    def _accept_control(self, control: socket.socket) -> None:
        try:
            peer, _ = control.accept()
        except OSError:
            return
        peer.setblocking(False)
        self._watch(peer, lambda: self._obey(peer))

    def _obey(self, peer: socket.socket) -> None:
        try:
            message = peer.recv(CONTROL_MESSAGE)
            if message:
                wanted = {(str(protocol), int(number)) for protocol, number in json.loads(message)["ports"]}
                failed = self.set_ports(wanted)
                peer.send(json.dumps({"listening": sorted(self._listeners), "failed": failed}).encode())
                return
        except OSError:
            pass
        self._selector.unregister(peer)
        peer.close()


def _prepare(sock: socket.socket, family: int, protocol: str) -> None:
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if protocol == "TCP":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, 1)
    elif family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)


def _syn_ttl(sock: socket.socket) -> int | None:
    """TTL or hop limit of the SYN, which the kernel kept (TCP_SAVE_SYN, since Linux 4.3)."""
    try:
        header = sock.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, 256)
    except OSError:
        return None
    if len(header) < 20:
        return None
    return header[8] if header[0] >> 4 == 4 else header[7]


def _datagram_info(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, int | None, list[tuple[int, int, bytes]]]:
    """The address that a datagram came to, its TTL, and what makes the answer leave from that address."""
    local, ttl, reply = "", None, []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            local = socket.inet_ntop(socket.AF_INET, data[8:12])
            reply.append((level, kind, struct.pack("=I4s4s", 0, data[4:8], bytes(4))))
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            local = socket.inet_ntop(socket.AF_INET6, data[:16])
            # A link-local source needs its interface, any other must not be tied to one.
            scope = data[16:20] if data[:2] == b"\xfe\x80" else bytes(4)
            reply.append((level, kind, data[:16] + scope))
        elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)):
            ttl = struct.unpack("=i", data[:4])[0]
    return local, ttl, reply


def _log(line: str) -> None:
    # The log has a size limit (RLIMIT_FSIZE); beyond it lines are lost, never answers.
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _leave(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(0)
