"""The controllers together, over a real API."""

from __future__ import annotations

from typing import Any

from running_cluster import Cluster, eventually

from kproxy.api.kinds import (
    CONTROLLER_REVISION,
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    ENDPOINTS,
    EVENT,
    NAMESPACE,
    NODE,
    POD,
    REPLICA_SET,
    SERVICE,
    STATEFUL_SET,
)
from kproxy.errors import NotFound


def deployment(name: str = "web", replicas: int = 3, image: str = "echo", **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}},
            **spec,
        },
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}], **spec},
    }


def addresses(cluster: Cluster, name: str = "web") -> list[str]:
    slices = cluster.client.list(ENDPOINT_SLICE, "default", label_selector=f"kubernetes.io/service-name={name}").items
    return sorted(
        address
        for item in slices
        for endpoint in item["endpoints"] or ()
        if endpoint["conditions"].get("ready")
        for address in endpoint["addresses"]
    )


def test_a_deployment_becomes_pods_on_every_node_and_ready_endpoints(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=6)}, {"object": service()}])
    eventually(lambda: addresses(cluster), lambda seen: len(seen) == 6)
    pods = cluster.client.list(POD, "default").items
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["node1", "node1", "node2", "node2", "node3", "node3"]
    (mirror,) = eventually(
        lambda: cluster.client.get(ENDPOINTS, "web", "default").get("subsets") or [{}],
        lambda seen: len(seen[0].get("addresses", ())) == 6,
    )
    assert mirror["ports"] == [{"port": 8080, "protocol": "TCP"}]
    status = eventually(
        lambda: cluster.client.get(DEPLOYMENT, "web", "default")["status"],
        lambda seen: seen.get("availableReplicas") == 6,
    )
    assert status["observedGeneration"] == 1
    (only,) = cluster.client.list(ENDPOINT_SLICE, "default", label_selector="kubernetes.io/service-name=web").items
    assert {endpoint["zone"] for endpoint in only["endpoints"]} == {"a", "b"}


def test_scaling_down_takes_endpoints_away_and_up_brings_new_ones(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=3)}, {"object": service()}])
    before = eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3)
    cluster.client.apply([{"object": deployment(replicas=1)}])
    (left,) = eventually(lambda: addresses(cluster), lambda seen: len(seen) == 1)
    assert left in before
    cluster.client.patch(DEPLOYMENT, "web", {"spec": {"replicas": 4}}, "default")
    assert left in eventually(lambda: addresses(cluster), lambda seen: len(seen) == 4)


