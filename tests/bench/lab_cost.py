"""From nothing to a lab of twelve pods that answer from outside, and where the time goes.

    sudo python tests/bench/lab_cost.py [--pods 12] [--rounds 3]

Each round brings a lab up, applies a Deployment with a NodePort Service, and asks from the outside client until every
pod has answered. Beside it, in the same run: Python's bare start-up, and ip(8) in batches making the same network.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time

import msgspec

from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import Overrides
from kproxy.cluster.layout import Layout
from kproxy.cluster.status import LabStatus
from kproxy.cluster.topology import PodPlace, infrastructure, pod
from netns.ip_batch import measure
from netns.namespace import named, run_in
from netns.topology import merge

LAB = os.environ.get("KPROXY_BENCH_LAB", "bench")
PORT = 31999


def kproxy(*argv: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kproxy", *argv],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KPROXY_LAB": LAB},
    )
    return done.stdout


def manifest(pods: int) -> str:
    labels = {"app": "bench"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "bench"},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": 80, "nodePort": PORT}]},
    }
    container = {"name": "web", "image": "echo", "ports": [{"containerPort": 80}]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "bench"},
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, deployment]})


def ask_until_all_answered(status: LabStatus) -> None:
    """Connections from the client, to each node in turn, until every pod has answered one."""
    waiting = {pod.name for pod in status.pods if pod.namespace_ == "default"}
    nodes = [node.addresses[0] for node in status.nodes]
    for number in range(200 * len(waiting)):
        connection = http.client.HTTPConnection(nodes[number % len(nodes)], PORT, timeout=5)
        connection.request("GET", "/hostname")
        waiting.discard(connection.getresponse().read().decode().strip())
        connection.close()
        if not waiting:
            return
    raise SystemExit(f"never answered: {', '.join(sorted(waiting))}")


def timed(times: dict[str, list[float]], what: str, began: float) -> float:
    now = time.perf_counter()
    times.setdefault(what, []).append(now - began)
    return now


def one_round(pods: int, times: dict[str, list[float]]) -> None:
    client = named(f"{LAB}-client", Layout(LAB).namespaces)
    began = at = time.perf_counter()
    kproxy("lab", "up", "--dns-replicas", "0")
    at = timed(times, "kproxy lab up", at)
    kproxy("apply", "-f", "-", text=manifest(pods))
    at = timed(times, "kproxy apply, until programmed everywhere", at)
    status = msgspec.json.decode(kproxy("lab", "status", "-o", "json"), type=LabStatus)
    at = time.perf_counter()
    run_in(client, ask_until_all_answered, status)
    at = timed(times, "every pod has answered the client", at)
    timed(times, "all of it", began)
    at = time.perf_counter()
    kproxy("lab", "down")
    timed(times, "kproxy lab down", at)
    at = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    timed(times, "for comparison: python -c pass", at)
    config = clusterfile.read([], Overrides(lab=LAB))
    places = [PodPlace(entry.namespace_, entry.name, entry.node, entry.addresses) for entry in status.pods]
    whole = merge(infrastructure(config), *(pod(config, place) for place in places))
    times.setdefault("for comparison: ip -batch of the same network", []).append(measure(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    kproxy("lab", "down")
    try:
        for _ in range(options.rounds):
            one_round(options.pods, times)
    finally:
        kproxy("lab", "down")
    lines = [f"{what:<50}{statistics.median(values):>8.3f}\n" for what, values in times.items()]
    title = f"three nodes, {options.pods} pods; seconds, median of {options.rounds}\n"
    sys.stdout.write(title + "".join(lines))


if __name__ == "__main__":
    main()
