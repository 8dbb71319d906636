"""The columns of each kind in a table: what ``kubectl get`` shows of an object, in Kubernetes' words.

Law: objects and the time go in, cells come out. The API answers tables with these, and ``kproxy get`` prints them.
Source: Kubernetes 1.36, pkg/printers/internalversion/printers.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from kproxy.api.kinds import Kind
from kproxy.api.types import Object

NONE = "<none>"
UNKNOWN = "<unknown>"
NO_PORTS: tuple[dict[str, Any], ...] = ({},)
"""A subset without ports still has addresses to name."""

MAX_ENDPOINTS = 3
"""So many endpoints are named before "+ N more..."."""

Cell = str | int


class Column(NamedTuple):
    """One column.

    Attributes:
        title: as the API names it; kubectl prints it in capitals.
        cell: an object's cell, when it is looked at (for ages).
        is_wide: whether it is shown by ``-o wide`` alone.
        format: "name" for the column by which the object is called.
        type: of its cells, as OpenAPI has it.
    """

    title: str
    cell: Callable[[Object, datetime], Cell]
    is_wide: bool = False
    format: Literal["", "name"] = ""
    type: Literal["string", "integer"] = "string"


def columns_of(kind: Kind) -> tuple[Column, ...]:
    """The columns of a kind, wide ones included; for a kind without any of its own, name and age."""
    return COLUMNS.get(kind.name, (_NAME, _AGE))


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


def since(timestamp: str | None, now: datetime) -> str:
    """How long ago that was; ``<unknown>`` when nobody knows."""
    return human_duration(now - datetime.fromisoformat(timestamp)) if timestamp else UNKNOWN


def age(obj: Object, now: datetime) -> str:
    """Since when the object exists."""
    return since(_meta(obj).get("creationTimestamp"), now)


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
    status = obj.get("status") or {}
    if _meta(obj).get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return _initializing(obj) or _running(obj, str(status.get("reason") or status.get("phase") or "Unknown"))


def _initializing(obj: Object) -> str:
    """What keeps the containers from being started; "" when nothing does."""
    specs = {container["name"]: container for container in obj["spec"].get("initContainers") or ()}
    for index, container in enumerate((obj.get("status") or {}).get("initContainerStatuses") or ()):
        state = container.get("state") or {}
        terminated, waiting = state.get("terminated"), (state.get("waiting") or {}).get("reason")
        is_sidecar = specs.get(container["name"], {}).get("restartPolicy") == "Always"
        if (terminated is not None and not terminated.get("exitCode")) or (is_sidecar and container.get("started")):
            continue
        if terminated is not None:
            return f"Init:{_ending(terminated)}"
        return f"Init:{waiting}" if waiting not in (None, "", "PodInitializing") else f"Init:{index}/{len(specs)}"
    return ""


def _running(obj: Object, reason: str) -> str:
    is_any_running = False
    for container in reversed((obj.get("status") or {}).get("containerStatuses") or ()):
        state = container.get("state") or {}
        terminated = state.get("terminated")
        if waiting := (state.get("waiting") or {}).get("reason"):
            reason = str(waiting)
        elif terminated is not None:
            reason = _ending(terminated)
        elif container.get("ready") and "running" in state:
            is_any_running = True
    if reason == "Completed" and is_any_running:
        return "Running" if is_ready(obj) else "NotReady"
    return reason


def _ending(terminated: Mapping[str, Any]) -> str:
    signal = terminated.get("signal")
    by_itself = f"Signal:{signal}" if signal else f"ExitCode:{terminated.get('exitCode', 0)}"
    return str(terminated.get("reason") or by_itself)


def is_ready(obj: Object) -> bool:
    """Whether the object's Ready condition is True."""
    return _condition(obj, "Ready") == "True"


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
    return _few(found) or NONE


def event_source(obj: Object) -> str:
    """Who tells of the event: component and host."""
    source = obj.get("source") or {}
    component = source.get("component") or obj.get("reportingComponent") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    return ", ".join(filter(None, (component, host)))


def event_count(obj: Object) -> int:
    """How often it happened."""
    return int((obj.get("series") or {}).get("count") or obj.get("count") or 1)


def event_first_seen(obj: Object) -> str | None:
    """When it happened for the first time."""
    return obj.get("firstTimestamp") or obj.get("eventTime")


def event_last_seen(obj: Object) -> str | None:
    """When it happened for the last time."""
    series = obj.get("series") or {}
    return series.get("lastObservedTime") or obj.get("lastTimestamp") or event_first_seen(obj)


