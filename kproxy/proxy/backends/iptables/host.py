"""This host's iptables: which of its two variants to use, where the tools are, what they and the kernel can do.

The kernel keeps two sets of tables, legacy and nf_tables, and each variant's tools see only their own.
Only ``*-save`` is used to look: ``-S`` and ``-L`` create the tables they are asked about.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from kproxy.errors import HostError
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.family import Family
from kproxy.proxy.setup import HostFeatures

_LOG = logging.getLogger(__name__)

Variant = Literal["legacy", "nft"]

LOCK_WAIT_SECONDS = 5
"""How long the legacy tools wait for /run/xtables.lock (kube-proxy: pkg/util/iptables, WaitSecondsValue)."""

_TOOL_TIMEOUT = 300.0  # seconds; nft tools take minutes for very large tables
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
_KUBELET_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
_RANDOM_FULLY_SINCE = (1, 6, 2)


class Tools(msgspec.Struct, frozen=True):
    """One variant's tools for one family.

    Attributes:
        variant: which set of tables they see.
        save: path of iptables-save.
        restore: path of iptables-restore.
        version: theirs.
        lock_wait: seconds that the legacy tools wait for their lock.
    """

    variant: Variant
    save: str
    restore: str
    version: tuple[int, ...]
    lock_wait: int = LOCK_WAIT_SECONDS


class ToolFailed(HostError):
    """A tool ran, and did not do what it was told."""


def run_tool(argv: Sequence[str], pieces: Iterable[str] = ()) -> str:
    """Run a tool; returns its output.

    Args:
        argv: the tool and its arguments.
        pieces: its input, made while the tool reads what is before.

    Raises:
        ToolFailed: it failed, or was killed.
        HostError: it could not be run or took too long.
    """
    with _scratch() as output, _scratch() as complaints:
        try:
            started = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, stderr=complaints)  # noqa: S603 - no shell
        except OSError as error:
            raise HostError(f"{argv[0]} could not be run: {error.strerror}", command=argv) from error
        with started as tool:
            limit = threading.Timer(_TOOL_TIMEOUT, tool.kill)
            limit.daemon = True
            limit.start()
            try:
                # a broken pipe: it has ended, and its status says why
                with contextlib.suppress(BrokenPipeError), tool.stdin or io.BytesIO() as its_input:
                    for piece in pieces:
                        its_input.write(piece.encode())
                status = tool.wait()
            finally:
                is_late = limit.finished.is_set()
                limit.cancel()
        if is_late:
            raise HostError(f"{argv[0]} did not end within {_TOOL_TIMEOUT:.0f} s", command=argv)
        if status:
            ended = f"failed with status {status}" if status > 0 else f"died of signal {-status}"
            raise ToolFailed(f"{argv[0]} {ended}", command=argv, stderr=_text_of(complaints))
        return _text_of(output)


def _scratch() -> BinaryIO:
    """A file in memory: a tool that fills a pipe which nobody reads yet would wait for ever."""
    return os.fdopen(os.memfd_create("tool", os.MFD_CLOEXEC), "w+b")


def _text_of(scratch: BinaryIO) -> str:
    scratch.seek(0)
    return scratch.read().decode(errors="replace")


def find_tools(variant: Variant, family: Family) -> Tools:
    """The tools of a variant and family.

    Raises:
        HostError: they are not installed.
    """
    prefix = "iptables" if family is Family.IPV4 else "ip6tables"
    restore, save = (_which(f"{prefix}-{variant}-{what}") for what in ("restore", "save"))
    if not restore or not save:
        raise HostError(f"{prefix}-{variant}-restore is not installed", left="Debian has it in the package iptables")
    return Tools(variant, save, restore, _version(restore))


def choose_variant(wanted: str) -> Variant:
    """The variant to use.

    ``auto`` goes by what the host's rules already use, as the iptables-wrappers of kube-proxy's image do: kubelet's
    hint chains first, then whichever set holds more rules, then the variant that plain ``iptables`` is.

    Raises:
        HostError: no iptables is installed.
    """
    if wanted == "legacy":
        return "legacy"
    if wanted == "nft":
        return "nft"
    saved = {"nft": _saved("nft"), "legacy": _saved("legacy")}
    if all(":KUBE-" in text for text in saved.values()):
        _LOG.warning(
            "this host has KUBE- chains in both variants of iptables: all of them work, each unseen by the other"
        )
    for variant in ("nft", "legacy"):
        if any(hint in saved[variant] for hint in _KUBELET_HINTS):
            return "nft" if variant == "nft" else "legacy"
    rules = {variant: text.count("\n-A ") for variant, text in saved.items()}
    if rules["nft"] != rules["legacy"]:
        return "nft" if rules["nft"] > rules["legacy"] else "legacy"
    return _alternative()


def look_at_host() -> HostFeatures:
    """What this host has, found without root and without changing anything; for rendering offline."""
    config = Path("/proc/config.gz")
    text = gzip.decompress(config.read_bytes()).decode() if config.exists() else ""
    built = _module_list()
    has_match = "CONFIG_NETFILTER_XT_MATCH_NFACCT=" in text or "/xt_nfacct.ko" in built
    has_counters = "CONFIG_NETFILTER_NETLINK_ACCT=" in text or "/nfnetlink_acct.ko" in built
    restore = _which("iptables-restore")
    return HostFeatures(
        counters=frozenset(COUNTERS if has_match and has_counters else ()),
        has_random_fully=not restore or _version(restore) >= _RANDOM_FULLY_SINCE,
        is_liberal=is_liberal(),
    )


def features(tools: Tools, counters: frozenset[str]) -> HostFeatures:
    """What rules may use on this host."""
    return HostFeatures(counters, has_random_fully=tools.version >= _RANDOM_FULLY_SINCE, is_liberal=is_liberal())


def is_liberal() -> bool:
    """Whether nf_conntrack_tcp_be_liberal is on; unreadable counts as off."""
    try:
        return _LIBERAL.read_text().strip() != "0"
    except OSError:
        return False


def has_ipv6() -> bool:
    """Whether this network namespace does IPv6 at all (kube-proxy: server_linux.go, platformCheckSupported)."""
    if not Path("/proc/net/if_inet6").exists():
        return False
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() != "1"
    except OSError:
        return False


def _which(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}") or ""


def _version(restore: str) -> tuple[int, ...]:
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", run_tool((restore, "--version")))
    return tuple(int(part) for part in found.groups()) if found else ()


def _saved(variant: Variant) -> str:
    tool = _which(f"iptables-{variant}-save")
    try:
        return run_tool((tool,)) if tool else ""
    except HostError:  # the kernel has no such tables
        return ""


def _alternative() -> Variant:
    tool = _which("iptables")
    if not tool:
        raise HostError("iptables is not installed", left="Debian has it in the package iptables")
    return "nft" if "nf_tables" in run_tool((tool, "--version")) else "legacy"


def _module_list() -> str:
    folder = Path("/lib/modules") / os.uname().release
    lists = (folder / "modules.builtin", folder / "modules.dep")
    return "".join(path.read_text() for path in lists if path.exists())
