"""The real kubectl and a lab: what people type, and what they see."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kproxy.api.kinds import EVENT_OF_GROUP, KINDS
from kproxy.testing.labs import Lab, fresh_lab

pytestmark = pytest.mark.root

KUBECTL = Path(sys.executable).with_name("kubectl")
DEADLINE = 60.0

WEB = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: echo, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
SHELL = """\
apiVersion: v1
kind: Pod
metadata: {name: sh}
spec:
  containers:
  - {name: c, image: busybox, command: [sh, -c, "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 600"]}
"""
EVERYTHING = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: held}
spec: {holderIdentity: somebody, leaseDurationSeconds: 40}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: echo, ports: [{containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: c, image: echo, ports: [{containerPort: 8080}]}]}
"""


class Kubectl:
    """kubectl with the lab's kubeconfig, in one namespace."""

    def __init__(self, env: dict[str, str], namespace: str) -> None:
        self.env = env
        self.namespace = namespace

    def argv(self, *words: str) -> list[str]:
        return [str(KUBECTL), "--namespace", self.namespace, *words]

    def try_(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), input=stdin, capture_output=True, text=True, timeout=120, check=False, env=self.env
        )

    def __call__(self, *words: str, stdin: str = "") -> str:
        """What it prints; it has to succeed."""
        done = self.try_(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def refused(self, *words: str, stdin: str = "") -> str:
        """What it complains of; it has to fail."""
        done = self.try_(*words, stdin=stdin)
        assert done.returncode != 0, f"kubectl {' '.join(words)} succeeded: {done.stdout}"
        return done.stderr

    def object(self, *words: str) -> dict:
        return json.loads(self("get", *words, "-o", "json"))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(*words), stdout=subprocess.PIPE, bufsize=0, env=self.env)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if not KUBECTL.exists():
        why = f"there is no {KUBECTL}: `make test` fetches it"
        pytest.fail(why, pytrace=False) if os.environ.get("CI") else pytest.skip(why)
    with fresh_lab() as running:
        yield running


@pytest.fixture(scope="module")
def env(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("kubectl")
    config = home / "config"
    config.write_text(lab.run("lab", "kubeconfig"))
    config.chmod(0o600)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(config)}


@pytest.fixture
def kubectl(env: dict[str, str]) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    made = Kubectl(env, f"n{uuid.uuid4().hex[:8]}")
    made("create", "namespace", made.namespace)
    yield made
    made("delete", "namespace", made.namespace, "--wait=false")


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        time.sleep(0.1)


def columns(table: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.rstrip()) for line in table.splitlines()]


# ----- apply, diff, delete


