"""What Kubernetes fills in when an object does not say: the static defaulting of every kind.

Law: pure and idempotent, and the argument is left as it is. Only what the server decides from the object alone is here;
addresses, node ports and IP families are allocated elsewhere (Kubernetes: pkg/apis/*/v1/defaults.go).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from kproxy.api.types import Object

DEFAULT_AFFINITY_SECONDS: Final = 10800
DEFAULT_GRACE_SECONDS: Final = 30


def default(obj: Object) -> Object:
    """A copy of the object with every static default filled in and nulls left out.

    Args:
        obj: an object that ``known_fields.check`` finds nothing wrong with; kinds without defaults are only copied.
    """
    copy: Object = _without_nulls(obj)
    fill = _BY_KIND.get(str(copy.get("kind")))
    if fill is not None:
        fill(copy)
    return copy


def is_externally_accessible(spec: Object) -> bool:
    """Whether a Service can be reached from outside, as the API sees it: then it has an externalTrafficPolicy.

    Kubernetes: pkg/api/v1/service/util.go ExternallyAccessible.
    """
    service_type = spec.get("type") or "ClusterIP"
    return service_type in ("LoadBalancer", "NodePort") or (
        service_type == "ClusterIP" and bool(spec.get("externalIPs"))
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _set(where: Object, **values: Any) -> None:
    """Sets fields that are absent or empty, as Go's zero values are."""
    for key, value in values.items():
        if where.get(key) in (None, ""):
            where[key] = value


def _object(where: Object, key: str) -> Object:
    inner: Object = where.setdefault(key, {})
    return inner


def _objects(where: Object, key: str) -> Iterator[Object]:
    yield from where.get(key) or ()


def _service(obj: Object) -> None:
    spec = _object(obj, "spec")
    _set(spec, sessionAffinity="None", type="ClusterIP")
    _affinity(spec)
    for port in _objects(spec, "ports"):
        _set(port, protocol="TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    if is_externally_accessible(spec):
        _set(spec, externalTrafficPolicy="Cluster")
    if spec["type"] in ("ClusterIP", "NodePort", "LoadBalancer") and "internalTrafficPolicy" not in spec:
        spec["internalTrafficPolicy"] = "Cluster"
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
        for ingress in _objects((obj.get("status") or {}).get("loadBalancer") or {}, "ingress"):
            if ingress.get("ip"):
                ingress.setdefault("ipMode", "VIP")


def _affinity(spec: Object) -> None:
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        if "timeoutSeconds" not in client_ip:
            # The whole configuration is replaced, not completed.
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": DEFAULT_AFFINITY_SECONDS}}


def _pod(obj: Object) -> None:
    _pod_spec(_object(obj, "spec"))
    status = obj.get("status")
    if status:
        _plural(status, "podIP", "podIPs")
        _plural(status, "hostIP", "hostIPs")


def _plural(status: Object, singular: str, plural: str) -> None:
    """The two spellings of one list of addresses: either fills the other (Kubernetes: core/v1/conversion.go)."""
    if status.get(singular) and not status.get(plural):
        status[plural] = [{"ip": status[singular]}]
    elif status.get(plural) and not status.get(singular):
        status[singular] = status[plural][0].get("ip", "")


def _pod_spec(spec: Object) -> None:
    _set(spec, restartPolicy="Always", dnsPolicy="ClusterFirst", schedulerName="default-scheduler")
    spec.setdefault("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    spec.setdefault("securityContext", {})
    spec.setdefault("enableServiceLinks", True)
    for key in ("initContainers", "containers"):
        for container in _objects(spec, key):
            _container(container, uses_host_network=spec.get("hostNetwork") is True)
    for volume in _objects(spec, "volumes"):
        _volume(volume)


def _container(container: Object, *, uses_host_network: bool) -> None:
    _set(
        container,
        imagePullPolicy=_pull_policy(container.get("image") or ""),
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
    )
    container.setdefault("resources", {})
    for port in _objects(container, "ports"):
        _set(port, protocol="TCP")
        if uses_host_network and port.get("hostPort", 0) == 0 and "containerPort" in port:
            port["hostPort"] = port["containerPort"]
    for variable in _objects(container, "env"):
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            _set(reference, apiVersion="v1")
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if key in container:
            _probe(container[key])


def _pull_policy(image: str) -> str:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if not digest and tag in ("", "latest") else "IfNotPresent"


def _probe(probe: Object) -> None:
    for key, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(key):
            probe[key] = value
    if "httpGet" in probe:
        _set(probe["httpGet"], path="/", scheme="HTTP")
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")


_FILE_MODE: Final = 0o644


def _volume(volume: Object) -> None:
    for source in ("secret", "configMap", "downwardAPI", "projected"):
        if source in volume:
            volume[source].setdefault("defaultMode", _FILE_MODE)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")


def _deployment(obj: Object) -> None:
    spec = _object(obj, "spec")
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = _object(spec, "strategy")
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = _object(strategy, "rollingUpdate")
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    _pod_spec(_object(_object(spec, "template"), "spec"))


def _replica_set(obj: Object) -> None:
    spec = _object(obj, "spec")
    spec.setdefault("replicas", 1)
    _pod_spec(_object(_object(spec, "template"), "spec"))


def _stateful_set(obj: Object) -> None:
    spec = _object(obj, "spec")
    _set(spec, podManagementPolicy="OrderedReady")
    strategy = _object(spec, "updateStrategy")
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _object(strategy, "rollingUpdate").setdefault("partition", 0)
    _set(_object(spec, "persistentVolumeClaimRetentionPolicy"), whenDeleted="Retain", whenScaled="Retain")
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    _pod_spec(_object(_object(spec, "template"), "spec"))


def _daemon_set(obj: Object) -> None:
    spec = _object(obj, "spec")
    strategy = _object(spec, "updateStrategy")
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = _object(strategy, "rollingUpdate")
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)
    spec.setdefault("revisionHistoryLimit", 10)
    _pod_spec(_object(_object(spec, "template"), "spec"))


def _namespace(obj: Object) -> None:
    metadata = _object(obj, "metadata")
    if metadata.get("name"):
        _object(metadata, "labels")["kubernetes.io/metadata.name"] = metadata["name"]
    _object(obj, "spec").setdefault("finalizers", ["kubernetes"])
    _set(_object(obj, "status"), phase="Active")


def _endpoint_slice(obj: Object) -> None:
    for port in _objects(obj, "ports"):
        port.setdefault("name", "")
        _set(port, protocol="TCP")


def _endpoints(obj: Object) -> None:
    for subset in _objects(obj, "subsets"):
        for port in _objects(subset, "ports"):
            _set(port, protocol="TCP")


def _node(obj: Object) -> None:
    spec = _object(obj, "spec")
    if spec.get("podCIDR") and not spec.get("podCIDRs"):
        spec["podCIDRs"] = [spec["podCIDR"]]
    elif spec.get("podCIDRs") and not spec.get("podCIDR"):
        spec["podCIDR"] = spec["podCIDRs"][0]


_BY_KIND: Final[dict[str, Callable[[Object], None]]] = {
    "Service": _service,
    "Pod": _pod,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Namespace": _namespace,
    "EndpointSlice": _endpoint_slice,
    "Endpoints": _endpoints,
    "Node": _node,
}
