"""The Service API row by row: defaults, families, errors, updates, allocation, warnings, over the API's socket."""

# ruff: noqa: E501 (a row of a table is one line)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_cluster import Api
from service_rows import (
    GONE,
    SERVICES,
    Is,
    Other,
    Probe,
    Step,
    Within,
    apply,
    delete,
    edit,
    get,
    patch,
    post,
    put,
    status,
)

from kproxy.cluster.admission import ClusterSettings

V4, V6 = "IPv4", "IPv6"
SINGLE = ClusterSettings()
DUAL = ClusterSettings(service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"), ip_families=(V4, V6))
DUAL_V6 = ClusterSettings(service_cidrs=("fd00:10:96::/112", "10.96.0.0/12"), ip_families=(V6, V4))
TINY = ClusterSettings(service_cidrs=("10.96.0.0/27",), node_port_range=(30000, 30019))
CLUSTERS = {"single": SINGLE, "dual": DUAL, "dual, v6 first": DUAL_V6, "tiny": TINY}

NODE_PORT, LB, EXTERNAL = (
    {"type": "NodePort"},
    {"type": "LoadBalancer"},
    {"type": "ExternalName", "externalName": "a.example", "ports": GONE},
)
LOCAL_LB = {**LB, "externalTrafficPolicy": "Local"}
HEADLESS = {"clusterIP": "None", "selector": {"app": "web"}}
PREFER, REQUIRE = {"ipFamilyPolicy": "PreferDualStack"}, {"ipFamilyPolicy": "RequireDualStack"}
TO_EXTERNAL = {"type": "ExternalName", "externalName": "a.example"}
CLIENT_IP = {"sessionAffinity": "ClientIP"}
TIMEOUT = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
BOTH_70 = {"clusterIP": "10.96.0.70", "clusterIPs": ["10.96.0.70", "fd00:10:96::70"]}
VIP = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
ALL_FAMILIES = {"spec.ipFamilies": [V4, V6]}
NO_FAMILY_FIELDS = {
    "spec.clusterIP": GONE,
    "spec.clusterIPs": GONE,
    "spec.ipFamilies": GONE,
    "spec.ipFamilyPolicy": GONE,
}


def ports(*listed: Any) -> dict[str, Any]:
    return {"ports": [{"port": one} if isinstance(one, int) else one for one in listed]}


def named(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, **more}


def noted(*values: str) -> dict[str, Any]:
    return {
        f"spec.ports.{index}.nodePort": Is(value) if isinstance(value, str) else value
        for index, value in enumerate(values)
    }


ONLY_LB = "Forbidden: may only be used when `type` is 'LoadBalancer'"
LABEL = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
SUBDOMAIN = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
QUALIFIED = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
NO_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
NO_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
PORT_RANGE = "must be between 1 and 65535, inclusive"
NODE_RANGE = "provided port is not in the valid range. The range of valid ports is 30000-32767"
TAKEN_PORT = "provided port is already allocated"
OTHER_RANGE = "the provided network does not match the current range"
ONCE = "may not change once set"
NOT_EXTERNAL = "Forbidden: may not be set for ExternalName services"
NOT_DUAL = (
    'spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services'
)
HEALTH_ONLY = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
MODE, HINTS = "service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"

Row = tuple[str, str, list[Step]]
FIELDS: list[Row] = [
    # ----- 2. fields and their defaults
    ("2 type: ClusterIP", "single", [post(shows={"spec.type": "ClusterIP"})]),
    ("2 clusterIP: allocated, and the first of clusterIPs", "single", [post(shows={"spec.clusterIP": Is("ip"), "spec.clusterIPs.0": Is("ip"), "spec.clusterIPs.1": GONE})]),
    ("2 clusterIP None: headless", "single", [post(HEADLESS, shows={"spec.clusterIP": "None", "spec.clusterIPs": ["None"]})]),
    ("2 families and policy", "single", [post(shows={"spec.ipFamilies": [V4], "spec.ipFamilyPolicy": "SingleStack"})]),
    ("2 port name: none", "single", [post(shows={"spec.ports.0.name": GONE})]),
    ("2 protocol: TCP", "single", [post(shows={"spec.ports.0.protocol": "TCP"})]),
    ("2 protocol: UDP and SCTP are kept", "single", [post(ports(named("a", 1, protocol="UDP"), named("b", 1, protocol="SCTP")), shows={"spec.ports.0.protocol": "UDP", "spec.ports.1.protocol": "SCTP"})]),
    ("2 targetPort: = port when absent, 0 or empty", "single", [post(ports(named("a", 1), named("b", 2, targetPort=0), named("c", 3, targetPort=""), named("d", 4, targetPort="web")), shows={"spec.ports.0.targetPort": 1, "spec.ports.1.targetPort": 2, "spec.ports.2.targetPort": 3, "spec.ports.3.targetPort": "web"})]),
    ("2 nodePort: none for ClusterIP", "single", [post(shows={"spec.ports.0.nodePort": GONE})]),
    ("2 nodePort: allocated for NodePort", "single", [post(NODE_PORT, shows={"spec.ports.0.nodePort": Within(30086, 32767)})]),
    ("2 nodePort: allocated for LoadBalancer", "single", [post(LB, shows={"spec.ports.0.nodePort": Within(30086, 32767)})]),
    ("2 nodePort: one number for TCP and UDP of one Service", "single", [post({**NODE_PORT, **ports(named("a", 53, protocol="UDP", nodePort=30053), named("b", 53, nodePort=30053))}, shows={"spec.ports.0.nodePort": 30053, "spec.ports.1.nodePort": 30053})]),
    ("2 appProtocol: kept", "single", [post(ports({"port": 80, "appProtocol": "kubernetes.io/h2c"}), shows={"spec.ports.0.appProtocol": "kubernetes.io/h2c"})]),
    ("2 selector: none", "single", [post(shows={"spec.selector": GONE})]),
    ("2 externalIPs: kept", "single", [post({"externalIPs": ["203.0.113.9"]}, shows={"spec.externalIPs": ["203.0.113.9"]}, warns="spec.externalIPs is deprecated and may no longer be implemented in some clusters")]),
    ("2 sessionAffinity: None", "single", [post(shows={"spec.sessionAffinity": "None", "spec.sessionAffinityConfig": GONE})]),
    ("2 timeoutSeconds: 10800", "single", [post(CLIENT_IP, shows={TIMEOUT: 10800})]),
    ("2 externalTrafficPolicy: none for a plain ClusterIP", "single", [post(shows={"spec.externalTrafficPolicy": GONE})]),
    ("2 externalTrafficPolicy: Cluster for NodePort", "single", [post(NODE_PORT, shows={"spec.externalTrafficPolicy": "Cluster"})]),
    ("2 externalTrafficPolicy: Cluster for LoadBalancer", "single", [post(LB, shows={"spec.externalTrafficPolicy": "Cluster"})]),
    ("2 externalTrafficPolicy: Cluster for ClusterIP with externalIPs", "single", [post({"externalIPs": ["203.0.113.9"]}, shows={"spec.externalTrafficPolicy": "Cluster"}, warns="spec.externalIPs is deprecated and may no longer be implemented in some clusters")]),
    ("2 internalTrafficPolicy: Cluster", "single", [post(shows={"spec.internalTrafficPolicy": "Cluster"})]),
    ("2 internalTrafficPolicy: not for ExternalName", "single", [post(EXTERNAL, shows={"spec.internalTrafficPolicy": GONE})]),
    ("2 healthCheckNodePort: allocated for LoadBalancer with Local", "single", [post(LOCAL_LB, shows={"spec.healthCheckNodePort": Within(30086, 32767)})]),
    ("2 healthCheckNodePort: none with Cluster", "single", [post(LB, shows={"spec.healthCheckNodePort": GONE})]),
    ("2 healthCheckNodePort: none for NodePort with Local", "single", [post({**NODE_PORT, "externalTrafficPolicy": "Local"}, shows={"spec.healthCheckNodePort": GONE})]),
    ("2 publishNotReadyAddresses: kept", "single", [post({"publishNotReadyAddresses": True}, shows={"spec.publishNotReadyAddresses": True})]),
    ("2 loadBalancerSourceRanges: kept", "single", [post({**LB, "loadBalancerSourceRanges": ["10.0.0.0/8", " ::/0 "]}, shows={"spec.loadBalancerSourceRanges": ["10.0.0.0/8", " ::/0 "]})]),
    ("2 loadBalancerClass: none, or kept", "single", [post(LB, shows={"spec.loadBalancerClass": GONE}), post({**LB, "loadBalancerClass": "lab.example/x"}, name="b", shows={"spec.loadBalancerClass": "lab.example/x"})]),
    ("2 allocateLoadBalancerNodePorts: true for LoadBalancer alone", "single", [post(LB, shows={"spec.allocateLoadBalancerNodePorts": True}), post(NODE_PORT, name="b", shows={"spec.allocateLoadBalancerNodePorts": GONE})]),
    ("2 allocateLoadBalancerNodePorts: false gives none unless asked", "single", [post({**LB, "allocateLoadBalancerNodePorts": False, **ports(named("a", 1), named("b", 2, nodePort=30002))}, shows={"spec.ports.0.nodePort": GONE, "spec.ports.1.nodePort": 30002})]),
    ("2 trafficDistribution: none", "single", [post(shows={"spec.trafficDistribution": GONE})]),
    ("2 ipMode: VIP when an ip is set", "single", [post(LB), status(VIP, shows={"status.loadBalancer.ingress.0.ipMode": "VIP"})]),
    ("2 ipMode: Proxy is kept", "single", [post(LB), status({"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "Proxy"}]}}, shows={"status.loadBalancer.ingress.0.ipMode": "Proxy"})]),
    ("2 ingress by hostname has no ipMode", "single", [post(LB), status({"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}, shows={"status.loadBalancer.ingress.0": {"hostname": "lb.example"}})]),
    # ----- 3. the order of things
    ("3 config: dropped with affinity None", "single", [post({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, shows={"spec.sessionAffinityConfig": GONE})]),
    ("3 config: replaced when it is empty", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {}}, shows={TIMEOUT: 10800})]),
    ("3 config: replaced when clientIP is empty", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {"clientIP": {}}}, shows={TIMEOUT: 10800})]),
    ("3 config: replaced when clientIP is null", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {"clientIP": None}}, shows={TIMEOUT: 10800})]),
    ("3 config: kept", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, shows={TIMEOUT: 5})]),
    ("3 clusterIPs follows clusterIP", "single", [post({"clusterIP": "10.96.0.70"}, shows={"spec.clusterIPs": ["10.96.0.70"]})]),
    ("3 clusterIP does not follow clusterIPs", "single", [post({"clusterIPs": ["10.96.0.70"]}, says='spec.clusterIPs: Invalid value: ["10.96.0.70"]: must be empty when `clusterIP` is not specified')]),
    ("3 what cannot be allocated is all that is said", "single", [post({**NODE_PORT, "sessionAffinity": "x", **ports({"port": 0, "nodePort": 29999})}, says=f"spec.ports[0].nodePort: Invalid value: 29999: {NODE_RANGE}")]),
    ("3 an apply says everything", "single", [apply({**NODE_PORT, "sessionAffinity": "x", **ports({"port": 80, "nodePort": 29999})}, says=[f"spec.ports[0].nodePort: Invalid value: 29999: {NODE_RANGE}", 'spec.sessionAffinity: Unsupported value: "x": supported values: "ClientIP", "None"'])]),
    ("3 a refused create holds nothing", "single", [post({**NODE_PORT, "clusterIP": "10.96.0.71", "sessionAffinity": "x", **ports({"port": 80, "nodePort": 30071})}, says='spec.sessionAffinity: Unsupported value: "x": supported values: "ClientIP", "None"'), post({**NODE_PORT, "clusterIP": "10.96.0.71", **ports({"port": 80, "nodePort": 30071})}, name="b")]),
    ("3 a PUT keeps clusterIP, nodePorts by name, healthCheckNodePort", "single", [post({**LOCAL_LB, **ports(named("a", 80), named("b", 81))}, shows={"spec.clusterIP": Is("ip"), "spec.healthCheckNodePort": Is("hc"), **noted("a", "b")}), put({**LOCAL_LB, **ports(named("b", 1), named("a", 2))}, shows={"spec.clusterIP": Is("ip"), "spec.healthCheckNodePort": Is("hc"), **noted("b", "a")})]),
    ("3 a PUT keeps status", "single", [post(LB), status(VIP), put(LB, shows={"status.loadBalancer.ingress.0.ip": "198.51.100.1"})]),
    ("3 an apply keeps status", "single", [apply(LB), status(VIP), apply(LB, shows={"status.loadBalancer.ingress.0.ip": "198.51.100.1"})]),
    ("3 internalTrafficPolicy of an ExternalName is hidden", "single", [post({**EXTERNAL, "internalTrafficPolicy": "Local"}, shows={"spec.internalTrafficPolicy": GONE}), get(shows={"spec.internalTrafficPolicy": GONE})]),
]  # fmt: skip

