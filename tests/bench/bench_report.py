"""Figures of a bench: kept, printed, written as JSON and drawn."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_objects import Cluster

_MILLI = 1000.0
_SECONDS = frozenset({"cpu", "churn cpu"})
COLUMNS = (
    ("start", "start", 0.5),
    ("bare", "bare start", 0.5),
    ("change p50", "change", 0.5),
    ("p99", "change", 0.99),
    ("bare", "bare change", 0.5),
    ("flip p50", "flip", 0.5),
    ("max", "flip", 1.0),
    ("churn late", "churn", 0.5),
    ("cpu s", "cpu", 0.5),
    ("peak MB", "peak", 0.5),
)
HANDSHAKES = ("first", "last", "any", "one map", "no rules")
PLOTS = {
    "start": "Start: until the kernel holds everything",
    "change": "One endpoint changes: until the kernel holds it",
    "handshake last": "TCP handshake through the last Service",
}


class Case(NamedTuple):
    """What is measured."""

    mode: str
    source: str
    cluster: Cluster


class Figures:
    """What was measured of a case: seconds (of "peak" megabytes), all of them.

    Args:
        case: the case.
        fault: why there is not all.
    """

    def __init__(self, case: Case, fault: str = "") -> None:
        self.case = case
        self.fault = fault
        self.samples: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(name, []).append(value)

    def at(self, name: str, quantile: float) -> float:
        """A quantile of a figure's samples; not a number when there is none."""
        found = sorted(self.samples.get(name, ()))
        return found[max(0, math.ceil(quantile * len(found)) - 1)] if found else math.nan

    def ratio(self, name: str, beside: str) -> float:
        """The median of a figure over that of another one."""
        return self.at(name, 0.5) / self.at(beside, 0.5)


def machine() -> str:
    """Where this runs."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in told if "model name" in line), platform.machine())
    software = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} processors ({model.strip()}), {software}"


def header() -> str:
    """The first lines of the table, in Markdown."""
    names = ["mode", "source", "Services x endpoints", *(name for name, _, _ in COLUMNS)]
    lines = (f"{machine()}; milliseconds where nothing else is said", "", _line(names), _line(["---"] * len(names)))
    return "\n".join(lines)


def row(figures: Figures) -> str:
    """A case's line."""
    mode, source, cluster = figures.case
    values = [_text(figures.at(name, quantile), name) for _, name, quantile in COLUMNS]
    return _line([mode, source, str(cluster), *values]) + (f" {figures.fault}" if figures.fault else "")


def handshakes(found: Iterable[Figures]) -> str:
    """A second table: TCP handshakes in microseconds, median and 99th percentile."""
    names = ["mode", "Services x endpoints", *HANDSHAKES, "any / one map"]
    lines = [_line(names), _line(["---"] * len(names))]
    for figures in found:
        if "handshake any" not in figures.samples:
            continue
        cells = [
            f"{figures.at(f'handshake {name}', 0.5) * 1e6:.0f} / {figures.at(f'handshake {name}', 0.99) * 1e6:.0f}"
            for name in HANDSHAKES
        ]
        ratio = f"{figures.ratio('handshake any', 'handshake one map'):.2f}"
        lines.append(_line([figures.case.mode, str(figures.case.cluster), *cells, ratio]))
    return "\n".join(lines)


def _text(value: float, name: str) -> str:
    if math.isnan(value):
        return "-"
    if name == "peak":
        return f"{value:.0f}"
    if name in _SECONDS:
        return f"{value:.2f}"
    return f"{value * _MILLI:,.0f}" if value >= 0.1 else f"{value * _MILLI:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_json(found: Iterable[Figures], path: Path) -> None:
    """The figures in full but for handshakes, of which a thousand quantiles are kept."""
    cases = [
        {
            "mode": figures.case.mode,
            "source": figures.case.source,
            "services": figures.case.cluster.services,
            "endpoints": figures.case.cluster.endpoints,
            "fault": figures.fault,
            "samples": {name: _thinned(values) for name, values in figures.samples.items()},
        }
        for figures in found
    ]
    path.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1) + "\n")


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= 1000:
        return [round(value, 7) for value in values]
    return [round(value, 7) for value in statistics.quantiles(values, n=1001)]


def plot(found: Iterable[Figures], folder: Path) -> None:
    """A drawing for each of PLOTS: cost against the number of Services, both logarithmic."""
    cases = [figures for figures in found if figures.case.source == "api" and figures.case.cluster.endpoints == 10]
    for name, title in PLOTS.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for figures in cases:
            for what, label in ((name, figures.case.mode), (f"bare {name}", f"bare, {figures.case.mode}")):
                if what in figures.samples:
                    point = (figures.case.cluster.services, figures.at(what, 0.5) * _MILLI)
                    lines.setdefault(label, []).append(point)
        if lines:
            (folder / f"cost-{name.replace(' ', '-')}.svg").write_bytes(_drawn(title, lines))


def _drawn(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    import pygal  # only here: it is no part of measuring

    # It leaves a finder for its plugins behind, of a protocol so old that Python warns at every later import.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]

    chart: Any = pygal.XY(
        title=title,
        x_title="Services",
        y_title="milliseconds",
        logarithmic=True,
        x_value_formatter=lambda power: f"{10**power:,.0f}",
        value_formatter=lambda value: f"{value:g}",
        style=pygal.style.CleanStyle,
        disable_xml_declaration=False,
        js=(),
        legend_at_bottom=True,
        no_prefix=True,
        width=720,
        height=440,
    )
    chart.x_labels = sorted({math.log10(x) for points in lines.values() for x, _ in points})
    for label, points in sorted(lines.items()):
        dash = {"dasharray": "3, 6"} if label.startswith("bare") else {}
        chart.add(label, [(math.log10(x), y) for x, y in points], stroke_style=dash)
    drawn: bytes = chart.render()
    return drawn
