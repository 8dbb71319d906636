"""Validation, row by row of what Kubernetes refuses; each row changes one thing of an object that is valid."""

# ruff: noqa: E501 (a row of a table is one line)

import copy
from typing import Any

import pytest

from kproxy.api.defaults import default
from kproxy.api.validation import prepare, validate

CHANGES = dict[str, Any]


def changed(obj: dict[str, Any], changes: CHANGES) -> dict[str, Any]:
    """A copy with values set (or, for ``...``, removed) at dotted paths."""
    new = copy.deepcopy(obj)
    for path, value in changes.items():
        *parents, last = path.split(".")
        owner: Any = new
        for key in parents:
            owner = owner[int(key)] if key.isdigit() else owner.setdefault(key, {})
        if value is ...:
            del owner[last]
        elif isinstance(owner, list):
            owner[int(last)] = copy.deepcopy(value)
        else:
            owner[last] = copy.deepcopy(value)
    return new


def messages(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return [error.message() for error in validate(default(obj), default(old) if old else None)]


METADATA = {"name": "web", "namespace": "default"}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": METADATA,
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "ports": [{"name": "a", "port": 80, "nodePort": 30000}, {"name": "b", "port": 81, "nodePort": 30001}],
    },
}
ONLY_LB = "may only be used when `type` is 'LoadBalancer'"
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
MODE, HINTS = "service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"
AS_CLUSTER_IP = {"spec.type": "ClusterIP", "spec.ports": [{"port": 80}]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"metadata.name": "1web"}, []),
        ({"metadata.namespace": ...}, ["metadata.namespace: Required value"]),
        ({"metadata.name": ...}, ["metadata.name: Required value: name or generateName is required"]),
        ({"spec.ports": []}, ["spec.ports: Required value"]),
        ({"spec.ports.0.name": ""}, ["spec.ports[0].name: Required value"]),
        ({"spec.ports.1.name": "a"}, ['spec.ports[1].name: Duplicate value: "a"']),
        ({"spec.ports.0.port": 65536, "spec.ports.0.targetPort": 1}, ["spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive"]),
        ({"spec.ports.0.protocol": "ICMP"}, ['spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"']),
        ({"spec.ports.0.targetPort": -1}, ["spec.ports[0].targetPort: Invalid value: -1: must be between 1 and 65535, inclusive"]),
        ({"spec.ports.1.port": 80}, ['spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}']),
        ({"spec.ports.1.port": 80, "spec.ports.1.protocol": "UDP", "spec.ports.1.nodePort": 30000}, []),
        ({"spec.ports.1.nodePort": 30000}, ["spec.ports[1].nodePort: Duplicate value: 30000"]),
        ({**AS_CLUSTER_IP, "spec.ports.0.nodePort": 30000}, ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]),
        (AS_CLUSTER_IP, []),
        ({**AS_CLUSTER_IP, "spec.clusterIP": "None", "spec.clusterIPs": ["None"], "spec.ports": ...}, []),
        ({"spec.clusterIP": "None", "spec.clusterIPs": ["None"]}, ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services"]),
        ({"spec.clusterIP": ""}, ['spec.clusterIPs: Invalid value: ["10.96.0.5"]: must be empty when `clusterIP` is not specified']),
        ({"spec.clusterIP": "10.96.0.6"}, ['spec.clusterIPs: Invalid value: ["10.96.0.5"]: first value must match `clusterIP`']),
        ({"spec.clusterIPs": ...}, ["spec.clusterIPs: Required value"]),
        ({"spec.clusterIPs": ["10.96.0.5", "10.96.0.6"]}, ['spec.clusterIPs: Invalid value: ["10.96.0.5","10.96.0.6"]: may specify no more than one IP for each IP family']),
        ({"spec.clusterIPs": ["10.96.0.5", "fd00::1"], "spec.ipFamilies": ["IPv4", "IPv6"]}, []),
        ({"spec.clusterIPs": ["10.96.0.5", "None"]}, ['spec.clusterIPs[1]: Invalid value: "None": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)']),
        ({"spec.ipFamilies": ["IPv6"]}, ['spec.clusterIPs[0]: Invalid value: "10.96.0.5": expected an IPv6 value as indicated by `ipFamilies[0]`']),
        ({"spec.ipFamilies": ["IPv4", "IPv4"]}, ['spec.ipFamilies[1]: Duplicate value: "IPv4"']),
        ({"spec.ipFamilyPolicy": "Dual"}, ['spec.ipFamilyPolicy: Unsupported value: "Dual": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"']),
        ({"spec.type": "ExternalName", "spec.ports": ..., "spec.externalName": "a.example."}, [
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
        ]),
        ({"spec.selector": {"a/b/c": "x"}}, ['spec.selector: Invalid value: "a/b/c": a qualified name must consist of']),
        ({"spec.sessionAffinity": "Cookie"}, ['spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"']),
        ({"spec.sessionAffinity": "ClientIP", "spec.sessionAffinityConfig.clientIP.timeoutSeconds": 0}, ["spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400"]),
        ({"spec.sessionAffinity": "ClientIP", "spec.sessionAffinityConfig.clientIP.timeoutSeconds": 86400}, []),
        ({"spec.externalIPs": ["0.0.0.0"]}, ['spec.externalIPs[0]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)']),
        ({"spec.loadBalancerSourceRanges": [" 10.0.0.0/8 "]}, []),
        ({**AS_CLUSTER_IP, "spec.loadBalancerSourceRanges": ["10.0.0.0/8"]}, [f"spec.LoadBalancerSourceRanges: Forbidden: {ONLY_LB}"]),
        ({"metadata.annotations": {SOURCE_RANGES: "10.0.0.0/8, x"}}, [f'metadata.annotations[{SOURCE_RANGES}]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)']),
        ({**AS_CLUSTER_IP, "spec.allocateLoadBalancerNodePorts": False}, [f"spec.allocateLoadBalancerNodePorts: Forbidden: {ONLY_LB}"]),
        ({**AS_CLUSTER_IP, "spec.loadBalancerClass": "a"}, [f"spec.loadBalancerClass: Forbidden: {ONLY_LB}"]),
        ({"spec.loadBalancerClass": "a/b/c"}, ['spec.loadBalancerClass: Invalid value: "a/b/c": a qualified name must consist of']),
        ({**AS_CLUSTER_IP, "spec.externalTrafficPolicy": "Local"}, ['spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services']),
        ({**AS_CLUSTER_IP, "spec.externalIPs": ["1.2.3.4"], "spec.externalTrafficPolicy": "Local"}, []),
        ({"spec.externalTrafficPolicy": "local"}, ['spec.externalTrafficPolicy: Unsupported value: "local": supported values: "Cluster", "Local"']),
        ({"spec.externalTrafficPolicy": "Local"}, ["spec.healthCheckNodePort: Required value"]),
        ({"spec.externalTrafficPolicy": "Local", "spec.healthCheckNodePort": 32000}, []),
        ({"spec.healthCheckNodePort": 32000}, ["spec.healthCheckNodePort: Invalid value: 32000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"]),
        ({"spec.internalTrafficPolicy": "local"}, ['spec.internalTrafficPolicy: Unsupported value: "local": supported values: "Cluster", "Local"']),
        ({"spec.trafficDistribution": "Near"}, ['spec.trafficDistribution: Unsupported value: "Near": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"']),
        ({"metadata.annotations": {MODE: "Auto", HINTS: "auto"}}, [f'metadata.annotations[{MODE}]: Invalid value: "Auto": must match annotations[{HINTS}] when both are specified']),
        ({**AS_CLUSTER_IP, "status.loadBalancer.ingress": [{"ip": "1.2.3.4"}]}, ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"]),
        ({"status.loadBalancer.ingress": [{"hostname": "1.2.3.4", "ipMode": "VIP"}]}, [
            "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set",
            'status.loadBalancer.ingress[0].hostname: Invalid value: "1.2.3.4": must be a DNS name, not an IP address',
        ]),
        ({"status.loadBalancer.ingress": [{"ip": "1.2.3.4", "ipMode": "vip"}]}, ['status.loadBalancer.ingress[0].ipMode: Unsupported value: "vip": supported values: "Proxy", "VIP"']),
    ],
)  # fmt: skip
def test_services(changes: CHANGES, expected: list[str]) -> None:
    found = messages(changed(SERVICE, changes))
    assert len(found) == len(expected), found
    for said, wanted in zip(found, expected, strict=True):
        assert said.startswith(wanted)


