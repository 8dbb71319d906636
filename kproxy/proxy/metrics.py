"""What the proxy counts and times, under kube-proxy's names (pkg/proxy/metrics/metrics.go).

The store is plain numbers, so that counting needs no library; ``exposition`` writes them out when somebody asks.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

PREFIX = "kubeproxy_"
FAMILY = ("ip_family",)

_DURATIONS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING = (0.25, 0.5, *range(1, 60), *range(60, 116, 5), *range(120, 301, 30))


class Kind(Enum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric's definition.

    Attributes:
        name: without the prefix that all have.
        kind: counter, gauge or histogram.
        help: kube-proxy's own text.
        labels: names of its labels.
        buckets: upper bounds of a histogram's buckets, the infinite one left out.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _duration(name: str, text: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, FAMILY, _DURATIONS)


SYNC_DURATION = _duration("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds")
FULL_SYNC_DURATION = _duration(
    "sync_full_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for full resyncs"
)
PARTIAL_SYNC_DURATION = _duration(
    "sync_partial_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for partial resyncs"
)
LAST_SYNC = Metric(
    "sync_proxy_rules_last_timestamp_seconds", Kind.GAUGE, "The last time proxy rules were successfully synced", FAMILY
)
LAST_QUEUED = Metric(
    "sync_proxy_rules_last_queued_timestamp_seconds",
    Kind.GAUGE,
    "The last time a sync of proxy rules was queued",
    FAMILY,
)
NETWORK_PROGRAMMING = Metric(
    "network_programming_duration_seconds",
    Kind.HISTOGRAM,
    "In Cluster Network Programming Latency in seconds",
    FAMILY,
    _PROGRAMMING,
)
ENDPOINT_CHANGES_PENDING = Metric(
    "sync_proxy_rules_endpoint_changes_pending", Kind.GAUGE, "Pending proxy rules Endpoint changes"
)
ENDPOINT_CHANGES = Metric(
    "sync_proxy_rules_endpoint_changes_total", Kind.COUNTER, "Cumulative proxy rules Endpoint changes"
)
SERVICE_CHANGES_PENDING = Metric(
    "sync_proxy_rules_service_changes_pending", Kind.GAUGE, "Pending proxy rules Service changes"
)
SERVICE_CHANGES = Metric(
    "sync_proxy_rules_service_changes_total", Kind.COUNTER, "Cumulative proxy rules Service changes"
)
NO_LOCAL_ENDPOINTS = Metric(
    "sync_proxy_rules_no_local_endpoints_total",
    Kind.GAUGE,
    "Number of services with a Local traffic policy and no endpoints",
    ("traffic_policy", *FAMILY),
)
HEALTHZ = Metric("proxy_healthz_total", Kind.COUNTER, "Cumulative proxy healthz HTTP status", ("code",))
LIVEZ = Metric("proxy_livez_total", Kind.COUNTER, "Cumulative proxy livez HTTP status", ("code",))
RESTORE_FAILURES = Metric(
    "sync_proxy_rules_iptables_restore_failures_total",
    Kind.COUNTER,
    "Cumulative proxy iptables restore failures",
    FAMILY,
)
PARTIAL_RESTORE_FAILURES = Metric(
    "sync_proxy_rules_iptables_partial_restore_failures_total",
    Kind.COUNTER,
    "Cumulative proxy iptables partial restore failures",
    FAMILY,
)
RULES = Metric(
    "sync_proxy_rules_iptables_total",
    Kind.GAUGE,
    "Total number of iptables rules owned by kube-proxy",
    ("table", *FAMILY),
)
LAST_RULES = Metric(
    "sync_proxy_rules_iptables_last",
    Kind.GAUGE,
    "Number of iptables rules written by kube-proxy in last sync",
    ("table", *FAMILY),
)
NFTABLES_SYNC_FAILURES = Metric(
    "sync_proxy_rules_nftables_sync_failures_total", Kind.COUNTER, "Cumulative proxy nftables sync failures", FAMILY
)
CONNTRACK_DURATION = _duration(
    "conntrack_reconciler_sync_duration_seconds", "ReconcileConntrackFlowsLatency latency in seconds"
)
CONNTRACK_DELETED = Metric(
    "conntrack_reconciler_deleted_entries_total",
    Kind.COUNTER,
    "Cumulative conntrack flows deleted by conntrack reconciler",
    FAMILY,
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

PACKET_COUNTERS: dict[str, Metric] = {
    "ct_state_invalid_dropped_pkts": Metric(
        "iptables_ct_state_invalid_dropped_packets_total",
        Kind.COUNTER,
        "packets dropped by iptables to work around conntrack problems",
    ),
    "localhost_nps_accepted_pkts": Metric(
        "iptables_localhost_nodeports_accepted_packets_total",
        Kind.COUNTER,
        "Number of packets accepted on nodeports of loopback interface",
    ),
}
"""What the kernel itself counts, by the name of its nfacct counter."""


class Distribution(msgspec.Struct):
    """A histogram's values: how many fell into each bucket (the last is the infinite one), and their sum."""

    counts: list[int]
    total: float = 0.0


Labels = tuple[str, ...]
Snapshot = dict[Metric, dict[Labels, float | Distribution]]


class Metrics:
    """The numbers; safe to use from any thread.

    Metrics without labels are there from the start, the others from their first value on, as in kube-proxy.

    Args:
        wall: seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._started = wall()
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[Labels, float]] = {
            metric: {} if metric.labels else {(): 0.0} for metric in METRICS if metric.kind is not Kind.HISTOGRAM
        }
        self._distributions: dict[Metric, dict[Labels, Distribution]] = {
            metric: {} for metric in METRICS if metric.kind is Kind.HISTOGRAM
        }

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Let a counter grow."""
        with self._lock:
            values = self._values[metric]
            values[labels] = values.get(labels, 0.0) + amount

    def set(self, metric: Metric, *labels: str, value: float) -> None:
        """Give a gauge a value."""
        with self._lock:
            self._values[metric][labels] = value

    def set_to_now(self, metric: Metric, *labels: str) -> None:
        """Give a gauge the time of day."""
        self.set(metric, *labels, value=self._wall())

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Add a value to a histogram."""
        with self._lock:
            found = self._distributions[metric].setdefault(labels, Distribution([0] * (len(metric.buckets) + 1)))
            found.counts[bisect_left(metric.buckets, value)] += 1
            found.total += value

    def programmed(self, family: str, triggers: Iterable[float]) -> None:
        """Network programming is done for endpoint changes that happened at these times (seconds since the epoch).

        Those from before the start say nothing about this proxy and are left out.
        """
        now = self._wall()
        for moment in triggers:
            if moment > self._started:
                self.observe(NETWORK_PROGRAMMING, family, value=max(0.0, now - moment))

    def rules(self, family: str, total: Mapping[str, int], last: Mapping[str, int]) -> None:
        """Tell how many rules each table holds of ours, and how many the last restore wrote."""
        for metric, counts in ((RULES, total), (LAST_RULES, last)):
            for table, count in counts.items():
                self.set(metric, table, family, value=count)

    def snapshot(self) -> Snapshot:
        """A copy of all numbers."""
        with self._lock:
            found: Snapshot = {metric: dict(values) for metric, values in self._values.items()}
            for metric, distributions in self._distributions.items():
                found[metric] = {
                    labels: Distribution(list(value.counts), value.total) for labels, value in distributions.items()
                }
        return {metric: found[metric] for metric in METRICS}