def test_a_changed_template_replaces_every_pod_and_keeps_the_old_replica_set_empty(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment()}, {"object": service()}])
    before = eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3)
    cluster.client.apply([{"object": deployment(image="echo:2")}])

    def images() -> list[str]:
        return [pod["spec"]["containers"][0]["image"] for pod in cluster.client.list(POD, "default").items]

    eventually(images, lambda seen: seen == ["echo:2"] * 3)
    # The slice follows the pods: for a moment it may hold three of which one has gone already.
    eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3 and not set(before) & set(seen))
    sets = eventually(
        lambda: cluster.client.list(REPLICA_SET, "default").items,
        lambda seen: sorted(item["spec"]["replicas"] for item in seen) == [0, 3],
    )
    assert {item["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for item in sets} == {"1", "2"}


def test_rolling_back_uses_the_earlier_replica_set_again(cluster: Cluster) -> None:
    for image in ("echo:1", "echo:2", "echo:1"):
        cluster.client.apply([{"object": deployment(image=image)}])
        eventually(
            lambda: cluster.client.get(DEPLOYMENT, "web", "default"),
            lambda seen: (
                seen["status"].get("observedGeneration") == seen["metadata"]["generation"]
                and seen["status"].get("updatedReplicas") == seen["status"].get("availableReplicas") == 3
                and seen["status"]["replicas"] == 3
            ),
        )
    assert len(cluster.client.list(REPLICA_SET, "default").items) == 2


def test_a_deployment_takes_in_the_replica_sets_that_another_of_its_name_left_behind(cluster: Cluster) -> None:
    """As after `kubectl delete --cascade=orphan` and another apply; one that does not fit is left alone."""
    stranger = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "stranger", "namespace": "default", "labels": {"app": "other"}},
        "spec": deployment("other", replicas=0)["spec"],
    }
    cluster.client.create(REPLICA_SET, stranger)
    cluster.client.apply([{"object": deployment()}])
    before = {pod["metadata"]["uid"] for pod in eventually(lambda: ready_pods(cluster), lambda seen: len(seen) == 3)}
    cluster.client.delete(DEPLOYMENT, "web", "default", propagation="Orphan")
    eventually(lambda: cluster.client.list(DEPLOYMENT, "default").items, lambda seen: not seen)
    for item in cluster.client.list(REPLICA_SET, "default").items:
        assert not item["metadata"].get("ownerReferences")

    cluster.client.apply([{"object": deployment()}])
    made = eventually(
        lambda: cluster.client.get(DEPLOYMENT, "web", "default"),
        lambda seen: seen["status"].get("availableReplicas") == 3,
    )
    owners = {
        item["metadata"]["name"].split("-")[0]: [
            (entry["uid"], entry["controller"]) for entry in item["metadata"].get("ownerReferences") or ()
        ]
        for item in cluster.client.list(REPLICA_SET, "default").items
    }
    assert owners == {"web": [(made["metadata"]["uid"], True)], "stranger": []}
    assert {pod["metadata"]["uid"] for pod in ready_pods(cluster)} == before

    cluster.client.apply([{"object": deployment(image="echo:2")}])
    eventually(
        lambda: [pod["spec"]["containers"][0]["image"] for pod in ready_pods(cluster)],
        lambda seen: seen == ["echo:2"] * 3,
    )


def test_recreate_ends_the_old_pods_first(cluster: Cluster) -> None:
    strategy = {"strategy": {"type": "Recreate"}}
    cluster.client.apply([{"object": deployment(**strategy)}])
    eventually(lambda: ready_pods(cluster), lambda seen: len(seen) == 3)
    cluster.client.apply([{"object": deployment(image="echo:2", **strategy)}])
    eventually(
        lambda: [pod["spec"]["containers"][0]["image"] for pod in ready_pods(cluster)],
        lambda seen: seen == ["echo:2"] * 3,
    )


def ready_pods(cluster: Cluster) -> list[dict[str, Any]]:
    return [pod for pod in cluster.client.list(POD, "default").items if pod["status"].get("podIP")]


def test_a_deleted_pod_is_replaced_and_its_address_leaves_the_slice(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment()}, {"object": service()}])
    before = eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3)
    victim = cluster.client.list(POD, "default").items[0]
    cluster.client.delete(POD, victim["metadata"]["name"], "default")
    after = eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3 and seen != before)
    assert victim["status"]["podIP"] not in after


def test_a_pod_whose_labels_change_is_let_go_and_replaced(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=1)}])
    (pod,) = eventually(lambda: ready_pods(cluster), lambda seen: len(seen) == 1)
    cluster.client.patch(POD, pod["metadata"]["name"], {"metadata": {"labels": {"app": "debug"}}}, "default")
    pods = eventually(lambda: ready_pods(cluster), lambda seen: len(seen) == 2)
    (loose,) = [item for item in pods if item["metadata"]["uid"] == pod["metadata"]["uid"]]
    assert "ownerReferences" not in loose["metadata"]


def test_what_is_owned_goes_with_its_owner(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment()}, {"object": service()}])
    eventually(lambda: addresses(cluster), lambda seen: len(seen) == 3)
    cluster.client.apply([{"object": deployment()}, {"object": service()}], delete=True)
    for kind in (DEPLOYMENT, REPLICA_SET, POD):
        eventually(lambda kind=kind: cluster.client.list(kind, "default").items, lambda seen: not seen)
    for kind in (ENDPOINT_SLICE, ENDPOINTS):
        eventually(
            lambda kind=kind: [item["metadata"]["name"] for item in cluster.client.list(kind, "default").items],
            lambda seen: seen == ["kubernetes"],
        )


