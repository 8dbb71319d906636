"""The bench itself, at its smallest: every figure comes out, and what it says is right; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import bench_report
import pytest
from bench_objects import Cluster
from bench_report import Case, Figures
from service_cost import MODES, Amounts, run

SMALL = Cluster(100, 10)
FEW = Amounts(starts=1, flips=3, changes=5, change_seconds=20, churn_rate=100, churn_seconds=1, handshakes=200)
RATIO = 10.0
"""So many times as long as a handshake without rules may one through a Service take here, where others are at work."""


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
def test_small_cluster_is_measured_in_every_mode(mode: str, tmp_path: Path) -> None:
    cases = [Case(mode, "api", SMALL), Case(mode, "directory", SMALL)]

    found = run("s1x", cases, FEW, lambda _: None)

    assert [figures.fault for figures in found] == ["", ""]
    api, directory = ({name: len(samples) for name, samples in figures.samples.items()} for figures in found)
    bare = {"bare start": 1, "bare change": 10}
    assert directory == {"start": 1, "cpu": 1, "change": 5, "peak": 1, **bare}
    handshakes = {f"handshake {name}": 200 for name in bench_report.HANDSHAKES}
    assert api == {
        "start": 1,
        "flip": 3,
        "cpu": 1,
        "change": 5,
        "churn": 1,
        "churn cpu": 1,
        "peak": 1,
        **handshakes,
        **bare,
    }
    assert found[0].ratio("handshake any", "handshake no rules") < RATIO
    bench_report.write_json(found, tmp_path / "figures.json")
    assert len(json.loads((tmp_path / "figures.json").read_text())["cases"]) == 2


def test_quantiles_are_of_the_samples() -> None:
    figures = Figures(Case("nftables", "api", SMALL))
    for value in (5.0, 1.0, 3.0, 2.0, 4.0):
        figures.add("change", value)

    assert [figures.at("change", quantile) for quantile in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_plots_show_each_mode_and_the_bare_tool(tmp_path: Path) -> None:
    found = []
    for services in (100, 1000):
        figures = Figures(Case("nftables", "api", Cluster(services, 10)))
        figures.add("start", services / 1000)
        figures.add("bare start", services / 2000)
        found.append(figures)

    bench_report.plot(found, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["cost-start.svg"]
    assert "bare, nftables" in (tmp_path / "cost-start.svg").read_text()
