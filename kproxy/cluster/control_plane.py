"""The control plane of one lab: the process that makes the network, serves the API and keeps everything running.

Run by `kproxy lab up` as `python -m kproxy.cluster.control_plane LAB --report FD`. It owns nothing that cannot be found
again: killed at any moment and started again, it completes what is missing and goes on with what is there.

Law: what takes long starts first. Echo servers' parent is forked off before anything big is imported; the network is
built beside the start of the API; node proxies start as soon as their namespaces are there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from kproxy.cluster.clusterfile import ClusterConfig, NodeConfig, ProxyConfig
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_processes import ForkServer
from kproxy.errors import AlreadyExists, HostError, KproxyError, NotFound
from netns import libc
from netns.errors import NetnsError
from netns.journal import Journal

if TYPE_CHECKING:
    from kproxy.api.types import Object
    from kproxy.client import Client
    from kproxy.cluster.admission import ClusterSettings
    from kproxy.cluster.apiserver import Server
    from kproxy.cluster.controllers.manager import ControllerManager
    from kproxy.cluster.controllers.node_agent import NodeAgent
    from kproxy.cluster.controllers.node_proxy import NodeProxies
    from kproxy.cluster.load_balancers.supervisor import Supervisor
    from kproxy.cluster.outside_hosts import OutsideHosts
    from kproxy.cluster.status import LabStatus, LoadBalancersStatus, NodeStatus, ProcessStatus, ProxySettings

_LOG = logging.getLogger(__name__)
ROLE: Final = "control-plane"
NAMES_PATIENCE: Final = 20.0
"""Seconds that the cluster's DNS server gets to become ready."""
PATIENCE: Final = 30.0
"""Seconds that the nodes' proxies get to program their kernels for the first time, and the agent to find its pods."""


class Report:
    """What `lab up` reads while it waits: one JSON object a line on the descriptor that it passed.

    Args:
        fd: where to write; -1 when nobody reads.
    """

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "w", encoding="utf-8") if fd >= 0 else None
        self._lock = threading.Lock()

    def progress(self, what: str) -> None:
        """Says what is being done now."""
        self._say({"progress": what})

    def timing(self, what: str, seconds: float) -> None:
        """Says how long something took."""
        self._say({"timing": [what, seconds]})

    def error(self, message: str) -> None:
        """Says that it cannot go on, and why."""
        self._say({"error": message})

    def ready(self) -> None:
        """Says that everything is up; nothing more is said."""
        self._say({"ready": True})
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _say(self, line: dict[str, object]) -> None:
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError:
                self._file = None  # whoever waited is gone; the lab goes on


