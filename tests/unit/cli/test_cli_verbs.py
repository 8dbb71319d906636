"""The verbs against the real API on a real socket; only the nodes are missing, so nothing waits."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_support import Run

from kproxy.api.types import Object
from kproxy.cluster import layout

WEB = """\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.9
  selector: {app: web}
  ports:
    - port: 80
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: web, image: nginx, ports: [{containerPort: 80}]}
"""


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_apply_tells_what_it_made_then_that_nothing_changed(run: Run) -> None:
    first = run("apply", "--wait=0", "-f", "-", stdin=WEB)
    assert (first.status, first.out.splitlines()) == (0, ["service/web created", "deployment.apps/web created"])
    assert 'note: -:11: Deployment "default/web": runs as the built-in echo server' in first.err
    again = run("apply", "--wait=0", "-f", "-", stdin=WEB)
    assert again.out.splitlines() == ["service/web unchanged", "deployment.apps/web unchanged"]
    changed = run("apply", "--wait=0", "-f", "-", stdin=WEB.replace("replicas: 2", "replicas: 3"))
    assert changed.out.splitlines() == ["service/web unchanged", "deployment.apps/web configured"]


def test_dry_run_and_diff_change_nothing(run: Run) -> None:
    dry = run("apply", "--dry-run", "-f", "-", stdin=WEB)
    assert dry.out.splitlines()[0] == "service/web created (dry run)"
    assert run("get", "services").err == "No resources found in default namespace.\n"
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    same = run("diff", "-f", "-", stdin=WEB)
    assert (same.status, same.out) == (0, "")
    other = run("diff", "-f", "-", stdin=WEB.replace("port: 80", "port: 81", 1))
    assert other.status == 1
    assert "-  - port: 80" in other.out
    assert "+  - port: 81" in other.out
    assert "last-applied" not in other.out
    assert "port: 80" in run("get", "service", "web", "-o", "yaml").out


def test_every_error_of_every_file_is_told_and_nothing_happens(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(WEB.replace("- port: 80", "- port: 0"))
    (tmp_path / "b.yaml").write_text("kind: [")
    (tmp_path / "c.yaml").write_text(WEB.split("---")[0].replace("name: web", "name: web\n  nmae: x"))
    done = run("apply", "-f", str(tmp_path))
    assert (done.status, done.out) == (1, "")
    assert f'{tmp_path}/a.yaml:9: Service "default/web": spec.ports[0].port: Invalid value: 0' in done.err
    assert f"{tmp_path}/b.yaml:1: " in done.err
    assert f"{tmp_path}/c.yaml:" in done.err
    assert run("get", "all").out == ""


def test_two_documents_with_one_name_are_refused(run: Run) -> None:
    done = run("apply", "-f", "-", stdin=f"{WEB}---\n{WEB}")
    assert done.status == 1
    assert [line.rpartition(": ")[2] for line in done.err.splitlines()] == [
        "the same object is already at -:1",
        "the same object is already at -:11",
    ]


TWICE = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ports: [{port: 80, nodePort: 31000}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
"""
HERE = 'Service "default/web": '
DUPLICATE = f'-:8: {HERE}metadata.name: Duplicate value: "web": the same object is already at -:1'


@pytest.mark.parametrize(
    ("spec", "findings"),
    [
        pytest.param("{type: NodePort, ports: [{port: 80, nodePort: 31000}]}", [], id="what the first one has taken"),
        pytest.param(
            "{ports: [{port: x}], sessionAffinity: Client}",
            [
                f'-:9: {HERE}spec.ports[0].port: Invalid value: "x": must be an integer',
                f'-:9: {HERE}spec.sessionAffinity: Unsupported value: "Client": supported values: "ClientIP", "None"',
            ],
            id="a wrong type and a wrong value",
        ),
        pytest.param(
            "{ports: [{port: 80, nodePort: 1, name: A}, 5], type: 7, prots: []}",
            [
                f"-:9: {HERE}spec.ports[1]: Invalid value: 5: must be an object",
                f'-:9: {HERE}spec.prots: unknown field "spec.prots", did you mean "ports"?',
                f"-:9: {HERE}spec.type: Invalid value: 7: must be a string",
            ],
            id="nothing that only follows from a wrong type",
        ),
        pytest.param("5", [f"-:9: {HERE}spec: Invalid value: 5: must be an object"], id="no spec at all"),
    ],
)
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_document_of_a_name_used_before_tells_its_other_errors(
    run: Run, spec: str, findings: list[str], is_stored: bool
) -> None:
    if is_stored:
        assert run("apply", "--wait=0", "-f", "-", stdin=TWICE.partition("---")[0]).status == 0
    done = run("apply", "-f", "-", stdin=f"{TWICE}spec: {spec}\n")
    assert done.err.removeprefix("error: ").splitlines() == [DUPLICATE, *findings]


