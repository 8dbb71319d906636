"""What the names of a cluster are: records made of Services, EndpointSlices and Namespaces.

The schema is Kubernetes' DNS-Based Service Discovery 1.1.0; where it leaves something open, or CoreDNS (which kubeadm
installs) does more, this follows CoreDNS as kubeadm sets it up (plugin/kubernetes with `pods insecure`).

Law: pure. A name is worked out when it is asked for, from what is known of its one Service; a change of one Service
or slice costs work for that one alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kproxy.api.types import EndpointSlice, Service, SliceEndpoint

RecordType = Literal["A", "AAAA", "CNAME", "PTR", "SOA", "SRV", "TXT"]
Code = Literal["NOERROR", "NXDOMAIN"]

TTL: Final = 30
"""Seconds; what kubeadm's Corefile sets for all records of the cluster."""
SCHEMA: Final = "1.1.0"
"""Version of the schema, which `dns-version` tells."""
SCHEMA_TTL: Final = 28800
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
_CHAIN_LIMIT: Final = 8
"""CNAMEs that are followed inside the zone (CoreDNS: plugin/backend_lookup.go)."""

Key = tuple[str, str]
"""A Service's namespace and name."""


class Srv(NamedTuple):
    """The value of an SRV record; weight 1 to 100, the target without a final dot."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True)
class Record:
    """One resource record of class IN.

    Attributes:
        name: without a final dot, in lower case.
        value: an address (A, AAAA), a name without a final dot (CNAME, PTR), a text (TXT), or an `Srv`; empty for
            SOA, whose content is the zone's own.
        ttl: seconds.
    """

    name: str
    type: RecordType
    value: str | Srv
    ttl: int = TTL


@dataclass(frozen=True)
class Answer:
    """What there is to say about a name.

    Attributes:
        code: NXDOMAIN when nothing of that name exists, of any type.
        records: what was asked for; CNAMEs on the way come first. Empty with NOERROR: the name exists, but has no
            record of that type.
        additional: addresses of what `records` name.
        outside: the name outside the cluster that the last CNAME leads to, whose records are still to be asked for.
    """

    code: Code
    records: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    outside: str = ""


NO_SUCH_NAME: Final = Answer("NXDOMAIN")
NO_DATA: Final = Answer("NOERROR")


class _Host(NamedTuple):
    """One address of an endpoint that may be used: its label in front of the Service's name, and its slice's ports."""

    label: str
    address: str
    ports: tuple[tuple[str, str, int], ...]


@dataclass
class _Known:
    """What is known under the name of one Service."""

    service: Service | None = None
    slices: dict[str, EndpointSlice] = field(default_factory=dict)

    def hosts(self) -> list[_Host]:
        """The endpoints' addresses in the order of the slices' names, each label and address once per set of ports."""
        found: dict[_Host, None] = {}
        for _, one in sorted(self.slices.items()):
            ports = tuple(
                ((port.name or "").lower(), (port.protocol or "TCP").lower(), port.port)
                for port in one.ports or ()
                if port.port is not None
            )
            for endpoint in one.endpoints or ():
                if endpoint.conditions.ready is not False:
                    for address in endpoint.addresses:
                        found[_Host(_label(endpoint, address), canonical(address) or address, ports)] = None
        return list(found)

    def addresses(self) -> set[str]:
        """Every address with a reverse name that leads here: the Service's own and its endpoints'."""
        found = {host.address for host in self.hosts()} if self.service is not None else set()
        return found | set(_cluster_ips(self.service))


class Zone:
    """The records of one cluster, kept up to date change by change.

    Args:
        domain: what all names end in, without a final dot.
    """

    def __init__(self, domain: str = "cluster.local") -> None:
        self.domain = domain.lower().strip(".")
        self._suffix = self.domain.split(".")
        self._known: dict[Key, _Known] = {}
        self._namespaces: set[str] = set()
        self._reverse: dict[str, set[Key]] = {}

    # ----- what changes

    def set_namespace(self, name: str, *, exists: bool) -> None:
        """Takes notice of a Namespace that is there, or no longer."""
        (self._namespaces.add if exists else self._namespaces.discard)(name)

    def set_service(self, key: Key, service: Service | None) -> None:
        """Takes notice of a Service as it is now; None when it is gone."""
        known = self._begin(key)
        known.service = service
        self._finish(key, known)

    def set_slice(self, namespace: str, name: str, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        """Takes notice of an EndpointSlice; the label that names its Service may have changed.

        Args:
            namespace: the slice's.
            name: the slice's.
            old: what was told of it before; None when nothing was.
            new: as it is now; None when it is gone.
        """
        for one in (old, new):
            service = one.metadata.labels.get(SERVICE_NAME_LABEL) if one is not None else None
            if service:
                known = self._begin((namespace, service))
                known.slices.pop(name, None)
                if one is new and new is not None:
                    known.slices[name] = new
                self._finish((namespace, service), known)

    def _begin(self, key: Key) -> _Known:
        known = self._known.setdefault(key, _Known())
        for address in known.addresses():
            keys = self._reverse.get(address, set())
            keys.discard(key)
            if not keys:
                self._reverse.pop(address, None)
        return known

    def _finish(self, key: Key, known: _Known) -> None:
        for address in known.addresses():
            self._reverse.setdefault(address, set()).add(key)
        if known.service is None and not known.slices:
            del self._known[key]

    # ----- what is asked

    def lookup(self, name: str, record_type: str) -> Answer | None:
        """What is known of a name; None when it is not the cluster's to say, and somebody else is to be asked.

        Args:
            name: as asked, of any case, with or without a final dot.
            record_type: `A`, `SRV`, ...; one that no record has gets no data.
        """
        labels = name.lower().rstrip(".").split(".")
        if labels[-len(self._suffix) :] != self._suffix:
            return self._reverse_lookup(labels, record_type)
        found = self._forward(labels, record_type)
        return self._followed(found, record_type) if found.outside else found

    def _followed(self, found: Answer, record_type: str) -> Answer:
        """The answer with the CNAMEs followed that stay in the zone; no data if they lead nowhere, as with CoreDNS."""
        chain: dict[str, Record] = {}
        while True:
            (alias,) = found.records
            if alias.name in chain or len(chain) >= _CHAIN_LIMIT:
                return NO_DATA
            chain[alias.name] = alias
            labels = found.outside.split(".")
            if record_type == "CNAME" or labels[-len(self._suffix) :] != self._suffix:
                return Answer("NOERROR", tuple(chain.values()), outside="" if record_type == "CNAME" else found.outside)
            found = self._forward(labels, record_type)
            if not found.outside:
                return Answer("NOERROR", (*chain.values(), *found.records)) if found.records else NO_DATA

    def _forward(self, labels: list[str], record_type: str) -> Answer:
        """What is known of a name in the zone; `outside` holds the target of a CNAME, wherever that is."""
        rest = labels[: -len(self._suffix)]
        match rest:
            case []:
                return Answer("NOERROR", (Record(self.domain, "SOA", ""),) if record_type == "SOA" else ())
            case ["svc"] | ["pod"]:
                return NO_DATA
            case ["dns-version"]:
                version = Record(f"dns-version.{self.domain}", "TXT", SCHEMA, SCHEMA_TTL)
                return Answer("NOERROR", (version,) if record_type == "TXT" else ())
            case [namespace, "svc" | "pod"]:
                return NO_DATA if namespace in self._namespaces else NO_SUCH_NAME
            case [address, namespace, "pod"]:
                return self._pod(address, namespace, ".".join(labels), record_type)
            case [*inner, service, namespace, "svc"] if len(inner) <= 2:
                known = self._known.get((namespace, service))
                if known is None or known.service is None:
                    return NO_SUCH_NAME
                return self._service(known, known.service, inner, ".".join(labels), record_type)
            case _:
                return NO_SUCH_NAME

    def _pod(self, dashed: str, namespace: str, name: str, record_type: str) -> Answer:
        """An address spelt with dashes, in a namespace that exists (CoreDNS: `pods insecure`)."""
        is_short = dashed.count("-") == 3 and "--" not in dashed
        address = canonical(dashed.replace("-", "." if is_short else ":"))
        if not address or namespace not in self._namespaces:
            return NO_SUCH_NAME
        record = _address_record(name, address)
        return Answer("NOERROR", (record,) if record.type == record_type else ())

    def _service(self, known: _Known, service: Service, inner: list[str], name: str, record_type: str) -> Answer:
        if service.spec.type == "ExternalName":
            return _external(service, inner, name, record_type)
        if service.spec.cluster_ip == "None" or len(inner) == 1:
            return self._of_endpoints(known, service, inner, name, record_type)
        return self._of_cluster_ips(service, inner, name, record_type)

    def _of_cluster_ips(self, service: Service, inner: list[str], name: str, record_type: str) -> Answer:
        ports = [port.port for port in service.spec.ports if _is_asked(inner, port.name, port.protocol)]
        if not ports:
            return NO_SUCH_NAME
        own = self._name_of(service)
        if record_type == "SRV":
            addresses = tuple(_address_record(own, address) for address in _cluster_ips(service))
            return Answer("NOERROR", _srv_records(name, [(port, own) for port in ports]), addresses)
        return _addresses(name, _cluster_ips(service), record_type)

    def _of_endpoints(self, known: _Known, service: Service, inner: list[str], name: str, record_type: str) -> Answer:
        hosts = known.hosts()
        ports_asked = inner if len(inner) == 2 else []
        if len(inner) == 1:
            hosts = [host for host in hosts if host.label == inner[0]]
        chosen = [host for host in hosts if not ports_asked or any(_is_asked(inner, *port[:2]) for port in host.ports)]
        if not chosen:
            return NO_SUCH_NAME
        if record_type != "SRV":
            return _addresses(name, (host.address for host in chosen), record_type)
        own = self._name_of(service)
        targets: dict[tuple[int, str], None] = {}
        for host in chosen:
            for port_name, protocol, port in host.ports:
                if _is_asked(ports_asked, port_name, protocol):
                    targets[port, f"{host.label}.{own}"] = None
        named = {target for _, target in targets}
        additional = dict.fromkeys(
            _address_record(f"{host.label}.{own}", host.address) for host in chosen if f"{host.label}.{own}" in named
        )
        return Answer("NOERROR", _srv_records(name, list(targets)), tuple(additional))

    def _name_of(self, service: Service) -> str:
        return f"{service.metadata.name}.{service.metadata.namespace}.svc.{self.domain}"

    def _reverse_lookup(self, labels: list[str], record_type: str) -> Answer | None:
        """The names of an address: a cluster IP's Service, or else the endpoints that have it."""
        address = _reversed_address(labels)
        if address is None:
            return None
        as_endpoint: list[str] = []
        for key in sorted(self._reverse.get(address, ())):
            known = self._known[key]
            if known.service is None:
                continue
            own = self._name_of(known.service)
            if address in _cluster_ips(known.service):
                as_endpoint = [own]
                break
            as_endpoint += [f"{host.label}.{own}" for host in known.hosts() if host.address == address]
        if not as_endpoint:
            return None
        name = ".".join(labels)
        records = tuple(Record(name, "PTR", target) for target in dict.fromkeys(as_endpoint))
        return Answer("NOERROR", records if record_type == "PTR" else ())


