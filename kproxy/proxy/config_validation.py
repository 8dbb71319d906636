"""What is wrong with a configuration, in the words of kube-proxy (pkg/proxy/apis/config/validation).

Law: pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from kproxy.proxy.config import (
    LOCAL_MODES,
    MODES,
    NFTABLES_WRITERS,
    PRIMARY,
    VARIANTS,
    WRITERS,
    ProxyConfig,
    duration_text,
)
from kproxy.proxy.family import Family, canonical_address, canonical_cidr

INTERFACE_NAME_LENGTH = 15
"""IFNAMSIZ without its final NUL."""
PREVIOUS_MINOR = "1.35"
"""The release before the one that this proxy follows."""

_ROOT = "KubeProxyConfiguration"
_NOT_NEGATIVE = "must be greater than or equal to 0"
_PAIR = "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]"


def validate(config: ProxyConfig) -> list[str]:
    """Everything that is wrong with the values, in kube-proxy's order; empty when they can work."""
    return [
        *_bit("KubeProxyIPTablesConfiguration.MasqueradeBit", config.iptables_masquerade_bit),
        *_bit("KubeProxyNFTablesConfiguration.MasqueradeBit", config.nftables_masquerade_bit),
        *_linux(config),
        *_mode(config),
        *_count("ClientConnection.Burst", config.kube_api_burst),
        *_periods(config),
        *_addresses(config),
        *_node_port_addresses(config),
        *_hidden_metrics(config),
        *_detection(config),
        *_logging(config),
        *_own(config),
    ]


def _invalid(path: str, value: object, why: str) -> str:
    """field.Invalid: numbers as they are, all else as JSON."""
    shown = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return f"{_ROOT}.{path}: Invalid value: {shown}: {why}"


def _bit(path: str, value: int) -> Iterator[str]:
    if not 0 <= value <= 31:
        yield _invalid(path, value, "must be within the range [0, 31]")


def _count(path: str, value: int) -> Iterator[str]:
    if value < 0:
        yield _invalid(path, value, _NOT_NEGATIVE)


def _period(path: str, seconds: float) -> Iterator[str]:
    if seconds < 0:
        yield _invalid(path, duration_text(seconds), _NOT_NEGATIVE)


def _linux(config: ProxyConfig) -> Iterator[str]:
    path = "KubeProxyLinuxConfiguration"
    conntrack = f"{path}.KubeProxyConntrackConfiguration"
    yield from _count(f"{conntrack}.MaxPerCore", config.conntrack_max_per_core)
    yield from _count(f"{conntrack}.Min", config.conntrack_min)
    yield from _period(f"{conntrack}.TCPEstablishedTimeout", config.conntrack_tcp_timeout_established)
    yield from _period(f"{conntrack}.TCPCloseWaitTimeout", config.conntrack_tcp_timeout_close_wait)
    yield from _period(f"{conntrack}.UDPTimeout", config.conntrack_udp_timeout)
    yield from _period(f"{conntrack}.UDPStreamTimeout", config.conntrack_udp_timeout_stream)
    if not -1000 <= config.oom_score_adj <= 1000:
        yield _invalid(f"{path}.OOMScoreAdj", config.oom_score_adj, "must be within the range [-1000, 1000]")


def _mode(config: ProxyConfig) -> Iterator[str]:
    if config.proxy_mode not in MODES:
        supported = f"{', '.join(MODES)} or blank (blank means the best-available proxy [currently iptables])"
        yield _invalid("Mode.ProxyMode", config.proxy_mode, f"must be {supported}")
    elif config.proxy_mode == "ipvs":
        yield _invalid("Mode.ProxyMode", config.proxy_mode, "kproxy has no such mode: it has iptables and nftables")


def _periods(config: ProxyConfig) -> Iterator[str]:
    minimum = config.min_sync_period
    if config.config_sync_period <= 0:
        yield _invalid("ConfigSyncPeriod", duration_text(config.config_sync_period), "must be greater than 0")
    if config.sync_period <= 0:
        yield _invalid("SyncPeriod", duration_text(config.sync_period), "must be greater than 0")
    yield from _period("MinSyncPeriod", minimum)
    if minimum > config.sync_period:
        why = f"must be greater than or equal to {_ROOT}.MinSyncPeriod"
        yield _invalid("SyncPeriod", duration_text(minimum), why)


