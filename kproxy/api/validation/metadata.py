"""metadata of every object: names, labels, annotations, owners, finalizers.

Kubernetes: apimachinery/pkg/api/validation/objectmeta.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kproxy.api import formats
from kproxy.api.field_errors import FieldError, forbidden, invalid, required, too_long
from kproxy.api.types import Object

NameFormat = Callable[[str], list[str]]

NAME_REQUIRED: Final = required("metadata.name", "name or generateName is required")
_MAX_ANNOTATIONS: Final = 256 * 1024
IMMUTABLE: Final = "field is immutable"


def check(obj: Object, name_format: NameFormat, *, is_namespaced: bool) -> Iterator[FieldError]:
    """Errors in metadata.

    Args:
        obj: the object.
        name_format: what names of this kind look like.
        is_namespaced: whether the kind lives in a namespace.
    """
    metadata = obj.get("metadata") or {}
    generate_name = metadata.get("generateName") or ""
    if generate_name:
        yield from said("metadata.generateName", generate_name, name_format(_as_if_completed(generate_name)))
    name = metadata.get("name") or ""
    if name:
        yield from said("metadata.name", name, name_format(name))
    else:
        yield NAME_REQUIRED
    yield from _check_namespace(metadata.get("namespace") or "", is_namespaced=is_namespaced)
    yield from check_labels(metadata.get("labels") or {}, "metadata.labels")
    yield from _check_annotations(metadata.get("annotations") or {})
    yield from _check_owners(metadata.get("ownerReferences") or [])
    for finalizer in metadata.get("finalizers") or []:
        yield from said("metadata.finalizers", finalizer, formats.qualified_name(finalizer))


def check_update(obj: Object, old: Object) -> Iterator[FieldError]:
    """Errors of metadata that an update may not change."""
    new_metadata, old_metadata = obj.get("metadata") or {}, old.get("metadata") or {}
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        value = new_metadata.get(key)
        # What the update leaves out is taken from the stored object.
        if value and value != old_metadata.get(key):
            yield invalid(f"metadata.{key}", value, IMMUTABLE)


def check_labels(labels: Mapping[str, str], path: str) -> Iterator[FieldError]:
    """Errors in a map of labels; the path is the map's, as Kubernetes reports it."""
    for key, value in labels.items():
        yield from said(path, key, formats.qualified_name(key))
        yield from said(path, value, formats.label_value(value))


def said(path: str, value: Any, complaints: Iterable[str]) -> Iterator[FieldError]:
    """Each complaint of a format as an ``Invalid value``."""
    for complaint in complaints:
        yield invalid(path, value, complaint)


def _as_if_completed(prefix: str) -> str:
    # A prefix may end in a hyphen, since letters follow (Kubernetes: maskTrailingDash).
    return prefix[:-1] + "a" if len(prefix) > 1 and prefix.endswith("-") else prefix


def _check_namespace(namespace: str, *, is_namespaced: bool) -> Iterator[FieldError]:
    if is_namespaced and not namespace:
        yield required("metadata.namespace")
    elif is_namespaced:
        yield from said("metadata.namespace", namespace, formats.dns_label(namespace))
    elif namespace:
        yield forbidden("metadata.namespace", "not allowed on this type")


def _check_annotations(annotations: Mapping[str, str]) -> Iterator[FieldError]:
    for key in annotations:
        yield from said("metadata.annotations", key, formats.qualified_name(key.lower()))
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _MAX_ANNOTATIONS:
        yield too_long("metadata.annotations", _MAX_ANNOTATIONS)


def _check_owners(owners: list[Object]) -> Iterator[FieldError]:
    path = "metadata.ownerReferences"
    controllers = [f"{owner.get('kind')}/{owner.get('name')}" for owner in owners if owner.get("controller")]
    for owner in owners:
        for key, words in (
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ):
            if not owner.get(key):
                yield invalid(f"{path}.{key}", owner.get(key) or "", words)
    if len(controllers) > 1:
        found = f'Found "true" in references for {controllers[0]} and {controllers[1]}'
        yield invalid(path, owners, f"Only one reference can have Controller set to true. {found}")
