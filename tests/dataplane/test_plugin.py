"""The pytest plugin: what its page says, and that a killed run leaves no lab behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kproxy.cluster.layout import labs

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "testing.md"

pytestmark = pytest.mark.root


def run_pytest(folder: Path, *options: str) -> subprocess.Popen[str]:
    # By name, whether or not the package is installed in this environment; twice would be an error.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "kproxy.testing.plugin", "-p", "no:cacheprovider", "-q"]
    return subprocess.Popen(
        [*command, str(folder), "--rootdir", str(folder), *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def test_the_documented_example_has_six_lines_and_passes(tmp_path: Path) -> None:
    assert len(example().splitlines()) == 6
    (tmp_path / "test_mine.py").write_text(example())
    run = run_pytest(tmp_path)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output


def test_the_documented_example_fails_when_it_is_not_true(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(example().replace("203.0.113.10", "203.0.113.11"))
    run = run_pytest(tmp_path)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 1, output
    assert "AssertionError" in output


def test_a_killed_run_leaves_no_lab(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import time, pathlib\n"
        "def test_it(lab):\n"
        f"    pathlib.Path({str(tmp_path / 'name')!r}).write_text(lab.name)\n"
        "    time.sleep(60)\n"
    )
    run = run_pytest(tmp_path)
    told = tmp_path / "name"
    deadline = time.monotonic() + 30
    while not told.exists() or not told.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    name = told.read_text()
    assert name in labs()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    while name in labs():
        assert time.monotonic() < deadline
        time.sleep(0.05)