DUAL = {
    "spec.clusterIPs": ["10.96.0.5", "fd00::1"],
    "spec.ipFamilies": ["IPv4", "IPv6"],
    "spec.ipFamilyPolicy": "PreferDualStack",
}
LOCAL = {"spec.externalTrafficPolicy": "Local", "spec.healthCheckNodePort": 32000}
HEADLESS = {**AS_CLUSTER_IP, "spec.clusterIP": "None", "spec.clusterIPs": ["None"]}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, []),
        ({}, {"spec.clusterIP": "10.96.0.6", "spec.clusterIPs": ["10.96.0.6"]}, ['spec.clusterIPs[0]: Invalid value: ["10.96.0.6"]: may not change once set']),
        ({}, DUAL, []),
        (DUAL, {}, []),
        (DUAL, {"spec.ipFamilyPolicy": "PreferDualStack"}, [
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP",
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary ipFamily",
        ]),
        (HEADLESS, AS_CLUSTER_IP, ['spec.clusterIPs[0]: Invalid value: ["10.96.0.5"]: may not change once set']),
        (AS_CLUSTER_IP, HEADLESS, ['spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set']),
        (HEADLESS, {**HEADLESS, "spec.ipFamilies": ["IPv6"]}, []),
        ({"spec.loadBalancerClass": "a"}, {"spec.loadBalancerClass": "b"}, ['spec.loadBalancerClass: Invalid value: "b": may not change once set']),
        (LOCAL, {**LOCAL, "spec.healthCheckNodePort": 32001}, ["spec.healthCheckNodePort: Forbidden: field is immutable"]),
        (LOCAL, {}, []),
        ({}, {"spec.selector": {"a": "b"}, "spec.ports": [{"port": 90}], "spec.internalTrafficPolicy": "Local"}, []),
        ({}, {"metadata.namespace": "other"}, ['metadata.namespace: Invalid value: "other": field is immutable']),
        ({"metadata.uid": "1"}, {"metadata.uid": "2"}, ['metadata.uid: Invalid value: "2": field is immutable']),
    ],
)  # fmt: skip
def test_updates_of_services(before: CHANGES, after: CHANGES, expected: list[str]) -> None:
    assert messages(changed(SERVICE, after), changed(SERVICE, before)) == expected


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": METADATA,
    "spec": {
        "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    },
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"spec.containers": []}, ["spec.containers: Required value"]),
        ({"spec.containers.0.name": ...}, ["spec.containers[0].name: Required value"]),
        ({"spec.containers.0.image": " "}, ["spec.containers[0].image: Required value"]),
        ({"spec.initContainers": [{"name": "a", "image": "x"}]}, ['spec.containers[0].name: Duplicate value: "a"']),
        ({"spec.containers.0.ports.0.containerPort": ...}, ["spec.containers[0].ports[0].containerPort: Required value"]),
        ({"spec.containers.0.ports.0.name": "HTTP"}, [
            'spec.containers[0].ports[0].name: Invalid value: "HTTP": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)',
            'spec.containers[0].ports[0].name: Invalid value: "HTTP": must contain at least one letter (a-z)',
        ]),
        ({"spec.hostNetwork": True, "spec.containers.0.ports.0.hostPort": 81}, ["spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true"]),
        ({"spec.hostNetwork": True}, []),
        ({"spec.containers.0.securityContext.privileged": True}, ["spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy"]),
        ({"spec.containers.0.securityContext.privileged": False}, []),
        ({"spec.volumes.0.hostPath": {"path": "/etc"}}, ["spec.volumes[0].hostPath: Forbidden: disallowed by cluster policy"]),
        ({"spec.containers.0.volumeMounts": [{"name": "v", "mountPath": "/v"}]}, []),
        ({"spec.containers.0.volumeMounts": [{"name": "w"}]}, [
            'spec.containers[0].volumeMounts[0].name: Not found: "w"',
            "spec.containers[0].volumeMounts[0].mountPath: Required value",
        ]),
        ({"spec.containers.0.env": [{"name": "A", "value": "x", "valueFrom": {}}]}, ['spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty']),
        ({"spec.containers.0.command": ["a\0"]}, ['spec.containers[0].command[0]: Invalid value: "a\\x00": must not contain a NUL character']),
        ({"spec.restartPolicy": "never"}, ['spec.restartPolicy: Unsupported value: "never": supported values: "Always", "OnFailure", "Never"']),
        ({"spec.terminationGracePeriodSeconds": 0}, []),
    ],
)  # fmt: skip
def test_pods(changes: CHANGES, expected: list[str]) -> None:
    assert messages(changed(POD, changes)) == expected


