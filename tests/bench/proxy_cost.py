"""What the node proxy costs beside the bare iptables-legacy-restore of the very texts that it writes.

    sudo python tests/bench/proxy_cost.py [--services 1000] [--endpoints 10] [--rounds 5] [--files one|many]

*start*: from the start of `kproxy proxy --manifests DIR` until it says that all rules are in; beside it
iptables-legacy-restore of the same text into empty tables. *sync*: the first full sync alone, as the proxy's own metric
has it, beside the same. *flip*: from the rename that puts a file in place, in which
one endpoint of one Service is another one, until the proxy says that the kernel has it; beside it
iptables-legacy-restore of the same text into the same tables. Measured in turns, in one namespace. The texts are
recorded in a run of its own, by a tool that stands before the real one. After every measurement of the proxy the kernel
is asked whether it holds what it should.

kube-proxy's own --iptables-min-sync-period (1 s by default) is set to 0: it is waiting, not work.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from netns.build import build, tear_down
from netns.journal import Journal
from netns.namespace import Namespace, named, run_in, socket_in
from netns.topology import NamespaceSpec, Role, Topology

CHECKOUT = Path(__file__).parents[2]
FOLDER = Path("/run/kproxy-proxy-bench")
RESTORE = "iptables-legacy-restore"
PATIENCE = 120.0
FLIPS = 6
"""Flips in each round; an odd one puts the changed endpoint in, an even one the first one back."""


class Cluster(NamedTuple):
    """How large, and in how many files."""

    services: int
    endpoints: int
    in_one_file: bool

    def write(self, folder: Path) -> None:
        """All objects as JSON."""
        if self.in_one_file:
            self.flipped(folder, is_changed=False)()
            return
        for each in self._objects(is_changed=False):
            put(folder / f"{each['metadata']['name']}-{each['kind'].lower()}.json", each)()

    def flipped(self, folder: Path, *, is_changed: bool) -> Callable[[], None]:
        """Write the file anew that holds the first Service's slice; returns what puts it in place."""
        if self.in_one_file:
            items = list(self._objects(is_changed=is_changed))
            return put(folder / "objects.json", {"apiVersion": "v1", "kind": "List", "items": items})
        return put(folder / "service-0-endpointslice.json", self.slice(0, is_changed=is_changed))

    def _objects(self, *, is_changed: bool) -> Iterator[dict[str, Any]]:
        yield node()
        for number in range(self.services):
            yield service(number)
            yield self.slice(number, is_changed=is_changed and number == 0)

    def slice(self, number: int, *, is_changed: bool = False) -> dict[str, Any]:
        """The slice of one Service; its first endpoint is another one when it is changed."""
        network = f"10.{128 + number // 256}.{number % 256}"
        hosts = [251 if is_changed else 1, *range(2, self.endpoints + 1)]
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"service-{number}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": f"service-{number}"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [
                {
                    "addresses": [f"{network}.{host}"],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "nodeName": f"node{host % 3 + 1}",
                }
                for host in hosts
            ],
        }


def service(number: int) -> dict[str, Any]:
    address = f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"service-{number}", "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "selector": {"app": f"service-{number}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    }


def node() -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": "192.168.1.2"}]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "status": {"addresses": addresses}}


