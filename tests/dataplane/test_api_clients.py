"""Client libraries and a lab: list, watch, create, patch, delete, scale, log, exec."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.testing.labs import Lab, fresh_lab

pytestmark = pytest.mark.root

NODES = ["node1", "node2", "node3"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab() as running:
        yield running


def found_with(library: str, lab: Lab, folder: Path) -> dict[str, Any]:
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(lab.run("lab", "kubeconfig"))
    kubeconfig.chmod(0o600)
    program = Path(__file__).with_name("api_clients.py")
    done = subprocess.run(
        [sys.executable, str(program), library, str(kubeconfig)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_official_python_client(lab: Lab, tmp_path: Path) -> None:
    found = found_with("kubernetes", lab, tmp_path)
    pages, namespaces = found.pop("pages"), found.pop("namespaces")
    assert (sum(pages), max(pages), len(pages)) == (namespaces, 2, (namespaces + 1) // 2)
    assert found == {
        "nodes": NODES,
        "watched": [["ADDED", "Pending"], [found["watched"][1][0], "Running"]],
        "patched": {"app": "py", "x": "y"},
        "said": "inside\n",
        "log": "hello\n",
        "deleted": "py",
        "missing": [404, "NotFound"],
        "scaled": 2,
        "ended": "Success",
        "listed": 14,
    }


def test_lightkube(lab: Lab, tmp_path: Path) -> None:
    assert found_with("lightkube", lab, tmp_path) == {
        "nodes": NODES,
        "watched": "ADDED",
        "patched": {"a": "b", "c": "d"},
        "applied": {"e": "f"},
        "missing": [404, "NotFound"],
        "listed": [True, True],
    }
