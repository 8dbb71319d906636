from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kproxy.api import columns, kinds
from kproxy.cli import tables

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def obj(name: str = "web", *, spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T11:55:00Z", **metadata}
    return {"metadata": meta, "spec": spec or {}, "status": status or {}}


def cells(kind: kinds.Kind, value: dict[str, Any], **options: Any) -> dict[str, str]:
    header, row = tables.table(kind, [value], now=NOW, **options)
    return dict(zip(header, row, strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (-30, "<invalid>"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (3600 * 2, "120m"),
        (3600 * 3, "3h"),
        (3600 * 3 + 120, "3h2m"),
        (3600 * 8, "8h"),
        (3600 * 48, "2d"),
        (3600 * 49, "2d1h"),
        (86400 * 8, "8d"),
        (86400 * 400, "400d"),
        (86400 * (365 * 2 + 20), "2y20d"),
        (86400 * 365 * 8, "8y"),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert columns.human_duration(timedelta(seconds=seconds)) == text


def test_columns_are_three_spaces_apart_and_lines_have_no_tail() -> None:
    assert tables.layout([["NAME", "AGE"], ["a-long-name", "5s"], ["b", ""]]) == [
        "NAME          AGE",
        "a-long-name   5s",
        "b",
    ]


def test_rows_that_follow_keep_the_widths_of_the_table_above() -> None:
    assert tables.layout([["b", "1s"]], [11, 3]) == ["b             1s"]


@pytest.mark.parametrize(
    ("spec", "status", "external", "ports"),
    [
        ({"type": "ClusterIP", "ports": [{"port": 80}]}, {}, "<none>", "80/TCP"),
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 31000}]}, {}, "<none>", "80:31000/TCP"),
        ({"type": "ClusterIP", "externalIPs": ["1.2.3.4", "5.6.7.8"]}, {}, "1.2.3.4,5.6.7.8", "<none>"),
        ({"type": "LoadBalancer", "ports": [{"port": 53, "protocol": "UDP"}]}, {}, "<pending>", "53/UDP"),
        (
            {"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]},
            {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
            "198.51.100.1,9.9.9.9",
            "<none>",
        ),
        ({"type": "ExternalName", "externalName": "example.com"}, {}, "example.com", "<none>"),
    ],
)
def test_services(spec: dict[str, Any], status: dict[str, Any], external: str, ports: str) -> None:
    row = cells(kinds.SERVICE, obj(spec=spec, status=status))
    assert (row["EXTERNAL-IP"], row["PORT(S)"], row["AGE"]) == (external, ports, "5m")


@pytest.mark.parametrize(
    ("metadata", "status", "ready", "word"),
    [
        ({}, {"phase": "Pending"}, "0/1", "Pending"),
        ({}, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, "1/1", "Running"),
        ({}, {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}, "0/1", "Running"),
        ({"deletionTimestamp": "2026-01-01T12:00:00Z"}, {"phase": "Running"}, "0/1", "Terminating"),
        (
            {},
            {
                "phase": "Running",
                "containerStatuses": [{"ready": False, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            },
            "0/1",
            "CrashLoopBackOff",
        ),
    ],
)
def test_pods(metadata: dict[str, Any], status: dict[str, Any], ready: str, word: str) -> None:
    row = cells(kinds.POD, obj(spec={"containers": [{"name": "a"}]}, status=status, **metadata))
    assert (row["READY"], row["STATUS"]) == (ready, word)


def test_wide_namespace_and_label_columns() -> None:
    pod = obj(spec={"containers": [], "nodeName": "node1"}, status={"podIP": "10.244.1.2"}, labels={"b": "2", "a": "1"})
    row = cells(kinds.POD, pod, wide=True, with_namespace=True, with_labels=True)
    assert next(iter(row)) == "NAMESPACE"
    assert (row["IP"], row["NODE"], row["LABELS"]) == ("10.244.1.2", "node1", "a=1,b=2")


def test_more_endpoints_than_fit_are_counted() -> None:
    addresses = [{"addresses": [f"10.0.0.{number}"]} for number in range(1, 6)]
    value = {"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": addresses}
    row = cells(kinds.ENDPOINT_SLICE, value)
    assert row["ENDPOINTS"] == "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more..."
    assert row["AGE"] == "<unknown>"


@pytest.mark.parametrize(
    ("subsets", "text"),
    [
        (None, "<none>"),
        ([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}, {"port": 90}]}], "10.0.0.1:80,10.0.0.1:90"),
        ([{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}], "[fd00::1]:80"),
        ([{"addresses": [{"ip": "10.0.0.1"}]}], "10.0.0.1"),
        ([{"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}], "<none>"),
    ],
)
def test_endpoints(subsets: Any, text: str) -> None:
    assert columns.endpoint_addresses({"metadata": {"name": "e"}, "subsets": subsets}) == text


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (None, "<none>"),
        ({"matchLabels": {"b": "2", "a": "1"}}, "a=1,b=2"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}, "a in (x,y)"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, "!a"),
    ],
)
def test_selectors(selector: Any, text: str) -> None:
    assert columns.selector(selector) == text


def test_every_kind_has_columns() -> None:
    assert {kind.name for kind in kinds.KINDS} == set(columns.COLUMNS)
