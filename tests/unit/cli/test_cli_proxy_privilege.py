"""``kproxy proxy`` says at once that it needs root; what does not need it works without."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Run

from kproxy.cli.proxy import may_administer_networks


@pytest.fixture(autouse=True)
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.cli.proxy.may_administer_networks", lambda: False)


def test_a_proxy_without_privileges_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    done = run("proxy", f"--manifests={tmp_path}", "--hostname-override=n")
    assert done.status == 1
    assert done.err.splitlines()[-1] == "error: kproxy proxy needs root (CAP_NET_ADMIN): put sudo before it"
    assert "Traceback" not in done.err


def test_what_needs_no_privileges_works_without(run: Run, tmp_path: Path) -> None:
    written = tmp_path / "config.yaml"
    done = [run("proxy", flag) for flag in ("--help", "--version", f"--write-config-to={written}")]
    assert [one.status for one in done] == [0, 0, 0]
    assert "kind: KubeProxyConfiguration" in written.read_text()


@pytest.mark.parametrize(
    ("effective", "may"),
    [
        ("0000000000000000", False),
        ("0000000000001000", True),
        ("000001ffffffffff", True),
        ("000001ffffffefff", False),
        ("0000000000002000", False),  # CAP_NET_RAW alone
    ],
)
def test_what_counts_is_the_capability(tmp_path: Path, effective: str, may: bool) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\n")
    assert may_administer_networks(status) is may
