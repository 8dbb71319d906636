"""What a pod finds in /etc: its hosts file, its resolv.conf, and what it calls itself, as a kubelet would give it.

Law: pure, from values to texts. Rules: Kubernetes, pkg/kubelet/kubelet_pods.go and pkg/kubelet/network/dns/dns.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kproxy.api.types import Pod
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.dns import addon

HOSTNAME_LIMIT: Final = 63
_MOST_NAMESERVERS: Final = 3
_CLUSTER_OPTIONS: Final = {"ndots": "5"}
_STANDARD_HOSTS: Final = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
)


def hostname(pod: Pod) -> str:
    """What the pod calls itself: spec.hostname, else its name, cut to what the kernel takes as a label."""
    short = (pod.spec.hostname or pod.metadata.name)[:HOSTNAME_LIMIT].rstrip("-.")
    if not pod.spec.set_hostname_as_fqdn:
        return short
    full = full_name(pod)
    return full if full and len(full) <= HOSTNAME_LIMIT + 1 else short


def full_name(pod: Pod) -> str:
    """The name under which the pod's headless Service knows it; empty when it has no subdomain."""
    if not pod.spec.subdomain:
        return ""
    short = (pod.spec.hostname or pod.metadata.name)[:HOSTNAME_LIMIT].rstrip("-.")
    return f"{short}.{pod.spec.subdomain}.{pod.metadata.namespace}.svc.{addon.DOMAIN}"


def hosts(pod: Pod, addresses: Sequence[str]) -> str:
    """Its /etc/hosts; with the node's network it is the node's, and of that one nothing is known here.

    Args:
        pod: the pod.
        addresses: its own, one a family.
    """
    if pod.spec.host_network:
        lines = ["# Kubernetes-managed hosts file (host network).", *_STANDARD_HOSTS]
        lines += [f"{address}\t{pod.spec.node_name}" for address in addresses]
    else:
        names = [name for name in (full_name(pod), hostname(pod)) if name]
        lines = ["# Kubernetes-managed hosts file.", *_STANDARD_HOSTS]
        lines += ["\t".join((address, *dict.fromkeys(names))) for address in addresses]
    if pod.spec.host_aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += ["\t".join((alias.ip, *alias.hostnames)) for alias in pod.spec.host_aliases]
    return "\n".join(lines) + "\n"


def resolv_conf(pod: Pod, config: ClusterConfig) -> str:
    """Its /etc/resolv.conf by its dnsPolicy and dnsConfig; a lab's nodes ask the world outside, at the router."""
    spec, own = pod.spec, pod.spec.dns_config
    is_clusters = spec.dns_policy == "ClusterFirstWithHostNet" or (
        spec.dns_policy == "ClusterFirst" and not spec.host_network
    )
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str | None] = {}
    if is_clusters:
        servers += addon.addresses(config.service_networks)[:1]
        searches += [f"{pod.metadata.namespace}.svc.{addon.DOMAIN}", f"svc.{addon.DOMAIN}", addon.DOMAIN]
        options |= _CLUSTER_OPTIONS
    elif spec.dns_policy != "None":
        servers += config.router_addresses[:1]
    servers += [server for server in own.nameservers if server not in servers]
    searches += [domain for domain in own.searches if domain not in searches]
    options |= {option.name: option.value for option in own.options}
    lines = [f"search {' '.join(searches)}"] if searches else []
    lines += [f"nameserver {server}" for server in servers[:_MOST_NAMESERVERS]]
    if options:
        lines.append("options " + " ".join(f"{name}:{value}" if value else name for name, value in options.items()))
    return "".join(f"{line}\n" for line in lines)