class ControlPlane:
    """Everything that runs in this process.

    Args:
        layout: the lab's paths.
        config: the cluster.
        journal: the lab's record.
        fork_server: where echo servers come from.
        report: who waits for the lab to be up.
    """

    def __init__(
        self, layout: Layout, config: ClusterConfig, journal: Journal, fork_server: ForkServer, report: Report
    ) -> None:
        self._layout = layout
        self._config = config
        self._journal = journal
        self._fork_server = fork_server
        self._report = report
        self._stop = threading.Event()
        self._network_is_up = threading.Event()
        self._has_keys = threading.Event()
        self._server_is_up = threading.Event()
        self._failure: Exception | None = None
        self._agent: NodeAgent | None = None
        self._proxies: NodeProxies | None = None
        self._balancers: Supervisor | None = None
        self._server: Server | None = None
        self._outside_hosts: OutsideHosts | None = None
        self._variant = ""

    def run(self) -> None:
        """Brings everything up and works until SIGTERM.

        Raises:
            HostError: the machine refused something that the lab cannot be without.
            NetnsError: likewise.
        """
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._in_thread("network", self._make_network)
        server, client = self._serve()
        controllers = self._start_controllers()
        self._deploy_names(client)
        self._network_is_up.wait()
        if self._failure is not None:
            raise self._failure
        if (balancers := self._balancers) is not None:
            self._in_thread("load-balancer", lambda: balancers.run(self._stop))
        self._start_outside_hosts()
        agent = self._start_agent(client)
        self._in_thread("names", self._name_hosts_outside)
        self._wait_for_proxies()
        if not agent.wait_until_settled(PATIENCE):
            _LOG.warning("not all pods of before have been taken over yet")
        self._wait_for_names(client)
        self._report.ready()
        self._stop.wait()
        controllers.stop()
        server.stop()

    def _in_thread(self, name: str, body: Callable[[], None]) -> None:
        threading.Thread(target=body, name=name, daemon=True).start()

    def _make_network(self) -> None:
        """Body of the thread that builds everything but pods, and starts the node proxies."""
        try:
            self._build_network()
        except (KproxyError, NetnsError, OSError) as error:
            self._failure = error
        finally:
            self._network_is_up.set()

    def _build_network(self) -> None:
        from kproxy.cluster import egress, host, topology
        from kproxy.cluster.controllers.node_proxy import NodeProxies
        from netns import build, sysctl
        from netns.namespace import named

        began = time.monotonic()
        self._report.progress("building the network")
        build.build(topology.infrastructure(self._config), self._journal, self._layout.namespaces)
        for node in self._config.nodes:
            # Pods with hostNetwork listen below 1024 without capabilities, as pods do.
            ns = named(self._layout.netns(node.name), self._layout.namespaces)
            sysctl.apply(ns, {"net.ipv4.ip_unprivileged_port_start": "0"})
        self._report.timing("network", time.monotonic() - began)
        began = time.monotonic()
        self._variant = egress.usable_variant(self._layout, self._config)
        self._journal.step(f"{egress.CHAIN} of {self._config.nodes[0].name}")
        host.link_tools(self._layout, self._variant, self._journal)
        self._proxies = NodeProxies(self._config, self._layout, self._journal, self._variant)
        self._has_keys.wait()
        self._proxies.start()
        self._open_doors()
        for node in self._config.nodes[1:]:
            egress.write(self._layout, self._config, node.name, self._variant)
            self._journal.step(f"{egress.CHAIN} of {node.name}")
        self._report.timing("egress rules, start of the proxies", time.monotonic() - began)

    def _open_doors(self) -> None:
        """Serves by TLS, too: in the lab for nodes and pods, on the host for kubectl."""
        from kproxy.cluster import doors
        from kproxy.cluster.certificates import server_context

        listeners = doors.listen_on_fabric(self._layout, self._config)
        if (on_host := doors.listen_on_host(self._layout)) is not None:
            listeners.append(on_host)
        self._server_is_up.wait()
        if self._server is not None:
            context = server_context(self._layout.certificates)
            for listener in listeners:
                self._server.open_door(listener, context)

    def _serve(self) -> tuple[Server, Client]:
        # aiohttp reads the host's certificate authorities when it is imported: 20 ms for nothing, as nobody here asks
        # anybody over TLS whom it would have to trust.
        os.environ.setdefault("SSL_CERT_FILE", os.devnull)
        from kproxy.client import Client
        from kproxy.cluster import doors
        from kproxy.cluster.apiserver import serve
        from kproxy.cluster.pod_access import PodAccess
        from kproxy.cluster.store import Store

        began = time.monotonic()
        tokens = doors.ensure_keys(self._layout, self._config)
        self._has_keys.set()
        self._report.timing("certificates", time.monotonic() - began)
        began = time.monotonic()
        store = Store(self._layout.database)
        server = serve(
            store,
            self._layout.api_socket,
            cluster=self._settings(),
            lab_status=self.status,
            tokens=tokens,
            pods=PodAccess(self._layout),
        )
        self._server = server
        self._server_is_up.set()
        client = Client(self._layout.api_url)
        self._journal.step("API")
        for node in self._config.nodes:
            _ensure_node(client, node)
        self._report.timing("API", time.monotonic() - began)
        return server, client

    def _start_controllers(self) -> ControllerManager:
        from kproxy.api.kinds import SERVICE
        from kproxy.client import Client
        from kproxy.cluster.controllers.manager import ControllerManager
        from kproxy.cluster.load_balancers.supervisor import Supervisor

        manager = ControllerManager(Client(self._layout.api_url), self._settings())
        self._balancers = Supervisor(self._layout, self._journal, self._config.load_balancer.kind)
        manager.informers.of(SERVICE).add_handler(self._balancers.notice)
        manager.start()
        return manager

    def _settings(self) -> ClusterSettings:
        from kproxy.cluster.admission import ClusterSettings
        from kproxy.cluster.doors import API_PORT

        first, _, last = self._config.node_port_range.partition("-")
        return ClusterSettings(
            service_cidrs=self._config.service_networks,
            ip_families=self._config.ip_families,
            node_port_range=(int(first), int(last)),
            api_addresses=self._config.router_addresses,
            api_port=API_PORT,
            image_patterns=tuple(entry.match for entry in self._config.images),
        )

    def _start_outside_hosts(self) -> None:
        if any(client.ports for client in self._config.clients):
            from kproxy.cluster.outside_hosts import OutsideHosts

            self._outside_hosts = OutsideHosts(self._config, self._layout, self._journal, self._fork_server)
            self._outside_hosts.start()

    def _deploy_names(self, client: Client) -> None:
        """Ensures that the objects of the cluster's DNS server are there; those that are stay as they are."""
        from kproxy.cluster.dns import addon

        if self._config.dns_replicas:
            for kind, obj in addon.objects(self._config.service_networks, self._config.dns_replicas):
                with contextlib.suppress(AlreadyExists):
                    client.create(kind, obj)

    def _wait_for_names(self, client: Client) -> None:
        """Waits until the cluster's DNS server is ready; a lab without names is better than none."""
        from kproxy.api.kinds import DEPLOYMENT, POD
        from kproxy.cluster.dns import addon

        # Its pods reach the API by a Service: where all nodes are left to other proxies, these come later.
        if not self._config.dns_replicas or all(node.proxy.mode == "none" for node in self._config.nodes):
            return
        began = time.monotonic()
        self._report.progress("waiting for the cluster's DNS server")
        while time.monotonic() - began < NAMES_PATIENCE:
            with contextlib.suppress(NotFound):
                found = client.get(DEPLOYMENT, addon.NAME, addon.NAMESPACE)
                if (found.get("status") or {}).get("readyReplicas", 0) >= found["spec"].get("replicas", 1):
                    self._report.timing("waiting for the DNS server", time.monotonic() - began)
                    return
            if any(_cannot_start(pod) for pod in client.list(POD, addon.NAMESPACE).items):
                break
            time.sleep(0.02)
        _LOG.warning("the cluster has no names: its DNS server is not ready")

    def _name_hosts_outside(self) -> None:
        """Serves the names of hosts outside."""
        from kproxy.cluster.dns import outside
        from netns.namespace import named

        try:
            outside.start(self._config, named(self._layout.netns("router"), self._layout.namespaces))
        except (NetnsError, OSError) as error:
            _LOG.warning("names of hosts outside are not served: %s", error)

    def _start_agent(self, client: Client) -> NodeAgent:
        from kproxy.cluster.controllers.node_agent import NodeAgent

        agent = NodeAgent(client, self._config, self._layout, self._journal, self._fork_server)
        self._agent = agent
        self._in_thread("node-agent", lambda: agent.run(self._stop))
        return agent

    def _wait_for_proxies(self) -> None:
        if self._proxies is None:
            return
        proxies = self._proxies
        began = time.monotonic()
        self._report.progress("waiting for the nodes' proxies")
        self._in_thread("node-proxies", lambda: proxies.run(self._stop))
        if missing := proxies.wait_until_programmed(PATIENCE):
            logs = ", ".join(str(self._layout.log(f"proxy.{name}")) for name in missing)
            raise HostError(f"the proxy of {', '.join(missing)} has not programmed its node", left=f"see {logs}")
        self._report.timing("waiting for the proxies", time.monotonic() - began)

    # ----- what there is

    def status(self) -> LabStatus:
        """The lab as it is now."""
        from kproxy.cluster import status, topology

        config = self._config
        told = self._proxy_settings(config.nodes[0], config.proxy)
        return status.LabStatus(
            name=config.name,
            ip_families=config.ip_families,
            pod_network=config.pod_network,
            pod_cidrs=config.pod_networks,
            service_cidrs=config.service_networks,
            node_port_range=config.node_port_range,
            router=status.RouterStatus(
                self._layout.netns("router"), (*config.router_addresses, *config.gateway_addresses)
            ),
            nodes=tuple(self._node_status(node) for node in config.nodes),
            clients=tuple(
                status.ClientStatus(
                    client.name, self._layout.netns(client.name), client.addresses, topology.client_routes(config)
                )
                for client in config.clients
            ),
            external_routes=tuple(status.ExternalRoute(route.to, route.via) for route in config.external_routes),
            pods=self._agent.pods() if self._agent is not None else (),
            processes=tuple(self._process_statuses()),
            proxy=status.ProxyStatus(
                cluster_cidrs=told.cluster_cidrs,
                masquerade_all=told.masquerade_all,
                detect_local_mode=told.detect_local_mode,
                variant=self._variant,
            ),
            api_socket=str(self._layout.api_socket),
            load_balancers=self._load_balancers_status(),
        )

    def _load_balancers_status(self) -> LoadBalancersStatus:
        """What the balancer wrote down last; nothing of Services before the first of them has asked for one."""
        from kproxy.cluster.load_balancers import record
        from kproxy.cluster.status import LoadBalancersStatus

        configured = self._config.load_balancer
        return record.read(self._layout) or LoadBalancersStatus(configured.kind, configured.cidrs)

    def _node_status(self, node: NodeConfig) -> NodeStatus:
        from kproxy.cluster import other_proxy, status

        has_proxy = node.proxy.mode != "none"
        proxy = "kproxy" if has_proxy else "other" if other_proxy.is_at_work(self._layout, node.name) else "none"
        return status.NodeStatus(
            name=node.name,
            namespace=self._layout.netns(node.name),
            addresses=node.addresses,
            zone=node.zone,
            pod_cidrs=node.pod_cidrs,
            proxy=proxy,
            ready=not has_proxy or (self._proxies is not None and self._proxies.is_programmed(node.name)),
            proxy_settings=None if proxy == "none" else self._proxy_settings(node, node.proxy),
        )

    def _proxy_settings(self, node: NodeConfig, proxy: ProxyConfig) -> ProxySettings:
        from kproxy.cluster.controllers import node_proxy
        from kproxy.cluster.proxy_settings import effective

        flagged = msgspec.structs.replace(node, proxy=proxy)
        return effective(node_proxy.flags(self._config, flagged, self._layout, self._variant), node.addresses)

    def _process_statuses(self) -> Sequence[ProcessStatus]:
        from kproxy.cluster.status import ProcessStatus

        found = [ProcessStatus(ROLE, os.getpid(), "host")]
        if (forker := self._fork_server.process) is not None:
            found.append(ProcessStatus("fork-server", forker.pid, "host"))
        if self._proxies is not None:
            found += [ProcessStatus("proxy", pid, node) for node, pid in self._proxies.processes()]
        if self._balancers is not None and (balancer := self._balancers.process) is not None:
            found.append(ProcessStatus("load-balancer", balancer.pid, "router"))
            found += [ProcessStatus("haproxy", one.pid, "router") for one in self._balancers.haproxies()]
        if self._agent is not None:
            found += self._agent.processes()
        return found


