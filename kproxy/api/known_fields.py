"""Which fields Kubernetes knows, of which JSON type they are, and which of them have no effect here.

Law: an object that passes ``check`` converts to its typed view (``types.view``) without an error. The table is
generated from Kubernetes 1.36 (``generate_known_fields.py``); the lab's own kind ``Cluster`` is written down here.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Set
from typing import Annotated, Any, Final

import msgspec

from kproxy.api.field_errors import INVALID, NOT_SUPPORTED, REQUIRED, TYPE_INVALID, UNKNOWN_FIELD, FieldError, quoted
from kproxy.api.types import Object

_CLUSTER_KINDS: Final = {"kproxy.dev/v1alpha1/Cluster": "Cluster"}
_CLUSTER_TYPES: Final[dict[str, dict[str, str]]] = {
    "Cluster": {"apiVersion": "string", "kind": "string", "metadata": "V1ObjectMeta", "spec": "ClusterSpec"},
    "ClusterSpec": {
        "ipFamilies": "[string]",
        "nodes": "[ClusterNode]",
        "nodeNetwork": "ClusterNetwork",
        "podNetwork": "ClusterPodNetwork",
        "serviceCIDRs": "[string]",
        "serviceNodePortRange": "string",
        "outside": "ClusterNetwork",
        "clients": "[ClusterClient]",
        "externalRoutes": "[ClusterRoute]",
        "loadBalancer": "ClusterLoadBalancer",
        "dns": "ClusterDNS",
        "proxy": "ClusterProxy",
        "images": "[ClusterImage]",
    },
    "ClusterNode": {
        "name": "string",
        "zone": "string",
        "labels": "{string}",
        "addresses": "[string]",
        "podCIDRs": "[string]",
        "proxy": "ClusterProxy",
    },
    "ClusterNetwork": {"cidrs": "[string]"},
    "ClusterPodNetwork": {"mode": "string", "cidrs": "[string]"},
    "ClusterClient": {"name": "string", "addresses": "[string]", "names": "[string]", "ports": "[integer]"},
    "ClusterDNS": {"replicas": "integer"},
    "ClusterRoute": {"to": "string", "via": "string"},
    "ClusterLoadBalancer": {"kind": "string", "cidrs": "[string]"},
    "ClusterProxy": {"mode": "string", "variant": "string", "flags": "{scalar}"},
    "ClusterImage": {"match": "string", "command": "[string]"},
}

# What each type's fields do here; every other known field of that type is accepted and has no effect.
_WITH_EFFECT: Final[dict[str, frozenset[str]]] = {
    "V1PodSpec": frozenset(
        (
            "containers",
            "initContainers",
            "nodeName",
            "hostname",
            "subdomain",
            "hostNetwork",
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "nodeSelector",
            "tolerations",
            "affinity",
            "schedulerName",
            "schedulingGates",
            "dnsPolicy",
            "dnsConfig",
            "hostAliases",
            "enableServiceLinks",
            "setHostnameAsFQDN",
            "serviceAccountName",
        )
    ),
    "V1Container": frozenset(
        (
            "name",
            "image",
            "command",
            "args",
            "ports",
            "env",
            "envFrom",
            "resources",
            "workingDir",
            "restartPolicy",
            "startupProbe",
            "readinessProbe",
            "livenessProbe",
            "lifecycle",
        )
    ),
    "V1Probe": frozenset(
        (
            "exec",
            "httpGet",
            "tcpSocket",
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "successThreshold",
            "failureThreshold",
            "terminationGracePeriodSeconds",
        )
    ),
    "V1Lifecycle": frozenset(("preStop",)),
    "V1LifecycleHandler": frozenset(("exec", "httpGet", "sleep")),
    "V1ContainerPort": frozenset(("name", "containerPort", "protocol")),
    "V1ResourceRequirements": frozenset(("limits",)),
    "V1NamespaceSpec": frozenset(()),
}

# The same seen from the other side, for types of which nearly everything counts.
_WITHOUT_EFFECT: Final[dict[str, frozenset[str]]] = {
    "V1StatefulSetSpec": frozenset(("volumeClaimTemplates", "persistentVolumeClaimRetentionPolicy")),
    "V1NodeSpec": frozenset(("configSource", "externalID", "providerID")),
}

_WORDS: Final = {
    "string": "must be a string",
    "integer": "must be an integer",
    "number": "must be a number",
    "boolean": "must be a boolean",
    "int-or-string": "must be an integer or a string",
    "quantity": "must be a quantity, such as 500m or 64Mi",
    "scalar": "must be a string, a number or a boolean",
}

_MAX_ERRORS: Final = 1000

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


def check(obj: Object) -> list[FieldError]:
    """What is wrong with an object before its values are looked at.

    An unknown ``apiVersion`` and ``kind``, fields that Kubernetes does not have (as with strict field validation), and
    values of another JSON type than the field's. A null counts as "not set", except as an item of a list.

    Returns:
        All errors (of an object that is all errors the first 1000), in the order of the object's fields; empty when it
        is well formed.
    """
    errors = [error for key in ("apiVersion", "kind") if (error := _named(obj, key)) is not None]
    if errors:
        return errors
    type_name = _table()[0].get(f"{obj['apiVersion']}/{obj['kind']}")
    if type_name is None:
        return [_unknown_kind(obj["apiVersion"], obj["kind"])]
    if _fits(obj, type_name):
        return []
    return list(itertools.islice(_check_object(obj, type_name, ""), _MAX_ERRORS))


def well_typed(obj: Object, errors: Iterable[FieldError]) -> Object:
    """The object without what ``check`` found to be of a wrong type, so that the rest can be looked at.

    Args:
        obj: is not altered.
        errors: of ``check``; a list with an item of a wrong type becomes empty, since positions count.
    """
    return without(obj, (error for error in errors if error.kind is TYPE_INVALID))


def without(obj: Object, errors: Iterable[FieldError]) -> Object:
    """The object without the fields that the errors are about.

    Args:
        obj: is not altered.
        errors: of ``check``; a list one of whose items is meant becomes empty, since positions count.
    """
    sound: Object = _well_typed(obj, "", {error.field for error in errors})
    return sound


def _well_typed(value: Any, path: str, bad: Set[str]) -> Any:
    if isinstance(value, dict):
        kept = ((key, item, child(path, key)) for key, item in value.items())
        return {key: _well_typed(item, below, bad) for key, item, below in kept if below not in bad}
    if isinstance(value, list):
        paths = [f"{path}[{index}]" for index in range(len(value))]
        return [] if bad & set(paths) else [_well_typed(*pair, bad) for pair in zip(value, paths, strict=True)]
    return value


def without_effect(obj: Object) -> list[str]:
    """Known fields that the object sets and that change nothing here, as paths with ``[*]`` for list positions.

    To be asked before defaulting, or defaults that nobody wrote would be named. ``status`` is never named.

    Returns:
        Each path once, in the order of the object's fields; empty for kinds without a table.
    """
    type_name = _table()[0].get(f"{obj.get('apiVersion')}/{obj.get('kind')}")
    if type_name is None:
        return []
    return list(dict.fromkeys(_idle_fields(obj, type_name, "")))


def child(path: str, key: str) -> str:
    """The path of a field or map key below ``path``: ``spec.ports``, ``metadata.annotations[a.b/c]``."""
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def kinds() -> dict[tuple[str, str], str]:
    """The type of each kind, by apiVersion and kind."""
    return {(name.rpartition("/")[0], name.rpartition("/")[2]): of for name, of in _table()[0].items()}


def fields_of(type_name: str) -> dict[str, str]:
    """The type of each field of a type, as ``generate_known_fields`` writes it; empty for a type without fields."""
    return _table()[1].get(type_name, {})


def has_effect(type_name: str, field: str) -> bool:
    """Whether a field of a type changes anything here."""
    effective = _WITH_EFFECT.get(type_name)
    return field not in _WITHOUT_EFFECT.get(type_name, ()) and (effective is None or field in effective)


def required_of(type_name: str) -> list[str]:
    """The fields that every value of a type has."""
    found: list[str] = _file()["required"].get(type_name, [])
    return found


@functools.cache
def _table() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    table = _file()
    return {**table["kinds"], **_CLUSTER_KINDS}, {**table["types"], **_CLUSTER_TYPES}


@functools.cache
def _file() -> dict[str, dict[str, Any]]:
    data = pkgutil.get_data("kproxy.api", "known_fields.json")
    if data is None:  # pragma: no cover - only a broken installation
        raise FileNotFoundError("kproxy/api/known_fields.json is missing from the installation")
    table: dict[str, dict[str, Any]] = json.loads(data)
    return table


def _fits(obj: Object, type_name: str) -> bool:
    """Whether nothing is wrong, found out quickly; False leaves it to the thorough look, which also says what."""
    try:
        msgspec.convert(obj, _shape(type_name))
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


@functools.cache
def _shape(type_name: str) -> Any:
    """A type that msgspec takes for exactly what ``_check_object`` finds nothing wrong with."""
    fields = [
        (f"field{index}", _shape_of(field_type) | None, msgspec.field(name=key, default=None))
        for index, (key, field_type) in enumerate(_table()[1][type_name].items())
    ]
    return msgspec.defstruct(type_name, fields, forbid_unknown_fields=True, gc=False)


def _shape_of(field_type: str) -> Any:
    if field_type.startswith("["):
        return list[_shape_of(field_type[1:-1])]  # type: ignore[misc]
    if field_type.startswith("{"):
        return dict[str, _shape_of(field_type[1:-1]) | None]  # type: ignore[misc]
    return _shape(field_type) if field_type in _table()[1] else _LEAF_SHAPES.get(field_type, Any)


def _named(obj: Object, key: str) -> FieldError | None:
    value = obj.get(key)
    if value is None or value == "":
        return FieldError(key, REQUIRED)
    return None if isinstance(value, str) else FieldError(key, TYPE_INVALID, value, _WORDS["string"])


def _unknown_kind(api_version: str, kind: str) -> FieldError:
    known = [key.rpartition("/")[::2] for key in _table()[0]]
    versions = [version for version, name in known if name == kind]
    if versions:
        return FieldError(
            "apiVersion", NOT_SUPPORTED, api_version, f"supported values: {', '.join(map(quoted, versions))}"
        )
    detail = f"no matches for kind {quoted(kind)} in version {quoted(api_version)}"
    return FieldError("kind", INVALID, kind, detail + _did_you_mean(kind, [name for _, name in known]))


def _did_you_mean(word: str, known: list[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f", did you mean {quoted(by_lower[near[0]])}?" if near else ""


def _check_object(value: dict[str, Any], type_name: str, path: str) -> Iterator[FieldError]:
    fields = _table()[1][type_name]
    for key, item in value.items():
        below = child(path, key)
        field_type = fields.get(key)
        if field_type is None:
            yield FieldError(below, UNKNOWN_FIELD, None, _did_you_mean(key, list(fields)).removeprefix(", "))
        elif item is not None:
            yield from _check_value(item, field_type, below)


def _check_value(value: Any, field_type: str, path: str) -> Iterator[FieldError]:
    wanted = _json_type(field_type)
    if wanted is not object and not isinstance(value, wanted):
        yield FieldError(path, TYPE_INVALID, value, "must be a list" if wanted is list else "must be an object")
    elif field_type.startswith("["):
        for index, item in enumerate(value):
            yield from _check_value(item, field_type[1:-1], f"{path}[{index}]")
    elif field_type.startswith("{"):
        for key, item in value.items():
            if item is not None:
                yield from _check_value(item, field_type[1:-1], child(path, key))
    elif wanted is dict:
        yield from _check_object(value, field_type, path)
    elif not _is_of_type(value, field_type):
        yield FieldError(path, TYPE_INVALID, value, _WORDS[field_type])


def _json_type(field_type: str) -> type:
    if field_type.startswith("["):
        return list
    return dict if field_type.startswith("{") or field_type in _table()[1] else object


_INT64: Final = range(-(2**63), 2**63)
_QUANTITY: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


def _is_of_type(value: Any, field_type: str) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool) and value in _INT64
    is_number = is_integer or isinstance(value, float)
    match field_type:
        case "string":
            return isinstance(value, str)
        case "integer":
            return is_integer
        case "number":
            return is_number
        case "boolean":
            return isinstance(value, bool)
        case "int-or-string":
            return is_integer or isinstance(value, str)
        case "quantity":
            return is_number or (isinstance(value, str) and _QUANTITY.fullmatch(value) is not None)
        case "scalar":
            return is_number or isinstance(value, str | bool)
        case _:
            return True


_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_LEAF_SHAPES: Final[dict[str, Any]] = {
    "string": str,
    "integer": _Integer,
    "number": _Integer | float,
    "boolean": bool,
    "int-or-string": _Integer | str,
    "quantity": _Integer | float | Annotated[str, msgspec.Meta(pattern=f"^(?:{_QUANTITY.pattern})\\Z")],
    "scalar": _Integer | float | str | bool,
}


def _idle_fields(value: Any, field_type: str, path: str) -> Iterator[str]:
    if field_type.startswith("[") and isinstance(value, list):
        for item in value:
            yield from _idle_fields(item, field_type[1:-1], f"{path}[*]")
        return
    fields = _table()[1].get(field_type)
    if fields is None or not isinstance(value, dict):
        return
    for key, item in value.items():
        if item is None or key not in fields or (path == "" and key == "status"):
            continue
        below = child(path, key)
        if not has_effect(field_type, key):
            yield below
        else:
            yield from _idle_fields(item, fields[key], below)
