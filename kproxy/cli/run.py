"""``kproxy exec``, ``logs`` and ``capture``: being somewhere in the lab."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from kproxy.api.kinds import POD
from kproxy.cli import places
from kproxy.cli.connection import connect, lab_option, lab_status, namespace_option, the_lab
from kproxy.client import Client
from kproxy.cluster import host
from kproxy.cluster.layout import Layout
from kproxy.errors import UserError
from netns.namespace import named
from netns.process import exec_in

POLL = 0.1
"""Seconds between two looks at a log that is being followed."""


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("place", metavar="POD|NODE|CLIENT")
@click.argument("command", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@namespace_option
@lab_option
def exec_(place: str, command: tuple[str, ...], lab: str | None, namespace: str) -> None:
    """Run a command in a pod, on a node, or on a client outside.

    On a node it is root among the node's interfaces and rules; in a pod it is as confined as the pod's own processes.
    The exit status is the command's.
    """
    layout = the_lab(lab)
    # `exec POD -- CMD`: click takes the -- that stands before the first argument, not the one after it.
    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise UserError("name a command after --")
    found = places.find(lab_status(connect(layout)), place, namespace)
    host.exec_in(layout, found.netns, argv, is_pod=found.kind == "pod")


@click.command
@click.argument("place", metavar="POD|NODE|control-plane")
@click.option("-c", "--container", default="", help="Which container; default: the first.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until interrupted.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="N", help="The last N lines only.")
@namespace_option
@lab_option
def logs(place: str, lab: str | None, **options: Any) -> None:
    """Print the log of a pod, of a node's proxy, or of the lab's control plane."""
    layout = the_lab(lab)
    path = layout.log(place) if place == "control-plane" else _log_of(layout, place, options)
    if not path.exists():
        raise UserError(f"{place} has written no log yet")
    with path.open(encoding="utf-8", errors="replace") as file:
        lines: Iterator[str] = file if options["tail"] is None else iter(deque(file, maxlen=options["tail"]))
        sys.stdout.writelines(lines)
        if options["follow"]:
            _follow(file)


def _log_of(layout: Layout, place: str, options: dict[str, Any]) -> Path:
    client = connect(layout)
    found = places.find(lab_status(client), place, options["namespace"])
    if found.kind == "node":
        return layout.log(f"proxy.{found.name}")
    if found.kind != "pod":
        raise UserError(f"nothing runs on {found.name} that would write a log")
    container = options["container"] or _first_container(client, found)
    return layout.log(f"{found.pod_namespace}.{found.name}.{container}")


def _first_container(client: Client, pod: places.Place) -> str:
    name: str = client.get(POD, pod.name, pod.pod_namespace)["spec"]["containers"][0]["name"]
    return name


def _follow(file: IO[str]) -> None:
    while True:
        sys.stdout.flush()
        if line := file.readline():
            sys.stdout.write(line)
        else:
            time.sleep(POLL)


@click.command
@click.argument("place", metavar="POD|NODE|CLIENT")
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
