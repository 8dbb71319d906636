"""Formats, field errors, defaults, selectors and patches: tables of what Kubernetes says and does."""

import copy
from typing import Any

import pytest

from kproxy.api import formats
from kproxy.api.defaults import default
from kproxy.api.field_errors import (
    FieldError,
    duplicate,
    forbidden,
    invalid,
    invalid_message,
    not_supported,
    required,
    too_long,
    too_many,
)
from kproxy.api.kinds import EVENT, NODE, POD, SERVICE, Kind
from kproxy.api.labels import matches, parse_field_selector, parse_selector
from kproxy.api.merge_patch import difference, merge_patch
from kproxy.api.selectable_fields import selectable
from kproxy.api.types import LabelSelector, LabelSelectorRequirement, Object
from kproxy.errors import UserError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (required("spec.ports"), "spec.ports: Required value"),
        (required("a", "must be set"), "a: Required value: must be set"),
        (invalid("a", 0, "no"), "a: Invalid value: 0: no"),
        (invalid("a", True, "no"), "a: Invalid value: true: no"),
        (invalid("a", 'x"\n\\é\0\u200b', "no"), 'a: Invalid value: "x\\"\\n\\\\é\\x00\\u200b": no'),
        (invalid("a", ["b", 1], "no"), 'a: Invalid value: ["b",1]: no'),
        (invalid("a", {"b": "<&>"}, "no"), 'a: Invalid value: {"b":"\\u003c\\u0026\\u003e"}: no'),
        (invalid("a", None, "no"), 'a: Invalid value: "null": no'),
        (invalid("a", 10**30, "no"), "a: Invalid value: 1000000000000000000000000000000: no"),
        (
            not_supported("a", "local", ("Cluster", "Local")),
            'a: Unsupported value: "local": supported values: "Cluster", "Local"',
        ),
        (duplicate("a", 80), "a: Duplicate value: 80"),
        (forbidden("a", "may not be used"), "a: Forbidden: may not be used"),
        (too_long("a", 5), "a: Too long: may not be more than 5 bytes"),
        (too_many("a", 6, 5), "a: Too many: 6: must have at most 5 items"),
    ],
)
def test_errors_are_worded_as_kubernetes_words_them(error: FieldError, message: str) -> None:
    assert error.message() == message


def test_a_cause_leaves_the_field_out_of_its_message() -> None:
    cause = {"reason": "FieldValueInvalid", "message": "Invalid value: 0: no", "field": "spec.ports[0].port"}
    assert invalid("spec.ports[0].port", 0, "no").cause() == cause


def test_one_error_stands_alone_and_several_in_brackets_without_repeats() -> None:
    first, second = required("a"), required("b")
    assert invalid_message("Service", "web", [first]) == 'Service "web" is invalid: a: Required value'
    both = 'Service "web" is invalid: [a: Required value, b: Required value]'
    assert invalid_message("Service", "web", [first, second, first]) == both


NOTHING: list[str] = []


