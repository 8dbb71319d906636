"""Bad manifests beside what is said about them: every NAME.yaml (or NAME.json) has its NAME.err.

With UPDATE_GOLDEN=1 in the environment the .err files are written anew; read the difference before committing it.
"""

import os
from pathlib import Path

import pytest

from kproxy.api.manifest import duplicates, read
from kproxy.api.validation import prepare
from kproxy.errors import InvalidInput

HERE = Path(__file__).parent
CASES = sorted(path for path in HERE.iterdir() if path.suffix in (".yaml", ".json"))


def complaints(path: Path) -> str:
    documents, findings = read(path.read_bytes(), path.name)
    for document in documents:
        findings += document.findings(prepare(document.obj)[1])
    for index, error in duplicates(documents):
        findings += documents[index].findings([error])
    return f"{InvalidInput(findings)}\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_bad_input_is_answered_with_all_of_its_errors(path: Path) -> None:
    golden = path.with_suffix(".err")
    said = complaints(path)
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(said)
    assert said == golden.read_text()
    assert said.strip(), "a manifest without errors does not belong here"


def test_each_answer_has_its_manifest_and_each_manifest_its_answer() -> None:
    assert {path.stem for path in HERE.glob("*.err")} == {path.stem for path in CASES}