FAMILIES: list[Row] = [
    # ----- 4. families
    ("4 nil, dual cluster", "dual", [post(shows={"spec.ipFamilies": [V4], "spec.ipFamilyPolicy": "SingleStack"})]),
    ("4 nil, family inferred from its address", "dual", [post({"clusterIP": "fd00:10:96::70"}, shows={"spec.ipFamilies": [V6], "spec.ipFamilyPolicy": "SingleStack", "spec.clusterIPs": ["fd00:10:96::70"]})]),
    ("4 nil, headless without selector, single cluster", "single", [post({"clusterIP": "None"}, shows={**ALL_FAMILIES, "spec.ipFamilyPolicy": "RequireDualStack"})]),
    ("4 nil, headless without selector, dual cluster", "dual", [post({"clusterIP": "None"}, shows={**ALL_FAMILIES, "spec.ipFamilyPolicy": "RequireDualStack"})]),
    ("4 nil, headless with selector", "dual", [post(HEADLESS, shows={"spec.ipFamilies": [V4], "spec.ipFamilyPolicy": "SingleStack"})]),
    ("4 nil, update: the old policy stays", "dual", [post(REQUIRE, shows={"spec.clusterIPs.1": Is("second")}), put(shows={"spec.ipFamilyPolicy": "RequireDualStack", "spec.clusterIPs.1": Is("second")})]),
    ("4 SingleStack", "dual", [post({"ipFamilyPolicy": "SingleStack"}, shows={"spec.ipFamilies": [V4], "spec.clusterIPs.1": GONE})]),
    ("4 SingleStack of the other family", "dual", [post({"ipFamilyPolicy": "SingleStack", "ipFamilies": [V6]}, shows={"spec.clusterIP": Within("fd00:10:96::", "fd00:10:96::ffff")})]),
    ("4 PreferDualStack, single cluster", "single", [post(PREFER, shows={"spec.ipFamilies": [V4], "spec.ipFamilyPolicy": "PreferDualStack", "spec.clusterIPs.1": GONE})]),
    ("4 PreferDualStack, dual cluster", "dual", [post(PREFER, shows={**ALL_FAMILIES, "spec.clusterIPs.0": Within("10.96.0.0", "10.111.255.255"), "spec.clusterIPs.1": Within("fd00:10:96::", "fd00:10:96::ffff")})]),
    ("4 RequireDualStack, single cluster", "single", [post(REQUIRE, says=NOT_DUAL)]),
    ("4 RequireDualStack, headless with selector, single cluster", "single", [post({**REQUIRE, **HEADLESS}, says=NOT_DUAL)]),
    ("4 RequireDualStack, headless without selector, single cluster", "single", [post({**REQUIRE, "clusterIP": "None"}, shows=ALL_FAMILIES)]),
    ("4 RequireDualStack, dual cluster", "dual", [post(REQUIRE, shows={**ALL_FAMILIES, "spec.clusterIPs.2": GONE, "spec.clusterIPs.1": Within("fd00:10:96::", "fd00:10:96::ffff")})]),
    ("4 the primary family is the first range's", "dual, v6 first", [post(shows={"spec.ipFamilies": [V6]}), post(REQUIRE, name="b", shows={"spec.ipFamilies": [V6, V4]})]),
    ("4 the order may be chosen", "dual", [post({**REQUIRE, "ipFamilies": [V6, V4]}, shows={"spec.ipFamilies": [V6, V4], "spec.clusterIP": Within("fd00:10:96::", "fd00:10:96::ffff")}), post({**PREFER, "ipFamilies": [V6]}, name="b", shows={"spec.ipFamilies": [V6, V4]})]),
    ("4 PreferDualStack is upgraded by an edit of its policy", "dual", [post(shows={"spec.clusterIP": Is("ip")}), patch(PREFER, shows={**ALL_FAMILIES, "spec.clusterIPs.0": Is("ip")})]),
    ("4 PreferDualStack is not upgraded by another edit", "dual", [post(), edit({"ipFamilyPolicy": "SingleStack"}), patch({"sessionAffinity": "ClientIP"}, shows={"spec.clusterIPs.1": GONE})]),
    ("4 two addresses want a policy", "dual", [post(BOTH_70, says="spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")]),
    ("4 two families want a policy", "dual", [post({"ipFamilies": [V4, V6]}, says="spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")]),
    ("4 the second address goes only with SingleStack", "dual", [post({**REQUIRE, "clusterIP": "10.96.0.70"}), patch({"clusterIPs": ["10.96.0.70"]}, says="spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP")]),
    ("4 the second family goes only with SingleStack", "dual", [post(REQUIRE), patch({"ipFamilies": [V4]}, says="spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family")]),
    ("4 ipFamilies: not configured", "single", [post({"ipFamilies": [V6]}, says='spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster')]),
    ("4 ipFamilies: unsupported", "single", [post({"ipFamilies": ["IPv5"]}, says='spec.ipFamilies[0]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"')]),
    ("4 ipFamilies: duplicate", "dual", [post({**REQUIRE, "ipFamilies": [V4, V4]}, says='spec.ipFamilies[1]: Duplicate value: "IPv4"')]),
    ("4 ipFamilyPolicy: unsupported", "dual", [post({"ipFamilyPolicy": "Dual"}, says='spec.ipFamilyPolicy: Unsupported value: "Dual": supported values: "PreferDualStack", "RequireDualStack", "SingleStack"')]),
    ("4 clusterIPs: family of the address not configured", "single", [post({"clusterIP": "fd00::1"}, says='spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster')]),
    ("4 clusterIPs: first must match clusterIP", "dual", [post({"clusterIP": "10.96.0.70", "clusterIPs": ["10.96.0.71"]}, says='spec.clusterIPs: Invalid value: ["10.96.0.71"]: first value must match `clusterIP`')]),
    ("4 clusterIPs: None alone", "dual", [post({**REQUIRE, "clusterIP": "None", "clusterIPs": ["None", "fd00::1"]}, says="spec.clusterIPs: Invalid value: [\"None\",\"fd00::1\"]: 'None' must be the first and only value")]),
    ("4 clusterIPs: two at most", "dual", [post({**REQUIRE, "clusterIP": "10.96.0.70", "clusterIPs": ["10.96.0.70", "fd00:10:96::70", "fd00:10:96::71"]}, says=['spec.clusterIPs: Invalid value: ["10.96.0.70","fd00:10:96::70","fd00:10:96::71"]: may only hold up to 2 values', 'spec.clusterIPs: Invalid value: ["10.96.0.70","fd00:10:96::70","fd00:10:96::71"]: may specify no more than one IP for each IP family'])]),
    ("4 clusterIPs: one a family", "dual", [post({**REQUIRE, "clusterIP": "10.96.0.70", "clusterIPs": ["10.96.0.70", "10.96.0.71"]}, says='spec.clusterIPs: Invalid value: ["10.96.0.70","10.96.0.71"]: may specify no more than one IP for each IP family')]),
    ("4 clusterIPs: in the order of ipFamilies", "dual", [post({"ipFamilies": [V6], "clusterIP": "10.96.0.70"}, says='spec.clusterIPs[0]: Invalid value: "10.96.0.70": expected an IPv6 value as indicated by `ipFamilies[0]`')]),
]  # fmt: skip

