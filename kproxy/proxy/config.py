"""The proxy's configuration: kube-proxy's flags and its KubeProxyConfiguration file, with their defaults.

Law: flags are written as kube-proxy takes them (``--flag=value``, ``--flag value``, ``--bool``, ``--bool=false``), and
what it refuses is refused with its words. Flags of kube-proxy that mean nothing here are accepted and have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kproxy.errors import UserError
from kproxy.proxy.family import Family, canonical_cidr

PRIMARY = "primary"
LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
VARIANTS = ("auto", "legacy", "nft")
WRITERS = ("iptables-restore", "python-iptables")
HEALTHZ_PORT = 10256
METRICS_PORT = 10249
INTERFACE_NAME_LENGTH = 15
"""IFNAMSIZ without its final NUL."""

_ROOT = "KubeProxyConfiguration"

_DURATION_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|us|µs|ns|s)")
_GO_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_GO_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set; field names are kube-proxy's flags in snake case, durations are seconds.

    Attributes:
        manifests: directory to take objects from; empty means the API at ``master``.
        master: address of a Kubernetes API, ``http(s)://host:port`` or ``unix:///path``.
        metrics_bind_address: empty means that there is no such server.
        healthz_bind_address: likewise.
    """

    manifests: str = ""
    master: str = ""
    kubeconfig: str = ""
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"  # noqa: S104 - kube-proxy's default; no socket is bound to it
    bind_address_hard_fail: bool = False
    healthz_bind_address: str = "0.0.0.0:10256"
    metrics_bind_address: str = "127.0.0.1:10249"
    proxy_mode: str = "iptables"
    masquerade_all: bool = False
    iptables_masquerade_bit: int = 14
    iptables_localhost_nodeports: bool = True
    iptables_sync_period: float = 30.0
    iptables_min_sync_period: float = 1.0
    iptables_variant: str = "auto"
    iptables_writer: str = "iptables-restore"
    detect_local_mode: str = "ClusterCIDR"
    pod_bridge_interface: str = ""
    pod_interface_name_prefix: str = ""
    cluster_cidr: tuple[str, ...] = ()
    nodeport_addresses: tuple[str, ...] = ()
    oom_score_adj: int = -999
    conntrack_max_per_core: int = 32768
    conntrack_min: int = 131072
    conntrack_tcp_timeout_established: float = 86400.0
    conntrack_tcp_timeout_close_wait: float = 3600.0
    conntrack_tcp_be_liberal: bool = False
    conntrack_udp_timeout: float = 0.0
    conntrack_udp_timeout_stream: float = 0.0
    config_sync_period: float = 900.0
    config: str = ""
    write_config_to: str = ""
    cleanup: bool = False
    init_only: bool = False
    v: int = 0

    def detector_cidr(self, family: Family) -> str:
        """The first --cluster-cidr of a family; empty when there is none."""
        return next((cidr for cidr in self.cluster_cidr if family.has(cidr)), "")

    def node_port_cidrs(self, family: Family, node_ip: str) -> tuple[str, ...]:
        """On which addresses of a family node ports answer; a family that is not named answers on all of them.

        Args:
            family: the proxier's.
            node_ip: the node's address of that family, which ``primary`` stands for; empty when it has none.
        """
        if self.nodeport_addresses == (PRIMARY,):
            return (f"{node_ip}/{family.host_bits}",) if node_ip else (family.everything,)
        cidrs = tuple(canonical_cidr(cidr) for cidr in self.nodeport_addresses if family.has(cidr))
        return (family.everything,) if not cidrs or family.everything in cidrs else cidrs


class _Flag(NamedTuple):
    """How a flag's text becomes a field's value; ``field`` is empty for flags without effect."""

    field: str
    parse: Callable[[str], Any]
    is_switch: bool = False


def _text(value: str) -> str:
    return value


def _integer(value: str) -> int:
    return int(value, 0)


def _boolean(value: str) -> bool:
    if value not in _GO_TRUE + _GO_FALSE:
        raise ValueError(f"{value!r} is not true or false")
    return value in _GO_TRUE


