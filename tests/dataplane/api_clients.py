"""What a client library does with a lab, as a program of its own: the library's name and a kubeconfig, JSON comes out.

By itself because libraries warn and leave connections behind as they like.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SECONDS = 60


def with_kubernetes(kubeconfig: str) -> dict[str, Any]:
    """The official Python client."""
    from kubernetes import client, config, watch
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream import stream

    config.load_kube_config(kubeconfig)
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    found: dict[str, Any] = {"nodes": [node.metadata.name for node in core.list_node().items]}
    container = {"name": "c", "image": "busybox", "command": ["sh", "-c", "echo hello; exec sleep 600"]}
    pod = {"metadata": {"name": "py", "labels": {"app": "py"}}, "spec": {"containers": [container]}}
    version = core.list_namespaced_pod("default").metadata.resource_version
    core.create_namespaced_pod("default", pod)
    seen = []
    watching = watch.Watch()
    for event in watching.stream(
        core.list_namespaced_pod, "default", resource_version=version, label_selector="app=py", timeout_seconds=SECONDS
    ):
        seen.append((event["type"], event["object"].status.phase))
        if event["object"].status.phase == "Running":
            watching.stop()
    found["watched"] = [seen[0], seen[-1]]
    found["patched"] = core.patch_namespaced_pod("py", "default", {"metadata": {"labels": {"x": "y"}}}).metadata.labels
    exec_ = core.connect_get_namespaced_pod_exec
    options = {"stderr": True, "stdin": False, "stdout": True, "tty": False}
    found["said"] = stream(exec_, "py", "default", command=["sh", "-c", "echo inside"], **options)
    found["log"] = core.read_namespaced_pod_log("py", "default")
    deleted = core.delete_namespaced_pod("py", "default", grace_period_seconds=0)
    found["deleted"] = deleted.metadata.name
    try:
        core.read_namespaced_service("nobody", "default")
    except ApiException as error:
        found["missing"] = (error.status, json.loads(error.body)["reason"])
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "echo"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "d"}}, "template": template}
    apps.create_namespaced_deployment("default", {"metadata": {"name": "d"}, "spec": spec})
    found["scaled"] = apps.patch_namespaced_deployment_scale("d", "default", {"spec": {"replicas": 2}}).spec.replicas
    found["ended"] = apps.delete_namespaced_deployment("d", "default")["status"]
    lists = (
        *(core.list_config_map_for_all_namespaces, core.list_endpoints_for_all_namespaces, core.list_namespace),
        *(core.list_event_for_all_namespaces, core.list_pod_for_all_namespaces, core.list_service_for_all_namespaces),
        *(apps.list_deployment_for_all_namespaces, apps.list_daemon_set_for_all_namespaces),
        *(apps.list_stateful_set_for_all_namespaces, apps.list_replica_set_for_all_namespaces),
        client.CoordinationV1Api().list_lease_for_all_namespaces,
        client.DiscoveryV1Api().list_endpoint_slice_for_all_namespaces,
        client.EventsV1Api().list_event_for_all_namespaces,
        client.NetworkingV1Api().list_service_cidr,
    )
    found["listed"] = sum(list_().kind.endswith("List") for list_ in lists)
    found["pages"] = _pages(core)
    found["namespaces"] = len(core.list_namespace().items)
    return found


def _pages(core: Any) -> list[int]:
    """How many namespaces are in each page of two."""
    sizes, token = [], None
    while token != "":
        page = core.list_namespace(limit=2, _continue=token)
        sizes.append(len(page.items))
        token = page.metadata._continue or ""
    return sizes


def with_lightkube(kubeconfig: str) -> dict[str, Any]:
    """Another one, with types of its own and server-side apply."""
    from lightkube import ApiError, Client, KubeConfig
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.apps_v1 import Deployment
    from lightkube.resources.core_v1 import ConfigMap, Node, Pod
    from lightkube.types import PatchType

    api = Client(config=KubeConfig.from_file(kubeconfig), field_manager="lightkube")
    found: dict[str, Any] = {"nodes": [node.metadata.name for node in api.list(Node)]}
    named = ObjectMeta(name="lk", namespace="default")
    api.create(ConfigMap(metadata=named, data={"a": "b"}))
    for change, obj in api.watch(ConfigMap, namespace="default", server_timeout=SECONDS):
        if obj.metadata.name == "lk":
            found["watched"] = change
            break
    found["patched"] = api.patch(ConfigMap, "lk", {"data": {"c": "d"}}, patch_type=PatchType.MERGE).data
    applied = ConfigMap(apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name="ssa"), data={"e": "f"})
    found["applied"] = api.apply(applied).data
    for name in ("lk", "ssa"):
        api.delete(ConfigMap, name)
    try:
        api.get(ConfigMap, "lk")
    except ApiError as error:
        found["missing"] = (error.status.code, error.status.reason)
    found["listed"] = [len(list(api.list(kind, namespace="*"))) >= 0 for kind in (Pod, Deployment)]
    return found


if __name__ == "__main__":
    use = {"kubernetes": with_kubernetes, "lightkube": with_lightkube}[sys.argv[1]]
    sys.stdout.write(json.dumps(use(sys.argv[2])))