@pytest.mark.parametrize("wrong", ["annotations: {a: 1}", "labels: {a: 1}", "labels: {a: {b: c}}"])
def test_metadata_of_a_wrong_type_hides_no_other_error(run: Run, wrong: str) -> None:
    text = (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: web, {wrong}}}\nspec: {{type: 7up, ports: [{{port: 80}}]}}\n"
    )
    first, second = run("apply", "-f", "-", stdin=text).err.removeprefix("error: ").splitlines()
    assert first.startswith(f"-:3: {HERE}metadata.{wrong.partition(':')[0]}.a: Invalid value: ")
    assert second.startswith(f"-:4: {HERE}spec.type: Unsupported value: ")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", []), ("0s", []), ("2", [2]), ("0.5", [0.5]), ("50ms", [0.05]), ("1m0.5s", [60.5])]
)
def test_wait_takes_the_durations_of_kubernetes(
    run: Run, monkeypatch: pytest.MonkeyPatch, text: str, seconds: list[float]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("kproxy.cli.apply._wait_for_nodes", lambda *args: waited.append(args[3].seconds))
    done = run("apply", "-f", "-", f"--wait={text}", stdin=WEB.split("---")[0])
    assert (done.status, waited) == (0, seconds)


@pytest.mark.parametrize("text", ["soon", "-1", "-1s", "1d", ""])
def test_what_is_no_duration_is_refused(run: Run, text: str) -> None:
    done = run("apply", "-f", "-", f"--wait={text}", stdin=WEB)
    assert (done.status, run("get", "svc").out) == (2, "")
    assert f"{text!r} is not a duration: write 30s" in done.err


@pytest.mark.parametrize("argv", [["apply"], ["apply", "-f", "/no/such/file"], ["get"], ["get", "svc", "x"]])
def test_what_cannot_be_done_is_status_1(run: Run, argv: list[str]) -> None:
    done = run(*argv)
    assert done.status == 1
    assert done.err.startswith(("error: ", "Error from server (NotFound): "))


def test_tables_wide_names_and_namespaces(run: Run) -> None:
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    run("apply", "--wait=0", "-n", "other", "-f", "-", stdin=WEB.replace("10.96.0.9", "10.96.0.8"))
    header, row = squeezed(run("get", "svc", "-o", "wide").out)
    assert header == "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR"
    assert row.startswith("web ClusterIP 10.96.0.9 <none> 80/TCP ")
    assert row.endswith("app=web")
    everywhere = squeezed(run("get", "svc", "-A", "--no-headers").out)
    assert [line.split()[:2] for line in everywhere] == [["default", "web"], ["other", "web"]]
    assert run("get", "deploy", "-o", "name").out == "deployment.apps/web\n"
    assert run("get", "deployment.apps/web", "-o", "name").out == "deployment.apps/web\n"
    names = [line.split()[0] for line in run("get", "svc,deploy", "--no-headers").out.splitlines() if line]
    assert names == ["service/web", "deployment.apps/web"]


def test_rows_that_come_later_keep_the_widths_of_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    long_name = "a-name-that-is-longer"

    def named(*names: str) -> list[Object]:
        return [{"metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.9"}} for name in names]

    monkeypatch.setattr("kproxy.cli.get._changes", lambda *args: iter(named("b", long_name, "c")))
    monkeypatch.setattr("kproxy.cli.get.fetch", lambda *args: (named("a", "another"), "1"))
    lines = run("get", "svc", "-w").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "a", "another", "b", long_name, "c"]
    assert [line.index(word) for line, word in zip(lines, ("TYPE", *["ClusterIP"] * 5), strict=True)] == [
        *[len("another   ")] * 4,
        *[len(long_name) + 3] * 2,
    ]


def test_yaml_and_json_can_be_applied_again(run: Run) -> None:
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    as_yaml, as_json = run("get", "svc", "web", "-o", "yaml").out, run("get", "svc", "web", "-o", "json").out
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    listing = json.loads(run("get", "svc", "-o", "json").out)
    assert (listing["kind"], len(listing["items"])) == ("List", 1)
    done = run("apply", "--wait=0", "-f", "-", stdin=as_yaml)
    assert (done.status, done.out) == (0, "service/web configured\n")
    # It names the resourceVersion that it was read at, which is no longer the newest: as with kubectl.
    late = run("apply", "--wait=0", "-f", "-", stdin=as_yaml)
    assert late.status == 1
    assert "the object has been modified" in late.err


def test_describe_tells_ports_and_policy(run: Run) -> None:
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    lines = squeezed(run("describe", "service", "web").out)
    assert {
        "Name: web",
        "Annotations: <none>",
        "Port: <unset> 80/TCP",
        "Endpoints: <none>",
        "Internal Traffic Policy: Cluster",
    } <= set(lines)
    assert "Replicas: 2 desired | 0 updated | 0 total | 0 available" in squeezed(run("describe", "deploy", "web").out)