@pytest.mark.parametrize(
    ("check", "value", "complaint"),
    [
        (formats.dns_label, "a-1", None),
        (formats.dns_label, "1a", None),
        (formats.dns_label, "a" * 63, None),
        (formats.dns_label, "a" * 64, "must be no more than 63 bytes"),
        (formats.dns_label, "a.b", "must not contain dots"),
        (formats.dns_label, "", "a lowercase RFC 1123 label must consist of"),
        (formats.dns_label, "a\n", "a lowercase RFC 1123 label must consist of"),
        (formats.dns_subdomain, "a.b-c", None),
        (formats.dns_subdomain, "a..b", "a lowercase RFC 1123 subdomain must consist of"),
        (formats.qualified_name, "a.b/C_d", None),
        (formats.qualified_name, "a/b/c", "a qualified name must consist of"),
        (formats.qualified_name, "/b", "prefix part must be non-empty"),
        (formats.qualified_name, "A/b", "prefix part a lowercase RFC 1123 subdomain"),
        (formats.qualified_name, "a/", "name part must be non-empty"),
        (formats.label_value, "", None),
        (formats.label_value, "A_b.1", None),
        (formats.label_value, "-a", "a valid label must be an empty string or consist of"),
        (formats.port_name, "http-2", None),
        (formats.port_name, "a" * 16, "must be no more than 15 bytes"),
        (formats.port_name, "80", "must contain at least one letter (a-z)"),
        (formats.port_name, "a--b", "must not contain consecutive hyphens"),
        (formats.port_name, "a-", "must not begin or end with a hyphen"),
        (formats.ip_address, "10.0.0.1", None),
        (formats.ip_address, "fd00::1", None),
        (formats.ip_address, "10.0.0.01", "must not have leading 0s"),
        (formats.ip_address, "::ffff:10.0.0.1", "must not be an IPv4-mapped IPv6 address"),
        (formats.ip_address, "fe80::1%eth0", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        (formats.ip_address, "10.0.0", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        (formats.ip_address, "", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        (formats.ordinary_ip, "203.0.113.1", None),
        (formats.ordinary_ip, "239.0.0.1", None),
        (formats.ordinary_ip, "::", "may not be unspecified (::)"),
        (formats.ordinary_ip, "127.0.0.2", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (formats.ordinary_ip, "169.254.1.1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (formats.ordinary_ip, "224.0.0.1", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
        (formats.cidr, "10.0.0.0/8", None),
        (formats.cidr, "::/0", None),
        (formats.cidr, "10.0.0.1/8", "must not have bits set beyond the prefix length"),
        (formats.cidr, "10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
        (formats.cidr, "10.0.0.0/255.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        (formats.cidr, "10.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        (formats.percentage, "25%", None),
        (formats.percentage, "x%", "a valid percent string must be a numeric string followed by an ending '%'"),
        (formats.env_name, "my.env-NAME 1", None),
        (formats.env_name, "a=b", "a valid environment variable name must consist only of"),
    ],
)
def test_formats(check: Any, value: str, complaint: str | None) -> None:
    complaints = check(value)
    if complaint is None:
        assert complaints == []
    else:
        assert any(said.startswith(complaint) for said in complaints), complaints


def test_the_whole_text_of_a_name_complaint() -> None:
    assert formats.dns_label("A") == [
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
        "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
        " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    ]


def service(**spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}


PORT = {"port": 80, "protocol": "TCP", "targetPort": 80}
BASE = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, BASE),
        ({"ports": [{"port": 80}]}, {**BASE, "ports": [PORT]}),
        ({"ports": [{"port": 80, "targetPort": 0}]}, {**BASE, "ports": [PORT]}),
        ({"ports": [{"port": 80, "targetPort": ""}]}, {**BASE, "ports": [PORT]}),
        ({"ports": [{"port": 80, "targetPort": "http"}]}, {**BASE, "ports": [{**PORT, "targetPort": "http"}]}),
        ({"type": None, "selector": None}, BASE),
        ({"type": ""}, BASE),
        ({"type": "NodePort"}, {**BASE, "type": "NodePort", "externalTrafficPolicy": "Cluster"}),
        ({"externalIPs": ["1.2.3.4"]}, {**BASE, "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Cluster"}),
        ({"externalIPs": []}, {**BASE, "externalIPs": []}),
        (
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
            {**BASE, "type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": True},
        ),
        (
            {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
            {
                **BASE,
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": False,
            },
        ),
        (
            {"type": "ExternalName", "externalName": "a.b", "externalIPs": ["1.2.3.4"]},
            {"type": "ExternalName", "externalName": "a.b", "externalIPs": ["1.2.3.4"], "sessionAffinity": "None"},
        ),
        ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, BASE),
        *[
            (
                {"sessionAffinity": "ClientIP", **partial},
                {
                    **BASE,
                    "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                },
            )
            for partial in (
                {},
                {"sessionAffinityConfig": None},
                {"sessionAffinityConfig": {}},
                {"sessionAffinityConfig": {"clientIP": {}}},
            )
        ],
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            {
                **BASE,
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
            },
        ),
    ],
)
def test_defaults_of_services(spec: Object, expected: Object) -> None:
    obj = service(**spec)
    before = copy.deepcopy(obj)
    assert default(obj)["spec"] == expected
    assert default(default(obj)) == default(obj)
    assert obj == before


def test_the_mode_of_an_ingress_address_defaults_to_vip_for_load_balancers_only() -> None:
    obj = service(type="LoadBalancer")
    obj["status"] = {
        "loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}, {"hostname": "a"}]}
    }
    ingress = default(obj)["status"]["loadBalancer"]["ingress"]
    assert ingress == [{"ip": "1.2.3.4", "ipMode": "VIP"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}, {"hostname": "a"}]
    obj["spec"]["type"] = "NodePort"
    assert default(obj)["status"]["loadBalancer"]["ingress"][0] == {"ip": "1.2.3.4"}


def test_defaults_of_pods_reach_into_workloads() -> None:
    template = {
        "spec": {"hostNetwork": True, "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}
    }
    spec = default({"kind": "Deployment", "spec": {"template": template}})["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "RollingUpdate")
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": "25%", "maxSurge": "25%"}
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert pod["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP", "hostPort": 80}]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("web:1", "IfNotPresent"),
        ("reg:5000/web", "Always"),
        ("reg:5000/web:1", "IfNotPresent"),
        ("web@sha256:abc", "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    pod = default({"kind": "Pod", "spec": {"containers": [{"image": image}]}})
    assert pod["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_defaults_of_other_kinds() -> None:
    assert default({"kind": "Node", "spec": {"podCIDR": "a"}})["spec"]["podCIDRs"] == ["a"]
    assert default({"kind": "Node", "spec": {"podCIDRs": ["a", "b"]}})["spec"]["podCIDR"] == "a"
    slice_ = default({"kind": "EndpointSlice", "ports": [{"port": 1}]})
    assert slice_["ports"] == [{"port": 1, "name": "", "protocol": "TCP"}]
    namespace = default({"kind": "Namespace", "metadata": {"name": "a"}})
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "a"}
    assert namespace["status"] == {"phase": "Active"}
    assert default({"kind": "Other", "a": None, "b": {"c": None}}) == {"kind": "Other", "b": {}}


LABELS = {"app": "web", "tier": "1", "a.b/c": "x"}


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("", True),
        ("app=web", True),
        ("app == web , tier!=2", True),
        ("app!=web", False),
        ("other!=web", True),
        ("app in (db, web)", True),
        ("app notin (db,web)", False),
        ("other notin (db)", True),
        ("other in (db)", False),
        ("app", True),
        ("!app", False),
        ("!other,a.b/c=x", True),
        ("tier>0", True),
        ("tier<1", False),
        ("app>0", False),
        ("other=", False),
        ("app in (web),tier in (1,2),!x", True),
    ],
)
def test_label_selectors(selector: str, fits: bool) -> None:
    assert parse_selector(selector)(LABELS) is fits


@pytest.mark.parametrize("text", [",", "=", "app in", "app in (a", "app=(a)", "a b", "!", "app=a=b", "tier>x", "a=b,,"])
def test_what_is_no_label_selector_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="unable to parse label selector"):
        parse_selector(text)


def requirement(key: str, operator: str, *values: str) -> LabelSelector:
    return LabelSelector(match_expressions=(LabelSelectorRequirement(key, operator, values),))


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        (None, False),
        ({}, True),
        ({"app": "web"}, True),
        ({"app": "web", "other": "x"}, False),
        (LabelSelector(), True),
        (LabelSelector(match_labels={"app": "db"}), False),
        (requirement("app", "In", "web"), True),
        (requirement("app", "NotIn", "web"), False),
        (requirement("x", "NotIn", "web"), True),
        (requirement("x", "Exists"), False),
        (requirement("x", "DoesNotExist"), True),
        (requirement("app", "Odd"), False),
    ],
)
def test_selectors_of_objects(selector: Any, fits: bool) -> None:
    assert matches(selector, LABELS) is fits


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("metadata.name=web", True),
        ("metadata.name==web,spec.clusterIP!=None", True),
        ("spec.clusterIP!=10.0.0.1", False),
        ("spec.nodeName=", True),
        ("spec.nodeName!=node1", True),
        ("metadata.namespace=other", False),
    ],
)
def test_field_selectors(text: str, fits: bool) -> None:
    obj = {"metadata": {"name": "web", "namespace": "default"}, "spec": {"clusterIP": "10.0.0.1"}}
    assert parse_field_selector(text, {**selectable(SERVICE), **selectable(POD)})(obj) is fits