def _external(service: Service, inner: list[str], name: str, record_type: str) -> Answer:
    """A CNAME; `outside` is its target. An address is no name, and names below it do not exist."""
    target = service.spec.external_name.rstrip(".").lower()
    if inner or not target or canonical(target):
        return NO_SUCH_NAME
    if record_type not in ("A", "AAAA", "CNAME"):
        return NO_DATA
    return Answer("NOERROR", (Record(name, "CNAME", target),), outside=target)


def _label(endpoint: SliceEndpoint, address: str) -> str:
    """The endpoint's name in front of its Service's: its hostname, or its address with dashes (CoreDNS)."""
    return endpoint.hostname.lower() if endpoint.hostname else address.replace(".", "-").replace(":", "-")


def _is_asked(asked: list[str], name: str, protocol: str) -> bool:
    """Whether `_NAME._PROTOCOL`, in which CoreDNS does not insist on the `_`, means that port; nothing asked: any."""
    if not asked:
        return True
    return asked[0].removeprefix("_") == name.lower() != "" and asked[1].removeprefix("_") == protocol.lower()


def _srv_records(name: str, targets: list[tuple[int, str]]) -> tuple[Record, ...]:
    weight = max(1, 100 // len(targets)) if targets else 0
    return tuple(Record(name, "SRV", Srv(0, weight, port, target)) for port, target in targets)


def _addresses(name: str, addresses: Iterable[str], record_type: str) -> Answer:
    records = (_address_record(name, address) for address in dict.fromkeys(addresses))
    return Answer("NOERROR", tuple(record for record in records if record.type == record_type))


def _address_record(name: str, address: str) -> Record:
    return Record(name, "AAAA" if ":" in address else "A", address)


def _cluster_ips(service: Service | None) -> tuple[str, ...]:
    if service is None or service.spec.type == "ExternalName":
        return ()
    found = service.spec.cluster_ips or (service.spec.cluster_ip,)
    return tuple(address for address in found if address not in ("", "None"))


def canonical(text: str) -> str:
    """The address that the text spells, as Python spells it; empty when it spells none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _reversed_address(labels: list[str]) -> str | None:
    """The address that `4.3.2.1.in-addr.arpa` or 32 nibbles under `ip6.arpa` spell; None when they spell none."""
    match labels:
        case [*octets, "in-addr", "arpa"] if len(octets) == 4:
            text = ".".join(reversed(octets))
        case [*nibbles, "ip6", "arpa"] if len(nibbles) == 32 and all(len(nibble) == 1 for nibble in nibbles):
            digits = "".join(reversed(nibbles))
            text = ":".join(_groups(digits))
        case _:
            return None
    return canonical(text) or None


def _groups(digits: str) -> Iterator[str]:
    for start in range(0, len(digits), 4):
        yield digits[start : start + 4]
