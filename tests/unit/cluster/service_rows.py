"""Steps that a row of a table takes against a real API on its socket, and what it must see.

A row is a list of steps. A step is a request about the Service "web" (or the one that it names) and what the answer
must be: ``shows`` names fields by their dotted path, ``says`` is every error as Kubernetes words it, ``warns`` every
warning. ``Is("x")`` in ``shows`` takes note of a value the first time and compares it afterwards, ``Other("x")`` is any
other value, ``Within(low, high)`` an address or number between the two, ``GONE`` no field at all.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Object = dict[str, Any]
GONE = object()
SERVICES = "/api/v1/namespaces/default/services"
APPLIES = "/apis/kproxy.dev/v1alpha1/applies"


@dataclass(frozen=True)
class Is:
    name: str


@dataclass(frozen=True)
class Other:
    name: str


@dataclass(frozen=True)
class Within:
    low: str | int
    high: str | int


@dataclass(frozen=True)
class Step:
    verb: str
    spec: Mapping[str, Any]
    name: str = "web"
    shows: Mapping[str, Any] = field(default_factory=dict)
    says: Sequence[str] = ()
    warns: Sequence[str] = ()
    code: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def step(verb: str) -> Any:
    def make(
        spec: Mapping[str, Any] | None = None,
        *,
        name: str = "web",
        shows: Mapping[str, Any] | None = None,
        says: str | Sequence[str] = (),
        warns: str | Sequence[str] = (),
        code: int = 0,
        **metadata: Any,
    ) -> Step:
        said = [says] if isinstance(says, str) else says
        warned = [warns] if isinstance(warns, str) else warns
        return Step(verb, spec or {}, name, shows or {}, said, warned, code, metadata)

    return make


post = step("post")
"""Creates the Service; one port 80 unless the spec says otherwise."""
put = step("put")
"""Replaces it by a spec that knows nothing of what is stored; one port 80 unless it says otherwise."""
edit = step("edit")
"""Reads it, changes fields (None removes one) and puts it back."""
patch = step("patch")
"""Merges a patch into its spec."""
apply = step("apply")
"""Applies a document."""
status = step("status")
"""Merges a patch into its status."""
get = step("get")
delete = step("delete")


class Socket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self.path))


class Probe:
    """Takes the steps of one row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: dict[str, Any] = {}

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Object, list[str]]:
        connection = Socket(self._path)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": kind})
        response = connection.getresponse()
        answer = json.loads(response.read())
        warnings = [re.fullmatch(r'299 - "(.*)"', text)[1] for text in response.msg.get_all("Warning") or ()]  # type: ignore[index]
        connection.close()
        return response.status, answer, [text.replace('\\"', '"').replace("\\\\", "\\") for text in warnings]

    def take(self, one: Step) -> None:
        code, answer, warnings = getattr(self, f"_{one.verb}")(one)
        if one.says or one.code >= 400:
            found = answer.get("details", {}).get("causes") or [{"field": "", "message": answer.get("message")}]
            assert code == (one.code or 422), answer
            assert [f"{cause['field']}: {cause['message']}".removeprefix(": ") for cause in found] == list(one.says)
            return
        assert code in (200, 201), answer
        assert warnings == list(one.warns)
        if one.verb == "apply":
            answer = self.call("GET", f"{SERVICES}/{one.name}")[1]
        for path, wanted in one.shows.items():
            self._compare(path, at(answer, path), wanted)

    def _compare(self, path: str, found: Any, wanted: Any) -> None:
        match wanted:
            case Is(name):
                assert found == self._noted.setdefault(name, found), path
                assert found not in (GONE, "", 0, None), path
            case Other(name):
                assert found not in (self._noted[name], GONE, "", 0, None), path
            case Within(low, high) if isinstance(low, int) and isinstance(high, int):
                assert low <= found <= high, (path, found)
            case Within(low, high):
                assert ipaddress.ip_address(low) <= ipaddress.ip_address(found) <= ipaddress.ip_address(high), found  # type: ignore[operator]
            case _:
                assert found == wanted, (path, found)

    def _body(self, one: Step) -> Object:
        spec = {"ports": [{"port": 80}], **one.spec}
        spec = {key: value for key, value in spec.items() if value is not GONE}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": one.name, **one.metadata},
            "spec": spec,
        }

    def _post(self, one: Step) -> tuple[int, Object, list[str]]:
        return self.call("POST", SERVICES, self._body(one))

    def _put(self, one: Step) -> tuple[int, Object, list[str]]:
        return self.call("PUT", f"{SERVICES}/{one.name}", self._body(one))

    def _edit(self, one: Step) -> tuple[int, Object, list[str]]:
        _, stored, _ = self.call("GET", f"{SERVICES}/{one.name}")
        stored["spec"] = {key: value for key, value in {**stored["spec"], **one.spec}.items() if value is not None}
        return self.call("PUT", f"{SERVICES}/{one.name}", stored)

    def _patch(self, one: Step) -> tuple[int, Object, list[str]]:
        body = {"spec": dict(one.spec)} | ({"metadata": dict(one.metadata)} if one.metadata else {})
        return self.call("PATCH", f"{SERVICES}/{one.name}", body)

    def _status(self, one: Step) -> tuple[int, Object, list[str]]:
        return self.call("PATCH", f"{SERVICES}/{one.name}/status", {"status": dict(one.spec)})

    def _apply(self, one: Step) -> tuple[int, Object, list[str]]:
        code, answer, _ = self.call("POST", APPLIES, {"documents": [{"object": self._body(one)}]})
        return code, answer, [entry["message"] for entry in answer.get("warnings", ())]

    def _get(self, one: Step) -> tuple[int, Object, list[str]]:
        return self.call("GET", f"{SERVICES}/{one.name}")

    def _delete(self, one: Step) -> tuple[int, Object, list[str]]:
        return self.call("DELETE", f"{SERVICES}/{one.name}")

    def clear(self) -> None:
        for item in self.call("GET", SERVICES)[1]["items"]:
            self.call("DELETE", f"{SERVICES}/{item['metadata']['name']}")


def at(value: Any, path: str) -> Any:
    """What is at a dotted path, or GONE."""
    for part in path.split("."):
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else GONE
        elif isinstance(value, dict):
            value = value.get(part, GONE)
        else:
            return GONE
    return value
