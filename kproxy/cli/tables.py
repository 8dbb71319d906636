"""What ``kproxy get`` prints: kubectl's columns and spacing.

Law: objects and the time go in, text comes out; nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kproxy.api.columns import NONE, Column, columns_of, pairs
from kproxy.api.kinds import Kind
from kproxy.api.types import Object

_LEFT_OUT = frozenset(
    ("Version", "OS-Image", "Kernel-Version", "Container-Runtime", "Nominated Node", "Readiness Gates")
)
"""Columns of kubectl's in which a lab says the same of every object."""
_OWN = {
    "Node": (
        Column("Pod-CIDR", lambda obj, _: ",".join(obj.get("spec", {}).get("podCIDRs") or ()) or NONE, is_wide=True),
        Column(
            "Zone",
            lambda obj, _: (obj["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone", NONE),
            is_wide=True,
        ),
    )
}
"""Columns of ours beside kubectl's."""


def table(  # noqa: PLR0913 - the switches of `kubectl get`
    kind: Kind,
    objects: Sequence[Object],
    *,
    now: datetime,
    wide: bool = False,
    with_namespace: bool = False,
    with_labels: bool = False,
    prefix: str = "",
) -> list[list[str]]:
    """The header and one row per object, as cells.

    Args:
        kind: decides the columns.
        objects: in the order to print.
        now: ages count up to here.
        wide: also the columns that ``-o wide`` adds.
        with_namespace: a NAMESPACE column first.
        with_labels: a LABELS column last.
        prefix: written before each name, ``service/`` when several kinds are listed.
    """
    known = [column for column in columns_of(kind) if column.title not in _LEFT_OUT]
    columns = [column for column in (*known, *_OWN.get(kind.name, ())) if wide or not column.is_wide]
    if with_namespace and kind.namespaced:
        columns.insert(0, Column("Namespace", lambda obj, _: str(obj["metadata"].get("namespace", ""))))
    if with_labels:
        columns.append(Column("Labels", lambda obj, _: pairs(obj["metadata"].get("labels"))))
    header = [column.title.upper() for column in columns]
    return [header, *([_cell(column, obj, now, prefix) for column in columns] for obj in objects)]


def _cell(column: Column, obj: Object, now: datetime, prefix: str) -> str:
    return (prefix if column.format == "name" else "") + str(column.cell(obj, now))


def layout(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """Lines with columns padded to the widest cell and three spaces between, as kubectl does.

    Args:
        rows: header first or not; all of one length.
        widths: at least so wide is each column; for rows that follow a table already printed.
    """
    if not rows:
        return []
    wanted = column_widths(rows, widths)
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, wanted, strict=True)).rstrip() for row in rows]


def column_widths(rows: Sequence[Sequence[str]], at_least: Sequence[int] = ()) -> list[int]:
    """The width of each column of ``rows``."""
    least = list(at_least) or [0] * len(rows[0])
    return [max(floor, *(len(row[index]) for row in rows)) for index, floor in enumerate(least)]
