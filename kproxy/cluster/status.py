"""What a lab consists of right now, as values; their JSON is `kproxy lab status -o json`."""

from __future__ import annotations

import msgspec


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the parts: camel case in JSON, every field present."""


class RouterStatus(Part, frozen=True):
    """The router between nodes and the outside."""

    namespace: str
    addresses: tuple[str, ...]


class ProxySettings(Part, frozen=True):
    """How one proxy works, after defaults and all flags; names are those of KubeProxyConfiguration.

    Attributes:
        mode: `iptables` or `nftables`.
        cluster_cidrs: with ClusterCIDR the first of a family counts; without one pods are not told from others.
        pod_bridge_interface: where packets of pods come in, with BridgeInterface.
        pod_interface_name_prefix: how that interface's name begins, with InterfaceNamePrefix.
        node_port_addresses: networks of the addresses on which node ports answer, `primary` spelt out; a family of
            which there is none answers on all of its addresses.
        localhost_node_ports: node ports answer on 127.0.0.1 too.
    """

    mode: str
    detect_local_mode: str
    cluster_cidrs: tuple[str, ...] = msgspec.field(name="clusterCIDRs")
    pod_bridge_interface: str
    pod_interface_name_prefix: str
    masquerade_all: bool
    node_port_addresses: tuple[str, ...]
    localhost_node_ports: bool


class NodeStatus(Part, frozen=True):
    """One node.

    Attributes:
        namespace: its network namespace, as `ip netns` lists it.
        addresses: one a family, primary family first.
        proxy: `kproxy`; on a node left to others `other` if one has written its rules, else `none`.
        ready: its proxy has programmed something and runs; always true without our proxy.
        proxy_settings: how its proxy works, or would if it were ours; None without a proxy.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    zone: str
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs")
    proxy: str
    ready: bool
    proxy_settings: ProxySettings | None = None


class ClientStatus(Part, frozen=True):
    """One client outside the cluster.

    Attributes:
        routes: the networks it can reach; everything else is "no route" from there.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


class ExternalRoute(Part, frozen=True):
    """How the outside reaches external and load balancer addresses: `to` is a network, `via` the name of a node."""

    to: str
    via: str


class LoadBalancedService(Part, frozen=True):
    """A Service that asks the lab for a load balancer.

    Attributes:
        service: `default/web`.
        kind: `l2`, `nlb` or `classic`.
        observed: resourceVersion of the Service that this is about; 0 until all nodes have been asked once, and while
            something that is to be done for it fails.
        addresses: one a family; empty when it gets none.
        reason: why it gets none.
        ip_mode: `VIP` or `Proxy`.
        announcers: l2 only: the node that answers for each address; one that no node may serve is missing.
        nodes: the nodes that may serve it now.
    """

    service: str
    kind: str
    observed: str
    addresses: tuple[str, ...]
    reason: str
    ip_mode: str
    announcers: dict[str, str]
    nodes: tuple[str, ...]


class LoadBalancersStatus(Part, frozen=True):
    """The lab's load balancers.

    Attributes:
        kind: what serves a Service that does not choose; `none` leaves it to others.
        cidrs: the pool.
    """

    kind: str = "none"
    cidrs: tuple[str, ...] = ()
    services: tuple[LoadBalancedService, ...] = ()


class PodStatus(Part, frozen=True):
    """One pod.

    Attributes:
        namespace_: the Kubernetes namespace (`podNamespace` in JSON).
        namespace: the network namespace; that of the node with hostNetwork, empty while there is none.
        echo: the built-in echo server answers in it.
    """

    namespace_: str = msgspec.field(name="podNamespace")
    name: str
    namespace: str
    node: str
    addresses: tuple[str, ...]
    host_network: bool
    ready: bool
    echo: bool


class ProcessStatus(Part, frozen=True):
    """One process of the lab.

    Attributes:
        role: `control-plane`, `fork-server`, `proxy`, `pod`, `load-balancer`, `haproxy`, or `relay`.
        where: the node or pod it belongs to; `host` for those in the host's namespaces; a relay's with its address.
    """

    role: str
    pid: int
    where: str


class ProxyStatus(Part, frozen=True):
    """What the lab's proxies were told; nodes with flags of their own say in their `proxySettings` what that comes to.

    Attributes:
        variant: `legacy` or `nft`: the iptables variant all nodes use.
        detect_local_mode: kube-proxy's --detect-local-mode.
    """

    cluster_cidrs: tuple[str, ...] = msgspec.field(name="clusterCIDRs")
    masquerade_all: bool
    detect_local_mode: str
    variant: str


class LabStatus(Part, frozen=True):
    """A whole lab."""

    name: str
    ip_families: tuple[str, ...]
    pod_network: str
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs")
    service_cidrs: tuple[str, ...] = msgspec.field(name="serviceCIDRs")
    node_port_range: str
    router: RouterStatus
    nodes: tuple[NodeStatus, ...]
    clients: tuple[ClientStatus, ...]
    external_routes: tuple[ExternalRoute, ...]
    pods: tuple[PodStatus, ...]
    processes: tuple[ProcessStatus, ...]
    proxy: ProxyStatus
    api_socket: str
    load_balancers: LoadBalancersStatus = LoadBalancersStatus()
