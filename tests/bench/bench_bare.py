"""The bare tool beside the proxy: iptables-restore with the text that it writes, or a socket with its very messages."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench_place import HERE, Late, Place, empty
from bench_report import Case, Figures

from netns.namespace import socket_in

NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_ANSWER = 1 << 16
ROUNDS = 5


class Bare:
    """The inputs of a mode and size, and their way into the kernel."""

    def __init__(self, place: Place, mode: str, folder: Path) -> None:
        self._place = place
        self._mode = mode
        self._folder = folder

    def measure(self, figures: Figures) -> None:
        """Write everything into empty tables, then a change and back, a few times."""
        empty(self._place)
        figures.add("bare start", self._write("full"))
        for _ in range(ROUNDS):
            for name in ("change", "back"):
                figures.add("bare change", self._write(name))
        empty(self._place)

    def _write(self, name: str) -> float:
        return self._send(name) if self._mode == "nftables" else self._restore(name)

    def _restore(self, name: str) -> float:
        with (self._folder / name).open() as text:
            started = time.monotonic()
            self._place.run("proxy", [f"{self._mode}-restore", "-w", "5", "--noflush", "--counters"], stdin=text)
            return time.monotonic() - started

    def _send(self, name: str) -> float:
        message = (self._folder / name).read_bytes()
        with socket_in(self._place.namespace("proxy"), socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(message) + (1 << 20))
            sock.bind((0, 0))
            started = time.monotonic()
            sock.send(message)
            answer = sock.recv(_ANSWER)
            taken = time.monotonic() - started
        code = int.from_bytes(answer[16:20], sys.byteorder, signed=True)
        if code:
            raise Late(f"the kernel does not take the messages of the {name} once more: error {-code}")
        return taken


@contextlib.contextmanager
def prepared(place: Place, case: Case) -> Iterator[Bare]:
    """The inputs for a case."""
    folder = place.work / "bare"
    folder.mkdir()
    try:
        size = (str(case.cluster.services), str(case.cluster.endpoints))
        place.run("proxy", [sys.executable, str(HERE / "bare_input.py"), case.mode, *size, str(folder)])
        yield Bare(place, case.mode, folder)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
