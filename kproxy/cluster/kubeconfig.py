"""Kubeconfigs: how kubectl, client libraries and node proxies are told where the API is and what to show it.

Source of the format: k8s.io/client-go/tools/clientcmd/api/v1/types.go.
"""

from __future__ import annotations

from base64 import b64encode
from typing import NamedTuple

import msgspec

from kproxy.api.types import Object


class Access(NamedTuple):
    """One way to the API.

    Attributes:
        cluster: what the cluster is called in the file.
        server: ``https://host:port``.
        authority: whom to trust, as PEM.
        user: what the user is called in the file.
        token: what to show.
    """

    cluster: str
    server: str
    authority: bytes
    user: str
    token: str


def as_object(access: Access) -> Object:
    """The kubeconfig with that one way in it, chosen."""
    cluster = {"server": access.server, "certificate-authority-data": b64encode(access.authority).decode("ascii")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": access.cluster, "cluster": cluster}],
        "users": [{"name": access.user, "user": {"token": access.token}}],
        "contexts": [{"name": access.cluster, "context": {"cluster": access.cluster, "user": access.user}}],
        "current-context": access.cluster,
    }


def as_json(access: Access) -> bytes:
    """The same as a file's content; JSON is YAML, and quicker to read."""
    return msgspec.json.encode(as_object(access))


def as_yaml(access: Access) -> str:
    """The same as people know it."""
    import yaml

    text: str = yaml.dump(as_object(access), Dumper=yaml.CSafeDumper, sort_keys=False, default_flow_style=False)
    return text
