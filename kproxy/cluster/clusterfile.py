"""The cluster file: what a lab looks like before anything of it is made.

Law: a `ClusterConfig` is complete and consistent. Every default is filled in, every address belongs to its network, no
two networks overlap; whatever cannot be so is refused with all findings at once, before the host is touched.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

import msgspec

from kproxy.api import known_fields
from kproxy.api.field_errors import UNKNOWN_FIELD, FieldError, duplicate, forbidden, invalid, not_supported, required
from kproxy.api.formats import dns_subdomain
from kproxy.api.types import Object, Value
from kproxy.cluster.dns import addon
from kproxy.cluster.layout import DEFAULT_LAB, LAB_NAME
from kproxy.errors import Finding, InvalidInput

if TYPE_CHECKING:
    from kproxy.api.manifest import Document  # with it comes YAML, which a control plane has no use for

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

API_VERSION: Final = "kproxy.dev/v1alpha1"
KIND: Final = "Cluster"
FAMILIES: Final = ("IPv4", "IPv6")
NODE_NETWORKS: Final = ("192.168.1.0/24", "fd00:1::/64")
POD_NETWORKS: Final = ("10.244.0.0/16", "fd00:10:244::/48")
SERVICE_NETWORKS: Final = ("10.96.0.0/12", "fd00:10:96::/112")
OUTSIDE_NETWORKS: Final = ("203.0.113.0/24", "2001:db8:113::/64")
LOAD_BALANCER_NETWORKS: Final = ("198.51.100.0/24", "2001:db8:198::/112")
LOAD_BALANCERS: Final = ("l2", "nlb", "classic", "none")
"""What may serve Services of type LoadBalancer; ``none`` leaves them to somebody else."""
NODE_PORT_RANGE: Final = "30000-32767"
DEFAULT_NODES: Final = 3
MAX_NODES: Final = 100
MAX_CLIENTS: Final = 50
DNS_REPLICAS: Final = 2
"""As many as kubeadm installs."""
MAX_DNS_REPLICAS: Final = 10
FIRST_NODE: Final = 2
"""Host number of the first node; the router is 1."""
POD_PREFIX: Final = {4: 24, 6: 64}
"""What each node gets of the pod network (kube-controller-manager's --node-cidr-mask-size defaults)."""
CLIENT_NUMBER: Final = {4: 10, 6: 0x10}
"""Host number of the first client, so that it reads `10` in both families."""
RESERVED: Final = ("router", "fabric")
UNUSABLE: Final = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8")
)
"""Networks whose addresses the kernel does not route, or not as those of machines."""
PROXY_MODES: Final = ("iptables", "nftables", "none")
LABS_FLAGS: Final = frozenset(
    [
        *("config", "hostname-override", "kubeconfig", "manifests", "master"),
        *("healthz-bind-address", "healthz-port", "iptables-variant"),
        *("cleanup", "help", "init-only", "version", "write-config-to"),
    ]
)
"""Flags by which a proxy and its lab find each other, or that make it end; a cluster file does not set them."""
FlagCheck = Callable[[Mapping[str, str]], Sequence[tuple[str, str]]]
"""From flags of `kproxy proxy` to what is wrong with them: name of the flag (empty: of all together) and reason."""
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_RULE: Final = (
    "must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"
)


class ProxyConfig(Value, frozen=True):
    """How nodes are proxied.

    Attributes:
        mode: `iptables` or `nftables`, or `none` for nodes in which another proxy is to run.
        variant: `auto`, `legacy` or `nft`; auto is legacy where the kernel has it. One for the whole lab.
        flags: more flags for `kproxy proxy`, without the dashes: `{"masquerade-all": "true"}`.
    """

    mode: str = "iptables"
    variant: str = "auto"
    flags: dict[str, str] = msgspec.field(default_factory=dict)


class NodeConfig(Value, frozen=True):
    """One node; addresses and pod networks hold one entry a family, primary family first."""

    name: str
    zone: str
    labels: dict[str, str]
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs")
    proxy: ProxyConfig


class ClientConfig(Value, frozen=True):
    """One client outside; one address a family.

    Attributes:
        names: what the world outside calls it in DNS, in lower case.
        ports: TCP ports on which it answers, as an echo server.
    """

    name: str
    addresses: tuple[str, ...]
    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


