"""Who may ask what of the API: each role, each verb, each resource."""

from __future__ import annotations

from itertools import product
from urllib.parse import parse_qsl

import pytest

from kproxy.api.kinds import KINDS
from kproxy.cluster.apiserver.paths import SERVED, Target, resolve
from kproxy.cluster.rights import (
    ADMIN,
    DNS,
    Asked,
    Identity,
    asked,
    is_allowed,
    is_open,
    node_identity,
    reason_of_refusal,
)

NODE = node_identity("node1")
OTHER = node_identity("node2")
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "", "GET", "bind")
SUBRESOURCES = ("", "status", "scale", "binding", "log", "exec", "status/more")
RESOURCES = sorted({(kind.group, kind.plural) for kind in SERVED})

PROXY_WATCHES = {("", "services"), ("discovery.k8s.io", "endpointslices"), ("networking.k8s.io", "servicecidrs")}
DNS_WATCHES = {("", "services"), ("discovery.k8s.io", "endpointslices"), ("", "namespaces")}


def expected(who: Identity, request: Asked, pod_node: str) -> bool:
    """The table of docs/api.md, written down once more in another way."""
    resource, reads = (request.group, request.resource), request.verb in ("list", "watch")
    if who.role.value == "admin":
        return True
    if who.role.value == "dns":
        return reads and not request.subresource and resource in DNS_WATCHES
    if request.subresource == "" and reads and resource in PROXY_WATCHES:
        return True
    if resource in (("", "events"), ("events.k8s.io", "events")) and not request.subresource:
        return request.verb in ("create", "patch", "update")
    own = request.name == "node1"
    if resource == ("", "nodes") and own:
        return (request.subresource, request.verb) in {
            *product([""], ["get", "list", "watch"]),
            *product(["status"], ["get", "patch", "update"]),
        }
    if resource == ("coordination.k8s.io", "leases") and own and request.namespace == "kube-node-lease":
        return not request.subresource and request.verb in ("create", "delete", "get", "patch", "update")
    if resource == ("", "pods") and pod_node == "node1" and request.name:
        return (request.subresource, request.verb) in {
            ("", "get"),
            *product(["status"], ["get", "patch", "update"]),
        }
    return False


def test_every_role_verb_and_resource() -> None:
    seen = {True: 0, False: 0}
    for who, verb, (group, resource), subresource in product((ADMIN, NODE, DNS), VERBS, RESOURCES, SUBRESOURCES):
        for namespace, name, pod_node in product(
            ("", "default", "kube-node-lease"), ("", "node1", "node2"), ("", "node1", "node2")
        ):
            request = Asked(verb, "", group, resource, subresource, namespace, name)
            answer = is_allowed(who, request, pod_node)
            assert answer == expected(who, request, pod_node), (who, request, pod_node)
            seen[answer] += 1
    assert min(seen.values()) > 1000


def test_a_resource_that_nobody_knows_is_the_admins_alone() -> None:
    for verb, subresource in product(VERBS, SUBRESOURCES):
        request = Asked(verb, "", "example.com", "secrets", subresource, "default", "node1")
        assert [is_allowed(who, request, "node1") for who in (ADMIN, NODE, DNS)] == [True, False, False]


NAMED = [
    ("GET", "/api/v1/services", "", Asked("list", "", "", "services")),
    ("GET", "/api/v1/services", "watch=1", Asked("watch", "", "", "services")),
    ("GET", "/api/v1/services", "watch=true", Asked("watch", "", "", "services")),
    ("GET", "/api/v1/services", "watch=0", Asked("list", "", "", "services")),
    ("POST", "/api/v1/namespaces/a/services", "", Asked("create", "", "", "services", "", "a")),
    ("GET", "/api/v1/namespaces/a/services/b", "", Asked("get", "", "", "services", "", "a", "b")),
    ("GET", "/api/v1/namespaces/a/services/b", "watch=1", Asked("get", "", "", "services", "", "a", "b")),
    ("DELETE", "/api/v1/namespaces/a/pods", "", Asked("deletecollection", "", "", "pods", "", "a")),
    ("DELETE", "/api/v1/namespaces/a/pods/b", "", Asked("delete", "", "", "pods", "", "a", "b")),
    ("PATCH", "/api/v1/namespaces/a/pods/b/status", "", Asked("patch", "", "", "pods", "status", "a", "b")),
    ("GET", "/api/v1/nodes", "fieldSelector=metadata.name%3Dnode1", Asked("list", "", "", "nodes", "", "", "node1")),
    ("GET", "/api/v1/nodes", "fieldSelector=metadata.name!%3Dnode1", Asked("list", "", "", "nodes")),
    ("GET", "/api/v1/nodes", "fieldSelector=bad", Asked("list", "", "", "nodes")),
    ("POST", "/api/v1/nodes", "fieldSelector=metadata.name%3Dnode1", Asked("create", "", "", "nodes")),
    ("GET", "/api/v1/namespaces", "", Asked("list", "", "", "namespaces")),
    ("GET", "/api/v1/namespaces/a", "", Asked("get", "", "", "namespaces", "", "a", "a")),
    ("PUT", "/api/v1/namespaces/a/status", "", Asked("update", "", "", "namespaces", "status", "a", "a")),
    (
        "PUT",
        "/apis/apps/v1/namespaces/a/deployments/b/scale",
        "",
        Asked("update", "", "apps", "deployments", "scale", "a", "b"),
    ),
    ("GET", "/api/v1/namespaces/%61/pods/b%2Fc", "", Asked("get", "", "", "pods", "", "a", "b/c")),
    ("GET", "//api/v1/pods/", "", Asked("list", "", "", "pods")),
    ("POST", "/apis/kproxy.dev/v1alpha1/applies", "", Asked("create", "", "kproxy.dev", "applies")),
    ("GET", "/apis/kproxy.dev/v1alpha1/lab", "", Asked("list", "", "kproxy.dev", "lab")),
    ("GET", "/api/v1", "", Asked("get", "/api/v1")),
    ("GET", "/healthz", "", Asked("get", "/healthz")),
    ("PROPFIND", "/api/v1/pods", "", Asked("", "", "", "pods")),
]


