"""What a pod finds in its resolv.conf, by dnsPolicy, and what it is called."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.types import Pod, view
from kproxy.cluster import clusterfile, pod_files
from kproxy.cluster.clusterfile import Overrides

CONFIG = clusterfile.read([])
SIX = clusterfile.read([], Overrides(ip_families=("IPv6",)))
CLUSTER = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
OWN = {"nameservers": ["192.0.2.53"], "searches": ["example.com"], "options": [{"name": "ndots", "value": "2"}]}


def pod(name: str = "web", **spec: Any) -> Pod:
    return view({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}, Pod)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, CLUSTER),
        ({"dnsPolicy": "ClusterFirst", "hostNetwork": True}, "nameserver 192.168.1.1\n"),
        ({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": True}, CLUSTER),
        ({"dnsPolicy": "Default"}, "nameserver 192.168.1.1\n"),
        (
            {"dnsPolicy": "None", "dnsConfig": OWN},
            "search example.com\nnameserver 192.0.2.53\noptions ndots:2\n",
        ),
        (
            {"dnsConfig": OWN},
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.com\n"
            "nameserver 10.96.0.10\nnameserver 192.0.2.53\noptions ndots:2\n",
        ),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]}},
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_resolv_conf(spec: dict[str, Any], expected: str) -> None:
    assert pod_files.resolv_conf(pod(**spec), CONFIG) == expected


def test_resolv_conf_of_another_family() -> None:
    assert "nameserver fd00:10:96::a\n" in pod_files.resolv_conf(pod(), SIX)


@pytest.mark.parametrize(
    ("spec", "name", "full"),
    [
        ({}, "web", ""),
        ({"hostname": "first"}, "first", ""),
        ({"subdomain": "peers"}, "web", "web.peers.shop.svc.cluster.local"),
        ({"hostname": "first", "subdomain": "peers"}, "first", "first.peers.shop.svc.cluster.local"),
    ],
)
def test_what_a_pod_is_called(spec: dict[str, Any], name: str, full: str) -> None:
    assert pod_files.hostname(pod(**spec)) == name
    assert pod_files.full_name(pod(**spec)) == full
    assert f"10.244.1.2\t{full or name}" in pod_files.hosts(pod(**spec), ["10.244.1.2"])
