"""Pods and pod templates. Kubernetes: pkg/apis/core/validation/validation.go, ValidatePod and ValidatePodSpec.

The lab's own rule: what would let a pod reach the machine (privileged containers, hostPath volumes) is refused with the
words of a cluster that does not allow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kproxy.api import formats
from kproxy.api.field_errors import (
    NOT_FOUND,
    FieldError,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
)
from kproxy.api.types import Object
from kproxy.api.validation import probes
from kproxy.api.validation.metadata import check_labels, said
from kproxy.api.validation.services import check_protocol

RESTART_POLICIES: Final = ("Always", "OnFailure", "Never")
REFUSED: Final = "disallowed by cluster policy"
NOT_NEGATIVE: Final = "must be greater than or equal to 0"

_MUTABLE_WORDS: Final = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_MUTABLE: Final = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")


def check(obj: Object) -> Iterator[FieldError]:
    """Errors in a Pod's spec."""
    yield from check_spec(obj.get("spec") or {}, "spec")


def check_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """A pod's spec stays as it is but for images and a few fields; a node may be given once."""
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    if _immutable_part(new_spec, old_spec) != _immutable_part(old_spec, old_spec):
        yield forbidden("spec", _MUTABLE_WORDS)


def check_spec(spec: Object, path: str) -> Iterator[FieldError]:
    """Errors in the spec of a pod or of a pod template at ``path``."""
    yield from _check_volumes(spec.get("volumes") or [], f"{path}.volumes")
    containers = spec.get("containers") or []
    if not containers:
        yield required(f"{path}.containers")
    yield from _check_containers(spec, path)
    policy = spec.get("restartPolicy") or ""
    if not policy:
        yield required(f"{path}.restartPolicy")
    elif policy not in RESTART_POLICIES:
        yield not_supported(f"{path}.restartPolicy", policy, RESTART_POLICIES)
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and grace < 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", grace, NOT_NEGATIVE)
    for key, name_format in (
        ("nodeName", formats.dns_subdomain),
        ("hostname", formats.dns_label),
        ("subdomain", formats.dns_label),
        ("serviceAccountName", formats.dns_subdomain),
    ):
        if spec.get(key):
            yield from said(f"{path}.{key}", spec[key], name_format(spec[key]))
    yield from check_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")


def _immutable_part(spec: Object, old_spec: Object) -> Object:
    part = {key: value for key, value in spec.items() if key not in _MUTABLE}
    if not old_spec.get("nodeName"):
        part.pop("nodeName", None)
    for key in ("containers", "initContainers"):
        if key in part:
            part[key] = [{**container, "image": ""} for container in part[key]]
    return part


def _check_volumes(volumes: list[Object], path: str) -> Iterator[FieldError]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        below = f"{path}[{index}]"
        yield from _check_name(volume.get("name") or "", f"{below}.name", names)
        if volume.get("hostPath") is not None:
            yield forbidden(f"{below}.hostPath", REFUSED)


def _check_containers(spec: Object, path: str) -> Iterator[FieldError]:
    names: set[str] = set()
    volumes = {volume.get("name") for volume in spec.get("volumes") or []}
    grace = spec.get("terminationGracePeriodSeconds") or 0
    for key in ("initContainers", "containers", "ephemeralContainers"):
        port_names: set[str] = set()
        for index, container in enumerate(spec.get(key) or []):
            below = f"{path}.{key}[{index}]"
            yield from _check_name(container.get("name") or "", f"{below}.name", names)
            if not (container.get("image") or "").strip():
                yield required(f"{below}.image")
            ports = container.get("ports") or []
            yield from _check_ports(ports, f"{below}.ports", port_names if key == "containers" else set())
            yield from _check_host_ports(ports, f"{below}.ports", uses_host_network=spec.get("hostNetwork") is True)
            yield from _check_env(container.get("env") or [], f"{below}.env")
            yield from _check_program(container, below)
            is_init = key == "initContainers" and container.get("restartPolicy") != "Always"
            yield from probes.check(container, below, grace, is_init=is_init)
            yield from _check_mounts(container.get("volumeMounts") or [], volumes, f"{below}.volumeMounts")
            if (container.get("securityContext") or {}).get("privileged") is True:
                yield forbidden(f"{below}.securityContext.privileged", REFUSED)


def _check_program(container: Object, path: str) -> Iterator[FieldError]:
    # Kubernetes leaves this to the container runtime; here nothing between us and execve would say it.
    values = [(f"{path}.workingDir", container.get("workingDir") or "")]
    values += [
        (f"{path}.{key}[{i}]", text) for key in ("command", "args") for i, text in enumerate(container.get(key) or [])
    ]
    values += [(f"{path}.env[{i}].value", env.get("value") or "") for i, env in enumerate(container.get("env") or [])]
    for below, text in values:
        if "\0" in text:
            yield invalid(below, text, "must not contain a NUL character")


def _check_name(name: str, path: str, names: set[str]) -> Iterator[FieldError]:
    if not name:
        yield required(path)
        return
    yield from said(path, name, formats.dns_label(name))
    if name in names:
        yield duplicate(path, name)
    names.add(name)


def _check_ports(ports: list[Object], path: str, names: set[str]) -> Iterator[FieldError]:
    for index, port in enumerate(ports):
        below = f"{path}[{index}]"
        if name := port.get("name") or "":
            complaints = formats.port_name(name)
            yield from said(f"{below}.name", name, complaints)
            if not complaints and name in names:
                yield duplicate(f"{below}.name", name)
            names.add(name)
        number = port.get("containerPort") or 0
        if not number:
            yield required(f"{below}.containerPort")
        else:
            yield from said(f"{below}.containerPort", number, formats.port_number(number))
        yield from check_protocol(port.get("protocol") or "", below)


def _check_host_ports(ports: list[Object], path: str, *, uses_host_network: bool) -> Iterator[FieldError]:
    for index, port in enumerate(ports):
        below, host_port = f"{path}[{index}].hostPort", port.get("hostPort") or 0
        if host_port:
            yield from said(below, host_port, formats.port_number(host_port))
        if uses_host_network and host_port != (port.get("containerPort") or 0):
            yield invalid(below, host_port, "must match `containerPort` when `hostNetwork` is true")


def _check_env(variables: list[Object], path: str) -> Iterator[FieldError]:
    for index, variable in enumerate(variables):
        below, name = f"{path}[{index}]", variable.get("name") or ""
        if name:
            yield from said(f"{below}.name", name, formats.env_name(name))
        else:
            yield required(f"{below}.name")
        if variable.get("value") and variable.get("valueFrom") is not None:
            yield invalid(f"{below}.valueFrom", "", "may not be specified when `value` is not empty")


def _check_mounts(mounts: list[Object], volumes: set[Any], path: str) -> Iterator[FieldError]:
    for index, mount in enumerate(mounts):
        name = mount.get("name") or ""
        if not name:
            yield required(f"{path}[{index}].name")
        elif name not in volumes:
            yield FieldError(f"{path}[{index}].name", NOT_FOUND, name)
        if not mount.get("mountPath"):
            yield required(f"{path}[{index}].mountPath")


def template_labels(template: Object) -> Mapping[str, str]:
    """The labels that pods of a template will carry."""
    labels: Mapping[str, str] = (template.get("metadata") or {}).get("labels") or {}
    return labels
