"""One packet of a test: sent from any place of a lab to any frontend, and everything that was seen of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from kproxy.api.kinds import SERVICE
from kproxy.client import Client
from kproxy.cluster.status import LabStatus
from kproxy.errors import UserError
from kproxy.insight.oracle import first_of_family, host_port
from kproxy.insight.view import Surroundings, cluster_view, namespaces
from netns.namespace import identity
from netns.probe import Outcome, PacketWorker, Probe, Result, Sighting, Station

CONTROL_PORT = 1
"""tcpmux: nobody listens on it, so a node answers with a RST."""

TTL = 64


@dataclass(frozen=True)
class Point:
    """One sight of a packet.

    Attributes:
        place: ``client/client``, ``node/node1``, ``pod/default/web-0``.
        interface: empty where the place's own stack delivered it (direction ``local``).
        direction: ``in`` or ``out`` of the place on the wire, or ``local``.
        kind: ``syn``, ``syn-ack``, ``rst``, ``reset``, ``datagram``, ``reply`` or ``icmp``.
    """

    place: str
    interface: str
    direction: str
    kind: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    ttl: int


@dataclass(frozen=True)
class Seen:
    """What became of one packet.

    Attributes:
        verdict: ``answered`` (from the dialled address and port), ``refused``, ``dropped`` or ``no-route``.
        pod: ``default/web-0``, the pod whose stack got the packet; empty if none did.
        endpoint: the address and port that it was for when it got there (``10.244.1.2:8080``); empty if it did not.
        source: the client address that the endpoint saw; empty if it saw none.
        source_port: the client port that it saw.
        ttl: as the endpoint saw it; it started as 64 unless `send` was told otherwise.
        hops: routers on the way.
        sent_from: the address that the client sent from.
        sent_port: the port that it sent from.
        detail: where the verdict came from, in words.
        path: every sight of the packet and of what came back, in order of time.
    """

    verdict: str
    pod: str
    endpoint: str
    source: str
    source_port: int
    ttl: int
    hops: int
    sent_from: str
    sent_port: int
    detail: str
    path: tuple[Point, ...]

    @property
    def is_source_kept(self) -> bool:
        """Whether the endpoint saw the address that the client sent from."""
        return self.source == self.sent_from

    def at(self, place: str, direction: str, kind: str = "") -> list[Point]:
        """The sights at one place in one direction; of any kind if none is named."""
        return [
            point
            for point in self.path
            if (point.place, point.direction) == (place, direction) and kind in ("", point.kind)
        ]


class Packets:
    """Sends packets in a lab; a context manager that ends its processes.

    Args:
        client: the lab's API.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._worker = PacketWorker()
        self._stations: dict[str, tuple[tuple[int, int], Station]] = {}

    def send(  # noqa: PLR0913 - each is one property of the packet
        self,
        client: str,
        to: str,
        *,
        protocol: str = "TCP",
        family: int = 4,
        source: str | None = None,
        source_port: int | None = None,
        ttl: int = TTL,
        timeout: float = 0.5,
    ) -> Seen:
        """What became of one packet: a SYN, or a datagram.

        Args:
            client: ``node1``, ``client``, a pod of namespace default by name, or ``node/..``, ``client/..``,
                ``pod/NAMESPACE/NAME``.
            to: ``10.96.0.5:80``, ``[fd00::5]:80``, ``node1:30080``, ``service/NAME:80`` or ``service/NS/NAME:80`` (its
                cluster IP), ``pod/NS/NAME:8080``.
            protocol: ``TCP`` or ``UDP``.
            family: which of several addresses a name means, 4 or 6.
            source: the client's address; None lets its routes choose.
            source_port: the client's port; None takes an unused one.
            ttl: what the packet starts with.
            timeout: seconds of silence that count as dropped, if then a control to the client's first node works.

        Raises:
            UserError: there is no such place or frontend.
            AssertionError: the packet was silently lost, and so was the control.
        """
        status = msgspec.convert(self._client.lab_status(), LabStatus)
        surroundings = Surroundings(status, cluster_view(status, (), ()), namespaces(status))
        place = find_place(surroundings, client)
        address, port = self._frontend(surroundings, to, family)
        self._listen(surroundings)
        for _, station in self._stations.values():
            station.sightings()
        probe = Probe(address, port, protocol, source, source_port, ttl)
        (outcome,) = self._stations[place][1].probe([probe], timeout=timeout)
        path = self._path(outcome.token)
        if outcome.result is Result.SILENT:
            self._check_control(surroundings, place, 6 if ":" in address else 4)
        return _seen(outcome, path, ttl, surroundings)

    def close(self) -> None:
        """Ends all processes; twice is fine."""
        self._worker.close()
        self._stations.clear()

    def _listen(self, surroundings: Surroundings) -> None:
        """A station in every namespace there is now; a pod of the same name may be another one than last time."""
        now = {name: _identity(path) for name, path in surroundings.namespaces.items()}
        for name in list(self._stations):
            if self._stations[name][0] != now.get(name):
                self._stations.pop(name)[1].close()
        for name, found in now.items():
            if found is not None and name not in self._stations:
                self._stations[name] = (found, self._worker.station(surroundings.namespaces[name]))

    def _path(self, token: int) -> list[tuple[str, Sighting]]:
        sights = [
            (name, sighting)
            for name, (_, station) in self._stations.items()
            for sighting in station.sightings()
            if sighting.token == token
        ]
        return sorted(sights, key=lambda sight: sight[1].at)

    def _check_control(self, surroundings: Surroundings, place: str, family: int) -> None:
        nodes = surroundings.view.nodes
        own = {f"pod/{pod.namespace}/{pod.name}": pod.node for pod in surroundings.view.pods}
        name = own.get(place, place.removeprefix("node/"))
        node = surroundings.view.node_by_name.get(name, nodes[0])
        address = first_of_family(node.addresses, family)
        if address is None:
            raise AssertionError(f"{node.name} has no IPv{family} address to send a control to")
        outcomes = self._stations[place][1].probe([Probe(address, CONTROL_PORT)] * 3, timeout=1)
        if all(outcome.result is Result.SILENT for outcome in outcomes):
            raise AssertionError(f"silence proves nothing: a control from {place} to {node.name} got no answer either")

    def _frontend(self, surroundings: Surroundings, to: str, family: int) -> tuple[str, int]:
        host, colon, port = to.rpartition(":")
        if not colon or not port.isdigit():
            raise UserError(f'"{to}" has no port: say HOST:PORT')
        kind, _, name = host.partition("/")
        addresses: tuple[str, ...]
        if kind in ("service", "svc"):
            namespace, slash, short = name.rpartition("/")
            obj = self._client.get(SERVICE, short, namespace if slash else "default")
            addresses = tuple(obj["spec"].get("clusterIPs") or [obj["spec"].get("clusterIP", "")])
        elif kind == "pod" or host in surroundings.view.node_by_name:
            addresses = _addresses(surroundings, find_place(surroundings, host))
        else:
            return host.strip("[]"), int(port)
        address = first_of_family((text for text in addresses if text not in ("", "None")), family)
        if address is None:
            raise UserError(f"{host} has no IPv{family} address")
        return address, int(port)


