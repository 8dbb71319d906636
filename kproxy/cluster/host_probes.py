"""What this host can do, found out by doing it, in a network namespace that nobody sees and that ends with the probe.

Law: probes report and judge nothing (that is `host_check`); no version is read; nothing is left behind, not even when
the process is killed: the namespace belongs to one thread, files are in memory. The host's own network namespace is
looked at and never changed, but for the modules that the kernel loads by itself: what they add is reported.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from kproxy.cluster import host, sandbox
from kproxy.cluster.host_facts import (
    FAMILY_TOOLS,
    FEATURES,
    LINKS,
    TOOLS,
    Feature,
    HostFacts,
    HostNetwork,
    RulesTried,
    Tried,
)
from kproxy.cluster.layout import python_environment
from kproxy.errors import HostError
from netns import cgroup, libc, process, sysctl
from netns.cgroup import Group
from netns.errors import NetnsError
from netns.link import add_bridge, add_veth, add_vxlan
from netns.namespace import Namespace, in_own_thread
from netns.netlink import Batch
from netns.topology import BridgeSpec, End, Role, VethSpec, VxlanSpec

_CHAIN: Final = "KPROXY-CHECK"
_ADDRESSES: Final = {"IPv4": "192.0.2.1", "IPv6": "[2001:db8::1]"}
_LIMIT: Final = 20.0
"""Seconds that one tool may take; the kernel may have to load modules from a slow disk."""


def look(variants: Sequence[str] = host.VARIANTS, families: Sequence[str] = tuple(FAMILY_TOOLS)) -> HostFacts:
    """Everything about this host; it takes about a second."""
    tools = {tool: shutil.which(tool, path=sandbox.PATH) is not None for tool in TOOLS}
    if os.geteuid() != 0:
        return HostFacts(is_root=False, tools=tools)
    network = _host_network()
    modules, keys = _modules(), _sysctl_keys()
    inside = _look_inside(_Wanted(tuple(variants), tuple(families), LINKS, is_full=True))
    return replace(
        inside,
        tools=tools,
        network=network,
        loaded_modules=tuple(sorted(_modules() - modules)),
        added_sysctls=tuple(sorted(_sysctl_keys() - keys)),
    )


def look_quickly(variants: Sequence[str], families: Sequence[str], links: Sequence[str]) -> HostFacts:
    """What a lab cannot be without, and no more: `lab up` waits for it.

    Args:
        variants: iptables variants in the order of preference; those after the first that works are not looked at.
        families: `IPv4`, `IPv6`.
        links: which of `LINKS`.
    """
    if os.geteuid() != 0:
        return HostFacts(is_root=False)
    tools = {"bwrap": shutil.which("bwrap", path=sandbox.PATH) is not None}
    wanted = _Wanted(tuple(variants), tuple(families), tuple(links), is_full=False)
    return replace(_look_inside(wanted), tools=tools)


# ----- in the namespace


class _Wanted(NamedTuple):
    variants: tuple[str, ...]
    families: tuple[str, ...]
    links: tuple[str, ...]
    is_full: bool


def _look_inside(wanted: _Wanted) -> HostFacts:
    """What is found out in a namespace of a thread's own."""

    def body() -> HostFacts:
        namespace = _tried(libc.unshare, libc.CLONE_NEWNET)
        if not namespace.works:
            return HostFacts(is_root=True, namespace=namespace)
        settings = _tried(sysctl.write, sysctl.SYSCTLS[Role.CLIENT])
        ipv6 = _tried(_use_ipv6) if "IPv6" in wanted.families else None
        families = [name for name in wanted.families if name != "IPv6" or (ipv6 is not None and ipv6.works)]
        return HostFacts(
            is_root=True,
            namespace=namespace,
            settings=settings,
            links=dict(_try_links(wanted.links)),
            ipv6=ipv6,
            rules=_try_variants(wanted._replace(families=tuple(families))),
            conntrack=_tried(_list_connections),
            nftables=_tried(_load_nftables) if wanted.is_full else None,
            sandbox=_tried(_run_in_sandbox) if wanted.is_full else None,
            limits=_tried(_make_group) if wanted.is_full else None,
            rule_reader=_tried(_read_rules) if wanted.is_full else None,
        )

    return in_own_thread(body)