def test_apply_and_diff_on_the_client(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", stdin=WEB) == "deployment.apps/web created\nservice/web created\n"
    assert kubectl("apply", "-f", "-", stdin=WEB) == "deployment.apps/web unchanged\nservice/web unchanged\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert kubectl("diff", "-f", "-", stdin=WEB) == ""
    more = WEB.replace("replicas: 2", "replicas: 3").replace("{app: web}, ports", "{app: other}, ports")
    difference = kubectl.try_("diff", "-f", "-", stdin=more)
    assert difference.returncode == 1
    changed = [line for line in difference.stdout.splitlines() if re.match(r"[-+][^-+]", line)]
    assert [line for line in changed if "generation" not in line] == [
        "-  replicas: 2",
        "+  replicas: 3",
        "-    app: web",
        "+    app: other",
    ]
    assert kubectl("apply", "-f", "-", stdin=more) == "deployment.apps/web configured\nservice/web configured\n"
    assert kubectl.object("service", "web")["spec"]["selector"] == {"app": "other"}
    assert kubectl("delete", "-f", "-", stdin=more) == ('deployment.apps "web" deleted\nservice "web" deleted\n')
    assert "NotFound" in kubectl.refused("get", "deployment/web")


def test_apply_on_the_server_and_its_conflicts(kubectl: Kubectl) -> None:
    def apply(manifest: str, *words: str) -> subprocess.CompletedProcess[str]:
        return kubectl.try_("apply", "--server-side", *words, "-f", "-", stdin=manifest)

    assert apply(WEB, "--field-manager=one").stdout == (
        "deployment.apps/web serverside-applied\nservice/web serverside-applied\n"
    )
    theirs = WEB.replace("replicas: 2", "replicas: 1")
    refused = apply(theirs, "--field-manager=two")
    assert refused.returncode == 1
    assert 'conflict with "one": .spec.replicas' in refused.stderr
    assert kubectl.object("deployment", "web")["spec"]["replicas"] == 2
    assert apply(theirs, "--field-manager=two", "--force-conflicts").returncode == 0
    assert kubectl.object("deployment", "web")["spec"]["replicas"] == 1
    managers = kubectl("get", "deployment", "web", "-o", "yaml", "--show-managed-fields")
    assert {entry["manager"] for entry in yaml.safe_load(managers)["metadata"]["managedFields"]} >= {"one", "two"}


def test_a_dry_run_changes_nothing(kubectl: Kubectl) -> None:
    assert kubectl("create", "configmap", "c", "--from-literal=a=b", "--dry-run=server") == (
        "configmap/c created (server dry run)\n"
    )
    assert "NotFound" in kubectl.refused("get", "configmap", "c")


def test_create_replace_and_delete_by_label(kubectl: Kubectl) -> None:
    assert kubectl("create", "deployment", "web", "--image=echo", "--port=8080") == "deployment.apps/web created\n"
    assert kubectl("create", "service", "clusterip", "web", "--tcp=80:8080") == "service/web created\n"
    assert kubectl("create", "configmap", "c", "--from-literal=a=b") == "configmap/c created\n"
    made = kubectl.object("configmap", "c")
    assert made["data"] == {"a": "b"}
    assert kubectl("replace", "-f", "-", stdin=json.dumps(made | {"data": {"a": "c"}})) == "configmap/c replaced\n"
    assert kubectl.object("configmap", "c")["data"] == {"a": "c"}
    service = kubectl.object("service", "web")["spec"]
    assert (service["selector"], service["ports"][0]["targetPort"]) == ({"app": "web"}, 8080)
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    kubectl("delete", "deployment,service", "-l", "app=web")
    eventually(lambda: kubectl("get", "pods", "-o", "name") == "", "the pods are gone")
    kubectl("run", "one", "--image=echo", "--port=8080")
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=60s")
    kubectl("delete", "pod", "--all", "--timeout=60s")
    assert kubectl.try_("get", "pods").stderr == f"No resources found in {kubectl.namespace} namespace.\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("get", "pod", "nobody"), 'Error from server (NotFound): pods "nobody" not found'),
        (("get", "secrets"), 'the server doesn\'t have a resource type "secrets"'),
        (("create", "configmap", "kept"), 'configmaps "kept" already exists'),
        (("scale", "deployment", "nobody", "--replicas=1"), 'deployments.apps "nobody" not found'),
        (("logs", "nobody"), 'pods "nobody" not found'),
        (("exec", "nobody", "--", "true"), 'pods "nobody" not found'),
        (("delete", "namespace", "default"), "this namespace may not be deleted"),
    ],
)
def test_refusals(kubectl: Kubectl, words: tuple[str, ...], complaint: str) -> None:
    kubectl("create", "configmap", "kept")
    assert complaint in kubectl.refused(*words)


def test_fields_that_nobody_knows(kubectl: Kubectl) -> None:
    wrong = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatas: {a: b}\n"
    assert 'unknown field "datas"' in kubectl.refused("apply", "--validate=strict", "-f", "-", stdin=wrong)
    warned = kubectl.try_("apply", "--validate=warn", "-f", "-", stdin=wrong)
    assert (warned.returncode, warned.stdout) == (0, "configmap/c created\n")
    assert 'Warning: unknown field "datas"' in warned.stderr
    assert kubectl.try_("apply", "--validate=ignore", "-f", "-", stdin=wrong).stderr == ""


