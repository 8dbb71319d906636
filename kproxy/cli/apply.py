"""``kproxy apply``, ``delete`` and ``diff``: manifests in, all or nothing, and word from the nodes that it is done."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kproxy.api import manifest
from kproxy.api.field_errors import DUPLICATE
from kproxy.api.kinds import BY_API, KINDS, NAMESPACE, Kind
from kproxy.api.manifest import Document, duplicates
from kproxy.api.types import Object
from kproxy.cli import candidates, waiting
from kproxy.cli.connection import connect, lab_option, lab_status, namespace_option, the_lab
from kproxy.cli.descriptions import without_last_applied
from kproxy.cli.documents import pass_over_cluster_files, put_in_namespace, read_paths
from kproxy.cli.durations import seconds, whole_seconds
from kproxy.cli.get import Target, parse_targets, render, resource
from kproxy.cli.main import report
from kproxy.cli.waiting import Deadline, Named
from kproxy.client import Applied, ApplyResult, Client
from kproxy.cluster.layout import Layout
from kproxy.errors import Finding, Invalid, InvalidInput, NotFound, UserError

WAIT = 30
"""Seconds that apply and delete wait for the nodes unless told otherwise."""

NOT_CONFIGURED = "not configured on this cluster"
"""What Kubernetes says of an address family that the cluster does not have."""

_files = click.option(
    "-f",
    "--filename",
    "files",
    type=click.Path(),
    metavar="PATH",
    multiple=True,
    help="A manifest, a folder of them, or - for stdin.",
)
_wait = click.option(
    "--wait",
    type=seconds,
    default=f"{WAIT}s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait until every node holds the change; 0 does not wait.",
)


@click.command
@_files
@click.argument("more", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option("--dry-run", is_flag=True, help="Say what would come of it, and change nothing.")
@_wait
@namespace_option
@lab_option
def apply(files: tuple[str, ...], more: tuple[str, ...], lab: str | None, **options: Any) -> None:
    """Create or change objects as the manifests say: all of them, or none.

    Returns when the applied workloads are ready and every node's proxy has programmed the change.
    """
    layout = the_lab(lab)
    client = connect(layout)
    began = time.monotonic()
    documents = _checked([*files, *more], options["namespace"], layout, client)
    result = _send(client, documents, dry_run=options["dry_run"])
    _tell(result, documents, suffix=" (dry run)" if options["dry_run"] else "")
    if options["dry_run"] or not options["wait"]:
        return
    objects = [
        Named(kind, applied.namespace, applied.name)
        for applied in result.results
        if (kind := _kind_of(documents[applied.index]))
    ]
    deadline = Deadline(options["wait"])
    waiting.wait_for_workloads(client, objects, deadline)
    _wait_for_nodes(layout, client, objects, deadline, began)


@click.command
@_files
@click.argument(
    "words", metavar="[KIND NAME... | KIND/NAME... | PATH...]", nargs=-1, shell_complete=candidates.resources
)
@click.option("--ignore-not-found", is_flag=True, help="What does not exist counts as deleted.")
@click.option(
    "--grace-period", type=whole_seconds, default=None, metavar="DURATION", help="How long a pod's processes may take."
)
@_wait
@namespace_option
@lab_option
def delete(files: tuple[str, ...], words: tuple[str, ...], lab: str | None, **options: Any) -> None:
    """Delete the objects that manifests name (-f), or those named on the command line."""
    layout = the_lab(lab)
    client = connect(layout)
    began = time.monotonic()
    if files:
        documents = _checked([*files, *words], options["namespace"], layout, client, delete=True)
        deleted = _delete_documents(client, documents, ignore_not_found=options["ignore_not_found"])
    elif words and Path(words[0]).is_file():
        raise UserError(f"to delete what a manifest names, write -f {words[0]}")
    else:
        deleted = _delete_named(client, parse_targets(words), options)
    if options["wait"] and deleted:
        deadline = Deadline(options["wait"])
        leaving = list(deleted)
        deadline.until(lambda: _still_there(client, leaving))
        _wait_for_nodes(layout, client, [gone.named for gone in deleted], deadline, began)


@click.command
@_files
@click.argument("more", metavar="[PATH]...", nargs=-1, type=click.Path())
@namespace_option
@lab_option
def diff(files: tuple[str, ...], more: tuple[str, ...], lab: str | None, namespace: str) -> None:
    """Show what apply would change; exit status 1 when it would change anything."""
    layout = the_lab(lab)
    client = connect(layout)
    documents = _checked([*files, *more], namespace, layout, client)
    result = _send(client, documents, dry_run=True)
    texts = [text for applied in result.results if (text := _difference(client, applied))]
    click.echo("".join(texts), nl=False)
    click.get_current_context().exit(1 if texts else 0)


# ----- reading and sending


def _checked(
    paths: Sequence[str], namespace: str, layout: Layout, client: Client, *, delete: bool = False
) -> list[Document]:
    """The documents of all paths, free of what can be found wrong before the server sees them.

    Raises:
        InvalidInput: with the reader's findings and, so that one run shows them all, the server's on the rest.
    """
    if not paths:
        raise UserError("name a manifest: -f FILE, -f FOLDER, or -f - for standard input")
    manifests = pass_over_cluster_files(read_paths(paths), layout)
    source = click.get_current_context().get_parameter_source("namespace")
    put_in_namespace(manifests, namespace, is_explicit=source is not ParameterSource.DEFAULT)
    repeated = [manifests.documents[index].findings([error]) for index, error in duplicates(manifests.documents)]
    findings = [*manifests.findings, *chain.from_iterable(repeated)]
    if findings:
        if manifests.documents and not delete:
            try:
                _send(client, manifests.documents, dry_run=True)
            except InvalidInput as error:
                findings += _without_repeats(error.findings, findings)
        raise InvalidInput(findings)
    if not manifests.documents:
        raise UserError(f"nothing to apply in {', '.join(paths)}")
    return manifests.documents


def _without_repeats(servers: Iterable[Finding], ours: Iterable[Finding]) -> list[Finding]:
    """The server's findings but for the names it finds twice, where we have said so with the place of the first."""
    told = {(finding.file, finding.line, finding.field) for finding in ours}
    return [
        finding
        for finding in servers
        if not finding.reason.startswith(DUPLICATE.words) or (finding.file, finding.line, finding.field) not in told
    ]


