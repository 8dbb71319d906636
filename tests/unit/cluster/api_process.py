"""The control plane's API and its store as a process of their own, to be killed and started again.

Run as a program: serves at SOCKET from DATABASE until killed. Lines on standard input fill the disk that the database
is on, and free it again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import kproxy
from kproxy.client import Client
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import serve
from kproxy.cluster.store import Event, Store
from kproxy.errors import Unreachable


class ApiProcess:
    """An API server that can be killed with -9.

    Args:
        folder: where its socket is, and its database unless ``database`` says otherwise.
        history: how many changes its log keeps.
        database: of which file.
        prefix: a command that runs it somewhere else.
        is_forgetful: it acknowledges changes that never reach the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        history: int = 20_000,
        database: Path | None = None,
        prefix: tuple[str, ...] = (),
        is_forgetful: bool = False,
    ) -> None:
        self.socket = folder / "api.sock"
        self.url = f"unix://{self.socket}"
        self.database = database or folder / "state.db"
        self._command = [*prefix, sys.executable, __file__, str(self.database), str(self.socket), str(history)]
        self._command += ["forgetful"] * is_forgetful
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        environment = {**os.environ, "PYTHONPATH": str(Path(kproxy.__file__).parents[1])}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if self._say() != "ready\n":
            self.kill()
            raise AssertionError("the API did not start")

    def kill(self) -> None:
        """Ends it at once, wherever it is."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            for pipe in self._pipes():
                pipe.close()
        self._process = None

    def tell(self, word: str) -> None:
        """Has it do what the word says, and returns when that is done."""
        assert self._process is not None
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{word}\n")
        stdin.flush()
        assert self._say() == f"{word}\n"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _say(self) -> str:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        return stdout.readline()

    def _pipes(self) -> list[IO[str]]:
        assert self._process is not None
        return [pipe for pipe in (self._process.stdin, self._process.stdout) if pipe is not None]

    def __enter__(self) -> ApiProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def answers(url: str, seconds: float = 20.0) -> None:
    """Returns when an API answers at that address."""
    client = Client(url)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                client.request("GET", "/readyz")
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return
    finally:
        client.close()


def _fill(folder: Path) -> None:
    """Leaves no byte free on the disk that the folder is on."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue


class ForgetfulStore(Store):
    """A planted fault: what is written after the first changes never reaches the disk."""

    def _write(self, events: Sequence[Event]) -> None:
        if self.revision < 15:
            super()._write(events)


def main() -> None:
    """Serves until killed."""
    database, socket = Path(sys.argv[1]), Path(sys.argv[2])
    store = (ForgetfulStore if "forgetful" in sys.argv else Store)(database, history=int(sys.argv[3]))
    serve(store, socket, cluster=ClusterSettings(), lab_status=dict)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "fill":
            _fill(database.parent)
        elif line.strip() == "free":
            (database.parent / "filler").unlink()
        sys.stdout.write(line)
        sys.stdout.flush()
    os._exit(0)  # whoever started it is gone


if __name__ == "__main__":
    main()
