"""A fast road for JSON: objects that are plainly good, as nearly all of a large cluster are.

To read, check, complete and type an object takes many times as long as to decode it. The shapes below take a part of
what Kubernetes takes, and nothing that it refuses, so that what fits needs no other check. An object that fits none is
looked at thoroughly by itself. A file with an object that is not good, or that reads ambiguously, is not for this road,
because only the thorough reader says what is wrong and where.

Law: pure. What is read here means the same to a proxy as what ``directory.read_file`` reads without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kproxy.api.types import EndpointSlice, Service
from kproxy.api.validation import prepare
from kproxy.proxy.changes import ObjectKey, Tracked
from kproxy.proxy.sources import TYPES, key_of, typed, with_namespace

MAX_OBJECT_BYTES = 3 * 1024 * 1024  # as api.manifest, which is not imported: it takes PyYAML along


class Read(NamedTuple):
    """One object of a file."""

    key: ObjectKey
    value: Tracked


Known = Mapping[bytes, Read]
"""Objects that were read before, by their very text."""


def read_plain(text: bytes, known: Known) -> dict[bytes, Read] | None:
    """The objects of a JSON file, an object or a ``List``, in order.

    Args:
        text: the file's content.
        known: what is in here is not read again.

    Returns:
        None when the file is not for this road.
    """
    if not text.startswith(b"{"):
        return None
    try:
        items = _items(text)
        found = {item: known.get(item) or _read(item) for item in items}
    except (msgspec.MsgspecError, _Doubtful, UnicodeDecodeError, RecursionError):
        return None
    # of an object that is there twice, the thorough reader decides which counts
    return found if len({read.key for read in found.values()}) == len(items) else None


class _Doubtful(Exception):
    """Something is not good, or that is not for us to say."""


class _Shape(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    """Base of the shapes: what they do not name is not plain. A field that is not written stays UNSET."""


_Texts = dict[str, str] | UnsetType


class _List(_Shape):
    kind: Literal["List"]
    items: list[msgspec.Raw]
    api_version: Literal["v1"]
    metadata: _Texts = UNSET


_Port = Annotated[int, Meta(ge=1, le=65535)]
_Protocol = Literal["TCP", "UDP", "SCTP"] | UnsetType


class _Metadata(_Shape):
    name: str
    namespace: str | UnsetType = UNSET
    labels: _Texts = UNSET
    annotations: _Texts = UNSET
    uid: str | UnsetType = UNSET
    resource_version: str | UnsetType = UNSET
    generation: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    creation_timestamp: str | UnsetType = UNSET


class _ServicePort(_Shape):
    port: _Port
    name: str | UnsetType = UNSET
    protocol: _Protocol = UNSET
    target_port: _Port | UnsetType = UNSET


class _ServiceSpec(_Shape):
    ports: Annotated[tuple[_ServicePort, ...], Meta(min_length=1, max_length=1)]
    cluster_ip: str = msgspec.field(name="clusterIP")
    cluster_ips: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1)] = msgspec.field(name="clusterIPs")
    ip_families: tuple[Literal["IPv4"]] | UnsetType = UNSET
    ip_family_policy: Literal["SingleStack"] | UnsetType = UNSET
    type: Literal["ClusterIP"] | UnsetType = UNSET
    selector: _Texts = UNSET
    session_affinity: Literal["None"] | UnsetType = UNSET
    internal_traffic_policy: Literal["Cluster", "Local"] | UnsetType = UNSET


class _ServiceStatus(_Shape):
    load_balancer: dict[str, None] | UnsetType = UNSET


class _Service(_Shape, tag_field="kind", tag="Service"):
    api_version: Literal["v1"]
    metadata: _Metadata
    spec: _ServiceSpec
    status: _ServiceStatus | UnsetType = UNSET


class _Conditions(_Shape):
    ready: bool | UnsetType = UNSET
    serving: bool | UnsetType = UNSET
    terminating: bool | UnsetType = UNSET


class _TargetRef(_Shape):
    kind: str | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    uid: str | UnsetType = UNSET


class _Endpoint(_Shape):
    addresses: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1)]
    conditions: _Conditions | UnsetType = UNSET
    node_name: str | UnsetType = UNSET
    zone: str | UnsetType = UNSET
    target_ref: _TargetRef | UnsetType = UNSET


class _SlicePort(_Shape):
    name: str
    port: _Port
    protocol: _Protocol = UNSET


class _EndpointSlice(_Shape, tag_field="kind", tag="EndpointSlice"):
    api_version: Literal["discovery.k8s.io/v1"]
    metadata: _Metadata
    address_type: Literal["IPv4"]
    endpoints: Annotated[tuple[_Endpoint, ...], Meta(max_length=1000)]
    ports: Annotated[tuple[_SlicePort, ...], Meta(max_length=1)]


_decode_list = msgspec.json.Decoder(_List).decode
_decode = msgspec.json.Decoder(_Service | _EndpointSlice).decode
_decode_service = msgspec.json.Decoder(Service).decode
_decode_slice = msgspec.json.Decoder(EndpointSlice).decode
_encode = msgspec.json.Encoder().encode

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_is_address = re.compile(rf"(?!0\.|127\.|169\.254\.|224\.){_OCTET}(?:\.{_OCTET}){{3}}").fullmatch
"""An address that traffic can go to."""
_is_name = re.compile("(?!.{64})[a-z0-9](?:[-a-z0-9]*[a-z0-9])?").fullmatch
_is_label_key = re.compile("(?!.{64})(?:[a-z0-9]+(?:[-.][a-z0-9]+)*/)?[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*").fullmatch
_is_label_value = re.compile("(?!.{64})(?:[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*)?").fullmatch


_MANY = 1 << 16
"""More bytes of annotations than this are not plain."""


def _items(text: bytes) -> list[bytes]:
    """The text of each object."""
    try:
        found = _decode_list(text)
    except msgspec.ValidationError:  # no list: an object by itself
        return [text]
    items = [bytes(item) for item in found.items]
    if not items:
        raise _Doubtful
    # the items are one stretch of the text; what is before and after it is looked at as if it were an object
    start, end = text.index(items[0]), text.rindex(items[-1]) + len(items[-1])
    _refuse_repeats(text[:start] + b"0" + text[end:], msgspec.structs.replace(found, items=[]))
    return items


def _read(text: bytes) -> Read:
    if len(text) > MAX_OBJECT_BYTES:
        raise _Doubtful
    try:
        shape = _decode(text)
    except msgspec.ValidationError:
        return _read_thoroughly(text)
    if not _is_plain(shape):
        return _read_thoroughly(text)
    _refuse_repeats(text, shape)
    namespace, name = _namespace(shape.metadata), shape.metadata.name
    if isinstance(shape, _Service):
        return Read(ObjectKey("Service", namespace, name), with_namespace(_decode_service(text), namespace))
    return Read(ObjectKey("EndpointSlice", namespace, name), with_namespace(_decode_slice(text), namespace))


def _read_thoroughly(text: bytes) -> Read:
    value = msgspec.json.decode(text)
    _refuse_repeats(text, value)
    if not isinstance(value, dict) or str(value.get("kind")) not in TYPES:
        raise _Doubtful
    obj, errors = prepare(value, is_strict=False)
    if errors:
        raise _Doubtful
    return Read(key_of(obj), typed(obj))


def _refuse_repeats(text: bytes, value: object) -> None:
    """A name that is written twice was decoded once; blanks before a colon make the numbers differ, too."""
    if text.count(b'":') != _encode(value).count(b'":'):
        raise _Doubtful


def _is_plain(shape: _Service | _EndpointSlice) -> bool:
    metadata = shape.metadata
    names = [metadata.name, _namespace(metadata)]
    if not _are_labels(metadata.labels or {}):
        return False
    if isinstance(shape, _Service):
        spec, port = shape.spec, shape.spec.ports[0]
        names += [port.name] if port.name else []
        has_address = _is_address(spec.cluster_ip) is not None and spec.cluster_ips == (spec.cluster_ip,)
        is_plain = has_address and _are_labels(spec.selector or {}) and not metadata.annotations
    else:
        names += [port.name for port in shape.ports if port.name]
        names += {endpoint.node_name for endpoint in shape.endpoints if endpoint.node_name is not UNSET}
        is_plain = all(_is_address(endpoint.addresses[0]) for endpoint in shape.endpoints)
        is_plain = is_plain and _are_annotations(metadata.annotations or {})
    return is_plain and all(map(_is_name, names))


def _namespace(metadata: _Metadata) -> str:
    return metadata.namespace if isinstance(metadata.namespace, str) and metadata.namespace else "default"


def _are_labels(texts: Mapping[str, str]) -> bool:
    return all(_is_label_key(key) and _is_label_value(value) for key, value in texts.items())


def _are_annotations(texts: Mapping[str, str]) -> bool:
    return all(map(_is_label_key, texts)) and sum(map(len, texts.values())) < _MANY
