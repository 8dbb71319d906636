"""What becomes of packets, by the decision table, and what a Service means for one family."""

from __future__ import annotations

import pytest

from kproxy.api.types import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kproxy.proxy.backends.iptables import chains
from kproxy.proxy.backends.iptables.rules import Settings, own_chains, probability
from kproxy.proxy.detection import DetectBy, Detector
from kproxy.proxy.endpoints import Endpoint, NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.plan import Branch, Circumstances, Clients, EndpointSet, Refusal, Traffic, plan_port
from kproxy.proxy.services import PortSpec, ServicePortName, port_specs

NAME = ServicePortName("default", "web", "http", "TCP")
AROUND = Circumstances(NodeIdentity("here"), ("192.168.1.2",), has_detector=True)

HERE = Endpoint("10.244.1.2:80", is_local=True)
THERE = Endpoint("10.244.2.2:80")
NOT_READY = Endpoint("10.244.2.3:80", is_ready=False, is_serving=False)
ENDING_HERE = Endpoint("10.244.1.4:80", is_local=True, is_ready=False, is_terminating=True)

ALL, PODS, NODE = Clients.ALL, Clients.PODS, Clients.NODE
CLUSTER, LOCAL = EndpointSet.CLUSTER, EndpointSet.LOCAL
REJECT, DROP = Traffic(refusal=Refusal.REJECT), Refusal.DROP
INTERNAL = Branch(ALL, CLUSTER, Clients.NOT_PODS)
SHORT_CUTS = (Branch(PODS, CLUSTER), Branch(NODE, CLUSTER, NODE))


@pytest.mark.parametrize(
    ("endpoints", "internal_local", "external_local", "internal", "external"),
    [
        ((), False, False, REJECT, REJECT),
        ((NOT_READY,), True, True, REJECT, REJECT),
        ((THERE,), False, False, Traffic((INTERNAL,)), Traffic((Branch(ALL, CLUSTER, ALL),))),
        ((THERE,), True, False, Traffic(refusal=DROP), Traffic((Branch(ALL, CLUSTER, ALL),))),
        ((THERE,), False, True, Traffic((INTERNAL,)), Traffic(SHORT_CUTS, DROP)),
        ((HERE, THERE), False, True, Traffic((INTERNAL,)), Traffic((*SHORT_CUTS, Branch(ALL, LOCAL)))),
        ((ENDING_HERE, THERE), False, True, Traffic((INTERNAL,)), Traffic((*SHORT_CUTS, Branch(ALL, LOCAL)))),
        (
            (HERE,),
            True,
            True,
            Traffic((Branch(ALL, LOCAL, Clients.NOT_PODS),)),
            Traffic((*SHORT_CUTS, Branch(ALL, LOCAL))),
        ),
    ],
)
def test_traffic_goes_where_the_decision_table_says(
    endpoints: tuple[Endpoint, ...], internal_local: bool, external_local: bool, internal: Traffic, external: Traffic
) -> None:
    port = PortSpec(
        NAME, "10.96.0.1", 80, node_port=30080, is_internal_local=internal_local, is_external_local=external_local
    )

    plan = plan_port(port, endpoints, AROUND)

    assert (plan.internal, plan.external) == (internal, external)


def test_without_a_detector_pods_are_strangers() -> None:
    port = PortSpec(NAME, "10.96.0.1", 80, node_port=30080, is_external_local=True)

    plan = plan_port(port, [THERE], Circumstances(NodeIdentity("here")))

    assert plan.internal == Traffic((Branch(ALL, CLUSTER),))
    assert plan.external == Traffic(SHORT_CUTS[1:], DROP)


def test_masquerade_all_counts_for_the_cluster_ip() -> None:
    plan = plan_port(PortSpec(NAME, "10.96.0.1", 80), [THERE], Circumstances(NodeIdentity("here"), masquerade_all=True))

    assert plan.internal == Traffic((Branch(ALL, CLUSTER, ALL),))


def test_external_policy_means_nothing_without_external_frontend() -> None:
    plan = plan_port(PortSpec(NAME, "10.96.0.1", 80, is_external_local=True), [THERE], AROUND)

    assert (plan.external, plan.local) == (Traffic(), ())


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        ((), ()),
        (("203.0.113.0/24",), ("203.0.113.0/24",)),
        (("192.168.0.0/16",), ("192.168.0.0/16", "198.51.100.1")),
    ],
)
def test_load_balancer_ip_may_talk_to_itself_where_the_node_may(
    ranges: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    port = PortSpec(NAME, "10.96.0.1", 80, load_balancer_ips=("198.51.100.1",), source_ranges=ranges)

    assert plan_port(port, [THERE], AROUND).allowed_sources == allowed


def make_service(**fields: object) -> Service:
    spec = {"cluster_ip": "10.96.0.1", "ports": (ServicePort(port=80),), **fields}
    return Service(metadata=ObjectMeta(name="web", namespace="default"), spec=ServiceSpec(**spec))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"cluster_ip": "None"},
        {"cluster_ip": ""},
        {"type": "ExternalName"},
        {"cluster_ip": "fd00::1"},
        {"ip_families": ("IPv6",), "cluster_ips": ("fd00::1",)},
    ],
)
def test_service_is_passed_over(fields: dict[str, object]) -> None:
    assert port_specs(make_service(**fields), Family.IPV4) == {}


