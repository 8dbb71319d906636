"""What is applied to a real cluster: it holds together, the proxy works with it, and asks for no more than it may."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from iptables_world import network_namespace
from scripted_api import Answer, Request, ScriptedApi, listing

from kproxy.api.validation import prepare
from kproxy.cluster.rights import asked
from kproxy.proxy.api_access import SERVICE_ACCOUNT, connect
from kproxy.proxy.config_file import read_file
from netns.namespace import Namespace, run_in

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "manifests" / "real-cluster"
SECONDS = 60.0

NODE = {
    "metadata": {"name": "node1", "uid": "u", "labels": {}},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]},
}
WEB = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.80",
        "clusterIPs": ["10.96.0.80"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
    },
}
SLICE = {
    "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.244.1.7"], "conditions": {"ready": True}, "nodeName": "node1"}],
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
}
LISTS: dict[str, tuple[Any, ...]] = {
    "nodes": (NODE,),
    "services": (WEB,),
    "endpointslices": (SLICE,),
    "servicecidrs": (),
}


def objects() -> dict[str, Any]:
    """Everything that is applied, by kind."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        found.update({document["kind"]: document for document in yaml.safe_load_all(path.read_text())})
    return found


def test_the_manifests_hold_together() -> None:
    found = objects()
    assert set(found) == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet"}
    namespaced = [found[kind]["metadata"] for kind in ("ServiceAccount", "ConfigMap", "DaemonSet")]
    assert [(entry["name"], entry["namespace"]) for entry in namespaced] == [("kproxy", "kube-system")] * 3
    binding = found["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == found["ClusterRole"]["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "kproxy", "namespace": "kube-system"}]
    template = found["DaemonSet"]["spec"]["template"]
    assert found["DaemonSet"]["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    spec = template["spec"]
    assert spec["serviceAccountName"] == "kproxy"
    assert spec["hostNetwork"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "$(NODE_NAME)" in " ".join(container["args"])
        assert [entry["name"] for entry in container["env"]] == ["NODE_NAME"]
    (main,) = spec["containers"]
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert "privileged" not in main["securityContext"]


def test_every_field_is_kubernetes_own() -> None:
    """Of what the lab knows itself; what it forbids its own pods, a real cluster allows this one."""
    for kind in ("ConfigMap", "DaemonSet"):
        _, errors = prepare(objects()[kind], is_strict=True)
        assert {error.detail for error in errors} <= {"disallowed by cluster policy"}


def test_the_config_map_is_what_the_containers_look_for(tmp_path: Path) -> None:
    data = objects()["ConfigMap"]["data"]
    spec = objects()["DaemonSet"]["spec"]["template"]["spec"]
    place = next(mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "config")
    (tmp_path / "config.conf").write_text(data["config.conf"])
    values = read_file(tmp_path / "config.conf")
    assert values["proxy_mode"] == "iptables"
    assert values["kubeconfig"] == f"{place}/kubeconfig.conf"
    assert f"--config={place}/config.conf" in spec["containers"][0]["args"]
    assert set(data) == {"config.conf", "kubeconfig.conf"}
    assert data["kubeconfig.conf"].count(str(SERVICE_ACCOUNT)) == 2


def test_the_image_is_made_of_what_is_there() -> None:
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", "")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (packages,) = re.findall(r"^PACKAGES := (.*)$", makefile, re.MULTILINE)
    for line in re.findall(r"--no-install-recommends ([^&\n]*)", text):
        assert set(line.split()) <= set(packages.split())
    (entrypoint,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, re.MULTILINE)
    (venv,) = re.findall(r"^RUN python3 -m venv (\S+)$", text, re.MULTILINE)
    assert entrypoint == f"{venv}/bin/kproxy"
    images = {container["image"] for container in _containers()}
    (built,) = re.findall(r"docker build .* -t (\S+) \.$", text, re.MULTILINE)
    assert images == {built}


def _containers() -> list[Any]:
    spec = objects()["DaemonSet"]["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


# ----- the proxy with these files, as one node of such a cluster


class Node:
    """A network namespace with an API server and the proxy in it, both by the manifests' own files."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.folder = folder
        self.namespace = Namespace("node", Path(f"/proc/{pid}/ns/net"))
        self.over = threading.Event()
        run_in(self.namespace, subprocess.run, ["ip", "link", "set", "lo", "up"], check=True)
        self.api: ScriptedApi = run_in(self.namespace, ScriptedApi, folder, self.script)
        account = folder / "account"
        account.mkdir()
        (account / "token").write_text("secret")
        (account / "ca.crt").write_bytes(self.api.authority.read_bytes())
        data = objects()["ConfigMap"]["data"]
        kubeconfig = data["kubeconfig.conf"].replace(str(SERVICE_ACCOUNT), str(account))
        kubeconfig = re.sub(r"server: .*", f"server: {self.api.url}", kubeconfig)
        (folder / "kubeconfig.conf").write_text(kubeconfig)
        config = data["config.conf"].replace("/etc/kproxy/", f"{folder}/")
        # These belong to the machine that the test runs on.
        config = re.sub(r"oomScoreAdj: .*", "oomScoreAdj: 0", config) + "conntrack:\n  maxPerCore: 0\n"
        (folder / "config.conf").write_text(config)

    def script(self, request: Request) -> Answer:
        """Lists; watches of which nothing comes; events that are taken."""
        if request.authorization != "Bearer secret":
            return Answer(401, {"kind": "Status", "code": 401, "reason": "Unauthorized", "message": "Unauthorized"})
        if request.method == "POST":
            return Answer(201, {"kind": "Event", "metadata": {}})
        if "watch" in request.query:
            self.over.wait()
            return Answer()
        return listing(*LISTS[request.path.rpartition("/")[2]])

    def run(self, args: list[str], log: Any) -> subprocess.Popen[bytes]:
        """A container of the pod."""
        words = [word.replace("/etc/kproxy/", f"{self.folder}/").replace("$(NODE_NAME)", "node1") for word in args]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XTABLES_LOCKFILE": str(self.folder / "lock"),
        }
        command = [sys.executable, "-m", "kproxy", *words]
        return run_in(self.namespace, subprocess.Popen, command, env=environment, stdout=log, stderr=log)

    def close(self) -> None:
        """Ends the API server."""
        self.over.set()
        self.api.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with network_namespace() as pid:
        made = Node(pid, tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.root
def test_the_proxy_works_with_these_files_and_asks_for_exactly_what_it_may(node: Node, tmp_path: Path) -> None:
    init, main = _containers()
    log = tmp_path / "log"
    with log.open("wb") as output:
        prepared = node.run(init["args"], output)
        assert prepared.wait(SECONDS) == 0, log.read_text()
        proxy = node.run(main["args"], output)
        try:
            wait_for(lambda: "10.96.0.80" in rules(node), proxy, log)
            wait_for(lambda: any(request.method == "POST" for request in node.api.requests), proxy, log)
        finally:
            proxy.terminate()
            assert proxy.wait(SECONDS) == 0, log.read_text()
    assert seen(node.api.requests) == allowed()


def wait_for(is_so: Any, proxy: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert proxy.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def rules(node: Node) -> str:
    return "\n".join(
        run_in(node.namespace, subprocess.run, [tool, "-t", "nat"], capture_output=True, text=True, check=False).stdout
        for tool in ("iptables-legacy-save", "iptables-nft-save")
    )


def seen(requests: list[Request]) -> set[tuple[str, str, str]]:
    """Verb, group and resource of each request, as the API server's authorizer takes them."""
    named = [asked(request.method, request.path, request.query) for request in requests]
    return {(one.verb, one.group, one.resource_path) for one in named}


def allowed() -> set[tuple[str, str, str]]:
    """The same of what the ClusterRole allows."""
    return {
        (verb, group, resource)
        for rule in objects()["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_kubeconfig_without_its_account_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(objects()["ConfigMap"]["data"]["kubeconfig.conf"])
    with pytest.raises(Exception, match=r"ca\.crt"):
        connect(str(tmp_path / "kubeconfig"), "")
