"""The cluster that is measured: Services with endpoints as an API server has them, as files, lists and watch events."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PORT = 80
TARGET_PORT = 8080
MAX_SLICE = 100
"""Endpoints in one slice (kube-controller-manager's --max-endpoints-per-slice)."""
FIRST_VERSION = 1_000_000
"""resourceVersion of the lists of EndpointSlices; each event counts on from it."""
_SERVICES = int(ipaddress.IPv4Address("10.96.0.0"))
_ENDPOINTS = int(ipaddress.IPv4Address("10.128.0.0"))
_PER_SERVICE = 256
FLIPPED = 100
"""The first of the endpoints that a Service has after a flip; before, it has less than so many."""


class Flip(NamedTuple):
    """Where to connect to, what then answers once the slice is in the kernel, and the slice."""

    cluster_ip: str
    endpoints: tuple[str, ...]
    slice_: dict[str, Any]


class Cluster(NamedTuple):
    """How many Services, and endpoints of each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services:,} x {self.endpoints:,}"

    def cluster_ip(self, number: int) -> str:
        """Where a Service answers."""
        return str(ipaddress.IPv4Address(_SERVICES + number + 1))

    def address(self, number: int, endpoint: int) -> str:
        """One endpoint of a Service; the one after the last is what the first becomes when it changes."""
        room = max(_PER_SERVICE, self.endpoints + 2)
        return str(ipaddress.IPv4Address(_ENDPOINTS + number * room + endpoint + 1))

    def service(self, number: int) -> dict[str, Any]:
        """A Service of type ClusterIP with one port."""
        address = self.cluster_ip(number)
        labels = {"app": f"service-{number}"}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**_metadata(f"service-{number}", number + 1), "labels": labels},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address,
                "clusterIPs": [address],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "sessionAffinity": "None",
                "selector": labels,
                "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
            },
            "status": {"loadBalancer": {}},
        }

    def slices(self, number: int) -> Iterator[dict[str, Any]]:
        """The slices of a Service."""
        for part in range(0, self.endpoints, MAX_SLICE):
            yield self._slice(number, range(part, min(part + MAX_SLICE, self.endpoints)), part)

    def changed(self, number: int, *, is_changed: bool, version: int = 1) -> dict[str, Any]:
        """A Service's first slice; its first endpoint is another one when it is changed."""
        others = range(1, min(MAX_SLICE, self.endpoints))
        return self._slice(number, [self.endpoints if is_changed else 0, *others], version=version)

    def flipped(self, number: int, version: int) -> Flip:
        """All endpoints of a Service that has a single slice are other ones."""
        endpoints = range(FLIPPED, FLIPPED + self.endpoints)
        slice_ = self._slice(number, endpoints, version=version)
        return Flip(self.cluster_ip(number), tuple(self.address(number, each) for each in endpoints), slice_)

    def _slice(self, number: int, endpoints: Sequence[int], part: int = 0, version: int = 1) -> dict[str, Any]:
        name = f"service-{number}"
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                **_metadata(f"{name}-{part:05d}", version),
                "generation": 1,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
            "endpoints": [self._endpoint(number, endpoint) for endpoint in endpoints],
        }

    def _endpoint(self, number: int, endpoint: int) -> dict[str, Any]:
        pod = {"kind": "Pod", "namespace": "default", "name": f"service-{number}-7d4b9c6f5-{endpoint:05d}"}
        return {
            "addresses": [self.address(number, endpoint)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node{endpoint % 50 + 2}",
            "targetRef": {**pod, "uid": f"0b1c2d3e-0000-4000-8000-{number:06d}{endpoint:06d}"},
            "zone": "a",
        }

    # as a directory, and as an API

    def write_manifests(self, folder: Path) -> None:
        """Each object in a JSON file of its own."""
        (folder / "node.json").write_text(json.dumps(node()))
        for number in range(self.services):
            (folder / f"service-{number}.json").write_text(json.dumps(self.service(number)))
            for slice_ in self.slices(number):
                (folder / f"slice-{slice_['metadata']['name']}.json").write_text(json.dumps(slice_))

    def put_changed(self, folder: Path, number: int, *, is_changed: bool) -> Callable[[], None]:
        """Write a Service's first slice anew; returns what puts it in place, whole."""
        slice_ = self.changed(number, is_changed=is_changed)
        path = folder / f"slice-{slice_['metadata']['name']}.json"
        fresh = path.with_name(f".{path.name}")
        fresh.write_text(json.dumps(slice_))

        def put_in_place() -> None:
            fresh.rename(path)

        return put_in_place

    def write_recording(self, folder: Path, flips: int, changes: int) -> list[Flip]:
        """What an API server answers to lists, and the watch events that come then, as ``replay_server`` reads it.

        Args:
            folder: where.
            flips: how many Services, chosen at random, get other endpoints first (0 where a Service has many slices).
            changes: how many changes of one endpoint, of Services chosen at random, come then.

        Returns:
            The flips.
        """
        numbers = range(self.services)
        slices = [slice_ for number in numbers for slice_ in self.slices(number)]
        # far ahead, so that the slices' version is what the proxy reports
        _write_list(folder / "services.json", "v1", "Service", map(self.service, numbers), 10 * FIRST_VERSION)
        _write_list(folder / "endpointslices.json", "discovery.k8s.io/v1", "EndpointSlice", slices, FIRST_VERSION)
        _write_list(folder / "nodes.json", "v1", "Node", [node()], FIRST_VERSION)
        _write_list(folder / "servicecidrs.json", "networking.k8s.io/v1", "ServiceCIDR", [], FIRST_VERSION)
        rng = random.Random(1)
        flipped = rng.sample(numbers, flips if self.endpoints < FLIPPED else 0)
        done = [self.flipped(number, FIRST_VERSION + count) for count, number in enumerate(flipped, 1)]
        with (folder / "events.jsonl").open("w") as lines:
            for flip in done:
                lines.write(_modified(flip.slice_))
            is_changed: dict[int, bool] = {}
            for event in range(len(done) + 1, len(done) + changes + 1):
                number = rng.randrange(self.services)
                is_changed[number] = not is_changed.get(number, False)
                lines.write(
                    _modified(self.changed(number, is_changed=is_changed[number], version=FIRST_VERSION + event))
                )
        return done


def node() -> dict[str, Any]:
    """The node that the proxy works on."""
    addresses = [{"type": "InternalIP", "address": "192.168.1.2"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1", "resourceVersion": "1"},
        "status": {"addresses": addresses},
    }


def _metadata(name: str, version: int) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "default",
        "uid": f"0b1c2d3e-0000-4000-8000-{version:012d}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-11-01T00:00:00Z",
    }


def _modified(slice_: dict[str, Any]) -> str:
    return json.dumps({"type": "MODIFIED", "object": slice_}) + "\n"


def _write_list(path: Path, version: str, kind: str, items: Any, resource_version: int) -> None:
    """Items as API servers send them: they do not say what they are."""
    named = ("apiVersion", "kind")
    bare = [{key: value for key, value in item.items() if key not in named} for item in items]
    metadata = {"resourceVersion": str(resource_version)}
    path.write_text(json.dumps({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": bare}))
