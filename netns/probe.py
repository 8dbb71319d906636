"""Raw packets out of network namespaces, and what became of them: the client of the packet worker.

Law: this module does not import scapy; a worker process does. A `Station` is one namespace with a sender, and a sniffer
on all its interfaces and in its own stack. Packets are recognised by what address translation leaves alone: TCP by the
sequence number, UDP by the payload. "Silent" is what a station reports when nothing came back; whether that proves a
drop is for the caller to say, who knows of a control that worked on the same path.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netns.errors import NetnsError

START_TIMEOUT = 20.0
"""Seconds that the worker may take to import scapy (0.2 to 0.6 s) on a busy machine."""


class Result(StrEnum):
    """What came back for one packet.

    Attributes:
        ANSWERED: a SYN-ACK, or a datagram, from the dialled address and port.
        REFUSED: a RST from there, or an ICMP port unreachable or prohibition.
        SILENT: nothing within the time.
        NO_ROUTE: the sender's kernel had no route, or an ICMP network or host unreachable.
    """

    ANSWERED = "answered"
    REFUSED = "refused"
    SILENT = "silent"
    NO_ROUTE = "no-route"


@dataclass(frozen=True)
class Probe:
    """One packet to send.

    Attributes:
        protocol: ``TCP`` (a SYN) or ``UDP``.
        source: None lets the kernel's routes choose, as for an ordinary socket.
        source_port: None chooses one that no recent probe of the station had.
    """

    destination: str
    port: int
    protocol: str = "TCP"
    source: str | None = None
    source_port: int | None = None
    ttl: int = 64


@dataclass(frozen=True)
class Outcome:
    """What became of one probe.

    Attributes:
        token: what recognises its packets in `Sighting`; 0 when it was never sent.
        source: the address that it was sent from; empty when there was none.
        detail: in words, where the result came from (``syn-ack``, ``ICMP 3/3 from 192.168.1.2``, ``sendto: ...``).
    """

    result: Result
    token: int
    source: str
    source_port: int
    detail: str


@dataclass(frozen=True)
class Sighting:
    """One packet of a probe, seen by a sniffer.

    Attributes:
        interface: where it was seen; empty with ``local``.
        direction: ``in`` or ``out`` on the wire, ``local`` as the namespace's own stack delivered it: after all rules.
        kind: ``syn``, ``syn-ack``, ``rst`` (an answer), ``reset`` (a client that gives up), ``datagram``, ``reply`` (a
            datagram back to the prober, whatever it holds) or ``icmp`` (an error; its ports are 0).
        token: the probe's.
        ttl: TTL or hop limit as it was seen.
        at: when the kernel had it, in nanoseconds, on one clock for all namespaces.
    """

    interface: str
    direction: str
    kind: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    ttl: int
    token: int
    at: int


class Station:
    """One namespace's sender and sniffer. One thread at a time may use it."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.name = name
        self._connection = connection
        self._lines = connection.makefile("rb")

    def probe(self, probes: Sequence[Probe], *, timeout: float = 1.0, attempts: int = 1) -> list[Outcome]:
        """The outcome of each probe, in their order; all are sent at once.

        Args:
            probes: what to send.
            timeout: seconds after which what did not come back counts as silent.
            attempts: how often in that time a packet is sent while nothing comes back; the same packet, as a client's
                stack would do it, since a busy host drops some.

        Raises:
            NetnsError: the worker died, or the kernel refused a packet for another reason than routes and rules.
        """
        self.begin(probes, timeout=timeout, attempts=attempts)
        return self.outcomes()

    def begin(self, probes: Sequence[Probe], *, timeout: float = 1.0, attempts: int = 1) -> None:
        """Starts what `probe` does and returns at once; `outcomes` must be called next."""
        wanted = [asdict(probe) for probe in probes]
        self._ask({"do": "probe", "probes": wanted, "timeout": timeout, "attempts": attempts})

    def outcomes(self) -> list[Outcome]:
        """What `begin` came to; waits for it."""
        return [Outcome(**{**found, "result": Result(found["result"])}) for found in self._answer()]

    def sightings(self, kinds: Iterable[str] = (), direction: str = "") -> list[Sighting]:
        """Everything seen since the last call, oldest first, whose kind and direction are asked for (empty: all).

        A packet that another station has an answer for was seen here before: no waiting is needed.

        Raises:
            NetnsError: the worker died.
        """
        self._ask({"do": "sightings", "kinds": list(kinds), "direction": direction})
        return [Sighting(*found) for found in self._answer()]

    def close(self) -> None:
        """Ends the station's process; twice is fine."""
        self._lines.close()
        self._connection.close()

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise NetnsError(f"the packet worker in {self.name} is gone", call="send") from error

    def _answer(self) -> list[Any]:
        line = self._lines.readline()
        if not line:
            raise NetnsError(f"the packet worker in {self.name} is gone", call="receive")
        answer = json.loads(line)
        if "error" in answer:
            raise NetnsError(f"the packet worker in {self.name} could not: {answer['error']}")
        found: list[Any] = answer["found"]
        return found


class PacketWorker:
    """The process that has imported scapy, and forks one child into each namespace that is asked for.

    It ends with this object, and with the process that has it, whatever way that ends.
    """

    def __init__(self) -> None:
        own, theirs = socket.socketpair()
        self._connection = own
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                [sys.executable, "-P", "-m", "netns.packet_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            )
        self._stations: list[Station] = []

    def station(self, namespace: Path, *, sees_wire: bool = True) -> Station:
        """A station in the network namespace at that path, which sees every packet from now on.

        Args:
            namespace: the path.
            sees_wire: look at all interfaces; without it only at what the namespace's own stack gets, which costs a
                third.

        Raises:
            NetnsError: there is no namespace at that path, or the worker did not start.
        """
        own, theirs = socket.socketpair()
        try:
            with theirs, namespace.open("rb") as entry:
                self._connection.settimeout(START_TIMEOUT)
                socket.send_fds(self._connection, [b"w" if sees_wire else b"l"], [entry.fileno(), theirs.fileno()])
        except FileNotFoundError as error:
            own.close()
            raise NetnsError(f"no network namespace at {namespace}") from error
        except OSError as error:
            own.close()
            raise NetnsError("the packet worker is gone", call="send") from error
        station = Station(own, namespace.name)
        self._stations.append(station)
        station.sightings()  # an answer means that its sniffer is open
        return station

    def close(self) -> None:
        """Ends the worker and all its stations; twice is fine."""
        for station in self._stations:
            station.close()
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _import_path() -> list[str]:
    return [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH", "")])]