def test_what_is_invalid_is_told_as_kubernetes_tells_it(kubectl: Kubectl) -> None:
    bad = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 70000}]}\n"
    assert 'The Service "web" is invalid:' in (told := kubectl.refused("apply", "-f", "-", stdin=bad))
    assert "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive" in told


# ----- looking


def test_get_in_every_format(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    table = columns(kubectl("get", "deployment"))
    assert table[0] == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert table[1][:4] == ["web", "2/2", "2", "2"]
    wide = columns(kubectl("get", "deployment", "web", "-o", "wide"))
    assert wide[0][5:] == ["CONTAINERS", "IMAGES", "SELECTOR"]
    assert wide[1][5:] == ["c", "echo", "app=web"]
    assert columns(kubectl("get", "pods", "-o", "wide"))[0] == [
        *("NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES")
    ]
    assert columns(kubectl("get", "deploy", "--show-labels"))[1][5] == "app=web"
    assert kubectl("get", "deploy", "--no-headers").startswith("web ")
    assert kubectl("get", "deployment,service", "-o", "name") == "deployment.apps/web\nservice/web\n"
    assert kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas} {.metadata.name}") == "2 web"
    assert kubectl("get", "deploy", "web", "-o", "go-template={{.kind}}") == "Deployment"
    assert columns(kubectl("get", "svc", "-o", "custom-columns=N:.metadata.name,P:.spec.ports[0].port")) == [
        ["N", "P"],
        ["web", "80"],
    ]
    as_json = json.loads(kubectl("get", "deploy", "web", "-o", "json"))
    assert as_json == yaml.safe_load(kubectl("get", "deploy", "web", "-o", "yaml"))
    assert (as_json["apiVersion"], as_json["kind"]) == ("apps/v1", "Deployment")
    assert kubectl.object("deploy")["kind"] == "List"
    pods = kubectl("get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o", "name").split()
    assert pods == sorted(pods)
    assert len(pods) == 2
    running = kubectl("get", "pods", "--field-selector", "status.phase=Running", "-o", "name").split()
    assert sorted(running) == pods
    everything = kubectl("get", "all")
    assert [line.split()[0] for line in everything.splitlines() if "/web" in line][-1].startswith(
        "replicaset.apps/web-"
    )
    assert columns(kubectl("get", "pods", "-A"))[0][0] == "NAMESPACE"


def test_get_goes_on_watching(kubectl: Kubectl) -> None:
    kubectl("run", "first", "--image=echo", "--port=8080")
    watch = kubectl.start("get", "pods", "--watch")
    try:
        header = _lines_until(watch, lambda line: line.startswith("first "))[0]
        assert header.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
        kubectl("apply", "-f", "-", stdin=SHELL)
        seen = _lines_until(watch, lambda line: line.split()[:3] == ["sh", "1/1", "Running"])
        assert next(line.split()[:3] for line in seen if line.startswith("sh ")) == ["sh", "0/1", "Pending"]
        kubectl("delete", "pod", "sh", "--now", "--wait=false")
        _lines_until(watch, lambda line: line.split()[:1] == ["sh"] and "Running" not in line)
    finally:
        watch.kill()
        watch.communicate()


def _lines_until(process: subprocess.Popen[bytes], is_last: Callable[[str], bool]) -> list[str]:
    """What it prints, up to the line that is wanted."""
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + DEADLINE
    while not lines or not is_last(lines[-1]):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"this and no more: {lines}"
        line = process.stdout.readline()  # unbuffered: nothing is read that select does not see any more
        assert line, f"it ended after {lines}"
        lines.append(line.decode())
    return lines


NAMESPACED = [kind.plural for kind in KINDS if kind.namespaced and kind.name != "Event"]


@pytest.mark.parametrize("kind", [*NAMESPACED, "namespaces", "servicecidrs"])
def test_kproxy_prints_the_same_table(lab: Lab, settled: Kubectl, kind: str) -> None:
    def rows(table: str) -> list[list[str]]:
        found = columns(table)
        age = found[0].index("AGE")
        return [[cell for index, cell in enumerate(row) if index != age] for row in found]

    def is_same() -> bool:
        ours = rows(lab.run("get", kind, "-n", settled.namespace))
        return ours == rows(settled("get", kind)) and len(ours) > 1

    eventually(is_same, f"kubectl get {kind} and kproxy get {kind} say the same")


