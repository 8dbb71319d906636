"""What clients ask about the API before they use it: groups, resources, version, OpenAPI.

Law: everything here follows from the kinds (``paths.SERVED``) and from what ``kproxy.api.openapi`` makes of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web

from kproxy.api import openapi
from kproxy.api.kinds import KUBERNETES_VERSION, SCALE, Kind
from kproxy.cluster import statuses
from kproxy.cluster.apiserver import responses
from kproxy.cluster.apiserver.negotiation import accepted
from kproxy.cluster.apiserver.paths import SERVED
from kproxy.cluster.apiserver.responses import JSON
from kproxy.cluster.node_info import architecture

OBJECT_VERBS: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
"""What can be done with the objects of every kind."""

_AGGREGATED: Final = "apidiscovery.k8s.io"
_AGGREGATED_VERSIONS: Final = ("v2", "v2beta1")


class Subresource(NamedTuple):
    """What can be asked of an object beside the object itself.

    Attributes:
        verbs: what can be done with it.
        kind: what it is made of; None for the object's own kind.
    """

    verbs: tuple[str, ...]
    kind: Kind | None = None


def _of_core(name: str) -> Kind:
    return Kind(name, "", "v1", "", namespaced=True, aliases=())


SUBRESOURCES: Final[Mapping[str, Subresource]] = {
    "status": Subresource(("get", "patch", "update")),
    "scale": Subresource(("get", "patch", "update"), SCALE),
    "log": Subresource(("get",)),
    "exec": Subresource(("create", "get"), _of_core("PodExecOptions")),
    "binding": Subresource(("create",), _of_core("Binding")),
}


def find(request: web.Request, path: str) -> web.Response | None:
    """The answer to a GET of that path; None when it is about objects, or nothing."""
    match path.strip("/").split("/"):
        case [""]:
            return responses.json({"paths": _root_paths()})
        case ["api"]:
            versions = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
            return _aggregated(request, [""]) or responses.json(versions)
        case ["apis"]:
            groups = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [*map(_group, _groups())]}
            return _aggregated(request, _groups()) or responses.json(groups)
        case ["api", version]:
            return _resources("", version)
        case ["apis", group]:
            head = {"kind": "APIGroup", "apiVersion": "v1"}
            return responses.json(head | _group(group)) if group in _groups() else None
        case ["apis", group, version]:
            return _resources(group, version)
        case ["version"]:
            return responses.json(_version())
        case ["openapi", "v3", *rest]:
            return _openapi(request, "/".join(rest))
        case _:
            return None


def _groups() -> list[str]:
    return sorted({kind.group for kind in SERVED} - {""})


def _of(group: str, version: str) -> list[Kind]:
    return sorted((k for k in SERVED if (k.group, k.version) == (group, version)), key=lambda kind: kind.plural)


def _versions(group: str) -> list[str]:
    return sorted({kind.version for kind in SERVED if kind.group == group})


def _group_versions() -> Iterable[tuple[str, str]]:
    return ((group, version) for group in ("", *_groups()) for version in _versions(group))


def _root(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _root_paths() -> list[str]:
    groups = [f"/apis/{group}" for group in _groups()]
    documents = [f"/openapi/v3/{_root(*named)}" for named in _group_versions()]
    listed = ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]
    return sorted([*listed, *groups, *(f"/{_root(*named)}" for named in _group_versions()), *documents])


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in _versions(group)]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


# ----- one list for each group and version


def _resources(group: str, version: str) -> web.Response | None:
    kinds = _of(group, version)
    if not kinds:
        return None
    resources = [resource for kind in kinds for resource in (_resource(kind), *_subresources(kind))]
    head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version}
    return responses.json(head | {"resources": resources})


def _resource(kind: Kind) -> dict[str, Any]:
    more = {"shortNames": _short_names(kind), "categories": list(kind.categories)}
    return {
        "name": kind.plural,
        "singularName": kind.name.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.name,
        "verbs": OBJECT_VERBS,
    } | {key: value for key, value in more.items() if value}


def _short_names(kind: Kind) -> list[str]:
    return [alias for alias in kind.aliases if alias != kind.name.lower()]


def _subresources(kind: Kind) -> Iterable[dict[str, Any]]:
    for name in sorted(kind.subresources):
        of = SUBRESOURCES[name].kind or kind
        named = {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.namespaced}
        elsewhere = {} if of.group == kind.group else {"group": of.group, "version": of.version}
        yield named | elsewhere | {"kind": of.name, "verbs": SUBRESOURCES[name].verbs}


# ----- everything at once


def _aggregated_version(request: web.Request) -> str:
    """In which version the client wants all groups in one list; "" when it does not.

    Raises:
        ApiError: 406, it takes no JSON.
    """
    for wanted in accepted(request.headers.get("Accept", "")):
        name, group, version = wanted.form
        if wanted.is_json and not name:
            return ""
        if (
            wanted.is_json
            and (name, group) == ("APIGroupDiscoveryList", _AGGREGATED)
            and version in _AGGREGATED_VERSIONS
        ):
            return version
    raise statuses.not_acceptable((JSON,))


def _aggregated(request: web.Request, groups: Sequence[str]) -> web.Response | None:
    """The list of those groups with all that is in them; None for a client that does not want it."""
    api_version = _aggregated_version(request)
    if not api_version:
        return None
    items = [
        {
            "metadata": {"name": group} if group else {},
            "versions": [
                {
                    "version": version,
                    "resources": [_discovered(kind) for kind in _of(group, version)],
                    "freshness": "Current",
                }
                for version in _versions(group)
            ],
        }
        for group in groups
    ]
    head = {"kind": "APIGroupDiscoveryList", "apiVersion": f"{_AGGREGATED}/{api_version}", "metadata": {}}
    answer = responses.json(head | {"items": items})
    # The parameters are how clients tell this from the older answer.
    answer.headers["Content-Type"] = f"{JSON};g={_AGGREGATED};v={api_version};as=APIGroupDiscoveryList"
    return answer


def _discovered(kind: Kind) -> dict[str, Any]:
    more = {
        "shortNames": _short_names(kind),
        "categories": list(kind.categories),
        "subresources": [
            {
                "subresource": name,
                "responseKind": _response_kind(SUBRESOURCES[name].kind or kind),
                "verbs": SUBRESOURCES[name].verbs,
            }
            for name in sorted(kind.subresources)
        ],
    }
    return {
        "resource": kind.plural,
        "responseKind": _response_kind(kind),
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.name.lower(),
        "verbs": OBJECT_VERBS,
    } | {key: value for key, value in more.items() if value}


def _response_kind(kind: Kind) -> dict[str, str]:
    return {"group": kind.group, "version": kind.version, "kind": kind.name}


# ----- the server itself


def _version() -> dict[str, str]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".", maxsplit=2)
    return {
        "major": major,
        "minor": minor,
        "gitVersion": KUBERNETES_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": f"linux/{architecture()}",
    }


def _openapi(request: web.Request, root: str) -> web.Response | None:
    by_root = {_root(*named): named for named in _group_versions()}
    if not root:
        paths = {
            name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={_document(*named)[1]}"}
            for name, named in by_root.items()
        }
        return responses.json({"paths": paths})
    if root not in by_root:
        return None
    content, digest = _document(*by_root[root])
    tag = f'"{digest}"'
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers={"ETag": tag})
    return web.Response(body=content, content_type=JSON, headers={"ETag": tag})


@functools.cache
def _document(group: str, version: str) -> tuple[bytes, str]:
    subresources = {name: (found.verbs, found.kind) for name, found in SUBRESOURCES.items()}
    content = msgspec.json.encode(openapi.document(_of(group, version), subresources))
    return content, hashlib.sha256(content).hexdigest()[:32].upper()