UNSUPPORTED_TYPE = 'spec.type: Unsupported value: "Balancer": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"'
NO_LETTER = 'spec.ports[0].targetPort: Invalid value: "{}": {}'
VALIDATION: list[Row] = [
    # ----- 5. how errors are rendered
    ("5 quoted text", "single", [post({"sessionAffinity": 'a"\n'}, says='spec.sessionAffinity: Unsupported value: "a\\"\\n": supported values: "ClientIP", "None"')]),
    ("5 Required shows no value", "single", [post({"ports": []}, says="spec.ports: Required value")]),
    # ----- 6. validation
    ("6 name: may start with a digit", "single", [post(name="1web")]),
    ("6 name: no label", "single", [post(name="Web", says=f'metadata.name: Invalid value: "Web": {LABEL}')]),
    ("6 name: no dots", "single", [post(name="a.b", says='metadata.name: Invalid value: "a.b": must not contain dots')]),
    ("6 name: 63 bytes", "single", [post(name="a" * 63), post(name="a" * 64, says=f'metadata.name: Invalid value: "{"a" * 64}": must be no more than 63 bytes')]),
    ("6 ports: required", "single", [post({"ports": GONE}, says="spec.ports: Required value")]),
    ("6 ports: not for headless", "single", [post({**HEADLESS, "ports": GONE})]),
    ("6 ports: not for ExternalName", "single", [post(EXTERNAL)]),
    ("6 port name: required when there are several", "single", [post(ports(1, named("b", 2)), says="spec.ports[0].name: Required value")]),
    ("6 port name: a label", "single", [post(ports(named("A", 1)), says=f'spec.ports[0].name: Invalid value: "A": {LABEL}')]),
    ("6 port name: duplicate", "single", [post(ports(named("a", 1), named("a", 2)), says='spec.ports[1].name: Duplicate value: "a"')]),
    ("6 port: 0", "single", [post(ports({"port": 0, "targetPort": 1}), says=f"spec.ports[0].port: Invalid value: 0: {PORT_RANGE}")]),
    ("6 port: 65536", "single", [post(ports({"port": 65536, "targetPort": 1}), says=f"spec.ports[0].port: Invalid value: 65536: {PORT_RANGE}")]),
    ("6 protocol: unsupported", "single", [post(ports({"port": 1, "protocol": "ICMP"}), says='spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"')]),
    ("6 targetPort: number out of range", "single", [post(ports({"port": 1, "targetPort": 65536}), says=f"spec.ports[0].targetPort: Invalid value: 65536: {PORT_RANGE}")]),
    ("6 targetPort: too long", "single", [post(ports({"port": 1, "targetPort": "a" * 16}), says=NO_LETTER.format("a" * 16, "must be no more than 15 bytes"))]),
    ("6 targetPort: other letters", "single", [post(ports({"port": 1, "targetPort": "a_b"}), says=NO_LETTER.format("a_b", "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"))]),
    ("6 targetPort: no letter", "single", [post(ports({"port": 1, "targetPort": "8080"}), says=NO_LETTER.format("8080", "must contain at least one letter (a-z)"))]),
    ("6 targetPort: two hyphens", "single", [post(ports({"port": 1, "targetPort": "a--b"}), says=NO_LETTER.format("a--b", "must not contain consecutive hyphens"))]),
    ("6 targetPort: hyphen at the end", "single", [post(ports({"port": 1, "targetPort": "a-"}), says=NO_LETTER.format("a-", "must not begin or end with a hyphen"))]),
    ("6 appProtocol: a qualified name", "single", [post(ports({"port": 1, "appProtocol": "a b"}), says=f'spec.ports[0].appProtocol: Invalid value: "a b": name part {QUALIFIED}')]),
    ("6 ports: one port twice", "single", [post(ports(named("a", 80), named("b", 80)), says='spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}')]),
    ("6 nodePort: not for ClusterIP", "single", [post(ports({"port": 80, "nodePort": 30001}), says="spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'")]),
    ("6 nodePort: duplicate", "single", [post({**NODE_PORT, **ports(named("a", 80, nodePort=30001), named("b", 81, nodePort=30001))}, says="spec.ports[1].nodePort: Duplicate value: 30001")]),
    ("6 clusterIP None: not for LoadBalancer", "single", [post({**LB, **HEADLESS}, says="spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services")]),
    ("6 clusterIP None: not for NodePort", "single", [post({**NODE_PORT, **HEADLESS}, says="spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services")]),
    ("6 clusterIP: no address", "single", [post({"clusterIP": "web"}, says=f'spec.clusterIPs[0]: Invalid value: "web": {NO_IP}')]),
    ("6 clusterIP: leading zeros", "single", [post({"clusterIP": "10.096.0.70"}, says='spec.clusterIPs[0]: Invalid value: "10.096.0.70": must not have leading 0s')]),
    ("6 clusterIP: IPv4-mapped", "single", [post({"clusterIP": "::ffff:10.96.0.70"}, says='spec.clusterIPs[0]: Invalid value: "::ffff:10.96.0.70": must not be an IPv4-mapped IPv6 address')]),
    ("6 ExternalName: no address", "single", [post({**EXTERNAL, "clusterIP": "10.96.0.70"}, says=f"spec.clusterIPs: {NOT_EXTERNAL}")]),
    ("6 ExternalName: no families", "single", [post({**EXTERNAL, "ipFamilies": [V4]}, says=f"spec.ipFamilies: {NOT_EXTERNAL}")]),
    ("6 ExternalName: no policy", "single", [post({**EXTERNAL, "ipFamilyPolicy": "SingleStack"}, says=f"spec.ipFamilyPolicy: {NOT_EXTERNAL}")]),
    ("6 ExternalName: a name", "single", [post({**EXTERNAL, "externalName": ""}, says="spec.externalName: Required value")]),
    ("6 ExternalName: a subdomain", "single", [post({**EXTERNAL, "externalName": "a_b"}, says=f'spec.externalName: Invalid value: "a_b": {SUBDOMAIN}')]),
    ("6 ExternalName: one dot at the end", "single", [post({**EXTERNAL, "externalName": "a.example."}, shows={"spec.externalName": "a.example."})]),
    ("6 selector: label syntax", "single", [post({"selector": {"a b": "c"}}, says=f'spec.selector: Invalid value: "a b": name part {QUALIFIED}')]),
    ("6 sessionAffinity: unsupported", "single", [post({"sessionAffinity": "Cookie"}, says='spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"')]),
    ("6 timeoutSeconds: 0", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}, says=f"{TIMEOUT}: Invalid value: 0: must be greater than 0 and less than 86400")]),
    ("6 timeoutSeconds: 86400 is allowed, 86401 is not", "single", [post({**CLIENT_IP, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}), patch({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}, says=f"{TIMEOUT}: Invalid value: 86401: must be greater than 0 and less than 86400")]),
    ("6 externalIPs: no address", "single", [post({"externalIPs": ["x"]}, says=f'spec.externalIPs[0]: Invalid value: "x": {NO_IP}')]),
    ("6 externalIPs: unspecified", "single", [post({"externalIPs": ["0.0.0.0"]}, says='spec.externalIPs[0]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)')]),
    ("6 externalIPs: loopback", "single", [post({"externalIPs": ["::1"]}, says='spec.externalIPs[0]: Invalid value: "::1": may not be in the loopback range (127.0.0.0/8, ::1/128)')]),
    ("6 externalIPs: link-local", "single", [post({"externalIPs": ["169.254.1.1"]}, says='spec.externalIPs[0]: Invalid value: "169.254.1.1": may not be in the link-local range (169.254.0.0/16, fe80::/10)')]),
    ("6 externalIPs: link-local multicast", "single", [post({"externalIPs": ["224.0.0.1"]}, says='spec.externalIPs[0]: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)')]),
    ("6 type: unsupported", "single", [post({"type": "Balancer"}, says=UNSUPPORTED_TYPE)]),
    ("6 source ranges: only for LoadBalancer", "single", [post({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, says=f"spec.LoadBalancerSourceRanges: {ONLY_LB}")]),
    ("6 source ranges: bad", "single", [post({**LB, "loadBalancerSourceRanges": ["10.0.0.0/8", "x"]}, says=f'spec.LoadBalancerSourceRanges[1]: Invalid value: "x": {NO_CIDR}')]),
    ("6 source ranges: host bits", "single", [post({**LB, "loadBalancerSourceRanges": ["10.0.0.1/8"]}, says='spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length')]),
    ("6 source ranges: space around is tolerated", "single", [post({**LB, "loadBalancerSourceRanges": [" 10.0.0.0/8\t"]})]),
    ("6 source ranges: the annotation when there is no field", "single", [post(LB, annotations={SOURCE_RANGES: "10.0.0.0/8, x"}, says=f'metadata.annotations[{SOURCE_RANGES}]: Invalid value: "x": {NO_CIDR}'), post({**LB, "loadBalancerSourceRanges": ["::/0"]}, annotations={SOURCE_RANGES: "x"})]),
    ("6 source ranges: the annotation only for LoadBalancer", "single", [post(annotations={SOURCE_RANGES: "10.0.0.0/8"}, says=f"metadata.annotations[{SOURCE_RANGES}]: {ONLY_LB}")]),
    ("6 allocateLoadBalancerNodePorts: only for LoadBalancer", "single", [post({"allocateLoadBalancerNodePorts": False}, says=f"spec.allocateLoadBalancerNodePorts: {ONLY_LB}")]),
    ("6 loadBalancerClass: only for LoadBalancer", "single", [post({"loadBalancerClass": "a"}, says=f"spec.loadBalancerClass: {ONLY_LB}")]),
    ("6 loadBalancerClass: a qualified name", "single", [post({**LB, "loadBalancerClass": "a b"}, says=f'spec.loadBalancerClass: Invalid value: "a b": name part {QUALIFIED}')]),
    ("6 externalTrafficPolicy: not from outside", "single", [post({"externalTrafficPolicy": "Local"}, says='spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services')]),
    ("6 externalTrafficPolicy: unsupported", "single", [post({**NODE_PORT, "externalTrafficPolicy": "x"}, says='spec.externalTrafficPolicy: Unsupported value: "x": supported values: "Cluster", "Local"')]),
    ("6 healthCheckNodePort: not without Local", "single", [post({**LB, "healthCheckNodePort": 30001}, says=f"spec.healthCheckNodePort: Invalid value: 30001: {HEALTH_ONLY}")]),
    ("6 internalTrafficPolicy: unsupported", "single", [post({"internalTrafficPolicy": "x"}, says='spec.internalTrafficPolicy: Unsupported value: "x": supported values: "Cluster", "Local"')]),
    ("6 trafficDistribution: unsupported", "single", [post({"trafficDistribution": "x"}, says='spec.trafficDistribution: Unsupported value: "x": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"')]),
    ("6 trafficDistribution: the three", "single", [post({"trafficDistribution": "PreferSameZone"}), patch({"trafficDistribution": "PreferSameNode"}), patch({"trafficDistribution": "PreferClose"}, warns='spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')]),
    ("6 topology annotations: must agree", "single", [post(annotations={MODE: "Auto", HINTS: "auto"}, says=f'metadata.annotations[{MODE}]: Invalid value: "Auto": must match annotations[{HINTS}] when both are specified')]),
    ("6 ingress: only for LoadBalancer", "single", [post(), status(VIP, says="status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'")]),
    ("6 ingress: ipMode without ip", "single", [post(LB), status({"loadBalancer": {"ingress": [{"hostname": "a", "ipMode": "VIP"}]}}, says="status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set")]),
    ("6 ingress: ipMode unsupported", "single", [post(LB), status({"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "x"}]}}, says='status.loadBalancer.ingress[0].ipMode: Unsupported value: "x": supported values: "Proxy", "VIP"')]),
    ("6 ingress: ip", "single", [post(LB), status({"loadBalancer": {"ingress": [{"ip": "x"}]}}, says=f'status.loadBalancer.ingress[0].ip: Invalid value: "x": {NO_IP}')]),
    ("6 ingress: hostname is a subdomain", "single", [post(LB), status({"loadBalancer": {"ingress": [{"hostname": "a_b"}]}}, says=f'status.loadBalancer.ingress[0].hostname: Invalid value: "a_b": {SUBDOMAIN}')]),
    ("6 ingress: hostname is no address", "single", [post(LB), status({"loadBalancer": {"ingress": [{"hostname": "198.51.100.1"}]}}, says='status.loadBalancer.ingress[0].hostname: Invalid value: "198.51.100.1": must be a DNS name, not an IP address')]),
    ("6 errors come in Kubernetes' order", "single", [post({"type": "x", "externalIPs": ["x"], "selector": {"a": "b c"}, **ports(named("A", 0, targetPort=1, protocol="x"))}, says=[
        f'spec.ports[0].name: Invalid value: "A": {LABEL}', f"spec.ports[0].port: Invalid value: 0: {PORT_RANGE}",
        'spec.ports[0].protocol: Unsupported value: "x": supported values: "SCTP", "TCP", "UDP"',
        "spec.selector: Invalid value: \"b c\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        f'spec.externalIPs[0]: Invalid value: "x": {NO_IP}', UNSUPPORTED_TYPE.replace("Balancer\": supp", "x\": supp"),
    ])]),
]  # fmt: skip

UPDATES: list[Row] = [
    # ----- 7. updates
    ("7 the primary address stays", "single", [post(), patch({"clusterIP": "10.96.0.70"}, says=f'spec.clusterIPs[0]: Invalid value: ["10.96.0.70"]: {ONCE}')]),
    ("7 the primary address stays, also for a PUT that names another", "single", [post(), put({"clusterIP": "10.96.0.70"}, says=f'spec.clusterIPs[0]: Invalid value: ["10.96.0.70"]: {ONCE}')]),
    ("7 that is said also when the other address is taken", "single", [post(name="b", spec={"clusterIP": "10.96.0.70"}), post(), put({"clusterIP": "10.96.0.70"}, says=f'spec.clusterIPs[0]: Invalid value: ["10.96.0.70"]: {ONCE}'), get(name="b", shows={"spec.clusterIP": "10.96.0.70"})]),
    ("7 an omitted address stays", "single", [post(shows={"spec.clusterIP": Is("ip")}), put(shows={"spec.clusterIP": Is("ip")})]),
    ("7 headless stays headless", "single", [post(HEADLESS), put({**HEADLESS, "clusterIP": "10.96.0.70"}, says=f'spec.clusterIPs[0]: Invalid value: ["10.96.0.70"]: {ONCE}')]),
    ("7 nothing becomes headless", "single", [post(), put(HEADLESS, says=f'spec.clusterIPs[0]: Invalid value: ["None"]: {ONCE}')]),
    ("7 headless by way of ExternalName", "single", [post(), put(EXTERNAL), put(HEADLESS, shows={"spec.clusterIPs": ["None"]})]),
    ("7 headless may change its families", "dual", [post(HEADLESS, shows={"spec.ipFamilies": [V4]}), patch({"ipFamilies": [V6]}, shows={"spec.ipFamilies": [V6]}), patch({"ipFamilyPolicy": "RequireDualStack"}, shows={"spec.ipFamilies": [V6, V4]})]),
    ("7 the primary family stays", "dual", [post({**REQUIRE, **BOTH_70}), put({**REQUIRE, "clusterIP": "fd00:10:96::70", "clusterIPs": ["fd00:10:96::70", "10.96.0.70"], "ipFamilies": [V6, V4]}, says=[
        *[f'spec.clusterIPs[{index}]: Invalid value: ["fd00:10:96::70","10.96.0.70"]: {ONCE}' for index in (0, 1)],
        *[f'spec.ipFamilies[0]: Invalid value: ["IPv6","IPv4"]: {ONCE}'] * 2,
    ])]),
    ("7 families that do not fit the addresses that stay", "dual", [post({**REQUIRE, **BOTH_70}), patch({"ipFamilies": [V6, V4]}, says=[
        'spec.clusterIPs[0]: Invalid value: "10.96.0.70": expected an IPv6 value as indicated by `ipFamilies[0]`',
        'spec.clusterIPs[1]: Invalid value: "fd00:10:96::70": expected an IPv4 value as indicated by `ipFamilies[1]`',
    ])]),
    ("7 one family becomes two", "dual", [post(shows={"spec.clusterIP": Is("ip")}), patch(REQUIRE, shows={**ALL_FAMILIES, "spec.clusterIPs.0": Is("ip"), "spec.clusterIPs.1": Within("fd00:10:96::", "fd00:10:96::ffff")})]),
    ("7 one family becomes two, with the address that is named", "dual", [post({"clusterIP": "10.96.0.70"}), patch({**REQUIRE, "clusterIPs": ["10.96.0.70", "fd00:10:96::70"]}, shows={**ALL_FAMILIES, "spec.clusterIPs": ["10.96.0.70", "fd00:10:96::70"]}), post({"clusterIP": "fd00:10:96::70"}, name="b", says='spec.clusterIPs: Invalid value: ["fd00:10:96::70"]: failed to allocate IP fd00:10:96::70: provided IP is already allocated')]),
    ("7 two families become one, and the second address is free", "dual", [post({**REQUIRE, **BOTH_70}), patch({"ipFamilyPolicy": "SingleStack"}, shows={"spec.clusterIPs": ["10.96.0.70"], "spec.ipFamilies": [V4]}), post({"clusterIP": "fd00:10:96::70"}, name="b")]),
    ("7 ClusterIP becomes NodePort", "single", [post(), patch(NODE_PORT, shows={"spec.ports.0.nodePort": Within(30086, 32767), "spec.externalTrafficPolicy": "Cluster"})]),
    ("7 ClusterIP becomes LoadBalancer", "single", [post(), patch(LB, shows={"spec.ports.0.nodePort": Within(30086, 32767), "spec.allocateLoadBalancerNodePorts": True})]),
    ("7 NodePort becomes ClusterIP: stale node ports are wiped and free", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}), edit({"type": "ClusterIP"}, shows={"spec.ports.0.nodePort": GONE, "spec.externalTrafficPolicy": GONE}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b")]),
    ("7 NodePort becomes ClusterIP: other node ports are refused", "single", [post(NODE_PORT), edit({"type": "ClusterIP", **ports({"port": 80, "nodePort": 30002})}, says="spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'")]),
    ("7 LoadBalancer becomes ExternalName: node ports are wiped and free", "single", [post({**LB, **ports({"port": 80, "nodePort": 30001})}), edit(TO_EXTERNAL, shows={"spec.ports.0.nodePort": GONE}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b")]),
    ("7 any becomes ExternalName: addresses and families are wiped and free", "dual", [post({**REQUIRE, "clusterIP": "10.96.0.70"}), edit(TO_EXTERNAL, shows=NO_FAMILY_FIELDS), post({"clusterIP": "10.96.0.70"}, name="b")]),
    ("7 ExternalName with another address is refused", "single", [post(), edit({**TO_EXTERNAL, "clusterIP": "10.96.0.70", "clusterIPs": ["10.96.0.70"]}, says=f"spec.clusterIPs: {NOT_EXTERNAL}")]),
    ("7 ExternalName becomes another: all is allocated afresh", "single", [post(shows={"spec.clusterIP": Is("ip")}), put(EXTERNAL), post(name="b"), put(NODE_PORT, shows={"spec.clusterIP": Other("ip"), "spec.ipFamilies": [V4], "spec.ports.0.nodePort": Within(30086, 32767), "spec.internalTrafficPolicy": "Cluster"})]),
    ("7 LoadBalancer becomes another: status, class and allocation flag go", "single", [post({**LB, "loadBalancerClass": "a"}), status(VIP), edit({"type": "NodePort"}, shows={"status": {"loadBalancer": {}}, "spec.loadBalancerClass": GONE, "spec.allocateLoadBalancerNodePorts": GONE})]),
    ("7 LoadBalancer becomes another: a changed class is refused", "single", [post({**LB, "loadBalancerClass": "a"}), edit({"type": "NodePort", "loadBalancerClass": "b"}, says=f"spec.loadBalancerClass: {ONLY_LB}")]),
    ("7 no longer from outside: the policy goes", "single", [post({**NODE_PORT, "externalTrafficPolicy": "Local"}), edit({"type": "ClusterIP"}, shows={"spec.externalTrafficPolicy": GONE})]),
    ("7 no longer from outside: a changed policy is refused", "single", [post(NODE_PORT), edit({"type": "ClusterIP", "externalTrafficPolicy": "Local"}, says='spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services')]),
    ("7 no longer from outside: without external IPs", "single", [post({"externalIPs": ["203.0.113.9"]}, warns="spec.externalIPs is deprecated and may no longer be implemented in some clusters"), edit({"externalIPs": None}, shows={"spec.externalTrafficPolicy": GONE})]),
    ("7 Local becomes Cluster: healthCheckNodePort is wiped and free", "single", [post({**LOCAL_LB, "healthCheckNodePort": 30001}), edit({"externalTrafficPolicy": "Cluster"}, shows={"spec.healthCheckNodePort": GONE}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b")]),
    ("7 Local becomes Cluster: a changed healthCheckNodePort is refused", "single", [post(LOCAL_LB), edit({"externalTrafficPolicy": "Cluster", "healthCheckNodePort": 30002}, says=f"spec.healthCheckNodePort: Invalid value: 30002: {HEALTH_ONLY}")]),
    ("7 Cluster becomes Local: healthCheckNodePort is allocated", "single", [post(LB), patch({"externalTrafficPolicy": "Local"}, shows={"spec.healthCheckNodePort": Within(30086, 32767)})]),
    ("7 Cluster becomes Local: with the healthCheckNodePort that is named", "single", [post(LB), patch({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30003}, shows={"spec.healthCheckNodePort": 30003})]),
    ("7 healthCheckNodePort is immutable while needed", "single", [post(LOCAL_LB, shows={"spec.healthCheckNodePort": Is("hc")}), patch({"healthCheckNodePort": 30002}, says="spec.healthCheckNodePort: Forbidden: field is immutable"), patch({"healthCheckNodePort": 29999}, says="spec.healthCheckNodePort: Forbidden: field is immutable"), put({**LOCAL_LB, "healthCheckNodePort": 0}, shows={"spec.healthCheckNodePort": Is("hc")})]),
    ("7 loadBalancerClass stays", "single", [post({**LB, "loadBalancerClass": "a"}), patch({"loadBalancerClass": "b"}, says=f'spec.loadBalancerClass: Invalid value: "b": {ONCE}'), put(LB, says=f'spec.loadBalancerClass: Invalid value: "null": {ONCE}')]),
    ("7 node ports remain when a LoadBalancer asks for none", "single", [post(LB, shows=noted("a")), put({**LB, "allocateLoadBalancerNodePorts": False}, shows=noted("a"))]),
    ("7 a changed node port: the old one is free", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}), patch(ports({"port": 80, "nodePort": 30002}), shows={"spec.ports.0.nodePort": 30002}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b"), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30002})}, name="c", says=f"spec.ports[0].nodePort: Invalid value: 30002: {TAKEN_PORT}")]),
    ("7 a renamed port gets another node port", "single", [post({**NODE_PORT, **ports(named("a", 80))}, shows=noted("old")), put({**NODE_PORT, **ports(named("b", 80))}, shows={"spec.ports.0.nodePort": Other("old")})]),
    ("7 selector, ports, targetPort, affinity and policies change freely", "single", [post(NODE_PORT), edit({"selector": {"a": "b"}, "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", **ports(named("x", 81, targetPort="web"))}, shows={"spec.selector": {"a": "b"}, "spec.ports.0.targetPort": "web", "spec.internalTrafficPolicy": "Local", "spec.externalTrafficPolicy": "Local", TIMEOUT: 10800})]),
]  # fmt: skip

TAKEN_70 = (
    'spec.clusterIPs: Invalid value: ["10.96.0.70"]: failed to allocate IP 10.96.0.70: provided IP is already allocated'
)
ALLOCATION: list[Row] = [
    # ----- 8. allocation
    ("8 dynamic band of addresses", "single", [post(name=f"s{number}", shows={"spec.clusterIP": Within("10.96.1.1", "10.111.255.254")}) for number in range(8)]),
    ("8 static band of addresses may be chosen", "single", [post({"clusterIP": "10.96.0.1"}), post({"clusterIP": "10.111.255.254"}, name="b")]),
    ("8 addresses: the lower band when the upper is full", "tiny", [*[post(name=f"s{number}", shows={"spec.clusterIP": Within("10.96.0.17", "10.96.0.30")}) for number in range(14)], post(shows={"spec.clusterIP": Within("10.96.0.1", "10.96.0.16")})]),
    ("8 addresses: full", "tiny", [*[post(name=f"s{number}") for number in range(30)], post(says="Internal error occurred: failed to allocate a serviceIP: range is full", code=500)]),
    ("8 dynamic band of node ports", "single", [post(NODE_PORT, name=f"s{number}", shows={"spec.ports.0.nodePort": Within(30086, 32767)}) for number in range(8)]),
    ("8 node ports: the lower band when the upper is full", "tiny", [*[post(NODE_PORT, name=f"s{number}", shows={"spec.ports.0.nodePort": Within(30016, 30019)}) for number in range(4)], post(NODE_PORT, shows={"spec.ports.0.nodePort": Within(30000, 30015)})]),
    ("8 node ports: full", "tiny", [post({**NODE_PORT, **ports(*[named(f"p{number}", number) for number in range(1, 21)])}), post(NODE_PORT, name="b", says="Internal error occurred: failed to allocate a nodePort: range is full", code=500)]),
    ("8 node ports: the ends of the range", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30000})}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 32767})}, name="b"), post({**NODE_PORT, **ports({"port": 80, "nodePort": 32768})}, name="c", says=f"spec.ports[0].nodePort: Invalid value: 32768: {NODE_RANGE}")]),
    ("8 one space for all protocols", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}), post({**NODE_PORT, **ports({"port": 80, "protocol": "UDP", "nodePort": 30001})}, name="b", says=f"spec.ports[0].nodePort: Invalid value: 30001: {TAKEN_PORT}")]),
    ("8 one space with health check ports", "single", [post({**LOCAL_LB, "healthCheckNodePort": 30001}), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b", says=f"spec.ports[0].nodePort: Invalid value: 30001: {TAKEN_PORT}")]),
    ("8 one space with the Service's own health check port", "single", [post({**LOCAL_LB, "healthCheckNodePort": 30001}), patch(ports({"port": 80, "nodePort": 30001}), says=f"spec.ports[0].nodePort: Invalid value: 30001: {TAKEN_PORT}")]),
    ("8 default/kubernetes' address is the range's first", "single", [post({"clusterIP": "10.96.0.1"}, shows={"spec.clusterIP": "10.96.0.1"})]),
    ("8 outside every range", "single", [post({"clusterIP": "10.200.0.1"}, says=f'spec.clusterIPs: Invalid value: ["10.200.0.1"]: failed to allocate IP 10.200.0.1: {OTHER_RANGE}')]),
    ("8 the network's address", "single", [post({"clusterIP": "10.96.0.0"}, says=f'spec.clusterIPs: Invalid value: ["10.96.0.0"]: failed to allocate IP 10.96.0.0: {OTHER_RANGE}')]),
    ("8 the broadcast address", "single", [post({"clusterIP": "10.111.255.255"}, says=f'spec.clusterIPs: Invalid value: ["10.111.255.255"]: failed to allocate IP 10.111.255.255: {OTHER_RANGE}')]),
    ("8 IPv6: only the first is left out", "dual", [post({"clusterIP": "fd00:10:96::"}, says=f'spec.clusterIPs: Invalid value: ["fd00:10:96::"]: failed to allocate IP fd00:10:96::: {OTHER_RANGE}'), post({"clusterIP": "fd00:10:96::ffff"})]),
    ("8 a taken address", "single", [post({"clusterIP": "10.96.0.70"}), post({"clusterIP": "10.96.0.70"}, name="b", says=TAKEN_70)]),
    ("8 a taken address in another spelling", "dual", [post({"clusterIP": "fd00:10:96::70"}), post({"clusterIP": "fd00:10:96:0:0:0:0:70"}, name="b", says='spec.clusterIPs: Invalid value: ["fd00:10:96:0:0:0:0:70"]: failed to allocate IP fd00:10:96:0:0:0:0:70: provided IP is already allocated')]),
    ("8 health check port out of range: 500", "single", [post({**LOCAL_LB, "healthCheckNodePort": 29999}, says=f"Internal error occurred: failed to allocate requested HealthCheck NodePort 29999: {NODE_RANGE}", code=500)]),
    ("8 health check port taken: 500", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}), post({**LOCAL_LB, "healthCheckNodePort": 30001}, name="b", says=f"Internal error occurred: failed to allocate requested HealthCheck NodePort 30001: {TAKEN_PORT}", code=500)]),
    ("8 health check port taken by the Service itself: 500", "single", [post({**LOCAL_LB, "healthCheckNodePort": 30001, **ports({"port": 80, "nodePort": 30001})}, says=f"Internal error occurred: failed to allocate requested HealthCheck NodePort 30001: {TAKEN_PORT}", code=500)]),
    ("8 create: ports of one number share a node port", "single", [post({**NODE_PORT, **ports(named("a", 53, protocol="UDP"), named("b", 53), named("c", 9153))}, shows={**noted("dns", "dns"), "spec.ports.2.nodePort": Other("dns")})]),
    ("8 create: also one that the later port asks for", "single", [post({**NODE_PORT, **ports(named("a", 53, protocol="UDP"), named("b", 53, nodePort=30053))}, shows={"spec.ports.0.nodePort": 30053, "spec.ports.1.nodePort": 30053})]),
    ("8 update: they do not", "single", [post({**NODE_PORT, **ports(named("x", 1))}), put({**NODE_PORT, **ports(named("a", 53, protocol="UDP"), named("b", 53))}, shows={"spec.ports.0.nodePort": Is("a"), "spec.ports.1.nodePort": Other("a")})]),
    ("8 a failed update frees and takes nothing", "single", [post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}), patch({"sessionAffinity": "x", **ports({"port": 80, "nodePort": 30002})}, says='spec.sessionAffinity: Unsupported value: "x": supported values: "ClientIP", "None"'), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30001})}, name="b", says=f"spec.ports[0].nodePort: Invalid value: 30001: {TAKEN_PORT}"), post({**NODE_PORT, **ports({"port": 80, "nodePort": 30002})}, name="c")]),
    ("8 a deleted Service frees everything", "single", [post({**NODE_PORT, "clusterIP": "10.96.0.70", **ports({"port": 80, "nodePort": 30001})}), delete(), post({**NODE_PORT, "clusterIP": "10.96.0.70", **ports({"port": 80, "nodePort": 30001})})]),
]  # fmt: skip