def _tried(do: Callable[..., object], *arguments: object) -> Tried:
    try:
        do(*arguments)
    except OSError as error:
        return Tried(False, os.strerror(error.errno) if error.errno else str(error))
    except (HostError, NetnsError) as error:
        return Tried(False, getattr(error, "stderr", "") or error.reason)
    return Tried(True)


def _try_links(kinds: Iterable[str]) -> Iterator[tuple[str, Tried]]:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for kind in kinds:
            yield kind, _tried(_add_link, kind, own)
    finally:
        os.close(own)


def _add_link(kind: str, own: int) -> None:
    with Batch() as batch:
        if kind == "veth":
            add_veth(batch, VethSpec(End("check", "check0"), End("check", "check1")), own)
        elif kind == "bridge":
            add_bridge(batch, BridgeSpec("check", "check2"))
        else:
            add_vxlan(batch, VxlanSpec("check", "check3", vni=1, local="192.0.2.1", underlay="lo", mtu=1400))
        batch.send()


def _use_ipv6() -> None:
    with Batch() as batch:
        batch.add("set up lo", "link", "set", index=1, state="up")
        batch.send()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))


def _list_connections() -> None:
    """Asks for a dump of the connection table as linux/netfilter/nfnetlink_conntrack.h has it."""
    subsystem, get, request_dump = 1, 1, 0x301
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as channel:
        channel.settimeout(_LIMIT)
        body = struct.pack("=BBH", socket.AF_INET, 0, 0)
        channel.send(struct.pack("=IHHII", 16 + len(body), (subsystem << 8) | get, request_dump, 1, 0) + body)
        answer = channel.recv(1 << 16)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == 2 and (code := -struct.unpack_from("=i", answer, 16)[0]):  # NLMSG_ERROR
        raise OSError(code, os.strerror(code))


def _try_variants(wanted: _Wanted) -> dict[tuple[str, str], RulesTried]:
    found: dict[tuple[str, str], RulesTried] = {}
    for variant in wanted.variants:
        each = {(variant, family): _try_rules(variant, family) for family in wanted.families}
        found.update(each)
        if not wanted.is_full and all(tried.is_installed and not tried.refused for tried in each.values()):
            break
    return found


def _try_rules(variant: str, family: str) -> RulesTried:
    """Writes all features' rules at once and, if that is refused, one by one."""
    tool = host.tool_path(variant, f"{FAMILY_TOOLS[family]}-restore")
    if tool is None or host.tool_path(variant, f"{FAMILY_TOOLS[family]}-save") is None:
        return RulesTried(is_installed=False)
    if _tried(_restore, tool, FEATURES, family).works:
        return RulesTried(is_installed=True)
    each = {feature.name: _tried(_restore, tool, (feature,), family) for feature in FEATURES}
    return RulesTried(True, {name: tried.said for name, tried in each.items() if not tried.works})


def _restore(tool: str, features: Sequence[Feature], family: str) -> None:
    lines = []
    for table in dict.fromkeys(feature.table for feature in features):
        lines += [f"*{table}", f":{_CHAIN} - [0:0]"]
        rules = [feature.rule.format(address=_ADDRESSES[family]) for feature in features if feature.table == table]
        lines += [f"-A {_CHAIN} {rule}" for rule in rules]
        lines += ["COMMIT"]
    with _in_memory("xtables.lock") as lock:
        _run([tool, "--noflush", "-w", "5"], "\n".join([*lines, ""]), {"XTABLES_LOCKFILE": str(lock)})


def _load_nftables() -> None:
    tool = shutil.which("nft", path=sandbox.PATH)
    if tool is None:
        raise HostError("nft is not installed")
    _run([tool, "-f", "-"], "table inet kproxy-check { chain nat { type nat hook prerouting priority 0; }; }\n")


