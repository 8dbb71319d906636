"""What names mean, as a table; one world of Services and slices for all of them."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.types import EndpointSlice, Service, view
from kproxy.cluster.dns.zone import TTL, Answer, Record, Srv, Zone

Z = "cluster.local"


def service(name: str, namespace: str = "default", **spec: Any) -> Service:
    return view({"metadata": {"name": name, "namespace": namespace}, "spec": spec}, Service)


def endpoint(*addresses: str, hostname: str | None = None, **conditions: bool) -> dict[str, Any]:
    return {"addresses": list(addresses), "hostname": hostname, "conditions": conditions}


def endpoint_slice(owner: str, *endpoints: dict[str, Any], ports: list[dict[str, Any]] | None = None) -> EndpointSlice:
    labels = {"kubernetes.io/service-name": owner}
    return view({"metadata": {"labels": labels}, "endpoints": list(endpoints), "ports": ports or []}, EndpointSlice)


HTTP = {"name": "http", "port": 80, "protocol": "TCP"}
DNS = {"name": "dns", "port": 53, "protocol": "UDP"}
TARGET = {"name": "http", "port": 8080, "protocol": "TCP"}

SERVICES = [
    service("web", clusterIP="10.96.0.5", clusterIPs=["10.96.0.5"], ports=[HTTP, DNS]),
    service("bare", clusterIP="10.96.0.6", clusterIPs=["10.96.0.6"], ports=[{"port": 80, "protocol": "TCP"}]),
    service("both", clusterIP="10.96.0.7", clusterIPs=["10.96.0.7", "fd00:10:96::7"], ports=[HTTP]),
    service("peers", clusterIP="None", clusterIPs=["None"], ports=[HTTP]),
    service("six", clusterIP="None", clusterIPs=["None"], ports=[HTTP]),
    service("idle", clusterIP="None", clusterIPs=["None"], ports=[HTTP]),
    service("plain", clusterIP="None", clusterIPs=["None"]),
    service("db", type="ExternalName", externalName="My.Database.com."),
    service("alias", type="ExternalName", externalName="web.default.svc.cluster.local"),
    service("second", type="ExternalName", externalName="alias.default.svc.cluster.local"),
    service("dangling", type="ExternalName", externalName="nobody.default.svc.cluster.local"),
    service("loop", type="ExternalName", externalName="loop.default.svc.cluster.local"),
    service("quad", type="ExternalName", externalName="192.0.2.1"),
    service("web", "other", clusterIP="10.96.0.8", clusterIPs=["10.96.0.8"], ports=[HTTP]),
]
SLICES = {
    "web-1": endpoint_slice("web", endpoint("10.244.1.2"), ports=[TARGET]),
    "peers-1": endpoint_slice(
        "peers",
        endpoint("10.244.1.10", hostname="peers-0", ready=True),
        endpoint("10.244.2.10", ready=True),
        endpoint("10.244.2.11", ready=False, serving=True, terminating=True),
        ports=[TARGET],
    ),
    "peers-2": endpoint_slice("peers", endpoint("10.244.1.10", hostname="peers-0"), ports=[TARGET]),
    "peers-3": endpoint_slice("peers", endpoint("10.244.3.10", hostname="peers-0"), ports=[TARGET]),
    "six-1": endpoint_slice("six", endpoint("fd00:10:244:1:0::a"), ports=[TARGET]),
    "idle-1": endpoint_slice("idle", endpoint("10.244.1.12", ready=False), ports=[TARGET]),
    "plain-1": endpoint_slice("plain", endpoint("10.244.1.13")),
}


@pytest.fixture
def zone() -> Zone:
    found = Zone()
    for name in ("default", "other", "empty"):
        found.set_namespace(name, exists=True)
    for one in SERVICES:
        found.set_service((one.metadata.namespace, one.metadata.name), one)
    for name, known in SLICES.items():
        found.set_slice("default", name, None, known)
    return found


NODATA: tuple[str, ...] = ()
WEB = f"web.default.svc.{Z}"
PEERS = f"peers.default.svc.{Z}"

# Name, type, and the values of what is answered; None is NXDOMAIN.
CASES: list[tuple[str, str, tuple[str, ...] | None]] = [
    (WEB, "A", ("10.96.0.5",)),
    (f"{WEB}.", "A", ("10.96.0.5",)),
    ("WEB.Default.SVC.cluster.LOCAL", "A", ("10.96.0.5",)),
    (WEB, "AAAA", NODATA),
    (WEB, "TXT", NODATA),
    (f"web.other.svc.{Z}", "A", ("10.96.0.8",)),
    (f"both.default.svc.{Z}", "A", ("10.96.0.7",)),
    (f"both.default.svc.{Z}", "AAAA", ("fd00:10:96::7",)),
    (f"nobody.default.svc.{Z}", "A", None),
    (f"web.nowhere.svc.{Z}", "A", None),
    (f"10-244-1-2.{WEB}", "A", ("10.244.1.2",)),
    (f"10-244-1-3.{WEB}", "A", None),
    (f"a._http._tcp.{WEB}", "SRV", None),
    (PEERS, "A", ("10.244.1.10", "10.244.2.10", "10.244.3.10")),
    (PEERS, "AAAA", NODATA),
    (f"peers-0.{PEERS}", "A", ("10.244.1.10", "10.244.3.10")),
    (f"10-244-2-10.{PEERS}", "A", ("10.244.2.10",)),
    (f"10-244-2-11.{PEERS}", "A", None),
    (f"six.default.svc.{Z}", "A", NODATA),
    (f"six.default.svc.{Z}", "AAAA", ("fd00:10:244:1::a",)),
    (f"idle.default.svc.{Z}", "A", None),
    (f"plain.default.svc.{Z}", "A", ("10.244.1.13",)),
    (f"plain.default.svc.{Z}", "SRV", NODATA),
    (f"_http._tcp.plain.default.svc.{Z}", "SRV", None),
    (f"_http._udp.{WEB}", "SRV", None),
    (f"_._tcp.bare.default.svc.{Z}", "SRV", None),
    (f"db.default.svc.{Z}", "CNAME", ("my.database.com",)),
    (f"db.default.svc.{Z}", "A", ("my.database.com",)),
    (f"db.default.svc.{Z}", "SRV", NODATA),
    (f"sub.db.default.svc.{Z}", "A", None),
    (f"alias.default.svc.{Z}", "A", (WEB, "10.96.0.5")),
    (f"alias.default.svc.{Z}", "CNAME", (WEB,)),
    (f"alias.default.svc.{Z}", "AAAA", NODATA),
    (f"second.default.svc.{Z}", "A", (f"alias.default.svc.{Z}", WEB, "10.96.0.5")),
    (f"dangling.default.svc.{Z}", "A", NODATA),
    (f"loop.default.svc.{Z}", "A", NODATA),
    (f"quad.default.svc.{Z}", "A", None),
    (f"10-244-1-2.default.pod.{Z}", "A", ("10.244.1.2",)),
    (f"10-244-1-2.default.pod.{Z}", "AAAA", NODATA),
    (f"fd00-10--1.default.pod.{Z}", "AAAA", ("fd00:10::1",)),
    (f"10-244-1-2.nowhere.pod.{Z}", "A", None),
    (f"10-244-1-256.default.pod.{Z}", "A", None),
    (f"dns-version.{Z}", "TXT", ("1.1.0",)),
    (f"dns-version.{Z}", "A", NODATA),
    (Z, "A", NODATA),
    (Z, "SOA", ("",)),
    (f"svc.{Z}", "A", NODATA),
    (f"pod.{Z}", "A", NODATA),
    (f"default.svc.{Z}", "A", NODATA),
    (f"empty.svc.{Z}", "A", NODATA),
    (f"nowhere.svc.{Z}", "A", None),
    (f"something.{Z}", "A", None),
    ("5.0.96.10.in-addr.arpa", "PTR", (WEB,)),
    ("5.0.96.10.in-addr.arpa", "A", NODATA),
    ("2.1.244.10.in-addr.arpa", "PTR", (f"10-244-1-2.{WEB}",)),
    ("10.1.244.10.in-addr.arpa", "PTR", (f"peers-0.{PEERS}",)),
    ("7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa", "PTR", (f"both.default.svc.{Z}",)),
]


@pytest.mark.parametrize(("name", "record_type", "values"), CASES, ids=lambda value: str(value)[:60])
def test_a_name(zone: Zone, name: str, record_type: str, values: tuple[str, ...] | None) -> None:
    answer = zone.lookup(name, record_type)
    assert answer is not None
    assert answer.code == ("NXDOMAIN" if values is None else "NOERROR")
    assert tuple(record.value for record in answer.records) == (values or ())


@pytest.mark.parametrize(
    "name", ["www.example.com", "my.database.com", "11.2.244.10.in-addr.arpa", "1.2.3.in-addr.arpa", "arpa", "local"]
)
def test_what_others_have_to_answer(zone: Zone, name: str) -> None:
    assert zone.lookup(name, "A") is None
    assert zone.lookup(name, "PTR") is None


def test_service_records_of_a_cluster_ip_carry_the_services_port(zone: Zone) -> None:
    name = f"_http._tcp.{WEB}"
    assert zone.lookup(name, "SRV") == Answer(
        "NOERROR", (Record(name, "SRV", Srv(0, 100, 80, WEB), TTL),), (Record(WEB, "A", "10.96.0.5"),)
    )
    everything = zone.lookup(WEB, "SRV")
    assert everything is not None
    assert [record.value for record in everything.records] == [Srv(0, 50, 80, WEB), Srv(0, 50, 53, WEB)]


def test_service_records_of_a_headless_service_carry_the_endpoints_ports(zone: Zone) -> None:
    answer = zone.lookup(f"_http._tcp.{PEERS}", "SRV")
    assert answer is not None
    assert [record.value for record in answer.records] == [
        Srv(0, 50, 8080, f"peers-0.{PEERS}"),
        Srv(0, 50, 8080, f"10-244-2-10.{PEERS}"),
    ]
    assert [(record.name, record.value) for record in answer.additional] == [
        (f"peers-0.{PEERS}", "10.244.1.10"),
        (f"10-244-2-10.{PEERS}", "10.244.2.10"),
        (f"peers-0.{PEERS}", "10.244.3.10"),
    ]


def test_a_name_outside_is_left_to_others(zone: Zone) -> None:
    answer = zone.lookup(f"db.default.svc.{Z}", "A")
    assert answer is not None
    assert answer.outside == "my.database.com"
    asked_for_the_alias = zone.lookup(f"db.default.svc.{Z}", "CNAME")
    assert asked_for_the_alias is not None
    assert asked_for_the_alias.outside == ""


def test_a_service_that_goes_takes_its_names_along(zone: Zone) -> None:
    zone.set_service(("default", "web"), None)
    gone = zone.lookup(WEB, "A")
    assert gone is not None
    assert gone.code == "NXDOMAIN"
    assert zone.lookup("5.0.96.10.in-addr.arpa", "PTR") is None
    assert zone.lookup("2.1.244.10.in-addr.arpa", "PTR") is None
    zone.set_service(("default", "web"), SERVICES[0])
    assert zone.lookup("2.1.244.10.in-addr.arpa", "PTR") is not None


def test_a_slice_that_changes_hands(zone: Zone) -> None:
    old = SLICES["plain-1"]
    zone.set_slice("default", "plain-1", old, endpoint_slice("idle", endpoint("10.244.1.13")))
    before, after = zone.lookup(f"plain.default.svc.{Z}", "A"), zone.lookup(f"idle.default.svc.{Z}", "A")
    assert before is not None
    assert before.code == "NXDOMAIN"
    assert after is not None
    assert [record.value for record in after.records] == ["10.244.1.13"]


def test_a_namespace_that_goes(zone: Zone) -> None:
    zone.set_namespace("empty", exists=False)
    answer = zone.lookup(f"empty.svc.{Z}", "A")
    assert answer is not None
    assert answer.code == "NXDOMAIN"