@pytest.mark.parametrize(
    ("method", "path", "query", "wanted"), NAMED, ids=[f"{row[0]} {row[1]}?{row[2]}" for row in NAMED]
)
def test_a_request_is_named_as_kubernetes_names_it(method: str, path: str, query: str, wanted: Asked) -> None:
    assert asked(method, path, dict(parse_qsl(query))) == wanted


def test_whoever_serves_a_path_and_whoever_guards_it_take_it_for_the_same() -> None:
    for kind in KINDS:
        for namespace, name in (("", ""), ("", "x"), ("a", ""), ("a", "x")):
            path = kind.path(namespace or None, name or None)
            for subresource in ("", *kind.subresources):
                whole = f"{path}/{subresource}" if subresource else path
                target = resolve(whole)
                if target is None:
                    continue
                request = asked("GET", whole, {})
                found = (request.group, request.resource, request.subresource, request.name)
                assert found == (kind.group, kind.plural, target.subresource, target.name)
                assert kind.name == "Namespace" or request.namespace == target.namespace
    assert resolve("/api/v1/pods") == Target(next(kind for kind in KINDS if kind.name == "Pod"))


PATHS = [
    ("/healthz", "get", True, True),
    ("/livez/ping", "get", True, True),
    ("/version", "get", True, True),
    ("/version", "post", False, False),
    ("/api", "get", False, True),
    ("/apis/apps/v1", "get", False, True),
    ("/openapi/v3/api/v1", "get", False, True),
    ("/metrics", "get", False, False),
    ("/", "get", False, False),
    ("/logs/", "get", False, False),
    ("/apis", "delete", False, False),
]


@pytest.mark.parametrize(("path", "verb", "without_token", "with_any_token"), PATHS)
def test_paths_that_are_no_resources(path: str, verb: str, without_token: bool, with_any_token: bool) -> None:
    request = Asked(verb, path=path)
    assert is_open(request) == without_token
    assert [is_allowed(who, request) for who in (ADMIN, NODE, DNS)] == [True, with_any_token, with_any_token]


def test_everybody_may_ask_what_they_may() -> None:
    for group, resource in (
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
    ):
        request = Asked("create", "", group, resource)
        assert all(is_allowed(who, request) for who in (ADMIN, NODE, DNS))
        assert not is_allowed(NODE, request._replace(verb="list"))
        assert not is_allowed(NODE, request._replace(group=""))


REFUSALS = [
    (
        Asked("create", "", "", "services", "", "default"),
        'cannot create resource "services" in API group "" in the namespace "default"',
    ),
    (Asked("list", "", "", "nodes"), 'cannot list resource "nodes" in API group "" at the cluster scope'),
    (
        Asked("update", "", "", "pods", "status", "a", "b"),
        'cannot update resource "pods/status" in API group "" in the namespace "a"',
    ),
    (Asked("get", path="/metrics"), 'cannot get path "/metrics"'),
]


@pytest.mark.parametrize(("request_", "words"), REFUSALS)
def test_a_refusal_is_worded_as_in_kubernetes(request_: Asked, words: str) -> None:
    assert reason_of_refusal(NODE, request_) == f'User "system:node:node1" {words}'


def test_one_node_is_not_another() -> None:
    request = Asked("get", "", "", "nodes", "", "", "node2")
    assert not is_allowed(NODE, request)
    assert is_allowed(OTHER, request)
