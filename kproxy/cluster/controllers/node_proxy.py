"""Keeps one `kproxy proxy` running in every node that wants one: the very program that runs on a real node.

Law: a proxy outlives the control plane; whoever starts next finds it by its record and goes on watching it.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from kproxy.cluster import host
from kproxy.cluster.clusterfile import ClusterConfig, NodeConfig
from kproxy.cluster.keeper import Keeper, Kept
from kproxy.cluster.layout import Layout, python, python_environment
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import named, socket_in
from netns.process import Process

HEALTH_PORT: Final = 10256
"""kube-proxy's --healthz-bind-address port."""
POLL: Final = 0.01
"""Seconds between two tries to reach a proxy that does not listen yet."""


def flags(config: ClusterConfig, node: NodeConfig, layout: Layout, variant: str) -> dict[str, str]:
    """The flags of a node's proxy, without the dashes; what the cluster file says comes last and stands."""
    return {
        "kubeconfig": str(layout.kubeconfig(node.name)),
        "hostname-override": node.name,
        "proxy-mode": node.proxy.mode,
        "cluster-cidr": ",".join(config.pod_networks),
        "iptables-variant": variant,
        # The lab has few changes and a person who waits for each.
        "iptables-min-sync-period": "0s",
        # These are the machine's, not the namespace's: the lab leaves them alone.
        "conntrack-max-per-core": "0",
        "oom-score-adj": Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip(),
        **node.proxy.flags,
    }


def arguments(config: ClusterConfig, node: NodeConfig, layout: Layout, variant: str) -> list[str]:
    """The command line of a node's proxy."""
    return ["proxy", *(f"--{name}={value}" for name, value in flags(config, node, layout, variant).items())]


def programmed(layout: Layout, node: str, *, version: str = "0", seconds: float = 0.0) -> dict[str, Any]:
    """What a node's proxy says it has programmed.

    Args:
        layout: the lab.
        node: the node's name.
        version: wait until the kernel holds this resourceVersion ...
        seconds: ... but no longer than this.

    Raises:
        OSError: it does not answer.
        NetnsError: there is no such node.
    """
    connection = http.client.HTTPConnection("127.0.0.1", HEALTH_PORT, timeout=seconds + 2)
    connection.sock = socket_in(named(layout.netns(node), layout.namespaces), socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(seconds + 2)
        connection.sock.connect(("127.0.0.1", HEALTH_PORT))
        connection.request("GET", f"/programmed?resourceVersion={version}&timeoutSeconds={seconds:.3f}")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"the proxy of {node} answers with nonsense: {error}") from error
    finally:
        connection.close()
    return answer


class NodeProxies:
    """The proxies of all nodes.

    Args:
        config: the cluster.
        layout: where locks and logs are.
        journal: where each is recorded.
        variant: the iptables variant.
    """

    def __init__(self, config: ClusterConfig, layout: Layout, journal: Journal, variant: str) -> None:
        self._config = config
        self._layout = layout
        self._journal = journal
        self._variant = variant
        self._nodes = [node for node in config.nodes if node.proxy.mode != "none"]
        self._keeper = Keeper(
            journal,
            "proxy:",
            [Kept(f"proxy:{node.name}", f"the proxy of {node.name}", self._starter(node)) for node in self._nodes],
        )

    def processes(self) -> Sequence[tuple[str, int]]:
        """Node and pid of each proxy that runs."""
        pairs = zip(self._nodes, self._keeper.kept, strict=True)
        return [(node.name, found.pid) for node, kept in pairs if (found := kept.process) is not None]

    def start(self) -> None:
        """Ensures that every proxy has been started, or found again."""
        self._keeper.start()

    def run(self, stop: threading.Event) -> None:
        """Starts proxies that die again, until `stop` is set; the proxies live on."""
        self._keeper.run(stop)

    def wait_until_programmed(self, seconds: float) -> list[str]:
        """Waits until every node's proxy has programmed its kernel once; names those that have not in time."""
        deadline = time.monotonic() + seconds
        waiting = [node.name for node in self._nodes]
        while waiting and (left := deadline - time.monotonic()) > 0:
            try:
                if programmed(self._layout, waiting[0], version="1", seconds=left).get("syncs"):
                    del waiting[0]
                    continue
            except (OSError, NetnsError):
                pass
            time.sleep(POLL)
        return waiting

    def is_programmed(self, node: str) -> bool:
        """Whether the node's proxy has programmed its kernel at least once; false where it does not answer."""
        try:
            return bool(programmed(self._layout, node).get("syncs"))
        except (OSError, NetnsError):
            return False

    def _starter(self, node: NodeConfig) -> Callable[[], Process]:
        def start() -> Process:
            with self._layout.log(f"proxy.{node.name}").open("ab") as log:
                return process.spawn(
                    python("kproxy", *arguments(self._config, node, self._layout, self._variant)),
                    ns=named(self._layout.netns(node.name), self._layout.namespaces),
                    env=host.environment(self._layout, node.name, python_environment()),
                    stdout=log.fileno(),
                    stderr=log.fileno(),
                    journal=self._journal,
                    role=f"proxy:{node.name}",
                )

        return start