@pytest.mark.parametrize(
    ("before", "after", "is_allowed"),
    [
        ({}, {"spec.nodeName": "node1"}, True),
        ({"spec.nodeName": "node1"}, {"spec.nodeName": "node2"}, False),
        ({}, {"spec.containers.0.image": "y"}, True),
        ({}, {"metadata.labels": {"a": "b"}}, True),
        ({}, {"spec.containers.0.command": ["sh"]}, False),
        ({}, {"spec.terminationGracePeriodSeconds": 1}, True),
    ],
)
def test_updates_of_pods(before: CHANGES, after: CHANGES, is_allowed: bool) -> None:
    found = messages(changed(POD, after), changed(POD, before))
    assert (found == []) is is_allowed
    assert all(said.startswith("spec: Forbidden: pod updates may not change fields other than") for said in found)


DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": METADATA,
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": POD["spec"]},
    },
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"spec.selector": ...}, ["spec.selector: Required value"]),
        ({"spec.selector": {}}, ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]),
        ({"spec.template.metadata.labels": {"z": "1", "app": "x"}}, ['spec.template.metadata.labels: Invalid value: {"app":"x","z":"1"}: `selector` does not match template `labels`']),
        ({"spec.template.spec.restartPolicy": "Never"}, ['spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"']),
        ({"spec.strategy": {"type": "Recreate", "rollingUpdate": {}}}, ["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"]),
        ({"spec.strategy.rollingUpdate": {"maxSurge": "x", "maxUnavailable": -1}}, [
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: -1: must be greater than or equal to 0",
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ]),
        ({"spec.strategy.rollingUpdate.maxUnavailable": "1000000000000%"}, ['spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "1000000000000%": must not be greater than 100%']),
        ({"spec.strategy.rollingUpdate.maxUnavailable": "0100%"}, []),
        ({"spec.progressDeadlineSeconds": 5, "spec.minReadySeconds": 5}, ["spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"]),
    ],
)  # fmt: skip
def test_deployments(changes: CHANGES, expected: list[str]) -> None:
    assert messages(changed(DEPLOYMENT, changes)) == expected


