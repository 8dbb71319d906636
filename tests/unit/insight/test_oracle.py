"""The promise, by tables: which endpoints, whose address, how many hops; worked out by hand from Kubernetes' rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kproxy.api.types import EndpointSlice, Service
from kproxy.api.types import view as typed
from kproxy.insight.oracle import (
    KEPT,
    Answer,
    ClientView,
    ClusterView,
    ExternalRoute,
    Frontend,
    FrontendKind,
    NodeView,
    Place,
    PodView,
    Promise,
    ProxyView,
    Verdict,
    backends,
    is_proxied,
    promise,
    select,
)

PROXY = ProxyView(cluster_cidrs=("10.244.0.0/16", "fd00:10:244::/48"))
NODES = tuple(
    NodeView(
        f"node{n}",
        (f"192.168.1.{n + 1}", f"fd00:1::{n + 1}"),
        (f"10.244.{n}.0/24", f"fd00:10:244:{n}::/64"),
        zone,
        proxy=PROXY,
    )
    for n, zone in ((1, "zone-a"), (2, "zone-a"), (3, "zone-b"))
)
PODS = tuple(
    PodView("default", f"pod{n}-{i}", f"node{n}", (f"10.244.{n}.{i}", f"fd00:10:244:{n}::{i}"), interface=f"veth{n}{i}")
    for n in (1, 2, 3)
    for i in (2, 3)
)
OUTSIDE = ClientView("client", ("203.0.113.10", "2001:db8:113::10"), ("192.168.1.0/24", "fd00:1::/64"))

P1, P2, P3 = "10.244.1.2:8080", "10.244.2.2:8080", "10.244.3.2:8080"


def place(text: str) -> Place:
    """The client place that ``node/NAME``, ``pod/NAME`` or ``client`` names in the cluster above."""
    kind, _, name = text.partition("/")
    if kind == "node":
        node = next(node for node in NODES if node.name == name)
        return Place(text, node.name, False, node.addresses)
    if kind == "pod":
        pod = next(pod for pod in PODS if pod.name == name)
        return Place(f"pod/default/{name}", pod.node, True, pod.addresses, interface=pod.interface)
    return Place("client/client", None, False, OUTSIDE.addresses, OUTSIDE.routes)


def endpoint(node: int, state: str = "ready", hint: str = "", node_hint: str = "", i: int = 2) -> dict[str, Any]:
    """An endpoint on that node: ready, notReady, ST (serving and terminating) or terminating."""
    conditions = {
        "ready": {"ready": True, "serving": True, "terminating": False},
        "notReady": {"ready": False, "serving": False, "terminating": False},
        "ST": {"ready": False, "serving": True, "terminating": True},
        "terminating": {"ready": False, "serving": False, "terminating": True},
        "unset": {},
    }[state]
    found: dict[str, Any] = {
        "addresses": [f"10.244.{node}.{i}"],
        "nodeName": f"node{node}",
        "conditions": conditions,
    }
    if hint or node_hint:
        found["hints"] = {
            "forZones": [{"name": hint}] if hint else [],
            "forNodes": [{"name": node_hint}] if node_hint else [],
        }
    return found


def cluster(endpoints: list[dict[str, Any]], **spec: Any) -> ClusterView:
    """The cluster above with one Service ``default/web`` of port 80 and one slice."""
    service = {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.50",
            "externalIPs": ["198.51.100.7"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}},
    }
    part = {
        "metadata": {
            "name": "web-x",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }
    return ClusterView(
        services=(typed(service, Service),),
        slices=(typed(part, EndpointSlice),),
        nodes=NODES,
        pods=PODS,
        clients=(OUTSIDE,),
    )


def configured(view: ClusterView, proxies: Mapping[int, ProxyView | None]) -> ClusterView:
    """The same cluster where nodes of these numbers have these proxies."""
    changed = {f"node{number}": proxy for number, proxy in proxies.items()}
    return replace(view, nodes=tuple(replace(node, proxy=changed.get(node.name, node.proxy)) for node in view.nodes))


def everywhere(view: ClusterView, proxy: ProxyView) -> ClusterView:
    """The same cluster with this proxy on all nodes."""
    return configured(view, dict.fromkeys((1, 2, 3), proxy))


def frontend(view: ClusterView, text: str) -> Frontend:
    """``cluster``, ``external``, ``lb``, ``nodeport:N`` or ``pod:N`` of the Service."""
    service = view.services[0]
    port = service.spec.ports[0]
    kind, _, number = text.partition(":")
    match kind:
        case "cluster":
            return Frontend(FrontendKind.CLUSTER_IP, "10.96.0.50", 80, "TCP", service, port)
        case "external":
            return Frontend(FrontendKind.EXTERNAL_IP, "198.51.100.7", 80, "TCP", service, port)
        case "lb":
            return Frontend(FrontendKind.LOAD_BALANCER, "198.51.100.9", 80, "TCP", service, port)
        case "nodeport":
            node = NODES[int(number) - 1]
            return Frontend(FrontendKind.NODE_PORT, node.addresses[0], 30080, "TCP", service, port, node.name)
        case _:
            return Frontend(FrontendKind.POD, f"10.244.{number}.2", 8080, "TCP", service, port)


# -- selection: the node under test is node1, in zone-a -----------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    name: str
    endpoints: list[dict[str, Any]]
    cluster: list[str]
    local: list[str]
    has_any: bool = True


SELECTIONS = [
    Chosen("no endpoints", [], [], [], has_any=False),
    Chosen("a local one, not ready", [endpoint(1, "notReady")], [], [], has_any=False),
    Chosen("terminating and not serving", [endpoint(1, "terminating")], [], [], has_any=False),
    Chosen("conditions that are not set count as ready", [endpoint(1, "unset")], [P1], [P1]),
    Chosen("a remote one", [endpoint(2)], [P2], []),
    Chosen("local and remote", [endpoint(1), endpoint(2)], [P1, P2], [P1]),
    Chosen("local terminating, remote ready", [endpoint(1, "ST"), endpoint(2)], [P2], [P1]),
    Chosen("both terminating", [endpoint(1, "ST"), endpoint(2, "ST")], [P1, P2], [P1]),
    Chosen("remote terminating only", [endpoint(2, "ST")], [P2], []),
    Chosen("hints of zones", [endpoint(1, hint="zone-b"), endpoint(2, hint="zone-a")], [P2], [P1]),
    Chosen("one endpoint without a hint", [endpoint(1), endpoint(2, hint="zone-b")], [P1, P2], [P1]),
    Chosen("no hint for this zone", [endpoint(2, hint="zone-b"), endpoint(3, hint="zone-b")], [P2, P3], []),
    Chosen(
        "hints of nodes before those of zones",
        [endpoint(1, hint="zone-a", node_hint="node1"), endpoint(2, hint="zone-a", node_hint="node2")],
        [P1],
        [P1],
    ),
    Chosen(
        "no node hint names this node, the zone does",
        [endpoint(2, hint="zone-a", node_hint="node2"), endpoint(3, hint="zone-b", node_hint="node3")],
        [P2],
        [],
    ),
    Chosen(
        "hints of endpoints that are not ready do not count",
        [endpoint(1, hint="zone-b"), endpoint(2, "notReady", hint="zone-a")],
        [P1],
        [P1],
    ),
    Chosen(
        "sorted as text, ten before two",
        [endpoint(1), endpoint(1, i=10)],
        ["10.244.1.10:8080", P1],
        ["10.244.1.10:8080", P1],
    ),
    Chosen("a later terminating entry does not replace", [endpoint(1), endpoint(1, "ST")], [P1], [P1]),
    Chosen("a later entry replaces a terminating one", [endpoint(1, "ST"), endpoint(1, "notReady")], [], [], False),
]


@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case.name)
def test_a_node_may_use_these_endpoints(case: Chosen) -> None:
    view = cluster(case.endpoints)
    service = view.services[0]
    selection = select(backends(view, service, service.spec.ports[0], 4), NODES[0])
    assert [backend.text for backend in selection.cluster] == case.cluster
    assert [backend.text for backend in selection.local] == case.local
    assert selection.has_any is case.has_any


def test_slices_of_another_service_family_port_or_protocol_do_not_count() -> None:
    view = cluster([endpoint(1)])
    part, service = view.slices[0], view.services[0]
    port = service.spec.ports[0]
    assert backends(view, service, port, 4)
    assert not backends(view, service, port, 6)
    renamed = typed({"metadata": {"name": "other", "namespace": "default"}}, Service)
    assert not backends(view, renamed, port, 4)
    for slice_port in (
        {"name": "http", "port": 8080, "protocol": "UDP"},
        {"name": "x", "port": 8080},
        {"port": 8080},
        {"name": "http"},
    ):
        changed = typed(
            {
                "metadata": {"namespace": "default", "labels": part.metadata.labels},
                "endpoints": [endpoint(1)],
                "ports": [slice_port],
            },
            EndpointSlice,
        )
        assert not backends(replace(view, slices=(changed,)), service, port, 4), slice_port


# -- decisions ----------------------------------------------------------------------------------------------------

ETP_LOCAL = {"externalTrafficPolicy": "Local"}
ITP_LOCAL = {"internalTrafficPolicy": "Local"}
TWO = [endpoint(1), endpoint(2)]
REFUSED, DROPPED, NO_ROUTE = (Promise(verdict) for verdict in (Verdict.REFUSED, Verdict.DROPPED, Verdict.NO_ROUTE))


def answered(*answers: tuple[str, str, int], lost: tuple[str, ...] = (), unreached: tuple[str, ...] = ()) -> Promise:
    found = tuple(Answer(*answer) for answer in answers)
    return Promise(Verdict.ANSWERED, found, lost, unreached=unreached)


@dataclass(frozen=True)
class Decision:
    name: str
    spec: dict[str, Any]
    endpoints: list[dict[str, Any]]
    client: str
    frontend: str
    promised: Promise


DECISIONS = [
    # the bare address
    Decision("bare pod, from itself", {}, TWO, "pod/pod1-2", "pod:1", answered((P1, KEPT, 0))),
    Decision("bare pod, same node", {}, TWO, "pod/pod1-3", "pod:1", answered((P1, KEPT, 1))),
    Decision("bare pod, other node", {}, TWO, "pod/pod2-2", "pod:1", answered((P1, KEPT, 2))),
    Decision("bare pod, its node", {}, TWO, "node/node1", "pod:1", answered((P1, KEPT, 0))),
    Decision("bare pod, another node", {}, TWO, "node/node2", "pod:1", answered((P1, KEPT, 1))),
    Decision("bare pod, from outside", {}, TWO, "client", "pod:1", NO_ROUTE),
    # cluster IP
    Decision("hairpin", {}, [endpoint(1)], "pod/pod1-2", "cluster", answered((P1, "10.244.1.1", 1))),
    Decision("cluster IP, pods", {}, TWO, "pod/pod1-3", "cluster", answered((P1, KEPT, 1), (P2, KEPT, 2))),
    Decision("cluster IP, node with", {}, TWO, "node/node1", "cluster", answered((P1, "10.244.1.1", 0), (P2, KEPT, 1))),
    Decision("cluster IP, node without", {}, TWO, "node/node3", "cluster", answered((P1, KEPT, 1), (P2, KEPT, 1))),
    Decision("cluster IP, outside", {}, TWO, "client", "cluster", NO_ROUTE),
    Decision("cluster IP, none", {}, [], "pod/pod1-3", "cluster", REFUSED),
    Decision("cluster IP, none, node", {}, [], "node/node1", "cluster", REFUSED),
    Decision("internal Local, with", ITP_LOCAL, TWO, "pod/pod1-3", "cluster", answered((P1, KEPT, 1))),
    Decision("internal Local, without", ITP_LOCAL, TWO, "pod/pod3-2", "cluster", DROPPED),
    Decision("internal Local, without, node", ITP_LOCAL, TWO, "node/node3", "cluster", DROPPED),
    Decision("internal Local, none", ITP_LOCAL, [], "pod/pod3-2", "cluster", REFUSED),
    Decision("internal Local leaves node ports alone", ITP_LOCAL, [endpoint(2)], "client", "nodeport:1",
             answered((P2, "192.168.1.2", 3))),
    # node port, Cluster
    Decision("node port, outside", {}, TWO, "client", "nodeport:1",
             answered((P1, "10.244.1.1", 2), (P2, "192.168.1.2", 3))),
    Decision("node port, node without", {}, TWO, "client", "nodeport:3",
             answered((P1, "192.168.1.4", 3), (P2, "192.168.1.4", 3))),
    Decision("node port, own node of a pod", {}, [endpoint(1)], "pod/pod1-3", "nodeport:1",
             answered((P1, "10.244.1.1", 1))),
    Decision("node port, other node, there and back", {}, [endpoint(1)], "pod/pod1-3", "nodeport:2",
             answered((P1, "192.168.1.3", 3))),
    Decision("node port, the node's own", {}, TWO, "node/node1", "nodeport:1",
             answered((P1, "10.244.1.1", 0), (P2, KEPT, 1))),
    Decision("node port, node to node", {}, TWO, "node/node1", "nodeport:2",
             answered((P1, "192.168.1.3", 2), (P2, "10.244.2.1", 1))),
    Decision("node port, none", {}, [], "client", "nodeport:1", REFUSED),
    Decision("node port, none, its own node", {}, [], "node/node1", "nodeport:1", REFUSED),
    # node port, Local
    Decision("Local, outside, with", ETP_LOCAL, TWO, "client", "nodeport:1", answered((P1, KEPT, 2))),
    Decision("Local, outside, without", ETP_LOCAL, TWO, "client", "nodeport:3", DROPPED),
    Decision("Local, outside, none", ETP_LOCAL, [], "client", "nodeport:3", REFUSED),
    Decision("Local, terminating fallback", ETP_LOCAL, [endpoint(1, "ST"), endpoint(2)], "client", "nodeport:1",
             answered((P1, KEPT, 2))),
    Decision("Local, a pod at its own node", ETP_LOCAL, TWO, "pod/pod3-2", "nodeport:3",
             answered((P1, KEPT, 2), (P2, KEPT, 2))),
    Decision("Local, a pod at another node: third nodes answer past it", ETP_LOCAL, TWO, "pod/pod3-2", "nodeport:1",
             answered((P1, KEPT, 2), lost=(P2,))),
    Decision("Local, a pod at a node without: all answers go past it", ETP_LOCAL, TWO, "pod/pod1-3", "nodeport:3",
             Promise(Verdict.DROPPED, lost=(P1, P2))),
    Decision("Local, the pod itself by another node", ETP_LOCAL, TWO, "pod/pod1-2", "nodeport:2",
             answered((P1, "192.168.1.3", 3), (P2, KEPT, 2))),
    Decision("Local, the node itself", ETP_LOCAL, TWO, "node/node3", "nodeport:3",
             answered((P1, KEPT, 1), (P2, KEPT, 1))),
    Decision("Local, node to node is external", ETP_LOCAL, TWO, "node/node3", "nodeport:1", answered((P1, KEPT, 1))),
    Decision("Local, node to node without", ETP_LOCAL, TWO, "node/node1", "nodeport:3", DROPPED),
    # external and load balancer addresses: nobody outside has a route to them
    Decision("external IP, outside", {}, TWO, "client", "external", NO_ROUTE),
    Decision("external IP, pod", {}, [endpoint(2)], "pod/pod1-3", "external", answered((P2, "192.168.1.2", 2))),
    Decision("external IP, none, pod", {}, [], "pod/pod1-3", "external", REFUSED),
    Decision("external IP, none, node: OUTPUT has no such rule", {}, [], "node/node1", "external", NO_ROUTE),
    Decision("load balancer, Local, pod", ETP_LOCAL, [endpoint(2)], "pod/pod1-3", "lb", answered((P2, KEPT, 2))),
    Decision("load balancer, Local, node", ETP_LOCAL, [endpoint(2)], "node/node1", "lb", answered((P2, KEPT, 1))),
    Decision("source range, inside", {"loadBalancerSourceRanges": ["10.244.1.0/24"]}, [endpoint(2)], "pod/pod1-3", "lb",
             answered((P2, "192.168.1.2", 2))),
    Decision("source range, not inside", {"loadBalancerSourceRanges": ["10.244.1.0/24"]}, [endpoint(2)], "pod/pod2-2",
             "lb", DROPPED),
    Decision("source ranges are for load balancers only", {"loadBalancerSourceRanges": ["10.244.1.0/24"]},
             [endpoint(2)], "pod/pod2-3", "external", answered((P2, "10.244.2.1", 1))),
    Decision("source ranges of the other family only", {"loadBalancerSourceRanges": ["fd00::/8"]}, [endpoint(2)],
             "pod/pod2-3", "lb", answered((P2, "10.244.2.1", 1))),
]  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS, ids=lambda case: case.name)
def test_a_packet_is_promised(case: Decision) -> None:
    view = cluster(case.endpoints, **case.spec)
    assert promise(view, place(case.client), frontend(view, case.frontend)) == case.promised


# -- what the lab and the proxy's configuration change -------------------------------------------------------------


def test_outside_routes_lead_to_the_node_that_they_name() -> None:
    view = cluster(TWO, **ETP_LOCAL)
    routed = replace(view, external_routes=(ExternalRoute("198.51.100.0/24", "node2"),))
    client = replace(place("client"), routes=(*OUTSIDE.routes, "198.51.100.0/24"))
    assert promise(routed, client, frontend(routed, "lb")) == answered((P2, KEPT, 2))
    elsewhere = replace(
        view,
        external_routes=(ExternalRoute("198.51.100.0/24", "node2"), ExternalRoute("198.51.100.9/32", "node3")),
    )
    assert promise(elsewhere, client, frontend(elsewhere, "lb")) == DROPPED
    assert promise(elsewhere, client, frontend(elsewhere, "external")) == answered((P2, KEPT, 2))


def test_a_node_without_endpoints_is_refused_where_the_outside_routes_the_address() -> None:
    view = replace(cluster([]), external_routes=(ExternalRoute("198.51.100.0/24", "node2"),))
    assert promise(view, place("node/node1"), frontend(view, "external")) == REFUSED


def test_a_tunnel_masquerades_with_its_own_address() -> None:
    tunnelled = tuple(replace(node, tunnel_addresses=(node.pod_cidrs[0].removesuffix("/24"),)) for node in NODES)
    view = replace(cluster(TWO), nodes=tunnelled)
    assert promise(view, place("client"), frontend(view, "nodeport:1")) == answered(
        (P1, "10.244.1.1", 2), (P2, "10.244.1.0", 3)
    )


@pytest.mark.parametrize(
    ("mode", "client", "source"),
    [
        ("NodeCIDR", "pod/pod1-3", KEPT),
        ("InterfaceNamePrefix", "pod/pod1-3", KEPT),
        ("BridgeInterface", "pod/pod1-3", KEPT),
        ("BridgeInterface", "pod/pod1-2", "10.244.1.1"),
        ("NodeCIDR", "node/node1", "10.244.1.1"),
        ("InterfaceNamePrefix", "node/node1", "10.244.1.1"),
    ],
)
def test_each_detector_knows_its_own_pods(mode: str, client: str, source: str) -> None:
    proxy = ProxyView(mode, pod_bridge_interface="veth13", pod_interface_name_prefix="veth")
    view = everywhere(cluster([endpoint(1)]), proxy)
    (answer,) = promise(view, place(client), frontend(view, "cluster")).answers
    assert answer.source == source


def test_detectors_of_the_node_take_other_nodes_pods_for_outsiders() -> None:
    view = everywhere(cluster(TWO, **ETP_LOCAL), ProxyView("NodeCIDR"))
    assert promise(view, place("pod/pod3-2"), frontend(view, "nodeport:1")) == answered((P1, KEPT, 2))
    assert promise(view, place("pod/pod1-3"), frontend(view, "nodeport:3")) == DROPPED


def test_without_a_detector_nothing_internal_is_masqueraded_but_hairpins() -> None:
    view = everywhere(cluster([endpoint(1)]), ProxyView())
    assert promise(view, place("node/node1"), frontend(view, "cluster")) == answered((P1, KEPT, 0))
    assert promise(view, place("pod/pod1-2"), frontend(view, "cluster")) == answered((P1, "10.244.1.1", 1))
    everything = everywhere(view, ProxyView(masquerade_all=True))
    assert promise(everything, place("pod/pod1-3"), frontend(view, "cluster")) == answered((P1, "10.244.1.1", 1))


def test_without_a_detector_pods_are_outsiders_to_a_local_policy() -> None:
    view = everywhere(cluster(TWO, **ETP_LOCAL), ProxyView())
    assert promise(view, place("pod/pod3-2"), frontend(view, "nodeport:3")) == DROPPED


CLOSED = Promise(Verdict.REFUSED, is_closed=True)
NFTABLES = replace(PROXY, mode="nftables")
MASQUERADING = replace(PROXY, masquerade_all=True)
NO_DETECTOR = ProxyView()
BY_UPLINK = ProxyView("InterfaceNamePrefix", pod_interface_name_prefix="eth")
ELSEWHERE = replace(PROXY, node_port_addresses=("10.0.0.0/8",))
RANGES = {"loadBalancerSourceRanges": ["192.168.1.3/32"]}


def test_mode_nftables_refuses_the_node_itself_what_it_refuses_others() -> None:
    view = cluster([])
    for text in ("cluster", "external", "lb", "nodeport:1"):
        assert promise(everywhere(view, NFTABLES), place("node/node1"), frontend(view, text)) == REFUSED
    assert promise(everywhere(view, PROXY), place("node/node1"), frontend(view, "external")) != REFUSED


def test_mode_nftables_looks_at_source_ranges_before_endpoints() -> None:
    view = cluster([], **RANGES)
    assert promise(everywhere(view, NFTABLES), place("pod/pod1-2"), frontend(view, "lb")) == DROPPED
    assert promise(everywhere(view, PROXY), place("pod/pod1-2"), frontend(view, "lb")) == REFUSED


def test_mode_nftables_knows_no_node_port_where_none_answers() -> None:
    proxy = replace(NFTABLES, node_port_addresses=("10.0.0.0/8",))
    for endpoints in ([], [endpoint(3)]):
        view = everywhere(cluster(endpoints, **ETP_LOCAL), proxy)
        assert promise(view, place("pod/pod1-2"), frontend(view, "nodeport:1")) == CLOSED


def test_mode_nftables_hides_a_pod_from_itself_only_where_it_runs() -> None:
    """It comes to itself by another node's node port, and policy Local lets pods keep their address."""
    view = cluster([endpoint(1)], **ETP_LOCAL)
    by_itself = promise(everywhere(view, NFTABLES), place("pod/pod1-2"), frontend(view, "nodeport:3"))
    assert by_itself == Promise(Verdict.DROPPED, unreached=(P1,))
    assert (
        promise(everywhere(view, PROXY), place("pod/pod1-2"), frontend(view, "nodeport:3")).verdict == Verdict.ANSWERED
    )
    assert promise(everywhere(view, NFTABLES), place("pod/pod1-2"), frontend(view, "nodeport:1")) == answered(
        (P1, "10.244.1.1", 1)
    )


