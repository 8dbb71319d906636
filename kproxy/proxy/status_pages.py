"""The pages of the metrics server (kube-proxy: cmd/kube-proxy/app/server.go, serveMetrics)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs

from kproxy import __version__
from kproxy.proxy.config import ProxyConfig, duration_text
from kproxy.proxy.config_file import as_configz
from kproxy.proxy.flags import FLAGS
from kproxy.proxy.metrics import PACKET_COUNTERS, Metrics
from kproxy.proxy.netlink import read_counters
from kproxy.proxy.serving import NO_SNIFF, PLAIN_TEXT, Answer, Routes

WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only."
)
SLIS = """\
# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.
# TYPE kubernetes_healthcheck gauge
kubernetes_healthcheck{{name="ping",type="healthz"}} 1
# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.
# TYPE kubernetes_healthchecks_total counter
kubernetes_healthchecks_total{{name="ping",status="success",type="healthz"}} {count}
"""


def status_pages(config: ProxyConfig, metrics: Metrics, clock: Callable[[], float] = time.time) -> Routes:
    """What the metrics server answers.

    Args:
        config: what the proxy was started with.
        metrics: what it counts.
        clock: seconds since the epoch.
    """
    started = clock()
    count = 0

    def healthz(query: str) -> Answer:
        nonlocal count
        count += 1
        return _page(
            "[+]ping ok\nhealthz check passed\n" if "verbose" in parse_qs(query, keep_blank_values=True) else "ok"
        )

    pages: Routes = {
        "/healthz": healthz,
        "/healthz/ping": lambda _: _page("ok"),
        "/proxyMode": lambda _: _page(config.proxy_mode),
        "/metrics": lambda _: _metrics(metrics),
        "/metrics/slis": lambda _: Answer(200, SLIS.format(count=count) if count else "", {}, PLAIN_TEXT),
        "/configz": lambda _: Answer(200, as_configz(config), NO_SNIFF),
        "/statusz": lambda _: _page(statusz(started, clock(), pages)),
        "/flagz": lambda _: _page(flagz(config)),
    }
    return pages


def statusz(started: float, now: float, paths: Routes) -> str:
    """Since when the proxy has run, what it is, and what can be asked."""
    up = datetime.fromtimestamp(now - started, UTC)
    hours = int(now - started) // 3600
    lines = [
        f"Started: {datetime.fromtimestamp(started, UTC):%a %b %e %H:%M:%S UTC %Y}",
        f"Up: {hours} hr {up:%M} min {up:%S} sec",
        f"Binary version: kproxy {__version__}",
        f"Paths: {' '.join(sorted(paths))}",
    ]
    return "\n".join(["", "kube-proxy statusz", WARNING, "", *lines, ""])


def flagz(config: ProxyConfig) -> str:
    """Every setting as the flag that would give it."""
    values = ((name, getattr(config, flag.field, None)) for name, flag in sorted(FLAGS.items()))
    lines = [f"{name}={_flag_text(name, value)}" for name, value in values if value is not None]
    return "\n".join(["", "kube-proxy flagz", WARNING, "", *lines, ""])


def _flag_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    if isinstance(value, float):
        return f"{value:g}" if name == "kube-api-qps" else duration_text(value)
    return str(value)


def _page(text: str) -> Answer:
    return Answer(200, text, NO_SNIFF, PLAIN_TEXT)


def _metrics(metrics: Metrics) -> Answer:
    from kproxy.proxy.exposition import CONTENT_TYPE, exposition  # its library takes as long as the proxy's whole start

    return Answer(200, exposition(metrics, read_counters(PACKET_COUNTERS)), {}, CONTENT_TYPE)