def test_the_selector_of_a_workload_stays() -> None:
    new = changed(DEPLOYMENT, {"spec.selector.matchLabels": {"app": "web", "b": "c"}})
    new["spec"]["template"]["metadata"]["labels"] = {"app": "web", "b": "c"}
    assert messages(new, DEPLOYMENT) == [
        'spec.selector: Invalid value: {"matchLabels":{"app":"web","b":"c"}}: field is immutable'
    ]


SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": METADATA,
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.244.1.2"]}],
    "ports": [{"port": 80}],
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"addressType": ...}, ["addressType: Required value"]),
        ({"addressType": "FQDN", "endpoints.0.addresses": ["a.example."]}, []),
        ({"endpoints": [{"addresses": ["10.0.0.1"]}] * 1001}, ["endpoints: Too many: 1001: must have at most 1000 items"]),
        ({"endpoints.0.addresses": []}, ["endpoints[0].addresses: Required value: must contain at least 1 address"]),
        ({"endpoints.0.addresses": ["10.0.0.1"] * 101}, ["endpoints[0].addresses: Too many: 101: must have at most 100 items"]),
        ({"endpoints.0.addresses": ["127.0.0.1"]}, ['endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)']),
        ({"endpoints.0.addresses": ["fd00::1"]}, ['endpoints[0].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address']),
        ({"endpoints.0.hostname": "a.b"}, ['endpoints[0].hostname: Invalid value: "a.b": must not contain dots']),
        ({"endpoints.0.hints.forZones": [{"name": str(zone)} for zone in range(9)]}, ["endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"]),
        ({"endpoints.0.hints.forNodes": [{"name": "a"}, {"name": "a"}]}, ['endpoints[0].hints.forNodes[1].name: Duplicate value: "a"']),
        ({"ports": [{"port": 99999, "name": "a"}, {"port": None, "name": "b"}]}, []),
        ({"ports": [{"name": "a"}, {"name": "a"}]}, ['ports[1].name: Duplicate value: "a"']),
        ({"ports.0.protocol": "tcp"}, ['ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"']),
    ],
)  # fmt: skip
def test_endpoint_slices(changes: CHANGES, expected: list[str]) -> None:
    assert messages(changed(SLICE, changes)) == expected


