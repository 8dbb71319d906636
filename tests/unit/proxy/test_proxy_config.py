"""Flags in kube-proxy's syntax, its file, its words of refusal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kproxy.cli.proxy import run
from kproxy.errors import UserError
from kproxy.proxy.config import ProxyConfig, duration, parse_arguments
from kproxy.proxy.family import Family


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--cluster-cidr=10.0.0.0/8"], "cluster_cidr", ("10.0.0.0/8",)),
        (["--cluster-cidr", "10.0.0.0/8,fd00::/48"], "cluster_cidr", ("10.0.0.0/8", "fd00::/48")),
        (["--masquerade-all"], "masquerade_all", True),
        (["--masquerade-all=false"], "masquerade_all", False),
        (["--iptables-localhost-nodeports=false"], "iptables_localhost_nodeports", False),
        (["--iptables-min-sync-period=0s"], "iptables_min_sync_period", 0.0),
        (["--iptables-sync-period", "1m30s"], "iptables_sync_period", 90.0),
        (["-v=4"], "v", 4),
        (["-v", "2"], "v", 2),
        (["--oom-score-adj=-500"], "oom_score_adj", -500),
        (["--healthz-port=0"], "healthz_bind_address", ""),
        (["--metrics-port", "9999"], "metrics_bind_address", "127.0.0.1:9999"),
        (["--nodeport-addresses=primary"], "nodeport_addresses", ("primary",)),
        (["--feature-gates=A=true", "--ipvs-scheduler=rr", "--profiling"], "proxy_mode", "iptables"),
    ],
)
def test_flag_means(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse_arguments(argv), field) == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--clster-cidr=10.0.0.0/8"], "unknown flag: --clster-cidr"),
        (["--cluster-cidr"], "flag needs an argument: --cluster-cidr"),
        (["up"], "unexpected argument 'up'"),
        (["--masquerade-all=maybe"], 'invalid argument "maybe" for "--masquerade-all" flag'),
        (["--iptables-sync-period=30"], "is not a duration"),
        (["--iptables-masquerade-bit=32"], "IPTables.MasqueradeBit: Invalid value: 32: must be within the range"),
        (["--cluster-cidr=10.0.0.0"], 'ClusterCIDR: Invalid value: "10.0.0.0": must be a valid CIDR block'),
        (["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], "only one CIDR allowed"),
        (["--config-sync-period=0"], "ConfigSyncPeriod: Invalid value: 0.0: must be greater than 0"),
        (["--iptables-min-sync-period=31s"], "must be greater than or equal to"),
        (["--detect-local-mode=Magic"], 'DetectLocalMode: Unsupported value: "Magic"'),
        (["--detect-local-mode=BridgeInterface"], 'DetectLocal.BridgeInterface: Invalid value: "": must not be empty'),
        (["--nodeport-addresses=primary,10.0.0.0/8"], 'can\'t use both "primary" and CIDRs'),
        (["--proxy-mode=ipvs"], 'Mode: Invalid value: "ipvs"'),
    ],
)
def test_bad_flag_is_refused_in_kube_proxys_words(argv: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_arguments(argv)

    assert words in str(refused.value)


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        parse_arguments(["--oom-score-adj=2000", "--iptables-masquerade-bit=-1"])

    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("1h0m0s", 3600.0), ("1.5s", 1.5), ("100ms", 0.1), ("24h", 86400.0)]
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s 2s", "-1s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)


def test_file_wins_over_flags_but_for_the_few_that_kube_proxy_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
        "kind: KubeProxyConfiguration\n"
        "hostnameOverride: of-the-file\n"
        "clusterCIDR: 10.1.0.0/16\n"
        "nodePortAddresses: [192.168.0.0/16]\n"
        "iptables: {masqueradeBit: 15, syncPeriod: 10s, minSyncPeriod: 0s, localhostNodePorts: false}\n"
        "conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 1h}\n"
        "unknownField: 3\n"
    )

    config = parse_arguments([f"--config={path}", "--cluster-cidr=10.9.0.0/16", "--hostname-override=node7"])

    assert config.hostname_override == "node7"
    assert config.cluster_cidr == ("10.1.0.0/16",)
    assert config.nodeport_addresses == ("192.168.0.0/16",)
    assert (config.iptables_masquerade_bit, config.iptables_sync_period) == (15, 10.0)
    assert config.iptables_min_sync_period == 1.0  # zero means the default in a file
    assert config.iptables_localhost_nodeports is False
    assert (config.conntrack_max_per_core, config.conntrack_tcp_timeout_established) == (0, 3600.0)


@pytest.mark.parametrize("text", ["[", "kind: Pod\n", "- 1\n", "iptables: {masqueradeBit: many}\n"])
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)

    with pytest.raises(UserError, match=r"config\.yaml"):
        parse_arguments(["--config", str(path)])


@pytest.mark.parametrize(
    ("flag", "family", "cidrs"),
    [
        ((), Family.IPV4, ("0.0.0.0/0",)),
        (("192.168.0.0/16",), Family.IPV4, ("192.168.0.0/16",)),
        (("192.168.0.0/16",), Family.IPV6, ("::/0",)),
        (("10.0.0.0/8", "0.0.0.0/0"), Family.IPV4, ("0.0.0.0/0",)),
        (("primary",), Family.IPV4, ("192.168.1.2/32",)),
    ],
)
def test_node_port_addresses_count_per_family(flag: tuple[str, ...], family: Family, cidrs: tuple[str, ...]) -> None:
    assert ProxyConfig(nodeport_addresses=flag).node_port_cidrs(family, "192.168.1.2") == cidrs


def test_configuration_that_is_written_reads_back_the_same(tmp_path: Path) -> None:
    flags = ["--cluster-cidr=10.0.0.0/8,fd00::/48", "--iptables-sync-period=1m", "--nodeport-addresses=primary"]
    path = tmp_path / "config.yaml"

    assert run([*flags, f"--write-config-to={path}"]) == 0

    assert parse_arguments([f"--config={path}"]) == msgspec.structs.replace(parse_arguments(flags), config=str(path))
