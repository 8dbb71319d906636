"""Names of tables, chains, sets and maps.

Law: what kube-proxy has too is called as in kube-proxy (pkg/proxy/nftables/proxier.go); the rest is named after what a
person who lists the table wants to know: whose packets, which endpoints, how many of them.
"""

from __future__ import annotations

from base64 import b32encode
from hashlib import sha256

from kproxy.proxy.plan import EndpointSet
from kproxy.proxy.services import ServicePortName

TABLE = "kube-proxy"
TABLE_COMMENT = "rules for kube-proxy"

CLUSTER_IPS = "cluster-ips"
NODE_PORT_IPS = "nodeport-ips"
HAIRPIN_CONNECTIONS = "hairpin-connections"
SERVICE_IPS = "service-ips"
SERVICE_NODE_PORTS = "service-nodeports"
FIREWALL_IPS = "firewall-ips"
NO_ENDPOINT_SERVICES = "no-endpoint-services"
NO_ENDPOINT_NODE_PORTS = "no-endpoint-nodeports"

SERVICES = "services"
MASQUERADING = "masquerading"
CLUSTER_IPS_CHECK = "cluster-ips-check"
SERVICE_ENDPOINTS_CHECK = "service-endpoints-check"
NODE_PORT_ENDPOINTS_CHECK = "nodeport-endpoints-check"
FIREWALL_CHECK = "firewall-check"
REJECT = "reject-chain"

NODE_PORT_PREFIX = "nodeport-"
"""Of maps and chains that find endpoints by the node port alone, whatever address it was sent to."""

_MAX_LENGTH = 240
_SET_PREFIX = {EndpointSet.CLUSTER: "service", EndpointSet.LOCAL: "local"}


def endpoints_map(which: EndpointSet, *, is_node_port: bool) -> str:
    """The map from a frontend and a number to an endpoint of a set."""
    own = "endpoints" if which is EndpointSet.CLUSTER else "local-endpoints"
    return NODE_PORT_PREFIX + own if is_node_port else own


def balance_chain(which: EndpointSet, count: int, *, is_node_port: bool) -> str:
    """Sends a packet to any of ``count`` endpoints."""
    return f"{NODE_PORT_PREFIX if is_node_port else ''}{which.value}-{count}"


def service_chain(name: ServicePortName, which: EndpointSet) -> str:
    """Balances over the endpoints of a service port with affinity."""
    return f"{_SET_PREFIX[which]}-{_hashed(_service_text(name))}"


def service_traffic_chain(name: ServicePortName, traffic: str) -> str:
    """Where ``internal`` or ``external`` traffic to a service port with affinity enters."""
    return f"{traffic}-{_hashed(_service_text(name))}"


def endpoint_chain(name: ServicePortName, address: str) -> str:
    """One endpoint ("ip:port", IPv6 in brackets) of a service port with affinity."""
    return f"endpoint-{_hashed(_endpoint_text(name, address))}"


def affinity_set(name: ServicePortName, address: str) -> str:
    """The clients that stay with one endpoint."""
    return f"affinity-{_hashed(_endpoint_text(name, address))}"


def firewall_chain(sources: tuple[str, ...]) -> str:
    """Lets some sources through and drops the rest; shared by all that allow the same sources."""
    return f"firewall-{_digest(' '.join(sources))}"


def _service_text(name: ServicePortName) -> str:
    return f"{name.namespace}/{name.service}/{name.protocol.lower()}/{name.port}"


def _endpoint_text(name: ServicePortName, address: str) -> str:
    ip, _, port = address.rpartition(":")
    return f"{_service_text(name)}__{ip.strip('[]')}/{port}".replace(":", ".")


def _hashed(text: str) -> str:
    named = f"{_digest(text)}-{text}"
    return named if len(named) <= _MAX_LENGTH else f"{named[: _MAX_LENGTH - 3]}..."


def _digest(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()[:5]).decode()
