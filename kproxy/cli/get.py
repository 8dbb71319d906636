"""``kproxy get`` and ``kproxy describe``: looking at objects, in kubectl's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from kproxy.api.kinds import ENDPOINT_SLICE, EVENT, KINDS, NAMESPACE, NODE, POD, SERVICE, Kind
from kproxy.api.types import Object
from kproxy.cli import candidates, tables
from kproxy.cli.connection import connect, kind_named, lab_option, namespace_option, the_lab
from kproxy.cli.main import report
from kproxy.client import Client
from kproxy.errors import NotFound, UserError

ALL = tuple(kind for kind in KINDS if "all" in kind.categories)
"""What ``get all`` shows."""


@dataclass(frozen=True)
class Target:
    """What one word of the command line asks for; no name means the whole collection."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True)
class Request:
    """How the objects are chosen and shown; the fields are the options of ``kproxy get``."""

    namespace: str | None
    selector: str
    field_selector: str
    output: str
    no_headers: bool
    show_labels: bool
    show_managed_fields: bool = False


@click.command
@click.argument(
    "resources", metavar="KIND[,KIND] [NAME...] | KIND/NAME...", nargs=-1, shell_complete=candidates.resources
)
@click.option("-o", "--output", type=click.Choice(["wide", "yaml", "json", "name"]), default=None)
@click.option("-l", "--selector", default="", help="Label selector: app=web,tier!=cache.")
@click.option("--field-selector", default="", help="Field selector: metadata.name, spec.nodeName, ...")
@click.option("-A", "--all-namespaces", is_flag=True, help="Every namespace.")
@click.option("-w", "--watch", is_flag=True, help="Go on printing changes until interrupted.")
@click.option("--show-labels", is_flag=True, help="A column of labels.")
@click.option("--show-managed-fields", is_flag=True, help="Who set which fields, with -o yaml and json.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@namespace_option
@lab_option
def get(resources: tuple[str, ...], lab: str | None, **options: Any) -> None:
    """List objects, or show those named.

    KIND is one of the lab's kinds in singular, plural or kubectl's short form: pods (po), services (svc), nodes (no),
    deployments (deploy), replicasets (rs), statefulsets (sts), daemonsets (ds), configmaps (cm), events (ev),
    endpointslices, endpoints (ep), namespaces (ns), leases, servicecidrs, controllerrevisions; or all.
    """
    targets = parse_targets(resources)
    all_namespaces, watch = options.pop("all_namespaces"), options.pop("watch")
    options["output"] = options["output"] or ""
    request = Request(**options | {"namespace": None if all_namespaces else options["namespace"]})
    client = connect(the_lab(lab))
    if watch:
        _watch(client, targets, request)
    elif request.output in ("", "wide"):
        _print_tables(client, targets, request)
    else:
        _print_objects(client, targets, request)


def parse_targets(words: Sequence[str]) -> list[Target]:
    """What ``svc``, ``svc,po``, ``all``, ``svc web api`` and ``svc/web deploy/api`` ask for.

    Raises:
        UserError: no word, an unknown kind, or a mixture of the two ways to name objects.
    """
    if not words:
        raise UserError(f"name what to get: {', '.join(kind.plural for kind in KINDS)} or all")
    if any("/" in word for word in words):
        pairs = [word.partition("/") for word in words]
        if not all(name for _, _, name in pairs):
            raise UserError("there is no need to repeat the kind: write KIND NAME NAME, or KIND/NAME KIND/NAME")
        return [Target(kind_named(kind), name) for kind, _, name in pairs]
    asked = [known for word in words[0].split(",") for known in (ALL if word == "all" else (kind_named(word),))]
    names = words[1:] or ("",)
    return [Target(kind, name) for kind in asked for name in names]


def fetch(client: Client, target: Target, request: Request) -> tuple[list[Object], str]:
    """The objects, and the resourceVersion to watch from."""
    namespace = request.namespace if target.kind.namespaced else None
    if target.name:
        if target.kind.namespaced and namespace is None:
            raise UserError("a resource cannot be retrieved by name across all namespaces")
        obj = client.get(target.kind, target.name, namespace)
        return [obj], str(obj["metadata"]["resourceVersion"])
    listing = client.list(
        target.kind, namespace, label_selector=request.selector, field_selector=request.field_selector
    )
    return sorted(listing.items, key=_by_name), listing.resource_version


def _by_name(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _print_tables(client: Client, targets: Sequence[Target], request: Request) -> None:
    by_kind: dict[Kind, list[Object]] = {}
    missing: list[NotFound] = []
    for target in targets:
        try:
            by_kind.setdefault(target.kind, []).extend(fetch(client, target, request)[0])
        except NotFound as error:
            missing.append(error)
    shown = {kind: objects for kind, objects in by_kind.items() if objects}
    for index, (kind, objects) in enumerate(shown.items()):
        if index:
            click.echo()
        rows = _rows(kind, objects, request, several=len(by_kind) > 1)
        click.echo("\n".join(tables.layout(rows[1:] if request.no_headers else rows)))
    for absent in missing[:-1]:
        report(absent)
    if missing:
        raise missing[-1]
    if not shown:
        where = f" in {request.namespace} namespace" if request.namespace and targets[0].kind.namespaced else ""
        click.echo(f"No resources found{where}.", err=True)


def _rows(kind: Kind, objects: Sequence[Object], request: Request, *, several: bool = False) -> list[list[str]]:
    return tables.table(
        kind,
        objects,
        now=datetime.now(UTC),
        wide=request.output == "wide",
        with_namespace=request.namespace is None,
        with_labels=request.show_labels,
        prefix=f"{resource(kind)}/" if several else "",
    )


def resource(kind: Kind) -> str:
    """``pod``, ``deployment.apps``: how kubectl names a kind before a slash."""
    return f"{kind.name.lower()}.{kind.group}" if kind.group else kind.name.lower()


def _print_objects(client: Client, targets: Sequence[Target], request: Request) -> None:
    found = [(target.kind, obj) for target in targets for obj in fetch(client, target, request)[0]]
    if request.output == "name":
        for kind, obj in found:
            click.echo(f"{resource(kind)}/{obj['metadata']['name']}")
        return
    managers = request.show_managed_fields
    objects = [_complete(kind, obj, show_managed_fields=managers) for kind, obj in found]
    if len(targets) == 1 and targets[0].name:
        click.echo(render(objects[0], request.output))
    else:
        listing = {"apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""}}
        click.echo(render(listing, request.output))


def _complete(kind: Kind, obj: Object, *, show_managed_fields: bool = False) -> Object:
    """The object with apiVersion and kind, which items of a list may leave out, and its managers only if asked for."""
    hidden = () if show_managed_fields else ("managedFields",)
    metadata = {key: value for key, value in obj["metadata"].items() if key not in hidden}
    return {"apiVersion": kind.api_version, "kind": kind.name, **obj, "metadata": metadata}


def render(obj: Object, output: str) -> str:
    """An object as YAML or JSON, keys sorted as kubectl prints them."""
    if output == "json":
        return json.dumps(obj, indent=4, sort_keys=True, ensure_ascii=False)
    import yaml

    text: str = yaml.dump(obj, Dumper=yaml.CSafeDumper, sort_keys=True, allow_unicode=True, default_flow_style=False)
    return text.rstrip("\n")


def _watch(client: Client, targets: Sequence[Target], request: Request) -> None:
    if len(targets) != 1:
        raise UserError("you may only specify a single resource type to watch")
    target = targets[0]
    objects, version = fetch(client, target, request)
    widths = _print_changes(target.kind, objects, request, []) if objects else []
    for obj in _changes(client, target, request, version):
        widths = _print_changes(target.kind, [obj], request, widths)


def _changes(client: Client, target: Target, request: Request, version: str) -> Iterator[Object]:
    selector = f"metadata.name={target.name}" if target.name else request.field_selector
    events = client.watch(
        target.kind,
        resource_version=version,
        namespace=request.namespace if target.kind.namespaced else None,
        label_selector=request.selector,
        field_selector=selector,
    )
    return (event.object for event in events if event.type != "BOOKMARK")


def _print_changes(kind: Kind, objects: Sequence[Object], request: Request, widths: list[int]) -> list[int]:
    """Print objects, one or more; returns the column widths for those that follow.

    As with kubectl, columns are as wide as in the table before, or wider if these need more.
    """
    if request.output in ("", "wide"):
        rows = _rows(kind, objects, request)
        rows = rows if not widths and not request.no_headers else rows[1:]
        widths = tables.column_widths(rows, widths)
        click.echo("\n".join(tables.layout(rows, widths)))
        return widths
    for obj in objects:
        complete = _complete(kind, obj, show_managed_fields=request.show_managed_fields)
        match request.output:
            case "yaml":
                click.echo("---\n" + render(complete, "yaml"))
            case "json":
                click.echo(json.dumps(complete, ensure_ascii=False))
            case _:
                click.echo(f"{resource(kind)}/{obj['metadata']['name']}")
    return widths


@click.command
@click.argument("resources", metavar="KIND [NAME...] | KIND/NAME...", nargs=-1, shell_complete=candidates.resources)
@click.option("-A", "--all-namespaces", is_flag=True, help="Every namespace.")
@click.option("-l", "--selector", default="", help="Label selector: app=web,tier!=cache.")
@namespace_option
@lab_option
def describe(resources: tuple[str, ...], lab: str | None, **options: Any) -> None:
    """Show objects in full, each with what belongs to it."""
    from kproxy.cli.descriptions import describe_object

    targets = parse_targets(resources)
    namespace = None if options["all_namespaces"] else options["namespace"]
    request = Request(namespace, options["selector"], "", "", no_headers=False, show_labels=False)
    client = connect(the_lab(lab))
    found = [(target.kind, obj) for target in targets for obj in fetch(client, target, request)[0]]
    if not found:
        click.echo("No resources found.", err=True)
    click.echo(
        "\n\n\n".join(
            describe_object(kind, obj, related(client, kind, obj), happened(client, kind, obj)) for kind, obj in found
        )
    )


def related(client: Client, kind: Kind, obj: Object) -> list[Object]:
    """What a description shows beside the object, each with its kind.

    A Service's slices and all Nodes; a slice's Service, if there is one, and all Nodes; a Node's pods; else nothing.
    """
    from kproxy.proxy.endpoints import SERVICE_NAME_LABEL

    metadata = obj["metadata"]
    if kind == SERVICE:
        selector = f"{SERVICE_NAME_LABEL}={metadata['name']}"
        slices = client.list(ENDPOINT_SLICE, metadata["namespace"], label_selector=selector).items
        return [*(_complete(ENDPOINT_SLICE, item) for item in slices), *_nodes(client)]
    if kind == ENDPOINT_SLICE:
        name = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL, "")
        found = (
            client.list(SERVICE, metadata["namespace"], field_selector=f"metadata.name={name}").items if name else []
        )
        return [*(_complete(SERVICE, item) for item in found), *_nodes(client)]
    if kind == NODE:
        pods = client.list(POD, field_selector=f"spec.nodeName={metadata['name']}").items
        return [_complete(POD, item) for item in pods]
    return []


def happened(client: Client, kind: Kind, obj: Object) -> list[Object] | None:
    """The events about an object; None for kinds of which kubectl shows none.

    Those about a node name it instead of its uid, as a kubelet does that has not read its Node yet.
    """
    if kind in (EVENT, NAMESPACE):
        return None
    metadata = obj["metadata"]
    chosen = f"involvedObject.kind={kind.name},involvedObject.name={metadata['name']}"
    found = client.list(EVENT, metadata.get("namespace"), field_selector=chosen).items
    return [
        event for event in found if event["involvedObject"].get("uid") in (None, "", metadata["uid"], metadata["name"])
    ]


def _nodes(client: Client) -> list[Object]:
    return [_complete(NODE, item) for item in client.list(NODE).items]
