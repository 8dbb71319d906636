"""An API server that only replays: lists from files, and a recorded watch stream, as fast as it is told.

    python tests/bench/replay_server.py SOCKET FOLDER

FOLDER holds the answers to lists, services.json, endpointslices.json, nodes.json and servicecidrs.json, and in
events.jsonl the lines that the watch of EndpointSlices will bring. A line on stdin sends some of them, and is answered
by a line on stdout with the moment at which the last one was sent (seconds of the monotonic clock, the same for all
processes):

    send COUNT           the next COUNT events at once
    churn COUNT RATE     the next COUNT events, RATE in a second

It is a process of its own and does nothing but this, so that it does not share an interpreter with who is measured.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

WATCH_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
TICK = 0.001
KINDS = ("services", "endpointslices", "nodes", "servicecidrs")


class ReplayServer:
    """The listener and the open watches of EndpointSlices."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._bodies = {kind: (folder / f"{kind}.json").read_bytes() for kind in KINDS}
        self._events = iter((folder / "events.jsonl").read_bytes().splitlines(keepends=True))
        self._watches: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        while line := reader.readline():
            if len(words := line.split()) < 2:  # cut off: the client was killed
                return
            target = urlsplit(words[1].decode())
            while reader.readline().strip():
                continue
            kind = target.path.rpartition("/")[2]
            if kind not in self._bodies:
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            elif parse_qs(target.query).get("watch", ["false"])[0] in ("true", "1"):
                connection.sendall(WATCH_HEAD)
                if kind == "endpointslices":
                    self._watches.append(connection)
                return
            else:
                body = self._bodies[kind]
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

    def send(self, count: int) -> float:
        """Send events at once; returns the moment before they went out."""
        lines = list(islice(self._events, count))
        chunk = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
        moment = time.monotonic()
        for watch in self._watches:
            watch.sendall(chunk)
        return moment

    def churn(self, count: int, rate: float) -> float:
        """Send events evenly; returns the moment before the last went out."""
        started, sent, moment = time.monotonic(), 0, 0.0
        while sent < count:
            due = min(count, int((time.monotonic() - started) * rate) + 1)
            if due > sent:
                moment = self.send(due - sent)
                sent = due
            time.sleep(TICK / 2)
        return moment


def main(path: str, folder: str) -> None:
    """Serve until stdin ends."""
    server = ReplayServer(Path(path), Path(folder))
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        what, *numbers = line.split()
        moment = server.send(int(numbers[0])) if what == "send" else server.churn(int(numbers[0]), float(numbers[1]))
        print(moment, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
