"""How the proxy reaches the Kubernetes API: --kubeconfig, --master, or the pod that it runs in.

What most kubeconfigs consist of is read here, for a node proxy starts with it; plugins are left to the official client
library, which is loaded for them alone (docs/decisions/0121-two-readers-of-kubeconfigs.md).

Rules: k8s.io/client-go, tools/clientcmd and rest/config.go; kube-proxy, server.go, createClient.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from kproxy.client import Client, Credentials
from kproxy.errors import UserError
from kproxy.proxy.credentials import FileCredentials, PluginCredentials, Shown, Trust

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LIBRARYS: Final = frozenset(["exec", "auth-provider", "username", "password"])
"""Fields of a user entry that the library deals with."""
REFUSED: Final = frozenset(["as", "as-uid", "as-groups", "as-user-extra"])
"""Fields of a user entry that nobody here deals with: to go on without them would be to be somebody else."""

T = TypeVar("T")


class _Cluster(Trust, frozen=True, rename="kebab"):
    server: str = ""
    tls_server_name: str = ""
    proxy_url: str = ""


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: dict[str, Any] | None = None


class _Kubeconfig(msgspec.Struct, frozen=True, rename="kebab"):
    clusters: tuple[_NamedCluster, ...] | None = None
    contexts: tuple[_NamedContext, ...] | None = None
    users: tuple[_NamedUser, ...] | None = None
    current_context: str = ""


def connect(
    kubeconfig: str, master: str, environ: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT
) -> Client:
    """A client of the API that the flags mean.

    Args:
        kubeconfig: a file; empty for none.
        master: stands above the file's server; without a file it is asked without credentials.
        environ: where a pod is told of its cluster, when there is neither.
        account: the folder with what a pod shows.

    Raises:
        UserError: the file, or what it names, cannot be used; or this is no pod.
    """
    if kubeconfig:
        return _by_kubeconfig(Path(kubeconfig), master)
    if master:
        return Client(master)
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise UserError("where are the objects? --manifests DIR, --kubeconfig FILE or --master URL is needed")
    credentials = FileCredentials(Trust(certificate_authority="ca.crt"), Shown(token_file="token"), account)  # noqa: S106 - a name
    return Client(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", credentials=credentials)


def _by_kubeconfig(path: Path, master: str) -> Client:
    config = _read(path)
    contexts = {entry.name: entry.context for entry in config.contexts or ()}
    context = _named(path, "context", config.current_context, contexts)
    clusters = {entry.name: entry.cluster for entry in config.clusters or ()}
    cluster = _named(path, "cluster", context.cluster, clusters)
    users = {entry.name: entry.user or {} for entry in config.users or ()}
    user = _named(path, "user", context.user, users) if context.user else {}
    if cluster.proxy_url and not cluster.proxy_url.startswith("http://"):
        raise UserError(f'{path}: cluster "{context.cluster}": proxy-url: only http:// proxies can be used')
    if refused := sorted(REFUSED & user.keys()):
        raise UserError(f'{path}: user "{context.user}": {", ".join(refused)}: the proxy does not impersonate')
    return Client(
        master or cluster.server.rstrip("/"),
        credentials=_credentials(path, cluster, context.user, user),
        by_way_of=cluster.proxy_url,
        server_name=cluster.tls_server_name,
    )


def _credentials(path: Path, trust: Trust, name: str, user: Mapping[str, Any]) -> Credentials:
    if LIBRARYS & user.keys():
        return PluginCredentials(path)
    try:
        return FileCredentials(trust, msgspec.convert(user, Shown), path.parent)
    except (UserError, msgspec.ValidationError) as error:
        raise UserError(f'{path}: user "{name}": {error}') from error


def _named(path: Path, what: str, name: str, entries: Mapping[str, T]) -> T:
    if not name:
        raise UserError(f"{path} names no {what}" if what != "context" else f"{path} has no current-context")
    if name not in entries:
        raise UserError(f'{path}: {what} "{name}" does not exist')
    return entries[name]


def _read(path: Path) -> _Kubeconfig:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        return msgspec.convert(_parsed(text), _Kubeconfig)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f"{path} is no kubeconfig: {error}") from error


def _parsed(text: bytes) -> Any:
    if text.startswith(b"{"):
        with contextlib.suppress(msgspec.DecodeError):  # it may be YAML all the same
            return msgspec.json.decode(text)
    import yaml  # late: 7 ms that a file in JSON does without

    try:
        return yaml.load(text, yaml.CSafeLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
