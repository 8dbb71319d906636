"""``kproxy lab``: bringing a lab up, taking it down, and saying what it consists of."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import msgspec

from kproxy.api import columns, manifest
from kproxy.cli import tables
from kproxy.cli.connection import lab_option, need_root, the_lab
from kproxy.cli.documents import read_paths
from kproxy.cluster import clusterfile, host_check, host_probes
from kproxy.cluster import lab as labs
from kproxy.cluster.clusterfile import PROXY_MODES, Overrides
from kproxy.cluster.layout import Layout, check_lab_name, current_lab
from kproxy.cluster.layout import labs as existing_labs
from kproxy.cluster.status import LabStatus
from kproxy.cluster.topology import infrastructure
from kproxy.errors import InvalidInput, UserError
from netns.ip_batch import measure

FAMILIES = {"ipv4": ("IPv4",), "ipv6": ("IPv6",), "dual": ("IPv4", "IPv6")}
"""kind's words for the address families of a cluster."""


@click.group
def lab() -> None:
    """Bring a cluster of network namespaces up, down, or show it."""


@lab.command(short_help="Bring a lab up; three nodes, a router and a client by default")
@click.option(
    "-f",
    "--filename",
    "path",
    type=click.Path(),
    metavar="CLUSTER.yaml",
    help="A cluster file, or a folder with one in it.",
)
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes.  [default: 3]")
@click.option("--network", type=click.Choice(["host-gw", "vxlan"]), help="How pods reach other nodes.")
@click.option("--ip-family", type=click.Choice(list(FAMILIES)), help="IPv4, IPv6 or both.  [default: ipv4]")
@click.option("--service-node-port-range", metavar="FROM-TO", help="Ports for Services.  [default: 30000-32767]")
@click.option("--dns-replicas", type=click.IntRange(min=0), help="Pods that serve the cluster's names.  [default: 2]")
@click.option("--proxy-mode", type=click.Choice(PROXY_MODES), help="none: bring your own proxy.")
@click.option("--iptables-variant", type=click.Choice(["auto", "legacy", "nft"]), help="Which iptables the nodes use.")
@click.option("--expose", metavar="ADDRESS", help="Make TCP node ports reachable at this address of the host.")
@click.option("--timings", is_flag=True, help="Say where the time went.")
@lab_option
def up(lab: str | None, path: str | None, timings: bool, expose: str | None, **options: Any) -> None:
    """Bring a lab up: by itself three nodes in two zones, a router, and a client outside.

    What the command line says stands above the cluster file.
    """
    started = _seconds_since_start()
    need_root()
    if lab:
        check_lab_name(lab)
    families = options.pop("ip_family")
    overrides = Overrides(lab=lab, ip_families=FAMILIES[families] if families else None, **options)
    config = clusterfile.read(_cluster_documents(path), overrides, _wrong_flags)
    if expose:
        import_module("kproxy.cluster.relay").check_address(expose)
    is_stated = bool(path or families or any(value is not None for value in options.values()))
    began = time.monotonic()
    with _Progress() as progress:
        try:
            result = labs.up(config, progress.tell, is_stated=is_stated)
        except KeyboardInterrupt:
            click.echo(f"\nstopped waiting; `kproxy lab down --lab {config.name}` removes what is there", err=True)
            raise
    if result.was_up:
        click.echo(f'lab "{config.name}" is up already')
        _expose(config.name, expose)
        return
    for limit in result.limits:
        click.echo(f"note: {limit}", err=True)
    click.echo(f'lab "{config.name}" is up: {_summary(result.status)} ({time.monotonic() - began:.1f} s)')
    _expose(config.name, expose)
    if timings:
        rows = [("Python's start-up", started), *result.timings]
        rows.append(("for comparison: ip -batch of the same network", measure(infrastructure(config))))
        click.echo("\n".join(tables.layout([["WHAT", "SECONDS"], *([what, f"{took:.3f}"] for what, took in rows)])))


def _expose(name: str, address: str | None) -> None:
    if address is None:
        return
    is_new = import_module("kproxy.cluster.relay").expose(Layout(name), address)
    click.echo(f"its TCP node ports are {'now' if is_new else 'already'} reachable at {address}")


@lab.command(short_help="Take a lab down and leave the host as it was")
@lab_option
def down(lab: str | None) -> None:
    """Take a lab down and leave the host as it was; also after a crash, also twice."""
    need_root()
    wanted = lab or ""
    if wanted:
        check_lab_name(wanted)
    if (wanted and wanted not in existing_labs()) or not existing_labs():
        click.echo(f'lab "{wanted}" is not up: nothing to do' if wanted else "no lab is up: nothing to do")
        return
    layout = current_lab(lab)
    labs.down(layout.lab)
    click.echo(f'lab "{layout.lab}" is down')


@lab.command(short_help="Say what this host lacks for a lab")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(output: str) -> None:
    """Say what this host lacks for a lab, what will not work without it, and how to get it.

    Everything is tried out, in a network namespace that nobody else sees. The exit status is 0 if a lab comes up here.
    """
    report = host_check.judge(host_probes.look(), host_check.Needs())
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        click.echo("\n".join(_verdicts(report)))
    if not report.ok:
        sys.exit(1)


@lab.command(short_help="Show nodes, clients, pods and processes")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@lab_option
def status(lab: str | None, output: str) -> None:
    """Show nodes, clients, pods and processes of a lab, with their namespaces and addresses."""
    found = labs.status(the_lab(lab).lab)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    click.echo("\n\n".join(_sections(found)))


