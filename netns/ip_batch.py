"""The same topology made by ip(8) in batches: the yardstick for what Python adds to the kernel's own work.

It runs where nobody sees it (a mount namespace with an empty /run/netns, a network namespace of its own), and all of it
goes when the measuring process ends, however it ends. Sysctls are left out: ip(8) sets none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from netns import libc
from netns.errors import NetnsError
from netns.namespace import PUBLIC_DIR
from netns.topology import End, Topology


@dataclass(frozen=True)
class Script:
    """One run of a tool in batch mode.

    Attributes:
        command: the tool with its arguments; it reads `text`.
        text: one command a line, without the tool's name.
    """

    command: tuple[str, ...]
    text: str


def scripts(topology: Topology) -> tuple[Script, ...]:
    """What a person would feed to ip(8) and bridge(8) for this topology: namespaces and cables, then each inside."""
    names = topology.namespace_names()
    return (
        Script(("ip", "-batch", "-"), "".join(_outer(topology))),
        *(Script(("ip", "-n", name, "-batch", "-"), "".join(_inner(topology, name))) for name in names),
        *(
            Script(("ip", "-n", name, "-batch", "-"), text)
            for name in names
            if (text := "".join(_routes(topology, name)))
        ),
        *(
            Script(("bridge", "-n", name, "-batch", "-"), text)
            for name in names
            if (text := "".join(_forwarding(topology, name)))
        ),
    )


def measure(topology: Topology) -> float:
    """Seconds that the tools take for `topology`, the starting of their processes included.

    Raises:
        NetnsError: a tool is missing or refused something.
    """
    for tool in ("ip", "bridge"):
        if shutil.which(tool) is None:
            raise NetnsError(f"{tool} is not installed", left="it comes with the Debian package iproute2")
    prepared = scripts(topology)
    PUBLIC_DIR.mkdir(mode=0o755, exist_ok=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _measure_here(prepared, write)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    try:
        return float(answer)
    except ValueError:
        raise NetnsError("the topology cannot be measured", call=answer.strip()) from None


def _measure_here(prepared: tuple[Script, ...], write: int) -> NoReturn:
    """The measuring process, which never returns to what it was forked from."""
    try:
        libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWNET)
        libc.mount("none", "/", None, libc.MS_PRIVATE | libc.MS_REC)
        libc.mount("netns", str(PUBLIC_DIR), "tmpfs", 0)
        start = time.monotonic()
        for script in prepared:
            subprocess.run(script.command, input=script.text, text=True, capture_output=True, check=True)  # noqa: S603
        os.write(write, str(time.monotonic() - start).encode())
    except subprocess.CalledProcessError as error:
        os.write(write, f"{' '.join(error.cmd)}: {error.stderr}".encode())
    except OSError as error:
        os.write(write, str(error).encode())
    finally:
        os._exit(0)


def _outer(topology: Topology) -> Iterator[str]:
    for name in topology.namespace_names():
        yield f"netns add {name}\n"
    for veth in topology.veths:
        yield f"link add {_end(veth.a)} mtu {veth.mtu} type veth peer {_end(veth.b)} mtu {veth.mtu}\n"


def _end(end: End) -> str:
    address = f" address {end.mac}" if end.mac else ""
    return f"name {end.ifname} netns {end.namespace}{address}"


def _inner(topology: Topology, name: str) -> Iterator[str]:
    yield "link set lo up\n"
    yield from _bridges(topology, name)
    yield from _tunnels(topology, name)
    alias = f" alias {topology.alias}" if topology.alias else ""
    for end in topology.link_ends():
        if end.namespace == name:
            yield f"link set {end.ifname} up{alias}\n"
    for spec in topology.addresses:
        if spec.namespace == name:
            yield f"address add {spec.address} dev {spec.ifname}{' nodad' if ':' in spec.address else ''}\n"
    for neighbour in topology.neighbours:
        if neighbour.namespace == name:
            yield f"neighbour add {neighbour.address} lladdr {neighbour.mac} dev {neighbour.dev} nud permanent\n"


def _bridges(topology: Topology, name: str) -> Iterator[str]:
    for bridge in topology.bridges:
        if bridge.namespace == name:
            yield f"link add {bridge.ifname} mtu {bridge.mtu} type bridge stp_state 0 mcast_snooping 0\n"
            for port in bridge.ports:
                yield f"link set {port} master {bridge.ifname}\n"


def _tunnels(topology: Topology, name: str) -> Iterator[str]:
    for vxlan in topology.vxlans:
        if vxlan.namespace == name:
            address = f"address {vxlan.mac} " if vxlan.mac else ""
            yield (
                f"link add {vxlan.ifname} mtu {vxlan.mtu} {address}type vxlan id {vxlan.vni} local {vxlan.local}"
                f" dev {vxlan.underlay} dstport {vxlan.port} nolearning\n"
            )


def _routes(topology: Topology, name: str) -> Iterator[str]:
    for route in topology.routes:
        if route.namespace == name:
            words = [
                f"via {route.via}" if route.via else "",
                f"dev {route.dev}" if route.dev else "",
                "onlink" if route.onlink else "",
                f"src {route.src}" if route.src else "",
            ]
            yield " ".join(["route add", route.to, *filter(None, words)]) + "\n"


def _forwarding(topology: Topology, name: str) -> Iterator[str]:
    for entry in topology.forwarding:
        if entry.namespace == name:
            yield f"fdb append {entry.mac} dev {entry.dev} dst {entry.to}\n"
