"""What ``kproxy describe`` prints: an object told field by field, in the order of kubectl describe.

Law: objects go in, text comes out; nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kproxy.api import columns
from kproxy.api.kinds import ENDPOINT_SLICE, NODE, SERVICE, Kind
from kproxy.api.types import EndpointSlice, Object, Service, view
from kproxy.cli.tables import column_widths
from kproxy.proxy import passed_over

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Where apply keeps what it was given; the object says the same again, so kubectl describe leaves it out."""

Line = tuple[str, Any]
"""A label and its value: text, a list (one line each), or a list of lines (an indented block)."""


def describe_object(
    kind: Kind,
    obj: Object,
    related: Sequence[Object],
    events: Sequence[Object] | None = None,
    now: datetime | None = None,
) -> str:
    """The whole description.

    Args:
        kind: decides what is told.
        obj: the object.
        related: objects that belong to it, each with its kind: a Service's slices and all Nodes, a slice's Service and
            all Nodes, a Node's pods; else none.
        events: what happened to it, shown last; None when nobody asked.
        now: ages count up to here; None is this moment.
    """
    metadata = obj["metadata"]
    lines: list[Line] = [("Name", metadata["name"])]
    if kind.namespaced:
        lines.append(("Namespace", metadata.get("namespace", "")))
    annotations = without_last_applied(metadata.get("annotations"))
    lines += [("Labels", _pairs(metadata.get("labels"))), ("Annotations", _pairs(annotations, ": "))]
    if metadata.get("ownerReferences"):
        owner = metadata["ownerReferences"][0]
        lines.append(("Controlled By", f"{owner['kind']}/{owner['name']}"))
    lines += DESCRIBERS.get(kind.name, _anything)(obj, related)
    if events is not None and not events:
        lines.append(("Events", columns.NONE))
    return "\n".join([*_block(lines, ""), *(_events(events, now or datetime.now(UTC)) if events else ())])


def _events(events: Sequence[Object], now: datetime) -> list[str]:
    """The table of what happened, oldest first, in kubectl's words and spacing."""
    header = ["Type", "Reason", "Age", "From", "Message"]
    rows = [_event(event, now) for event in sorted(events, key=lambda event: columns.event_last_seen(event) or "")]
    rows = [header, ["-" * max(4, len(title)) for title in header], *rows]
    widths = column_widths(rows)
    return [
        "Events:",
        *(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
    ]


def _event(event: Object, now: datetime) -> list[str]:
    age, count = columns.since(columns.event_last_seen(event), now), columns.event_count(event)
    if count > 1:
        age += f" (x{count} over {columns.since(columns.event_first_seen(event), now)})"
    words = [str(event.get(field) or "") for field in ("type", "reason", "message")]
    return [words[0], words[1], age, columns.event_source(event), words[2].strip()]


def without_last_applied(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """The annotations that people wrote."""
    return {key: value for key, value in (annotations or {}).items() if key != LAST_APPLIED}


def _block(lines: Sequence[Line], indent: str) -> list[str]:
    flat = [label for label, value in lines if not _is_block(value)]
    width = max((len(label) for label in flat), default=0) + 2
    text: list[str] = []
    for label, value in lines:
        if _is_block(value):
            text += [f"{indent}{label}:", *_block(value, indent + "  ")]
            continue
        values = value if isinstance(value, list) else [value]
        first, *rest = [str(item) for item in values] or [columns.NONE]
        text.append(f"{indent}{label + ':':<{width}} {first or columns.NONE}")
        text += [f"{indent}{'':<{width}} {item}" for item in rest]
    return text


def _is_block(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], tuple)


def _pairs(values: Mapping[str, str] | None, between: str = "=") -> list[str]:
    return [f"{key}{between}{value}" for key, value in sorted((values or {}).items())]


def _service(obj: Object, related: Sequence[Object]) -> list[Line]:
    spec = obj["spec"]
    slices = _of_kind(related, ENDPOINT_SLICE)
    lines: list[Line] = [
        ("Selector", columns.pairs(spec.get("selector"))),
        ("Type", spec.get("type", "ClusterIP")),
        ("IP Family Policy", spec.get("ipFamilyPolicy") or columns.NONE),
        ("IP Families", ",".join(spec.get("ipFamilies") or ())),
        ("IP", spec.get("clusterIP") or columns.NONE),
        ("IPs", ",".join(spec.get("clusterIPs") or ())),
    ]
    if spec.get("externalIPs"):
        lines.append(("External IPs", ",".join(spec["externalIPs"])))
    if columns.ingress(obj):
        lines.append(("LoadBalancer Ingress", ", ".join(columns.ingress(obj))))
    if spec.get("externalName"):
        lines.append(("External Name", spec["externalName"]))
    for port in spec.get("ports") or ():
        lines += _service_port(port, slices)
    lines.append(("Session Affinity", _affinity(spec)))
    for label, field in (
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
        ("HealthCheck NodePort", "healthCheckNodePort"),
        ("Traffic Distribution", "trafficDistribution"),
    ):
        if spec.get(field):
            lines.append((label, spec[field]))
    if spec.get("loadBalancerSourceRanges"):
        lines.append(("LoadBalancer Source Ranges", ",".join(spec["loadBalancerSourceRanges"])))
    return [*lines, *_notes(_notes_on_service(obj, related))]


def _of_kind(objects: Sequence[Object], kind: Kind) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == kind.name]