@lab.command(short_help="Make every node's proxy write its rules anew")
@lab_option
def resync(lab: str | None) -> None:
    """Make every node's proxy write all of its rules anew."""
    labs.resync(the_lab(lab).lab)
    click.echo("every proxy has written its rules anew")


@lab.command(short_help="Print a kubeconfig for kubectl and other clients")
@click.option("--in-lab", is_flag=True, help="For clients in the lab's own network: nodes, pods, the outside.")
@click.option("--node", metavar="NODE", help="With that node's token, which may do what a node may; implies --in-lab.")
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="Write it there, readable by you alone.")
@lab_option
def kubeconfig(lab: str | None, in_lab: bool, node: str | None, output: str | None) -> None:
    """Print a kubeconfig with which kubectl and client libraries reach the lab's API.

    By itself it works from the host and may do everything; what else there is, docs/api.md says.
    """
    layout = the_lab(lab)
    doors, files = (import_module(f"kproxy.cluster.{name}") for name in ("doors", "kubeconfig"))
    rights = import_module("kproxy.cluster.rights")
    who = rights.node_identity(node) if node else rights.ADMIN
    find = doors.in_lab_access if in_lab or node else doors.host_access
    text = files.as_yaml(find(layout, labs.configuration(layout), who))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        import_module("kproxy.cluster.tokens").write_private(Path(output), text.encode())
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}") from error


def _verdicts(report: host_check.Report) -> list[str]:
    """A table of everything, and what follows from what is not ok."""
    rows = [[one.what, one.state, one.detail or columns.NONE] for one in report.conditions]
    lines = tables.layout([["CHECK", "STATE", "FOUND"], *rows])
    for one in report.conditions:
        if one.effect:
            lines += ["", f"{one.what} ({one.state}): {one.effect}"]
            lines += [f"  to get it: {one.remedy}"] if one.remedy else []
    return [*lines, "", "A lab comes up here." if report.ok else "No lab comes up here."]


def _cluster_documents(path: str | None) -> Sequence[manifest.Document]:
    if path is None:
        return []
    if path != "-" and Path(path).is_dir():
        path = str(Path(path) / "cluster.yaml")
    found = read_paths([path])
    if found.findings:
        raise InvalidInput(found.findings)
    return found.documents


def _wrong_flags(flags: Mapping[str, str]) -> list[tuple[str, str]]:
    """What `kproxy proxy` would say to these flags: name of the flag, empty for all together, and the complaint."""
    parser = import_module("kproxy.proxy.flags")  # late: most cluster files set none
    found = []
    for name, value in flags.items():
        try:
            parser.parse_flags([f"--{name}={value}"])
        except UserError as error:
            found.append((name, str(error)))
    if found:
        return found
    try:
        parser.parse_arguments([f"--{name}={value}" for name, value in flags.items()])
    except UserError as error:
        return [("", line) for line in str(error).splitlines()]
    return []


class _Progress:
    """One line on a terminal that says what is being done, gone when it is done; silent elsewhere."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def tell(self, what: str) -> None:
        """Show what is being done now."""
        self._write(f"{what} ...")

    def _write(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def _summary(found: LabStatus) -> str:
    nodes = f"{len(found.nodes)} node{'s' * (len(found.nodes) != 1)}"
    clients = f"{len(found.clients)} client{'s' * (len(found.clients) != 1)}"
    return f"{nodes}, {clients} outside, {len(found.pods)} pods"


def _seconds_since_start() -> float:
    """How long this process has been running, to the clock tick (10 ms)."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _sections(found: LabStatus) -> list[str]:
    facts = [
        ["Lab:", found.name],
        ["Pods:", f"{', '.join(found.pod_cidrs)} by {found.pod_network}"],
        ["Services:", f"{', '.join(found.service_cidrs)}, node ports {found.node_port_range}"],
        ["iptables:", found.proxy.variant],
        ["API:", found.api_socket],
        ["Router:", f"{', '.join(found.router.addresses)} in {found.router.namespace}"],
    ]
    facts += [["Outside:", f"{route.to} by way of {route.via}"] for route in found.external_routes]
    return [
        "\n".join(tables.layout(facts)),
        _section(
            ["NODE", "ADDRESSES", "ZONE", "POD-CIDRS", "PROXY", "READY", "NAMESPACE"],
            found.nodes,
            lambda node: [
                node.name,
                ",".join(node.addresses),
                node.zone,
                ",".join(node.pod_cidrs),
                node.proxy,
                _yes(node.ready),
                node.namespace,
            ],
        ),
        _section(
            ["CLIENT", "ADDRESSES", "ROUTES", "NAMESPACE"],
            found.clients,
            lambda client: [client.name, ",".join(client.addresses), ",".join(client.routes), client.namespace],
        ),
        *_unless_empty(
            ["POD", "ADDRESSES", "NODE", "READY", "ECHO", "NAMESPACE"],
            found.pods,
            lambda pod: [
                f"{pod.namespace_}/{pod.name}",
                ",".join(pod.addresses),
                pod.node,
                _yes(pod.ready),
                _yes(pod.echo),
                pod.namespace or columns.NONE,
            ],
        ),
        _section(["PROCESS", "PID", "WHERE"], found.processes, lambda entry: [entry.role, str(entry.pid), entry.where]),
    ]


def _section(header: list[str], entries: Sequence[Any], row: Callable[[Any], list[str]]) -> str:
    return "\n".join(tables.layout([header, *(row(entry) for entry in entries)]))


def _unless_empty(header: list[str], entries: Sequence[Any], row: Callable[[Any], list[str]]) -> list[str]:
    return [_section(header, entries, row)] if entries else []


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
