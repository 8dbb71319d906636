"""The names, types, labels and buckets that kube-proxy's users have in their dashboards."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kproxy.proxy import metrics as names
from kproxy.proxy.exposition import CONTENT_TYPE, exposition
from kproxy.proxy.metrics import Metrics

DURATIONS = [0.001 * 2**power for power in range(15)]
PROGRAMMING = [0.25, 0.5, *range(1, 60), *range(60, 116, 5), *range(120, 301, 30)]


def families(metrics: Metrics, packets: dict[str, int] | None = None) -> dict[str, tuple[str, list[object]]]:
    text = exposition(metrics, packets or {})
    return {family.name: (family.type, family.samples) for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("metric", "kind", "labels"),
    [
        (names.SYNC_DURATION, "histogram", ["ip_family"]),
        (names.FULL_SYNC_DURATION, "histogram", ["ip_family"]),
        (names.PARTIAL_SYNC_DURATION, "histogram", ["ip_family"]),
        (names.LAST_SYNC, "gauge", ["ip_family"]),
        (names.LAST_QUEUED, "gauge", ["ip_family"]),
        (names.NETWORK_PROGRAMMING, "histogram", ["ip_family"]),
        (names.ENDPOINT_CHANGES_PENDING, "gauge", []),
        (names.SERVICE_CHANGES_PENDING, "gauge", []),
        (names.ENDPOINT_CHANGES, "counter", []),
        (names.SERVICE_CHANGES, "counter", []),
        (names.NO_LOCAL_ENDPOINTS, "gauge", ["traffic_policy", "ip_family"]),
        (names.HEALTHZ, "counter", ["code"]),
        (names.LIVEZ, "counter", ["code"]),
        (names.RESTORE_FAILURES, "counter", ["ip_family"]),
        (names.PARTIAL_RESTORE_FAILURES, "counter", ["ip_family"]),
        (names.RULES, "gauge", ["table", "ip_family"]),
        (names.LAST_RULES, "gauge", ["table", "ip_family"]),
        (names.CONNTRACK_DURATION, "histogram", ["ip_family"]),
        (names.CONNTRACK_DELETED, "counter", ["ip_family"]),
    ],
    ids=lambda value: value.name if isinstance(value, names.Metric) else "",
)
def test_metric_is_what_it_is_in_kube_proxy(metric: names.Metric, kind: str, labels: list[str]) -> None:
    metrics = Metrics()
    given = ["x"] * len(labels)
    if kind == "histogram":
        metrics.observe(metric, *given, value=0.3)
    elif kind == "gauge":
        metrics.set(metric, *given, value=7)
    else:
        metrics.add(metric, *given, amount=7)

    text = exposition(metrics, {})

    name = f"kubeproxy_{metric.name}"
    assert f"# TYPE {name} {kind}\n" in text
    assert f"# HELP {name} [ALPHA] {metric.help}\n" in text
    shown = ",".join(f'{label}="x"' for label in sorted(labels))
    ending = f"{{{shown}}}" if shown else ""
    assert (f"{name}_sum{ending} 0.3\n" if kind == "histogram" else f"{name}{ending} 7.0\n") in text


@pytest.mark.parametrize(
    ("metric", "bounds"), [(names.SYNC_DURATION, DURATIONS), (names.NETWORK_PROGRAMMING, PROGRAMMING)]
)
def test_buckets_are_kube_proxys(metric: names.Metric, bounds: list[float]) -> None:
    metrics = Metrics()
    for value in (0.0005, 0.25, 1.0, 1000.0):
        metrics.observe(metric, "IPv4", value=value)

    _, samples = families(metrics)[f"kubeproxy_{metric.name}"]
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}  # type: ignore[attr-defined]

    assert [float(bound) for bound in buckets] == pytest.approx([*bounds, float("inf")])
    expected = [sum(value <= bound for value in (0.0005, 0.25, 1.0, 1000.0)) for bound in [*bounds, float("inf")]]
    assert list(buckets.values()) == expected


def test_what_has_no_labels_is_there_from_the_start_and_the_rest_comes_with_its_first_value() -> None:
    found = {name for name in families(Metrics()) if name.startswith("kubeproxy_")}

    assert found == {
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "kubeproxy_sync_proxy_rules_endpoint_changes",
        "kubeproxy_sync_proxy_rules_service_changes",
    }


def test_packet_counters_appear_when_the_kernel_has_them() -> None:
    text = exposition(Metrics(), {"ct_state_invalid_dropped_pkts": 12})

    assert "# TYPE kubeproxy_iptables_ct_state_invalid_dropped_packets_total counter\n" in text
    assert "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 12.0\n" in text
    assert "localhost_nodeports" not in text


def test_only_changes_since_the_start_tell_how_long_programming_takes() -> None:
    clock = iter([100.0, 103.0])
    metrics = Metrics(lambda: next(clock))

    metrics.programmed("IPv4", [99.0, 101.5])

    (found,) = metrics.snapshot()[names.NETWORK_PROGRAMMING].values()
    assert isinstance(found, names.Distribution)
    assert (sum(found.counts), found.total) == (1, 1.5)


def test_process_is_measured_too() -> None:
    assert "process_resident_memory_bytes " in exposition(Metrics(), {})
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_start_needs_no_metrics_library() -> None:
    """Three proxies start at once on two cores: what they load at the start is what their users wait for."""
    program = (
        "import sys, kproxy.cli.proxy, kproxy.proxy.node_proxy, kproxy.proxy.sources.api\n"
        "print(*sorted({'prometheus_client', 'pyroute2', 'click', 'rich', 'yaml', 'asyncio'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