def test_a_namespace_takes_everything_in_it_along(cluster: Cluster) -> None:
    cluster.client.create(NAMESPACE, {"metadata": {"name": "shop"}})
    there = deployment()
    there["metadata"]["namespace"] = "shop"
    cluster.client.apply([{"object": there}])
    eventually(lambda: cluster.client.list(POD, "shop").items, lambda seen: len(seen) == 3)
    assert cluster.client.delete(NAMESPACE, "shop")["status"]["phase"] == "Terminating"

    def names() -> list[str]:
        return [item["metadata"]["name"] for item in cluster.client.list(NAMESPACE).items]

    eventually(names, lambda seen: "shop" not in seen)
    assert not cluster.client.list(POD).items


def test_a_pod_that_is_not_ready_is_in_the_slice_but_not_ready(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=1)}, {"object": service()}])
    eventually(lambda: addresses(cluster), lambda seen: len(seen) == 1)
    (pod,) = ready_pods(cluster)
    conditions = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    cluster.client.patch(POD, pod["metadata"]["name"], conditions, "default", "status")
    eventually(lambda: addresses(cluster), lambda seen: not seen)
    (item,) = cluster.client.list(ENDPOINT_SLICE, "default", label_selector="kubernetes.io/service-name=web").items
    (endpoint,) = item["endpoints"]
    assert endpoint["conditions"] == {"ready": False, "serving": False, "terminating": False}


def test_the_kubernetes_service_has_the_first_address_and_comes_back(cluster: Cluster) -> None:
    def look() -> str:
        try:
            return str(cluster.client.get(SERVICE, "kubernetes", "default")["spec"]["clusterIP"])
        except NotFound:
            return ""

    eventually(look, lambda seen: seen == "10.96.0.1")
    cluster.client.delete(SERVICE, "kubernetes", "default")
    eventually(look, lambda seen: seen == "10.96.0.1")


def test_a_pod_that_no_node_fits_says_so_and_starts_when_one_comes(cluster: Cluster) -> None:
    pod = {
        "metadata": {"name": "picky"},
        "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "echo"}]},
    }
    cluster.client.create(POD, pod, "default")
    eventually(
        lambda: cluster.client.get(POD, "picky", "default")["status"].get("conditions"),
        lambda seen: bool(seen) and seen[0]["reason"] == "Unschedulable",
    )
    cluster.client.patch(NODE, "node2", {"metadata": {"labels": {"disk": "ssd"}}})
    eventually(
        lambda: cluster.client.get(POD, "picky", "default")["spec"].get("nodeName"), lambda seen: seen == "node2"
    )


def test_endpoints_written_by_hand_become_slices_until_the_service_has_a_selector(cluster: Cluster) -> None:
    by_hand = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web"},
        "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 9376}]}
        ],
    }
    cluster.client.apply([{"object": service(selector=None)}, {"object": by_hand}])
    eventually(lambda: addresses(cluster), lambda seen: seen == ["192.0.2.1"])
    (item,) = cluster.client.list(ENDPOINT_SLICE, "default", label_selector="kubernetes.io/service-name=web").items
    assert [endpoint["conditions"] for endpoint in item["endpoints"]] == [{"ready": True}, {"ready": False}]
    assert item["ports"] == [{"name": "", "port": 9376, "protocol": "TCP"}]
    cluster.client.patch(ENDPOINTS, "web", {"subsets": None}, "default")
    eventually(lambda: addresses(cluster), lambda seen: not seen)


def test_endpoints_that_come_before_their_service_wait_and_go_with_it(cluster: Cluster) -> None:
    subsets = [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 9376}]}]
    cluster.client.create(ENDPOINTS, {"metadata": {"name": "web"}, "subsets": subsets}, "default")
    cluster.client.create(SERVICE, service("other"), "default")
    eventually(lambda: cluster.client.list(ENDPOINTS, "default").items, lambda seen: len(seen) == 3)
    cluster.client.create(SERVICE, service(selector=None), "default")
    eventually(lambda: addresses(cluster), lambda seen: seen == ["192.0.2.1"])
    cluster.client.delete(SERVICE, "web", "default")
    eventually(
        lambda: [item["metadata"]["name"] for item in cluster.client.list(ENDPOINTS, "default").items],
        lambda seen: seen == ["kubernetes", "other"],
    )
    eventually(lambda: addresses(cluster), lambda seen: not seen)


