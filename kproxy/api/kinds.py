"""The kinds this project knows, and what each is called where.

One table for the client, the API server, the command line and the manifest reader.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """One Kubernetes kind.

    Attributes:
        name: ``Service``.
        group: API group; empty for the core group.
        version: ``v1``.
        plural: the resource's name in a path, ``services``.
        namespaced: whether objects live in a namespace.
        aliases: what people type beside the plural: singular and kubectl's short names.
        subresources: what can be asked of an object beside the object itself.
        categories: names for many kinds at once that include this one, ``all``.
    """

    name: str
    group: str
    version: str
    plural: str
    namespaced: bool
    aliases: tuple[str, ...]
    subresources: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[str, ...] = field(default=(), compare=False)

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The HTTP path of the collection, or of one object.

        Args:
            namespace: None means all namespaces (collection only) or a cluster-scoped object.
            name: None means the collection.
        """
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")


_STATUS = ("status",)
_WORKLOAD = ("status", "scale")
_ALL = ("all",)

NAMESPACE = Kind("Namespace", "", "v1", "namespaces", False, ("namespace", "ns"), _STATUS)
NODE = Kind("Node", "", "v1", "nodes", False, ("node", "no"), _STATUS)
POD = Kind("Pod", "", "v1", "pods", True, ("pod", "po"), ("status", "binding", "log", "exec"), _ALL)
SERVICE = Kind("Service", "", "v1", "services", True, ("service", "svc"), _STATUS, _ALL)
ENDPOINTS = Kind("Endpoints", "", "v1", "endpoints", True, ("ep",))
EVENT = Kind("Event", "", "v1", "events", True, ("event", "ev"))
CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps", True, ("configmap", "cm"))
ENDPOINT_SLICE = Kind("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices", True, ("endpointslice",))
DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments", True, ("deployment", "deploy"), _WORKLOAD, _ALL)
REPLICA_SET = Kind("ReplicaSet", "apps", "v1", "replicasets", True, ("replicaset", "rs"), _WORKLOAD, _ALL)
STATEFUL_SET = Kind("StatefulSet", "apps", "v1", "statefulsets", True, ("statefulset", "sts"), _WORKLOAD, _ALL)
DAEMON_SET = Kind("DaemonSet", "apps", "v1", "daemonsets", True, ("daemonset", "ds"), _STATUS, _ALL)
CONTROLLER_REVISION = Kind("ControllerRevision", "apps", "v1", "controllerrevisions", True, ("controllerrevision",))
SERVICE_CIDR = Kind("ServiceCIDR", "networking.k8s.io", "v1", "servicecidrs", False, ("servicecidr",), _STATUS)
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases", True, ("lease",))

KINDS: tuple[Kind, ...] = (
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    ENDPOINTS,
    EVENT,
    CONFIG_MAP,
    ENDPOINT_SLICE,
    DEPLOYMENT,
    REPLICA_SET,
    STATEFUL_SET,
    DAEMON_SET,
    CONTROLLER_REVISION,
    SERVICE_CIDR,
    LEASE,
)
"""Those that are stored."""

EVENT_OF_GROUP = Kind("Event", "events.k8s.io", "v1", "events", True, ("event", "ev"))
"""Events once more, with other names for some fields (``kproxy.api.event_forms``); what is stored is an ``EVENT``."""

SCALE = Kind("Scale", "autoscaling", "v1", "", True, ())
"""What the subresource ``scale`` of a workload is made of; nothing that is stored."""

KUBERNETES_VERSION = "v1.36.0+kproxy"
"""The Kubernetes whose kinds, fields and rules these are."""

BY_API = {(kind.api_version, kind.name): kind for kind in KINDS}


def find(word: str) -> Kind | None:
    """The kind that a person means by ``word`` (plural, singular, short name, any case), or None."""
    wanted = word.lower()
    for kind in KINDS:
        if wanted in (kind.plural, kind.name.lower(), *kind.aliases):
            return kind
    return None