def _event_object(obj: Object, _: datetime) -> str:
    about = obj.get("involvedObject") or {}
    return "/".join(filter(None, (str(about.get("kind", "")).lower(), about.get("name"))))


def _meta(obj: Object) -> dict[str, Any]:
    metadata: dict[str, Any] = obj["metadata"]
    return metadata


def _condition(obj: Object, wanted: str) -> str:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((str(condition.get("status")) for condition in conditions if condition.get("type") == wanted), "")


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


def _few(items: Sequence[str]) -> str:
    rest = len(items) - MAX_ENDPOINTS
    return ",".join(items[:MAX_ENDPOINTS]) + (f" + {rest} more..." if rest > 0 else "")


def _external_ip(obj: Object, _: datetime) -> str:
    spec = obj["spec"]
    external = list(spec.get("externalIPs") or ())
    match spec.get("type", "ClusterIP"):
        case "ExternalName":
            return str(spec.get("externalName") or NONE)
        case "LoadBalancer":
            return ",".join([*ingress(obj), *external]) or "<pending>"
        case _:
            return ",".join(external) or NONE


def _slice_ports(obj: Object, _: datetime) -> str:
    return (
        _few(["*" if port.get("port") is None else str(port["port"]) for port in obj.get("ports") or ()]) or "<unset>"
    )


def _slice_endpoints(obj: Object, _: datetime) -> str:
    return _few([a for endpoint in obj.get("endpoints") or () for a in endpoint.get("addresses") or ()]) or "<unset>"


