"""The subresource ``exec`` of a pod: commands over a WebSocket.

Messages are binary, and the first byte is the channel: 0 to 2 are the standard streams, 3 is how it ended (a Status), 4
the size of the terminal; version 5 adds 255, the end of the channel that the next byte names. Clients that ask for SPDY
are told what to ask for instead. Source: Kubernetes, k8s.io/apimachinery/pkg/util/remotecommand.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from kproxy.api.kinds import POD
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import requests
from kproxy.cluster.apiserver.backend import Backend
from kproxy.cluster.apiserver.paths import Target
from kproxy.cluster.apiserver.pods import container_named

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")

_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK: Final = 32 * 1024
_POLL_SECONDS: Final = 0.02
_LONGEST_COMMAND: Final = 128 * 1024  # bytes of one argument that Linux takes (MAX_ARG_STRLEN)


@dataclass(frozen=True)
class _Streams:
    """The streams that the client wants."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


async def run(backend: Backend, request: web.Request, target: Target) -> web.StreamResponse:
    """Runs a command in a pod with the client's streams, and tells how it ended."""
    pod = backend.registry.get(POD, *target.key)
    container = container_named(pod, request.query.get("container", "") or pod["spec"]["containers"][0]["name"])
    command = request.query.getall("command", [])
    if not command or any(len(word.encode()) >= _LONGEST_COMMAND or "\0" in word for word in command):
        raise statuses.bad_request("you must specify at least one command for the container")
    if not pod["spec"].get("nodeName"):
        raise statuses.bad_request(f"pod {target.name} does not have a host assigned")
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        phase = pod["status"]["phase"]
        raise statuses.bad_request(f"cannot exec into a container in a completed pod; current phase is {phase}")
    socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=requests.OBJECT_LIMIT)
    if not socket.can_prepare(request).ok:
        wanted = " or ".join(PROTOCOLS)
        raise statuses.bad_request(f"exec needs an upgrade to a WebSocket that speaks {wanted} (kubectl 1.31 does)")
    asked = _Streams(*(requests.is_true(request, name) for name in ("stdin", "stdout", "stderr", "tty")))
    await socket.prepare(request)
    argv = backend.pods.command(target.namespace, target.name, container, command, is_terminal=asked.tty)
    session = _Session(socket, asked)
    try:
        ending = await (session.on_a_terminal(argv) if asked.tty else session.on_pipes(argv))
    except OSError as error:
        ending = _failed(statuses.internal(f"the command could not be started: {error.strerror}").status)
    if not socket.closed:
        with contextlib.suppress(ConnectionError):
            await socket.send_bytes(bytes((_ERROR,)) + msgspec.json.encode(ending))
    await socket.close()
    return socket


class _Session:
    """One command and its client."""

    def __init__(self, socket: web.WebSocketResponse, asked: _Streams) -> None:
        self._socket = socket
        self._asked = asked

    async def on_pipes(self, argv: list[str]) -> dict[str, Any]:
        """Runs the command with a pipe for each stream; returns the Status of its end."""
        null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=pipe if self._asked.stdin else null,
            stdout=pipe if self._asked.stdout else null,
            stderr=pipe if self._asked.stderr else null,
            start_new_session=True,
        )
        outputs = [
            self._send(channel, stream)
            for channel, stream in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
            if stream is not None
        ]
        return await self._until_end(process, outputs, self._receive(process.stdin))

    async def on_a_terminal(self, argv: list[str]) -> dict[str, Any]:
        """Runs the command on a terminal of its own; returns the Status of its end."""
        with _terminal() as (ours, theirs):
            try:
                process = await asyncio.create_subprocess_exec(*argv, stdin=theirs, stdout=theirs, stderr=theirs)
            finally:
                os.close(theirs)
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", buffering=0)
            )
            try:
                return await self._until_end(process, [self._send(_STDOUT, reader)], self._type_into(ours))
            finally:
                transport.close()

    async def _until_end(self, process: asyncio.subprocess.Process, outputs: list[Any], inputs: Any) -> dict[str, Any]:
        reading = asyncio.ensure_future(inputs)
        writing = asyncio.gather(*outputs)
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((ended, reading), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and self._socket.closed:
                return _failed({})
            code = await ended
            await writing
        finally:
            for task in (reading, writing, ended):
                task.cancel()
            if process.returncode is None:  # the client is gone
                process.send_signal(signal.SIGKILL)
            await asyncio.gather(reading, writing, ended, return_exceptions=True)
        return _ending(code)

    async def _send(self, channel: int, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):  # a terminal whose last user is gone reads as EIO
            while chunk := await stream.read(_CHUNK):
                await self._socket.send_bytes(bytes((channel,)) + chunk)

    async def _receive(self, stdin: asyncio.StreamWriter | None) -> None:
        """Passes on what the client writes, until it hangs up."""
        async for channel, data in self._messages():
            if stdin is None:
                continue
            if channel == _STDIN:
                with contextlib.suppress(ConnectionError):
                    stdin.write(data)
                    await stdin.drain()
            elif channel == _CLOSE and data[:1] == bytes((_STDIN,)):
                stdin.close()

    async def _type_into(self, terminal: int) -> None:
        async for channel, data in self._messages():
            if channel == _STDIN and self._asked.stdin:
                await _write(terminal, data)
            elif channel == _RESIZE:
                _resize(terminal, data)

    async def _messages(self) -> Any:
        async for message in self._socket:
            data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) and data:
                yield data[0], data[1:]


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    """A terminal: our end, and the end of the command, which its user closes."""
    ours, theirs = os.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


async def _write(terminal: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(terminal, data) :]
        except BlockingIOError:  # nobody reads what was typed before
            await asyncio.sleep(_POLL_SECONDS)


def _resize(terminal: int, message: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError, OSError, struct.error):
        size = msgspec.json.decode(message, type=dict[str, int])
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))


def _ending(code: int) -> dict[str, Any]:
    """The Status for an exit status; a command that a signal ended has 128 and its number, as in a shell."""
    code = 128 - code if code < 0 else code
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return _failed(
        {
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    )


def _failed(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {}, "status": "Failure"} | status