@pytest.fixture(scope="module")
def settled(env: dict[str, str]) -> Iterator[Kubectl]:
    """A namespace with an object or more of every kind."""
    made = Kubectl(env, f"n{uuid.uuid4().hex[:8]}")
    made("create", "namespace", made.namespace)
    made("apply", "-f", "-", stdin="---\n".join((WEB, SHELL, EVERYTHING)))
    for workload in ("deployment/web", "statefulset/db", "daemonset/agent"):
        made("rollout", "status", workload, "--timeout=90s")
    made("wait", "--for=condition=Ready", "pod/sh", "--timeout=60s")
    yield made
    made("delete", "namespace", made.namespace, "--wait=false")


def test_describe(settled: Kubectl) -> None:
    for words, lines in {
        "pod sh": [r"Name: +sh", r"Node: +node\d/192\.168\.1\.\d", r"Status: +Running", r" +Ready +True", r"Events:"],
        "service web": [r"Selector: +app=web", r"Port: +<unset> +80/TCP", r"Endpoints: +10\.244\.\d\.\d+:8080,10\..*"],
        "deployment web": [r"Replicas: +2 desired \| 2 updated \| 2 total \| 2 available \| 0 unavailable"],
        "statefulset db": [r"Replicas: +1 desired \| 1 total", r"Pods Status: +1 Running.*"],
        "daemonset agent": [r"Desired Number of Nodes Scheduled: 3", r"Pods Status: +3 Running.*"],
        "configmap settings": [r"a:", r"1"],
        "node node1": [r" +InternalIP: +192\.168\.1\.2", r"PodCIDR: +10\.244\.1\.0/24", r" +Architecture: +\w+"],
        "lease held": [r" +Holder Identity: +somebody"],
    }.items():
        told = [line.rstrip() for line in settled("describe", *words.split()).splitlines()]
        for line in lines:
            assert any(re.fullmatch(f" *{line}", text) for text in told), f"{words}: no {line} in {told}"


def test_events_are_shown_where_people_look(settled: Kubectl) -> None:
    scheduled = f"Successfully assigned {settled.namespace}/sh to node"
    assert scheduled in settled("get", "events")
    assert scheduled in settled("events", "--for", "pod/sh")
    assert scheduled in settled("describe", "pod", "sh")
    assert scheduled in settled("get", "events.events.k8s.io")
    by_field = settled.object("events", "--field-selector", "involvedObject.name=sh,reason=Scheduled")
    assert by_field["items"][0]["involvedObject"]["kind"] == "Pod"
    in_the_other_form = settled.object("events.v1.events.k8s.io")["items"]
    assert {"regarding", "note"} <= in_the_other_form[0].keys()


def test_kproxy_describes_events_too(lab: Lab, settled: Kubectl) -> None:
    told = lab.run("describe", "pod", "sh", "-n", settled.namespace)
    assert re.search(r"Events:\n +Type +Reason +Age +From +Message\n", told), told
    assert f"Successfully assigned {settled.namespace}/sh to node" in told


def test_explain(kubectl: Kubectl) -> None:
    told = kubectl("explain", "deployment.spec.replicas")
    assert re.search(r"GROUP: +apps\nKIND: +Deployment\nVERSION: +v1\n\nFIELD: replicas <integer>", told)
    assert re.search(r"containerPort\s+<integer> -required-", kubectl("explain", "pod.spec.containers.ports"))
    assert re.search(r"\n  clusterIPs\s+<\[\]string>\n", kubectl("explain", "service.spec", "--recursive"))
    for kind in KINDS:
        assert kubectl("explain", kind.plural)