def duration(value: str) -> float:
    """Seconds of a Go duration (``1m30s``, ``100ms``, ``0``).

    Raises:
        ValueError: it is none.
    """
    if value in ("0", "+0", "-0"):
        return 0.0
    parts = _DURATION_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value.lstrip("+"):
        raise ValueError(f"{value!r} is not a duration such as 30s or 1m0s")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


_PARSERS: dict[type | str, Callable[[str], Any]] = {str: _text, int: _integer, float: duration, bool: _boolean}


def _flag_table() -> dict[str, _Flag]:
    table = {}
    for field in msgspec.structs.fields(ProxyConfig):
        parse = _list if isinstance(field.default, tuple) else _PARSERS[type(field.default)]
        table[field.name.replace("_", "-")] = _Flag(field.name, parse, type(field.default) is bool)
    switches = ("profiling", "ipvs-strict-arp", "alsologtostderr", "logtostderr", "one-output", "skip-headers")
    table.update({name: _Flag("", _boolean, is_switch=True) for name in switches})
    texts = (
        "feature-gates kube-api-content-type kube-api-qps kube-api-burst ipvs-scheduler ipvs-exclude-cidrs "
        "ipvs-sync-period ipvs-min-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout vmodule "
        "logging-format log-flush-frequency log-text-split-stream log-text-info-buffer-size log-json-split-stream "
        "log-json-info-buffer-size show-hidden-metrics-for-version proxy-port-range pod-bridge-interface-name "
        "log-dir log-file stderrthreshold"
    )
    table.update({name: _Flag("", _text) for name in texts.split() if name not in table})
    return table


FLAGS = _flag_table()
_EXTRA_FLAGS = {"healthz-port": "healthz_bind_address", "metrics-port": "metrics_bind_address"}
_KEPT_BESIDE_FILE = ("hostname_override", "v", "cleanup", "init_only", "config", "write_config_to")
"""Flags that count although --config is given; kube-proxy ignores the others then."""
_OWN_FLAGS = ("manifests", "master", "iptables_variant", "iptables_writer")
"""Flags that kube-proxy's file has no field for."""


def parse_arguments(argv: Sequence[str]) -> ProxyConfig:
    """The configuration that a command line means, read from --config if it names one.

    Raises:
        UserError: a flag is unknown or its value bad; every complaint about values at once.
    """
    values = parse_flags(argv)
    if values.get("config"):
        kept = {name: value for name, value in values.items() if name in (*_KEPT_BESIDE_FILE, *_OWN_FLAGS)}
        values = {**read_file(Path(values["config"])), **kept}
    config = ProxyConfig(**values)
    if problems := validate(config):
        raise UserError("\n".join(problems))
    return config


