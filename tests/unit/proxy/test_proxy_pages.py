"""The pages of the metrics server that are no metrics."""

from __future__ import annotations

import pytest

from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.flags import FLAGS
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.status_pages import status_pages


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("/healthz", "", "ok"),
        ("/healthz", "verbose", "[+]ping ok\nhealthz check passed\n"),
        ("/healthz", "verbose=1", "[+]ping ok\nhealthz check passed\n"),
        ("/healthz", "quiet", "ok"),
        ("/healthz/ping", "", "ok"),
        ("/proxyMode", "", "iptables"),
    ],
)
def test_small_pages_say_what_kube_proxys_say(path: str, query: str, body: str) -> None:
    answer = status_pages(ProxyConfig(), Metrics())[path](query)
    assert (answer.status, answer.body, answer.content_type) == (200, body, "text/plain; charset=utf-8")


def test_slis_count_the_looks_at_healthz() -> None:
    pages = status_pages(ProxyConfig(), Metrics())
    assert pages["/metrics/slis"]("").body == ""
    for _ in range(3):
        pages["/healthz"]("")
    lines = pages["/metrics/slis"]("").body.splitlines()
    assert 'kubernetes_healthcheck{name="ping",type="healthz"} 1' in lines
    assert 'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 3' in lines


def test_statusz_tells_how_long_it_has_been_up_and_what_can_be_asked() -> None:
    moments = iter([1_000_000.0, 1_000_000.0 + 27 * 3600 + 62])
    pages = status_pages(ProxyConfig(), Metrics(), lambda: next(moments))
    lines = pages["/statusz"]("").body.splitlines()
    assert lines[1] == "kube-proxy statusz"
    assert "Started: Mon Jan 12 13:46:40 UTC 1970" in lines
    assert "Up: 27 hr 01 min 02 sec" in lines
    assert f"Paths: {' '.join(sorted(pages))}" in lines


def test_flagz_names_every_flag_that_has_a_value() -> None:
    config = ProxyConfig(cluster_cidr=("10.244.0.0/16", "fd00::/48"), masquerade_all=True, kube_api_qps=5.0)
    lines = status_pages(config, Metrics())["/flagz"]("").body.splitlines()
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    assert shown.keys() == {name for name, flag in FLAGS.items() if hasattr(config, flag.field)}
    wanted = {
        "cluster-cidr": "[10.244.0.0/16,fd00::/48]",
        "masquerade-all": "true",
        "iptables-sync-period": "30s",
        "config-sync-period": "15m0s",
        "oom-score-adj": "-999",
        "kube-api-qps": "5",
        "master": "",
    }
    assert {name: shown[name] for name in wanted} == wanted
