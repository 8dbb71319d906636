"""What a node's answers, and its silence, say about it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kproxy.cluster.load_balancers.health import Answer, Checker, Target, ask

DEADLINE = 20.0


@contextmanager
def page(code: list[int]) -> Iterator[int]:
    """A server that answers with what the list holds at that moment; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("code", "answer"), [(200, Answer.YES), (503, Answer.NO), (404, Answer.NO)])
def test_a_page_says_yes_or_no(code: int, answer: Answer) -> None:
    with page([code]) as port:
        assert ask(Target("127.0.0.1", port, "/healthz")) is answer


def test_a_port_needs_no_page_and_a_closed_one_says_nothing() -> None:
    with page([503]) as port:
        assert ask(Target("127.0.0.1", port)) is Answer.YES
    assert ask(Target("127.0.0.1", closed_port())) is Answer.NOTHING


def test_a_server_that_hangs_up_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers: list[Answer] = []
        asking = threading.Thread(
            target=lambda: answers.append(ask(Target("127.0.0.1", server.getsockname()[1], "/healthz")))
        )
        asking.start()
        server.accept()[0].close()
        asking.join()
        assert answers == [Answer.NOTHING]


def test_a_checker_tells_what_changes_and_forgets_what_it_need_not_know() -> None:
    changes: list[None] = []
    code = [200]
    checker = Checker(lambda: changes.append(None))
    with page(code) as port:
        open_page, closed = Target("127.0.0.1", port, "/healthz"), Target("127.0.0.1", closed_port())
        assert checker.is_healthy(open_page) is None
        checker.watch({open_page, closed})
        until(lambda: checker.is_healthy(open_page) is True and checker.is_healthy(closed) is False)
        code[0] = 503
        until(lambda: checker.is_healthy(open_page) is False)
        code[0] = 200
        until(lambda: checker.is_healthy(open_page) is True)
        assert len(changes) == 4
        checker.watch({closed})
        assert checker.is_healthy(open_page) is None
    checker.watch(())