class ExternalRoute(Value, frozen=True):
    """The outside sends traffic for the network `to` to the node named `via`."""

    to: str
    via: str


class LoadBalancerConfig(Value, frozen=True):
    """Who serves Services of type LoadBalancer.

    Attributes:
        kind: one of `LOAD_BALANCERS`, for Services that do not choose themselves.
        cidrs: the pool, one network a family in the order of the cluster's; empty with `none`, unless one was named.
    """

    kind: str = "none"
    cidrs: tuple[str, ...] = ()


class ImageCommand(Value, frozen=True):
    """Images that match the pattern run this local command instead of the echo server."""

    match: str
    command: tuple[str, ...]


class ClusterConfig(Value, frozen=True):
    """A whole cluster, complete. Tuples of networks hold one a family, in the order of `ip_families`.

    Attributes:
        pod_network: `host-gw` or `vxlan`.
        router_addresses: the router's on the nodes' network.
        gateway_addresses: the router's on the outside network.
        dns_replicas: how many pods serve the cluster's names; 0: it has none.
    """

    name: str
    ip_families: tuple[str, ...]
    nodes: tuple[NodeConfig, ...]
    node_networks: tuple[str, ...]
    router_addresses: tuple[str, ...]
    pod_network: str
    pod_networks: tuple[str, ...]
    service_networks: tuple[str, ...]
    node_port_range: str
    outside_networks: tuple[str, ...]
    gateway_addresses: tuple[str, ...]
    clients: tuple[ClientConfig, ...]
    external_routes: tuple[ExternalRoute, ...]
    load_balancer: LoadBalancerConfig
    dns_replicas: int
    proxy: ProxyConfig
    images: tuple[ImageCommand, ...]

    def node(self, name: str) -> NodeConfig:
        """The node of that name.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def image_command(self, image: str) -> tuple[str, ...]:
        """What a container of this image runs when it names no command; empty means the echo server."""
        for entry in self.images:
            if fnmatch.fnmatchcase(image, entry.match):
                return entry.command
        return ()


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the file; None leaves the file's word.

    Attributes:
        nodes: so many nodes: the file's first ones, and default ones after them.
        network: `host-gw` or `vxlan`.
        ip_families: `IPv4`, `IPv6`, or both in order.
    """

    lab: str | None = None
    nodes: int | None = None
    network: str | None = None
    ip_families: tuple[str, ...] | None = None
    service_node_port_range: str | None = None
    dns_replicas: int | None = None
    proxy_mode: str | None = None
    iptables_variant: str | None = None


class _ProxySpec(Value, frozen=True):
    mode: str | None = None
    variant: str | None = None
    flags: dict[str, str | bool | int | float] = msgspec.field(default_factory=dict)

    def flag_texts(self) -> dict[str, str]:
        """The flags as a command line has them: ``v: 4`` is as good as ``v: "4"``, and true is ``true``."""
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in self.flags.items()
        }


class _NodeSpec(Value, frozen=True):
    name: str = ""
    zone: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    proxy: _ProxySpec = _ProxySpec()


class _Networks(Value, frozen=True):
    mode: str | None = None
    cidrs: tuple[str, ...] = ()


class _ClientSpec(Value, frozen=True):
    name: str = ""
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


class _DnsSpec(Value, frozen=True):
    replicas: int | None = None


class _RouteSpec(Value, frozen=True):
    to: str = ""
    via: str = ""


class _LoadBalancerSpec(Value, frozen=True):
    kind: str | None = None
    cidrs: tuple[str, ...] = ()


class _ImageSpec(Value, frozen=True):
    match: str = ""
    command: tuple[str, ...] = ()


class _Spec(Value, frozen=True):
    ip_families: tuple[str, ...] = ("IPv4",)
    nodes: tuple[_NodeSpec, ...] = ()
    node_network: _Networks = _Networks()
    pod_network: _Networks = _Networks()
    service_cidrs: tuple[str, ...] = msgspec.field(name="serviceCIDRs", default=())
    service_node_port_range: str = NODE_PORT_RANGE
    outside: _Networks = _Networks()
    clients: tuple[_ClientSpec, ...] | None = None
    external_routes: tuple[_RouteSpec, ...] = ()
    load_balancer: _LoadBalancerSpec = _LoadBalancerSpec()
    dns: _DnsSpec = _DnsSpec()
    proxy: _ProxySpec = _ProxySpec()
    images: tuple[_ImageSpec, ...] = ()


