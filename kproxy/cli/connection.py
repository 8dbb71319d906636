"""Which lab a command means, how it is reached, and the options that all verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from kproxy.api.kinds import Kind, find
from kproxy.cli import candidates
from kproxy.client import Client
from kproxy.cluster.layout import Layout, current_lab
from kproxy.cluster.status import LabStatus
from kproxy.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_NAMESPACE = "default"


def lab_option(command: F) -> F:
    """Add ``--lab``; ``kproxy --lab NAME VERB`` and KPROXY_LAB mean the same."""
    option = click.option(
        "--lab",
        metavar="NAME",
        envvar="KPROXY_LAB",
        shell_complete=candidates.labs,
        help="The lab that is meant. Default: the only one there is.",
    )
    return option(command)


def namespace_option(command: F) -> F:
    """Add ``-n``."""
    option = click.option(
        "-n",
        "--namespace",
        metavar="NS",
        default=DEFAULT_NAMESPACE,
        show_default=True,
        shell_complete=candidates.namespaces,
        help="Kubernetes namespace.",
    )
    return option(command)


def need_root() -> None:
    """Ensures that this process may enter namespaces and open the lab's socket.

    Raises:
        UserError: it is not root.
    """
    if os.geteuid() != 0:
        raise UserError("this needs root: put sudo before it")


def the_lab(name: str | None) -> Layout:
    """The lab that is meant, for a process that may use it.

    Raises:
        UserError: not root; no such lab; none; or several to choose from.
    """
    need_root()
    return current_lab(name)


def connect(layout: Layout) -> Client:
    """A client of the lab's API, closed when the command ends.

    Raises:
        UserError: the lab has no control plane that listens.
    """
    if not layout.api_socket.exists():
        raise UserError(
            f'lab "{layout.lab}" has no control plane running; `kproxy lab up --lab {layout.lab}` mends that'
        )
    client = Client(layout.api_url)
    click.get_current_context().call_on_close(client.close)
    return client


def lab_status(client: Client) -> LabStatus:
    """What the lab consists of now, as its control plane tells it."""
    return msgspec.convert(client.lab_status(), LabStatus)


def kind_named(word: str) -> Kind:
    """The kind that a word on the command line means: ``svc``, or with its group ``deployments.apps``.

    Raises:
        UserError: there is none.
    """
    name, dot, group = word.partition(".")
    kind = find(name)
    if kind is None or (dot and kind.group != group):
        raise UserError(f'the server doesn\'t have a resource type "{word}"')
    return kind
