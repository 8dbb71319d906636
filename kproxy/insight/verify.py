"""The proof: packets from every client place to every frontend, and what was seen of them, beside what is promised.

The first pass sends from all places at once and counts. Silence counts as a drop only if a control, a closed port of
the node that would have rewritten the packet, answered the same client right after it. The second pass takes one packet
at a time, and says from the counters of the rules which chains it crossed.

Law: it looks, it never changes anything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from kproxy.insight.map_chains import chains_of
from kproxy.insight.oracle import (
    KEPT,
    ROUTER,
    Answer,
    ClusterView,
    FrontendKind,
    NodeView,
    Promise,
    Verdict,
    balancer_of,
    first_of_family,
    host_port,
    translator,
)
from kproxy.insight.rows import Row
from kproxy.insight.rule_counters import RuleReader, chains_crossed, open_reader
from kproxy.insight.view import Surroundings
from netns.probe import Outcome, PacketWorker, Probe, Result, Sighting, Station

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""

TTL = 64
"""What every probe starts with, as Linux does."""

MOST_STATIONS = 64
"""Pods that are watched even though no promise names them, so that a packet gone astray is found."""

BATCH = 8
"""Connections that every answering frontend gets at least: one in two wrong ones is missed once in 256 times."""

PATIENCE = 3
"""How many times as much of both a row gets that was not as promised at first."""

MISS = 14
"""An endpoint of n is given up after n * (MISS + log2 n) connections: a healthy one is missed once in a million."""

SCOUT_TIMEOUT = 0.4
"""Seconds for the first packet to each frontend; answers take a few ms, more while neighbours are being resolved."""

ROUND_TIMEOUT = 0.6
ATTEMPTS = 3
"""How often a packet is sent while nothing comes back: a busy host drops some of a thousand at once."""

SILENCE_TRIES = 2
"""How many connections nothing at all must have come back for."""

ROUTER_PAUSE = 1.05
"""Seconds after which Linux tells the same host once more that there is no route, after five at once (route.error_cost
is one value for all namespaces)."""

ROUTER_TRIES = 8
DROP_TIMEOUT = 0.1
"""Seconds that the second pass waits for what the first has proven to be silent."""

CONTROL_PORT = 1
"""tcpmux, which nobody listens on: a node answers it with a RST."""


@dataclass(frozen=True)
class Seen:
    """What the packets of one row came to.

    Attributes:
        answers: the endpoints that answered, each as it saw the client.
        lost: endpoints that got packets to which no answer came back.
        notes: what makes the row wrong beside all that, in words.
    """

    verdict: Verdict
    answers: tuple[Answer, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proof:
    """One row with its proof.

    Attributes:
        why: the KUBE- chains in which a rule matched one more packet of the row, node by node on its way; empty also
            when it was not asked for.
    """

    row: Row
    seen: Seen
    why: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether the promise was kept."""
        return is_kept(self.row.promise, self.seen)


def is_kept(promise: Promise, seen: Seen) -> bool:
    """Whether what was seen is what was promised: all of it, and nothing else."""
    if seen.notes or not set(seen.lost) <= set(promise.lost):
        return False
    if promise.is_sticky and promise.answers and seen.verdict is Verdict.DROPPED:
        return len(seen.lost) == 1  # the one endpoint that this client sticks to is one whose answers are lost
    if promise.is_unclaimed:
        return set(seen.answers) <= set(promise.answers)
    if seen.verdict is not promise.verdict:
        return False
    if promise.is_sticky and promise.answers:
        return len({answer.endpoint for answer in seen.answers}) == 1 and set(seen.answers) <= set(promise.answers)
    return set(seen.answers) == set(promise.answers)


