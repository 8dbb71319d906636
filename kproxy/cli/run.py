"""``kproxy exec``, ``logs`` and ``capture``: being somewhere in the lab."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from kproxy.api.kinds import POD
from kproxy.api.types import Container, Object, Pod, view
from kproxy.cli import candidates, places
from kproxy.cli.connection import connect, lab_option, lab_status, namespace_option, the_lab
from kproxy.client import Client
from kproxy.cluster import host, pod_exec
from kproxy.cluster.layout import Layout
from kproxy.cluster.logs import older
from kproxy.errors import NotFound, Unreachable, UserError
from netns.errors import NetnsError
from netns.namespace import named
from netns.process import exec_in

POLL = 0.1
"""Seconds between two looks at a log that is being followed."""

ASK_AGAIN = 1.0
"""Seconds between two questions whether what writes it is still there."""

IN_A_POD = ("/bin/sh", "-c", 'exec "$@"', "kproxy exec")
"""Runs a command inside the sandbox, where a shell can still tell 126 from 127; bubblewrap answers both with 1."""

NOT_RUN: dict[type[OSError], int] = {FileNotFoundError: 127, PermissionError: 126}
"""Exit statuses of a shell for a command that could not be run, by why."""


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("place", metavar="POD|NODE|CLIENT", shell_complete=candidates.places)
@click.argument("command", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", is_flag=True, expose_value=False, help="For kubectl's sake: stdin is always passed on.")
@click.option("-t", "--tty", is_flag=True, expose_value=False, help="For kubectl's sake: so is the terminal.")
@click.option("-c", "--container", default="", help="Of a pod, which container; default: the first.")
@namespace_option
@lab_option
def exec_(place: str, command: tuple[str, ...], lab: str | None, namespace: str, container: str) -> None:
    """Run a command in a pod, on a node, or on a client outside.

    On a node it is root among the node's interfaces and rules. In a pod it is as confined as the pod's own processes,
    and beside them if the container runs a command of its own.
    The exit status is the command's; 127 if there is no such command, 126 if it cannot be run.
    """
    layout = the_lab(lab)
    # `exec POD -- CMD`: click takes the -- that stands before the first argument, not the one after it.
    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise UserError("name a command after --")
    client = connect(layout)
    found = places.find(lab_status(client), place, namespace)
    pod = client.get(POD, found.name, found.pod_namespace) if found.kind == "pod" else None
    _forget_signals()
    try:
        if pod is not None:
            typed = view(pod, Pod)
            one = _container_of(typed, container or _containers(pod)[0])
            pod_exec.exec_in(layout, found.netns, typed, one, (*IN_A_POD, *argv))
        host.exec_in(layout, found.netns, argv)
    except NetnsError as error:
        status = next((status for cause, status in NOT_RUN.items() if isinstance(error.__cause__, cause)), None)
        if status is None:
            raise
        click.echo(f"error: {error.reason}", err=True)
        sys.exit(status)


def _container_of(pod: Pod, name: str) -> Container:
    containers = (*pod.spec.containers, *pod.spec.init_containers)
    found = next((one for one in containers if one.name == name), None)
    if found is None:
        names = ", ".join(one.name for one in containers)
        raise UserError(f"container {name} is not valid for pod {pod.metadata.name}: it has {names}")
    return found


def _forget_signals() -> None:
    """Let the program that this process becomes end when a pipe closes: Python ignores that, and so would it."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class _Log:
    """A log, and whether nothing more will come."""

    path: Path
    is_over: Callable[[], bool]


