"""The other side of refusing: what a real API server took is taken here, and nobody has to complete it first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.api.manifest import read
from kproxy.api.validation import prepare

TESTS = Path(__file__).parents[2]
CASES = sorted((TESTS / "conformance" / "cases").glob("*.yaml"))
# What is for a real cluster has kinds that a lab has not; tests/dataplane/test_real_cluster.py reads it.
SCENARIOS = sorted(path for path in (TESTS.parent / "manifests").glob("*/*.yaml") if path.parent.name != "real-cluster")


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value, at any depth."""
    if isinstance(value, dict) and "apiVersion" in value and "kind" in value:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from objects(item)


@pytest.mark.parametrize("path", [*CASES, *SCENARIOS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_objects_that_kubernetes_takes_are_taken(path: Path) -> None:
    documents, findings = read(path.read_bytes(), path.name)
    assert findings == []
    found = [obj for document in documents for obj in objects(document.obj)]
    assert found
    for obj in found:
        assert [error.message() for error in prepare(obj)[1]] == []


def test_there_are_cases_to_take() -> None:
    assert len(CASES) > 50
