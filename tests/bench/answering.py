"""Answers on every address that is routed to this namespace: each connection is told which one it came to.

python tests/bench/answering.py PORT
"""

from __future__ import annotations

import contextlib
import socket
import sys


def main(port: int) -> None:
    """Serve until killed."""
    with socket.create_server(("0.0.0.0", port), backlog=4096) as listener:
        print("ready", flush=True)  # noqa: T201
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError):  # hung up before it was answered
                connection.sendall(connection.getsockname()[0].encode())
            connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
