"""``kproxy exec``, ``logs`` and ``capture`` as a shell sees them: exit statuses, streams and signals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.testing.labs import fresh_lab

pytestmark = pytest.mark.root

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, image: busybox, command: [sh, -c, "echo begun; exec sleep 600"]}]}
"""

Kproxy = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def kproxy() -> Iterator[Kproxy]:
    with fresh_lab() as lab:

        def call(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [sys.executable, "-m", "kproxy", *argv],
                input=stdin, capture_output=True, timeout=60, check=False, env={**os.environ, "KPROXY_LAB": lab.name},
            )  # fmt: skip

        assert call("apply", "-f", "-", stdin=POD.encode()).returncode == 0
        yield call


@pytest.mark.parametrize("place", ["p", "node1", "client"])
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
    ids=["works", "fails", "is killed", "is not there", "is no program"],
)
def test_exec_ends_as_the_command_does(kproxy: Kproxy, place: str, argv: list[str], status: int) -> None:
    done = kproxy("exec", place, "--", *argv)
    # A command that replaced kproxy is killed itself; in a pod bubblewrap says so with its status.
    assert done.returncode % 256 in (status, (128 - status) % 256)
    assert b"Traceback" not in done.stderr
    assert b"bwrap" not in done.stderr


@pytest.mark.parametrize("place", ["p", "node1"])
def test_exec_passes_streams_arguments_and_signals_on(kproxy: Kproxy, place: str) -> None:
    assert kproxy("exec", "-i", place, "--", "cat", stdin=b"\x00\xff").stdout == b"\x00\xff"
    assert kproxy("exec", place, "printf", "%s|", "a b", "$c", "-x", "").stdout == b"a b|$c|-x||"
    done = kproxy("exec", place, "--", "sh", "-c", "yes | head -1; echo err >&2")
    assert (done.stdout, done.stderr) == (b"y\n", b"err\n")


def test_logs_are_of_a_container_that_is_there(kproxy: Kproxy) -> None:
    assert kproxy("logs", "p").stdout == b"begun\n"
    done = kproxy("logs", "p", "-c", "x")
    assert (done.returncode, done.stderr) == (1, b"error: container x is not valid for pod p: it has c\n")


def test_a_capture_that_cannot_be_written_is_refused(kproxy: Kproxy, tmp_path: Path) -> None:
    done = kproxy("capture", "node1", "-w", str(tmp_path / "no" / "x.pcap"))
    assert done.returncode == 1
    assert done.stderr.endswith(b"x.pcap: No such file or directory\n")