def test_each_family_gets_its_own_frontends() -> None:
    service = make_service(
        ip_families=("IPv6", "IPv4"),
        cluster_ip="FD00::1",
        cluster_ips=("FD00::1", "10.96.0.1"),
        external_ips=("192.0.2.1", "2001:DB8::0:1"),
        load_balancer_source_ranges=(" 203.0.113.9/24", "::/0"),
    )

    four, six = (next(iter(port_specs(service, family).values())) for family in Family)

    assert (four.cluster_ip, four.external_ips, four.source_ranges) == (
        "10.96.0.1",
        ("192.0.2.1",),
        ("203.0.113.0/24",),
    )
    assert (six.cluster_ip, six.external_ips, six.source_ranges) == ("fd00::1", ("2001:db8::1",), ())


def test_load_balancer_ip_in_proxy_mode_is_no_frontend() -> None:
    ingress = (
        LoadBalancerIngress(ip="198.51.100.1"),
        LoadBalancerIngress(ip="198.51.100.2", ip_mode="Proxy"),
        LoadBalancerIngress(hostname="lb.example"),
    )
    service = make_service(type="LoadBalancer")
    service = Service(service.metadata, service.spec, ServiceStatus(LoadBalancerStatus(ingress)))

    assert next(iter(port_specs(service, Family.IPV4).values())).load_balancer_ips == ("198.51.100.1",)


def test_protocol_is_part_of_the_key_but_not_of_the_text() -> None:
    service = make_service(ports=(ServicePort(port=53, name="dns"), ServicePort(port=53, name="dns", protocol="UDP")))

    names = list(port_specs(service, Family.IPV4))

    assert [str(name) for name in names] == ["default/web:dns"] * 2
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("name", "address", "chain"),
    [
        (("ns1", "svc1", "p80", "TCP"), "", "KUBE-SVC-XPGD46QRK7WJZT7O"),
        (("ns1", "svc1", "p80", "TCP"), "10.180.0.1:80", "KUBE-SEP-SXIVWICOYRO3J4NJ"),
        (("ns5", "svc5", "p80", "TCP"), "", "KUBE-SVC-NUKIZ6OKUXPJNT4C"),
        (("default", "kubernetes", "https", "TCP"), "", "KUBE-SVC-NPX46M4PTMTKRN6Y"),
        (("kube-system", "kube-dns", "dns", "UDP"), "", "KUBE-SVC-TCOU7JCQXEZGVUNU"),
    ],
)
def test_chains_have_the_names_known_from_real_clusters(name: tuple[str, ...], address: str, chain: str) -> None:
    key = ServicePortName(*name)

    assert (chains.endpoint(key, address) if address else chains.endpoint_set(key, CLUSTER)) == chain


@pytest.mark.parametrize(
    ("remaining", "text"), [(2, "0.50000000000"), (3, "0.33333333349"), (4, "0.25000000000"), (5, "0.20000000019")]
)
def test_probabilities_are_as_the_kernel_rounds_them(remaining: int, text: str) -> None:
    assert probability(remaining) == text


@pytest.mark.parametrize(
    ("detector", "not_pods", "pods"),
    [
        (
            Detector(DetectBy.SOURCE, "10.244.0.0/16"),
            "! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp",
            "-s 10.244.0.0/16 -m",
        ),
        (Detector(DetectBy.INTERFACE, "cni0"), "-d 10.96.0.1/32 ! -i cni0 -p tcp", "-i cni0 -m"),
        (Detector(DetectBy.INTERFACE_PREFIX, "veth"), "-d 10.96.0.1/32 ! -i veth+ -p tcp", "-i veth+ -m"),
    ],
)
def test_detector_is_matched_in_the_order_of_iptables_save(detector: Detector, not_pods: str, pods: str) -> None:
    port = PortSpec(NAME, "10.96.0.1", 80, node_port=30080, is_external_local=True)

    rules = dict(own_chains(plan_port(port, [HERE], AROUND), Settings(Family.IPV4, detector=detector)))

    assert not_pods in rules[chains.endpoint_set(NAME, CLUSTER)][0]
    assert f"{chains.external(NAME)} {pods}" in rules[chains.external(NAME)][0]
