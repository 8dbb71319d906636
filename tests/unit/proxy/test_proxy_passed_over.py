"""What has no effect on any node, row by row: what describe and the log say of it, and what works beside it."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.api.kinds import ENDPOINT_SLICE, SERVICE
from kproxy.api.types import Object
from kproxy.cli.descriptions import describe_object
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.endpoints import NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Circumstances, NodePortScope
from kproxy.proxy.sources import key_of, typed

NODES = [{"kind": "Node", "metadata": {"name": name}} for name in ("node1", "node2")]
HERE = {"addresses": ["10.244.1.2"], "nodeName": "node1"}
PORT = {"name": "http", "port": 8080, "protocol": "TCP"}


def service(*, status: Any = None, **spec: Any) -> Object:
    return {
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            **spec,
        },
        **({"status": status} if status else {}),
    }


def slice_(*, labels: Any = None, **fields: Any) -> Object:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"} if labels is None else labels,
        },
        "addressType": "IPv4",
        "endpoints": [HERE],
        "ports": [PORT],
        **fields,
    }


DUAL = service(clusterIPs=["10.96.0.5", "fd00:96::5"], ipFamilies=["IPv4", "IPv6"], externalIPs=["fd00:9::9"])
HEADLESS = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}

# name, Service, slice, what describe says of the slice, whether the log says it too, what the rules still lead to
SLICES: list[tuple[str, Object | None, Object, list[str], bool, tuple[str, ...]]] = [
    ("all is well", service(), slice_(), [], False, ("10.244.1.2:8080",)),
    ("a port that no Service has", service(), slice_(ports=[PORT, PORT | {"name": "metrics"}]),
     ['ports[1]: Service "default/web" has no TCP port named "metrics": no traffic comes here'],
     True, ("10.244.1.2:8080",)),
    ("another protocol", service(), slice_(ports=[PORT | {"protocol": "UDP"}]),
     ['ports[0]: Service "default/web" has no UDP port named "http": no traffic comes here'], True, ()),
    ("an unnamed port", service(), slice_(ports=[{"name": "", "port": 8080}]),
     ['ports[0]: Service "default/web" has no TCP port without a name: no traffic comes here'], True, ()),
    ("a port whose name is null", service(), slice_(ports=[{"port": 8080}, PORT]),
     ["ports[0] has no name: passed over"], True, ("10.244.1.2:8080",)),
    ("a port without a number", service(), slice_(ports=[{"name": "http"}]),
     ["ports[0] has no number: passed over"], True, ()),
    ("an address of the other family", service(), slice_(endpoints=[{"addresses": ["fd00::2"]}, HERE]),
     ["the address is not IPv4, the endpoint passed over: endpoints[0] (fd00::2)"], True, ("10.244.1.2:8080",)),
    ("no address at all", service(), slice_(endpoints=[{"addresses": []}, HERE]),
     ["the address is not IPv4, the endpoint passed over: endpoints[0] (none)"], True, ("10.244.1.2:8080",)),
    ("many bad addresses", service(), slice_(endpoints=[*({"addresses": ["x"]} for _ in range(7)), HERE]),
     ["the address is not IPv4, the endpoint passed over: "
      + ", ".join(f"endpoints[{number}] (x)" for number in range(5)) + " and 2 more"], True, ("10.244.1.2:8080",)),
    ("several addresses", service(), slice_(endpoints=[HERE | {"addresses": ["10.244.1.2", "10.244.1.3"]}]),
     ["only the first address is used: endpoints[0]"], True, ("10.244.1.2:8080",)),
    ("an unknown Node", service(), slice_(endpoints=[HERE | {"nodeName": "node9"}, HERE | {"nodeName": None}]),
     ['there is no Node "node9": endpoints[0] remote everywhere'], False, ("10.244.1.2:8080",)),
    ("the family that the Service lacks", service(),
     slice_(addressType="IPv6", endpoints=[{"addresses": ["fd00::2"]}]),
     ['Service "default/web" is not handled for IPv6: no traffic comes here'], False, ()),
    ("FQDN", service(), slice_(addressType="FQDN", endpoints=[{"addresses": ["a.example"]}]),
     ["no proxy handles addressType FQDN"], False, ()),
    ("no Service", None, slice_(), ['there is no Service "default/web"'], False, ()),
    ("no label", service(), slice_(labels={}),
     ["no label kubernetes.io/service-name: it belongs to no Service"], False, ()),
    ("a headless Service's", service(clusterIP="None", clusterIPs=["None"]), slice_(labels=HEADLESS), [], False, ()),
    ("a headless Service's, by hand", service(clusterIP="None", clusterIPs=["None"]), slice_(), [], False, ()),
]  # fmt: skip

SERVICES: list[tuple[str, Object, list[str]]] = [
    ("all is well", service(externalIPs=["203.0.113.9"]), []),
    ("dual-stack", DUAL, []),
    ("headless", service(clusterIP="None", clusterIPs=["None"], externalIPs=["fd00:9::9"]), []),
    ("an external IP of the other family", service(externalIPs=["203.0.113.9", "fd00:9::9"]),
     ['spec.externalIPs[1] ("fd00:9::9"): without effect, as every cluster IP of the Service is IPv4']),
    ("a source range of the other family",
     service(type="LoadBalancer", loadBalancerSourceRanges=["2001:db8::/32"]),
     ['spec.loadBalancerSourceRanges[0] ("2001:db8::/32"): without effect, '
      "as every cluster IP of the Service is IPv4"]),
    ("an ingress of the other family",
     service(type="LoadBalancer", clusterIP="fd00:96::5", clusterIPs=["fd00:96::5"],
             status={"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "a.example"}]}}),
     ['status.loadBalancer.ingress[0] ("198.51.100.1"): without effect, '
      "as every cluster IP of the Service is IPv6"]),
]  # fmt: skip


def notes(text: str) -> list[str]:
    """The lines of the block "Notes" of a description, which is the last."""
    _, found, block = text.partition("\nNotes:")
    return [line.strip() for line in block.splitlines()] if found else []


def told(*objects: Object) -> tuple[list[str], tuple[str, ...]]:
    """What the proxiers of both families say, and where their rules lead."""
    said: list[str] = []
    places: list[str] = []
    for family in Family:
        tracker = Tracker(family, "node1")
        tracker.take(Change(key_of(obj), None, typed(obj)) for obj in objects)
        delta = tracker.delta(Circumstances(NodeIdentity("node1"), ()), NodePortScope(None, False), is_full=True)
        said += tracker.pop_oddities(100)
        assert tracker.pop_oddities(100) == []
        places += [place for plan in delta.written.values() for place in plan.cluster]
    return said, tuple(places)


@pytest.mark.parametrize(("of", "piece", "words", "is_logged", "works"), [row[1:] for row in SLICES],
                         ids=[row[0] for row in SLICES])  # fmt: skip
def test_a_slice_says_what_of_it_has_no_effect(
    of: Object | None, piece: Object, words: list[str], is_logged: bool, works: tuple[str, ...]
) -> None:
    around = [*([of] if of else []), *NODES]
    assert notes(describe_object(ENDPOINT_SLICE, piece, around)) == words
    if of and piece["metadata"]["labels"]:
        of_service = notes(describe_object(SERVICE, of, [piece, *NODES]))
        assert of_service == [f"EndpointSlice web-1: {each}" for each in words]

    said, places = told(piece, *([of] if of else []))
    assert said == ([f'EndpointSlice "default/web-1": {each}' for each in words] if is_logged else [])
    assert tuple(dict.fromkeys(places)) == works


@pytest.mark.parametrize(("of", "words"), [row[1:] for row in SERVICES], ids=[row[0] for row in SERVICES])
def test_a_service_says_what_of_it_has_no_effect(of: Object, words: list[str]) -> None:
    assert notes(describe_object(SERVICE, of, NODES)) == words
    assert told(of)[0] == [f'Service "default/web": {each}' for each in words]


def test_what_was_put_right_and_goes_wrong_again_is_told_again() -> None:
    tracker = Tracker(Family.IPV4, "node1")
    good, bad, worse = (typed(slice_(ports=ports)) for ports in ([PORT], [PORT, {"port": 1}], [{"port": 1}]))
    tracker.take([Change(key_of(service()), None, typed(service()))])
    key = key_of(slice_())

    def after(old: Any, new: Any) -> list[str]:
        tracker.take([Change(key, old, new)])
        return tracker.pop_oddities(100)

    sentence = 'EndpointSlice "default/web-1": ports[0] has no name: passed over'
    assert after(None, worse) == [sentence]
    assert after(worse, bad) == [sentence.replace("[0]", "[1]")]
    assert after(bad, bad) == []
    assert after(bad, good) == []
    assert after(good, worse) == [sentence]
    assert after(worse, None) == []
