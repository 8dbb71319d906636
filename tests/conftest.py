"""Tests marked ``root`` need root and network namespaces: without them they skip at a desk and fail in CI."""

from __future__ import annotations

import os
import subprocess
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says more about what else runs on this machine than about the code
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "needs root: run `make test`"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"needs network namespaces: {tried.stderr.strip()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is None or not _why_not():
        return
    if os.environ.get("CI"):
        pytest.fail(_why_not(), pytrace=False)
    pytest.skip(_why_not())
