"""From nothing to a hundred pods on five nodes that answer, and to a thousand: how long, how much memory, what grows.

    sudo python tests/bench/pods_cost.py [--pods 100 1000] [--most 20] [--most-memory 3]

Each size brings a lab of five nodes up, applies a Deployment with a NodePort Service, asks that once from the outside
client, and then every pod once from a node (asking the Service until all have answered takes n log n connections).
Beside it, in the same run, ip(8) in batches makes the same network with nothing in it. With `--most` it fails when the
first size takes more than so many times as long; memory is what a pod's process shares with nobody, in MiB.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lab_cost
import msgspec

from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.layout import Layout
from kproxy.cluster.status import LabStatus, PodStatus
from kproxy.cluster.topology import PodPlace, infrastructure, pod
from netns.ip_batch import measure
from netns.namespace import named, run_in
from netns.topology import merge

NODES = 5


class Cost(NamedTuple):
    """Seconds and bytes of one lab; `work` is the CPU that its control plane used for the pods."""

    up: float
    ready: float
    answering: float
    bare: float
    down: float
    memory: float
    work: float


def cost(pods: int) -> Cost:
    began = time.perf_counter()
    lab_cost.kproxy("lab", "up", "--dns-replicas", "0", "--nodes", str(NODES))
    up, before = time.perf_counter(), computed()
    lab_cost.kproxy("apply", "--wait", "900s", "-f", "-", text=lab_cost.manifest(pods))
    ready, after = time.perf_counter(), computed()
    status = msgspec.json.decode(lab_cost.kproxy("lab", "status", "-o", "json"), type=LabStatus)
    asked = time.perf_counter()
    own = [entry for entry in status.pods if entry.namespace_ == "default"]
    folder = Layout(lab_cost.LAB).namespaces
    run_in(named(f"{lab_cost.LAB}-client", folder), ask, status.nodes[0].addresses[0], lab_cost.PORT)
    run_in(named(f"{lab_cost.LAB}-{status.nodes[0].name}", folder), ask_each, own)
    answering = time.perf_counter()
    names = {f"default/{entry.name}" for entry in own}
    memory = statistics.mean(private(entry.pid) for entry in status.processes if entry.where in names)
    lab_cost.kproxy("lab", "down")
    down = time.perf_counter()
    config = clusterfile.read([], Overrides(lab=lab_cost.LAB, nodes=NODES))
    places = [PodPlace(entry.namespace_, entry.name, entry.node, entry.addresses) for entry in own]
    bare = measure(merge(infrastructure(config), *(pod(config, place) for place in places)))
    return Cost(up - began, ready - up, answering - asked, bare, down - answering, memory, after - before)


def ask(address: str, port: int) -> str:
    connection = http.client.HTTPConnection(address, port, timeout=30)
    connection.request("GET", "/hostname")
    answer = connection.getresponse().read().decode().strip()
    connection.close()
    return answer


def ask_each(pods: list[PodStatus]) -> None:
    for one in pods:
        if ask(one.addresses[0], 80) != one.name:
            raise SystemExit(f"another pod than {one.name} has its address")


def computed() -> float:
    """Seconds of CPU that the control plane has used."""
    status = msgspec.json.decode(lab_cost.kproxy("lab", "status", "-o", "json"), type=LabStatus)
    (pid,) = [entry.pid for entry in status.processes if entry.role == "control-plane"]
    numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def private(pid: int) -> int:
    """Bytes that the process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--most", type=float, default=0.0)
    parser.add_argument("--most-memory", type=float, default=0.0)
    options = parser.parse_args()
    lab_cost.kproxy("lab", "down")
    found: dict[int, Cost] = {}
    try:
        for pods in options.pods:
            found[pods] = cost(pods)
            told = found[pods]
            total = told.up + told.ready + told.answering
            lines = (
                f"{pods} pods on {NODES} nodes: {total:.1f} s, {total / told.bare:.1f} times ip -batch",
                f"    ip -batch {told.bare:.2f}, lab up {told.up:.2f}, all have answered {told.answering:.2f}",
                f"    apply until programmed {told.ready:.2f} ({1000 * told.ready / pods:.1f} ms a pod)",
                f"    CPU of the control plane {told.work:.1f} ({1000 * told.work / pods:.0f} ms a pod)",
                f"    private memory of a pod {told.memory / 2**20:.2f} MiB; lab down {told.down:.2f}",
            )
            sys.stdout.write("\n".join((*lines, "")))
            sys.stdout.flush()
    finally:
        lab_cost.kproxy("lab", "down")
    first = found[options.pods[0]]
    times = (first.up + first.ready + first.answering) / first.bare
    if options.most and times > options.most:
        raise SystemExit(f"{times:.1f} times ip -batch is more than {options.most}")
    if options.most_memory and first.memory > options.most_memory * 2**20:
        raise SystemExit(f"{first.memory / 2**20:.2f} MiB a pod is more than {options.most_memory}")


if __name__ == "__main__":
    main()
