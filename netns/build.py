"""Makes a topology real, and takes down what the record says was made.

Law of building: each thing is recorded before it is made, and what is there already stays, so building again after a
crash completes what is missing. Links, addresses and routes need no record: they go with the namespaces they are in.
Law of taking down: only what is recorded, newest first, and a name in /run/netns only if it is ours; each thing is
struck off when it is gone, so a killed `tear_down` is simply called again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from netns import address, cgroup, libc, link, neighbour, process, route, sysctl
from netns import journal as record
from netns.errors import NetnsError
from netns.journal import Entry, Journal
from netns.namespace import (
    Namespace,
    check_name_is_free,
    cookie,
    create,
    enter,
    exists,
    in_own_thread,
    named,
)
from netns.namespace import (
    remove as remove_namespace,
)
from netns.netlink import Batch
from netns.process import Process
from netns.topology import Topology, VethSpec, problems

# Seconds that a process gets to end by itself when everything is taken down.
GRACE = 2.0


def build(topology: Topology, journal: Journal, private_dir: Path) -> None:
    """Makes everything in `topology` that is not there yet.

    Returns when every link is up and every address and route is in place. May be called from anywhere, inside asyncio
    too (it blocks).

    Args:
        topology: a network, or a part to add to one that was built with the same `private_dir`.
        journal: where each thing is recorded before it is made.
        private_dir: folder of the mounts that keep the namespaces; the caller's own.

    Raises:
        NetnsError: the topology is impossible, or a namespace's name is taken by somebody else (nothing was made then);
            or the kernel refused something (what was made until then is on record).
    """
    if found := problems(topology):
        raise NetnsError("the topology cannot be built: " + "; ".join(found))
    for spec in topology.namespaces:
        check_name_is_free(named(spec.name, private_dir))
    in_own_thread(_build, topology, journal, private_dir)


def remove(part: Topology, journal: Journal, private_dir: Path, grace: float = GRACE) -> None:
    """Takes down what `part` defines: processes in its namespaces, its links, its namespaces; twice is fine.

    Links are gone when this returns, so a part with the same interface names can be built at once. Addresses and routes
    on interfaces that are not of this part stay.

    Raises:
        NetnsError: the processes inside do not end, or the kernel refused something.
    """
    namespaces = [named(spec.name, private_dir) for spec in part.namespaces]
    if present := [namespace for namespace in namespaces if exists(namespace)]:
        process.kill_all_in_each(present, grace)
    in_own_thread(_delete_links, part, journal, private_dir)
    for namespace in namespaces:
        remove_namespace(namespace)
        journal.step(f"remove namespace {namespace.name}")
        journal.gone(record.NAMESPACE, str(namespace.path))


def tear_down(journal: Journal, grace: float = GRACE) -> None:
    """Takes down everything on record and deletes the record; also after `kill -9`, and twice is fine.

    Recorded processes go first, so that none of them makes anything new, then whatever runs inside the recorded
    namespaces, then the rest, newest first.

    Raises:
        NetnsError: something could not be removed; everything else was, and the record still names what is left.
    """
    failures: list[str] = []
    for end in (_kill_recorded, _kill_inside):
        try:
            end(journal, grace)
        except NetnsError as error:
            failures.append(str(error))
    for entry in reversed(journal.entries()):
        try:
            _REMOVERS[entry.kind](entry)
        except (OSError, NetnsError) as error:
            failures.append(f"{entry.kind} {entry.key}: {error}")
            continue
        journal.step(f"remove {entry.kind} {entry.key}")
        journal.gone(entry.kind, entry.key)
    if failures:
        raise NetnsError("not everything could be taken down", left="left: " + "; ".join(failures))
    journal.delete()


def _build(topology: Topology, journal: Journal, private_dir: Path) -> None:
    """Body of `build`, in a thread of its own that goes from namespace to namespace."""
    for spec in topology.namespaces:
        namespace = named(spec.name, private_dir)
        journal.namespace(namespace)
        create(spec.name, private_dir, journal.step)
        enter(namespace)
        journal.namespace(namespace, cookie())
        sysctl.write(sysctl.SYSCTLS[spec.role])
        journal.step(f"sysctls of {spec.name}")
    with Batch() as batch:
        shares = _Shares(topology)
        parts = [_Part(name, shares, journal, private_dir, batch) for name in topology.namespace_names()]
        for stage in (_Part.make_links, _Part.raise_links, _Part.add_addresses, _Part.add_routes):
            for part in parts:
                part.visit(stage)


class _InNamespace(Protocol):
    @property
    def namespace(self) -> str: ...


_Placed = TypeVar("_Placed", bound=_InNamespace)


def _by_namespace(specs: Iterable[_Placed]) -> dict[str, list[_Placed]]:
    grouped: dict[str, list[_Placed]] = {}
    for spec in specs:
        grouped.setdefault(spec.namespace, []).append(spec)
    return grouped


class _Shares:
    """A topology sorted out by namespace, so that a hundred pods do not look at each other's links."""

    def __init__(self, topology: Topology) -> None:
        self.alias = topology.alias
        self.new = frozenset(spec.name for spec in topology.namespaces)
        self.ends = _by_namespace(topology.link_ends())
        self.bridges = _by_namespace(topology.bridges)
        self.vxlans = _by_namespace(topology.vxlans)
        self.addresses = _by_namespace(topology.addresses)
        self.routes = _by_namespace(topology.routes)
        self.neighbours = _by_namespace(topology.neighbours)
        self.forwarding = _by_namespace(topology.forwarding)
        self.veths: dict[str, list[VethSpec]] = {}
        for veth in topology.veths:
            self.veths.setdefault(veth.a.namespace, []).append(veth)


