"""What ``kubectl explain`` says about types and fields: the ones that people ask for in a lab, in our own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kproxy.api import known_fields

_NO_EFFECT: Final = "Accepted; it has no effect in a lab."
_EVERYWHERE: Final[Mapping[str, str]] = {
    "apiVersion": "Group and version of the kind, such as apps/v1.",
    "kind": "The kind of the object.",
    "metadata": "Name, namespace, labels and what else every object has.",
    "spec": "What is wanted.",
    "status": "What is, as the parts of the cluster report it; written through the subresource status.",
    "conditions": "What is true of the object, each with since when and why.",
    "replicas": "How many pods.",
    "selector": "The labels by which the pods are found.",
    "template": "What each pod is made from.",
    "observedGeneration": "The metadata.generation that this status speaks of.",
    "namespace": "The namespace of the object.",
    "minReadySeconds": "How long a pod has to be ready before it counts as available.",
    "revisionHistoryLimit": "How many old revisions are kept to go back to.",
}
_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "V1Namespace": {"": "A room for the names of other objects; what is in it goes when it goes."},
    "V1Node": {"": "A machine of the cluster; in a lab, a network namespace with a proxy in it."},
    "V1Pod": {"": "Containers that share addresses and live on one node."},
    "V1Service": {"": "A name and address for the pods that its selector finds, and how traffic gets to them."},
    "V1Endpoints": {"": "The addresses behind a Service in the old form; read EndpointSlices instead."},
    "V1EndpointSlice": {"": "Some of the addresses and ports behind a Service, all of one family."},
    "V1ConfigMap": {
        "": "Text and bytes by key.",
        "data": "Text by key.",
        "binaryData": "Bytes in base64 by key.",
        "immutable": "Whether the data may no longer change.",
    },
    "CoreV1Event": {"": "Something that happened to an object.", "message": "What happened, for people."},
    "EventsV1Event": {"": "Something that happened to an object.", "note": "What happened, for people."},
    "V1Lease": {"": "Who holds something, and until when; nodes show by theirs that they live."},
    "V1ServiceCIDR": {"": "Ranges from which Services get their cluster addresses."},
    "V1Deployment": {"": "Keeps so many pods of a template running, and rolls changes of it out pod by pod."},
    "V1ReplicaSet": {"": "Keeps so many pods of one template running; Deployments make them."},
    "V1StatefulSet": {"": "Keeps pods with lasting names running: web-0, web-1, ..."},
    "V1DaemonSet": {"": "Keeps one pod of a template running on every node that is meant."},
    "V1ControllerRevision": {"": "A template that a StatefulSet or DaemonSet has had."},
    "V1Scale": {"": "How many pods a workload has, apart from everything else about it."},
    "V1ObjectMeta": {
        "": "Name, namespace, labels and what else every object has.",
        "name": "The name of the object among those of its kind and namespace.",
        "generateName": "What the name begins with when the server is to choose it.",
        "labels": "Words by which objects are found.",
        "annotations": "Notes of people and programs.",
        "uid": "What tells the object from every other that ever had its name.",
        "resourceVersion": "The revision of the store at which the object was last changed.",
        "generation": "How often what is wanted has changed.",
        "creationTimestamp": "When the object was made.",
        "deletionTimestamp": "When the object is to be gone; it is being deleted.",
        "ownerReferences": "Objects that this one goes with.",
        "finalizers": "Who has something to do before the object may go.",
        "managedFields": "Who set which fields.",
    },
    "V1ServiceSpec": {
        "": "Which pods, by which addresses and ports, and how traffic gets to them.",
        "type": "How far the Service can be reached: ClusterIP, NodePort, LoadBalancer, or ExternalName.",
        "ports": "The ports of the Service.",
        "selector": "The labels of its pods; without one somebody else writes its EndpointSlices.",
        "clusterIP": "Its address in the cluster; None for a headless Service.",
        "clusterIPs": "Its addresses in the cluster, at most one of each family.",
        "externalIPs": "More addresses on which nodes take its traffic.",
        "externalName": "The name of which a Service of type ExternalName is another.",
        "externalTrafficPolicy": "Whether traffic from outside may cross to another node: Cluster, or Local.",
        "internalTrafficPolicy": "Whether traffic from inside may cross to another node: Cluster, or Local.",
        "healthCheckNodePort": "Where load balancers ask a node whether it has endpoints.",
        "ipFamilies": "IPv4, IPv6 or both, in the order of clusterIPs.",
        "ipFamilyPolicy": "SingleStack, PreferDualStack or RequireDualStack.",
        "loadBalancerSourceRanges": "From where a load balancer's address may be used.",
        "publishNotReadyAddresses": "Whether pods that are not ready count as endpoints.",
        "sessionAffinity": "Whether a client keeps its endpoint: ClientIP, or None.",
        "sessionAffinityConfig": "For how long it keeps it.",
        "trafficDistribution": "Which endpoints are preferred, such as PreferSameZone.",
    },
    "V1ServicePort": {
        "": "A port of a Service.",
        "port": "The port on the Service's addresses.",
        "targetPort": "The port of the pods: a number, or the name of a container's port.",
        "nodePort": "The port on every node.",
        "protocol": "TCP, UDP or SCTP.",
        "name": "What tells it from the other ports.",
        "appProtocol": "What is spoken on it, for those who look inside.",
    },
    "V1PodSpec": {
        "": "The containers of a pod, and where and how they run.",
        "containers": "What runs in the pod.",
        "initContainers": "What runs before the containers, one after another.",
        "nodeName": "The node on which the pod is.",
        "nodeSelector": "The labels of nodes on which it may be.",
        "hostNetwork": "Whether it shares its node's addresses.",
        "restartPolicy": "Whether containers that end are started again: Always, OnFailure or Never.",
        "terminationGracePeriodSeconds": "How long containers have to end by themselves.",
    },
    "V1Container": {
        "": "A program of a pod.",
        "name": "What tells it from the pod's other containers.",
        "image": "What to run; a lab has an echo server for every image that the cluster file does not map.",
        "command": "The program, instead of the image's.",
        "args": "The arguments of the program.",
        "env": "Environment variables.",
        "ports": "The ports that it says it listens on.",
        "readinessProbe": "How to see whether it can take traffic.",
        "livenessProbe": "How to see whether it has to be started again.",
        "startupProbe": "How to see whether it has started.",
    },
    "V1DeploymentSpec": {
        "": "How many pods of which template, and how a change is rolled out.",
        "strategy": "RollingUpdate, or Recreate.",
        "paused": "Whether changes wait.",
        "progressDeadlineSeconds": "After how long without progress a rollout counts as failed.",
    },
    "V1DaemonSetSpec": {"": "Which template, and how a change is rolled out."},
    "V1StatefulSetSpec": {
        "": "How many pods of which template, how they are named and in which order they come and go.",
        "serviceName": "The headless Service that gives the pods their names.",
        "podManagementPolicy": "OrderedReady, or Parallel.",
    },
}


def words_for(type_name: str, field: str = "") -> str:
    """A description of a type of ``known_fields``, or of one of its fields; empty when there is none."""
    text = _TYPES.get(type_name, {}).get(field) or (_EVERYWHERE.get(field, "") if field else "")
    if field and not known_fields.has_effect(type_name, field):
        text = f"{text} {_NO_EFFECT}".strip()
    return text
