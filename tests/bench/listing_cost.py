"""How long the node proxy takes to list and decode a large cluster: the lab's API by TLS, its proxy's own source.

    python tests/bench/listing_cost.py [SERVICES] [ENDPOINTS OF EACH]

The server is a process of its own; the time is from nothing until Services and EndpointSlices have both arrived.
"""

from __future__ import annotations

import gc
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from kproxy.api.kinds import ENDPOINT_SLICE, NODE, SERVICE
from kproxy.api.types import Object
from kproxy.cluster import certificates, tokens
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import serve
from kproxy.cluster.kubeconfig import Access, as_json
from kproxy.cluster.rights import node_identity
from kproxy.cluster.store import Store, Transaction
from kproxy.proxy.api_access import connect
from kproxy.proxy.changes import Batch
from kproxy.proxy.sources.api import ApiSource

ROUNDS = 5
LOOPBACK = "127.0.0.1"


def service(number: int) -> Object:
    address = f"10.96.{number >> 8}.{number & 255}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number}", "namespace": "default", "uid": "u" * 36, "labels": {"app": f"s{number}"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": f"s{number}"},
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        },
        "status": {"loadBalancer": {}},
    }


def slice_of(number: int, endpoints: int) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"s{number}-abcde",
            "namespace": "default",
            "uid": "v" * 36,
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [f"10.{index}.{number >> 8}.{number & 255}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node{index % 3 + 1}",
                "zone": "a",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": f"s{number}-{index}", "uid": "w" * 36},
            }
            for index in range(endpoints)
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def serve_cluster(folder: Path, services: int, endpoints: int, pipe: Connection) -> None:
    """Body of the server's process."""

    def fill(transaction: Transaction) -> None:
        for number in range(services):
            transaction.put(SERVICE, service(number))
            transaction.put(ENDPOINT_SLICE, slice_of(number, endpoints))
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {}, "status": {}}
        transaction.put(NODE, node)

    store = Store(folder / "state.db")
    store.transact(fill)
    certificates.ensure(folder / "pki", [LOOPBACK])
    known = tokens.ensure(folder / "tokens.json", ["node1"])
    server = serve(store, folder / "api.sock", cluster=ClusterSettings(), lab_status=dict, tokens=known)
    listener = socket.create_server((LOOPBACK, 0))
    server.open_door(listener, certificates.server_context(folder / "pki"))
    authority = (folder / "pki" / certificates.CA_CERTIFICATE).read_bytes()
    who = node_identity("node1")
    url = f"https://{LOOPBACK}:{listener.getsockname()[1]}"
    (folder / "kubeconfig").write_bytes(as_json(Access("bench", url, authority, who.user, known.of(who))))
    pipe.send("ready")
    pipe.recv()
    server.stop()
    store.close()


def list_once(kubeconfig: Path) -> tuple[float, float, int]:
    """Seconds until all is there, seconds of this process's CPU, and how many objects that was."""
    reached: set[str] = set()
    counts: list[int] = []
    is_there, stop = threading.Event(), threading.Event()

    def deliver(batch: Batch) -> None:
        counts.append(len(batch.changes))
        reached.update(batch.reached)
        if {"Service", "EndpointSlice"} <= reached:
            is_there.set()

    began, cpu = time.monotonic(), time.process_time()
    client = connect(str(kubeconfig), "")
    ApiSource(client, "node1").start(deliver, stop)
    is_there.wait()
    took, used = time.monotonic() - began, time.process_time() - cpu
    stop.set()
    client.close()
    return took, used, sum(counts)


def main() -> None:
    services, endpoints = (int(word) for word in (*sys.argv[1:], *("10000", "10")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here, there = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve_cluster, args=(folder, services, endpoints, there))
        server.start()
        here.recv()
        gc.disable()  # as the proxy does while it loads
        found = [list_once(folder / "kubeconfig") for _ in range(ROUNDS)]
        here.send("stop")
        server.join()
    print(f"{services} Services with {endpoints} endpoints each, listed and decoded, best of {ROUNDS}:")  # noqa: T201
    print(f"  {min(row[0] for row in found):.2f} s, {min(row[1] for row in found):.2f} s of CPU")  # noqa: T201


if __name__ == "__main__":
    main()
