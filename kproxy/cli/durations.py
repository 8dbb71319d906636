"""Durations on the command line, as kubectl takes them."""

from __future__ import annotations

import click

from kproxy.proxy.config import duration


class Duration(click.ParamType[float]):
    """Seconds, written as a Kubernetes duration (``30s``, ``1m30s``, ``500ms``) or as a plain number of them."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds that ``value`` means, never fewer than 0."""
        if not isinstance(value, str):
            return value
        try:
            return duration(f"{value}s" if value[-1:].isdigit() else value)
        except ValueError:
            self.fail(f"{value!r} is not a duration: write 30s, 1m30s, 500ms, a number of seconds, or 0", param, ctx)
