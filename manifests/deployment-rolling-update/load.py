"""Asks a URL so many times a second, each time over a connection of its own, and says how many requests failed.

    python3 load.py http://198.51.100.80/ [--rate 200] [--seconds 10]

Without --seconds it goes on until it is interrupted. The exit status is 1 when a request has failed. An answer is
counted by its first line.
"""

import argparse
import signal
import socket
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

WORKERS = 64
PATIENCE = 10.0
"""Seconds that one request may take; a packet that is lost is sent again after one."""


class Load:
    """All requests, and what came of them."""

    def __init__(self, url: str, rate: float, seconds: float) -> None:
        parts = urlsplit(url)
        self.place = (parts.hostname or "", parts.port or 80)
        self.request = f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self.rate = rate
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.next = 0
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.is_over = threading.Event()

    def work(self) -> None:
        """Takes the next request that is due, again and again."""
        while not self.is_over.is_set():
            with self.lock:
                due = self.began + self.next / self.rate
                self.next += 1
            if due >= self.end:
                return
            if self.is_over.wait(max(0.0, due - time.monotonic())):
                return
            try:
                answer, counts = self.ask(), self.answers
            except OSError as error:
                answer, counts = error.strerror or str(error), self.failures
            with self.lock:
                counts[answer] += 1

    def ask(self) -> str:
        """The first line of one answer."""
        with socket.create_connection(self.place, PATIENCE) as connection:
            connection.sendall(self.request)
            data = b""
            while chunk := connection.recv(65536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise OSError(f"no answer: {head[:40]!r}")
        return body.decode().strip().partition("\n")[0]


def main() -> None:
    """Asks as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    load = Load(options.url, options.rate, options.seconds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: load.is_over.set())
    threads = [threading.Thread(target=load.work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed, total = sum(load.failures.values()), sum((load.answers + load.failures).values())
    for answer, count in sorted(load.answers.items()):
        print(f"{count:6} {answer}")  # noqa: T201
    for reason, count in load.failures.most_common():
        print(f"{count:6} {reason}")  # noqa: T201
    print(f"{'error: ' if failed else ''}{failed} of {total} requests failed")  # noqa: T201
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