@dataclass(frozen=True)
class Mixed:
    """A cluster whose nodes have proxies of different kinds; the outside reaches external addresses by node1."""

    name: str
    spec: dict[str, Any]
    endpoints: list[dict[str, Any]]
    proxies: dict[int, ProxyView | None]
    client: str
    frontend: str
    promised: Promise
    via: str = "node1"


MIXED = [
    # each node by its own flags
    Mixed("masquerades here", {}, [endpoint(1)], {1: MASQUERADING}, "pod/pod1-3", "cluster",
          answered((P1, "10.244.1.1", 1))),
    Mixed("masquerades there", {}, [endpoint(1)], {1: MASQUERADING}, "pod/pod2-3", "cluster", answered((P1, KEPT, 2))),
    Mixed("masquerades, to another node", {}, [endpoint(1)], {2: MASQUERADING}, "pod/pod2-3", "cluster",
          answered((P1, "192.168.1.3", 2))),
    Mixed("no detector, own node", {}, [endpoint(1)], {1: NO_DETECTOR}, "node/node1", "cluster",
          answered((P1, KEPT, 0))),
    Mixed("no detector, a pod and Local", ETP_LOCAL, TWO, {3: NO_DETECTOR}, "pod/pod3-2", "nodeport:3", DROPPED),
    Mixed("the dialled node decides", ETP_LOCAL, TWO, {3: NO_DETECTOR}, "pod/pod3-2", "nodeport:1",
          answered((P1, KEPT, 2), lost=(P2,))),
    Mixed("pods outside the given CIDR", {}, [endpoint(1)], {1: ProxyView(cluster_cidrs=("10.245.0.0/16",))},
          "pod/pod1-3", "cluster", answered((P1, "10.244.1.1", 1))),
    Mixed("a CIDR of the other family alone", {}, [endpoint(1)], {1: ProxyView(cluster_cidrs=("fd00::/8",))},
          "node/node1", "cluster", answered((P1, KEPT, 0))),
    Mixed("an interface that is not the pods'", {}, [endpoint(1)], {1: BY_UPLINK}, "pod/pod1-3", "cluster",
          answered((P1, "10.244.1.1", 1))),
    Mixed("whatever comes by the uplink is taken for a pod", ETP_LOCAL, TWO, {1: BY_UPLINK}, "client", "nodeport:1",
          answered((P1, KEPT, 2), lost=(P2,))),
    Mixed("the source's own node takes no packet from itself", ETP_LOCAL, TWO, {2: BY_UPLINK}, "node/node1",
          "nodeport:2", answered((P2, KEPT, 1), unreached=(P1,))),
    Mixed("no endpoints: its own packet comes back to the node that it left", {}, [], {}, "node/node1", "external",
          DROPPED),
    # --nodeport-addresses
    Mixed("no node ports on this address", {}, TWO, {1: ELSEWHERE}, "client", "nodeport:1", CLOSED),
    Mixed("nor for the node itself", {}, TWO, {1: ELSEWHERE}, "node/node1", "nodeport:1", CLOSED),
    Mixed("node ports on the next node", {}, [endpoint(1)], {1: ELSEWHERE}, "client", "nodeport:2",
          answered((P1, "192.168.1.3", 3))),
    Mixed("networks of the other family only", {}, [endpoint(1)],
          {1: replace(PROXY, node_port_addresses=("fd00:2::/64",))}, "client", "nodeport:1",
          answered((P1, "10.244.1.1", 2))),
    Mixed("the network that it is in", {}, [endpoint(1)], {1: replace(PROXY, node_port_addresses=("192.168.1.0/24",))},
          "client", "nodeport:1", answered((P1, "10.244.1.1", 2))),
    Mixed("without endpoints the port is refused all the same", {}, [], {1: ELSEWHERE}, "client", "nodeport:1",
          REFUSED),
    Mixed("under Local it is dropped all the same", ETP_LOCAL, [endpoint(2)], {1: ELSEWHERE}, "client", "nodeport:1",
          DROPPED),
    Mixed("even for the node itself", ETP_LOCAL, [endpoint(2)], {1: ELSEWHERE}, "node/node1", "nodeport:1", DROPPED),
    Mixed("under Local with an endpoint it is closed", ETP_LOCAL, [endpoint(1)], {1: ELSEWHERE}, "client",
          "nodeport:1", CLOSED),
    Mixed("other frontends do not mind", {}, [endpoint(2)], {1: ELSEWHERE}, "pod/pod1-3", "external",
          answered((P2, "192.168.1.2", 2))),
    # no proxy
    Mixed("no proxy, node port", {}, TWO, {2: None}, "client", "nodeport:2", CLOSED),
    Mixed("no proxy, node port, without endpoints", {}, [], {2: None}, "client", "nodeport:2", CLOSED),
    Mixed("no proxy, its own node port", {}, TWO, {2: None}, "node/node2", "nodeport:2", CLOSED),
    Mixed("no proxy, cluster IP, pod", {}, TWO, {2: None}, "pod/pod2-3", "cluster", NO_ROUTE),
    Mixed("no proxy, cluster IP, node", {}, TWO, {2: None}, "node/node2", "cluster", NO_ROUTE),
    Mixed("no proxy, cluster IP without endpoints", {}, [], {2: None}, "node/node2", "cluster", NO_ROUTE),
    Mixed("no proxy, bare pod", {}, TWO, {2: None}, "pod/pod2-3", "pod:1", answered((P1, KEPT, 2))),
    Mixed("its pods are endpoints like others", {}, [endpoint(2)], {2: None}, "pod/pod1-3", "cluster",
          answered((P2, KEPT, 2))),
    Mixed("its pods and another node's port", {}, [endpoint(1)], {2: None}, "pod/pod2-3", "nodeport:1",
          answered((P1, "10.244.1.1", 2))),
    Mixed("its pods and another node's port, Local", ETP_LOCAL, [endpoint(1)], {2: None}, "pod/pod2-3", "nodeport:1",
          answered((P1, KEPT, 2))),
    # no proxy, and an address that the outside routes to a node with one
    Mixed("by the router", {}, [endpoint(1)], {2: None}, "node/node2", "external", answered((P1, "10.244.1.1", 2))),
    Mixed("by the router, a pod", {}, [endpoint(1)], {2: None}, "pod/pod2-3", "external",
          answered((P1, "10.244.1.1", 3))),
    Mixed("by the router, a pod, Local: seen as its node", ETP_LOCAL, TWO, {2: None}, "pod/pod2-3", "external",
          answered((P1, "192.168.1.3", 3))),
    Mixed("by the router, the node, Local", ETP_LOCAL, TWO, {2: None}, "node/node2", "external",
          answered((P1, KEPT, 2))),
    Mixed("by the router, a pod, its node's address in the ranges", RANGES, [endpoint(1)], {2: None}, "pod/pod2-3",
          "lb", answered((P1, "10.244.1.1", 3))),
    Mixed("by the router, none", {}, [], {2: None}, "pod/pod2-3", "external", REFUSED),
    # ... and to one without
    Mixed("by the router, in a circle", {}, TWO, {2: None}, "node/node2", "external", DROPPED, via="node2"),
    Mixed("by the router, in a circle, none", {}, [], {2: None}, "node/node1", "external", DROPPED, via="node2"),
    Mixed("proxied before it leaves", {}, [endpoint(1)], {2: None}, "pod/pod1-3", "external",
          answered((P1, "10.244.1.1", 1)), via="node2"),
]  # fmt: skip


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case.name)
def test_each_node_does_as_its_proxy_is_told(case: Mixed) -> None:
    view = configured(cluster(case.endpoints, **case.spec), case.proxies)
    view = replace(view, external_routes=(ExternalRoute("198.51.100.0/24", case.via),))
    assert promise(view, place(case.client), frontend(view, case.frontend)) == case.promised