def read(
    documents: Sequence[Document],
    overrides: Overrides | None = None,
    check_flags: FlagCheck = lambda flags: (),
) -> ClusterConfig:
    """The complete configuration of a cluster.

    Args:
        documents: what the cluster file holds: one Cluster; empty when no file was given.
        overrides: what the command line said.
        check_flags: knows the proxy's flags; asked for each set of them that is given.

    Raises:
        InvalidInput: with everything that is wrong.
    """
    overrides = overrides or Overrides()
    findings = [
        Finding(document.origin.file, document.origin.line, "", "", "a cluster file holds one Cluster and nothing else")
        for document in documents[1:]
    ]
    document = documents[0] if documents else None
    obj: Object = document.obj if document else {}
    errors = _shape_errors(obj) if document else []
    builder = _Builder(check_flags)
    # Unknown fields keep nobody from reading the others.
    config = builder.build(obj, overrides) if all(error.kind is UNKNOWN_FIELD for error in errors) else None
    errors += builder.errors
    if document is not None:
        findings += document.findings(errors)
    else:
        findings += [Finding("", 0, KIND, error.field, error.body()) for error in errors]
    if findings or config is None:
        raise InvalidInput(findings)
    return config


def _shape_errors(obj: Object) -> list[FieldError]:
    if obj.get("apiVersion") != API_VERSION or obj.get("kind") != KIND:
        return [invalid("kind", f"{obj.get('apiVersion')}/{obj.get('kind')}", f"must be {API_VERSION} {KIND}")]
    errors = list(known_fields.check(obj))
    if not errors:
        try:
            msgspec.convert(obj.get("spec") or {}, _Spec)
        except msgspec.ValidationError as error:
            errors.append(invalid("spec", None, str(error)))
    return errors


@dataclass(frozen=True)
class _Named:
    """A network with the field it came from."""

    field: str
    network: Network