def workload(kind: str, name: str = "web", image: str = "echo", **spec: Any) -> dict[str, Any]:
    made = deployment(name, image=image, **spec)
    made["kind"] = kind
    if kind == "DaemonSet":
        del made["spec"]["replicas"]
    return made


def names_and_nodes(cluster: Cluster) -> dict[str, str]:
    pods = cluster.client.list(POD, "default").items
    return {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in pods if pod["status"].get("podIP")}


def test_a_stateful_set_grows_shrinks_and_is_updated_in_order(cluster: Cluster) -> None:
    made = workload("StatefulSet", replicas=3, serviceName="peers")
    cluster.client.apply([{"object": made}])
    eventually(lambda: set(names_and_nodes(cluster)), lambda seen: seen == {"web-0", "web-1", "web-2"})
    pod = cluster.client.get(POD, "web-2", "default")
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("web-2", "peers")
    assert pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "2"
    before = {item["metadata"]["name"]: item["metadata"]["uid"] for item in cluster.client.list(POD, "default").items}

    def status() -> dict[str, Any]:
        found: dict[str, Any] = cluster.client.get(STATEFUL_SET, "web", "default")["status"]
        return found

    first = eventually(status, lambda seen: seen.get("readyReplicas") == 3)["currentRevision"]
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    made = workload("StatefulSet", replicas=3, serviceName="peers", image="echo:2", updateStrategy=rolling)
    cluster.client.apply([{"object": made}])
    eventually(status, lambda seen: seen.get("updatedReplicas") == seen.get("readyReplicas") - 1 == 2)
    now = {item["metadata"]["name"]: item["metadata"]["uid"] for item in cluster.client.list(POD, "default").items}
    assert {name for name, uid in now.items() if uid != before[name]} == {"web-1", "web-2"}
    assert status()["currentRevision"] == first != status()["updateRevision"]
    rolling["rollingUpdate"] = {"partition": 0}
    made["spec"]["updateStrategy"] = rolling
    cluster.client.apply([{"object": made}])
    eventually(status, lambda seen: seen["currentRevision"] == seen["updateRevision"] != first)
    revisions = cluster.client.list(CONTROLLER_REVISION, "default").items
    assert sorted(item["revision"] for item in revisions) == [1, 2]
    cluster.client.patch(STATEFUL_SET, "web", {"spec": {"replicas": 1}}, "default")
    eventually(lambda: set(names_and_nodes(cluster)), lambda seen: seen == {"web-0"})
    cluster.client.delete(STATEFUL_SET, "web", "default")
    eventually(lambda: cluster.client.list(POD, "default").items, lambda seen: not seen)
    eventually(lambda: cluster.client.list(CONTROLLER_REVISION, "default").items, lambda seen: not seen)


def test_a_daemon_set_has_a_pod_on_every_node_that_fits(cluster: Cluster) -> None:
    taint = {"key": "gpu", "effect": "NoSchedule"}
    cluster.client.patch(NODE, "node3", {"spec": {"taints": [taint]}})
    cluster.client.apply([{"object": workload("DaemonSet")}])
    eventually(lambda: sorted(names_and_nodes(cluster).values()), lambda seen: seen == ["node1", "node2"])
    cluster.client.patch(NODE, "node3", {"spec": {"taints": None}})
    eventually(lambda: sorted(names_and_nodes(cluster).values()), lambda seen: seen == ["node1", "node2", "node3"])
    cluster.client.apply([{"object": workload("DaemonSet", image="echo:2")}])
    eventually(
        lambda: cluster.client.get(DAEMON_SET, "web", "default")["status"],
        lambda seen: seen.get("updatedNumberScheduled") == seen.get("numberAvailable") == 3,
    )
    cluster.client.patch(NODE, "node1", {"spec": {"taints": [{**taint, "effect": "NoExecute"}]}})
    eventually(lambda: sorted(names_and_nodes(cluster).values()), lambda seen: seen == ["node2", "node3"])