def test_ipv6_packets_come_back_to_the_node_that_they_left() -> None:
    """Linux forwards them although their source is its own address, and then the rule rejects them."""
    view = replace(cluster([]), external_routes=(ExternalRoute("2001:db8:51::/48", "node1"),))
    own = replace(frontend(view, "external"), address="2001:db8:51::7")
    assert promise(view, place("node/node1"), own) == REFUSED


def test_an_external_address_of_a_node_without_a_proxy_is_a_closed_port() -> None:
    view = configured(cluster(TWO), {2: None})
    own = replace(frontend(view, "external"), address="192.168.1.3")
    for client in ("client", "node/node2", "pod/pod2-3"):
        assert promise(view, place(client), own) == CLOSED
    assert promise(view, place("pod/pod1-3"), own).verdict is Verdict.ANSWERED


def test_affinity_keeps_the_set_and_says_so() -> None:
    view = cluster(TWO, sessionAffinity="ClientIP")
    found = promise(view, place("pod/pod1-3"), frontend(view, "cluster"))
    assert found.is_sticky
    assert {answer.endpoint for answer in found.answers} == {P1, P2}


def test_a_host_network_endpoint_is_its_node() -> None:
    host = {"addresses": ["192.168.1.2"], "nodeName": "node1", "conditions": {"ready": True}}
    view = replace(cluster([host]), pods=(*PODS, PodView("default", "host", "node1", ("192.168.1.2",), True)))
    at = "192.168.1.2:8080"
    assert promise(view, place("pod/pod1-3"), frontend(view, "cluster")) == answered((at, KEPT, 0))
    assert promise(view, place("pod/pod2-3"), frontend(view, "cluster")) == answered((at, KEPT, 1))
    assert promise(view, place("client"), frontend(view, "nodeport:2")) == answered((at, "192.168.1.3", 2))
    assert promise(view, place("client"), frontend(view, "nodeport:1")) == answered((at, KEPT, 1))