class _Part:
    """What a topology says of one namespace; each stage puts requests into the batch and is sent before the next."""

    def __init__(self, name: str, shares: _Shares, journal: Journal, private_dir: Path, batch: Batch) -> None:
        self._name = name
        self._shares = shares
        self._journal = journal
        self._private_dir = private_dir
        self._batch = batch
        self._opened = contextlib.ExitStack()

    def visit(self, stage: Callable[[_Part], str]) -> None:
        enter(named(self._name, self._private_dir))
        with self._opened:
            what = stage(self)
            if len(self._batch):
                self._batch.send()
                self._journal.step(f"{what} of {self._name}")

    def make_links(self) -> str:
        for veth in self._shares.veths.get(self._name, ()):
            self._make_veth(veth)
        for bridge in self._mine(self._shares.bridges):
            if not link.index_of(bridge.ifname):
                link.add_bridge(self._batch, bridge)
        return "links"

    def raise_links(self) -> str:
        if self._name in self._shares.new:
            link.raise_up(self._batch, "lo", self._name)
        bridges = {port: bridge.ifname for bridge in self._mine(self._shares.bridges) for port in bridge.ports}
        tunnels = self._mine(self._shares.vxlans)
        for vxlan in tunnels:
            if not link.index_of(vxlan.ifname):
                link.add_vxlan(self._batch, vxlan)
        later = {vxlan.ifname for vxlan in tunnels}
        for end in self._mine(self._shares.ends):
            if end.ifname not in later:
                bridge = bridges.get(end.ifname, "")
                link.raise_up(self._batch, end.ifname, self._name, alias=self._shares.alias, bridge=bridge)
        return "links up"

    def add_addresses(self) -> str:
        for vxlan in self._mine(self._shares.vxlans):
            link.raise_up(self._batch, vxlan.ifname, self._name, alias=self._shares.alias)
        for spec in self._mine(self._shares.addresses):
            address.add_address(self._batch, spec)
        for entry in self._mine(self._shares.neighbours):
            neighbour.add_neighbour(self._batch, entry)
        for forwarding in self._mine(self._shares.forwarding):
            neighbour.add_forwarding(self._batch, forwarding)
        return "addresses"

    def add_routes(self) -> str:
        for spec in self._mine(self._shares.routes):
            route.add_route(self._batch, spec)
        return "routes"

    def _mine(self, grouped: Mapping[str, list[_Placed]]) -> list[_Placed]:
        return grouped.get(self._name, [])

    def _make_veth(self, veth: VethSpec) -> None:
        """Makes the cable unless both ends are there; one end alone hangs from a namespace that is being taken down."""
        other = named(veth.b.namespace, self._private_dir)
        here = named(veth.a.namespace, self._private_dir)
        enter(other)
        has_other_end = link.index_of(veth.b.ifname)
        enter(here)
        if link.index_of(veth.a.ifname):
            if has_other_end:
                return
            link.delete(self._batch, veth.a.ifname, veth.a.namespace)
        fd = os.open(other.path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened.callback(os.close, fd)
        link.add_veth(self._batch, veth, fd)


def _delete_links(part: Topology, journal: Journal, private_dir: Path) -> None:
    own = {spec.name for spec in part.namespaces}
    ends: dict[str, list[str]] = {}
    for end in part.link_ends():
        ends.setdefault(end.namespace, []).append(end.ifname)
    with Batch() as batch:
        # From the side that stays: the side that goes would do it later, when the kernel finds the time.
        for name in sorted(ends, key=lambda name: name in own):
            namespace = named(name, private_dir)
            if not exists(namespace):
                continue
            enter(namespace)
            for ifname in ends[name]:
                link.delete(batch, ifname, name)
            if len(batch):
                batch.send()
                journal.step(f"remove links of {name}")


def _kill_recorded(journal: Journal, grace: float) -> None:
    """Ends the recorded processes, and those they record while they end."""
    while alive := [one for one in _recorded_processes(journal) if one.pid != os.getpid()]:
        process.kill_all(alive, grace)


def _recorded_processes(journal: Journal) -> Iterator[Process]:
    boot = record.boot_id()
    for entry in journal.entries():
        if entry.kind == record.PROCESS and entry.details["boot"] == boot:
            one = Process(entry.details["pid"], entry.details["start"])
            if process.is_alive(one):
                yield one


def _kill_inside(journal: Journal, grace: float) -> None:
    """Ends the processes in recorded namespaces, even if somebody has taken the mount away (`ip netns del`)."""
    entries = [entry for entry in journal.entries() if entry.kind == record.NAMESPACE]
    if present := [namespace for entry in entries if exists(namespace := _namespace(entry))]:
        process.kill_all_in_each(present, grace)
    boot = record.boot_id()
    cookies = {
        entry.details["cookie"]
        for entry in entries
        if entry.details["cookie"] and entry.details["boot"] == boot and not exists(_namespace(entry))
    }
    if cookies:
        process.kill_all_with_cookies(cookies, grace)


def _namespace(entry: Entry) -> Namespace:
    path = Path(entry.key)
    return Namespace(str(entry.details.get("name", path.name)), path)


def _remove_namespace(entry: Entry) -> None:
    remove_namespace(_namespace(entry))


def _remove_process(entry: Entry) -> None:
    """It was ended before anything else was touched."""


def _remove_mount(entry: Entry) -> None:
    while os.path.ismount(entry.key):
        libc.unmount(entry.key)


def _remove_file(entry: Entry) -> None:
    Path(entry.key).unlink(missing_ok=True)


def _remove_directory(entry: Entry) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(entry.key).rmdir()


def _remove_tree(entry: Entry) -> None:
    path = Path(entry.key)
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path)


def _remove_cgroup(entry: Entry) -> None:
    cgroup.remove_tree(Path(entry.key))


_REMOVERS: dict[str, Callable[[Entry], None]] = {
    record.NAMESPACE: _remove_namespace,
    record.PROCESS: _remove_process,
    record.MOUNT: _remove_mount,
    record.FILE: _remove_file,
    record.DIRECTORY: _remove_directory,
    record.TREE: _remove_tree,
    record.CGROUP: _remove_cgroup,
}