def _addresses(config: ProxyConfig) -> Iterator[str]:
    if not canonical_address(config.bind_address):
        yield _invalid("BindAddress", config.bind_address, "not a valid textual representation of an IP address")
    if config.healthz_bind_address:
        yield from _host_port("HealthzBindAddress", config.healthz_bind_address)
    yield from _host_port("MetricsBindAddress", config.metrics_bind_address)


def _host_port(path: str, text: str) -> Iterator[str]:
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host) != (host.startswith("[") and host.endswith("]")):
        yield _invalid(path, text, "must be IP:port")
        return
    if not canonical_address(host.strip("[]")):
        yield _invalid(path, host.strip("[]"), "must be a valid IP")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        yield _invalid(path, port, "must be a valid port")


def _is_cidr(text: str) -> bool:
    return "/" in text and bool(canonical_cidr(text))


def _node_port_addresses(config: ProxyConfig) -> Iterator[str]:
    addresses = config.nodeport_addresses
    for index, cidr in enumerate(addresses):
        if cidr == PRIMARY:
            if len(addresses) != 1:
                yield _invalid(f"NodePortAddresses[{index}]", cidr, f"can't use both '{PRIMARY}' and CIDRs")
            return
        if not _is_cidr(cidr):
            yield _invalid(f"NodePortAddresses[{index}]", cidr, "must be a valid CIDR")


def _hidden_metrics(config: ProxyConfig) -> Iterator[str]:
    version = config.show_hidden_metrics_for_version
    if version not in ("", PREVIOUS_MINOR):
        why = (
            f"--show-hidden-metrics-for-version must be omitted or have the value '{PREVIOUS_MINOR}'. "
            "Only the previous minor version is allowed"
        )
        yield _invalid("ShowHiddenMetricsForVersion", version, why)


def _detection(config: ProxyConfig) -> Iterator[str]:
    path = "DetectLocalConfiguration"
    match config.detect_local_mode:
        case "BridgeInterface":
            yield from _interface(f"{path}.InterfaceName", config.pod_bridge_interface)
        case "InterfaceNamePrefix":
            yield from _interface(f"{path}.InterfacePrefix", config.pod_interface_name_prefix)
        case "ClusterCIDR":
            yield from _cluster_cidrs(f"{path}.ClusterCIDRs", config.cluster_cidr)
        case "NodeCIDR":
            return
        case mode:
            supported = ", ".join(json.dumps(known) for known in (*LOCAL_MODES, ""))
            value = json.dumps(mode)
            yield f"{_ROOT}.DetectLocalMode: Unsupported value: {value}: supported values: {supported}"


def _interface(path: str, name: str) -> Iterator[str]:
    if not name:
        yield _invalid(path, name, "must not be empty")
    elif len(name) > INTERFACE_NAME_LENGTH:
        yield _invalid(path, name, f"an interface's name has at most {INTERFACE_NAME_LENGTH} characters")


def _cluster_cidrs(path: str, cidrs: tuple[str, ...]) -> Iterator[str]:
    if len(cidrs) > 2:
        yield _invalid(path, cidrs, _PAIR)
        return
    bad = [index for index, cidr in enumerate(cidrs) if not _is_cidr(cidr)]
    for index in bad:
        why = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)"
        yield _invalid(f"{path}[{index}]", cidrs[index], why)
    if not bad and _has_twins(cidrs):
        yield _invalid(path, cidrs, _PAIR)


def _has_twins(cidrs: Iterable[str]) -> bool:
    families = [family for cidr in cidrs for family in Family if family.has(cidr)]
    return len(families) != len(set(families))


def _logging(config: ProxyConfig) -> Iterator[str]:
    if config.logging_format not in ("text", "json"):
        yield _invalid("logging.format", config.logging_format, "Unsupported log format")


def _own(config: ProxyConfig) -> Iterator[str]:
    """Flags that kube-proxy does not have."""
    if config.iptables_variant not in VARIANTS:
        yield _invalid("IPTables.Variant", config.iptables_variant, f"must be one of {', '.join(VARIANTS)}")
    if config.iptables_writer not in WRITERS:
        yield _invalid("IPTables.Writer", config.iptables_writer, f"must be one of {', '.join(WRITERS)}")
    if config.nftables_writer not in NFTABLES_WRITERS:
        yield _invalid("NFTables.Writer", config.nftables_writer, f"must be one of {', '.join(NFTABLES_WRITERS)}")
