"""What ``kproxy get`` prints for each kind: kubectl's columns, words and spacing.

Law: objects and the time go in, text comes out; nothing here talks to a server.
Source of the columns: Kubernetes 1.36, pkg/printers/internalversion/printers.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from kproxy.api.kinds import Kind
from kproxy.api.types import Object

NONE = "<none>"
NO_PORTS: tuple[dict[str, Any], ...] = ({},)
"""A subset without ports still has addresses to name."""

MAX_ENDPOINTS = 3
"""So many endpoints kubectl names before it writes "+ N more..."."""


class Column(NamedTuple):
    """One column: its title, and how an object becomes its text."""

    title: str
    cell: Callable[[Object], str]


def table(  # noqa: PLR0913 - the switches of `kubectl get`
    kind: Kind,
    objects: Sequence[Object],
    *,
    now: datetime,
    wide: bool = False,
    with_namespace: bool = False,
    with_labels: bool = False,
    prefix: str = "",
) -> list[list[str]]:
    """The header and one row per object, as cells.

    Args:
        kind: decides the columns.
        objects: in the order to print.
        now: ages count up to here.
        wide: also the columns that ``-o wide`` adds.
        with_namespace: a NAMESPACE column first.
        with_labels: a LABELS column last.
        prefix: written before each name, ``service/`` when several kinds are listed.
    """
    columns = [Column("NAME", lambda obj: prefix + _meta(obj)["name"]), *COLUMNS.get(kind.name, ()), _age(now)]
    columns += WIDE.get(kind.name, ()) if wide else ()
    if with_namespace and kind.namespaced:
        columns.insert(0, Column("NAMESPACE", lambda obj: str(_meta(obj).get("namespace", ""))))
    if with_labels:
        columns.append(Column("LABELS", lambda obj: pairs(_meta(obj).get("labels"))))
    return [[column.title for column in columns], *([column.cell(obj) for column in columns] for obj in objects)]


def layout(rows: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """Lines with columns padded to the widest cell and three spaces between, as kubectl does.

    Args:
        rows: header first or not; all of one length.
        widths: at least so wide is each column; for rows that follow a table already printed.
    """
    if not rows:
        return []
    wanted = column_widths(rows, widths)
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, wanted, strict=True)).rstrip() for row in rows]


def column_widths(rows: Sequence[Sequence[str]], at_least: Sequence[int] = ()) -> list[int]:
    """The width of each column of ``rows``."""
    least = list(at_least) or [0] * len(rows[0])
    return [max(floor, *(len(row[index]) for row in rows)) for index, floor in enumerate(least)]


def human_duration(span: timedelta) -> str:
    """An age as kubectl writes it: ``5s``, ``2m5s``, ``17m``, ``3h2m``, ``2d``, ``1y20d``.

    Source: apimachinery, duration.HumanDuration.
    """
    seconds = int(span.total_seconds())
    if seconds < 0:
        return "0s" if seconds >= -1 else "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    years, rest_days = divmod(days, 365)
    steps: tuple[tuple[bool, str, str], ...] = (
        (seconds < 120, f"{seconds}s", ""),
        (minutes < 10, f"{minutes}m", _unless_zero(seconds % 60, "s")),
        (minutes < 180, f"{minutes}m", ""),
        (hours < 8, f"{hours}h", _unless_zero(minutes % 60, "m")),
        (hours < 48, f"{hours}h", ""),
        (hours < 192, f"{days}d", _unless_zero(hours % 24, "h")),
        (years < 2, f"{days}d", ""),
        (years < 8, f"{years}y", _unless_zero(rest_days, "d")),
    )
    return next((large + small for fits, large, small in steps if fits), f"{years}y")


def age(obj: Object, now: datetime) -> str:
    """Since when the object exists."""
    created = _meta(obj).get("creationTimestamp")
    return human_duration(now - datetime.fromisoformat(created)) if created else "<unknown>"


def pairs(labels: Mapping[str, str] | None) -> str:
    """``a=1,b=2``, or ``<none>``."""
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def selector(value: Mapping[str, Any] | None) -> str:
    """A label selector (matchLabels and matchExpressions) as people type it."""
    if not value:
        return NONE
    parts = [f"{key}={label}" for key, label in sorted((value.get("matchLabels") or {}).items())]
    parts += [_expression(expression) for expression in value.get("matchExpressions") or ()]
    return ",".join(parts) or NONE


def service_ports(obj: Object) -> str:
    """``80/TCP,443:31000/TCP``."""
    ports = [
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol', 'TCP')}"
        for port in obj["spec"].get("ports") or ()
    ]
    return ",".join(ports) or NONE


def pod_status(obj: Object) -> str:
    """The word of the STATUS column."""
    if _meta(obj).get("deletionTimestamp"):
        return "Terminating"
    status = obj.get("status") or {}
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        reason = (state.get("waiting") or {}).get("reason") or (state.get("terminated") or {}).get("reason")
        if reason:
            return str(reason)
    return str(status.get("reason") or status.get("phase") or "Unknown")


def is_ready(obj: Object) -> bool:
    """Whether the object's Ready condition is True."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)


