"""The proxy's metrics as Prometheus reads them; the only module that imports its library, when it is first asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from kproxy.proxy.metrics import PACKET_COUNTERS, PREFIX, Distribution, Kind, Labels, Metric, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Store(Collector):
    def __init__(self, metrics: Metrics, packets: Mapping[str, int]) -> None:
        self._metrics = metrics
        self._packets = packets

    def collect(self) -> Iterator[Family]:
        for metric, values in self._metrics.snapshot().items():
            if values:
                yield _family(metric, values)
        for name, metric in PACKET_COUNTERS.items():
            if name in self._packets:
                yield _family(metric, {(): self._packets[name]})


def _family(metric: Metric, values: Mapping[Labels, float | Distribution]) -> Family:
    name, text = PREFIX + metric.name, f"[ALPHA] {metric.help}"
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, text, labels=metric.labels)
        for labels, value in values.items():
            if isinstance(value, Distribution):
                histogram.add_metric(labels, buckets=_cumulative(metric, value), sum_value=value.total)
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(name, text, labels=metric.labels)
    for labels, value in values.items():
        if not isinstance(value, Distribution):
            family.add_metric(labels, value)
    return family


def _cumulative(metric: Metric, value: Distribution) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
    return list(zip(bounds, accumulate(value.counts), strict=True))


def exposition(metrics: Metrics, packets: Mapping[str, int]) -> str:
    """All metrics in Prometheus' text format, the process's own included.

    Args:
        metrics: the proxy's.
        packets: what the kernel's nfacct counters say, by name; those that do not exist are left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Store(metrics, packets))
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()