def _send(client: Client, documents: Sequence[Document], *, dry_run: bool = False, delete: bool = False) -> ApplyResult:
    """What the server made of the documents.

    Raises:
        InvalidInput: it refused; its causes are told by file and line.
    """
    try:
        return client.apply([{"object": document.obj} for document in documents], dry_run=dry_run, delete=delete)
    except Invalid as error:
        findings = findings_of(error, documents)
        if not findings:
            raise
        if any(NOT_CONFIGURED in finding.reason for finding in findings):
            _tell_families(client)
        raise InvalidInput(findings) from error


def _tell_families(client: Client) -> None:
    """What the lab has instead of the family that a manifest asks for, and how to get a lab that has it."""
    has = " and ".join(lab_status(client).ip_families)
    hint = "leave clusterIP and ipFamilies out, or bring a lab up with --ip-family ipv4, ipv6 or dual"
    click.echo(f"note: this lab has {has}; {hint}", err=True)


def findings_of(error: Invalid, documents: Sequence[Document]) -> list[Finding]:
    """The causes of a refused apply, each where its field is written; empty when the server named none."""
    causes = (error.status.get("details") or {}).get("causes") or ()
    return [
        manifest.finding(document.origin, document.obj, str(cause.get("field", "")), str(cause["message"]))
        for cause in causes
        if isinstance(cause.get("index"), int)
        for document in documents[cause["index"] : cause["index"] + 1]
    ]


# ----- telling


def _tell(result: ApplyResult, documents: Sequence[Document], suffix: str = "") -> None:
    for warning in result.warnings:
        document = documents[warning.index]
        place = f"{document.origin.file}:{document.origin.line}: {manifest.subject(document.obj)}"
        click.echo(f"note: {place}: {warning.message}", err=True)
    for applied in result.results:
        click.echo(f"{_resource_name(applied, documents[applied.index])}/{applied.name} {applied.outcome}{suffix}")


def _resource_name(applied: Applied, document: Document) -> str:
    kind = _kind_of(document)
    return resource(kind) if kind else applied.kind.lower()