def pod_ready(obj: Object) -> str:
    """``1/1``: ready containers of all."""
    containers = len(obj["spec"].get("containers") or ())
    statuses = (obj.get("status") or {}).get("containerStatuses")
    if statuses is None:
        return f"{containers if is_ready(obj) else 0}/{containers}"
    return f"{sum(bool(status.get('ready')) for status in statuses)}/{containers}"


def addresses(obj: Object, kind: str) -> str:
    """A node's addresses of one type (``InternalIP``), or ``<none>``."""
    found = [entry["address"] for entry in (obj.get("status") or {}).get("addresses") or () if entry["type"] == kind]
    return ",".join(found) or NONE


def ingress(obj: Object) -> list[str]:
    """The load balancer's addresses or host names in a Service's status."""
    entries = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [str(entry.get("ip") or entry.get("hostname")) for entry in entries]


def endpoint_addresses(obj: Object) -> str:
    """The ready addresses of an Endpoints object with their ports, the first few by name."""
    found = [
        _host_port(address["ip"], port.get("port", 0))
        for subset in obj.get("subsets") or ()
        for port in subset.get("ports") or NO_PORTS
        for address in subset.get("addresses") or ()
    ]
    return _few(found, " + {} more...")


def _meta(obj: Object) -> dict[str, Any]:
    metadata: dict[str, Any] = obj["metadata"]
    return metadata


def _age(now: datetime) -> Column:
    return Column("AGE", lambda obj: age(obj, now))


def _unless_zero(number: int, unit: str) -> str:
    return f"{number}{unit}" if number else ""


def _expression(expression: Mapping[str, Any]) -> str:
    key, values = expression["key"], ",".join(expression.get("values") or ())
    match expression["operator"]:
        case "Exists":
            return str(key)
        case "DoesNotExist":
            return f"!{key}"
        case operator:
            return f"{key} {str(operator).lower()} ({values})"