@dataclass(eq=False)
class Tally:
    """What has come of the packets of one row so far.

    Attributes:
        batch: connections that are made at once, and at least if any is answered.
    """

    row: Row
    batch: int = BATCH
    outcomes: list[Outcome] = field(default_factory=list)
    arrivals: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    control_failed: bool = False

    @property
    def results(self) -> set[Result]:
        """The kinds of outcomes so far."""
        return {outcome.result for outcome in self.outcomes}

    @property
    def is_silent(self) -> bool:
        """Nothing has come back for any packet."""
        return self.results == {Result.SILENT}

    def arrive(self, seen: Sighting) -> None:
        """Takes in that an endpoint's stack was handed a packet of this row."""
        endpoint = host_port(seen.destination, seen.destination_port)
        self.arrivals[seen.token] = (endpoint, seen.source, TTL - seen.ttl)

    def excuse(self, quiet: Set[str]) -> None:
        """Takes a datagram that reached one of these addresses for answered: their programs need not answer it."""
        if self.row.frontend.protocol != "UDP":
            return
        for number, outcome in enumerate(self.outcomes):
            endpoint = self.arrivals.get(outcome.token, ("", "", 0))[0]
            if outcome.result is Result.SILENT and endpoint.rpartition(":")[0].strip("[]") in quiet:
                self.outcomes[number] = replace(outcome, result=Result.ANSWERED, detail="arrived")

    def wants(self) -> int:
        """How many connections more are needed to be sure."""
        if self.is_silent:
            # Where answers are promised to be lost some packets may still find an endpoint whose answer comes back.
            has_silent_endpoints = self.row.promise.lost or self.row.promise.unreached
            return self.batch if has_silent_endpoints and len(self.outcomes) == 1 else 0
        if Result.ANSWERED not in self.results:
            return 0
        if len(self.outcomes) < self.batch:
            return self.batch
        if not self._unseen() or self.row.promise.is_sticky:
            return 0
        promise = self.row.promise
        endpoints = len(promise.answers) + len(promise.lost) + len(promise.unreached)
        left = round(endpoints * (endpoints.bit_length() + MISS)) - len(self.outcomes)
        return max(0, min(left, self.batch * endpoints))

    def _unseen(self) -> set[Answer]:
        """Promised answers that are missing yet; behind a balancer one endpoint may see a client in several ways."""
        promised = self.row.promise.answers
        ways = Counter(answer.endpoint for answer in promised)
        endpoints = {arrival[0] for arrival in self.arrivals.values()}
        answers = {self._answer(outcome) for outcome in self.outcomes}
        return {
            one for one in promised if (one not in answers if ways[one.endpoint] > 1 else one.endpoint not in endpoints)
        }

    def seen(self) -> Seen:
        """The sum of it."""
        answered = [outcome for outcome in self.outcomes if outcome.result is Result.ANSWERED]
        silent = [outcome for outcome in self.outcomes if outcome.result is Result.SILENT]
        lost = {self.arrivals[outcome.token][0] for outcome in silent if outcome.token in self.arrivals}
        return Seen(
            verdict=self._verdict(),
            answers=tuple(sorted({answer for outcome in answered if (answer := self._answer(outcome))})),
            lost=tuple(sorted(lost)),
            notes=tuple(self._notes(answered, silent)),
        )

    def _verdict(self) -> Verdict:
        for result, verdict in (
            (Result.ANSWERED, Verdict.ANSWERED),
            (Result.REFUSED, Verdict.REFUSED),
            (Result.NO_ROUTE, Verdict.NO_ROUTE),
        ):
            if result in self.results:
                return verdict
        return Verdict.DROPPED

    def _answer(self, outcome: Outcome) -> Answer | None:
        if outcome.token not in self.arrivals:
            return None
        endpoint, source, hops = self.arrivals[outcome.token]
        return Answer(endpoint, KEPT if source == outcome.source else source, hops)

    def _notes(self, answered: Sequence[Outcome], silent: Sequence[Outcome]) -> Iterable[str]:
        total = len(self.outcomes)
        if self.control_failed:
            yield "silence proves nothing: the control got no answer either"
        unwatched = sum(outcome.token not in self.arrivals for outcome in answered)
        if unwatched:
            yield f"{unwatched} of {total} connections were answered by nobody that is watched"
        yield from self._how_refused()
        if not answered:
            return
        for result in (Result.REFUSED, Result.NO_ROUTE):
            count = sum(outcome.result is result for outcome in self.outcomes)
            if count:
                yield f"{count} of {total} connections: {result}"
        vanished = sum(outcome.token not in self.arrivals for outcome in silent)
        if vanished and not self.row.promise.unreached:
            yield f"{vanished} of {total} connections got no answer and reached no endpoint"

    def _how_refused(self) -> Iterable[str]:
        if self.row.promise.verdict is not Verdict.REFUSED:
            return
        resets = {outcome.detail == "rst" for outcome in self.outcomes if outcome.result is Result.REFUSED}
        if not self.row.promise.is_closed and True in resets:
            yield "refused by a RST, not by an ICMP port unreachable: no rule rejected it"
        if self.row.promise.is_closed and self.row.frontend.protocol == "TCP" and False in resets:
            yield "refused by an ICMP port unreachable, not by a RST: a rule rejected it"


