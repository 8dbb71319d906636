"""Keeps one `kproxy proxy` running in every node that wants one: the very program that runs on a real node.

Law: a proxy outlives the control plane; whoever starts next finds it by its record and goes on watching it.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kproxy.cluster import host
from kproxy.cluster.clusterfile import ClusterConfig, NodeConfig
from kproxy.cluster.layout import Layout, python, python_environment
from kproxy.cluster.pod_processes import reap, recorded
from netns import process
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import named, socket_in
from netns.process import Process

_LOG = logging.getLogger(__name__)
HEALTH_PORT: Final = 10256
"""kube-proxy's --healthz-bind-address port."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds before a proxy that died is started again: doubled each time, from the first again after a longer life."""
STOP_LATENCY: Final = 0.5
"""Seconds until an idle watcher looks at its stop event."""
POLL: Final = 0.01
"""Seconds between two tries to reach a proxy that does not listen yet."""


def flags(config: ClusterConfig, node: NodeConfig, layout: Layout, variant: str) -> dict[str, str]:
    """The flags of a node's proxy, without the dashes; what the cluster file says comes last and stands."""
    return {
        "master": layout.api_url,
        "hostname-override": node.name,
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


class _Proxy:
    """One node's proxy."""

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        self.process: Process | None = None
        self.watched = -1
        self.started = 0.0
        self.pause = FIRST_PAUSE
        self.due: float | None = 0.0


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
        self._selector = selectors.DefaultSelector()
        self._proxies = [_Proxy(node) for node in config.nodes if node.proxy.mode != "none"]

    def processes(self) -> Sequence[tuple[str, int]]:
        """Node and pid of each proxy that runs."""
        return [(proxy.node.name, proxy.process.pid) for proxy in self._proxies if proxy.process is not None]

    def start(self) -> None:
        """Ensures that every proxy has been started, or found again."""
        alive = recorded(self._journal, "proxy:")
        for proxy in self._proxies:
            if found := alive.get(f"proxy:{proxy.node.name}"):
                self._watch(proxy, found[0])
            else:
                self._start(proxy)

    def run(self, stop: threading.Event) -> None:
        """Starts proxies that die again, until `stop` is set; the proxies live on."""
        while not stop.is_set():
            for key, _ in self._selector.select(self._next_due()):
                key.data()
            for proxy in self._proxies:
                if proxy.due is not None and proxy.due <= time.monotonic():
                    self._start(proxy)

    def wait_until_programmed(self, seconds: float) -> list[str]:
        """Waits until every node's proxy has programmed its kernel once; names those that have not in time."""
        deadline = time.monotonic() + seconds
        waiting = [proxy.node.name for proxy in self._proxies]
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

    def _next_due(self) -> float:
        times = [proxy.due for proxy in self._proxies if proxy.due is not None]
        return min(STOP_LATENCY, max(0.0, min(times, default=math.inf) - time.monotonic()))

    def _start(self, proxy: _Proxy) -> None:
        name = proxy.node.name
        proxy.due = None
        try:
            with self._layout.log(f"proxy.{name}").open("ab") as log:
                started = process.spawn(
                    python("kproxy", *arguments(self._config, proxy.node, self._layout, self._variant)),
                    ns=named(self._layout.netns(name), self._layout.namespaces),
                    env=host.environment(self._layout, name, python_environment()),
                    stdout=log.fileno(),
                    stderr=log.fileno(),
                    journal=self._journal,
                    role=f"proxy:{name}",
                )
        except (NetnsError, OSError) as error:
            _LOG.warning("the proxy of %s cannot be started: %s", name, error)
            self._try_again(proxy)
            return
        proxy.started = time.monotonic()
        self._watch(proxy, started)

    def _watch(self, proxy: _Proxy, found: Process) -> None:
        proxy.due = None
        proxy.process = found
        try:
            proxy.watched = process.open_pidfd(found)
        except ProcessLookupError:
            self._ended(proxy)
            return
        self._selector.register(proxy.watched, selectors.EVENT_READ, lambda: self._ended(proxy))

    def _ended(self, proxy: _Proxy) -> None:
        if proxy.watched >= 0:
            self._selector.unregister(proxy.watched)
            os.close(proxy.watched)
            proxy.watched = -1
        if proxy.process is not None:
            reap(proxy.process)
            process.forget(proxy.process, self._journal)
            proxy.process = None
        _LOG.warning("the proxy of %s has ended; it is started again", proxy.node.name)
        self._try_again(proxy)

    def _try_again(self, proxy: _Proxy) -> None:
        if time.monotonic() - proxy.started > LONGEST_PAUSE:
            proxy.pause = FIRST_PAUSE
        proxy.due = time.monotonic() + proxy.pause
        proxy.pause = min(2 * proxy.pause, LONGEST_PAUSE)
