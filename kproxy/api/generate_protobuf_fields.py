"""Writes ``protobuf_fields.json``: under which numbers Kubernetes' protobuf has the fields of its kinds.

A development-time tool; the project itself never imports it. The source is the struct tags of the Go types of
Kubernetes 1.36, as Debian's packages ``golang-k8s-api-dev`` and ``golang-k8s-apimachinery-dev`` have them. To renew the
table, with both unpacked into a folder::

    python -m kproxy.api.generate_protobuf_fields FOLDER/usr/share/gocode/src/k8s.io
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kproxy.api.kinds import EVENT_OF_GROUP, KINDS, SCALE

_PACKAGES = {
    "metav1": "apimachinery/pkg/apis/meta/v1",
    "types": "apimachinery/pkg/types",
    "v1": "api/core/v1",
    "apps": "api/apps/v1",
    "discovery.k8s.io": "api/discovery/v1",
    "networking.k8s.io": "api/networking/v1",
    "coordination.k8s.io": "api/coordination/v1",
    "events.k8s.io": "api/events/v1",
    "autoscaling": "api/autoscaling/v1",
    "authorization.k8s.io": "api/authorization/v1",
    "authentication.k8s.io": "api/authentication/v1",
}
_IMPORTED_AS = {"metav1": "metav1", "types": "types", "v1": "v1", "corev1": "v1"}
_SPECIAL = {
    "metav1.Time": "time",
    "metav1.MicroTime": "microtime",
    "metav1.FieldsV1": "fields",
    "intstr.IntOrString": "int-or-string",
    "resource.Quantity": "quantity",
    "runtime.RawExtension": "fields",
}
_SCALARS = {"string": "string", "bool": "bool", "int32": "int", "int64": "int", "[]byte": "bytes", "byte": "bytes"}
_BESIDE_OBJECTS = {
    "v1/Binding": "v1.Binding",
    "v1/DeleteOptions": "metav1.DeleteOptions",
    "meta.k8s.io/v1/DeleteOptions": "metav1.DeleteOptions",
    "authorization.k8s.io/v1/SelfSubjectAccessReview": "authorization.k8s.io.SelfSubjectAccessReview",
    "authentication.k8s.io/v1/SelfSubjectReview": "authentication.k8s.io.SelfSubjectReview",
}
_FIELD = re.compile(r"^\t(?:(\w+)[ \t]+)?(\S+)[ \t]+`([^`]*)`")
_OF_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_OF_OTHER = re.compile(r"^type (\w+) (string|bool|int32|int64|(?:map|\[)\S+)$", re.MULTILINE)

Field = tuple[str, str, bool]


def generate(source: Path) -> dict[str, Any]:
    """The table: ``kinds`` maps apiVersion/Kind to a type, ``types`` maps a type to number -> [name, type, is_pointer].

    A name is JSON's; it is empty for what JSON has inline. A type is ``string``, ``int``, ``bool``, ``bytes``,
    ``time``, ``microtime``, ``quantity``, ``int-or-string``, ``fields``, the name of another type, ``[T]`` or ``{T}``.

    Args:
        source: the folder ``k8s.io`` of the Go sources.
    """
    structs, others = _read(source)
    kinds = {
        f"{kind.api_version}/{kind.name}": f"{kind.group or 'v1'}.{kind.name}"
        for kind in (*KINDS, EVENT_OF_GROUP, SCALE)
    } | _BESIDE_OBJECTS
    types: dict[str, dict[str, Field]] = {}
    waiting = list(kinds.values())
    while waiting:
        name = waiting.pop()
        if name in types or name not in structs:
            continue
        package = name.rpartition(".")[0]
        types[name] = {
            number: (json_name, _type_of(go_type.lstrip("*"), package, others), go_type.startswith("*"))
            for number, json_name, go_type in _fields(structs[name])
        }
        waiting += [field[1].strip("[]{}") for field in types[name].values()]
    return {"kinds": kinds, "types": types}


def _read(source: Path) -> tuple[dict[str, str], dict[str, str]]:
    structs: dict[str, str] = {}
    others: dict[str, str] = {}
    for package, folder in _PACKAGES.items():
        for file in sorted((source / folder).glob("*.go")):
            if file.name.startswith(("generated", "zz_")) or file.name.endswith("_test.go"):
                continue
            text = file.read_text(encoding="utf-8")
            structs |= {f"{package}.{name}": body for name, body in _OF_STRUCT.findall(text)}
            others |= {f"{package}.{name}": of for name, of in _OF_OTHER.findall(text)}
    return structs, others


def _fields(body: str) -> Iterator[tuple[str, str, str]]:
    for line in body.splitlines():
        if not (match := _FIELD.match(line)) or not (number := re.search(r'protobuf:"\w+,(\d+),', match[3])):
            continue
        json_name, _, options = re.search(r'json:"([^"]*)"', match[3])[1].partition(",")  # type: ignore[index]
        yield number[1], "" if "inline" in options else json_name, match[2]


def _type_of(go_type: str, package: str, others: dict[str, str]) -> str:
    if go_type in _SCALARS:
        return _SCALARS[go_type]
    if go_type.startswith("[]"):
        return f"[{_type_of(go_type[2:].lstrip('*'), package, others)}]"
    if match := re.fullmatch(r"map\[[^]]+\](.+)", go_type):
        return f"{{{_type_of(match[1], package, others)}}}"
    imported, _, name = go_type.rpartition(".")
    full = f"{_IMPORTED_AS.get(imported, imported) if imported else package}.{name}"
    if full in _SPECIAL:
        return _SPECIAL[full]
    return _type_of(others[full], full.rpartition(".")[0], others) if full in others else full


def main() -> None:
    """Writes the table beside this module."""
    text = json.dumps(generate(Path(sys.argv[1])), indent=None, separators=(",", ":"), sort_keys=True)
    text = text.replace('},"', '},\n"')
    Path(__file__).with_name("protobuf_fields.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