DEPRECATED = "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
WARNINGS: list[Row] = [
    # ----- 10. warnings
    ("10 headless with loadBalancerIP", "single", [post({**HEADLESS, "loadBalancerIP": "198.51.100.1"}, warns="spec.loadBalancerIP is ignored for headless services")]),
    ("10 headless with externalIPs", "single", [post({**HEADLESS, "externalIPs": ["203.0.113.9"]}, warns="spec.externalIPs is ignored for headless services")]),
    ("10 headless with sessionAffinity", "single", [post({**HEADLESS, **CLIENT_IP}, warns="spec.SessionAffinity is ignored for headless services")]),
    ("10 externalIPs", "single", [post({"externalIPs": ["203.0.113.9"]}, warns=DEPRECATED)]),
    ("10 externalIPs of an ExternalName", "single", [post({**EXTERNAL, "externalIPs": ["203.0.113.9"]}, warns='spec.externalIPs is ignored when spec.type is "ExternalName"')]),
    ("10 externalName of another type", "single", [post({"externalName": "a.example"}, warns='spec.externalName is ignored when spec.type is not "ExternalName"')]),
    ("10 topology-aware-hints", "single", [post(annotations={HINTS: "auto"}, warns=f"annotation {HINTS} is deprecated, please use {MODE} instead")]),
    ("10 PreferClose", "single", [post({"trafficDistribution": "PreferClose"}, warns='spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')]),
    ("10 clusterIP not canonical", "dual", [post({"clusterIP": "fd00:10:96:0::70"}, warns='spec.clusterIPs[0]: IPv6 address "fd00:10:96:0::70" should be in RFC 5952 canonical format ("fd00:10:96::70")')]),
    ("10 externalIPs not canonical", "single", [post({"externalIPs": ["2001:DB8::1"]}, warns=['spec.externalIPs[0]: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")', DEPRECATED])]),
    ("10 source range not canonical", "single", [post({**LB, "loadBalancerSourceRanges": ["2001:DB8::/32"]}, warns='spec.loadBalancerSourceRanges[0]: IPv6 CIDR value "2001:DB8::/32" should be in RFC 5952 canonical format ("2001:db8::/32")')]),
    ("10 on update too, and in an apply", "single", [apply(), patch({"trafficDistribution": "PreferClose"}, warns='spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"'), apply({"externalIPs": ["203.0.113.9"]}, warns=[DEPRECATED, 'spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"'])]),
]  # fmt: skip