@pytest.mark.parametrize(
    ("kind", "text", "fits"),
    [
        (NODE, "spec.unschedulable=true", True),
        (NODE, "spec.unschedulable=false", False),
        (POD, "spec.hostNetwork=false", True),
        (EVENT, "involvedObject.kind=Pod,reason!=Killing", True),
        (EVENT, "regarding.kind=Pod,source=kubelet", True),
    ],
)
def test_every_kind_has_its_own_fields(kind: Kind, text: str, fits: bool) -> None:
    about = {"reason": "Started", "involvedObject": {"kind": "Pod"}, "source": {"component": "kubelet"}}
    obj = {"metadata": {"name": "x"}, "spec": {"unschedulable": True}, **about}
    assert parse_field_selector(text, selectable(kind))(obj) is fits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec.foo=1", "field label not supported: spec.foo"),
        ("metadata.name", "invalid field selector"),
        ("=a", "invalid"),
    ],
)
def test_what_is_no_field_selector_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_field_selector(text, selectable(POD))


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    # RFC 7386, appendix A, as far as both are objects.
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches_follow_the_rfc(target: Object, patch: Object, result: Object) -> None:
    assert merge_patch(target, patch) == result


def test_the_difference_names_only_what_changed() -> None:
    old = {"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 1}}
    new = {"metadata": {"labels": {"a": "1", "c": "3"}}, "spec": {"replicas": 1}}
    assert difference(old, new) == {"metadata": {"labels": {"b": None, "c": "3"}}}