def _notes(words: Iterable[str]) -> list[Line]:
    """What has no effect, where anything has none."""
    found = list(words)
    return [("Notes", found)] if found else []


def _notes_on_service(obj: Object, related: Sequence[Object]) -> Iterator[str]:
    yield from passed_over.in_service(view(obj, Service))
    for piece in _of_kind(related, ENDPOINT_SLICE):
        for words in _notes_on_slice(piece, [obj | {"kind": SERVICE.name}, *related]):
            yield f"EndpointSlice {piece['metadata']['name']}: {words}"


def _notes_on_slice(obj: Object, related: Sequence[Object]) -> Iterator[str]:
    service = next((view(found, Service) for found in _of_kind(related, SERVICE)), None)
    nodes = {node["metadata"]["name"] for node in _of_kind(related, NODE)}
    return passed_over.around_slice(view(obj, EndpointSlice), service, nodes)


def _affinity(spec: Mapping[str, Any]) -> str:
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    after = f" (timeout {config['timeoutSeconds']}s)" if config.get("timeoutSeconds") else ""
    return f"{spec.get('sessionAffinity', 'None')}{after}"


def _service_port(port: Mapping[str, Any], slices: Sequence[Object]) -> list[Line]:
    name = port.get("name") or "<unset>"
    protocol = port.get("protocol", "TCP")
    lines: list[Line] = [
        ("Port", f"{name}  {port['port']}/{protocol}"),
        ("TargetPort", f"{port.get('targetPort', port['port'])}/{protocol}"),
    ]
    if port.get("nodePort"):
        lines.append(("NodePort", f"{name}  {port['nodePort']}/{protocol}"))
    ready = [endpoint for endpoint, is_ready in _endpoints(port, slices) if is_ready]
    lines.append(("Endpoints", ",".join(ready) or columns.NONE))
    return lines


def _endpoints(port: Mapping[str, Any], slices: Sequence[Object]) -> list[tuple[str, bool]]:
    """Address and port of every endpoint of one service port, and whether it is ready; None counts as ready."""
    return [
        (_host_port(address, slice_port["port"]), (endpoint.get("conditions") or {}).get("ready") is not False)
        for piece in slices
        for slice_port in piece.get("ports") or ()
        if _joins(port, slice_port)
        for endpoint in piece.get("endpoints") or ()
        for address in endpoint.get("addresses") or ()
    ]


def _joins(port: Mapping[str, Any], slice_port: Mapping[str, Any]) -> bool:
    same_name = (slice_port.get("name") or "") == (port.get("name") or "")
    same_protocol = slice_port.get("protocol", "TCP") == port.get("protocol", "TCP")
    return same_name and same_protocol and slice_port.get("port") is not None


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pod(obj: Object, _related: Sequence[Object]) -> list[Line]:
    spec, status = obj["spec"], obj.get("status") or {}
    lines: list[Line] = [
        ("Node", "/".join(filter(None, (spec.get("nodeName"), status.get("hostIP")))) or columns.NONE),
        ("Start Time", status.get("startTime") or obj["metadata"].get("creationTimestamp")),
        ("Status", columns.pod_status(obj)),
    ]
    if status.get("message"):
        lines.append(("Message", status["message"]))
    lines += [("IP", status.get("podIP", "")), ("IPs", [entry["ip"] for entry in status.get("podIPs") or ()])]
    statuses = {entry["name"]: entry for entry in status.get("containerStatuses") or ()}
    lines.append(
        ("Containers", [(item["name"], _container(item, statuses.get(item["name"]))) for item in spec["containers"]])
    )
    return [*lines, *_conditions(status)]


