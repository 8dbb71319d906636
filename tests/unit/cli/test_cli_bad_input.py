"""What bad input gets: file, line, object, field and reason, exit status 1, and nothing of that apply has happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Run


def service(*spec: str, name: str = "web", ports: str = "[{port: 80}]") -> bytes:
    """A Service with these lines in its spec; the first of them is line 5, the ports come after them."""
    lines = ["apiVersion: v1", "kind: Service", f"metadata: {{name: {name}}}", "spec:"]
    lines += [f"  {line}" for line in (*spec, f"ports: {ports}")]
    return "\n".join(lines).encode()


TAKEN = service("type: NodePort", "clusterIP: 10.96.0.77", name="taken", ports="[{port: 80, nodePort: 30500}]")

BOMB = b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 10)) for letter in b"bcdefghi"
)

CASES = {
    "unknown kind": (b"apiVersion: v1\nkind: Servce\nmetadata: {name: x}\n", ':2: Servce "x": kind: Invalid value: '),
    "no kind": (b"metadata: {name: x}\n", "kind: Required value"),
    "unknown field": (
        service("selectr: {a: b}"),
        ':5: Service "default/web": spec.selectr: unknown field "spec.selectr", did you mean "selector"?',
    ),
    "misspelt value": (
        service("type: NodePort", "externalTrafficPolicy: local"),
        ':6: Service "default/web": spec.externalTrafficPolicy: Unsupported value: "local": '
        'supported values: "Cluster", "Local"',
    ),
    "wrong type": (service(ports="[{port: eighty}]"), "spec.ports[0].port: Invalid value: "),
    "node port out of range": (
        service("type: NodePort", ports="[{port: 80, nodePort: 99}]"),
        ':6: Service "default/web": spec.ports[0].nodePort: Invalid value: 99: provided port is not in the valid '
        "range. The range of valid ports is 30000-32767",
    ),
    "node port taken": (
        service("type: NodePort", ports="[{port: 80, nodePort: 30500}]"),
        "spec.ports[0].nodePort: Invalid value: 30500: provided port is already allocated",
    ),
    "cluster IP outside": (service("clusterIP: 10.200.0.1"), "does not match the current range"),
    "cluster IP taken": (service("clusterIP: 10.96.0.77"), "provided IP is already allocated"),
    "name is a path": (service(name="../../etc"), ':3: Service "default/../../etc": metadata.name: Invalid value: '),
    "empty": (b"", "no objects in this file"),
    "only comments": (b"# nothing\n---\n", "no objects in this file"),
    "binary junk": (bytes(range(256)), "not a text file"),
    "too large": (b"#" * (50 * 1024 * 1024), "the file is too large: 52428800 bytes"),
    "alias bomb": (BOMB, "alias"),
    "tag": (b"apiVersion: v1\nkind: !!python/object:os.system x\n", ":2: "),
    "hostPath": (
        b"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers: [{name: a, image: b}]\n"
        b"  volumes:\n  - name: v\n    hostPath: {path: /etc}\n",
        ':8: Pod "default/p": spec.volumes[0].hostPath: Forbidden',
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_its_place_and_nothing_happens(case: str, run: Run, tmp_path: Path) -> None:
    text, words = CASES[case]
    (tmp_path / "taken.yaml").write_bytes(TAKEN)
    assert run("apply", "--wait=0", "-f", str(tmp_path / "taken.yaml")).status == 0
    (tmp_path / "bad.yaml").write_bytes(text)
    (tmp_path / "good.yaml").write_bytes(service(name="innocent"))
    done = run("apply", "-f", str(tmp_path / "bad.yaml"), "-f", str(tmp_path / "good.yaml"))
    assert (done.status, done.out) == (1, "")
    assert f"{tmp_path}/bad.yaml" in done.err
    assert words in done.err
    assert "good.yaml" not in done.err
    assert run("get", "services", "-o", "name").out == "service/taken\n"
