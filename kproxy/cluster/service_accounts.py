"""What a pod finds of its service account: the token and the authority by which it reaches the API.

Here one account alone has a token, the DNS server's; every other pod is nobody to the API.

Source of the paths: Kubernetes, plugin/pkg/admission/serviceaccount.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kproxy.api.types import Pod
from kproxy.cluster import tokens
from kproxy.cluster.certificates import CA_CERTIFICATE
from kproxy.cluster.dns import addon
from kproxy.cluster.layout import Layout
from kproxy.cluster.rights import DNS

FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


def files(layout: Layout, pod: Pod) -> Mapping[str, str]:
    """The files of the pod's account by path, with their text; empty for a pod without one.

    Raises:
        UserError: the lab has no tokens yet.
        OSError: nor an authority.
    """
    who = pod.metadata.namespace, pod.spec.service_account_name
    if who != (addon.NAMESPACE, addon.SERVICE_ACCOUNT):
        return {}
    return {
        f"{FOLDER}/token": tokens.read(layout.tokens, ()).of(DNS),
        f"{FOLDER}/ca.crt": (layout.certificates / CA_CERTIFICATE).read_text(encoding="ascii"),
        f"{FOLDER}/namespace": pod.metadata.namespace,
    }