def parse_flags(argv: Sequence[str], extra: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """Field values of the flags given, and of nothing else.

    Args:
        argv: the arguments after the verb.
        extra: names of the caller's own flags, and whether each is a switch; their values are texts, by name.

    Raises:
        UserError: unknown flag, missing or malformed value.
    """
    table = {
        **FLAGS,
        **{name: _Flag("", _boolean if is_switch else _text, is_switch) for name, is_switch in (extra or {}).items()},
    }
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or not name:
            raise UserError(f"unexpected argument {word!r}: only flags are taken")
        if name in _EXTRA_FLAGS:
            _set_port(values, name, text if equals else _next(rest, word))
            continue
        if name not in table:
            raise UserError(f"unknown flag: {word.partition('=')[0]}")
        flag = table[name]
        if not equals:
            text = "true" if flag.is_switch else _next(rest, word)
        try:
            value = flag.parse(text)
        except ValueError as error:
            raise UserError(f'invalid argument "{text}" for "--{name}" flag: {error}') from error
        if flag.field or name in (extra or {}):
            values[flag.field or name] = value
    return values


def _next(rest: list[str], word: str) -> str:
    if not rest:
        raise UserError(f"flag needs an argument: {word}")
    return rest.pop(0)


def _set_port(values: dict[str, Any], name: str, text: str) -> None:
    """The deprecated --healthz-port and --metrics-port; 0 turns the server off."""
    if not text.isdigit():
        raise UserError(f'invalid argument "{text}" for "--{name}" flag: not a port')
    field = _EXTRA_FLAGS[name]
    host = str(values.get(field, ProxyConfig().__getattribute__(field))).rpartition(":")[0]
    values[field] = f"{host}:{text}" if text != "0" else ""


def validate(config: ProxyConfig) -> list[str]:
    """Everything that is wrong with the values, worded as kube-proxy words it."""
    checks = [
        (config.config_sync_period > 0, "ConfigSyncPeriod", config.config_sync_period, "must be greater than 0"),
        (
            0 <= config.iptables_masquerade_bit <= 31,
            "IPTables.MasqueradeBit",
            config.iptables_masquerade_bit,
            "must be within the range [0, 31]",
        ),
        (
            config.iptables_sync_period > 0,
            "IPTables.SyncPeriod",
            config.iptables_sync_period,
            "must be greater than 0",
        ),
        (
            config.iptables_min_sync_period <= config.iptables_sync_period,
            "IPTables.SyncPeriod",
            config.iptables_sync_period,
            f"must be greater than or equal to {_ROOT}.IPTables.MinSyncPeriod",
        ),
        (
            -1000 <= config.oom_score_adj <= 1000,
            "OOMScoreAdj",
            config.oom_score_adj,
            "must be within the range [-1000, 1000]",
        ),
        (
            config.proxy_mode in ("", "iptables"),
            "Mode",
            config.proxy_mode,
            'must be "iptables": no other mode is built',
        ),
        (
            config.iptables_variant in VARIANTS,
            "IPTables.Variant",
            config.iptables_variant,
            f"must be one of {', '.join(VARIANTS)}",
        ),
        (
            config.iptables_writer in WRITERS,
            "IPTables.Writer",
            config.iptables_writer,
            f"must be one of {', '.join(WRITERS)}",
        ),
    ]
    found = [_invalid(path, value, why) for is_right, path, value, why in checks if not is_right]
    return [*found, *_detection_problems(config), *_cluster_cidr_problems(config), *_node_port_problems(config)]


def _invalid(path: str, value: object, why: str) -> str:
    shown = f'"{value}"' if isinstance(value, str) else value
    return f"{_ROOT}.{path}: Invalid value: {shown}: {why}"


def _detection_problems(config: ProxyConfig) -> list[str]:
    mode = config.detect_local_mode
    if mode not in LOCAL_MODES:
        supported = ", ".join(f'"{name}"' for name in sorted(LOCAL_MODES))
        return [f'{_ROOT}.DetectLocalMode: Unsupported value: "{mode}": supported values: {supported}']
    needs = {"BridgeInterface": config.pod_bridge_interface, "InterfaceNamePrefix": config.pod_interface_name_prefix}
    if mode not in needs:
        return []
    if not needs[mode]:
        return [_invalid(f"DetectLocal.{mode}", "", "must not be empty")]
    if len(needs[mode]) > INTERFACE_NAME_LENGTH:
        return [_invalid(f"DetectLocal.{mode}", needs[mode], "an interface name has at most 15 characters")]
    return []


def _is_cidr(text: str) -> bool:
    return "/" in text and bool(canonical_cidr(text))


def _cluster_cidr_problems(config: ProxyConfig) -> list[str]:
    example = "10.100.0.0/16 or fde4:8dba:82e1::/48"
    pair = "10.100.0.0/16,fde4:8dba:82e1::/48"
    found = [
        _invalid("ClusterCIDR", cidr, f"must be a valid CIDR block (e.g. {example})")
        for cidr in config.cluster_cidr
        if not _is_cidr(cidr)
    ]
    if any(sum(family.has(cidr) for cidr in config.cluster_cidr) > 1 for family in Family):
        why = f"only one CIDR allowed or a valid DualStack CIDR (e.g. {pair})"
        found.append(_invalid("ClusterCIDR", ",".join(config.cluster_cidr), why))
    return found


def _node_port_problems(config: ProxyConfig) -> list[str]:
    addresses = config.nodeport_addresses
    if PRIMARY in addresses and len(addresses) > 1:
        path = f"NodePortAddresses[{addresses.index(PRIMARY)}]"
        return [_invalid(path, PRIMARY, f'can\'t use both "{PRIMARY}" and CIDRs')]
    return [
        _invalid(f"NodePortAddresses[{index}]", cidr, "must be a valid CIDR block")
        for index, cidr in enumerate(addresses)
        if cidr != PRIMARY and not _is_cidr(cidr)
    ]


_FILE_FIELDS: dict[str, str] = {
    "bindAddress": "bind_address",
    "bindAddressHardFail": "bind_address_hard_fail",
    "healthzBindAddress": "healthz_bind_address",
    "metricsBindAddress": "metrics_bind_address",
    "hostnameOverride": "hostname_override",
    "clientConnection.kubeconfig": "kubeconfig",
    "mode": "proxy_mode",
    "iptables.masqueradeBit": "iptables_masquerade_bit",
    "iptables.masqueradeAll": "masquerade_all",
    "iptables.localhostNodePorts": "iptables_localhost_nodeports",
    "iptables.syncPeriod": "iptables_sync_period",
    "iptables.minSyncPeriod": "iptables_min_sync_period",
    "detectLocalMode": "detect_local_mode",
    "detectLocal.bridgeInterface": "pod_bridge_interface",
    "detectLocal.interfaceNamePrefix": "pod_interface_name_prefix",
    "clusterCIDR": "cluster_cidr",
    "nodePortAddresses": "nodeport_addresses",
    "oomScoreAdj": "oom_score_adj",
    "conntrack.maxPerCore": "conntrack_max_per_core",
    "conntrack.min": "conntrack_min",
    "conntrack.tcpEstablishedTimeout": "conntrack_tcp_timeout_established",
    "conntrack.tcpCloseWaitTimeout": "conntrack_tcp_timeout_close_wait",
    "conntrack.tcpBeLiberal": "conntrack_tcp_be_liberal",
    "conntrack.udpTimeout": "conntrack_udp_timeout",
    "conntrack.udpStreamTimeout": "conntrack_udp_timeout_stream",
    "configSyncPeriod": "config_sync_period",
}
_DURATIONS = tuple(name for name, field in _FILE_FIELDS.items() if isinstance(getattr(ProxyConfig(), field), float))
_ZERO_MEANS_DEFAULT = ("iptables_sync_period", "iptables_min_sync_period", "config_sync_period")


def file_contents(config: ProxyConfig) -> dict[str, Any]:
    """The KubeProxyConfiguration that says the same."""
    content: dict[str, Any] = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    for name, field in _FILE_FIELDS.items():
        value = getattr(config, field)
        if field == "cluster_cidr":
            value = ",".join(value)
        elif name in _DURATIONS:
            value = f"{value:g}s"
        *parents, last = name.split(".")
        where = content
        for parent in parents:
            where = where.setdefault(parent, {})
        where[last] = list(value) if isinstance(value, tuple) else value
    return content


def read_file(path: Path) -> dict[str, Any]:
    """Field values of a KubeProxyConfiguration file (YAML or JSON); fields that it leaves empty keep their default.

    Raises:
        UserError: the file cannot be read, is something else, or a value has the wrong type.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    content = _decode(path, text)
    if content.get("kind") not in (None, "KubeProxyConfiguration"):
        raise UserError(f"{path}: kind is {content.get('kind')!r}, not KubeProxyConfiguration")
    values = {}
    for name, field in _FILE_FIELDS.items():
        value: Any = content
        for step in name.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if value in (None, "", []) or (field in _ZERO_MEANS_DEFAULT and str(value) in ("0", "0s")):
            continue
        values[field] = _file_value(path, name, field, value)
    return values


def _decode(path: Path, text: bytes) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a KubeProxyConfiguration")
    return content


def _file_value(path: Path, name: str, field: str, value: Any) -> Any:
    default = getattr(ProxyConfig(), field)
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(value, list):
        value = ",".join(str(item) for item in value)
    try:
        return FLAGS[field.replace("_", "-")].parse(str(value))
    except ValueError as error:
        raise UserError(f"{path}: {name}: {error}") from error
