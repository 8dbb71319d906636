"""What the node proxy costs, against the number of Services, beside the bare tool on the same input in the same run.

    sudo python tests/bench/service_cost.py [--sizes 100x10,1000x10] [--modes nftables] [--json FILE] [--plots FOLDER]

Each case is a mode of the proxy, a source of objects and a size. The proxy gets lists and then watch events, as from an
API server, from a process of its own, ``replay_server``; or it reads a directory with a JSON file for each object.

*start*: from the start of the process until it says that the kernel holds everything. *flip*: from the moment at which
a slice is written, all of whose endpoints are new, to the first connection from outside that comes to one of them.
*change*: from the moment at which a slice with another first endpoint is written until the proxy says that the kernel
has it: more than the kernel's part, for the question travels over HTTP. *churn*: such changes evenly, and how late the
last one is. *cpu*: processor seconds of the start and the flips, tools included. *peak*: most memory at any time.
*handshake*: TCP connections from a client through the first, the last and any Service, in turns with as many through a
hand-written table with a single map on another node, and with as many to endpoints on a third node without any rules.

*bare*: what iptables-restore takes for the very text that the proxy writes, or a bare socket for the very netlink
messages.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import bench_bare
import bench_report
from bench_objects import FIRST_VERSION, PORT, TARGET_PORT, Cluster, Flip
from bench_place import (
    ONE_MAP_SERVICES,
    Late,
    Place,
    Proxy,
    connect,
    empty,
    flip_seconds,
    handshake_seconds,
    one_map,
    replaying,
    running,
)
from bench_report import Case, Figures

from netns.namespace import run_in

MODES = ("iptables-legacy", "iptables-nft", "nftables")
SOURCES = ("api", "directory")
SIZES = (Cluster(100, 10), Cluster(1000, 10), Cluster(10_000, 10), Cluster(30_000, 10), Cluster(1, 5000))
ASKED = 50
"""How many Services are connected to after the start, the first and the last among them."""


class Amounts(NamedTuple):
    """How often each thing is done.

    Attributes:
        starts: starts of the proxy.
        flips: flips in the last of them.
        changes: single changes, at most.
        change_seconds: for how long at most.
        churn_rate: changes a second.
        churn_seconds: for how long.
        handshakes: with each target.
    """

    starts: int = 3
    flips: int = 8
    changes: int = 300
    change_seconds: float = 20.0
    churn_rate: int = 1000
    churn_seconds: int = 30
    handshakes: int = 10_000


def flags_of(mode: str) -> dict[str, str]:
    """The proxy's flags for a mode of ours."""
    if mode == "nftables":
        return {"proxy-mode": "nftables"}
    return {"proxy-mode": "iptables", "iptables-variant": mode.removeprefix("iptables-")}


def measure(place: Place, case: Case, amounts: Amounts) -> Figures:
    """All figures of a case."""
    folder = place.work / "input"
    folder.mkdir()
    try:
        if case.source == "api":
            return _from_api(place, case, amounts, folder)
        return _from_directory(place, case, amounts, folder)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _from_api(place: Place, case: Case, amounts: Amounts, recording: Path) -> Figures:
    churn = amounts.churn_rate * amounts.churn_seconds
    flips = case.cluster.write_recording(recording, amounts.flips, amounts.changes + churn)
    figures = Figures(case)
    with bench_bare.prepared(place, case) as bare:
        for number in range(amounts.starts):
            with (
                replaying(place, recording) as replay,
                running(place, {**flags_of(case.mode), "master": replay.url}) as proxy,
            ):
                figures.add("start", proxy.wait_for(FIRST_VERSION) - proxy.started)
                if number == amounts.starts - 1:
                    _check_answers(place, case.cluster)
                    version = FIRST_VERSION
                    for flip in flips:
                        version += 1
                        figures.add("flip", _flip(place, replay.begin, replay.answer, flip))
                        proxy.wait_for(version)
                    figures.add("cpu", proxy.cpu_seconds())
                    version = _change(figures, proxy, amounts, version, lambda: replay.begin("send", 1), replay.answer)
                    if churn:
                        before = proxy.cpu_seconds()
                        last = replay.tell("churn", churn, amounts.churn_rate)
                        figures.add("churn", max(0.0, proxy.wait_for(version + churn) - last))
                        figures.add("churn cpu", (proxy.cpu_seconds() - before) / amounts.churn_seconds)
                    figures.add("peak", proxy.peak_megabytes())
                    _handshakes(place, case.cluster, figures, amounts.handshakes)
            bare.measure(figures)
    return figures


def _flip(place: Place, begin: Callable[..., None], answer: Callable[[], float], flip: Flip) -> float:
    return run_in(place.namespace("client"), lambda: flip_seconds(flip, lambda: begin("send", 1), answer))


