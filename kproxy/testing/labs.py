"""A lab for a test run: brought up when it is first needed, taken down when the run ends, even by SIGKILL."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kproxy.api.kinds import NAMESPACE
from kproxy.client import Client
from kproxy.cluster.controllers.node_proxy import programmed
from kproxy.cluster.layout import Layout
from kproxy.cluster.status import LabStatus
from kproxy.errors import HostError, UserError

SETTLE_TIMEOUT = 30.0
"""Seconds for every node to hold what the API holds."""


@dataclass(frozen=True)
class Lab:
    """A running lab.

    Attributes:
        client: its API, as `kproxy.client.Client` has it.
    """

    name: str
    client: Client

    @property
    def status(self) -> LabStatus:
        """Nodes, clients, pods and processes, as they are now."""
        return msgspec.convert(self.client.lab_status(), LabStatus)

    def run(self, *words: str, stdin: str = "", expected: Sequence[int] = (0,)) -> str:
        """What ``kproxy WORDS...`` prints for this lab.

        Args:
            words: the command line after ``kproxy``.
            stdin: what it reads.
            expected: exit statuses that are fine.

        Raises:
            HostError: it ended with another status.
        """
        done = run_kproxy(words, lab=self.name, stdin=stdin)
        if done.returncode not in expected:
            reason = f"exit status {done.returncode}"
            raise HostError(reason, command=("kproxy", *words), stderr=done.stderr + done.stdout)
        return done.stdout

    def settle(self) -> None:
        """Waits until every node's proxy has programmed all that the API holds now.

        Raises:
            HostError: one has not within half a minute.
        """
        version = self.client.list(NAMESPACE).resource_version
        for node in self.status.nodes:
            if node.proxy == "none":
                continue
            answer = programmed(Layout(self.name), node.name, version=version, seconds=SETTLE_TIMEOUT)
            if int(answer.get("resourceVersion") or 0) < int(version):
                raise HostError(f"{node.name} has not programmed {version}", stderr=str(answer.get("lastError", "")))


def run_kproxy(words: Sequence[str], *, lab: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs ``kproxy WORDS...`` with this interpreter and this source."""
    return subprocess.run(  # noqa: S603 - no shell
        [sys.executable, "-P", "-m", "kproxy", *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**_environment(), "KPROXY_LAB": lab},
    )


def attach(name: str) -> Lab:
    """The lab of that name, which is up already and stays up.

    Raises:
        UserError: it is not.
    """
    layout = Layout(name)
    if not layout.api_socket.exists():
        raise UserError(f'lab "{name}" is not up')
    return Lab(name, Client(layout.api_url))


@contextmanager
def fresh_lab(*options: str, name: str = "", names: bool = False) -> Iterator[Lab]:
    """A lab of its own that is up inside and gone after.

    Args:
        options: for ``kproxy lab up``.
        name: empty for one that nobody has.
        names: whether it serves DNS; most tests go by addresses and are quicker without.

    Raises:
        HostError: it did not come up.
    """
    name = name or "t" + uuid.uuid4().hex[:8]
    with guarded(name):
        options = (*options, *(() if names else ("--dns-replicas", "0")))
        done = run_kproxy(["lab", "up", "--lab", name, *options], lab=name)
        if done.returncode != 0:
            raise HostError(
                "the test's lab did not come up", command=("kproxy", "lab", "up", *options), stderr=done.stderr
            )
        lab = attach(name)
        yield lab
        lab.client.close()


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """A lab of that name, should there be one, is taken down at the end, also when this process is killed before."""
    guardian = subprocess.Popen(  # noqa: S603 - a fixed command
        [sys.executable, "-P", "-m", "kproxy.testing.guardian", name],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env=_environment(),
    )
    try:
        yield
    finally:
        if guardian.stdin is not None:
            guardian.stdin.close()
        guardian.wait()


def _environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}
