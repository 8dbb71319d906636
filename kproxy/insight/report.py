"""A proof as a table for people, as JSON for programs, and as JUnit XML for CI.

Law: values in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any
from xml.etree import ElementTree as ET

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kproxy.insight.oracle import Answer, Promise, Verdict
from kproxy.insight.verify import Proof, Seen

MAX_NAMES = 3
"""Endpoints that a cell of the table names; more are counted."""

LOST = (
    "lost: packets reach this endpoint, but it answers the client directly and not through the node that was dialled, "
    "so the client does not know the answer (externalTrafficPolicy Local, and a pod that dials another node)"
)

_CHAIN = re.compile(r"KUBE-(?P<kind>SVC|SVL|EXT|FW|SEP)-(?P<digest>[A-Z2-7]{16})")


def as_json(proofs: Iterable[Proof]) -> list[dict[str, Any]]:
    """One object a row.

    ``source`` and ``hops`` are those of all endpoints where they agree; else the sources are joined by commas and hops
    is the largest. ``paths`` has them endpoint by endpoint. Both are null where nobody answered.
    """
    return [
        {
            "client": proof.row.place.client,
            "place": proof.row.role,
            "service": proof.row.service,
            "kind": str(proof.row.frontend.kind),
            "frontend": proof.row.frontend.text,
            "protocol": proof.row.frontend.protocol,
            "expected": _side(proof.row.promise),
            "seen": _side(proof.seen),
            "affinity": proof.row.promise.is_sticky,
            "notes": list(proof.seen.notes),
            "why": list(proof.why),
            "ok": proof.is_ok,
        }
        for proof in proofs
    ]


def as_junit(proofs: Sequence[Proof]) -> str:
    """A test suite a Service port and a test case a row; differences are failures."""
    root = ET.Element("testsuites", name="kproxy verify", tests=str(len(proofs)), failures=str(_failures(proofs)))
    for service, group in groupby(proofs, key=lambda proof: proof.row.service):
        members = list(group)
        suite = ET.SubElement(
            root, "testsuite", name=service, tests=str(len(members)), failures=str(_failures(members))
        )
        for proof in members:
            row = proof.row
            name = f"{row.place.client} ({row.role}) to {row.frontend.kind} {row.frontend.text}/{row.frontend.protocol}"
            case = ET.SubElement(suite, "testcase", classname=f"verify.{service}", name=name)
            if not proof.is_ok:
                ET.SubElement(case, "failure", message=difference(proof)).text = " ".join(proof.why)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def as_table(proofs: Sequence[Proof], pod_names: dict[str, str]) -> RenderableType:
    """A table per Service port.

    Args:
        proofs: in the order of the rows.
        pod_names: what to call an endpoint, by address; the address itself where it is missing.
    """
    parts: list[RenderableType] = []
    for service, group in groupby(proofs, key=lambda proof: proof.row.service):
        members = list(group)
        table = Table(title=Text(f"Service {service}", style="bold"), title_justify="left", box=None, pad_edge=False)
        for heading in ("CLIENT", "FRONTEND", "PROMISED", "SEEN", "HOPS", "CHAINS CROSSED", ""):
            table.add_column(heading, overflow="fold")
        for proof in members:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in _cells(proof, pod_names)))
        parts += [table, Text()]
    if any(proof.seen.lost or proof.row.promise.lost for proof in proofs):
        parts.append(Text(LOST, style="dim"))
    return Group(*parts, Text(summary(proofs)))


def summary(proofs: Sequence[Proof]) -> str:
    """``84 of 84 rows as promised``."""
    return f"{len(proofs) - _failures(proofs)} of {len(proofs)} rows as promised"


def difference(proof: Proof) -> str:
    """What is not as promised, in one line."""
    promised, seen = _words(proof.row.promise, {}), _words(proof.seen, {})
    return "; ".join([f"promised {promised}, seen {seen}", *proof.seen.notes])


def short_chain(chain: str) -> str:
    """A chain's name without KUBE- and with the first four characters of its digest."""
    match = _CHAIN.fullmatch(chain)
    return f"{match['kind']}-{match['digest'][:4]}" if match else chain.removeprefix("KUBE-")


def _failures(proofs: Iterable[Proof]) -> int:
    return sum(not proof.is_ok for proof in proofs)


def _side(side: Promise | Seen) -> dict[str, Any]:
    sources = sorted({answer.source for answer in side.answers})
    return {
        "verdict": str(side.verdict),
        "endpoints": list(dict.fromkeys(answer.endpoint for answer in side.answers)),
        "source": ",".join(sources) or None,
        "hops": max((answer.hops for answer in side.answers), default=None),
        "paths": [
            {"endpoint": answer.endpoint, "source": answer.source, "hops": answer.hops} for answer in side.answers
        ],
        "lost": list(side.lost),
    }


def _cells(proof: Proof, names: dict[str, str]) -> list[str | Text]:
    row = proof.row
    mark = Text("ok", style="green") if proof.is_ok else Text("DIFFERENT", style="bold red")
    seen = _words(proof.seen, names)
    return [
        f"{row.role}: {row.place.client.rpartition('/')[2]}",
        f"{row.frontend.kind} {row.frontend.text}/{row.frontend.protocol}",
        _words(row.promise, names) + (" (one of them)" if row.promise.is_sticky and row.promise.answers else ""),
        "\n".join([seen, *proof.seen.notes]),
        _hops(proof.seen.answers),
        " ".join(short_chain(chain) for chain in _telling(proof.why)),
        mark,
    ]


def _telling(why: Sequence[str]) -> list[str]:
    """The chains without KUBE-POSTROUTING where that only let the packet pass, which it does at every node."""
    return [
        chain for position, chain in enumerate(why) if chain != "KUBE-POSTROUTING" or "KUBE-MARK-MASQ" in why[:position]
    ]


def _words(side: Promise | Seen, names: dict[str, str]) -> str:
    """``web-0, web-1: kept``, ``web-0: 10.244.1.1; web-1: kept``, ``refused``."""
    if side.verdict is not Verdict.ANSWERED:
        return str(side.verdict) + (f"; lost: {_named(side.lost, names)}" if side.lost else "")
    by_source: dict[str, list[str]] = {}
    for answer in side.answers:
        by_source.setdefault(answer.source, []).append(answer.endpoint)
    words = "; ".join(f"{_named(endpoints, names)}: {source}" for source, endpoints in by_source.items()) or "answered"
    return words + (f"; lost: {_named(side.lost, names)}" if side.lost else "")


def _named(endpoints: Sequence[str], names: dict[str, str]) -> str:
    unique = list(dict.fromkeys(endpoints))
    words = [names.get(endpoint.rpartition(":")[0].strip("[]"), endpoint) for endpoint in unique]
    more = f" and {len(words) - MAX_NAMES} more" if len(words) > MAX_NAMES else ""
    return ", ".join(words[:MAX_NAMES]) + more


def _hops(answers: Iterable[Answer]) -> str:
    return ",".join(str(hops) for hops in sorted({answer.hops for answer in answers}))
