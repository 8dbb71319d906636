"""``kproxy audit``: a node's kernel against its plan, rule by rule."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from kproxy.cli.connection import connect, lab_option, lab_status, the_lab
from kproxy.insight.audit import FamilyAudit, audit
from kproxy.insight.rule_counters import Rule
from kproxy.insight.rule_drift import Audited, Drift, as_text


@click.command("audit")
@click.argument("node", metavar="NODE")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--drift-only", is_flag=True, help="Leave out the rules that are as planned.")
@lab_option
def audit_(node: str, output: str, drift_only: bool, lab: str | None) -> None:
    """Compare a node's kernel with its plan, rule by rule, and show what each rule has counted.

    The plan is what the node's proxy makes of the Services and EndpointSlices that the API has now. On the legacy
    variant the kernel is read through libiptc, on nft with iptables-save. Exit status 1 if any rule was deleted, moved,
    changed or added; `kproxy lab resync` repairs that.
    """
    layout = the_lab(lab)
    client = connect(layout)
    found = audit(client, layout, lab_status(client), node.removeprefix("node/"))
    if output == "json":
        click.echo(json.dumps(as_json(node, found, drift_only=drift_only), indent=2))
    else:
        click.echo("\n".join(as_lines(node, found, drift_only=drift_only)))
    sys.exit(1 if any(family.drifts for family in found) else 0)


def as_lines(node: str, found: Sequence[FamilyAudit], *, drift_only: bool) -> Iterator[str]:
    """The audit for people: packets, rule, and below it what is wrong with it."""
    for family in found:
        chain = ("", "")
        for row in family.drifts if drift_only else family.rules:
            if chain != (row.rule.table, row.rule.chain):
                chain = (row.rule.table, row.rule.chain)
                yield f"{family.family.value} {chain[0]} {chain[1]}"
            yield from _lines_of(row)
    for family in found:
        drifts = len(family.drifts)
        verdict = f"{drifts} differ{'s' * (drifts == 1)} from the plan" if drifts else "as planned"
        count = sum(row.found is not None for row in family.rules)
        yield f"{node} {family.family.value}: {count} rules read through {family.reader}, {verdict}"
    if any(family.drifts for family in found):
        yield "`kproxy lab resync` makes every proxy write its rules anew."


def _lines_of(row: Audited) -> Iterator[str]:
    packets = f"{row.found.packets:>8}" if row.found else f"{'-':>8}"
    yield f"{packets}  {as_text(row.rule)}"
    match row.drift:
        case Drift.DELETED:
            yield f"{'':>10}^ deleted: it is to be rule {_place(row.planned)}"
        case Drift.MOVED:
            yield f"{'':>10}^ moved: it is rule {_place(row.found)} and is to be rule {_place(row.planned)}"
        case Drift.CHANGED:
            yield f"{'':>10}^ changed, planned -> found: {'; '.join(row.changes)}"
        case Drift.NOT_PLANNED:
            yield f"{'':>10}^ not planned: rule {_place(row.found)}"
        case None:
            return


def _place(rule: Rule | None) -> str:
    return f"{rule.number} of {rule.chain}" if rule else "nowhere"


def as_json(node: str, found: Sequence[FamilyAudit], *, drift_only: bool) -> dict[str, Any]:
    """The audit for programs: ``ok``, and per family every rule with its packets and what is wrong with it."""
    return {
        "node": node,
        "ok": not any(family.drifts for family in found),
        "families": [
            {
                "family": family.family.value,
                "reader": family.reader,
                "rules": [_row(row) for row in (family.drifts if drift_only else family.rules)],
            }
            for family in found
        ],
    }


def _row(row: Audited) -> dict[str, Any]:
    return {
        "table": row.rule.table,
        "chain": row.rule.chain,
        "number": row.found.number if row.found else None,
        "packets": row.found.packets if row.found else None,
        "rule": as_text(row.rule),
        "planned": as_text(row.planned) if row.planned else None,
        "drift": row.drift.value if row.drift else None,
        "changes": list(row.changes),
    }
