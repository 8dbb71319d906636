"""KubeProxyConfiguration: the file that --config names, the one that --write-config-to writes, and what /configz shows.

One table says where each value stands in the file (kubeproxy.config.k8s.io/v1alpha1) and in /configz, which shows
kube-proxy's internal form of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kproxy.errors import UserError
from kproxy.proxy.config import HEALTHZ_PORT, METRICS_PORT, ProxyConfig, duration, duration_text, with_port

_LOG = logging.getLogger(__name__)

GROUP = "kubeproxy.config.k8s.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "KubeProxyConfiguration"

Json = Any


class Form(NamedTuple):
    """How a value is written in JSON.

    Attributes:
        read: JSON to value; raises ValueError or TypeError.
        write: value to JSON.
    """

    read: Callable[[Json], Any]
    write: Callable[[Any], Json]


class Row(NamedTuple):
    """Where one value stands.

    Attributes:
        field: its field of ProxyConfig.
        file: its place in the file.
        shown: its place in /configz; empty when it is not shown, or shown under another row.
        form: how it is written.
    """

    field: str
    file: str
    shown: str
    form: Form


def _exactly(kind: type, name: str) -> Callable[[Json], Any]:
    def read(value: Json) -> Any:
        if type(value) is not kind:
            raise TypeError(f"must be {name}")
        return value

    return read


def _read_duration(value: Json) -> float:
    if not isinstance(value, str):
        raise TypeError("must be a duration such as 30s")
    return -duration(value[1:]) if value.startswith("-") else duration(value)


def _read_list(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("must be a list of strings")
    return tuple(value)


def _read_gates(value: Json) -> tuple[str, ...]:
    if not isinstance(value, dict) or not all(isinstance(setting, bool) for setting in value.values()):
        raise TypeError("must be a map of booleans")
    return tuple(f"{name}={str(setting).lower()}" for name, setting in value.items())


def _write_gates(value: Iterable[str]) -> Json:
    pairs = (gate.partition("=") for gate in value)
    return {name: setting.lower() in ("1", "t", "true") for name, _, setting in pairs}


def _read_cidrs(value: Json) -> tuple[str, ...]:
    text = _exactly(str, "a string")(value)
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _read_number(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("must be a number")
    return float(value)


def _as_is(value: Any) -> Json:
    return value


STRING = Form(_exactly(str, "a string"), _as_is)
INTEGER = Form(_exactly(int, "an integer"), _as_is)
NUMBER = Form(_read_number, lambda value: int(value) if value == int(value) else value)
SWITCH = Form(_exactly(bool, "a boolean"), _as_is)
DURATION = Form(_read_duration, duration_text)
LIST = Form(_read_list, lambda value: list(value) or None)
GATES = Form(_read_gates, _write_gates)
CIDRS = Form(_read_cidrs, ",".join)

_CONNTRACK = "Linux.Conntrack"

ROWS: tuple[Row, ...] = (
    Row("feature_gates", "featureGates", "FeatureGates", GATES),
    Row("kubeconfig", "clientConnection.kubeconfig", "ClientConnection.Kubeconfig", STRING),
    Row(
        "kube_api_accept_content_types",
        "clientConnection.acceptContentTypes",
        "ClientConnection.AcceptContentTypes",
        STRING,
    ),
    Row("kube_api_content_type", "clientConnection.contentType", "ClientConnection.ContentType", STRING),
    Row("kube_api_qps", "clientConnection.qps", "ClientConnection.QPS", NUMBER),
    Row("kube_api_burst", "clientConnection.burst", "ClientConnection.Burst", INTEGER),
    Row("logging_format", "logging.format", "Logging.format", STRING),
    Row("log_flush_frequency", "logging.flushFrequency", "Logging.flushFrequency", DURATION),
    Row("v", "logging.verbosity", "Logging.verbosity", INTEGER),
    Row("hostname_override", "hostnameOverride", "HostnameOverride", STRING),
    Row("bind_address", "bindAddress", "BindAddress", STRING),
    Row("healthz_bind_address", "healthzBindAddress", "HealthzBindAddress", STRING),
    Row("metrics_bind_address", "metricsBindAddress", "MetricsBindAddress", STRING),
    Row("bind_address_hard_fail", "bindAddressHardFail", "BindAddressHardFail", SWITCH),
    Row("profiling", "enableProfiling", "EnableProfiling", SWITCH),
    Row("show_hidden_metrics_for_version", "showHiddenMetricsForVersion", "ShowHiddenMetricsForVersion", STRING),
    Row("proxy_mode", "mode", "Mode", STRING),
    Row("iptables_masquerade_bit", "iptables.masqueradeBit", "IPTables.MasqueradeBit", INTEGER),
    Row("masquerade_all", "iptables.masqueradeAll", "Linux.MasqueradeAll", SWITCH),
    Row("iptables_localhost_nodeports", "iptables.localhostNodePorts", "IPTables.LocalhostNodePorts", SWITCH),
    Row("iptables_sync_period", "iptables.syncPeriod", "SyncPeriod", DURATION),
    Row("iptables_min_sync_period", "iptables.minSyncPeriod", "MinSyncPeriod", DURATION),
    Row("ipvs_sync_period", "ipvs.syncPeriod", "", DURATION),
    Row("ipvs_min_sync_period", "ipvs.minSyncPeriod", "", DURATION),
    Row("ipvs_scheduler", "ipvs.scheduler", "IPVS.Scheduler", STRING),
    Row("ipvs_exclude_cidrs", "ipvs.excludeCIDRs", "IPVS.ExcludeCIDRs", LIST),
    Row("ipvs_strict_arp", "ipvs.strictARP", "IPVS.StrictARP", SWITCH),
    Row("ipvs_tcp_timeout", "ipvs.tcpTimeout", "IPVS.TCPTimeout", DURATION),
    Row("ipvs_tcpfin_timeout", "ipvs.tcpFinTimeout", "IPVS.TCPFinTimeout", DURATION),
    Row("ipvs_udp_timeout", "ipvs.udpTimeout", "IPVS.UDPTimeout", DURATION),
    Row("nftables_masquerade_bit", "nftables.masqueradeBit", "NFTables.MasqueradeBit", INTEGER),
    Row("nftables_sync_period", "nftables.syncPeriod", "", DURATION),
    Row("nftables_min_sync_period", "nftables.minSyncPeriod", "", DURATION),
    Row("detect_local_mode", "detectLocalMode", "DetectLocalMode", STRING),
    Row("pod_bridge_interface", "detectLocal.bridgeInterface", "DetectLocal.BridgeInterface", STRING),
    Row("cluster_cidr", "clusterCIDR", "DetectLocal.ClusterCIDRs", CIDRS),
    Row("pod_interface_name_prefix", "detectLocal.interfaceNamePrefix", "DetectLocal.InterfaceNamePrefix", STRING),
    Row("nodeport_addresses", "nodePortAddresses", "NodePortAddresses", LIST),
    Row("oom_score_adj", "oomScoreAdj", "Linux.OOMScoreAdj", INTEGER),
    Row("conntrack_max_per_core", "conntrack.maxPerCore", f"{_CONNTRACK}.MaxPerCore", INTEGER),
    Row("conntrack_min", "conntrack.min", f"{_CONNTRACK}.Min", INTEGER),
    Row(
        "conntrack_tcp_timeout_established",
        "conntrack.tcpEstablishedTimeout",
        f"{_CONNTRACK}.TCPEstablishedTimeout",
        DURATION,
    ),
    Row(
        "conntrack_tcp_timeout_close_wait",
        "conntrack.tcpCloseWaitTimeout",
        f"{_CONNTRACK}.TCPCloseWaitTimeout",
        DURATION,
    ),
    Row("conntrack_tcp_be_liberal", "conntrack.tcpBeLiberal", f"{_CONNTRACK}.TCPBeLiberal", SWITCH),
    Row("conntrack_udp_timeout", "conntrack.udpTimeout", f"{_CONNTRACK}.UDPTimeout", DURATION),
    Row("conntrack_udp_timeout_stream", "conntrack.udpStreamTimeout", f"{_CONNTRACK}.UDPStreamTimeout", DURATION),
    Row("config_sync_period", "configSyncPeriod", "ConfigSyncPeriod", DURATION),
)

_EMPTY_MEANS_DEFAULT = frozenset(
    [
        "bind_address",
        "healthz_bind_address",
        "metrics_bind_address",
        "proxy_mode",
        "detect_local_mode",
        "kube_api_content_type",
        "kube_api_qps",
        "kube_api_burst",
        "logging_format",
        "log_flush_frequency",
        "iptables_sync_period",
        "iptables_min_sync_period",
        "ipvs_sync_period",
        "nftables_sync_period",
        "nftables_min_sync_period",
        "config_sync_period",
    ]
)
"""Fields that kube-proxy fills in when the file holds "" or 0 (v1alpha1/defaults.go)."""

_UNUSED = (
    *(f"winkernel.{name}" for name in ("networkName", "sourceVip", "enableDSR", "rootHnsEndpointName")),
    "winkernel.forwardHealthCheckVip",
    "windowsRunAsService",
    "portRange",
    "nftables.masqueradeAll",
    "iptables.snatNodeInternalIP",
    "logging.options",
    "logging.vmodule",
    "apiVersion",
    "kind",
)
"""Fields that a file may have and that nothing is done with."""


def read_file(path: Path) -> dict[str, Any]:
    """Field values of a KubeProxyConfiguration file (YAML or JSON); fields that it leaves empty keep their default.

    Unknown fields are logged and passed over, as kube-proxy does.

    Raises:
        UserError: the file cannot be read, is something else, or values have the wrong type (all of them at once).
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    content = _decode(path, text)
    if unknown := sorted(_unknown(content)):
        fields = ", ".join(f'unknown field "{name}"' for name in unknown)
        _LOG.warning("%s: using lenient decoding as strict decoding failed: %s", path, fields)
    values: dict[str, Any] = {}
    problems = []
    for row in ROWS:
        found = _at(content, row.file)
        if found is None or (row.field in _EMPTY_MEANS_DEFAULT and found in ("", 0, "0", "0s")):
            continue
        try:
            values[row.field] = row.form.read(found)
        except (TypeError, ValueError) as error:
            problems.append(f"{path}: {row.file}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return {**values, **_addresses(values)}


def _decode(path: Path, text: bytes) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a {KIND}")
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if content.get(field) != expected:
            raise UserError(f"{path}: {field} is {content.get(field)!r}, not {expected}")
    return content


def _at(content: Json, place: str) -> Json:
    """The value at a place; None where there is none, or something on the way is no map."""
    for step in place.split("."):
        content = content.get(step) if isinstance(content, dict) else None
    return content


def _unknown(content: Mapping[str, Json], above: str = "") -> Iterator[str]:
    known = {*(row.file for row in ROWS), *_UNUSED}
    for key, value in content.items():
        place = f"{above}{key}"
        if place in known:
            continue
        if any(name.startswith(f"{place}.") for name in known):
            if isinstance(value, dict):
                yield from _unknown(value, f"{place}.")
        else:
            yield place


def _addresses(values: Mapping[str, Any]) -> dict[str, str]:
    """The servers' addresses: of the family of bindAddress where they are not given, with a port where they lack it."""
    is_six = ":" in values.get("bind_address", "")
    healthz = values.get("healthz_bind_address", "::" if is_six else "0.0.0.0")  # noqa: S104 - kube-proxy's default
    metrics = values.get("metrics_bind_address", "::1" if is_six else "127.0.0.1")
    return {
        "healthz_bind_address": with_port(healthz, HEALTHZ_PORT),
        "metrics_bind_address": with_port(metrics, METRICS_PORT),
    }


def as_file(config: ProxyConfig) -> dict[str, Json]:
    """The KubeProxyConfiguration that says the same."""
    content: dict[str, Json] = {"apiVersion": API_VERSION, "kind": KIND}
    for row in ROWS:
        _put(content, row.file, row.form.write(getattr(config, row.field)))
    return content


def write_file(config: ProxyConfig, path: Path) -> None:
    """Write the KubeProxyConfiguration that says the same, as YAML.

    Raises:
        UserError: the file cannot be written.
    """
    import yaml

    try:
        path.write_text(yaml.safe_dump(as_file(config), default_flow_style=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def as_configz(config: ProxyConfig) -> str:
    """What /configz answers: kube-proxy's internal form, with Go's names."""
    content: dict[str, Json] = {}
    for row in ROWS:
        if row.shown:
            value = getattr(config, row.field)
            _put(content, row.shown, (list(value) or None) if row.form is CIDRS else row.form.write(value))
    return msgspec.json.encode({GROUP: content}).decode()


def _put(content: dict[str, Json], place: str, value: Json) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[last] = value