@click.command
@click.argument("place", metavar="POD|NODE|control-plane", shell_complete=candidates.places)
@click.option("-c", "--container", default="", help="Which container; default: the first.")
@click.option("-p", "--previous", is_flag=True, help="What a pod's container wrote in its run before this one.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until interrupted, or until the pod is gone.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="N", help="The last N lines only.")
@namespace_option
@lab_option
def logs(place: str, lab: str | None, **options: Any) -> None:
    """Print the log of a pod, of a node's proxy, or of the lab's control plane."""
    layout = the_lab(lab)
    log = _lasting(layout.log(place)) if place == "control-plane" else _log_of(layout, place, options)
    if not log.path.exists():
        raise UserError(f"{place} has written no log yet")
    with log.path.open(encoding="utf-8", errors="replace") as file:
        lines: Iterator[str] = file if options["tail"] is None else iter(deque(file, maxlen=options["tail"]))
        sys.stdout.writelines(lines)
        if options["follow"]:
            _follow(file, log.is_over)


def _lasting(path: Path) -> _Log:
    """A log that goes on until the lab is taken down."""
    return _Log(path, lambda: not path.exists())


def _log_of(layout: Layout, place: str, options: dict[str, Any]) -> _Log:
    client = connect(layout)
    found = places.find(lab_status(client), place, options["namespace"])
    if found.kind == "node":
        return _lasting(layout.log(f"proxy.{found.name}"))
    if found.kind != "pod":
        raise UserError(f"nothing runs on {found.name} that would write a log")
    pod = client.get(POD, found.name, found.pod_namespace)
    containers = _containers(pod)
    container = options["container"] or containers[0]
    if container not in containers:
        raise UserError(f"container {container} is not valid for pod {found.name}: it has {', '.join(containers)}")
    path = layout.log(f"{found.pod_namespace}.{found.name}.{container}")
    return _Log(older(path) if options["previous"] else path, lambda: options["previous"] or _is_gone(client, pod))


def _is_gone(client: Client, pod: Object) -> bool:
    """Whether this very pod is no more, or its lab."""
    metadata = pod["metadata"]
    try:
        now: Object = client.get(POD, metadata["name"], metadata["namespace"])
    except (NotFound, Unreachable):
        return True
    return bool(now["metadata"]["uid"] != metadata["uid"])


def _containers(pod: Object) -> list[str]:
    spec = pod["spec"]
    return [container["name"] for container in (*spec["containers"], *spec.get("initContainers", ()))]


def _follow(file: IO[str], is_over: Callable[[], bool]) -> None:
    """Print what comes; ends when nothing more will."""
    asked = time.monotonic()
    while True:
        sys.stdout.flush()
        was_over = False
        if time.monotonic() - asked > ASK_AGAIN:
            was_over, asked = is_over(), time.monotonic()
        if os.fstat(file.fileno()).st_size < file.tell():  # it was turned over
            file.seek(0)
        if line := file.readline():
            sys.stdout.write(line)
        elif was_over:
            return
        else:
            time.sleep(POLL)


@click.command
@click.argument("place", metavar="POD|NODE|CLIENT", shell_complete=candidates.places)
@click.argument("packet_filter", metavar="[FILTER]...", nargs=-1)
@click.option("-w", "--write", default="", metavar="FILE|-", help="Write pcap to a file, or to stdout for Wireshark.")
@click.option("-i", "--interface", default="any", show_default=True, help="Where to listen.")
@click.option("-c", "--count", type=click.IntRange(min=1), default=None, help="Stop after so many packets.")
@namespace_option
@lab_option
def capture(place: str, packet_filter: tuple[str, ...], lab: str | None, **options: Any) -> None:
    """Capture packets at a pod, a node or a client, with tcpdump's filters.

    Live in Wireshark:  sudo kproxy capture node1 -w - | wireshark -k -i -
    """
    layout = the_lab(lab)
    found = places.find(lab_status(connect(layout)), place, options["namespace"])
    argv = ["tcpdump", "-nn", "-i", options["interface"]]
    argv += ["-c", str(options["count"])] if options["count"] else []
    if options["write"]:
        argv += ["-U", "-w", "-"]
        if options["write"] != "-":
            _redirect_stdout(Path(options["write"]))
        elif sys.stdout.isatty():
            raise UserError("a capture is not for a terminal: pipe it into a program, or name a file")
    else:
        argv.append("-l")
    _forget_signals()
    exec_in(named(found.netns, layout.namespaces), [*argv, *packet_filter], os.environ)


def _redirect_stdout(path: Path) -> None:
    """Let what follows write to ``path``, owned by the person who called sudo.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if os.environ.get("SUDO_UID"):
        os.fchown(fd, int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "-1")))
    os.dup2(fd, 1)
