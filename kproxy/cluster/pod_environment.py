"""The environment of a container: its own variables, what they refer to, and the Services beside it.

Law: pure, from values to values. Rules: Kubernetes, pkg/kubelet/kubelet_pods.go (makeEnvironmentVariables),
pkg/kubelet/envvars and third_party/forked/golang/expansion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any, Final

from kproxy.api.quantities import parsed
from kproxy.api.types import Container, EnvVarSource, KeySelector, Pod, ResourceFieldSelector, Service

_REFERENCE: Final = re.compile(r"\$(\$|\(([^()]*)\))?")
_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_NAME: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")

ConfigMaps = Callable[[str], Mapping[str, str] | None]
"""The data of the ConfigMap of that name in the pod's namespace; None when there is none."""


class ConfigError(Exception):
    """A container cannot be made of what its manifest refers to (kubelet: CreateContainerConfigError)."""


@dataclass(frozen=True)
class Surroundings:
    """What a container's variables may refer to outside of its pod's manifest.

    Attributes:
        addresses: the pod's.
        host_addresses: its node's.
        services: those of its namespace, and `kubernetes` of the default one.
        config_maps: see `ConfigMaps`.
    """

    addresses: Sequence[str]
    host_addresses: Sequence[str]
    services: Iterable[Service]
    config_maps: ConfigMaps


def variables(pod: Pod, container: Container, around: Surroundings) -> dict[str, str]:
    """The container's variables.

    Raises:
        ConfigError: one refers to something that is not there.
    """
    linked = _service_variables(pod, around.services)
    found: dict[str, str] = {}
    for source in container.env_from:
        reference = source.config_map_ref or source.secret_ref
        if reference is not None:
            data = _data(reference, around, is_secret=source.secret_ref is not None)
            found |= {source.prefix + key: text for key, text in data.items() if _NAME.fullmatch(source.prefix + key)}
    own: dict[str, str] = {}
    for variable in container.env:
        if variable.value_from is None:
            value: str | None = expanded(variable.value, {**linked, **own})
        else:
            value = _referred(pod, container, variable.value_from, around)
        if value is not None:
            own[variable.name] = value
    return {**linked, **found, **own}


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """The text with `$(NAME)` replaced; `$$` is a dollar sign, and what is not known stays as it is."""

    def replacement(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        if match[2] is None:
            return match[0]
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def _service_variables(pod: Pod, services: Iterable[Service]) -> dict[str, str]:
    found: dict[str, str] = {}
    for service in services:
        metadata, spec = service.metadata, service.spec
        is_master = (metadata.namespace, metadata.name) == ("default", "kubernetes")
        is_linked = pod.spec.enable_service_links and metadata.namespace == pod.metadata.namespace
        if spec.cluster_ip not in ("", "None") and spec.ports and (is_master or is_linked):
            found |= dict(_of_service(service))
    return found


def _of_service(service: Service) -> Iterator[tuple[str, str]]:
    name = service.metadata.name.upper().replace("-", "_")
    address, ports = service.spec.cluster_ip, service.spec.ports
    yield f"{name}_SERVICE_HOST", address
    yield f"{name}_SERVICE_PORT", str(ports[0].port)
    for port in ports:
        if port.name:
            yield f"{name}_SERVICE_PORT_{port.name.upper().replace('-', '_')}", str(port.port)
    host = f"[{address}]" if ":" in address else address
    for number, port in enumerate(ports):
        url = f"{port.protocol.lower()}://{host}:{port.port}"
        if not number:
            yield f"{name}_PORT", url
        prefix = f"{name}_PORT_{port.port}_{port.protocol}"
        yield prefix, url
        yield f"{prefix}_PROTO", port.protocol.lower()
        yield f"{prefix}_PORT", str(port.port)
        yield f"{prefix}_ADDR", address


def _referred(pod: Pod, container: Container, source: EnvVarSource, around: Surroundings) -> str | None:
    if source.field_ref is not None:
        return _field(pod, source.field_ref.field_path, around)
    if source.resource_field_ref is not None:
        return _resource(pod, container, source.resource_field_ref)
    reference = source.config_map_key_ref or source.secret_key_ref
    if reference is None:
        return None
    is_secret = source.secret_key_ref is not None
    data = _data(reference, around, is_secret=is_secret)
    if reference.key in data:
        return data[reference.key]
    if reference.optional:
        return None
    what = "Secret" if is_secret else "ConfigMap"
    raise ConfigError(f"couldn't find key {reference.key} in {what} {pod.metadata.namespace}/{reference.name}")


def _data(reference: KeySelector, around: Surroundings, *, is_secret: bool) -> Mapping[str, str]:
    data = None if is_secret else around.config_maps(reference.name)  # this API has no Secrets
    if data is None and not reference.optional:
        raise ConfigError(f'{"secret" if is_secret else "configmap"} "{reference.name}" not found')
    return data or {}


def _field(pod: Pod, path: str, around: Surroundings) -> str:
    """A field of the pod (pkg/fieldpath, and podFieldSelectorRuntimeValue)."""
    if match := _SUBSCRIPT.fullmatch(path):
        labels = pod.metadata.labels if match[1] == "labels" else pod.metadata.annotations
        return labels.get(match[2], "")
    fields: Mapping[str, Any] = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name or "default",
        "status.podIP": next(iter(around.addresses), ""),
        "status.podIPs": ",".join(around.addresses),
        "status.hostIP": next(iter(around.host_addresses), ""),
        "status.hostIPs": ",".join(around.host_addresses),
    }
    if path not in fields:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(fields[path])


def _resource(pod: Pod, container: Container, source: ResourceFieldSelector) -> str:
    every = (*pod.spec.init_containers, *pod.spec.containers)
    named = [one for one in every if one.name == source.container_name] if source.container_name else [container]
    kind, _, resource = source.resource.partition(".")
    if not named or kind not in ("limits", "requests"):
        raise ConfigError(f"unsupported container resource: {source.resource}")
    quantities = named[0].resources.limits if kind == "limits" else named[0].resources.requests
    divisor = parsed(source.divisor) or parsed(1)
    return str(int((parsed(quantities.get(resource, 0)) / divisor).to_integral_value(rounding=ROUND_CEILING)))
