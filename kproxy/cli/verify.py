"""``kproxy verify``: the proof, row by row."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress as Bar

from kproxy.api.types import Service
from kproxy.cli.connection import connect, lab_option, the_lab
from kproxy.errors import HostError, UserError
from kproxy.insight import report
from kproxy.insight.rows import rows
from kproxy.insight.verify import Progress, Proof, Prover
from kproxy.insight.view import Surroundings, look
from netns.errors import NetnsError

OWN_SERVICE = ("default", "kubernetes")
"""The API's own Service: what answers there is no pod, and cannot say who asked."""

PIPE_WIDTH = 200
"""Columns of the table where the output is no terminal."""


@click.command()
@click.argument("services", nargs=-1, metavar="[SERVICE | NAMESPACE/SERVICE]...")
@click.option("-n", "--namespace", metavar="NS", help="Only Services of this namespace. Default: all namespaces.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "junit"]), default="table", show_default=True)
@click.option("--no-why", is_flag=True, help="Leave out which chains the packets crossed: one pass instead of two.")
@lab_option
def verify(services: tuple[str, ...], namespace: str | None, output: str, no_why: bool, lab: str | None) -> None:
    """Send packets from every kind of client to every frontend, and compare with what Kubernetes promises.

    Exit status 1 if any row is different.
    """
    surroundings = look(connect(the_lab(lab)))
    chosen = choose(surroundings.view.services, services, namespace)
    planned = rows(surroundings.view, chosen)
    if not planned and (services or namespace):
        raise UserError("nothing to verify: no Service with a cluster IP among those meant")
    if not planned:
        click.echo("note: no Service to verify yet; default/kubernetes leads to the API, which is no pod", err=True)
        _print([], output, surroundings)
        return
    try:
        with _progress() as progress, Prover(surroundings, planned, progress) as prover:
            proofs = prover.prove()
            if not no_why:
                proofs = prover.explain(proofs)
    except NetnsError as error:
        raise HostError("the proof was broken off", stderr=str(error)) from error
    _print(proofs, output, surroundings)
    sys.exit(0 if all(proof.is_ok for proof in proofs) else 1)


def choose(existing: Sequence[Service], named: Sequence[str], namespace: str | None) -> list[Service]:
    """The Services that are meant; never ``default/kubernetes``.

    Raises:
        UserError: one that is named does not exist, or cannot be verified.
    """
    by_name = {(service.metadata.namespace, service.metadata.name): service for service in existing}
    if not named:
        return [service for key, service in by_name.items() if namespace in (None, key[0]) and key != OWN_SERVICE]
    chosen: dict[tuple[str, str], Service] = {}
    for word in named:
        first, slash, second = word.removeprefix("service/").removeprefix("svc/").partition("/")
        key = (first, second) if slash else (namespace or "default", first)
        if key not in by_name:
            raise UserError(f'services "{"/".join(key)}" not found')
        if key == OWN_SERVICE:
            raise UserError("default/kubernetes cannot be verified: the lab's API answers there, which is no pod")
        chosen[key] = by_name[key]
    return list(chosen.values())


def _print(proofs: Sequence[Proof], output: str, surroundings: Surroundings) -> None:
    match output:
        case "json":
            click.echo(json.dumps(report.as_json(proofs), indent=2))
        case "junit":
            click.echo(report.as_junit(proofs), nl=False)
        case _:
            names = {address: pod.name for address, pod in surroundings.view.pod_by_address.items()}
            console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
            console.print(report.as_table(proofs, names))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    with Bar(console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