def _restarts(obj: Object, now: datetime) -> str:
    statuses = (obj.get("status") or {}).get("containerStatuses") or ()
    count = sum(int(status.get("restartCount", 0)) for status in statuses)
    ends = [((status.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for status in statuses]
    last = max(filter(None, ends), default=None)
    return f"{count} ({since(last, now)} ago)" if count and last else str(count)


def _gates(obj: Object, _: datetime) -> str:
    gates = [gate["conditionType"] for gate in obj["spec"].get("readinessGates") or ()]
    return f"{sum(_condition(obj, gate) == 'True' for gate in gates)}/{len(gates)}" if gates else NONE


def _controller(obj: Object) -> str:
    owners = [owner for owner in _meta(obj).get("ownerReferences") or () if owner.get("controller")]
    return next((_resource(owner) for owner in owners), NONE)


def _resource(owner: Mapping[str, Any]) -> str:
    """``deployment.apps/web``: how kubectl names an owner."""
    group = owner["apiVersion"].rpartition("/")[0]
    return f"{owner['kind'].lower()}{'.' if group else ''}{group}/{owner['name']}"


def _roles(obj: Object, _: datetime) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = _meta(obj).get("labels") or {}
    roles = {key.removeprefix(prefix) for key in labels if key.startswith(prefix) and key != prefix}
    return ",".join(sorted(roles | set(filter(None, (labels.get("kubernetes.io/role"),))))) or NONE


def _node_status(obj: Object, _: datetime) -> str:
    word = {"True": "Ready", "": "Unknown"}.get(_condition(obj, "Ready"), "NotReady")
    return word + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _number(*path: str) -> Callable[[Object, datetime], int]:
    return lambda obj, _: int(_at(obj, path) or 0)


def _text(*path: str, absent: str = NONE) -> Callable[[Object, datetime], str]:
    return lambda obj, _: str(_at(obj, path) or absent)


def _at(obj: Object, path: Iterable[str]) -> Any:
    value: Any = obj
    for step in path:
        value = (value or {}).get(step)
    return value


def _ready_of(*wanted: str) -> Callable[[Object, datetime], str]:
    return lambda obj, _: f"{_at(obj, ('status', 'readyReplicas')) or 0}/{_at(obj, wanted) or 0}"


def _containers(field: str) -> Callable[[Object, datetime], str]:
    def cell(obj: Object, _: datetime) -> str:
        containers = obj["spec"]["template"]["spec"].get("containers") or ()
        return ",".join(str(container.get(field, "")) for container in containers)

    return cell


_NAME = Column("Name", lambda obj, _: str(_meta(obj)["name"]), format="name")
_AGE = Column("Age", age)
_CONTAINERS = Column("Containers", _containers("name"), is_wide=True)
_IMAGES = Column("Images", _containers("image"), is_wide=True)
_SELECTOR = Column("Selector", lambda obj, _: selector(obj["spec"].get("selector")), is_wide=True)


def _count(title: str, *path: str) -> Column:
    return Column(title, _number(*path), type="integer")


def _wide(title: str, *path: str, absent: str = NONE) -> Column:
    return Column(title, _text(*path, absent=absent), is_wide=True)


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "Namespace": (_NAME, Column("Status", _text("status", "phase", absent="Active")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _roles),
        _AGE,
        Column("Version", _text("status", "nodeInfo", "kubeletVersion", absent="")),
        Column("Internal-IP", lambda obj, _: addresses(obj, "InternalIP"), is_wide=True),
        Column("External-IP", lambda obj, _: addresses(obj, "ExternalIP"), is_wide=True),
        _wide("OS-Image", "status", "nodeInfo", "osImage", absent=UNKNOWN),
        _wide("Kernel-Version", "status", "nodeInfo", "kernelVersion", absent=UNKNOWN),
        _wide("Container-Runtime", "status", "nodeInfo", "containerRuntimeVersion", absent=UNKNOWN),
    ),
    "Pod": (
        _NAME,
        Column("Ready", lambda obj, _: pod_ready(obj)),
        Column("Status", lambda obj, _: pod_status(obj)),
        Column("Restarts", _restarts),
        _AGE,
        _wide("IP", "status", "podIP"),
        _wide("Node", "spec", "nodeName"),
        _wide("Nominated Node", "status", "nominatedNodeName"),
        Column("Readiness Gates", _gates, is_wide=True),
    ),
    "Service": (
        _NAME,
        Column("Type", _text("spec", "type", absent="ClusterIP")),
        Column("Cluster-IP", _text("spec", "clusterIP")),
        Column("External-IP", _external_ip),
        Column("Port(s)", lambda obj, _: service_ports(obj)),
        _AGE,
        Column("Selector", lambda obj, _: pairs(obj["spec"].get("selector")), is_wide=True),
    ),
    "Endpoints": (_NAME, Column("Endpoints", lambda obj, _: endpoint_addresses(obj)), _AGE),
    "Event": (
        Column("Last Seen", lambda obj, now: since(event_last_seen(obj), now)),
        Column("Type", _text("type", absent="")),
        Column("Reason", _text("reason", absent="")),
        Column("Object", _event_object),
        _wide("Subobject", "involvedObject", "fieldPath", absent=""),
        Column("Source", lambda obj, _: event_source(obj), is_wide=True),
        Column("Message", lambda obj, _: str(obj.get("message") or "").strip()),
        Column("First Seen", lambda obj, now: since(event_first_seen(obj), now), is_wide=True),
        Column("Count", lambda obj, _: event_count(obj), is_wide=True, type="integer"),
        _NAME._replace(is_wide=True),
    ),
    "ConfigMap": (
        _NAME,
        Column("Data", lambda obj, _: len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), type="integer"),
        _AGE,
    ),
    "EndpointSlice": (
        _NAME,
        Column("AddressType", _text("addressType", absent="")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_endpoints),
        _AGE,
    ),
    "Deployment": (
        _NAME,
        Column("Ready", _ready_of("spec", "replicas")),
        _count("Up-to-date", "status", "updatedReplicas"),
        _count("Available", "status", "availableReplicas"),
        _AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    "ReplicaSet": (
        _NAME,
        _count("Desired", "spec", "replicas"),
        _count("Current", "status", "replicas"),
        _count("Ready", "status", "readyReplicas"),
        _AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    "StatefulSet": (_NAME, Column("Ready", _ready_of("spec", "replicas")), _AGE, _CONTAINERS, _IMAGES),
    "DaemonSet": (
        _NAME,
        _count("Desired", "status", "desiredNumberScheduled"),
        _count("Current", "status", "currentNumberScheduled"),
        _count("Ready", "status", "numberReady"),
        _count("Up-to-date", "status", "updatedNumberScheduled"),
        _count("Available", "status", "numberAvailable"),
        Column("Node Selector", lambda obj, _: pairs(_at(obj, ("spec", "template", "spec", "nodeSelector")))),
        _AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    "ControllerRevision": (
        _NAME,
        Column("Controller", lambda obj, _: _controller(obj)),
        Column("Revision", _number("revision"), type="integer"),
        _AGE,
    ),
    "ServiceCIDR": (_NAME, Column("CIDRs", lambda obj, _: ",".join(obj["spec"].get("cidrs") or ()) or NONE), _AGE),
    "Lease": (_NAME, Column("Holder", _text("spec", "holderIdentity", absent="")), _AGE),
}