def find_place(surroundings: Surroundings, word: str) -> str:
    """The full name of a client place.

    Raises:
        UserError: there is none, or it has no network of its own.
    """
    kind, _, rest = word.partition("/")
    candidates = [word, f"node/{word}", f"client/{word}", f"pod/default/{word}"]
    if kind == "pod":
        candidates.append(f"pod/default/{rest}")
    for name in candidates:
        if name in surroundings.namespaces:
            return name
    raise UserError(f'no place is called "{word}"; there are: {", ".join(sorted(surroundings.namespaces))}')


def _addresses(surroundings: Surroundings, place: str) -> tuple[str, ...]:
    view = surroundings.view
    found = {f"node/{node.name}": node.addresses for node in view.nodes}
    found |= {f"pod/{pod.namespace}/{pod.name}": pod.addresses for pod in view.pods}
    return found.get(place, ())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return identity(path)
    except FileNotFoundError:
        return None


def _seen(outcome: Outcome, path: list[tuple[str, Sighting]], ttl: int, surroundings: Surroundings) -> Seen:
    arrival = next(
        (sight for sight in path if sight[1].direction == "local" and sight[1].kind in ("syn", "datagram")), None
    )
    pods = {address: pod for pod in surroundings.view.pods for address in pod.addresses}
    at = arrival[1] if arrival else None
    pod = pods.get(at.destination) if at else None
    return Seen(
        verdict="dropped" if outcome.result is Result.SILENT else str(outcome.result),
        pod=f"{pod.namespace}/{pod.name}" if pod else "",
        endpoint=host_port(at.destination, at.destination_port) if at else "",
        source=at.source if at else "",
        source_port=at.source_port if at else 0,
        ttl=at.ttl if at else 0,
        hops=ttl - at.ttl if at else 0,
        sent_from=outcome.source,
        sent_port=outcome.source_port,
        detail=outcome.detail,
        path=tuple(
            Point(
                name,
                sight.interface,
                sight.direction,
                sight.kind,
                sight.source,
                sight.source_port,
                sight.destination,
                sight.destination_port,
                sight.ttl,
            )
            for name, sight in path
        ),
    )
