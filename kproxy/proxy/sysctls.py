"""Kernel settings that the proxy needs or is asked for (kube-proxy: server_linux.go, conntrack.go).

Values that are right already are not written; a write that is needed and fails ends the start.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from kproxy.errors import HostError
from kproxy.proxy.config import ProxyConfig

_LOG = logging.getLogger(__name__)

SYS = Path("/proc/sys")
HASH_SIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
MAX_CONNTRACK = 1 << 20

_CONNTRACK = "net/netfilter/nf_conntrack_"
ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


def conntrack_settings(config: ProxyConfig, cores: int) -> dict[str, int]:
    """The conntrack settings that the configuration asks for, as path below /proc/sys and value.

    Args:
        config: the --conntrack-* flags.
        cores: number of processors.
    """
    wanted = {}
    if config.conntrack_max_per_core > 0:
        scaled = max(config.conntrack_max_per_core * cores, config.conntrack_min)
        wanted[f"{_CONNTRACK}max"] = min(scaled, MAX_CONNTRACK)
    timeouts = {
        "tcp_timeout_established": config.conntrack_tcp_timeout_established,
        "tcp_timeout_close_wait": config.conntrack_tcp_timeout_close_wait,
        "udp_timeout": config.conntrack_udp_timeout,
        "udp_timeout_stream": config.conntrack_udp_timeout_stream,
    }
    wanted.update({f"{_CONNTRACK}{name}": int(seconds) for name, seconds in timeouts.items() if seconds > 0})
    if config.conntrack_tcp_be_liberal:
        wanted[f"{_CONNTRACK}tcp_be_liberal"] = 1
    return wanted


def set_up_conntrack(config: ProxyConfig) -> None:
    """Set conntrack up as the configuration asks.

    nf_conntrack_max belongs to the whole machine: in any network namespace but the first the kernel shows it and lets
    nobody write it. There it stays as it is, and so does the size of the hash table; the log says so.

    Raises:
        HostError: a value could not be written.
    """
    for path, value in conntrack_settings(config, os.cpu_count() or 1).items():
        is_max = path == f"{_CONNTRACK}max"
        if is_max and _is_read_only(SYS / path):
            _LOG.warning(
                "%s stays %d, not %d: only the first network namespace has a say", path, _read(SYS / path), value
            )
            continue
        write_if_different(SYS / path, value)
        if is_max and _read(HASH_SIZE) < value // 4:
            write_if_different(HASH_SIZE, value // 4)


def route_localnet() -> None:
    """Let 127.0.0.1 be an address that packets can be sent on from, for node ports there.

    Raises:
        HostError: it could not be written.
    """
    write_if_different(SYS / ROUTE_LOCALNET, 1)


def set_oom_score(score: int) -> None:
    """Make the kernel spare this process when memory is short; as far as it lets us."""
    try:
        if OOM_SCORE_ADJ.read_text().strip() != str(score):
            OOM_SCORE_ADJ.write_text(str(score))
    except OSError as error:
        _LOG.warning("cannot set oom_score_adj to %d: %s", score, error.strerror)


def write_if_different(path: Path, value: int) -> None:
    """Write a setting unless it is so already.

    Raises:
        HostError: it is not, and cannot be written.
    """
    try:
        if path.read_text().strip() != str(value):
            path.write_text(str(value))
    except OSError as error:
        raise HostError(f"cannot set {path} to {value}: {error.strerror}") from error


def _is_read_only(path: Path) -> bool:
    """Whether the kernel lets nobody write it, root neither."""
    try:
        return not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    except OSError:
        return False


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
