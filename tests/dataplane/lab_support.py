"""What the tests of whole labs share: bringing one up, filling it, asking it, and looking at the host around it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kproxy.api.kinds import POD, SERVICE
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.cluster import clusterfile, lab
from kproxy.cluster.clusterfile import ClusterConfig, Overrides
from kproxy.cluster.controllers.node_proxy import programmed
from kproxy.cluster.layout import RUN_ROOT, STATE_ROOT, Layout
from kproxy.testing.labs import guarded
from netns.namespace import named, socket_in


def config(name: str, **overrides: Any) -> ClusterConfig:
    return clusterfile.read([], Overrides(lab=name, **{"dns_replicas": 0, **overrides}))


@contextlib.contextmanager
def running(name: str, **overrides: Any) -> Iterator[tuple[Layout, Client]]:
    """A lab that is up inside and gone after."""
    lab.down(name)
    with guarded(name):
        try:
            lab.up(config(name, **overrides))
            client = Client(Layout(name).api_url)
            yield Layout(name), client
            client.close()
        finally:
            lab.down(name)


def pod(name: str, *, ports: tuple[int, ...] = (8080,), **spec: Any) -> Object:
    container: Object = {"name": "main", "image": "any"}
    app = "job" if "command" in spec else "web"
    if "command" in spec:
        container["command"] = spec.pop("command")
    elif ports:
        container["ports"] = [{"containerPort": port} for port in ports]
        container["ports"] += [{"containerPort": port, "protocol": "UDP"} for port in ports]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"containers": [container], **spec},
    }


def service(name: str, *, port: int = 80, target: int = 8080, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": "web"},
            "ports": [{"port": port, "targetPort": target}],
            **spec,
        },
    }


def apply(client: Client, *objects: Object) -> None:
    client.apply([{"object": obj} for obj in objects])


def until(check: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return found


def is_ready(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def ready_pods(client: Client, count: int) -> dict[str, str]:
    """Name to address of all pods, once so many of them are ready."""

    def look() -> dict[str, str]:
        items = [obj for obj in client.list(POD, "default").items if is_ready(obj)]
        return {obj["metadata"]["name"]: obj["status"]["podIP"] for obj in items} if len(items) == count else {}

    found: dict[str, str] = until(look, f"{count} pods ready")
    return found


def cluster_ips(client: Client, name: str) -> list[str]:
    found: list[str] = client.get(SERVICE, name, "default")["spec"]["clusterIPs"]
    return found


def get(layout: Layout, place: str, address: str, port: int, path: str = "/json") -> Any:
    """What answers at an address when it is asked from a node, client or pod (`NAMESPACE.NAME`)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = http.client.HTTPConnection(address, port)
    with socket_in(named(layout.netns(place), layout.namespaces), family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        connection.sock = sock
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
    return json.loads(text) if path == "/json" else text


def answers(layout: Layout, place: str, address: str, port: int) -> bool:
    try:
        return bool(get(layout, place, address, port, "/hostname"))
    except OSError:
        return False


def wait_until_programmed(layout: Layout, client: Client, nodes: list[str]) -> None:
    """Waits until every Service's endpoints are in the nodes' kernels."""
    version = client.list(SERVICE).resource_version

    def has(node: str) -> bool:
        try:
            return int(programmed(layout, node, version=version, seconds=10)["resourceVersion"]) >= int(version)
        except ConnectionRefusedError:  # it is being started again
            return False

    for node in nodes:
        until(lambda node=node: has(node), f"{node} programmed")


def host_state() -> dict[str, Any]:
    """The host's own network, but for counters."""
    state: dict[str, Any] = {}
    for what in ("link", "addr", "route", "rule"):
        for family in ("-4", "-6"):
            state[f"ip {family} {what}"] = _without_counters(json.loads(_run("ip", "-j", family, what) or "[]"))
    for tool in (
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "iptables-nft-save",
        "ip6tables-nft-save",
    ):
        lines = _run(tool).splitlines()
        state[tool] = [line.partition(" [")[0] if line.startswith(":") else line for line in lines if line[:1] != "#"]
    state["nft"] = _run("nft", "list", "ruleset")
    state["sysctls"] = {key: text for key, text in _sysctls() if not key.endswith(("_count", "_key"))}
    return state


def _without_counters(found: Any) -> Any:
    """What `ip -j` said without what changes by itself: counters, and how long a DHCP address is still good for."""
    volatile = ("stats", "stats64", "valid_life_time", "preferred_life_time")
    if isinstance(found, list):
        return [_without_counters(one) for one in found]
    if isinstance(found, dict):
        return {key: _without_counters(value) for key, value in found.items() if key not in volatile}
    return found


def _sysctls() -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk("/proc/sys/net"):
        for name in names:
            with contextlib.suppress(OSError):
                yield f"{folder}/{name}", Path(folder, name).read_text()


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def assert_nothing_is_left(name: str) -> None:
    """No folder, mount, name or process of the lab."""
    assert not (RUN_ROOT / name).exists()
    assert not (STATE_ROOT / name).exists()
    assert f"/run/kproxy/{name}/" not in Path("/proc/self/mountinfo").read_text()
    own = [path for path in Path("/run/netns").glob(f"{name}-*") if path.is_symlink()]
    assert own == []
    assert [*Path("/sys/fs/cgroup").glob(f"kproxy-{name}"), *Path("/sys/fs/cgroup").glob(f"*/kproxy-{name}")] == []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                assert not any(f"/run/kproxy/{name}/" in part.decode(errors="replace") for part in command)
                assert f"KPROXY_TEST={name}".encode() not in (folder / "environ").read_bytes().split(b"\0")