def test_the_address_type_of_a_slice_stays() -> None:
    new = changed(SLICE, {"addressType": "FQDN", "endpoints": []})
    assert messages(new, SLICE) == ['addressType: Invalid value: "FQDN": field is immutable']


def test_nodes_and_service_cidrs_keep_their_ranges() -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {"podCIDR": "10.244.1.0/24"}}
    assert messages(node, changed(node, {"spec.podCIDR": ...})) == []
    other = changed(node, {"spec.podCIDR": "10.244.2.0/24"})
    expected = 'spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid'
    assert messages(other, node) == [expected]
    ranges = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "a"}}
    ranges["spec"] = {"cidrs": ["10.96.0.0/12"]}
    assert messages(ranges, ranges) == []
    moved = changed(ranges, {"spec.cidrs": ["10.112.0.0/12"]})
    assert messages(moved, ranges) == ['spec.cidrs: Invalid value: ["10.112.0.0/12"]: field is immutable']


def test_a_manifest_may_leave_to_the_server_what_the_server_fills_in() -> None:
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.5", "ports": [{"port": 80}]}
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"generateName": "web-"}, "spec": spec}
    prepared, errors = prepare(manifest)
    assert errors == []
    assert prepared["spec"]["allocateLoadBalancerNodePorts"] is True
    _, errors = prepare(manifest, is_complete=True)
    assert [error.field for error in errors] == [
        "metadata.name",
        "metadata.namespace",
        "spec.clusterIPs",
        "spec.healthCheckNodePort",
    ]


def test_owner_references_have_one_controller_and_no_gaps() -> None:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "1", "controller": True}
    assert messages(changed(POD, {"metadata.ownerReferences": [owner]})) == []
    found = messages(changed(POD, {"metadata.ownerReferences": [owner, {**owner, "uid": ""}]}))
    assert found[0] == 'metadata.ownerReferences.uid: Invalid value: "": must not be empty'
    assert found[1].endswith('Found "true" in references for ReplicaSet/a and ReplicaSet/a')


SPELLINGS = [
    ({"spec.clusterIP": "10.096.0.5", "spec.clusterIPs": ["10.096.0.5"]}, 1),
    ({"spec.externalIPs": ["::ffff:203.0.113.9"]}, 1),
    ({"spec.loadBalancerSourceRanges": ["010.0.0.0/8", "10.0.0.1/8", "::ffff:10.0.0.0/104"]}, 3),
    ({"spec.externalIPs": ["10.0.0.256"]}, None),
    ({"metadata.name": "Web"}, None),
]


@pytest.mark.parametrize(("changes", "count"), SPELLINGS)
def test_what_was_admitted_elsewhere_is_understood_in_older_spellings(changes: CHANGES, count: int | None) -> None:
    service = default(changed(SERVICE, changes))
    strict, lenient = validate(service), validate(service, is_strict=False)
    assert len(strict) == (count or 1)
    assert lenient == ([] if count else strict)