def put(path: Path, value: object) -> Callable[[], None]:
    """Write a file; returns what puts it in place, whole."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(value))

    def put_in_place() -> None:
        fresh.rename(path)

    return put_in_place


class Bench:
    """A namespace, a directory of manifests, and the proxy when it runs."""

    def __init__(self, namespace: Namespace, cluster: Cluster) -> None:
        self._namespace = namespace
        self._cluster = cluster
        self._manifests = FOLDER / "manifests"
        self._texts = FOLDER / "texts"
        self._recorder = FOLDER / "bin"
        self._version = 0

    def prepare(self) -> tuple[Path, Path]:
        """Write the manifests, and record what the proxy writes: at the start, and for a changed endpoint."""
        for folder in (self._manifests, self._texts, self._recorder):
            folder.mkdir(parents=True)
        self._cluster.write(self._manifests)
        record = f'text={self._texts}/$(date +%s%N); cat > "$text"; exec {RESTORE} "$@" < "$text"'
        recorder = self._recorder / RESTORE
        recorder.write_text(f"#!/bin/bash\nPATH=${{PATH#{self._recorder}:}}; {record}\n")
        recorder.chmod(0o755)
        with self._proxy(f"{self._recorder}:"):
            self._flip(is_changed=True)
            self._flip(is_changed=False)
        full, changed, _ = sorted(path for path in self._texts.iterdir() if path.stat().st_size)
        recorder.unlink()
        return full, changed

    def measure(self, full: Path, changed: Path, rounds: int) -> dict[str, list[float]]:
        """Seconds of each kind, taken in turns."""
        taken: dict[str, list[float]] = {"start": [], "sync": [], "bare": [], "flip": [], "bare flip": []}
        for _ in range(rounds):
            self._empty()
            taken["bare"].append(self._timed(lambda: self._restore(full)))
            self._empty()
            started = time.monotonic()
            with self._proxy():
                taken["start"].append(time.monotonic() - started)
                taken["sync"].append(self._sync_seconds())
                for number in range(FLIPS):
                    is_changed = number % 2 == 0
                    taken["flip"].append(self._flip(is_changed=is_changed))
                    self._check(is_changed=is_changed)
                    taken["bare flip"].append(self._timed(lambda: self._restore(changed)))
        return taken

    @staticmethod
    def _timed(do: Callable[[], object]) -> float:
        started = time.monotonic()
        do()
        return time.monotonic() - started

    def _restore(self, text: Path) -> None:
        with text.open() as source:
            self._run([RESTORE, "-w", "5", "--noflush", "--counters"], stdin=source)

    def _empty(self) -> None:
        for table in ("mangle", "filter", "nat"):
            self._run([RESTORE], input=f"*{table}\nCOMMIT\n", text=True)

    def _check(self, *, is_changed: bool) -> None:
        held = self._run(["iptables-legacy-save", "-t", "nat"], capture_output=True, text=True).stdout
        count, expected = held.count(" -j DNAT "), self._cluster.services * self._cluster.endpoints
        if count != expected or ("10.128.0.251:8080" in held) != is_changed:
            sys.exit(f"the kernel holds {count} endpoints instead of {expected}, or not the changed one")

    def _run(self, argv: list[str], **how: Any) -> subprocess.CompletedProcess[Any]:
        return run_in(self._namespace, subprocess.run, argv, check=True, env=self._environment(), **how)

    @staticmethod
    def _environment(path: str = "") -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{path}{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(CHECKOUT),
            "XTABLES_LOCKFILE": str(FOLDER / "xtables.lock"),
        }

    # the proxy

    @contextmanager
    def _proxy(self, path: str = "") -> Iterator[None]:
        flags = {
            "manifests": str(self._manifests),
            "hostname-override": "node1",
            "cluster-cidr": "10.128.0.0/9",
            "iptables-variant": "legacy",
            "iptables-min-sync-period": "0s",
            "conntrack-max-per-core": "0",
            "oom-score-adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        }
        argv = [sys.executable, "-P", "-m", "kproxy", "proxy", *(f"--{name}={flags[name]}" for name in flags)]
        with (FOLDER / "proxy.log").open("ab") as log:
            proxy = run_in(self._namespace, subprocess.Popen, argv, env=self._environment(path), stdout=log, stderr=log)
        try:
            self._version = 1
            self._wait()
            yield
        finally:
            proxy.send_signal(signal.SIGTERM)
            proxy.wait()

    def _flip(self, *, is_changed: bool) -> float:
        self._version += 1
        put_in_place = self._cluster.flipped(self._manifests, is_changed=is_changed)
        started = time.monotonic()
        put_in_place()
        self._wait()
        return time.monotonic() - started

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._programmed() >= self._version:
                    return
            except ConnectionRefusedError:
                time.sleep(0.002)
            if time.monotonic() > deadline:
                sys.exit(f"nothing within {PATIENCE} s: {(FOLDER / 'proxy.log').read_text()}")

    def _programmed(self) -> int:
        answer = self._get(10256, f"/programmed?resourceVersion={self._version}&timeoutSeconds={PATIENCE}")
        return int(json.loads(answer)["resourceVersion"])

    def _sync_seconds(self) -> float:
        name = 'kubeproxy_sync_full_proxy_rules_duration_seconds_sum{ip_family="IPv4"}'
        return next(float(line.split()[-1]) for line in self._get(10249, "/metrics").splitlines() if name in line)

    def _get(self, port: int, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        with socket_in(self._namespace, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect(("127.0.0.1", port))
            connection.sock = sock
            connection.request("GET", path)
            return connection.getresponse().read().decode()


def show(taken: dict[str, list[float]]) -> None:
    """Prints medians, and the median of the ratios of what was measured one after the other."""
    print(f"{'':>6} {'proxy':>9} {'bare':>9} {'ratio':>7}   (ms, medians)")  # noqa: T201
    for what, beside in (("start", "bare"), ("sync", "bare"), ("flip", "bare flip")):
        proxy, bare = taken[what], taken[beside]
        ratio = statistics.median(one / other for one, other in zip(proxy, bare, strict=True))
        mine, its = (statistics.median(seconds) * 1000 for seconds in (proxy, bare))
        print(f"{what:>6} {mine:>9.1f} {its:>9.1f} {ratio:>7.2f}")  # noqa: T201


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each Service")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--files", choices=("one", "many"), default="many", help="all objects in one file, or one in each"
    )
    arguments = parser.parse_args()
    cluster = Cluster(arguments.services, arguments.endpoints, arguments.files == "one")
    FOLDER.mkdir(mode=0o700)
    journal = Journal(FOLDER / "journal", "bench")
    try:
        journal.tree(FOLDER / "manifests")
        journal.tree(FOLDER / "texts")
        journal.tree(FOLDER / "bin")
        build(Topology((NamespaceSpec("proxybench-node", Role.NODE),)), journal, FOLDER / "netns")
        bench = Bench(named("proxybench-node", FOLDER / "netns"), cluster)
        texts = bench.prepare()
        rules = texts[0].read_text().count("\n-A ")
        size = f"{arguments.services} Services x {arguments.endpoints} endpoints, files: {arguments.files}"
        print(f"{size}, {rules} rules, {arguments.rounds} rounds")  # noqa: T201
        show(bench.measure(*texts, arguments.rounds))
    finally:
        tear_down(journal)
        journal.close()
        for path in (FOLDER / "xtables.lock", FOLDER / "proxy.log"):
            path.unlink(missing_ok=True)
        (FOLDER / "netns").rmdir()
        FOLDER.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
