"""Running programs inside a lab: with the lab's iptables variant first in PATH, and the node's own xtables lock."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from kproxy.cluster import sandbox
from kproxy.cluster.layout import Layout
from kproxy.errors import HostError
from netns.journal import Journal
from netns.namespace import named, run_in
from netns.process import exec_in as enter_and_exec

VARIANTS: Final = ("legacy", "nft")
_PROGRAMS: Final = tuple(
    f"{family}{program}" for family in ("iptables", "ip6tables") for program in ("", "-save", "-restore")
)


def tool_path(variant: str, program: str) -> str | None:
    """Where a variant's own program is (`iptables-save` of `legacy`: iptables-legacy-save); None when not installed."""
    family, dash, verb = program.partition("-")
    return shutil.which(f"{family}-{variant}{dash}{verb}", path=sandbox.PATH)


def link_tools(layout: Layout, variant: str, journal: Journal) -> None:
    """Ensures that the lab's `iptables`, `iptables-save`, ... are those of the variant.

    Raises:
        HostError: they are not installed.
    """
    for program in _PROGRAMS:
        target = tool_path(variant, program)
        if target is None:
            raise HostError(f"{program} of the variant {variant} is not installed", command=[program])
        link = layout.tools / program
        if not link.is_symlink() or str(link.readlink()) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    journal.step("links to the iptables tools")


def environment(layout: Layout, node: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program on a node.

    Args:
        layout: the lab.
        node: whose xtables lock it takes.
        base: everything else.
    """
    path = base.get("PATH") or sandbox.PATH
    return {
        **base,
        "PATH": f"{layout.tools}{os.pathsep}{path}",
        "XTABLES_LOCKFILE": str(layout.xtables_lock(node)),
    }


def run_on(layout: Layout, node: str, argv: Sequence[str], text: str = "") -> str:
    """What a program says on standard output when it is run on a node with `text` as its input.

    Raises:
        HostError: it failed.
    """
    ns = named(layout.netns(node), layout.namespaces)
    done = run_in(
        ns,
        subprocess.run,
        list(argv),
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=environment(layout, node, {"PATH": sandbox.PATH}),
    )
    if done.returncode != 0:
        raise HostError(f"a program failed on {node}", command=argv, stderr=done.stderr)
    return str(done.stdout)


def exec_in(layout: Layout, netns: str, argv: Sequence[str]) -> NoReturn:
    """Becomes the program `argv` as root in the network namespace of a node, a client or the router.

    Args:
        layout: the lab.
        netns: name of the network namespace.
        argv: program and arguments.

    Raises:
        NetnsError: there is no such namespace, or the program cannot be run.
    """
    member = netns.removeprefix(layout.netns(""))
    enter_and_exec(named(netns, layout.namespaces), argv, environment(layout, member, os.environ))
