"""``kproxy render`` against golden files: what iptables-save gave back for the same Services."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.cli.render import run
from kproxy.errors import InvalidInput, UserError

HERE = Path(__file__).parent
FEATURES = "--features=nfacct=no,random-fully=yes,tcp-be-liberal=no"


def test_worked_example_is_rendered_rule_for_rule(capsys: pytest.CaptureFixture[str]) -> None:
    manifests = HERE / "worked-example"

    status = run(["--manifests", str(manifests), "--node", "A", "--cluster-cidr=10.244.0.0/16", FEATURES])

    assert status == 0
    assert capsys.readouterr().out == (HERE / "worked-example.rules").read_text()


@pytest.mark.parametrize("family", ["4", "6"])
def test_every_kind_of_rule_is_rendered(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A root test (unit/proxy) shows that the kernel gives back these very rules."""
    flags = ["--family", f"ipv{family}", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"]
    features = "--features=nfacct=yes,random-fully=yes,tcp-be-liberal=no"

    run(["--manifests", str(HERE / "every-kind-of-rule"), "--node", "A", *flags, features])

    assert capsys.readouterr().out == (HERE / f"every-kind-of-rule.v{family}.rules").read_text()


def test_other_node_has_no_local_endpoint_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    manifests = HERE / "worked-example"

    run(["--manifests", str(manifests), "--node", "C", "--cluster-cidr=10.244.0.0/16", FEATURES])

    out = capsys.readouterr().out
    assert '"default/edge:http has no local endpoints"' in out
    assert "KUBE-SVL-" not in out


def test_other_kinds_are_passed_over_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\n")

    run(["--manifests", str(tmp_path), "--node", "A", FEATURES])

    assert capsys.readouterr().err == "passed over: Deployment\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--node", "A"], "--manifests and --node are required"),
        (["--manifests", "/nowhere", "--node", "A"], "/nowhere: No such file or directory"),
        (["--manifests", ".", "--node", "A", "--features", "wings=yes"], "--features 'wings=yes'"),
        (["--manifests", ".", "--node", "A", "--family", "ipx"], "--family 'ipx'"),
        (["--manifests", ".", "--node", "A", "--nod"], "unknown flag: --nod"),
        (["--manifests", ".", "--node", "A", "--cluster-cidr", "10.0.0.0"], "must be a valid CIDR block"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("'", ".")):
        run([*arguments] if "--features" in arguments else [*arguments, FEATURES])


def test_bad_document_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("---\napiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: 3}\n")

    with pytest.raises(InvalidInput) as refused:
        run(["--manifests", str(tmp_path), "--node", "A", FEATURES])

    assert 'Service "x"' in str(refused.value)
    assert "bad.yaml:5" in str(refused.value)


def test_an_object_that_two_files_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        text = (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"
        )
        (tmp_path / f"{name}.yaml").write_text(text)
    argv = [f"--manifests={tmp_path}", "--node=n", "--features=nfacct=no,random-fully=yes,tcp-be-liberal=no"]
    assert run(argv) == 0
    assert capsys.readouterr().err == 'b.yaml: Service "default/web" is also in a.yaml: the first file counts\n'