class Prover:
    """Sends the packets and reads the counters; a context manager that ends its processes.

    Args:
        surroundings: the lab.
        rows: what is to be proven; tells which namespaces are needed.
        progress: is told how far it is.
    """

    def __init__(self, surroundings: Surroundings, rows: Sequence[Row], progress: Progress = lambda *_: None) -> None:
        self._surroundings = surroundings
        self._rows = rows
        self._progress = progress
        self._worker = PacketWorker()
        self._readers: dict[str, RuleReader] = {}
        self._stations: dict[str, Station] = {}
        pods = surroundings.status.pods
        self._quiet = {address for pod in pods if not pod.echo for address in pod.addresses}
        try:
            for name in _watched(surroundings, rows):
                self._stations[name] = self._worker.station(surroundings.namespaces[name], sees_wire=False)
        except BaseException:
            self.close()
            raise

    def prove(self) -> list[Proof]:
        """The first pass: every row with what was seen, without *why*.

        Rows that are not as promised are proven a second time, with more packets and more patience, and that is what is
        told of them: a rule that is wrong is so every time, a busy host is not.
        """
        proofs = self._attempt(self._rows, 1)
        doubtful = [proof.row for proof in proofs if not proof.is_ok]
        if not doubtful:
            return proofs
        second = iter(self._attempt(doubtful, PATIENCE))
        return [proof if proof.is_ok else next(second) for proof in proofs]

    def explain(self, proofs: Sequence[Proof]) -> list[Proof]:
        """The second pass: the same rows with the chains that one more packet of each crossed.

        Raises:
            HostError: the counters cannot be read.
        """
        explained = []
        for number, proof in enumerate(proofs, 1):
            explained.append(Proof(proof.row, proof.seen, self._why(proof)))
            self._progress("asking why", number, len(proofs))
        return explained

    def close(self) -> None:
        """Ends all processes; twice is fine."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- first pass

    def _attempt(self, rows: Sequence[Row], patience: int) -> list[Proof]:
        """Proves some rows, with so many times as many packets and so many times as long a wait."""
        tallies = [Tally(row, batch=BATCH * patience) for row in rows]
        scout, timeout = SCOUT_TIMEOUT * patience, ROUND_TIMEOUT * patience
        self._send({id(tally): (tally, 1) for tally in tallies}, scout)
        while wanting := {id(tally): (tally, count) for tally in tallies if (count := tally.wants())}:
            self._send(wanting, timeout)
            self._progress("sending packets", sum(not tally.wants() for tally in tallies), len(tallies))
        self._insist(tallies, scout)
        self._check_controls([tally for tally in tallies if tally.is_silent], scout)
        return [Proof(tally.row, tally.seen()) for tally in tallies]

    def _send(self, wanted: Mapping[int, tuple[Tally, int]], timeout: float) -> None:
        """Sends to all frontends at once, so many connections each, from all clients at once, and takes in the rest."""
        queues: dict[str, list[Tally]] = {}
        for tally, count in wanted.values():
            queues.setdefault(tally.row.place.client, []).extend([tally] * count)
        for client, queue in queues.items():
            self._stations[client].begin([_probe(tally.row) for tally in queue], timeout=timeout, attempts=ATTEMPTS)
        by_token: dict[int, Tally] = {}
        for client, queue in queues.items():
            for tally, outcome in zip(queue, self._stations[client].outcomes(), strict=True):
                tally.outcomes.append(outcome)
                by_token[outcome.token] = tally
        for station in self._stations.values():
            for sighting in station.sightings(("syn", "datagram"), "local"):
                if sighting.token in by_token:
                    by_token[sighting.token].arrive(sighting)
        for tally in set(by_token.values()):
            tally.excuse(self._quiet)

    def _insist(self, tallies: Sequence[Tally], timeout: float) -> None:
        """Asks the silent ones again, with connections of their own; those that a router should answer slowly."""
        for _ in range(SILENCE_TRIES - 1):
            silent = {id(tally): (tally, 1) for tally in tallies if tally.is_silent}
            if silent:
                self._send(silent, timeout)
        for number in range(ROUTER_TRIES):
            waiting = [tally for tally in tallies if tally.is_silent and _is_routers(tally.row.promise)]
            if not waiting:
                return
            self._progress("waiting for the router", number, ROUTER_TRIES)
            time.sleep(ROUTER_PAUSE)
            first_of_client = {tally.row.place.client: tally for tally in reversed(waiting)}
            self._send({id(tally): (tally, 1) for tally in first_of_client.values()}, timeout)

    def _check_controls(self, silent: Sequence[Tally], timeout: float) -> None:
        controls: dict[tuple[str, str], list[Tally]] = {}
        for tally in silent:
            address = self._control_address(tally.row)
            if address:
                controls.setdefault((tally.row.place.client, address), []).append(tally)
            else:
                tally.control_failed = True
        for (client, address), tallies in controls.items():
            probe = Probe(address, CONTROL_PORT, ttl=TTL)
            (outcome,) = self._stations[client].probe([probe], timeout=timeout, attempts=ATTEMPTS)
            for tally in tallies:
                tally.control_failed = outcome.result is Result.SILENT

    def _control_address(self, row: Row) -> str | None:
        view = self._surroundings.view
        node = _rewriting_node(view, row)
        if node is None and balancer_of(view, row.frontend) is not None:
            return first_of_family(view.router_addresses, row.frontend.family)
        return first_of_family(node.addresses, row.frontend.family) if node else None

    # -- second pass

    def _why(self, proof: Proof) -> tuple[str, ...]:
        row, family, view = proof.row, proof.row.frontend.family, self._surroundings.view
        on_the_way = _nodes_on_the_way(view, proof)
        by_maps = {node.name for node in view.nodes if node.proxy is not None and node.proxy.is_nftables}
        rewriting = _rewriting_node(view, row)
        if rewriting is not None and rewriting.name in by_maps and rewriting.name in on_the_way:
            namespace = self._surroundings.namespaces[f"node/{rewriting.name}"]
            at = row.frontend
            return chains_of(namespace, family, at.address, at.protocol, at.port)
        readers = [self._reader(name) for name in on_the_way if name not in by_maps]
        before = [reader.read(family) for reader in readers]
        timeout = DROP_TIMEOUT if proof.seen.verdict is Verdict.DROPPED else ROUND_TIMEOUT
        self._stations[row.place.client].probe([_probe(row)], timeout=timeout, attempts=ATTEMPTS)
        return tuple(
            chain
            for reader, rules in zip(readers, before, strict=True)
            for chain in chains_crossed(rules, reader.read(family))
        )

    def _reader(self, node: str) -> RuleReader:
        if node not in self._readers:
            namespace = self._surroundings.namespaces[f"node/{node}"]
            self._readers[node] = open_reader(namespace, self._surroundings.status.proxy.variant)
        return self._readers[node]


def _is_routers(promise: Promise) -> bool:
    """Whether a router on the way says what becomes of the packet, once a second at least."""
    return promise.verdict is Verdict.NO_ROUTE and not promise.is_unclaimed


def _probe(row: Row) -> Probe:
    frontend = row.frontend
    return Probe(frontend.address, frontend.port, frontend.protocol, ttl=TTL)


def _watched(surroundings: Surroundings, rows: Sequence[Row]) -> list[str]:
    """The places that need a station: clients, nodes, endpoints, and other pods as long as there are not too many."""
    needed = {row.place.client for row in rows} | {f"node/{node.name}" for node in surroundings.view.nodes}
    pods = surroundings.view.pod_by_address
    endpoints = {answer.endpoint for row in rows for answer in row.promise.answers}
    endpoints |= {lost for row in rows for lost in row.promise.lost}
    for endpoint in endpoints:
        pod = pods.get(endpoint.rpartition(":")[0].strip("[]"))
        if pod is not None:
            needed.add(f"pod/{pod.namespace}/{pod.name}")
    if any(balancer_of(surroundings.view, row.frontend) is not None for row in rows):
        needed.add(ROUTER)
    others = [name for name in surroundings.namespaces if name.startswith("pod/") and name not in needed]
    return sorted(needed) + others[:MOST_STATIONS]


def _rewriting_node(view: ClusterView, row: Row) -> NodeView | None:
    """The node that would rewrite a row's packets; for a bare pod the client's own, as it is the first on the way."""
    if row.frontend.kind is FrontendKind.POD:
        return view.node_by_name[row.place.node] if row.place.node else None
    return translator(view, row.place, row.frontend)


def _nodes_on_the_way(view: ClusterView, proof: Proof) -> list[str]:
    """Names of the nodes that a packet of the row may cross, in the order in which it does."""
    row = proof.row
    if proof.seen.verdict is Verdict.NO_ROUTE and row.place.node is None:
        return []
    rewriting = _rewriting_node(view, row)
    names = [row.place.node, rewriting.name if rewriting else None]
    if rewriting is None and balancer_of(view, row.frontend) is not None:
        names += [node.name for node in view.nodes]
    for endpoint in (*(answer.endpoint for answer in proof.seen.answers), *proof.seen.lost):
        address = endpoint.rpartition(":")[0].strip("[]")
        pod = view.pod_by_address.get(address)
        node = view.node_by_address.get(address)
        names.append(pod.node if pod else node.name if node else None)
    return list(dict.fromkeys(name for name in names if name))