class _Builder:
    """Fills in defaults and collects what is wrong on the way."""

    def __init__(self, check_flags: FlagCheck) -> None:
        self.errors: list[FieldError] = []
        self._complaints = check_flags
        self.families: tuple[str, ...] = FAMILIES[:1]
        self.spec = _Spec()

    def build(self, obj: Object, overrides: Overrides) -> ClusterConfig | None:
        self.spec = msgspec.convert(obj.get("spec") or {}, _Spec)
        name = overrides.lab or str((obj.get("metadata") or {}).get("name") or DEFAULT_LAB)
        if not LAB_NAME.fullmatch(name):
            self.errors.append(invalid("metadata.name", name, "must be 1 to 10 of the characters a-z and 0-9"))
        self.families = self._families(overrides.ip_families or self.spec.ip_families)
        networks = {
            "node": self._networks("spec.nodeNetwork.cidrs", self.spec.node_network.cidrs, NODE_NETWORKS),
            "pod": self._networks("spec.podNetwork.cidrs", self.spec.pod_network.cidrs, POD_NETWORKS),
            "service": self._networks("spec.serviceCIDRs", self.spec.service_cidrs, SERVICE_NETWORKS),
            "outside": self._networks("spec.outside.cidrs", self.spec.outside.cidrs, OUTSIDE_NETWORKS),
        }
        if self.errors:
            return None
        self._refuse_overlaps([entry for entries in networks.values() for entry in entries])
        proxy = self._proxy("spec.proxy", self.spec.proxy, overrides)
        nodes = self._nodes(networks, proxy, overrides)
        clients = self._clients(networks["outside"], [node.name for node in nodes])
        routes = self._external_routes([node.name for node in nodes], networks)
        balancer = self._load_balancer(routes, [entry for entries in networks.values() for entry in entries])
        mode = overrides.network or self.spec.pod_network.mode or "host-gw"
        if mode not in ("host-gw", "vxlan"):
            self.errors.append(not_supported("spec.podNetwork.mode", mode, ("host-gw", "vxlan")))
        port_range = overrides.service_node_port_range or self.spec.service_node_port_range
        self._check_port_range(port_range)
        images = self._images()
        dns_replicas = self._dns_replicas(overrides)
        if self.errors:
            return None
        return ClusterConfig(
            name=name,
            ip_families=self.families,
            nodes=nodes,
            node_networks=_texts(networks["node"]),
            router_addresses=tuple(str(entry.network[1]) for entry in networks["node"]),
            pod_network=mode,
            pod_networks=_texts(networks["pod"]),
            service_networks=_texts(networks["service"]),
            node_port_range=port_range,
            outside_networks=_texts(networks["outside"]),
            gateway_addresses=tuple(str(entry.network[1]) for entry in networks["outside"]),
            clients=clients,
            external_routes=routes,
            load_balancer=balancer,
            dns_replicas=dns_replicas,
            proxy=proxy,
            images=images,
        )

    def _families(self, given: Sequence[str]) -> tuple[str, ...]:
        for index, family in enumerate(given):
            if family not in FAMILIES:
                self.errors.append(not_supported(f"spec.ipFamilies[{index}]", family, FAMILIES))
            elif family in given[:index]:
                self.errors.append(duplicate(f"spec.ipFamilies[{index}]", family))
        if not given:
            self.errors.append(required("spec.ipFamilies"))
        return tuple(given)

    def _networks(self, field: str, given: Sequence[str], defaults: Sequence[str]) -> list[_Named]:
        """One network a family, in the families' order: the given one, else the default.

        Networks of a family that the cluster does not have are checked and left out.
        """
        by_version: dict[int, _Named] = {}
        for index, text in enumerate(given):
            network = self._network(f"{field}[{index}]", text)
            if (
                network is not None
                and by_version.setdefault(network.version, _Named(field, network)).network != network
            ):
                self.errors.append(invalid(f"{field}[{index}]", text, "only one network a family"))
        for text in defaults:
            network = ip_network(text)
            by_version.setdefault(network.version, _Named(field, network))
        return [by_version[_version(family)] for family in self.families if family in FAMILIES]

    def _network(self, field: str, text: str) -> Network | None:
        try:
            network = ip_network(text)
        except ValueError:
            self.errors.append(invalid(field, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"))
            return None
        if network.num_addresses < 4:
            self.errors.append(invalid(field, text, "must hold at least 4 addresses"))
            return None
        if unusable := next((other for other in UNUSABLE if _overlap(network, other)), None):
            self.errors.append(
                invalid(field, text, f"overlaps with {unusable}, which no machine can have addresses of")
            )
            return None
        return network

    def _refuse_overlaps(self, entries: Sequence[_Named]) -> None:
        for index, entry in enumerate(entries):
            self._refuse_overlaps_with(entry, entries[:index])

    def _refuse_overlaps_with(self, entry: _Named, others: Sequence[_Named]) -> None:
        for other in others:
            if _overlap(entry.network, other.network):
                detail = f"overlaps with {other.network} ({other.field})"
                self.errors.append(invalid(entry.field, str(entry.network), detail))

    def _proxy(self, field: str, spec: _ProxySpec, overrides: Overrides) -> ProxyConfig:
        mode = overrides.proxy_mode or spec.mode or "iptables"
        variant = overrides.iptables_variant or spec.variant or "auto"
        if mode not in PROXY_MODES:
            self.errors.append(not_supported(f"{field}.mode", mode, PROXY_MODES))
        if variant not in ("auto", "legacy", "nft"):
            self.errors.append(not_supported(f"{field}.variant", variant, ("auto", "legacy", "nft")))
        self._check_flags(f"{field}.flags", spec.flag_texts())
        return ProxyConfig(mode, variant, spec.flag_texts())

    def _check_flags(self, field: str, flags: Mapping[str, str]) -> None:
        sound = {}
        for name, value in flags.items():
            if not re.fullmatch(r"[a-z0-9][-a-z0-9]*", name):
                self.errors.append(invalid(field, name, "must be the name of a flag, without dashes before it"))
            elif name in LABS_FLAGS:
                self.errors.append(forbidden(f"{field}.{name}", "the lab itself sets this flag"))
            else:
                sound[name] = value
        for name, reason in self._complaints(sound) if sound else ():
            wrong = sound[name] if name else " ".join(f"--{flag}={value}" for flag, value in sound.items())
            self.errors.append(invalid(f"{field}.{name}" if name else field, wrong, reason))

    def _nodes(
        self, networks: Mapping[str, Sequence[_Named]], proxy: ProxyConfig, overrides: Overrides
    ) -> tuple[NodeConfig, ...]:
        specs = self._node_specs(overrides.nodes)
        nodes = tuple(self._node(index, spec, networks, proxy) for index, spec in enumerate(specs))
        self._refuse_duplicates("spec.nodes", "name", [node.name for node in nodes])
        self._refuse_shared_addresses("spec.nodes", [node.addresses for node in nodes])
        for version in (4, 6):
            self._refuse_overlaps(
                [
                    _Named(f"spec.nodes[{index}].podCIDRs", ip_network(cidr))
                    for index, node in enumerate(nodes)
                    for cidr in node.pod_cidrs
                    if ip_network(cidr).version == version
                ]
            )
        return nodes

    def _node_specs(self, count: int | None) -> list[_NodeSpec]:
        if count is not None and not 1 <= count <= MAX_NODES:
            self.errors.append(invalid("spec.nodes", count, f"must be between 1 and {MAX_NODES}, inclusive"))
            return []
        if len(self.spec.nodes) > MAX_NODES:
            self.errors.append(invalid("spec.nodes", len(self.spec.nodes), f"must have at most {MAX_NODES} items"))
            return []
        wanted = count or len(self.spec.nodes) or DEFAULT_NODES
        specs = list(self.spec.nodes[:wanted])
        # The first two thirds are in zone a, the rest in zone b.
        in_zone_a = (2 * wanted + 2) // 3
        for index in range(len(specs), wanted):
            specs.append(_NodeSpec(name=f"node{index + 1}", zone="a" if index < in_zone_a else "b"))
        return specs

    def _node(
        self, index: int, spec: _NodeSpec, networks: Mapping[str, Sequence[_Named]], proxy: ProxyConfig
    ) -> NodeConfig:
        field = f"spec.nodes[{index}]"
        self._check_name(f"{field}.name", spec.name)
        addresses = self._member_addresses(f"{field}.addresses", spec.addresses, networks["node"], FIRST_NODE + index)
        pod_cidrs = self._pod_cidrs(f"{field}.podCIDRs", spec.pod_cidrs, networks["pod"], index + 1)
        mode = spec.proxy.mode or proxy.mode
        if mode not in PROXY_MODES:
            self.errors.append(not_supported(f"{field}.proxy.mode", mode, PROXY_MODES))
        if spec.proxy.variant is not None and spec.proxy.variant != proxy.variant:
            detail = "all nodes of a lab use one variant; set spec.proxy.variant"
            self.errors.append(forbidden(f"{field}.proxy.variant", detail))
        self._check_flags(f"{field}.proxy.flags", spec.proxy.flag_texts())
        own = ProxyConfig(mode, proxy.variant, {**proxy.flags, **spec.proxy.flag_texts()})
        return NodeConfig(spec.name, spec.zone, spec.labels, addresses, pod_cidrs, own)

    def _member_addresses(
        self, field: str, given: Sequence[str], networks: Sequence[_Named], number: int | Mapping[int, int]
    ) -> tuple[str, ...]:
        """One address a family: the given one, else the network's one of that number."""
        by_version: dict[int, str] = {}
        for index, text in enumerate(given):
            address = self._address(f"{field}[{index}]", text, networks)
            if address is None:
                continue
            if address.version in by_version:
                self.errors.append(invalid(f"{field}[{index}]", text, "only one address a family"))
            by_version[address.version] = str(address)
        for entry in networks:
            version = entry.network.version
            offset = number if isinstance(number, int) else number[version]
            if version not in by_version and offset >= entry.network.num_addresses - 1:
                self.errors.append(invalid(entry.field, str(entry.network), "has too few addresses"))
                by_version[version] = str(entry.network[1])
            by_version.setdefault(version, str(entry.network[offset % entry.network.num_addresses]))
        return tuple(by_version[entry.network.version] for entry in networks)

    def _address(self, field: str, text: str, networks: Sequence[_Named]) -> Address | None:
        try:
            address = ip_address(text)
        except ValueError:
            self.errors.append(invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
            return None
        for entry in networks:
            if entry.network.version == address.version:
                if address not in entry.network or address == entry.network.network_address:
                    self.errors.append(invalid(field, text, f"must lie in {entry.network} ({entry.field})"))
                elif address == entry.network[1]:
                    self.errors.append(invalid(field, text, "is the router's"))
                return address
        self.errors.append(invalid(field, text, f"must be of a family in spec.ipFamilies: {', '.join(self.families)}"))
        return None

    def _pod_cidrs(self, field: str, given: Sequence[str], pools: Sequence[_Named], number: int) -> tuple[str, ...]:
        """One network a family: the given one, else subnet `number` of the cluster's pod network."""
        by_version: dict[int, Network] = {}
        for index, text in enumerate(given):
            network = self._network(f"{field}[{index}]", text)
            if network is None:
                continue
            pool = next((entry.network for entry in pools if entry.network.version == network.version), None)
            if pool is None or not _within(network, pool):
                self.errors.append(invalid(f"{field}[{index}]", text, "must lie in spec.podNetwork.cidrs"))
            by_version[network.version] = network
        for entry in pools:
            if entry.network.version not in by_version:
                subnet = _subnet(entry.network, number)
                if subnet is None:
                    detail = f"has no /{POD_PREFIX[entry.network.version]} for node number {number}"
                    self.errors.append(invalid(entry.field, str(entry.network), detail))
                    return ()
                by_version[entry.network.version] = subnet
        return tuple(str(by_version[entry.network.version]) for entry in pools)

    def _clients(self, outside: Sequence[_Named], node_names: Sequence[str]) -> tuple[ClientConfig, ...]:
        specs = (_ClientSpec(name="client"),) if self.spec.clients is None else self.spec.clients
        if len(specs) > MAX_CLIENTS:
            self.errors.append(invalid("spec.clients", len(specs), f"must have at most {MAX_CLIENTS} items"))
            return ()
        clients = []
        for index, spec in enumerate(specs):
            field = f"spec.clients[{index}]"
            self._check_name(f"{field}.name", spec.name)
            if spec.name in node_names:
                self.errors.append(invalid(f"{field}.name", spec.name, "is the name of a node"))
            number = {version: first + index for version, first in CLIENT_NUMBER.items()}
            addresses = self._member_addresses(f"{field}.addresses", spec.addresses, outside, number)
            names = self._host_names(f"{field}.names", spec.names)
            for position, port in enumerate(spec.ports):
                if not 0 < port <= 65535:
                    detail = "must be between 1 and 65535, inclusive"
                    self.errors.append(invalid(f"{field}.ports[{position}]", port, detail))
            clients.append(ClientConfig(spec.name, addresses, names, spec.ports))
        self._refuse_duplicates("spec.clients", "name", [client.name for client in clients])
        self._refuse_shared_addresses("spec.clients", [client.addresses for client in clients])
        return tuple(clients)

    def _host_names(self, field: str, names: Sequence[str]) -> tuple[str, ...]:
        for index, name in enumerate(names):
            if complaints := dns_subdomain(name):
                self.errors.append(invalid(f"{field}[{index}]", name, complaints[0]))
            elif f".{name}".endswith(f".{addon.DOMAIN}"):
                self.errors.append(invalid(f"{field}[{index}]", name, f"must not be below {addon.DOMAIN}"))
        return tuple(names)

    def _dns_replicas(self, overrides: Overrides) -> int:
        given = self.spec.dns.replicas if overrides.dns_replicas is None else overrides.dns_replicas
        count = DNS_REPLICAS if given is None else given
        if not 0 <= count <= MAX_DNS_REPLICAS:
            detail = f"must be between 0 and {MAX_DNS_REPLICAS}, inclusive"
            self.errors.append(invalid("spec.dns.replicas", count, detail))
        return count

    def _external_routes(
        self, node_names: Sequence[str], networks: Mapping[str, Sequence[_Named]]
    ) -> tuple[ExternalRoute, ...]:
        routes = []
        for index, spec in enumerate(self.spec.external_routes):
            field = f"spec.externalRoutes[{index}]"
            if spec.via not in node_names:
                self.errors.append(not_supported(f"{field}.via", spec.via, node_names))
            try:
                network = ip_network(spec.to)
            except ValueError:
                self.errors.append(invalid(f"{field}.to", spec.to, "must be a valid CIDR value, (e.g. 10.9.8.0/24)"))
                continue
            if _family(network) not in self.families:
                self.errors.append(invalid(f"{field}.to", spec.to, "must be of a family in spec.ipFamilies"))
            for entry in (*networks["node"], *networks["outside"]):
                if _overlap(network, entry.network):
                    detail = f"overlaps with {entry.network} ({entry.field})"
                    self.errors.append(invalid(f"{field}.to", spec.to, detail))
            routes.append(ExternalRoute(str(network), spec.via))
        return tuple(routes)

    def _load_balancer(self, routes: Sequence[ExternalRoute], others: Sequence[_Named]) -> LoadBalancerConfig:
        """Who serves load balancers; a file that routes external addresses itself has said who: nobody of ours."""
        spec, field = self.spec.load_balancer, "spec.loadBalancer"
        if spec.kind is not None and spec.kind not in LOAD_BALANCERS:
            self.errors.append(not_supported(f"{field}.kind", spec.kind, LOAD_BALANCERS))
        taken = [*others, *(_Named("spec.externalRoutes", ip_network(route.to)) for route in routes)]
        pool = self._networks(f"{field}.cidrs", spec.cidrs, LOAD_BALANCER_NETWORKS)
        if spec.cidrs or spec.kind not in (None, "none"):
            for entry in pool:
                self._refuse_overlaps_with(entry, taken)
        is_free = not any(_overlap(entry.network, other.network) for entry in pool for other in taken)
        kind = spec.kind or (LOAD_BALANCERS[0] if spec.cidrs or (is_free and not routes) else "none")
        return LoadBalancerConfig(kind, _texts(pool) if spec.cidrs or kind != "none" else ())

    def _images(self) -> tuple[ImageCommand, ...]:
        for index, image in enumerate(self.spec.images):
            if not image.match:
                self.errors.append(required(f"spec.images[{index}].match"))
            if not image.command:
                self.errors.append(required(f"spec.images[{index}].command"))
        return tuple(ImageCommand(image.match, image.command) for image in self.spec.images)

    def _check_name(self, field: str, name: str) -> None:
        if not name:
            self.errors.append(required(field))
        elif not _LABEL.fullmatch(name):
            self.errors.append(invalid(field, name, _LABEL_RULE))
        elif name in RESERVED:
            self.errors.append(invalid(field, name, "is reserved for the lab's own"))

    def _check_port_range(self, text: str) -> None:
        field = "spec.serviceNodePortRange"
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
        if match is None:
            self.errors.append(invalid(field, text, "must be FIRST-LAST, (e.g. 30000-32767)"))
            return
        first, last = int(match[1]), int(match[2])
        if not 0 < first <= last <= 65535:
            self.errors.append(invalid(field, text, "must be a range between 1 and 65535, inclusive"))

    def _refuse_duplicates(self, field: str, member: str, values: Sequence[str]) -> None:
        for index, value in enumerate(values):
            if value and value in values[:index]:
                self.errors.append(duplicate(f"{field}[{index}].{member}", value))

    def _refuse_shared_addresses(self, field: str, owners: Sequence[Sequence[str]]) -> None:
        seen: set[str] = set()
        for index, addresses in enumerate(owners):
            for address in addresses:
                if address in seen:
                    self.errors.append(duplicate(f"{field}[{index}].addresses", address))
                seen.add(address)


def _texts(entries: Iterable[_Named]) -> tuple[str, ...]:
    return tuple(str(entry.network) for entry in entries)


def _version(family: str) -> int:
    return 4 if family == "IPv4" else 6


def _family(network: Network) -> str:
    return "IPv4" if network.version == 4 else "IPv6"


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _within(inner: Network, outer: Network) -> bool:
    return _overlap(inner, outer) and inner.prefixlen >= outer.prefixlen


def _subnet(pool: Network, number: int) -> Network | None:
    """Subnet `number` of the pool, counted from 0, in the size that a node gets; None when there is none."""
    prefix = POD_PREFIX[pool.version]
    if prefix < pool.prefixlen or number >= 2 ** (prefix - pool.prefixlen):
        return None
    start = int(pool.network_address) + number * 2 ** (pool.max_prefixlen - prefix)
    return type(pool)((start, prefix))
