"""Flags in kube-proxy's syntax, its file, its words of refusal."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from kproxy.cli.proxy import run
from kproxy.errors import UserError
from kproxy.proxy.config import ProxyConfig, duration, duration_text
from kproxy.proxy.config_file import as_configz, as_file
from kproxy.proxy.family import Family
from kproxy.proxy.flags import ignored, parse_arguments, parse_flags


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--cluster-cidr=10.0.0.0/8"], "cluster_cidr", ("10.0.0.0/8",)),
        (["--cluster-cidr", "10.0.0.0/8,fd00::/48"], "cluster_cidr", ("10.0.0.0/8", "fd00::/48")),
        (["--cluster_cidr=10.0.0.0/8"], "cluster_cidr", ("10.0.0.0/8",)),
        (["--masquerade-all"], "masquerade_all", True),
        (["--masquerade-all=T"], "masquerade_all", True),
        (["--masquerade-all=false"], "masquerade_all", False),
        (["--masquerade-all=0"], "masquerade_all", False),
        (["--iptables-localhost-nodeports=false"], "iptables_localhost_nodeports", False),
        (["--iptables-min-sync-period=0s"], "iptables_min_sync_period", 0.0),
        (["--iptables-sync-period", "1m30s"], "iptables_sync_period", 90.0),
        (["--iptables-masquerade-bit=0x0f"], "iptables_masquerade_bit", 15),
        (["--proxy-mode=nftables"], "proxy_mode", "nftables"),
        # which has no such flags of its own
        (["--proxy-mode=nftables", "--iptables-sync-period=1m"], "sync_period", 60.0),
        (["--proxy-mode=nftables", "--iptables-min-sync-period=2s"], "min_sync_period", 2.0),
        (["--proxy-mode=nftables", "--nftables-writer=nft"], "nftables_writer", "nft"),
        (["--iptables-sync-period=1m"], "nftables_sync_period", 30.0),
        (["-v=4"], "v", 4),
        (["-v", "2"], "v", 2),
        (["-v3"], "v", 3),
        (["--v=5"], "v", 5),
        (["--v=5", "-v=1"], "v", 1),
        (["--oom-score-adj=-500"], "oom_score_adj", -500),
        (["--oom-score-adj", "-500"], "oom_score_adj", -500),
        (["--healthz-port=0"], "healthz_bind_address", ""),
        (["--healthz-bind-address=127.0.0.1", "--healthz-port=9"], "healthz_bind_address", "127.0.0.1:9"),
        (["--healthz-bind-address=::"], "healthz_bind_address", "[::]:10256"),
        (["--healthz-bind-address="], "healthz_bind_address", "0.0.0.0:10256"),
        (["--metrics-bind-address="], "metrics_bind_address", "127.0.0.1:10249"),
        (["--metrics-bind-address=0.0.0.0"], "metrics_bind_address", "0.0.0.0:10249"),
        # the default address has a port, and one that is there stands
        (["--metrics-port", "9999"], "metrics_bind_address", "127.0.0.1:10249"),
        (["--metrics-port=9999", "--metrics-bind-address=127.0.0.1"], "metrics_bind_address", "127.0.0.1:9999"),
        (["--bind-address=::"], "healthz_bind_address", "0.0.0.0:10256"),
        (["--nodeport-addresses=primary"], "nodeport_addresses", ("primary",)),
        (["--nodeport-addresses=10.0.0.0/8,fd00::/8"], "nodeport_addresses", ("10.0.0.0/8", "fd00::/8")),
        (["--feature-gates=A=true,B=false"], "feature_gates", ("A=true", "B=false")),
        (["--kube-api-qps=2.5"], "kube_api_qps", 2.5),
        (["--detect-local-mode=NodeCIDR", "--cluster-cidr=nonsense"], "detect_local_mode", "NodeCIDR"),
        (["--ipvs-scheduler=nonsense", "--profiling"], "proxy_mode", "iptables"),
    ],
)
def test_flag_means(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse_arguments(argv), field) == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--clster-cidr=10.0.0.0/8"], "unknown flag: --clster-cidr"),
        (["--nftables-masquerade-bit=3"], "unknown flag: --nftables-masquerade-bit"),
        (["-cluster-cidr=10.0.0.0/8"], "unknown shorthand flag: 'c' in -cluster-cidr=10.0.0.0/8"),
        (["--=1"], "bad flag syntax: --=1"),
        (["--cluster-cidr"], "flag needs an argument: --cluster-cidr"),
        (["-v"], "flag needs an argument: 'v' in -v"),
        (["up"], "unexpected argument 'up': only flags are taken"),
        (["--masquerade-all", "false"], "unexpected argument 'false': only flags are taken"),
        (
            ["--masquerade-all=maybe"],
            'invalid argument "maybe" for "--masquerade-all" flag: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
        (
            ["--oom-score-adj=x"],
            'invalid argument "x" for "--oom-score-adj" flag: strconv.ParseInt: parsing "x": invalid syntax',
        ),
        (
            ["--conntrack-min=2147483648"],
            'invalid argument "2147483648" for "--conntrack-min" flag: '
            'strconv.ParseInt: parsing "2147483648": value out of range',
        ),
        (
            ["-v=x"],
            'invalid argument "x" for "-v, --v" flag: strconv.ParseInt: parsing "x": invalid syntax',
        ),
        (
            ["--iptables-sync-period=30"],
            'invalid argument "30" for "--iptables-sync-period" flag: time: missing unit in duration "30"',
        ),
        (
            ["--iptables-sync-period=1y"],
            'invalid argument "1y" for "--iptables-sync-period" flag: time: unknown unit "y" in duration "1y"',
        ),
        (["--bind-address=x"], 'invalid argument "x" for "--bind-address" flag: "x" is not a valid IP address'),
        (
            ["--healthz-bind-address=x:1"],
            'invalid argument "x:1" for "--healthz-bind-address" flag: "x" is not a valid IP address',
        ),
        (["--feature-gates=A"], 'invalid argument "A" for "--feature-gates" flag: missing bool value for A'),
    ],
)
def test_bad_flag_is_refused_in_kube_proxys_words(argv: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_arguments(argv)

    assert str(refused.value) == words


_LINUX = "KubeProxyLinuxConfiguration"
_CONNTRACK = f"{_LINUX}.KubeProxyConntrackConfiguration"
_PAIR = "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]"
_CIDR = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)"
_MODES = "must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])"
_LOCAL_MODES = '"ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", ""'
_HIDDEN = (
    "--show-hidden-metrics-for-version must be omitted or have the value '1.35'. "
    "Only the previous minor version is allowed"
)


@pytest.mark.parametrize(
    ("argv", "path", "problem"),
    [
        (
            ["--iptables-masquerade-bit=32"],
            "KubeProxyIPTablesConfiguration.MasqueradeBit",
            "Invalid value: 32: must be within the range [0, 31]",
        ),
        (
            ["--oom-score-adj=-1001"],
            f"{_LINUX}.OOMScoreAdj",
            "Invalid value: -1001: must be within the range [-1000, 1000]",
        ),
        (
            ["--conntrack-max-per-core=-1"],
            f"{_CONNTRACK}.MaxPerCore",
            "Invalid value: -1: must be greater than or equal to 0",
        ),
        (["--conntrack-min=-1"], f"{_CONNTRACK}.Min", "Invalid value: -1: must be greater than or equal to 0"),
        (
            ["--conntrack-tcp-timeout-established=-1s"],
            f"{_CONNTRACK}.TCPEstablishedTimeout",
            'Invalid value: "-1s": must be greater than or equal to 0',
        ),
        (
            ["--conntrack-tcp-timeout-close-wait=-1m"],
            f"{_CONNTRACK}.TCPCloseWaitTimeout",
            'Invalid value: "-1m0s": must be greater than or equal to 0',
        ),
        (
            ["--conntrack-udp-timeout=-5ms"],
            f"{_CONNTRACK}.UDPTimeout",
            'Invalid value: "-5ms": must be greater than or equal to 0',
        ),
        (
            ["--conntrack-udp-timeout-stream=-1h"],
            f"{_CONNTRACK}.UDPStreamTimeout",
            'Invalid value: "-1h0m0s": must be greater than or equal to 0',
        ),
        (["--proxy-mode=userspace"], "Mode.ProxyMode", f'Invalid value: "userspace": {_MODES}'),
        (["--kube-api-burst=-1"], "ClientConnection.Burst", "Invalid value: -1: must be greater than or equal to 0"),
        (["--config-sync-period=0"], "ConfigSyncPeriod", 'Invalid value: "0s": must be greater than 0'),
        (
            ["--iptables-sync-period=-1s", "--iptables-min-sync-period=-2s"],
            "SyncPeriod",
            'Invalid value: "-1s": must be greater than 0',
        ),
        (
            ["--iptables-min-sync-period=-2s"],
            "MinSyncPeriod",
            'Invalid value: "-2s": must be greater than or equal to 0',
        ),
        (
            ["--iptables-min-sync-period=31s"],
            "SyncPeriod",
            'Invalid value: "31s": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod',
        ),
        (["--metrics-port=0"], "MetricsBindAddress", 'Invalid value: "": must be IP:port'),
        (["--healthz-bind-address=1.2.3.4:0"], "HealthzBindAddress", 'Invalid value: "0": must be a valid port'),
        (
            ["--nodeport-addresses=primary,10.0.0.0/8"],
            "NodePortAddresses[0]",
            "Invalid value: \"primary\": can't use both 'primary' and CIDRs",
        ),
        (
            ["--nodeport-addresses=10.0.0.0/8,primary"],
            "NodePortAddresses[1]",
            "Invalid value: \"primary\": can't use both 'primary' and CIDRs",
        ),
        (["--nodeport-addresses=10.0.0.1"], "NodePortAddresses[0]", 'Invalid value: "10.0.0.1": must be a valid CIDR'),
        (
            ["--show-hidden-metrics-for-version=1.20"],
            "ShowHiddenMetricsForVersion",
            f'Invalid value: "1.20": {_HIDDEN}',
        ),
        (
            ["--detect-local-mode=Magic"],
            "DetectLocalMode",
            f'Unsupported value: "Magic": supported values: {_LOCAL_MODES}',
        ),
        (
            ["--detect-local-mode=BridgeInterface"],
            "DetectLocalConfiguration.InterfaceName",
            'Invalid value: "": must not be empty',
        ),
        (
            ["--detect-local-mode=InterfaceNamePrefix"],
            "DetectLocalConfiguration.InterfacePrefix",
            'Invalid value: "": must not be empty',
        ),
        (
            ["--cluster-cidr=10.0.0.0"],
            "DetectLocalConfiguration.ClusterCIDRs[0]",
            f'Invalid value: "10.0.0.0": {_CIDR}',
        ),
        (
            ["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"],
            "DetectLocalConfiguration.ClusterCIDRs",
            f'Invalid value: ["10.0.0.0/8","11.0.0.0/8"]: {_PAIR}',
        ),
        (
            ["--cluster-cidr=10.0.0.0/8,fd00::/8,11.0.0.0/8"],
            "DetectLocalConfiguration.ClusterCIDRs",
            f'Invalid value: ["10.0.0.0/8","fd00::/8","11.0.0.0/8"]: {_PAIR}',
        ),
        (["--logging-format=xml"], "logging.format", 'Invalid value: "xml": Unsupported log format'),
    ],
)
def test_bad_value_is_refused_in_kube_proxys_words(argv: list[str], path: str, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_arguments(argv)

    assert str(refused.value).splitlines()[0] == f"KubeProxyConfiguration.{path}: {problem}"


def test_mode_that_kube_proxy_has_and_kproxy_has_not_is_refused() -> None:
    with pytest.raises(UserError, match="kproxy has no such mode"):
        parse_arguments(["--proxy-mode=ipvs"])


def test_flags_without_effect_are_named_once() -> None:
    argv = ["--ipvs-scheduler", "rr", "--profiling", "--ipvs_scheduler=lc", "--masquerade-all", "--log-dir=/x"]

    assert ignored(parse_flags(argv), argv) == ["--ipvs-scheduler", "--profiling", "--log-dir"]


def test_flags_that_the_file_stands_over_are_named(tmp_path: Path) -> None:
    argv = [f"--config={tmp_path}/x", "--masquerade-all", "--hostname-override=n", "-v=2", "--cleanup=false"]

    assert ignored(parse_flags(argv), argv) == ["--masquerade-all"]


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        parse_arguments(["--oom-score-adj=2000", "--iptables-masquerade-bit=-1"])

    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("1h0m0s", 3600.0), ("1.5s", 1.5), ("100ms", 0.1), ("24h", 86400.0)]
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["1ns", "1.5µs", "999ms", "1s", "1.25s", "1m0s", "1m30.5s", "1h0m0s", "24h0m0s", "0s", "-2m0s"]
)
def test_durations_are_written_as_go_writes_them(text: str) -> None:
    seconds = -duration(text[1:]) if text.startswith("-") else duration(text)

    assert duration_text(seconds) == text


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s 2s", "-1s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^time: .* duration"):
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


HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "expected the node content"),
        ("- 1\n", "not a KubeProxyConfiguration"),
        ("kind: KubeProxyConfiguration\n", "apiVersion is None, not kubeproxy.config.k8s.io/v1alpha1"),
        ("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Pod\n", "kind is 'Pod', not KubeProxyConfiguration"),
        (f"{HEAD}iptables: {{masqueradeBit: many}}\n", "iptables.masqueradeBit: must be an integer"),
        (f"{HEAD}iptables: {{masqueradeBit: true}}\n", "iptables.masqueradeBit: must be an integer"),
        (f"{HEAD}bindAddressHardFail: 'yes'\n", "bindAddressHardFail: must be a boolean"),
        (f"{HEAD}configSyncPeriod: 30\n", "configSyncPeriod: must be a duration"),
        (f"{HEAD}configSyncPeriod: 30x\n", 'configSyncPeriod: time: unknown unit "x" in duration "30x"'),
        (f"{HEAD}nodePortAddresses: 10.0.0.0/8\n", "nodePortAddresses: must be a list of strings"),
        (f"{HEAD}featureGates: {{A: 1}}\n", "featureGates: must be a map of booleans"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)

    with pytest.raises(UserError) as refused:
        parse_arguments(["--config", str(path)])

    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        parse_arguments(["--config", str(tmp_path / "nowhere.yaml")])


def test_unknown_fields_of_a_file_are_logged_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{HEAD}bindAdress: ::1\niptables: {{masqueradeBits: 3}}\nwinkernel: {{enableDSR: true}}\n")

    assert parse_arguments([f"--config={path}"]) == ProxyConfig(config=str(path))

    assert 'unknown field "bindAdress", unknown field "iptables.masqueradeBits"' in caplog.text
    assert "winkernel" not in caplog.text


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("", "healthz_bind_address", "0.0.0.0:10256"),
        ("bindAddress: '::'", "healthz_bind_address", "[::]:10256"),
        ("bindAddress: '::'", "metrics_bind_address", "[::1]:10249"),
        ("healthzBindAddress: 127.0.0.1", "healthz_bind_address", "127.0.0.1:10256"),
        ("healthzBindAddress: ''", "healthz_bind_address", "0.0.0.0:10256"),
        ("metricsBindAddress: 0.0.0.0:1", "metrics_bind_address", "0.0.0.0:1"),
        ("iptables: {minSyncPeriod: 0s}", "iptables_min_sync_period", 1.0),
        ("iptables: {syncPeriod: 0s}", "iptables_sync_period", 30.0),
        ("conntrack: {tcpEstablishedTimeout: 0s}", "conntrack_tcp_timeout_established", 0.0),
        ("conntrack: {maxPerCore: 0}", "conntrack_max_per_core", 0),
        ("mode: ''", "proxy_mode", "iptables"),
        ("detectLocalMode: ''", "detect_local_mode", "ClusterCIDR"),
        ("logging: {verbosity: 4, format: json}", "v", 4),
        ("clusterCIDR: 10.0.0.0/8,fd00::/8", "cluster_cidr", ("10.0.0.0/8", "fd00::/8")),
    ],
)
def test_defaults_of_the_file_are_kube_proxys(tmp_path: Path, text: str, field: str, value: object) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{HEAD}{text}\n")

    assert getattr(parse_arguments([f"--config={path}"]), field) == value


def test_file_that_changes_nothing_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(HEAD)

    assert parse_arguments([f"--config={path}"]) == ProxyConfig(config=str(path))


def test_file_and_configz_hold_kube_proxys_fields() -> None:
    config = ProxyConfig(cluster_cidr=("10.0.0.0/8", "fd00::/8"), feature_gates=("A=true",), nodeport_addresses=())

    file = as_file(config)
    shown = json.loads(as_configz(config))["kubeproxy.config.k8s.io"]

    assert file["clusterCIDR"] == "10.0.0.0/8,fd00::/8"
    assert file["conntrack"]["tcpEstablishedTimeout"] == "24h0m0s"
    assert file["featureGates"] == {"A": True}
    assert file["nodePortAddresses"] is None
    assert shown["DetectLocal"]["ClusterCIDRs"] == ["10.0.0.0/8", "fd00::/8"]
    assert shown["IPTables"] == {"MasqueradeBit": 14, "LocalhostNodePorts": True}
    assert (shown["SyncPeriod"], shown["MinSyncPeriod"], shown["ConfigSyncPeriod"]) == ("30s", "1s", "15m0s")
    assert shown["Linux"]["Conntrack"]["MaxPerCore"] == 32768
    assert shown["ClientConnection"]["QPS"] == 5


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
    flags = [
        "--cluster-cidr=10.0.0.0/8,fd00::/48",
        "--iptables-sync-period=1m",
        "--nodeport-addresses=primary",
        "--conntrack-udp-timeout=1.5s",
        "--feature-gates=A=true,B=false",
        "--bind-address=192.168.1.2",
        "--detect-local-mode=NodeCIDR",
        "--ipvs-exclude-cidrs=10.9.0.0/16",
        "--kube-api-qps=7.5",
    ]
    path = tmp_path / "config.yaml"

    assert run([*flags, f"--write-config-to={path}"]) == 0

    assert parse_arguments([f"--config={path}"]) == msgspec.structs.replace(parse_arguments(flags), config=str(path))
