"""The pages of the metrics server (kube-proxy: cmd/kube-proxy/app/server.go, serveMetrics)."""

from __future__ import annotations

from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.config_file import as_configz
from kproxy.proxy.metrics import PACKET_COUNTERS, Metrics
from kproxy.proxy.netlink import read_counters
from kproxy.proxy.serving import NO_SNIFF, PLAIN_TEXT, Answer, Routes


def status_pages(config: ProxyConfig, metrics: Metrics) -> Routes:
    """What the metrics server answers.

    Args:
        config: what the proxy was started with.
        metrics: what it counts.
    """
    pages: Routes = {
        "/healthz": lambda _: Answer(200, "ok", NO_SNIFF, PLAIN_TEXT),
        "/proxyMode": lambda _: Answer(200, config.proxy_mode, NO_SNIFF, PLAIN_TEXT),
        "/metrics": lambda _: _metrics(metrics),
        "/configz": lambda _: Answer(200, as_configz(config), NO_SNIFF),
    }
    return pages


def _metrics(metrics: Metrics) -> Answer:
    from kproxy.proxy.exposition import CONTENT_TYPE, exposition  # its library takes as long as the proxy's whole start

    return Answer(200, exposition(metrics, read_counters(PACKET_COUNTERS)), {}, CONTENT_TYPE)
