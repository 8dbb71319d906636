"""Typed views of the Kubernetes objects that this project reads.

Law: these are values. A field that the project does not read is not here; unknown fields of an input are found by
``known_fields``, not by these types. Names are Kubernetes' own in snake case and travel as Kubernetes' camel case.
None means "not set" wherever Kubernetes tells it from empty.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

Object = dict[str, Any]
"""An object as JSON gives it: what is stored and sent, with every field its author wrote."""


class Value(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Base of all typed views: immutable, camel case on the wire."""


class OwnerReference(Value, frozen=True):
    """Who made an object, and who takes it along when deleted."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(Value, frozen=True):
    """metadata of any object; timestamps as RFC 3339 text."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


class ServicePort(Value, frozen=True):
    """One entry of spec.ports; target_port is a number, a container port's name, or None (= port)."""

    port: int = 0
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0
    app_protocol: str | None = None


class ClientIPConfig(Value, frozen=True):
    """timeoutSeconds of ClientIP affinity."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Value, frozen=True):
    """sessionAffinityConfig."""

    client_ip: ClientIPConfig | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(Value, frozen=True):
    """spec of a Service; cluster_ip "None" is headless, empty is not allocated."""

    type: str = "ClusterIP"
    selector: dict[str, str] | None = None
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] = msgspec.field(name="clusterIPs", default=())
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str | None = None
    external_ips: tuple[str, ...] = msgspec.field(name="externalIPs", default=())
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    load_balancer_source_ranges: tuple[str, ...] = ()
    load_balancer_class: str | None = None
    load_balancer_ip: str = msgspec.field(name="loadBalancerIP", default="")
    allocate_load_balancer_node_ports: bool | None = None
    traffic_distribution: str | None = None
    external_name: str = ""


class LoadBalancerIngress(Value, frozen=True):
    """One address of a load balancer; ip_mode None means VIP."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Value, frozen=True):
    """status.loadBalancer."""

    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Value, frozen=True):
    """status of a Service."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(Value, frozen=True):
    """v1 Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Value, frozen=True):
    """Conditions of an endpoint; None counts as ready, serving, not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(Value, frozen=True):
    """A zone (or node) that a hint names."""

    name: str = ""


class EndpointHints(Value, frozen=True):
    """Topology hints of an endpoint."""

    for_zones: tuple[ForZone, ...] = ()
    for_nodes: tuple[ForZone, ...] = ()


class ObjectReference(Value, frozen=True):
    """A reference to another object."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class SliceEndpoint(Value, frozen=True):
    """One entry of an EndpointSlice."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: ObjectReference | None = None


class SlicePort(Value, frozen=True):
    """A port of an EndpointSlice; None name or port means it is ignored."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class EndpointSlice(Value, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: ObjectMeta = ObjectMeta()
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None


class NodeAddress(Value, frozen=True):
    """One address of a Node; type InternalIP, ExternalIP or Hostname."""

    type: str = ""
    address: str = ""


class Taint(Value, frozen=True):
    """A taint of a Node."""

    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(Value, frozen=True):
    """spec of a Node."""

    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeStatus(Value, frozen=True):
    """status of a Node."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(Value, frozen=True):
    """v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerPort(Value, frozen=True):
    """A port that a container says it listens on."""

    container_port: int = 0
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0


class FieldSelector(Value, frozen=True):
    """A field of the pod itself, as `metadata.labels['app']`."""

    field_path: str = ""


class ResourceFieldSelector(Value, frozen=True):
    """A limit or request of a container; an empty name means the one that asks."""

    container_name: str = ""
    resource: str = ""
    divisor: int | float | str = "1"


class KeySelector(Value, frozen=True):
    """One key of a ConfigMap or Secret; one that is optional may be missing."""

    name: str = ""
    key: str = ""
    optional: bool = False


class EnvVarSource(Value, frozen=True):
    """Where a variable's value comes from; one of them is set."""

    field_ref: FieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(Value, frozen=True):
    """An environment variable; its value may name others as `$(NAME)`."""

    name: str = ""
    value: str = ""
    value_from: EnvVarSource | None = None


class EnvFromSource(Value, frozen=True):
    """All keys of a ConfigMap or Secret as variables."""

    prefix: str = ""
    config_map_ref: KeySelector | None = None
    secret_ref: KeySelector | None = None


class ResourceRequirements(Value, frozen=True):
    """What a container may use, and what it asks for; quantities by resource name."""

    limits: dict[str, int | float | str] = {}
    requests: dict[str, int | float | str] = {}


class HTTPHeader(Value, frozen=True):
    """One header of a request."""

    name: str = ""
    value: str = ""


class HTTPGetAction(Value, frozen=True):
    """A GET request; an empty host means the pod's own address, a port is a number or a container port's name."""

    path: str = "/"
    port: int | str = 0
    host: str = ""
    scheme: str = "HTTP"
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketAction(Value, frozen=True):
    """A TCP connection; host and port as of HTTPGetAction."""

    port: int | str = 0
    host: str = ""


