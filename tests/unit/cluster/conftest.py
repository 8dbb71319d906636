"""Fixtures: a lab's API on a real socket, with and without its controllers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_cluster import Api, Cluster

from kproxy.api.kinds import NODE
from kproxy.client import Client
from kproxy.cluster.admission import ClusterSettings


@pytest.fixture
def settings() -> ClusterSettings:
    return ClusterSettings()


@pytest.fixture
def api(tmp_path: Path, settings: ClusterSettings) -> Iterator[Api]:
    running = Api(tmp_path, settings)
    try:
        yield running
    finally:
        running.client.close()
        running.stop()


@pytest.fixture
def client(api: Api) -> Client:
    return api.client


@pytest.fixture
def cluster(api: Api) -> Iterator[Cluster]:
    made = Cluster(api)
    for number, zone in ((1, "a"), (2, "a"), (3, "b")):
        labels = {"topology.kubernetes.io/zone": zone}
        api.client.create(NODE, {"metadata": {"name": f"node{number}", "labels": labels}})
    made.manager.start()
    made.kubelet.start()
    try:
        yield made
    finally:
        made.manager.stop()
        made.kubelet.stop()