def test_api_resources_and_versions(kubectl: Kubectl) -> None:
    listed = {tuple(line.split()[-3:]) for line in kubectl("api-resources", "--no-headers").splitlines()}
    served = (*KINDS, EVENT_OF_GROUP)
    assert listed == {(kind.api_version, str(kind.namespaced).lower(), kind.name) for kind in served}
    assert kubectl("api-versions").split() == sorted({kind.api_version for kind in served})
    verbs = kubectl("api-resources", "-o", "wide", "--no-headers")
    assert "create,delete,deletecollection,get,list,patch,update,watch" in verbs


def test_the_cluster_as_a_whole(kubectl: Kubectl) -> None:
    assert "Kubernetes control plane" in kubectl("cluster-info")
    assert "Server Version: v1.3" in kubectl("version")
    assert kubectl("auth", "can-i", "delete", "pods") == "yes\n"
    assert kubectl("get", "--raw", "/readyz") == "ok"


# ----- changing


def test_patches_labels_and_annotations(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    by_name = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "b"}]}]}}}}
    assert kubectl("patch", "deployment", "web", "-p", json.dumps(by_name)) == "deployment.apps/web patched\n"
    (container,) = kubectl.object("deployment", "web")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["env"]) == ("echo", [{"name": "A", "value": "b"}])
    kubectl("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"labels":{"x":"y","app":null}}}')
    assert kubectl.object("deployment", "web")["metadata"]["labels"] == {"x": "y"}
    steps = [
        {"op": "test", "path": "/spec/replicas", "value": 2},
        {"op": "replace", "path": "/spec/replicas", "value": 1},
    ]
    kubectl("patch", "deployment", "web", "--type=json", "-p", json.dumps(steps))
    assert kubectl.object("deployment", "web")["spec"]["replicas"] == 1
    assert "testing value" in kubectl.refused("patch", "deployment", "web", "--type=json", "-p", json.dumps(steps))
    assert kubectl("label", "service", "web", "tier=front") == "service/web labeled\n"
    assert "--overwrite" in kubectl.refused("label", "service", "web", "tier=back")
    assert kubectl("label", "service", "web", "tier-") == "service/web unlabeled\n"
    assert kubectl("annotate", "service", "web", "note=hello") == "service/web annotated\n"
    metadata = kubectl.object("service", "web")["metadata"]
    assert (metadata.get("labels") or {}, metadata["annotations"]["note"]) == ({}, "hello")


def test_scale_and_roll_out(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEB)
    assert kubectl("scale", "deployment/web", "--replicas=3") == "deployment.apps/web scaled\n"
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert kubectl("get", "deployment", "web", "--no-headers").split()[1] == "3/3"
    assert "Expected replicas to be 7" in kubectl.refused("scale", "deploy/web", "--current-replicas=7", "--replicas=1")
    assert kubectl("set", "image", "deployment/web", "c=other") == "deployment.apps/web image updated\n"
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    history = kubectl("rollout", "history", "deployment/web")
    assert [line.split()[0] for line in history.splitlines() if line[:1].isdigit()] == ["1", "2"]
    assert kubectl("rollout", "undo", "deployment/web") == "deployment.apps/web rolled back\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    template = kubectl.object("deployment", "web")["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "echo"
    assert kubectl("rollout", "restart", "deployment/web") == "deployment.apps/web restarted\n"
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")


def test_expose_and_wait(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEB.partition("---")[0])
    assert kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s") == (
        "deployment.apps/web condition met\n"
    )
    assert kubectl("expose", "deployment", "web", "--port=81", "--target-port=8080") == "service/web exposed\n"
    assert kubectl.object("service", "web")["spec"]["ports"] == [{"port": 81, "protocol": "TCP", "targetPort": 8080}]
    eventually(
        lambda: len(kubectl("get", "endpoints", "web", "-o", "jsonpath={.subsets[*].addresses[*].ip}").split()) == 2,
        "the Service has its endpoints",
    )
    kubectl("scale", "deployment/web", "--replicas=1")
    kubectl("wait", "--for=jsonpath={.status.replicas}=1", "deployment/web", "--timeout=60s")
    assert kubectl("delete", "service", "web") == 'service "web" deleted\n'
    kubectl("delete", "deployment", "web", "--wait=false")
    kubectl("wait", "--for=delete", "deployment/web", "--timeout=60s")
    assert "timed out" in kubectl.refused("wait", "--for=condition=Ready", "node/node1", "--for=jsonpath={.a}=b",
                                          "--timeout=1s")  # fmt: skip