def test_pods_of_a_node_that_becomes_tainted_leave_it(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=3)}])
    eventually(lambda: sorted(names_and_nodes(cluster).values()), lambda seen: seen == ["node1", "node2", "node3"])
    taint = {"key": "broken", "effect": "NoExecute"}
    cluster.client.patch(NODE, "node1", {"spec": {"taints": [taint]}})
    eventually(
        lambda: sorted(names_and_nodes(cluster).values()),
        lambda seen: len(seen) == 3 and set(seen) == {"node2", "node3"},
    )


def test_a_paused_deployment_scales_but_does_not_roll(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=2)}])
    eventually(lambda: len(ready_pods(cluster)), lambda seen: seen == 2)
    cluster.client.apply([{"object": deployment(replicas=3, image="echo:2", paused=True)}])
    eventually(lambda: len(ready_pods(cluster)), lambda seen: seen == 3)
    assert {pod["spec"]["containers"][0]["image"] for pod in ready_pods(cluster)} == {"echo"}
    cluster.client.apply([{"object": deployment(replicas=3, image="echo:2", paused=False)}])
    eventually(
        lambda: [pod["spec"]["containers"][0]["image"] for pod in ready_pods(cluster)],
        lambda seen: seen == ["echo:2"] * 3,
    )


def test_revisions_are_numbered_and_the_oldest_forgotten(cluster: Cluster) -> None:
    def revision() -> str:
        found = cluster.client.get(DEPLOYMENT, "web", "default")
        is_done = found["status"].get("updatedReplicas") == found["status"].get("availableReplicas") == 1
        is_seen = found["status"].get("observedGeneration") == found["metadata"]["generation"]
        number = (found["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision", "")
        return number if is_done and is_seen and found["status"]["replicas"] == 1 else ""

    for number, image in enumerate(("echo:1", "echo:2", "echo:3", "echo:1"), start=1):
        cluster.client.apply([{"object": deployment(replicas=1, image=image, revisionHistoryLimit=2)}])
        eventually(revision, lambda seen, wanted=str(number): seen == wanted)
    sets = cluster.client.list(REPLICA_SET, "default").items
    by_image = {item["spec"]["template"]["spec"]["containers"][0]["image"]: item for item in sets}
    again = by_image["echo:1"]["metadata"]["annotations"]
    assert again["deployment.kubernetes.io/revision"] == "4"
    assert again["deployment.kubernetes.io/revision-history"] == "1"
    cluster.client.apply([{"object": deployment(replicas=1, image="echo:4", revisionHistoryLimit=1)}])
    eventually(lambda: len(cluster.client.list(REPLICA_SET, "default").items), lambda seen: seen == 2)


def test_what_happens_is_told_in_events(cluster: Cluster) -> None:
    cluster.client.apply([{"object": deployment(replicas=1)}])
    picky = {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "echo"}]}
    cluster.client.create(POD, {"metadata": {"name": "picky"}, "spec": picky}, "default")

    def told() -> set[tuple[str, str, str]]:
        events = cluster.client.list(EVENT, "default").items
        return {(item["involvedObject"]["kind"], item["type"], item["reason"]) for item in events}

    eventually(
        told,
        lambda seen: (
            seen
            >= {
                ("Deployment", "Normal", "ScalingReplicaSet"),
                ("ReplicaSet", "Normal", "SuccessfulCreate"),
                ("Pod", "Normal", "Scheduled"),
                ("Pod", "Warning", "FailedScheduling"),
            }
        ),
    )
    (event,) = [item for item in cluster.client.list(EVENT, "default").items if item["reason"] == "FailedScheduling"]
    assert event["message"] == "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    assert event["source"] == {"component": "default-scheduler"}
