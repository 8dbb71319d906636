"""What makes a cluster have names: the Service and the Deployment of its DNS server, as kubeadm installs CoreDNS.

Law: pure. The address is the tenth of the Services' network (kubeadm: cmd/kubeadm/app/constants, GetDNSIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final

from kproxy.api.kinds import DEPLOYMENT, SERVICE, Kind
from kproxy.api.types import Object

NAMESPACE: Final = "kube-system"
NAME: Final = "kube-dns"
IMAGE: Final = "kproxy.dev/dns"
"""What the node agent knows as this package's own program."""
SERVICE_ACCOUNT: Final = "kube-dns"
DOMAIN: Final = "cluster.local"
_LABELS: Final = {"k8s-app": "kube-dns"}
_ADDRESS_NUMBER: Final = 10


def addresses(service_networks: Sequence[str]) -> tuple[str, ...]:
    """The addresses of the DNS server's Service: one a network, in their order."""
    return tuple(str(ip_network(network)[_ADDRESS_NUMBER]) for network in service_networks)


def objects(service_networks: Sequence[str], replicas: int) -> tuple[tuple[Kind, Object], ...]:
    """The Service and the Deployment, each with its kind.

    Args:
        service_networks: one a family of the cluster, in its order.
        replicas: how many pods serve.
    """
    found = addresses(service_networks)
    metadata = {
        "name": NAME,
        "namespace": NAMESPACE,
        "labels": {**_LABELS, "kubernetes.io/name": "KubeDNS", "kubernetes.io/cluster-service": "true"},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": found[0],
            "clusterIPs": list(found),
            "ipFamilyPolicy": "SingleStack" if len(found) == 1 else "RequireDualStack",
            "selector": _LABELS,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": _LABELS},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": _LABELS}, "spec": _pod(service_networks)},
        },
    }
    return (SERVICE, service), (DEPLOYMENT, deployment)


def _pod(service_networks: Sequence[str]) -> Object:
    api = str(ip_network(service_networks[0])[1])
    term = {"labelSelector": {"matchLabels": _LABELS}, "topologyKey": "kubernetes.io/hostname"}
    ports = [
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
    ]
    return {
        "serviceAccountName": SERVICE_ACCOUNT,
        "dnsPolicy": "Default",
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
            }
        },
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}],
        "containers": [
            {
                "name": "dns",
                "image": IMAGE,
                "ports": ports,
                "env": [
                    {"name": "KUBERNETES_SERVICE_HOST", "value": api},
                    {"name": "KUBERNETES_SERVICE_PORT", "value": "443"},
                ],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
            }
        ],
    }