def test_describe_ends_with_events(run: Run) -> None:
    def event(name: str, reason: str, at: str, **more: Any) -> str:
        about = {"kind": "ConfigMap", "name": "c", "namespace": "default"}
        head = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": about}
        told = {"type": "Normal", "message": f"it was {reason} ", "lastTimestamp": at, "source": {"component": "me"}}
        return json.dumps(head | told | {"reason": reason} | more)

    later = event("a", "Read", "2026-01-02T00:00:00Z", count=3, firstTimestamp="2026-01-01T00:00:00Z")
    run("apply", "--wait=0", "-f", "-", stdin=later)
    run("apply", "--wait=0", "-f", "-", stdin=event("b", "Made", "2026-01-01T00:00:00Z"))
    run(
        "apply",
        "--wait=0",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}),
    )
    lines = run("describe", "configmap", "c").out.splitlines()
    assert lines[-5] == "Events:"
    assert [line.split()[:2] for line in lines[-4:]] == [
        ["Type", "Reason"],
        ["----", "------"],
        ["Normal", "Made"],
        ["Normal", "Read"],
    ]
    assert re.search(r" \(x3 over \S+\)  me    it was Read$", lines[-1])


def test_describe_tells_what_has_no_effect(run: Run) -> None:
    slice_ = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mine, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.9], nodeName: node9}]
ports: [{name: http, port: 8080}]
"""
    run("apply", "--wait=0", "-f", "-", stdin=WEB + "---\n" + slice_)
    notes = [
        'ports[0]: Service "default/web" has no TCP port named "http": no traffic comes here',
        'there is no Node "node9": endpoints[0] remote everywhere',
    ]
    assert squeezed(run("describe", "endpointslice", "mine").out)[-3:-1] == [f"Notes: {notes[0]}", notes[1]]
    assert squeezed(run("describe", "svc", "web").out)[-3:] == [
        f"Notes: EndpointSlice mine: {notes[0]}",
        f"EndpointSlice mine: {notes[1]}",
        "Events: <none>",
    ]


def test_delete_by_file_and_by_name(run: Run) -> None:
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    by_name = run("delete", "--wait=0", "svc/web")
    assert (by_name.status, by_name.out) == (0, 'service "web" deleted\n')
    half = run("delete", "--wait=0", "-f", "-", stdin=WEB)
    assert (half.status, half.err) == (1, 'Error from server (NotFound): services "web" not found\n')
    rest = run("delete", "--wait=0", "--ignore-not-found", "-f", "-", stdin=WEB)
    assert (rest.status, rest.out) == (0, 'deployment.apps "web" deleted\n')


def test_delete_without_a_name_is_refused(run: Run) -> None:
    run("apply", "--wait=0", "-f", "-", stdin=WEB)
    assert run("delete", "svc").status == 1
    assert "web" in run("get", "svc").out


def test_ctrl_c_is_status_130_and_says_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kproxy.cli.apply.read_paths", interrupt)
    done = run("apply", "-f", "-")
    assert (done.status, done.out, done.err.strip()) == (130, "", "")


def test_everything_that_is_not_found_is_told(run: Run) -> None:
    words = 'Error from server (NotFound): services "web" not found\n'
    assert run("get", "po,svc", "web").err == words.replace("services", "pods") + words
    done = run("delete", "--wait=0", "-f", "-", stdin=WEB)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(words)
    assert len(done.err.splitlines()) == len(WEB.split("---"))
    assert run("delete", "--ignore-not-found", "-f", "-", stdin=WEB).status == 0


def test_deleting_a_file_without_f_says_what_to_write(run: Run, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    done = run("delete", str(tmp_path / "web.yaml"))
    assert (done.status, done.err) == (1, f"error: to delete what a manifest names, write -f {tmp_path}/web.yaml\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("get se", ["servicecidrs", "services"]),
        ("get svc we", ["web", "web-local"]),
        ("delete svc web ", ["web", "web-local"]),
        ("describe po ", []),
        ("get svc -n o", ["other"]),
        ("get svc -n other ", []),
        ("get nothing ", []),
        ("apply --lab ", ["t"]),
        ("get svc --lab none web", []),
    ],
)
def test_tab_offers_what_there_is(run: Run, monkeypatch: pytest.MonkeyPatch, line: str, offered: list[str]) -> None:
    service = WEB.split("---")[0].replace("  clusterIP: 10.96.0.9\n", "")
    for name in ("web", "web-local"):
        assert run("apply", "--wait=0", "-f", "-", stdin=service.replace("name: web", f"name: {name}")).status == 0
    monkeypatch.setenv("_KPROXY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"kproxy {line}")
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ") + 1))
    done = run()
    assert [word.partition(",")[2] for word in done.out.split()] == offered
    assert done.err == ""


def test_a_control_plane_that_was_killed_is_named(run: Run) -> None:
    api = layout.Layout("t").api_socket
    api.unlink()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(api))
    assert api.exists()
    done = run("get", "services")
    assert done.status == 1
    assert done.err.endswith("Connection refused\n  `kproxy lab up` starts a control plane that is gone\n")