class ExecAction(Value, frozen=True):
    """A command in the container; exit status 0 is success."""

    command: tuple[str, ...] = ()


class Probe(Value, frozen=True):
    """How a container is looked at; one of the three actions is set. All times are in seconds."""

    exec_action: ExecAction | None = msgspec.field(name="exec", default=None)
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class SleepAction(Value, frozen=True):
    """Nothing, for so many seconds."""

    seconds: int = 0


class LifecycleHandler(Value, frozen=True):
    """What is done at a turn of a container's life; one of them is set, other actions have no effect here."""

    exec_action: ExecAction | None = msgspec.field(name="exec", default=None)
    http_get: HTTPGetAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(Value, frozen=True):
    """The turns of a container's life at which something is done."""

    pre_stop: LifecycleHandler | None = None


class Container(Value, frozen=True):
    """One container; without a command the image decides (the echo server unless the cluster file maps it)."""

    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFromSource, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    working_dir: str = ""
    restart_policy: str | None = None
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle = Lifecycle()


class HostAlias(Value, frozen=True):
    """One more line of /etc/hosts."""

    ip: str = ""
    hostnames: tuple[str, ...] = ()


class PodDNSConfigOption(Value, frozen=True):
    """One option of resolv.conf."""

    name: str = ""
    value: str | None = None


class PodDNSConfig(Value, frozen=True):
    """What a pod wants in its resolv.conf beside, or instead of, what its dnsPolicy gives."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[PodDNSConfigOption, ...] = ()


class PodSpec(Value, frozen=True):
    """spec of a Pod."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    host_aliases: tuple[HostAlias, ...] = ()
    dns_policy: str = "ClusterFirst"
    dns_config: PodDNSConfig = PodDNSConfig()
    enable_service_links: bool = True
    set_hostname_as_fqdn: bool = msgspec.field(name="setHostnameAsFQDN", default=False)
    service_account_name: str = ""
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    node_selector: dict[str, str] = {}


class Condition(Value, frozen=True):
    """One condition of any status; status is "True", "False" or "Unknown"."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class PodIP(Value, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodStatus(Value, frozen=True):
    """status of a Pod."""

    phase: str = "Pending"
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] = msgspec.field(name="podIPs", default=())
    host_ip: str = msgspec.field(name="hostIP", default="")
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    reason: str = ""


class Pod(Value, frozen=True):
    """v1 Pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class LabelSelectorRequirement(Value, frozen=True):
    """One expression of a label selector; operator In, NotIn, Exists or DoesNotExist."""

    key: str = ""
    operator: str = ""
    values: tuple[str, ...] = ()


class LabelSelector(Value, frozen=True):
    """matchLabels and matchExpressions, all of which must hold."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class PodTemplateSpec(Value, frozen=True):
    """What a controller's pods look like."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()


class WorkloadSpec(Value, frozen=True):
    """The part of a Deployment's or ReplicaSet's spec that they share; replicas None means 1."""

    replicas: int | None = None
    selector: LabelSelector = LabelSelector()
    template: PodTemplateSpec = PodTemplateSpec()


class Deployment(Value, frozen=True):
    """apps/v1 Deployment."""

    metadata: ObjectMeta = ObjectMeta()
    spec: WorkloadSpec = WorkloadSpec()


class ReplicaSet(Value, frozen=True):
    """apps/v1 ReplicaSet."""

    metadata: ObjectMeta = ObjectMeta()
    spec: WorkloadSpec = WorkloadSpec()


class EndpointAddress(Value, frozen=True):
    """An address of an Endpoints subset."""

    ip: str = ""
    hostname: str = ""
    node_name: str | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(Value, frozen=True):
    """A port of an Endpoints subset."""

    name: str = ""
    port: int = 0
    protocol: str = "TCP"
    app_protocol: str | None = None


class EndpointSubset(Value, frozen=True):
    """Addresses that share ports."""

    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(Value, frozen=True):
    """v1 Endpoints, the older mirror of EndpointSlices."""

    metadata: ObjectMeta = ObjectMeta()
    subsets: tuple[EndpointSubset, ...] = ()


class ServiceCIDRSpec(Value, frozen=True):
    """spec of a ServiceCIDR."""

    cidrs: tuple[str, ...] = ()


class ServiceCIDR(Value, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


T = TypeVar("T", bound=Value)


def view(obj: Object, as_type: type[T]) -> T:
    """The typed view of a stored object.

    A null counts as "not set", as in Kubernetes.

    Raises:
        msgspec.ValidationError: a field has another JSON type than Kubernetes gives it.
    """
    try:
        return msgspec.convert(obj, as_type)
    except msgspec.ValidationError:  # perhaps for a null, of which most objects have none
        return msgspec.convert(_without_nulls(obj), as_type)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
