"""Namespaces and topologies on the real kernel: built, built again, taken down, and nothing of others touched."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from netns_world import World, host_network, pods_on_a_node, reaches, world

from netns import libc, process
from netns.build import build, remove, tear_down
from netns.errors import NetnsError
from netns.namespace import (
    PUBLIC_DIR,
    cookie,
    create,
    exists,
    identity,
    in_own_thread,
    inode,
    named,
    run_in,
    socket_in,
)
from netns.namespace import remove as remove_namespace
from netns.sysctl import SYSCTLS, apply
from netns.topology import AddressSpec, BridgeSpec, End, NamespaceSpec, Role, RouteSpec, Topology, VethSpec

pytestmark = pytest.mark.root


@pytest.fixture
def here() -> Iterator[World]:
    with world("tnb") as made:
        yield made


def ip_in(name: str, *arguments: str) -> list[dict[str, object]]:
    out = subprocess.run(["ip", "-n", name, "-j", *arguments], check=True, capture_output=True, text=True).stdout
    return json.loads(out or "[]")


def test_pods_reach_each_other_at_once_in_both_families(here: World) -> None:
    build(pods_on_a_node(here.prefix), here.journal(), here.private)
    one, two = here.namespace("pod2"), here.namespace("pod3")
    assert reaches(one, two, "10.77.0.3")
    assert reaches(one, two, "fd77::3")
    with pytest.raises(NetnsError, match="does not exist"):
        reaches(one, here.namespace("pod9"), "10.77.0.9")


def test_the_host_sees_nothing_of_it_before_during_and_after(here: World) -> None:
    before = host_network()
    journal = here.journal()
    build(pods_on_a_node(here.prefix), journal, here.private)
    during = host_network()
    tear_down(journal)
    assert during == before
    assert host_network() == before
    assert here.leftovers() == []


def test_tearing_down_twice_is_fine(here: World) -> None:
    journal = here.journal()
    build(pods_on_a_node(here.prefix), journal, here.private)
    tear_down(journal)
    tear_down(journal)
    assert here.leftovers() == []


def test_building_again_completes_what_is_missing_and_keeps_what_is_there(here: World) -> None:
    topology = pods_on_a_node(here.prefix)
    journal = here.journal()
    build(topology, journal, here.private)
    kept, lost = here.namespace("node"), here.namespace("pod3")
    before = inode(kept)
    remove_namespace(lost)
    for lost_address in ("10.77.0.1/32", "fd77::1/128"):
        subprocess.run(["ip", "-n", kept.name, "addr", "del", lost_address, "dev", "pod2"], check=True)
    subprocess.run(["ip", "-n", here.namespace("pod2").name, "route", "flush", "default"], check=True)
    build(topology, journal, here.private)
    assert inode(kept) == before
    assert reaches(here.namespace("pod2"), lost, "10.77.0.3")
    assert reaches(lost, here.namespace("pod2"), "fd77::2")


def test_a_part_is_removed_and_built_again_under_the_same_names(here: World) -> None:
    whole, journal = pods_on_a_node(here.prefix, 3), here.journal()
    build(whole, journal, here.private)
    pod = f"{here.prefix}-pod4"
    part = Topology(
        (NamespaceSpec(pod, Role.POD),),
        tuple(veth for veth in whole.veths if veth.b.namespace == pod),
        addresses=tuple(spec for spec in whole.addresses if spec.namespace == pod or spec.ifname == "pod4"),
        routes=tuple(spec for spec in whole.routes if spec.namespace == pod or spec.dev == "pod4"),
    )
    for _ in range(3):
        process.spawn(["sleep", "60"], ns=here.namespace("pod4"))
        remove(part, journal, here.private)
        assert "pod4" not in [item["ifname"] for item in ip_in(f"{here.prefix}-node", "link")]
        assert not exists(here.namespace("pod4"))
        build(part, journal, here.private)
        assert reaches(here.namespace("pod2"), here.namespace("pod4"), "10.77.0.4")
    remove(part, journal, here.private)
    remove(part, journal, here.private)
    assert pod not in [entry.details["name"] for entry in journal.entries()]
    assert reaches(here.namespace("pod2"), here.namespace("pod3"), "10.77.0.3")


def test_building_works_inside_a_running_asyncio_loop(here: World) -> None:
    async def main() -> None:
        build(pods_on_a_node(here.prefix), here.journal(), here.private)

    asyncio.run(main())
    assert reaches(here.namespace("pod2"), here.namespace("pod3"), "10.77.0.3")


def test_a_bridge_joins_its_ports_and_links_carry_the_alias_mtu_and_address(here: World) -> None:
    a, b, fabric = (f"{here.prefix}-{name}" for name in ("a", "b", "fabric"))
    topology = Topology(
        (NamespaceSpec(a, Role.CLIENT), NamespaceSpec(b, Role.CLIENT), NamespaceSpec(fabric, Role.FABRIC)),
        (
            VethSpec(End(a, "eth0", "02:00:00:00:00:0a"), End(fabric, "a"), mtu=1400),
            VethSpec(End(fabric, "b"), End(b, "eth0", "02:00:00:00:00:0b"), mtu=1400),
        ),
        bridges=(BridgeSpec(fabric, "br0", ("a", "b"), mtu=1400),),
        addresses=(AddressSpec(a, "eth0", "10.78.0.1/24"), AddressSpec(b, "eth0", "10.78.0.2/24")),
        alias="test:alias",
    )
    build(topology, here.journal(), here.private)
    assert reaches(here.namespace("a"), here.namespace("b"), "10.78.0.2")
    links = {item["ifname"]: item for item in ip_in(fabric, "link")}
    assert links["a"]["master"] == links["b"]["master"] == "br0"
    for name, ifname, mac in ((a, "eth0", "02:00:00:00:00:0a"), (b, "eth0", "02:00:00:00:00:0b")):
        (link,) = [item for item in ip_in(name, "link") if item["ifname"] == ifname]
        assert (link["address"], link["mtu"], link["ifalias"]) == (mac, 1400, "test:alias")


@pytest.mark.parametrize("role", Role)
def test_each_role_has_its_sysctls(here: World, role: Role) -> None:
    build(Topology((NamespaceSpec(f"{here.prefix}-one", role),)), here.journal(), here.private)
    namespace = here.namespace("one")

    def read() -> dict[str, str]:
        values = {}
        for key in SYSCTLS[role]:
            path = Path("/proc/sys") / key.replace(".", "/")
            if path.exists():
                values[key] = " ".join(path.read_text().split())
        return values

    found = run_in(namespace, read)
    assert found == {key: value for key, value in SYSCTLS[role].items() if key in found}
    assert "net.ipv4.ip_forward" in found
    assert "net.ipv6.conf.default.accept_dad" in found


def test_a_sysctl_that_the_kernel_refuses_is_named(here: World) -> None:
    build(Topology((NamespaceSpec(f"{here.prefix}-one", Role.POD),)), here.journal(), here.private)
    apply(here.namespace("one"), {"net.no_such_module.key": "1"})
    with pytest.raises(NetnsError, match=r"cannot set net.ipv4.ip_forward to 'nonsense'"):
        apply(here.namespace("one"), {"net.ipv4.ip_forward": "nonsense"})


def test_a_refused_request_is_named_with_the_kernels_reason(here: World) -> None:
    one = f"{here.prefix}-one"
    topology = Topology((NamespaceSpec(one, Role.CLIENT),), routes=(RouteSpec(one, "10.0.0.0/8", "192.0.2.1"),))
    with pytest.raises(
        NetnsError, match=rf"the kernel refused to set the route of {one} to 10.0.0.0/8: Network is unr"
    ):
        build(topology, here.journal(), here.private)


def test_more_requests_than_fit_one_batch_all_arrive_and_the_first_refusal_is_named(here: World) -> None:
    one = f"{here.prefix}-one"
    numbers = [f"10.80.{number // 250}.{number % 250 + 1}/32" for number in range(700)]
    topology = Topology(
        (NamespaceSpec(one, Role.CLIENT),),
        bridges=(BridgeSpec(one, "br0"),),
        addresses=tuple(AddressSpec(one, "br0", address) for address in numbers),
    )
    build(topology, here.journal(), here.private)
    (bridge,) = [item for item in ip_in(one, "-4", "addr") if item["ifname"] == "br0"]
    assert len(bridge["addr_info"]) == 700
    bad = tuple(RouteSpec(one, f"10.{number}.0.0/16", "192.0.2.1") for number in range(1, 200))
    good = RouteSpec(one, "10.81.0.0/24", dev="br0")
    with pytest.raises(NetnsError, match=r"to 10\.1\.0\.0/16"):
        build(Topology(routes=(*bad, good)), here.journal(), here.private)
    assert "10.81.0.0/24" in [route["dst"] for route in ip_in(one, "route")]


def test_parts_are_built_and_removed_side_by_side(here: World) -> None:
    """As a node agent does it when many pods come and go at once."""
    journal = here.journal()
    whole = pods_on_a_node(here.prefix, 10)
    build(Topology(whole.namespaces[:1]), journal, here.private)
    parts = [
        Topology(
            (spec,),
            tuple(veth for veth in whole.veths if veth.b.namespace == spec.name),
            addresses=tuple(one for one in whole.addresses if one.namespace == spec.name or one.ifname == port),
            routes=tuple(one for one in whole.routes if one.namespace == spec.name or one.dev == port),
        )
        for spec, port in ((spec, spec.name.split("-")[1]) for spec in whole.namespaces[1:])
    ]

    def come_and_go(part: Topology) -> None:
        for _ in range(3):
            build(part, journal, here.private)
            process.spawn(["sleep", "60"], ns=named(part.namespaces[0].name, here.private), journal=journal)
            remove(part, journal, here.private, grace=0)
        build(part, journal, here.private)

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(come_and_go, parts))
    for number in range(3, 12):
        assert reaches(here.namespace("pod2"), here.namespace(f"pod{number}"), f"10.77.0.{number}")
    tear_down(journal)
    assert here.leftovers() == []


def test_an_impossible_topology_makes_nothing(here: World) -> None:
    spec = NamespaceSpec(f"{here.prefix}-one", Role.POD)
    with pytest.raises(NetnsError, match="is defined 2 times"):
        build(Topology((spec, spec)), here.journal(), here.private)
    assert not exists(here.namespace("one"))


@pytest.mark.parametrize("name", ["", ".", "..", "../etc", "a/b", "/etc", "a" * 256, "a b", "-a"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NetnsError, match="is no name for a network namespace"):
        named(name, tmp_path)


@pytest.mark.parametrize("way", ["mount", "link", "file"])
def test_a_namespace_of_others_with_our_name_is_refused_and_never_touched(here: World, way: str) -> None:
    theirs = PUBLIC_DIR / f"{here.prefix}-pod3"
    PUBLIC_DIR.mkdir(exist_ok=True)

    def make() -> None:
        libc.unshare(libc.CLONE_NEWNET)
        libc.mount("/proc/thread-self/ns/net", str(theirs), None, libc.MS_BIND)

    if way == "link":
        theirs.symlink_to("/proc/self/ns/net")
    else:
        theirs.touch()
    if way == "mount":
        in_own_thread(make)
    try:
        before = identity(theirs)
        journal = here.journal()
        with pytest.raises(NetnsError, match="was made by somebody else"):
            build(pods_on_a_node(here.prefix), journal, here.private)
        assert not exists(here.namespace("node"))  # refused before anything was made
        # As if the record named it, after a crash between writing and making.
        journal.namespace(here.namespace("pod3"))
        tear_down(journal)
        assert identity(theirs) == before
    finally:
        if way == "mount":
            libc.unmount(str(theirs))
        theirs.unlink()


def test_the_callers_thread_stays_where_it_is(here: World) -> None:
    before = identity(Path("/proc/thread-self/ns/net"))
    namespace = create(f"{here.prefix}-one", here.private)
    try:
        assert run_in(namespace, identity, Path("/proc/thread-self/ns/net")) == identity(namespace.path)
        assert run_in(namespace, cookie) != cookie()
        with socket_in(namespace, socket.AF_INET, socket.SOCK_STREAM) as inside:
            assert inside.getsockopt(socket.SOL_SOCKET, 71, 8) != cookie().to_bytes(8, "little")
        with pytest.raises(ZeroDivisionError):
            run_in(namespace, lambda: 1 // 0)
        assert identity(Path("/proc/thread-self/ns/net")) == before
    finally:
        remove_namespace(namespace)
    assert here.leftovers() == []


def test_people_reach_it_by_name(here: World) -> None:
    build(pods_on_a_node(here.prefix), here.journal(), here.private)
    name = here.namespace("pod2").name
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert name in listed.split()
    seen = subprocess.run(
        ["ip", "netns", "exec", name, "ip", "-br", "addr"], check=True, capture_output=True, text=True
    )
    assert "10.77.0.2/32" in seen.stdout


def test_a_later_ip_netns_add_cannot_hide_anything_of_ours(here: World) -> None:
    """`ip netns add` mounts /run/netns over itself with all that is in it; tried where it disturbs nobody."""
    journal = here.journal()
    theirs = f"{here.prefix}x-theirs"
    pid = os.fork()
    if pid == 0:
        try:
            libc.unshare(libc.CLONE_NEWNS)
            libc.mount("none", "/", None, libc.MS_SLAVE | libc.MS_REC)
            build(pods_on_a_node(here.prefix), journal, here.private)
            subprocess.run(["ip", "netns", "add", theirs], check=True)
            tear_down(journal)
            left = here.leftovers()
            subprocess.run(["ip", "netns", "del", theirs], check=True)
            os._exit(len(left))
        finally:
            os._exit(100)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_processes_are_ended_even_if_somebody_took_the_mount_away(here: World) -> None:
    journal = here.journal()
    build(pods_on_a_node(here.prefix), journal, here.private)
    sleeper = process.spawn(["sleep", "60"], ns=here.namespace("pod2"))
    subprocess.run(["ip", "netns", "del", here.namespace("pod2").name], check=True)
    assert not exists(here.namespace("pod2"))
    assert process.is_alive(sleeper)
    tear_down(journal, grace=0)
    assert process.exit_status(sleeper) == -9
    assert here.leftovers() == []


@pytest.mark.parametrize("address", ["10.77.0.3", "fd77::3"])
def test_every_refused_packet_gets_its_own_error(here: World, address: str) -> None:
    """Linux's limits would answer six of them at once, then one a second."""
    build(pods_on_a_node(here.prefix), here.journal(), here.private)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert reaches(here.namespace("pod2"), here.namespace("pod3"), address)
    with socket_in(here.namespace("pod2"), family, socket.SOCK_DGRAM) as client:
        client.connect((address, 9))
        client.settimeout(10)
        for _ in range(100):
            client.send(b"nobody listens")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)
