"""What words on the command line mean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.api.kinds import DAEMON_SET, DEPLOYMENT, POD, REPLICA_SET, SERVICE, STATEFUL_SET
from kproxy.api.manifest import read
from kproxy.cli import run
from kproxy.cli.apply import findings_of
from kproxy.cli.documents import Manifests, put_in_namespace, read_paths
from kproxy.cli.get import Target, parse_targets
from kproxy.cli.group import ELSEWHERE, VERBS
from kproxy.errors import Invalid, UserError


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (["svc"], [Target(SERVICE)]),
        (["po,services"], [Target(POD), Target(SERVICE)]),
        (["deploy", "a", "b"], [Target(DEPLOYMENT, "a"), Target(DEPLOYMENT, "b")]),
        (["svc/a", "Pod/b"], [Target(SERVICE, "a"), Target(POD, "b")]),
        (["deployment.apps/a"], [Target(DEPLOYMENT, "a")]),
        (["all"], [Target(k) for k in (POD, SERVICE, DEPLOYMENT, REPLICA_SET, STATEFUL_SET, DAEMON_SET)]),
    ],
)
def test_targets(words: list[str], targets: list[Target]) -> None:
    assert parse_targets(words) == targets


@pytest.mark.parametrize("words", [[], ["ingress"], ["svc/a", "b"], ["svc/"], ["svc,ingress"]])
def test_targets_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        parse_targets(words)


def test_a_folder_gives_its_manifests_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "c.yml"):
        (tmp_path / name).write_text(f'{{"kind": "Pod", "metadata": {{"name": "{name[0]}"}}}}')
    (tmp_path / "README.md").write_text("# not a manifest")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.yaml").write_text("kind: Pod")
    found = read_paths([str(tmp_path)])
    assert not found.findings
    assert [document.obj["metadata"]["name"] for document in found.documents] == ["a", "b", "c"]


def test_a_folder_of_folders_names_those_with_manifests(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# read me\n")
    assert [finding.reason for finding in read_paths([str(tmp_path)]).findings] == [
        "no .yaml, .yml, .json files in this folder"
    ]
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "objects.yaml").write_text("")
    (found,) = read_paths([str(tmp_path)]).findings
    assert found.reason.endswith(f"files in this folder; there are some in {tmp_path}/web")


def test_an_address_is_not_fetched() -> None:
    (found,) = read_paths(["https://example.org/web.yaml"]).findings
    assert found.reason == "addresses are not fetched: curl -sSfL https://example.org/web.yaml | kproxy apply -f -"


def test_a_followed_log_ends_when_what_writes_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ASK_AGAIN", 0.0)
    monkeypatch.setattr(run, "POLL", 0.0)
    log = tmp_path / "log"
    log.write_text("first\n")
    last = ["second\n", "third\n"]

    def is_over() -> bool:
        if not last:
            return True
        with log.open("a") as file:
            file.write(last.pop(0))
        return not last

    with log.open() as file:
        run._follow(file, is_over)
    assert capsys.readouterr().out == "first\nsecond\nthird\n"


def test_everything_wrong_with_the_files_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "junk.yaml").write_bytes(b"\x00\xff\xfe")
    (tmp_path / "large.yaml").write_bytes(b"#" * (16 * 1024 * 1024 + 1))
    (tmp_path / "none").mkdir()
    names = ["empty.yaml", "junk.yaml", "large.yaml", "none", "gone"]
    found = read_paths([str(tmp_path / name) for name in names])
    assert not found.documents
    assert [Path(finding.file).name for finding in found.findings] == names


SERVICES = b"""\
apiVersion: v1
kind: Service
metadata:
  name: one
spec:
  ports:
    - port: 80
      nodePort: 99
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: other}
"""


def test_a_cause_of_the_server_is_told_by_file_and_line() -> None:
    documents, _ = read(SERVICES, "web.yaml")
    put_in_namespace(Manifests(documents), "default", is_explicit=False)
    causes = [
        {"index": 0, "field": "spec.ports[0].nodePort", "message": "Invalid value: 99: out of range"},
        {"index": 1, "field": "spec.ports", "message": "Required value"},
    ]
    found = findings_of(Invalid({"details": {"causes": causes}}), documents)
    assert [str(finding) for finding in found] == [
        'web.yaml:8: Service "default/one": spec.ports[0].nodePort: Invalid value: 99: out of range',
        'web.yaml:10: Service "other/two": spec.ports: Required value',
    ]


def test_an_explicit_namespace_that_the_object_contradicts_is_a_finding() -> None:
    documents, _ = read(SERVICES, "web.yaml")
    manifests = Manifests(documents)
    put_in_namespace(manifests, "default", is_explicit=True)
    assert [finding.line for finding in manifests.findings] == [12]


def kproxy(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kproxy", *argv],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "KPROXY_LAB": "nosuchlab"},
    )  # fmt: skip


def test_help_names_every_verb_and_loads_none() -> None:
    done = kproxy("--help")
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)
    loaded = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "kproxy.cli.group" in loaded
    assert not {"kproxy.client", "yaml", "rich", "scapy", "pyroute2", "kproxy.cli.get"} & set(loaded)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_kproxy(shell: str) -> None:
    done = kproxy("completion", shell)
    assert done.returncode == 0
    assert "_KPROXY_COMPLETE" in done.stdout


def test_an_error_is_one_clean_line_and_status_1() -> None:
    done = kproxy("get", "ingress")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("import time:")] == [
        'error: the server doesn\'t have a resource type "ingress"'
    ]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("levitate", "No such command 'levitate'.\n"),
        ("gte", "No such command 'gte': did you mean get?\n"),
        ("create", "No such command 'create': `kproxy apply -f FILE` creates objects and changes them\n"),
    ],
)
def test_an_unknown_verb_is_status_2(verb: str, words: str) -> None:
    done = kproxy(verb, "x")
    assert done.returncode == 2
    assert done.stderr.endswith(words)


def test_verbs_that_are_elsewhere_are_no_verbs_here() -> None:
    assert not ELSEWHERE.keys() & VERBS.keys()


def test_a_full_disk_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kproxy", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: cannot write: No space left on device\n")


def test_a_reader_that_has_seen_enough_gets_no_complaint() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kproxy", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(timeout=60) != 0
