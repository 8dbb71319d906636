"""The proxy's configuration: every value that kube-proxy's flags and its KubeProxyConfiguration can set, by default.

Law: values only. How they are written is in ``flags`` and ``config_file``, what is wrong with them in
``config_validation``.
"""

from __future__ import annotations

import re

import msgspec

from kproxy.proxy.family import Family, canonical_address, canonical_cidr

PRIMARY = "primary"
LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
MODES = ("iptables", "ipvs", "nftables")
NFTABLES = "nftables"
VARIANTS = ("auto", "legacy", "nft")
WRITERS = ("iptables-restore", "python-iptables")
NFTABLES_WRITERS = ("netlink", "nft")
HEALTHZ_PORT = 10256
METRICS_PORT = 10249

_DURATION_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([^\d.]*)")


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set; field names are kube-proxy's flags in snake case, durations are seconds.

    Attributes:
        manifests: directory to take objects from; empty means a Kubernetes API.
        master: its address, ``http(s)://host:port`` or ``unix:///path``; stands above the server of ``kubeconfig``.
        kubeconfig: file that says where the API is and what to show it; without it and ``master``, the pod's own.
        healthz_bind_address: IP:port; empty means that there is no such server.
        metrics_bind_address: IP:port.
        feature_gates: ``NAME=true`` or ``NAME=false``.
    """

    manifests: str = ""
    master: str = ""
    kubeconfig: str = ""
    kube_api_accept_content_types: str = ""
    kube_api_content_type: str = "application/vnd.kubernetes.protobuf"
    kube_api_qps: float = 5.0
    kube_api_burst: int = 10
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"  # noqa: S104 - kube-proxy's default; no socket is bound to it
    bind_address_hard_fail: bool = False
    healthz_bind_address: str = "0.0.0.0:10256"
    metrics_bind_address: str = "127.0.0.1:10249"
    profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    feature_gates: tuple[str, ...] = ()
    proxy_mode: str = "iptables"
    masquerade_all: bool = False
    iptables_masquerade_bit: int = 14
    iptables_localhost_nodeports: bool = True
    iptables_sync_period: float = 30.0
    iptables_min_sync_period: float = 1.0
    iptables_variant: str = "auto"
    iptables_writer: str = "iptables-restore"
    ipvs_sync_period: float = 30.0
    ipvs_min_sync_period: float = 0.0
    ipvs_scheduler: str = ""
    ipvs_exclude_cidrs: tuple[str, ...] = ()
    ipvs_strict_arp: bool = False
    ipvs_tcp_timeout: float = 0.0
    ipvs_tcpfin_timeout: float = 0.0
    ipvs_udp_timeout: float = 0.0
    nftables_masquerade_bit: int = 14
    nftables_writer: str = "netlink"
    nftables_sync_period: float = 30.0
    nftables_min_sync_period: float = 0.0
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
    logging_format: str = "text"
    log_flush_frequency: float = 5.0
    v: int = 0
    vmodule: str = ""

    @property
    def is_nftables(self) -> bool:
        """Whether rules are nf_tables' own, not iptables'."""
        return self.proxy_mode == NFTABLES

    @property
    def sync_period(self) -> float:
        """The mode's own: seconds after which a failed sync is tried again."""
        return self.nftables_sync_period if self.is_nftables else self.iptables_sync_period

    @property
    def min_sync_period(self) -> float:
        """The mode's own: seconds between two syncs."""
        return self.nftables_min_sync_period if self.is_nftables else self.iptables_min_sync_period

    @property
    def has_chosen_node_ports(self) -> bool:
        """Whether node ports may answer on some of the node's addresses only."""
        return bool(self.nodeport_addresses) or self.is_nftables

    def detector_cidr(self, family: Family) -> str:
        """The first --cluster-cidr of a family; empty when there is none."""
        return next((cidr for cidr in self.cluster_cidr if family.has(cidr)), "")

    def node_port_cidrs(self, family: Family, node_ip: str) -> tuple[str, ...]:
        """On which addresses of a family node ports answer; a family that is not named answers on all of them.

        Where none is named, mode nftables means ``primary`` (kube-proxy: server_linux.go).

        Args:
            family: the proxier's.
            node_ip: the node's address of that family, which ``primary`` stands for; empty when it has none.
        """
        if self.nodeport_addresses == (PRIMARY,) or (self.is_nftables and not self.nodeport_addresses):
            return (f"{node_ip}/{family.host_bits}",) if node_ip else (family.everything,)
        cidrs = tuple(canonical_cidr(cidr) for cidr in self.nodeport_addresses if family.has(cidr))
        return (family.everything,) if not cidrs or family.everything in cidrs else cidrs


WITHOUT_EFFECT = frozenset(
    [
        "kube_api_accept_content_types",
        "kube_api_content_type",
        "kube_api_qps",
        "kube_api_burst",
        "profiling",
        "show_hidden_metrics_for_version",
        "feature_gates",
        "ipvs_sync_period",
        "ipvs_min_sync_period",
        "ipvs_scheduler",
        "ipvs_exclude_cidrs",
        "ipvs_strict_arp",
        "ipvs_tcp_timeout",
        "ipvs_tcpfin_timeout",
        "ipvs_udp_timeout",
        "config_sync_period",
        "logging_format",
        "log_flush_frequency",
        "vmodule",
    ]
)
"""Fields that are read and checked, and then change nothing here."""


def with_port(address: str, port: int) -> str:
    """``address`` as IP:port; ``port`` is what is meant where it names none (kube-proxy: AppendPortIfNeeded)."""
    if not canonical_address(address):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def duration(value: str) -> float:
    """Seconds of a Go duration that is not negative (``1m30s``, ``100ms``, ``0``).

    Raises:
        ValueError: it is none; in Go's words.
    """
    unsigned = value.removeprefix("+")
    if unsigned == "0":
        return 0.0
    parts = _DURATION_PART.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        raise ValueError(f'time: invalid duration "{value}"')
    for _, unit in parts:
        if not unit:
            raise ValueError(f'time: missing unit in duration "{value}"')
        if unit not in _DURATION_UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{value}"')
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def duration_text(seconds: float) -> str:
    """Seconds as Go writes a duration (``1h0m0s``, ``1m30s``, ``500ms``, ``0s``)."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 else ""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 10**9)}s"
    if hours:
        text = f"{hours}h{minutes}m{text}"
    elif minutes:
        text = f"{minutes}m{text}"
    return sign + text


def _decimal(count: int, size: int) -> str:
    whole, rest = divmod(count, size)
    digits = len(str(size)) - 1
    return f"{whole}.{rest:0{digits}}".rstrip("0") if rest else str(whole)
