"""Hypothesis strategies: small clusters of Services and EndpointSlices, and ways in which they change."""

from __future__ import annotations

from hypothesis import strategies as st

from kproxy.api.types import (
    ClientIPConfig,
    EndpointConditions,
    EndpointHints,
    EndpointSlice,
    ForZone,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    SliceEndpoint,
    SlicePort,
)
from kproxy.proxy.changes import Change, ObjectKey, Tracked

NAMES = ("a", "a-rather-long-service-name-of-sixty-three-characters-as-allowed")
NODE = "here"

conditions = st.builds(
    EndpointConditions,
    ready=st.sampled_from([None, True, True, False]),
    serving=st.sampled_from([None, True, False]),
    terminating=st.sampled_from([None, True, False]),
)
hints = st.none() | st.builds(
    EndpointHints,
    for_zones=st.lists(st.builds(ForZone, name=st.sampled_from(["z1", "z2"])), max_size=2).map(tuple),
    for_nodes=st.lists(st.builds(ForZone, name=st.sampled_from([NODE, "there"])), max_size=1).map(tuple),
)
endpoints = st.builds(
    SliceEndpoint,
    addresses=st.integers(1, 6).map(lambda number: (f"10.244.0.{number}",)),
    conditions=conditions,
    node_name=st.sampled_from([None, NODE, "there"]),
    hints=hints,
)
PORTS = (("http", "TCP"), ("http", "UDP"), ("", "SCTP"))
"""Few, so that slices and Services often find each other."""


@st.composite
def services(draw: st.DrawFn, name: str) -> Service:
    number = NAMES.index(name) + 1
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    names = draw(st.sampled_from([PORTS[:1], PORTS[:2], PORTS]))
    ports = tuple(
        ServicePort(
            port=80 + index,
            name=port,
            protocol=protocol,
            node_port=0 if kind == "ClusterIP" else 30000 + 10 * number + index,
        )
        for index, (port, protocol) in enumerate(names)
    )
    ingress = (
        (LoadBalancerIngress(ip=f"198.51.100.{number}"),) if kind == "LoadBalancer" and draw(st.booleans()) else ()
    )
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(
            type=kind,
            cluster_ip=draw(st.sampled_from([f"10.96.0.{number}"] * 4 + [f"10.96.1.{number}", "None"])),
            ports=ports,
            external_ips=draw(st.sampled_from([(), (f"192.0.2.{number}",)])),
            external_traffic_policy=draw(st.sampled_from([None, "Cluster", "Local"])),
            internal_traffic_policy=draw(st.sampled_from([None, "Cluster", "Local"])),
            session_affinity=draw(st.sampled_from(["None", "ClientIP"])),
            session_affinity_config=SessionAffinityConfig(ClientIPConfig(draw(st.sampled_from([None, 60])))),
            load_balancer_source_ranges=draw(st.sampled_from([(), ("203.0.113.0/24",), ("192.168.0.0/16",)])),
            health_check_node_port=draw(st.sampled_from([0, 30900 + number])),
        ),
        status=ServiceStatus(LoadBalancerStatus(ingress)),
    )


@st.composite
def slices(draw: st.DrawFn, name: str) -> EndpointSlice:
    """A slice that may belong to any Service, and may move from one to another."""
    labels = {"kubernetes.io/service-name": draw(st.sampled_from(NAMES))}
    return EndpointSlice(
        metadata=ObjectMeta(name=name, namespace="default", labels=labels),
        address_type=draw(st.sampled_from(["IPv4"] * 7 + ["IPv6"])),
        endpoints=tuple(draw(st.lists(endpoints, min_size=1, max_size=4))),
        ports=tuple(
            SlicePort(name=port, port=number, protocol=protocol)
            for (port, protocol), number in zip(PORTS, draw(st.sampled_from([(8080, 53, 9), (8081, 53)])), strict=False)
        ),
    )


@st.composite
def edits(draw: st.DrawFn) -> tuple[ObjectKey, Tracked | None]:
    """One object as it is from now on; None means gone."""
    kind = draw(st.sampled_from(["Service", "EndpointSlice"]))
    if kind == "Service":
        name = draw(st.sampled_from(NAMES))
        return ObjectKey(kind, "default", name), None if draw(st.integers(0, 4)) == 0 else draw(services(name))
    name = draw(st.sampled_from(["s1", "s2"]))
    return ObjectKey(kind, "default", name), None if draw(st.integers(0, 4)) == 0 else draw(slices(name))


histories = st.lists(st.lists(edits(), min_size=1, max_size=4), min_size=1, max_size=6)
"""Batches of edits, one sync after each."""


def changes_of(world: dict[ObjectKey, Tracked], batch: list[tuple[ObjectKey, Tracked | None]]) -> list[Change]:
    """The changes that a batch means in a world, which is changed along."""
    changes = []
    for key, new in batch:
        changes.append(Change(key, world.pop(key, None), new))
        if new is not None:
            world[key] = new
    return changes
