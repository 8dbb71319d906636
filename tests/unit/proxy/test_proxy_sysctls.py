"""Kernel settings: what is written, and what a network namespace has no say in."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.errors import HostError
from kproxy.proxy import sysctls
from kproxy.proxy.config import ProxyConfig


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "net" / "netfilter"
    folder.mkdir(parents=True)
    for name in ("max", "tcp_timeout_established", "tcp_timeout_close_wait"):
        (folder / f"nf_conntrack_{name}").write_text("7\n")
    (tmp_path / "hashsize").write_text("8\n")
    monkeypatch.setattr(sysctls, "SYS", tmp_path)
    monkeypatch.setattr(sysctls, "HASH_SIZE", tmp_path / "hashsize")
    return folder


def test_conntrack_is_set_up_as_configured(settings: Path, tmp_path: Path) -> None:
    sysctls.set_up_conntrack(ProxyConfig(conntrack_max_per_core=1, conntrack_min=4096))
    assert (settings / "nf_conntrack_max").read_text() == "4096"
    assert (settings / "nf_conntrack_tcp_timeout_established").read_text() == "86400"
    assert (tmp_path / "hashsize").read_text() == "1024"


def test_a_limit_of_the_whole_machine_stays_and_is_told(
    settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (settings / "nf_conntrack_max").chmod(0o444)
    sysctls.set_up_conntrack(ProxyConfig(conntrack_max_per_core=1, conntrack_min=4096))
    assert (settings / "nf_conntrack_max").read_text() == "7\n"
    assert (tmp_path / "hashsize").read_text() == "8\n"
    assert (settings / "nf_conntrack_tcp_timeout_established").read_text() == "86400"
    assert "nf_conntrack_max stays 7, not 4096" in caplog.text


def test_what_cannot_be_written_ends_the_start(settings: Path) -> None:
    (settings / "nf_conntrack_max").unlink()
    with pytest.raises(HostError, match=r"cannot set .*nf_conntrack_max to 4096"):
        sysctls.set_up_conntrack(ProxyConfig(conntrack_max_per_core=1, conntrack_min=4096))