def _cannot_start(pod: Object) -> bool:
    """Whether a container of the pod has ended and is only tried again after a while."""
    states = [status.get("state") or {} for status in (pod.get("status") or {}).get("containerStatuses") or ()]
    return any((state.get("waiting") or {}).get("reason") == "CrashLoopBackOff" for state in states)


def _ensure_node(client: Client, node: NodeConfig) -> None:
    """Ensures that the Node object is there; of one that is there already only the status is written, as by a kubelet.

    The status is a write of its own: after a crash between the two, a Node without addresses is there.
    """
    from kproxy.api.kinds import NODE

    with contextlib.suppress(AlreadyExists):
        client.create(NODE, node_object(node))
    client.patch(NODE, node.name, {"status": node_status(node)}, subresource="status")


def node_object(node: NodeConfig) -> Object:
    """The Node object as kubelet would register it."""
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        **({"topology.kubernetes.io/zone": node.zone} if node.zone else {}),
        **node.labels,
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
    }


def node_status(node: NodeConfig) -> Object:
    """The Node's status: its addresses, and that it is ready."""
    from kproxy.cluster.node_info import node_info

    addresses = [{"type": "InternalIP", "address": address} for address in node.addresses]
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the lab's node agent serves it"}
    return {
        "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
        "conditions": [ready],
        # Nodes share the machine and are alike: equal parts of it, which is what topology-mode goes by.
        "allocatable": {"cpu": "1"},
        "nodeInfo": node_info(),
    }


def main() -> None:
    """Runs the control plane of the lab named on the command line until SIGTERM."""
    began = time.monotonic()
    layout = Layout(sys.argv[1])
    report = Report(int(sys.argv[3]) if sys.argv[2:3] == ["--report"] else -1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    libc.allow_open_files()  # each pod and each watch has one or two
    journal = Journal(layout.journal, ROLE)
    try:
        fork_server = ForkServer(layout, journal)
        fork_server.start()
        config = msgspec.json.decode(Path(layout.cluster_file).read_bytes(), type=ClusterConfig)
        report.timing("fork server", time.monotonic() - began)
        ControlPlane(layout, config, journal, fork_server, report).run()
    except (KproxyError, NetnsError, OSError) as error:
        _LOG.error("%s", error)
        report.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