def _run_in_sandbox() -> None:
    own = Namespace("check", Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"))
    with _in_memory("log") as log, _in_memory("status") as status:
        started = sandbox.start(sandbox.Container(["true"], "check"), own, log=log, status=status)
        fd = os.pidfd_open(started.pid)
        try:
            if not select.select([fd], [], [], _LIMIT)[0]:
                process.kill(started, grace=0)
                raise HostError(f"a program in the sandbox did not end within {_LIMIT:.0f} s")
        finally:
            os.close(fd)
        if process.exit_status(started):
            raise HostError("bubblewrap failed", stderr=log.read_text(errors="replace"))


def _make_group() -> None:
    group = Group(cgroup.find(), f"kproxy-check-{os.getpid()}")
    try:
        group.limit(64, 64 * 1024 * 1024)
    finally:
        group.remove()


def _read_rules() -> None:
    script = "import iptc; print(iptc.Chain(iptc.Table(iptc.Table.NAT), 'PREROUTING').name)"
    with _in_memory("xtables.lock") as lock:
        _run([sys.executable, "-P", "-c", script], "", {**python_environment(), "XTABLES_LOCKFILE": str(lock)})


@contextmanager
def _in_memory(name: str) -> Iterator[Path]:
    """The path of an empty file that is in no folder, and gone after."""
    fd = os.memfd_create(name)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


def _run(argv: Sequence[str], text: str = "", env: Mapping[str, str] | None = None) -> str:
    """The output of a program, run in the calling thread's namespace.

    Raises:
        HostError: it failed, or took too long.
    """
    try:
        done = subprocess.run(  # noqa: S603 - an argument list, no shell
            list(argv),
            input=text,
            env={"PATH": sandbox.PATH, **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{argv[0]} did not end within {_LIMIT:.0f} s", command=argv) from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise HostError(f"{argv[0]} failed", command=argv, stderr=_telling(words))
    return done.stdout


def _telling(lines: Sequence[str]) -> str:
    """The line of a tool's complaint that says why: tracebacks say it last, iptables first but for modprobe's words."""
    if lines[0].startswith("Traceback"):
        return lines[-1]
    own = [line for line in lines if not line.startswith("modprobe:")]
    return (own or lines)[0]


# ----- around the namespace


def _host_network() -> HostNetwork:
    policies: dict[str, str] = {}
    counts: dict[str, int] = {}
    for variant in host.VARIANTS:
        for family in FAMILY_TOOLS.values():
            tool = host.tool_path(variant, f"{family}-save")
            if tool is None:
                continue
            try:
                # Only what is there: naming a table would make it.
                saved = _run([tool])
            except HostError:
                continue  # the kernel has no such tables
            counts[variant] = counts.get(variant, 0) + saved.count("\n-A ")
            if policy := _forward_policy(saved):
                policies[f"{family}-{variant}"] = policy
    return HostNetwork(
        max(_sysctl("net.ipv4.conf.all.rp_filter"), _sysctl("net.ipv4.conf.default.rp_filter")),
        _sysctl("net.bridge.bridge-nf-call-iptables"),
        policies,
        counts,
    )


def _forward_policy(saved: str) -> str:
    """The policy of the filter table's FORWARD chain in what iptables-save printed; empty without one."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif table == "filter" and line.startswith(":FORWARD "):
            return line.split()[1]
    return ""


def _sysctl(key: str) -> str:
    try:
        return Path("/proc/sys", key.replace(".", "/")).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _modules() -> frozenset[str]:
    try:
        lines = Path("/proc/modules").read_text(encoding="ascii").splitlines()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return frozenset()  # a kernel without modules
    return frozenset(line.split(" ", 1)[0] for line in lines)


def _sysctl_keys() -> frozenset[str]:
    """All net.* keys of the host's namespace, per interface ones aside."""
    root = Path("/proc/sys/net")
    found = set()
    for folder, folders, names in os.walk(root):
        if Path(folder).name in ("conf", "neigh"):
            folders.clear()
        relative = ".".join(Path(folder).relative_to(root.parent).parts)
        found |= {f"{relative}.{name}" for name in names}
    return frozenset(found)
