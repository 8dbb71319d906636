"""What a container's probes are and what their results come to, as kubelet has it (pkg/kubelet/prober).

Law: nothing here sends, runs or waits for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from kproxy.api.types import Container, HTTPGetAction, HTTPHeader, Probe

FIRST_PAUSE: Final = 0.1
"""Seconds between the first two looks at a container that has never answered; doubled each time, up to its period.

kubelet also looks at once when a container's state changes; a person in front of a lab should not wait for ten seconds
because a program took a tenth of one to listen.
"""
USER_AGENT: Final = "kube-probe/1.36"
_IN_URL: Final = "/?#[]@!$&'()*+,;=:%~"
_BAD_HEADER: Final = re.compile(r"[\0\r\n]|[^\x20-\x7e\t\x80-\xff]")


@dataclass(frozen=True)
class HttpGet:
    """One GET request; anything from 200 to 399 is success, and redirects within the host are followed.

    Attributes:
        address: where it goes.
        path: with the query.
        headers: as they are sent, Host and User-Agent among them.
    """

    address: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...]
    is_tls: bool = False

    @property
    def url(self) -> str:
        """The request as people write it."""
        return f"{'https' if self.is_tls else 'http'}://{joined(self.address, self.port)}{self.path}"

    def redirected(self, location: str) -> HttpGet | None:
        """The request that a redirect asks for; None when that leads to another host, or nowhere."""
        try:
            target = urlsplit(location)
            port = target.port
        except ValueError:
            return None
        if target.netloc and target.hostname != self.address:
            return None
        is_tls = target.scheme == "https" if target.scheme else self.is_tls
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        if not path.startswith("/"):
            path = self.path.partition("?")[0].rpartition("/")[0] + "/" + path
        own_port = self.port if not target.netloc else (443 if is_tls else 80)
        return HttpGet(self.address, port or own_port, path, self.headers, is_tls)


@dataclass(frozen=True)
class TcpSocket:
    """One connection that is opened and closed."""

    address: str
    port: int


@dataclass(frozen=True)
class Exec:
    """One command in the container."""

    command: tuple[str, ...]


Look = HttpGet | TcpSocket | Exec


@dataclass(frozen=True)
class Impossible:
    """A probe that cannot be carried out: it fails every time, for this reason."""

    reason: str


@dataclass(frozen=True)
class Plan:
    """One probe of a container, with everything resolved.

    Attributes:
        look: what is done each time.
        delay: seconds after the container's start during which nothing is done.
        period: seconds from one look to the next, at least one.
        timeout: seconds that one look may take, at least one.
        successes: so many in a row make the result a success.
        failures: so many in a row make it a failure.
        grace: seconds that the container may take to end because of it; None means the pod's own.
    """

    look: Look | Impossible
    delay: float
    period: float
    timeout: float
    successes: int
    failures: int
    grace: int | None = None


def plan(container: Container, probe: Probe | None, address: str) -> Plan | None:
    """What a probe of the container comes to; None when there is none that counts here.

    Args:
        container: the container.
        probe: one of its probes.
        address: the pod's first address, where requests go that name no host.
    """
    look = _look(container, probe, address) if probe is not None else None
    if probe is None or look is None:
        return None
    return Plan(
        look,
        delay=max(0, probe.initial_delay_seconds),
        period=max(1, probe.period_seconds),
        timeout=max(1, probe.timeout_seconds),
        successes=max(1, probe.success_threshold),
        failures=max(1, probe.failure_threshold),
        grace=probe.termination_grace_period_seconds,
    )


def hook(container: Container, address: str) -> Look | Impossible | None:
    """What is done before the container is asked to end, beside a pause; None if nothing is.

    Args:
        container: the container.
        address: the pod's first address.
    """
    handler = container.lifecycle.pre_stop
    if handler is None:
        return None
    return _look(container, Probe(exec_action=handler.exec_action, http_get=handler.http_get), address)


def pause(container: Container) -> int:
    """Seconds for which the container is left alone before it is asked to end."""
    handler = container.lifecycle.pre_stop
    return max(0, handler.sleep.seconds) if handler is not None and handler.sleep is not None else 0


def _look(container: Container, probe: Probe, address: str) -> Look | Impossible | None:
    if probe.exec_action is not None:
        return Exec(probe.exec_action.command)
    action = probe.http_get or probe.tcp_socket
    if action is None:
        return None
    port = port_number(action.port, container)
    if port is None:
        return Impossible(f'no port of the container is called "{action.port}"')
    host = action.host or address
    return _http_get(action, host, port) if isinstance(action, HTTPGetAction) else TcpSocket(host, port)


def port_number(port: int | str, container: Container) -> int | None:
    """The number that a probe's port means: itself, a container port of that name, or digits; None: none of these."""
    if isinstance(port, int):
        return port
    named = next((known.container_port for known in container.ports if known.name == port), None)
    return named if named is not None or not port.isdecimal() else int(port)


def _http_get(action: HTTPGetAction, host: str, port: int) -> HttpGet | Impossible:
    path = quote(action.path if action.path.startswith("/") else f"/{action.path}", safe=_IN_URL)
    own = {header.name.lower() for header in action.http_headers}
    standard = (
        HTTPHeader("Host", joined(host, port)),
        HTTPHeader("User-Agent", USER_AGENT),
        HTTPHeader("Accept", "*/*"),
    )
    headers = [header for header in standard if header.name.lower() not in own] + list(action.http_headers)
    for header in headers:
        if not header.name.isprintable() or " " in header.name or _BAD_HEADER.search(header.value):
            return Impossible(f"the header {header.name!r} cannot be sent")
    # An empty value takes a standard header out (kubelet: http/request.go).
    sent = tuple((header.name, header.value) for header in headers if header.value)
    return HttpGet(host, port, path, sent, action.scheme.upper() == "HTTPS")


def joined(address: str, port: int) -> str:
    """Address and port as a URL has them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def pauses(plan: Plan) -> Iterator[float]:
    """Seconds to wait before each further look at a container that has not answered yet.

    Only one look a period counts as a failure.
    """
    pause = FIRST_PAUSE
    while True:
        yield min(pause, plan.period)
        pause *= 2


class Result:
    """What the looks at one run of a container have come to (kubelet: prober/worker.go, doProbe).

    Args:
        plan: for the thresholds.
        initial: what it is before the first look: true for liveness, and what somebody else found of this run already.

    Attributes:
        is_success: what they have come to.
    """

    def __init__(self, plan: Plan, *, initial: bool = False) -> None:
        self._plan = plan
        self._row: tuple[bool | None, int] = (None, 0)
        self.is_success = initial

    def take(self, *, success: bool) -> bool:
        """Whether it is a success after this look."""
        last, count = self._row
        count = count + 1 if last is success else 1
        self._row = (success, count)
        if count >= (self._plan.successes if success else self._plan.failures):
            self.is_success = success
        return self.is_success

    @property
    def has_failed(self) -> bool:
        """Whether there were as many failures in a row as make a container be started again."""
        last, count = self._row
        return last is False and count >= self._plan.failures
