"""Health check node ports: how a load balancer learns which nodes have endpoints of a Service with policy Local."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import ThreadingHTTPServer

import msgspec

from kproxy.errors import HostError
from kproxy.proxy.changes import HealthCheck
from kproxy.proxy.services import ServiceName
from kproxy.proxy.serving import NO_SNIFF, Answer, listen

_LOG = logging.getLogger(__name__)


class _Open(msgspec.Struct):
    """One Service's listeners by address, and the count that they answer."""

    port: int
    local_endpoints: int = 0
    servers: dict[str, ThreadingHTTPServer] = {}
    is_complete: bool = False
    last_fault: str = ""


def answer(service: ServiceName, local_endpoints: int, *, is_proxy_healthy: bool) -> Answer:
    """What a load balancer is told (kube-proxy: healthcheck/service_health.go): same status, headers and body."""
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": is_proxy_healthy,
    }
    headers = {**NO_SNIFF, "X-Load-Balancing-Endpoint-Weight": str(local_endpoints)}
    status = 200 if local_endpoints and is_proxy_healthy else 503
    return Answer(status, json.dumps(body, indent="\t"), headers)


class ServiceHealthServers:
    """The listeners of one family.

    Args:
        addresses: gives the addresses to listen on.
        is_healthy: whether the proxy is up to date.
        on_failure: told when a Service's port cannot be opened, and why; not again until that changes.
    """

    def __init__(
        self,
        addresses: Callable[[], Iterable[str]],
        is_healthy: Callable[[], bool],
        on_failure: Callable[[ServiceName, int, str], None] = lambda _service, _port, _error: None,
    ) -> None:
        self._addresses = addresses
        self._is_healthy = is_healthy
        self._on_failure = on_failure
        self._open: dict[ServiceName, _Open] = {}

    def sync(self, wanted: Mapping[ServiceName, HealthCheck]) -> bool:
        """Listen on exactly these ports; returns whether all could be opened: the next call tries the others again."""
        for service, opened in list(self._open.items()):
            if service not in wanted or wanted[service].port != opened.port:
                self._close(service)
        for service, check in wanted.items():
            opened = self._open.setdefault(service, _Open(check.port))
            opened.local_endpoints = check.local_endpoints
            if not opened.is_complete:
                self._listen(service, opened)
        return all(opened.is_complete for opened in self._open.values())

    def _listen(self, service: ServiceName, opened: _Open) -> None:
        def respond(_query: str) -> Answer:
            return answer(service, opened.local_endpoints, is_proxy_healthy=self._is_healthy())

        faults = []
        for address in self._addresses():
            if address in opened.servers:
                continue
            try:
                opened.servers[address] = listen(address, opened.port, {"": respond}, is_one_family=True)
            except HostError as error:
                faults.append(str(error))
        opened.is_complete = not faults
        fault = "; ".join(faults)
        if fault and fault != opened.last_fault:
            _LOG.error("health check node port of %s: %s", service, fault)
            self._on_failure(service, opened.port, fault)
        opened.last_fault = fault

    def _close(self, service: ServiceName) -> None:
        for server in self._open.pop(service).servers.values():
            # in a thread: the server looks for this every half second, and the agent has other things to do
            name = f"close-{server.server_address[1]}"
            threading.Thread(target=_shut, args=(server,), name=name, daemon=True).start()


def _shut(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()