def test_an_endpoint_that_is_nobodys_address_cannot_answer() -> None:
    nobody = {"addresses": ["10.99.0.1"], "nodeName": "node1", "conditions": {"ready": True}}
    view = cluster([nobody])
    assert promise(view, place("pod/pod1-3"), frontend(view, "cluster")) == NO_ROUTE


def test_a_place_without_the_family_is_an_error() -> None:
    view = cluster(TWO)
    with pytest.raises(ValueError, match="has no address"):
        promise(view, replace(place("client"), addresses=()), frontend(view, "cluster"))


@pytest.mark.parametrize(
    ("spec", "labels", "proxied"),
    [
        ({"clusterIP": "10.96.0.1"}, {}, True),
        ({"clusterIP": "None"}, {}, False),
        ({"clusterIP": ""}, {}, False),
        ({"type": "ExternalName", "externalName": "a.example"}, {}, False),
        ({"clusterIP": "10.96.0.1"}, {"service.kubernetes.io/service-proxy-name": "other"}, False),
    ],
)
def test_only_services_for_kube_proxy_are_promised(spec: dict[str, Any], labels: dict[str, str], proxied: bool) -> None:
    service = typed({"metadata": {"name": "x", "labels": labels}, "spec": spec}, Service)
    assert is_proxied(service) is proxied