def _change(
    figures: Figures,
    proxy: Proxy,
    amounts: Amounts,
    version: int,
    begin: Callable[[], object],
    answer: Callable[[], float],
) -> int:
    deadline = time.monotonic() + amounts.change_seconds
    for _ in range(amounts.changes):
        version += 1
        proxy.expect(version)
        begin()
        proxy.told()
        moment = time.monotonic()
        figures.add("change", moment - answer())
        if time.monotonic() > deadline:
            break
    return version


def _from_directory(place: Place, case: Case, amounts: Amounts, folder: Path) -> Figures:
    case.cluster.write_manifests(folder)
    figures = Figures(case)
    editor = _Editor(case.cluster, folder)
    with bench_bare.prepared(place, case) as bare:
        for number in range(amounts.starts):
            flags = {**flags_of(case.mode), "manifests": str(folder)}
            with running(place, flags) as proxy:
                figures.add("start", proxy.wait_for(1) - proxy.started)
                if number == amounts.starts - 1:
                    _check_answers(place, case.cluster)
                    figures.add("cpu", proxy.cpu_seconds())
                    _change(figures, proxy, amounts, 1, editor.edit, editor.moment)
                    figures.add("peak", proxy.peak_megabytes())
            bare.measure(figures)
    return figures


class _Editor:
    """Somebody who changes one endpoint of one Service after the other."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._rng = random.Random(2)
        self._changed: set[int] = set()
        self._moment = 0.0

    def edit(self) -> None:
        """Put a changed file in place."""
        number = self._rng.randrange(self._cluster.services)
        self._changed ^= {number}
        put_in_place = self._cluster.put_changed(self._folder, number, is_changed=number in self._changed)
        self._moment = time.monotonic()
        put_in_place()

    def moment(self) -> float:
        """When the last one was."""
        return self._moment


def _check_answers(place: Place, cluster: Cluster) -> None:
    """Every Service answers, as far as some of them tell."""
    numbers = {0, cluster.services - 1, *random.Random(3).choices(range(cluster.services), k=ASKED)}
    wrong = [
        number
        for number in numbers
        if not run_in(place.namespace("client"), connect, cluster.cluster_ip(number)).startswith("10.")
    ]
    if wrong:
        raise Late(f"no answer from Services {wrong}")


def _handshakes(place: Place, cluster: Cluster, figures: Figures, rounds: int) -> None:
    if not rounds:
        return
    targets = {
        "handshake first": (cluster.cluster_ip(0), PORT),
        "handshake last": (cluster.cluster_ip(cluster.services - 1), PORT),
        "handshake any": (cluster.cluster_ip(random.Random(4).randrange(cluster.services)), PORT),
        "handshake one map": (str(ONE_MAP_SERVICES.network_address + cluster.services), PORT),
        "handshake no rules": (cluster.address(0, 0), TARGET_PORT),
    }
    with _table_of_one_map(place, cluster):
        taken = run_in(place.namespace("client"), handshake_seconds, list(targets.values()), rounds)
    for name, seconds in zip(targets, taken, strict=True):
        for each in seconds:
            figures.add(name, each)


@contextlib.contextmanager
def _table_of_one_map(place: Place, cluster: Cluster) -> Iterator[None]:
    place.run("map", ["nft", "-f", "-"], input=one_map(cluster), text=True)
    yield
    place.run("map", ["nft", "flush", "ruleset"])


def run(name: str, cases: list[Case], amounts: Amounts, tell: Callable[[Figures], None]) -> list[Figures]:
    """Measure cases one after the other; one that does not end in time is in the result with what there is of it."""
    found = []
    with Place(name).built() as place:
        for case in cases:
            try:
                figures = measure(place, case, amounts)
            except Late as late:
                figures = Figures(case, fault=str(late))
                empty(place)
            tell(figures)
            found.append(figures)
    return found


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(f"{size.services}x{size.endpoints}" for size in SIZES))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--sources", default=",".join(SOURCES))
    for field, value in Amounts()._asdict().items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--json", type=Path, help="where the figures go, all of them")
    parser.add_argument("--plots", type=Path, help="the folder for plots")
    arguments = vars(parser.parse_args())
    amounts = Amounts(**{field: arguments[field] for field in Amounts._fields})
    sizes = [Cluster(*map(int, size.split("x"))) for size in arguments["sizes"].split(",")]
    cases = [
        Case(mode, source, size)
        for size in sizes
        for mode in arguments["modes"].split(",")
        for source in arguments["sources"].split(",")
    ]
    print(bench_report.header())  # noqa: T201
    figures = run("svcbench", cases, amounts, lambda each: print(bench_report.row(each), flush=True))  # noqa: T201
    print(bench_report.handshakes(figures))  # noqa: T201
    if arguments["json"]:
        bench_report.write_json(figures, arguments["json"])
    if arguments["plots"]:
        bench_report.plot(figures, arguments["plots"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
