"""Which media types a client accepts, in the order in which it wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kproxy.cluster.apiserver.responses import JSON

_LONGEST = 4096
"""Letters of an Accept header that are looked at; clients send a few hundred."""


class Accepted(NamedTuple):
    """One media type of an Accept header.

    Attributes:
        media_type: ``application/json``; ranges such as ``*/*`` are kept.
        parameters: what follows it, such as ``as=Table``; without ``q``.
    """

    media_type: str
    parameters: Mapping[str, str]

    @property
    def is_json(self) -> bool:
        """Whether JSON is one of what is accepted."""
        return self.media_type in (JSON, "application/*", "*/*")

    @property
    def form(self) -> tuple[str, str, str]:
        """The kind, group and version into which the answer is to be converted; empty words for none."""
        return tuple(self.parameters.get(name, "") for name in ("as", "g", "v"))  # type: ignore[return-value]


def accepted(header: str) -> list[Accepted]:
    """What an Accept header asks for, best first; everything when it is empty."""
    weighed = [_clause(clause) for clause in header[:_LONGEST].split(",") if clause.strip()]
    wanted = [found for weight, found in sorted(weighed, key=lambda pair: -pair[0]) if weight > 0]
    return wanted if weighed else [Accepted("*/*", {})]


def _clause(text: str) -> tuple[float, Accepted]:
    media_type, *rest = (part.strip() for part in text.split(";"))
    pairs = [part.partition("=") for part in rest]
    parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    return _weight(parameters.pop("q", "1")), Accepted(media_type.lower(), parameters)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