def _container(container: Mapping[str, Any], status: Mapping[str, Any] | None) -> list[Line]:
    ports = [f"{port['containerPort']}/{port.get('protocol', 'TCP')}" for port in container.get("ports") or ()]
    lines: list[Line] = [("Image", container.get("image", "")), ("Ports", ", ".join(ports) or columns.NONE)]
    if container.get("command") or container.get("args"):
        lines.append(("Command", " ".join([*(container.get("command") or ()), *(container.get("args") or ())])))
    if container.get("env"):
        lines.append(("Environment", [f"{entry['name']}={entry.get('value', '')}" for entry in container["env"]]))
    if status is not None:
        lines.append(("State", ", ".join((status.get("state") or {"unknown": {}}).keys())))
        lines += [("Ready", status.get("ready", False)), ("Restart Count", status.get("restartCount", 0))]
    return lines


def _conditions(status: Mapping[str, Any]) -> list[Line]:
    conditions = status.get("conditions") or ()
    if not conditions:
        return []
    told = [
        (entry["type"], " ".join(filter(None, (entry["status"], entry.get("message", ""))))) for entry in conditions
    ]
    return [("Conditions", told)]


def _node(obj: Object, pods: Sequence[Object]) -> list[Line]:
    status = obj.get("status") or {}
    here = sorted(pods, key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]))
    lines: list[Line] = [
        ("Addresses", [(entry["type"], entry["address"]) for entry in status.get("addresses") or ()]),
        ("PodCIDRs", ",".join(obj.get("spec", {}).get("podCIDRs") or ())),
        *_conditions(status),
        ("Pods", [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in here]),
    ]
    return lines


def _workload(obj: Object, _related: Sequence[Object]) -> list[Line]:
    spec, status = obj["spec"], obj.get("status") or {}
    template = spec["template"]
    containers = [(item["name"], _container(item, None)) for item in template["spec"].get("containers") or ()]
    return [
        ("Selector", columns.selector(spec.get("selector"))),
        (
            "Replicas",
            f"{spec.get('replicas', 1)} desired | {status.get('updatedReplicas', status.get('replicas', 0))} updated | "
            f"{status.get('replicas', 0)} total | {status.get('availableReplicas', 0)} available",
        ),
        ("Pod Template", [("Labels", _pairs(template.get("metadata", {}).get("labels"))), ("Containers", containers)]),
        *_conditions(status),
    ]


def _slice(obj: Object, related: Sequence[Object]) -> list[Line]:
    ports = [
        f"{port.get('name') or '<unset>'}  {port.get('port', '*')}/{port.get('protocol', 'TCP')}"
        for port in obj.get("ports") or ()
    ]
    endpoints = [(",".join(item["addresses"]), _slice_endpoint(item)) for item in obj.get("endpoints") or ()]
    return [
        ("AddressType", obj.get("addressType", "")),
        ("Ports", ports),
        ("Endpoints", endpoints),
        *_notes(_notes_on_slice(obj, related)),
    ]


def _slice_endpoint(endpoint: Mapping[str, Any]) -> list[Line]:
    conditions = ", ".join(f"{name}={str(value).lower()}" for name, value in (endpoint.get("conditions") or {}).items())
    target = endpoint.get("targetRef") or {}
    lines: list[Line] = [
        ("Conditions", conditions or columns.NONE),
        ("TargetRef", f"{target['kind']}/{target['name']}" if target else columns.NONE),
        ("NodeName", endpoint.get("nodeName") or columns.NONE),
        ("Zone", endpoint.get("zone") or columns.NONE),
    ]
    return lines


def _endpoints_object(obj: Object, _related: Sequence[Object]) -> list[Line]:
    subsets = obj.get("subsets") or ()
    return [
        (
            "Subsets",
            [
                line
                for subset in subsets
                for line in (
                    ("Addresses", ",".join(entry["ip"] for entry in subset.get("addresses") or ())),
                    ("NotReadyAddresses", ",".join(entry["ip"] for entry in subset.get("notReadyAddresses") or ())),
                    ("Ports", [f"{port['port']}/{port.get('protocol', 'TCP')}" for port in subset.get("ports") or ()]),
                )
            ],
        )
    ]


def _anything(obj: Object, _related: Sequence[Object]) -> list[Line]:
    """Kinds without a description of their own: their spec and status, one line a field."""
    return [
        (f"{part.title()} {field}", ",".join(map(str, value)) if isinstance(value, list) else value)
        for part in ("spec", "status")
        for field, value in (obj.get(part) or {}).items()
    ]


DESCRIBERS: dict[str, Callable[[Object, Sequence[Object]], list[Line]]] = {
    "Service": _service,
    "Pod": _pod,
    "Node": _node,
    "Deployment": _workload,
    "ReplicaSet": _workload,
    "EndpointSlice": _slice,
    "Endpoints": _endpoints_object,
}