ROWS = [*FIELDS, *FAMILIES, *VALIDATION, *UPDATES, *ALLOCATION, *WARNINGS]


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One API for each kind of cluster."""
    running = {name: Api(tmp_path_factory.mktemp("api"), settings) for name, settings in CLUSTERS.items()}
    yield {name: api.socket for name, api in running.items()}
    for api in running.values():
        api.client.close()
        api.stop()


@pytest.fixture
def probe(apis: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Probe]:
    made = Probe(apis[getattr(request, "param", "single")])
    yield made
    made.clear()


@pytest.mark.parametrize(
    ("probe", "steps"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS], indirect=["probe"]
)
def test_row(probe: Probe, steps: list[Step]) -> None:
    for one in steps:
        probe.take(one)


def test_rows_have_names_of_their_own() -> None:
    names = [name for name, _, _ in ROWS]
    assert len(names) == len(set(names))


def body(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def test_the_envelope_of_one_error(probe: Probe) -> None:
    code, answer, _ = probe.call("POST", SERVICES, body(type="NodePort", ports=[{"port": 80, "nodePort": 29999}]))
    assert (code, answer) == (
        422,
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": f'Service "web" is invalid: spec.ports[0].nodePort: Invalid value: 29999: {NODE_RANGE}',
            "reason": "Invalid",
            "details": {
                "name": "web",
                "kind": "Service",
                "causes": [
                    {
                        "reason": "FieldValueInvalid",
                        "message": f"Invalid value: 29999: {NODE_RANGE}",
                        "field": "spec.ports[0].nodePort",
                    }
                ],
            },
            "code": 422,
        },
    )


def test_the_message_of_several_errors_names_each_once(probe: Probe) -> None:
    spec = {"sessionAffinity": "x", "selector": {"a": "b c", "d": "b c"}}
    _, answer, _ = probe.call("POST", SERVICES, body(**spec))
    head, selector, affinity = answer["message"].partition("[")[0], "spec.selector: ", "spec.sessionAffinity: "
    assert head == 'Service "web" is invalid: '
    assert answer["message"].endswith("]")
    assert (answer["message"].count(selector), answer["message"].count(affinity)) == (1, 1)
    assert [cause["field"] for cause in answer["details"]["causes"]] == ["spec.selector"] * 2 + ["spec.sessionAffinity"]


def test_the_reasons_of_causes(probe: Probe) -> None:
    cases = {
        "FieldValueRequired": {"ports": []},
        "FieldValueNotSupported": {"sessionAffinity": "x"},
        "FieldValueDuplicate": {"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]},
        "FieldValueForbidden": {"loadBalancerClass": "a"},
        "FieldValueInvalid": {"externalIPs": ["x"]},
    }
    for reason, spec in cases.items():
        _, answer, _ = probe.call("POST", SERVICES, body(**spec))
        assert [cause["reason"] for cause in answer["details"]["causes"]] == [reason]


def test_create_does_not_take_a_status(probe: Probe) -> None:
    _, answer, _ = probe.call("POST", SERVICES, {**body(type="LoadBalancer"), "status": VIP})
    assert answer["status"] == {"loadBalancer": {}}


def test_ranges_can_be_added(probe: Probe) -> None:
    path = "/apis/networking.k8s.io/v1/servicecidrs"
    code, answer, _ = probe.call("POST", path, {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}})
    assert code == 201, answer
    try:
        code, answer, _ = probe.call("POST", SERVICES, body(clusterIP="10.200.0.9"))
        assert (code, answer["spec"]["clusterIP"]) == (201, "10.200.0.9")
    finally:
        probe.clear()
        probe.call("DELETE", f"{path}/more")
    assert probe.call("POST", SERVICES, body(clusterIP="10.200.0.9"))[0] == 422


SELECTED = [
    ("labelSelector=%21service.kubernetes.io/service-proxy-name", ["headless", "plain"]),
    ("fieldSelector=spec.clusterIP%21%3DNone", ["other-proxy", "plain"]),
    ("labelSelector=%21service.kubernetes.io/service-proxy-name&fieldSelector=spec.clusterIP%21%3DNone", ["plain"]),
]


@pytest.mark.parametrize(("query", "names"), SELECTED)
def test_what_the_selectors_of_kube_proxy_leave_out(probe: Probe, query: str, names: list[str]) -> None:
    label = {"labels": {"service.kubernetes.io/service-proxy-name": ""}}
    for one in (post(name="plain"), post(name="other-proxy", **label), post(HEADLESS, name="headless")):
        probe.take(one)
    assert [item["metadata"]["name"] for item in probe.call("GET", f"{SERVICES}?{query}")[1]["items"]] == names