def _host_port(host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _few(items: Sequence[str], more: str) -> str:
    if not items:
        return NONE
    rest = len(items) - MAX_ENDPOINTS
    return ",".join(items[:MAX_ENDPOINTS]) + (more.format(rest) if rest > 0 else "")


def _external_ip(obj: Object) -> str:
    spec = obj["spec"]
    external = list(spec.get("externalIPs") or ())
    match spec.get("type", "ClusterIP"):
        case "ExternalName":
            return str(spec.get("externalName") or NONE)
        case "LoadBalancer":
            return ",".join([*ingress(obj), *external]) or "<pending>"
        case _:
            return ",".join(external) or NONE


def _slice_ports(obj: Object) -> str:
    ports = obj.get("ports")
    if not ports:
        return "<unset>"
    return ",".join("*" if port.get("port") is None else str(port["port"]) for port in ports)


def _slice_endpoints(obj: Object) -> str:
    found = [address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses") or ()]
    return _few(found, " + {} more...") if found else "<unset>"


def _restarts(obj: Object) -> str:
    statuses = (obj.get("status") or {}).get("containerStatuses") or ()
    return str(sum(int(status.get("restartCount", 0)) for status in statuses))


def _roles(obj: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = [key.removeprefix(prefix) for key in _meta(obj).get("labels") or {} if key.startswith(prefix)]
    return ",".join(sorted(roles)) or NONE


def _node_status(obj: Object) -> str:
    ready = "Ready" if is_ready(obj) else "NotReady"
    return ready + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _count(*path: str) -> Callable[[Object], str]:
    return lambda obj: str(_at(obj, path) or 0)


def _text(*path: str) -> Callable[[Object], str]:
    return lambda obj: str(_at(obj, path) or NONE)


def _at(obj: Object, path: Iterable[str]) -> Any:
    value: Any = obj
    for step in path:
        value = (value or {}).get(step)
    return value


def _containers(field: str) -> Callable[[Object], str]:
    def cell(obj: Object) -> str:
        containers = obj["spec"]["template"]["spec"].get("containers") or ()
        return ",".join(str(container.get(field, "")) for container in containers)

    return cell


def _pod_ip(obj: Object) -> str:
    return str((obj.get("status") or {}).get("podIP") or NONE)


COLUMNS: dict[str, tuple[Column, ...]] = {
    "Namespace": (Column("STATUS", lambda obj: str(_at(obj, ("status", "phase")) or "Active")),),
    "Node": (Column("STATUS", _node_status), Column("ROLES", _roles)),
    "Pod": (Column("READY", pod_ready), Column("STATUS", pod_status), Column("RESTARTS", _restarts)),
    "Service": (
        Column("TYPE", lambda obj: str(obj["spec"].get("type", "ClusterIP"))),
        Column("CLUSTER-IP", _text("spec", "clusterIP")),
        Column("EXTERNAL-IP", _external_ip),
        Column("PORT(S)", service_ports),
    ),
    "Endpoints": (Column("ENDPOINTS", endpoint_addresses),),
    "EndpointSlice": (
        Column("ADDRESSTYPE", lambda obj: str(obj.get("addressType", ""))),
        Column("PORTS", _slice_ports),
        Column("ENDPOINTS", _slice_endpoints),
    ),
    "Deployment": (
        Column("READY", lambda obj: f"{_at(obj, ('status', 'readyReplicas')) or 0}/{_at(obj, ('spec', 'replicas'))}"),
        Column("UP-TO-DATE", _count("status", "updatedReplicas")),
        Column("AVAILABLE", _count("status", "availableReplicas")),
    ),
    "ReplicaSet": (
        Column("DESIRED", _count("spec", "replicas")),
        Column("CURRENT", _count("status", "replicas")),
        Column("READY", _count("status", "readyReplicas")),
    ),
    "StatefulSet": (
        Column("READY", lambda obj: f"{_at(obj, ('status', 'readyReplicas')) or 0}/{_at(obj, ('spec', 'replicas'))}"),
    ),
    "DaemonSet": (
        Column("DESIRED", _count("status", "desiredNumberScheduled")),
        Column("CURRENT", _count("status", "currentNumberScheduled")),
        Column("READY", _count("status", "numberReady")),
        Column("UP-TO-DATE", _count("status", "updatedNumberScheduled")),
        Column("AVAILABLE", _count("status", "numberAvailable")),
    ),
    "ConfigMap": (Column("DATA", lambda obj: str(len(obj.get("data") or ()) + len(obj.get("binaryData") or ()))),),
    "Event": (Column("TYPE", _text("type")), Column("REASON", _text("reason")), Column("MESSAGE", _text("message"))),
    "Lease": (Column("HOLDER", _text("spec", "holderIdentity")),),
    "ServiceCIDR": (Column("CIDRS", lambda obj: ",".join(obj["spec"].get("cidrs") or ()) or NONE),),
}
"""The columns between NAME and AGE, by kind."""

_WORKLOAD = (
    Column("CONTAINERS", _containers("name")),
    Column("IMAGES", _containers("image")),
    Column("SELECTOR", lambda obj: selector(obj["spec"].get("selector"))),
)

WIDE: dict[str, tuple[Column, ...]] = {
    "Node": (
        Column("INTERNAL-IP", lambda obj: addresses(obj, "InternalIP")),
        Column("EXTERNAL-IP", lambda obj: addresses(obj, "ExternalIP")),
        Column("POD-CIDR", lambda obj: ",".join(_at(obj, ("spec", "podCIDRs")) or ()) or NONE),
        Column("ZONE", lambda obj: (_meta(obj).get("labels") or {}).get("topology.kubernetes.io/zone", NONE)),
    ),
    "Pod": (Column("IP", _pod_ip), Column("NODE", _text("spec", "nodeName"))),
    "Service": (Column("SELECTOR", lambda obj: pairs(obj["spec"].get("selector"))),),
    "Deployment": _WORKLOAD,
    "ReplicaSet": _WORKLOAD,
    "StatefulSet": _WORKLOAD[:2],
    "DaemonSet": _WORKLOAD,
}
"""What ``-o wide`` adds after AGE, by kind."""