def test_nodes_are_cordoned_and_tainted(kubectl: Kubectl) -> None:
    kubectl("cordon", "node3")
    try:
        assert kubectl("get", "node", "node3", "--no-headers").split()[1] == "Ready,SchedulingDisabled"
    finally:
        kubectl("uncordon", "node3")
    assert kubectl("get", "node", "node3", "--no-headers").split()[1] == "Ready"


# ----- being inside


def test_logs(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=SHELL)
    kubectl("wait", "--for=condition=Ready", "pod/sh", "--timeout=60s")
    eventually(lambda: kubectl("logs", "sh").endswith("line 5\n"), "all has been written")
    assert kubectl("logs", "sh") == "".join(f"line {number}\n" for number in range(1, 6))
    assert kubectl("logs", "sh", "-c", "c", "--tail=2") == "line 4\nline 5\n"
    assert kubectl("logs", "sh", "--limit-bytes=6") == "line 1"
    assert 'previous terminated container "c" in pod "sh" not found' in kubectl.refused("logs", "sh", "--previous")
    assert "container nobody is not valid for pod sh" in kubectl.refused("logs", "sh", "-c", "nobody")
    follower = kubectl.start("logs", "sh", "--follow")
    try:
        _lines_until(follower, lambda line: line == "line 5\n")
        kubectl("delete", "pod", "sh", "--now", "--wait=false")
        assert follower.wait(timeout=DEADLINE) == 0
    finally:
        follower.kill()
        follower.communicate()


def test_exec(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=SHELL)
    kubectl("wait", "--for=condition=Ready", "pod/sh", "--timeout=60s")
    assert kubectl("exec", "sh", "--", "hostname") == "sh\n"
    both = kubectl.try_("exec", "sh", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (both.returncode, both.stdout) == (7, "out\n")
    assert both.stderr.splitlines()[0] == "err"
    assert kubectl("exec", "-i", "sh", "--", "wc", "-c", stdin="x" * 200_000).strip() == "200000"
    much = kubectl("exec", "sh", "--", "sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' y")
    assert len(much) == 1_000_000
    assert kubectl.try_("exec", "sh", "--", "no-such-command").returncode == 127


@pytest.mark.parametrize("flags", [(), ("-i",)], ids=["without input", "with input"])
def test_a_command_ends_with_its_client(kubectl: Kubectl, flags: tuple[str, ...]) -> None:
    kubectl("apply", "-f", "-", stdin=SHELL)
    kubectl("wait", "--for=condition=Ready", "pod/sh", "--timeout=60s")

    def is_running() -> bool:
        return "54321" in kubectl("exec", "sh", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")

    client = kubectl.start("exec", *flags, "sh", "--", "sleep", "54321")
    try:
        eventually(is_running, "the command runs")
    finally:
        client.kill()
        client.communicate()
    eventually(lambda: not is_running(), "the command has ended")


def test_exec_on_a_terminal(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=SHELL)
    kubectl("wait", "--for=condition=Ready", "pod/sh", "--timeout=60s")
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        argv = kubectl.argv(
            "exec", "-it", "sh", "--", "sh", "-c", 'read x; test -t 0 && echo "<$x>"; sleep 1; stty size'
        )
        with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=kubectl.env) as process:
            os.close(theirs)
            os.write(ours, b"hello\n")
            shown = _read_until(ours, rb"33 77")
            assert b"<hello>" in shown
            assert process.wait(timeout=DEADLINE) == 0
    finally:
        os.close(ours)


def _read_until(terminal: int, pattern: bytes) -> bytes:
    shown = b""
    deadline = time.monotonic() + DEADLINE
    while not re.search(pattern, shown):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"this and no more: {shown!r}"
        shown += os.read(terminal, 4096)
    return shown