def _kind_of(document: Document) -> Kind | None:
    return BY_API.get((str(document.obj.get("apiVersion")), str(document.obj.get("kind"))))


def _difference(client: Client, applied: Applied) -> str:
    """A unified diff of the stored object and what it would become; empty when nothing would change."""
    kind = next(kind for kind in KINDS if kind.name == applied.kind)
    if applied.outcome == "unchanged":
        return ""
    try:
        before = _told(client.get(kind, applied.name, applied.namespace or None))
    except NotFound:
        before = []
    name = f"{resource(kind)}/{applied.name}"
    lines = difflib.unified_diff(before, _told(applied.object), f"{name} (now)", f"{name} (applied)")
    return "".join(lines)


def _told(obj: Object) -> list[str]:
    """An object's YAML without what the server counts up by itself."""
    counted = ("resourceVersion", "generation", "uid", "creationTimestamp", "managedFields")
    metadata = {key: value for key, value in obj["metadata"].items() if key not in counted}
    metadata["annotations"] = without_last_applied(metadata.get("annotations"))
    return [f"{line}\n" for line in render({**obj, "metadata": metadata}, "yaml").splitlines()]


# ----- deleting


@dataclass(frozen=True)
class Gone:
    """An object that is on its way out; another one of the same name has another uid."""

    named: Named
    uid: str


def _delete_documents(client: Client, documents: Sequence[Document], *, ignore_not_found: bool) -> list[Gone]:
    present = []
    missing = []
    for document in documents:
        kind = _kind_of(document)
        if kind is None or manifest.identity(document.obj) is None:
            reason = "no kind and name of an object to delete"
            raise InvalidInput([manifest.finding(document.origin, document.obj, "", reason)])
        metadata = document.obj["metadata"]
        try:
            stored = client.get(kind, metadata["name"], metadata.get("namespace") if kind.namespaced else None)
        except NotFound as error:
            missing.append(error)
            continue
        present.append((document, _gone(kind, stored)))
    if missing and not ignore_not_found:
        for absent in missing[:-1]:
            report(absent)
        raise missing[-1]
    _send(client, [document for document, _ in present], delete=True)
    for _, gone in present:
        click.echo(f'{resource(gone.named.kind)} "{gone.named.name}" deleted')
    return [gone for _, gone in present]


def _delete_named(client: Client, targets: Iterable[Target], options: dict[str, Any]) -> list[Gone]:
    found: list[Gone] = []
    for target in targets:
        if not target.name:
            raise UserError(f"resource(s) were provided, but no name was specified: {target.kind.plural}")
        namespace = options["namespace"] if target.kind.namespaced else None
        try:
            stored = client.get(target.kind, target.name, namespace)
            client.delete(target.kind, target.name, namespace, grace_seconds=options["grace_period"])
        except NotFound:
            if not options["ignore_not_found"]:
                raise
            continue
        found.append(_gone(target.kind, stored))
        click.echo(f'{resource(target.kind)} "{target.name}" deleted')
    return found


def _gone(kind: Kind, stored: Object) -> Gone:
    metadata = stored["metadata"]
    return Gone(Named(kind, metadata.get("namespace", ""), metadata["name"]), metadata["uid"])


def _still_there(client: Client, leaving: list[Gone]) -> list[str]:
    """Those that are not gone yet, in words; forgets the others."""
    while leaving:
        named = leaving[0].named
        try:
            if client.get(named.kind, named.name, named.namespace or None)["metadata"]["uid"] == leaving[0].uid:
                return [f"{named}: not gone yet"]
        except NotFound:
            pass
        del leaving[0]
    return []


# ----- waiting


def _wait_for_nodes(layout: Layout, client: Client, objects: Sequence[Named], deadline: Deadline, began: float) -> None:
    waiting.wait_for_slices(client, frozenset(named.namespace for named in objects if named.namespace), deadline)
    status = lab_status(client)
    for note in waiting.wait_for_load_balancers(layout, client, status, objects, deadline):
        click.echo(f"note: {note}", err=True)
    # Any list tells the newest revision of all kinds; what the slices and balancers needed is at or before it.
    newest = client.list(NAMESPACE).resource_version
    programmed = waiting.wait_for_nodes(layout, status, newest, deadline)
    click.echo(programmed.sentence(time.monotonic() - began))
