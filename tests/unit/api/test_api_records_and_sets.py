"""ConfigMap, Event, Lease, StatefulSet and DaemonSet: what Kubernetes refuses, row by row, and what it fills in."""

# ruff: noqa: E501 (a row of a table is one line)

from typing import Any

import pytest
from test_api_validation import CHANGES, changed, messages

from kproxy.api import known_fields
from kproxy.api.defaults import default

METADATA = {"name": "web", "namespace": "default"}
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "echo"}]}}
SET = {"selector": {"matchLabels": {"app": "web"}}, "template": TEMPLATE}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": METADATA, "data": {"a.b": "1"}}
EVENT = {
    "apiVersion": "v1",
    "kind": "Event",
    "metadata": METADATA,
    "involvedObject": {"kind": "Pod", "name": "web-0", "namespace": "default"},
}
NEW_EVENT = EVENT | {
    "eventTime": "2026-01-01T00:00:00.000000Z",
    "reportingComponent": "lab.example/node",
    "reportingInstance": "node1",
    "action": "Binding",
    "reason": "Scheduled",
}
LEASE = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": METADATA,
    "spec": {"leaseDurationSeconds": 40},
}
STATEFUL_SET = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": METADATA,
    "spec": SET | {"serviceName": "web"},
}
DAEMON_SET = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": METADATA, "spec": SET}
KEY_WORDS = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
STATEFUL_WORDS = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"


@pytest.mark.parametrize(
    ("obj", "changes", "expected"),
    [
        (CONFIG_MAP, {}, []),
        (CONFIG_MAP, {"data": {"a/b": ""}}, [f'data[a/b]: Invalid value: "a/b": {KEY_WORDS}']),
        (CONFIG_MAP, {"data": {"..": ""}}, ["data[..]: Invalid value: \"..\": must not be '..'"]),
        (CONFIG_MAP, {"data": {"..a": ""}}, ["data[..a]: Invalid value: \"..a\": must not start with '..'"]),
        (CONFIG_MAP, {"data": {"a": ""}, "binaryData": {"a": ""}}, ['data[a]: Invalid value: "a": duplicate of key present in binaryData']),
        (CONFIG_MAP, {"data": {"a": "x" * (1024 * 1024 + 1)}}, [": Too long: may not be more than 1048576 bytes"]),
        (CONFIG_MAP, {"metadata.name": "kube-root-ca.crt"}, []),
        (EVENT, {}, []),
        (EVENT, {"involvedObject.namespace": "other"}, ['involvedObject.namespace: Invalid value: "other": does not match event.namespace']),
        (EVENT, {"involvedObject": {"kind": "Node", "name": "node1"}}, []),
        (EVENT, {"involvedObject": {"kind": "Node", "name": "node1"}, "metadata.namespace": "kube-system"}, ['involvedObject.namespace: Invalid value: "": does not match event.namespace']),
        (NEW_EVENT, {}, []),
        (NEW_EVENT, {"involvedObject": {"kind": "Node", "name": "node1"}, "metadata.namespace": "kube-system"}, []),
        (NEW_EVENT, {"action": "", "reportingInstance": ...}, ["reportingInstance: Required value", "action: Required value"]),
        (NEW_EVENT, {"message": "x" * 1025}, ['message: Invalid value: "": can have at most 1024 characters']),
        (LEASE, {}, []),
        (LEASE, {"spec.leaseDurationSeconds": 0}, ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]),
        (LEASE, {"spec.leaseTransitions": -1}, ["spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"]),
        (LEASE, {"spec.preferredHolder": "a"}, ["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"]),
        (STATEFUL_SET, {}, []),
        (STATEFUL_SET, {"metadata.name": "a.b"}, ['metadata.name: Invalid value: "a.b": must not contain dots']),
        (STATEFUL_SET, {"spec.podManagementPolicy": "Slow"}, ["spec.podManagementPolicy: Invalid value: \"Slow\": must be 'OrderedReady' or 'Parallel'"]),
        (STATEFUL_SET, {"spec.updateStrategy": {"type": "Slow"}}, ['spec.updateStrategy: Invalid value: {"type":"Slow"}: must be \'RollingUpdate\' or \'OnDelete\'']),
        (STATEFUL_SET, {"spec.updateStrategy": {"rollingUpdate": {"partition": -1}}}, ["spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0"]),
        (STATEFUL_SET, {"spec.selector": {}}, ["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"]),
        (STATEFUL_SET, {"spec.template.spec.restartPolicy": "Never"}, ['spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"']),
        (STATEFUL_SET, {"spec.template.spec.activeDeadlineSeconds": 1}, ["spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported"]),
        (DAEMON_SET, {}, []),
        (DAEMON_SET, {"spec.selector": {}}, ["spec.selector: Invalid value: {}: empty selector is invalid for daemonset"]),
        (DAEMON_SET, {"spec.updateStrategy": {"type": "Slow"}}, ['spec.updateStrategy.type: Unsupported value: "Slow": supported values: "RollingUpdate", "OnDelete"']),
        (DAEMON_SET, {"spec.updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}, ["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"]),
        (DAEMON_SET, {"spec.updateStrategy": {"rollingUpdate": {"maxSurge": "10%"}}}, ['spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "10%": may not be set when maxUnavailable is non-zero']),
        (DAEMON_SET, {"spec.updateStrategy": {"type": "OnDelete"}}, []),
    ],
)  # fmt: skip
def test_what_is_refused(obj: dict[str, Any], changes: CHANGES, expected: list[str]) -> None:
    told = changed(obj, changes)
    assert known_fields.check(told) == []
    assert messages(told) == expected


@pytest.mark.parametrize(
    ("obj", "before", "changes", "expected"),
    [
        (CONFIG_MAP, {}, {"data.a": "2"}, []),
        (CONFIG_MAP, {"immutable": True}, {"data.a": "2"}, ["data: Forbidden: field is immutable when `immutable` is set"]),
        (CONFIG_MAP, {"immutable": True}, {"immutable": ...}, ["immutable: Forbidden: field is immutable when `immutable` is set"]),
        (CONFIG_MAP, {"immutable": True}, {"metadata.labels": {"a": "b"}}, []),
        (STATEFUL_SET, {}, {"spec.replicas": 3, "spec.template.metadata.labels.more": "1"}, []),
        (STATEFUL_SET, {}, {"spec.serviceName": "other"}, [f"spec: Forbidden: {STATEFUL_WORDS}"]),
        (DAEMON_SET, {}, {"spec.selector.matchLabels.tier": "a", "spec.template.metadata.labels.tier": "a"}, ['spec.selector: Invalid value: {"matchLabels":{"app":"web","tier":"a"}}: field is immutable']),
    ],
)  # fmt: skip
def test_what_an_update_may_not_change(
    obj: dict[str, Any], before: CHANGES, changes: CHANGES, expected: list[str]
) -> None:
    old = changed(obj, before)
    assert messages(changed(old, changes), old) == expected


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (
            STATEFUL_SET,
            {
                "replicas": 1,
                "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
                "revisionHistoryLimit": 10,
            },
        ),
        (
            DAEMON_SET,
            {
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
                "revisionHistoryLimit": 10,
            },
        ),
    ],
    ids=["StatefulSet", "DaemonSet"],
)
def test_what_is_filled_in(obj: dict[str, Any], expected: dict[str, Any]) -> None:
    filled = default(obj)["spec"]
    assert {key: filled[key] for key in expected} == expected
    assert filled["template"]["spec"]["restartPolicy"] == "Always"
    assert default(default(obj)) == default(obj)
