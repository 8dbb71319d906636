"""Durations on the command line, as kubectl takes them."""

from __future__ import annotations

import math

import click

from kproxy.proxy.config import duration


def seconds(value: str) -> float:
    """Seconds, never fewer than 0, of a Kubernetes duration (``30s``, ``1m30s``, ``500ms``) or of a plain number.

    Raises:
        click.BadParameter: it is neither.
    """
    try:
        return duration(f"{value}s" if value[-1:].isdigit() else value)
    except ValueError:
        reason = f"{value!r} is not a duration: write 30s, 1m30s, 500ms, a number of seconds, or 0"
        raise click.BadParameter(reason) from None


def whole_seconds(value: str) -> int:
    """The same in whole seconds, never fewer than were asked for.

    Raises:
        click.BadParameter: as ``seconds``.
    """
    return math.ceil(seconds(value))
