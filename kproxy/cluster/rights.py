"""Who may ask what of the lab's API: one table of rights, and one decision.

Law: pure. A request is first named as Kubernetes names it (verb, resource, name), from its method and path alone; what
no rule allows is refused. The table is also docs/api.md's.

Source of the names: Kubernetes, apiserver/pkg/endpoints/request/requestinfo.go and handlers/responsewriters/errors.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple
from urllib.parse import unquote

from kproxy.api.labels import metadata_name

LEASES_NAMESPACE: Final = "kube-node-lease"


class Role(Enum):
    """What somebody with a token is here; the values are the words of docs/api.md."""

    ADMIN = "admin"
    NODE = "node"
    DNS = "dns"


class Identity(NamedTuple):
    """Who asks.

    Attributes:
        user: the name in messages, as Kubernetes would call this one.
        role: what the table goes by.
        node: a node's own name; empty for others.
    """

    user: str
    role: Role
    node: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that Kubernetes would see this one in."""
        return (*_GROUPS[self.role], "system:authenticated")


ADMIN: Final = Identity("kubernetes-admin", Role.ADMIN)
DNS: Final = Identity("system:serviceaccount:kube-system:kube-dns", Role.DNS)
_GROUPS: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.ADMIN: ("system:masters",),
    Role.NODE: ("system:nodes",),
    Role.DNS: ("system:serviceaccounts", "system:serviceaccounts:kube-system"),
}


def node_identity(node: str) -> Identity:
    """The identity of a node, as kubelets have it."""
    return Identity(f"system:node:{node}", Role.NODE, node)


class Asked(NamedTuple):
    """One request, named.

    Attributes:
        verb: ``get``, ``list``, ``watch``, ``create``, ``update``, ``patch``, ``delete`` or ``deletecollection``; for
            a path that is no resource the method in lower case.
        path: set when it is no resource.
        resource: plural; empty for a path.
        name: empty for a collection, unless its field selector asks for one name only.
    """

    verb: str
    path: str = ""
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def qualified_resource(self) -> str:
        """``services`` or ``deployments.apps``."""
        return f"{self.resource}.{self.group}" if self.group else self.resource

    @property
    def resource_path(self) -> str:
        """``pods`` or ``pods/status``."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Of(Enum):
    """Whose objects a rule is about; the values are the words of docs/api.md."""

    ALL = "all"
    OWN_NODE = "its own"
    OWN_LEASE = "its own in kube-node-lease"
    OWN_PODS = "of pods on it"


class Rule(NamedTuple):
    """One row of the table of rights.

    Attributes:
        resources: with their groups and subresources: ``pods/status``, ``endpointslices.discovery.k8s.io``.
    """

    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    of: Of = Of.ALL


_EVENTS: Final = ("events", "events.events.k8s.io")
RULES: Final[Mapping[Role, Sequence[Rule]]] = {
    Role.ADMIN: (Rule(("*",), ("*",)),),
    Role.NODE: (
        Rule(
            ("services", "endpointslices.discovery.k8s.io", "servicecidrs.networking.k8s.io"),
            ("list", "watch"),
        ),
        Rule(("nodes",), ("get", "list", "watch"), Of.OWN_NODE),
        Rule(("nodes/status",), ("get", "patch", "update"), Of.OWN_NODE),
        Rule(("leases.coordination.k8s.io",), ("create", "delete", "get", "patch", "update"), Of.OWN_LEASE),
        Rule(("pods", "pods/status"), ("get",), Of.OWN_PODS),
        Rule(("pods/status",), ("patch", "update"), Of.OWN_PODS),
        Rule(_EVENTS, ("create", "patch", "update")),
    ),
    Role.DNS: (Rule(("namespaces", "services", "endpointslices.discovery.k8s.io"), ("list", "watch")),),
}
"""What each role may do with resources."""

OPEN_PATHS: Final = ("/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*", "/version", "/version/")
"""What may be read without a token (Kubernetes: system:public-info-viewer)."""
DISCOVERY_PATHS: Final = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")
"""What whoever has a token may read beside them (Kubernetes: system:discovery)."""
SELF_REVIEWS: Final = ("selfsubjectaccessreviews.authorization.k8s.io", "selfsubjectreviews.authentication.k8s.io")
"""What whoever has a token may create: questions about oneself (Kubernetes: system:basic-user)."""

_VERBS: Final[Mapping[str, str]] = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_OF_COLLECTIONS: Final[Mapping[str, str]] = {"get": "list", "delete": "deletecollection"}


def segments(path: str) -> list[str]:
    """The parts of a path as it was sent; whoever serves it and whoever guards it have to split it alike."""
    return [unquote(part) for part in path.strip("/").split("/")]


def asked(method: str, path: str, query: Mapping[str, str]) -> Asked:
    """What a request asks for.

    Args:
        method: HTTP's.
        path: as it was sent, percent-encoded, without the query.
        query: decoded.
    """
    match segments(path):
        case ["api", _, *rest] if rest:
            group = ""
        case ["apis", group, _, *rest] if rest:
            pass
        case _:
            return Asked(method.lower(), path=path)
    verb = _VERBS.get(method, "")
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    if resource == "namespaces":
        namespace = name
    if not name:
        is_watch = verb == "get" and query.get("watch") in ("1", "true")
        verb = "watch" if is_watch else _OF_COLLECTIONS.get(verb, verb)
        name = metadata_name(query.get("fieldSelector", "")) if verb != "create" else ""
    return Asked(verb, "", group, resource, "/".join((subresource, *rest[3:])).rstrip("/"), namespace, name)


def is_open(request: Asked) -> bool:
    """Whether it is answered without a token."""
    return _is_reading(request, OPEN_PATHS)


def is_allowed(who: Identity, request: Asked, pod_node: str = "") -> bool:
    """Whether somebody may ask this.

    Args:
        who: asks.
        request: is asked.
        pod_node: the node of the pod that the request names; empty when it has none, or there is no such pod.
    """
    if who.role is Role.ADMIN:
        return True
    if request.path:
        return _is_reading(request, OPEN_PATHS) or _is_reading(request, DISCOVERY_PATHS)
    if request.verb == "create" and not request.subresource and request.qualified_resource in SELF_REVIEWS:
        return True
    wanted = request.qualified_resource + (f"/{request.subresource}" if request.subresource else "")
    return any(
        wanted in rule.resources and request.verb in rule.verbs and _is_of(rule.of, who, request, pod_node)
        for rule in RULES[who.role]
    )


def _is_of(whose: Of, who: Identity, request: Asked, pod_node: str) -> bool:
    match whose:
        case Of.ALL:
            return True
        case Of.OWN_NODE:
            return request.name == who.node
        case Of.OWN_LEASE:
            return request.namespace == LEASES_NAMESPACE and request.name == who.node
        case Of.OWN_PODS:
            return bool(request.name) and pod_node == who.node


def _is_reading(request: Asked, paths: Sequence[str]) -> bool:
    return request.verb in ("get", "head") and any(fnmatchcase(request.path, pattern) for pattern in paths)


def reason_of_refusal(who: Identity, request: Asked) -> str:
    """Why somebody may not, in kube-apiserver's words."""
    if request.path:
        return f'User "{who.user}" cannot {request.verb} path "{request.path}"'
    where = f'in the namespace "{request.namespace}"' if request.namespace else "at the cluster scope"
    what = f'resource "{request.resource_path}" in API group "{request.group}"'
    return f'User "{who.user}" cannot {request.verb} {what} {where}'
