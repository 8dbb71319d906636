"""The doors of the API beside its unix socket: TLS on the lab's fabric, and on 127.0.0.1 of the host for kubectl.

Law: what opens a door is made once and kept for as long as the lab is: certificates, tokens and the port on the host.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import Final

from kproxy.cluster import certificates, kubeconfig, tokens
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.kubeconfig import Access
from kproxy.cluster.layout import Layout
from kproxy.cluster.rights import ADMIN, Identity, node_identity
from kproxy.cluster.tokens import Tokens
from kproxy.errors import UserError
from netns.namespace import named, socket_in

_LOG = logging.getLogger(__name__)
API_PORT: Final = 6443
"""kube-apiserver's, on the fabric."""
HOME: Final = "router"
"""The member of the lab at whose addresses the API answers: nodes, pods and clients have a route to it."""
LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 128
_NAMES: Final = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def ensure_keys(layout: Layout, config: ClusterConfig) -> Tokens:
    """Ensures that the API has its certificate, everybody a token, and each node's proxy a kubeconfig.

    Returns:
        Whose tokens open the doors.
    """
    cluster_addresses = [str(ipaddress.ip_network(network)[1]) for network in config.service_networks]
    hosts = (*config.router_addresses, *cluster_addresses, LOOPBACK, "::1", *_NAMES)
    certificates.ensure(layout.certificates, hosts)
    known = tokens.ensure(layout.tokens, _node_names(config))
    for node in _node_names(config):
        access = in_lab_access(layout, config, node_identity(node))
        tokens.write_private(layout.kubeconfig(node), kubeconfig.as_json(access))
    return known


def in_lab_access(layout: Layout, config: ClusterConfig, who: Identity = ADMIN) -> Access:
    """How somebody reaches the API from a node, a pod or a client.

    Raises:
        UserError: the lab has no certificates or tokens yet, or no such node.
    """
    return _access(layout, config, who, config.router_addresses[0], API_PORT)


def host_access(layout: Layout, config: ClusterConfig, who: Identity = ADMIN) -> Access:
    """How somebody reaches the API from the host.

    Raises:
        UserError: the lab has no certificates or tokens yet, does not listen on the host, or has no such node.
    """
    port = _known_port(layout)
    if not port:
        why = f"see {layout.log('control-plane')}"
        raise UserError(f'the API of lab "{layout.lab}" does not listen on {LOOPBACK} of this host; {why}')
    return _access(layout, config, who, LOOPBACK, port)


def _access(layout: Layout, config: ClusterConfig, who: Identity, address: str, port: int) -> Access:
    nodes = _node_names(config)
    if who.node and who.node not in nodes:
        raise UserError(f'lab "{layout.lab}" has no node "{who.node}"; its nodes are {", ".join(nodes)}')
    try:
        authority = (layout.certificates / certificates.CA_CERTIFICATE).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f'lab "{layout.lab}" has no certificates yet; `kproxy lab up` makes them') from error
    host = f"[{address}]" if ":" in address else address
    token = tokens.read(layout.tokens, nodes).of(who)
    return Access(f"kproxy-{layout.lab}", f"https://{host}:{port}", authority, who.user, token)


def _node_names(config: ClusterConfig) -> list[str]:
    return [node.name for node in config.nodes]


# ----- listening


def listen_on_fabric(layout: Layout, config: ClusterConfig) -> list[socket.socket]:
    """Listening sockets at the API's addresses in the lab, whose namespaces are there.

    Raises:
        OSError: an address cannot be listened on.
        NetnsError: there is no such namespace.
    """
    home = named(layout.netns(HOME), layout.namespaces)
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    return [
        _listening(
            socket_in(home, families[ipaddress.ip_address(address).version], socket.SOCK_STREAM), address, API_PORT
        )
        for address in config.router_addresses
    ]


def listen_on_host(layout: Layout) -> socket.socket | None:
    """A listening socket on the host's 127.0.0.1, on the same port as ever; None when there is no listening there.

    When somebody else has taken that port meanwhile it is another one, and kubeconfigs have to be printed anew.
    """
    known = _known_port(layout)
    for port in dict.fromkeys((known, 0)):
        try:
            listener = _listening(socket.socket(socket.AF_INET, socket.SOCK_STREAM), LOOPBACK, port)
        except OSError as error:
            _LOG.warning("the API cannot listen on %s of this host, port %s: %s", LOOPBACK, port or "any", error)
            continue
        if (chosen := listener.getsockname()[1]) != known:
            tokens.write_private(layout.api_port, str(chosen).encode("ascii"))
        return listener
    layout.api_port.unlink(missing_ok=True)
    return None


def _known_port(layout: Layout) -> int:
    """The port of last time; 0 when there is none."""
    try:
        return int(layout.api_port.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def _listening(listener: socket.socket, address: str, port: int) -> socket.socket:
    try:
        # A control plane that was killed leaves connections behind that hold the port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
