"""The pytest plugin: fixtures for packet tests against a lab. It is there as soon as kproxy is installed.

A test of six lines::

    def test_a_local_policy_keeps_the_client_address(apply, send):
        apply("manifests/nodeport-local")
        seen = send("client", "node1:31001")
        assert seen.verdict == "answered"
        assert seen.source == "203.0.113.10"
        assert seen.hops == 2

``lab`` brings a lab up for the whole run (``--kproxy-lab NAME`` takes one that is up, and leaves it so), ``apply``
makes objects and deletes them after the test, ``send`` sends one packet and tells everything that was seen of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kproxy.testing.labs import Lab
    from kproxy.testing.packets import Seen

# What needs a lab is imported where it is used: every pytest run on this machine loads this module.

Apply = Callable[..., None]
Send = Callable[..., "Seen"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    group = parser.getgroup("kproxy")
    group.addoption("--kproxy-lab", metavar="NAME", help="use this lab, which is up, instead of a fresh one")
    group.addoption("--kproxy-cluster", metavar="CLUSTER.yaml", help="the cluster file of the fresh lab")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A running lab: a fresh one for the session, or the one that ``--kproxy-lab`` names."""
    from kproxy.testing.labs import attach, fresh_lab

    need_root()
    existing = request.config.getoption("--kproxy-lab")
    if existing:
        yield attach(existing)
        return
    cluster = request.config.getoption("--kproxy-cluster")
    with fresh_lab(*(("-f", cluster) if cluster else ())) as fresh:
        yield fresh


@pytest.fixture
def apply(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Apply]:
    """``apply(manifest)``: makes the objects and waits until every node has programmed them; deletes them afterwards.

    A manifest is a path (from the current folder or the test's), YAML or JSON text, an object, or a list of them.
    """
    applied: list[tuple[list[str], str]] = []

    def function(manifest: str | Path | dict[str, Any] | list[Any], *options: str) -> None:
        where, text = _source(manifest, request.path.parent)
        applied.append((where, text))
        lab.run("apply", *where, *options, stdin=text)

    yield function
    for where, text in reversed(applied):
        lab.run("delete", "--ignore-not-found", "--grace-period=0", *where, stdin=text)


@pytest.fixture(scope="session")
def send(lab: Lab) -> Iterator[Send]:
    """``send(client, to)``: one packet and everything that was seen of it; `kproxy.testing.packets.Packets.send`."""
    from kproxy.testing.packets import Packets

    packets = Packets(lab.client)
    try:
        yield packets.send
    finally:
        packets.close()


def need_root() -> None:
    """Skips the test without root; in CI it fails."""
    if os.geteuid() == 0:
        return
    reason = "a lab needs root"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _source(manifest: str | Path | dict[str, Any] | list[Any], folder: Path) -> tuple[list[str], str]:
    """The options and the standard input that hand a manifest to ``kproxy apply``."""
    if isinstance(manifest, dict):
        return ["-f", "-"], json.dumps(manifest)
    if isinstance(manifest, list):
        return ["-f", "-"], json.dumps({"apiVersion": "v1", "kind": "List", "items": manifest})
    if isinstance(manifest, str) and "\n" in manifest:
        return ["-f", "-"], manifest
    path = Path(manifest)
    if not path.exists() and (folder / path).exists():
        path = folder / path
    return ["-f", str(path)], ""
