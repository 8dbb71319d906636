"""``run``: the command in this process, against the real API on a real socket; only the nodes are missing."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Done, Run

from kproxy.api.kinds import NAMESPACE
from kproxy.cli import connection
from kproxy.cli.main import main
from kproxy.client import Client
from kproxy.cluster import layout
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.apiserver import serve
from kproxy.cluster.store import Store


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `kproxy ARGS` in this process against an API of its own."""
    # Not tmp_path: the path of a unix socket has room for 107 characters.
    root = Path(tempfile.mkdtemp(prefix="kp"))
    monkeypatch.setattr(layout, "RUN_ROOT", root / "run")
    monkeypatch.setattr(layout, "STATE_ROOT", root / "state")
    monkeypatch.setattr(connection, "need_root", lambda: None)
    monkeypatch.delenv("KPROXY_LAB", raising=False)
    here = layout.Layout("t")
    here.make()
    server = serve(Store(here.database), here.api_socket, cluster=ClusterSettings(), lab_status=dict)
    client = Client(here.api_url)

    def call(*argv: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["kproxy", *argv])
        with tempfile.TemporaryFile("w+") as file:
            file.write(stdin)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", file)
            with pytest.raises(SystemExit) as end:
                main()
        captured = capsys.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    try:
        client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})
        yield call
    finally:
        client.close()
        server.stop()
        shutil.rmtree(root)
