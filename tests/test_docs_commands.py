"""What the pages tell people to type works, and shows what they say.

A page's ```console blocks are one shell session: lines that begin with ``$ `` are commands, the lines below are what
they print. ``...`` stands for anything, a line of ``...`` alone for any lines, and runs of spaces count as one. A
command may fail only where the page shows its error.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from kproxy.testing.labs import Lab, fresh_lab

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("README*.md")),
    *sorted((ROOT / "manifests").glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ERRORS = ("curl: (", "error:", "Error from server")
MARK = "@@"
PROOF = 'table=$(sudo kproxy verify) || { sleep 3; table=$(sudo kproxy verify); } || echo "$table"'
"""Prints nothing when all is as promised; a load balancer may take two seconds to notice what has just gone."""


class Command(NamedTuple):
    line: int
    text: str
    expected: list[str]


def commands_of(page: str) -> list[Command]:
    found: list[Command] = []
    in_console = False
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("```"):
            in_console = line.strip() == "```console"
        elif in_console and line.startswith("$ "):
            found.append(Command(number, line[2:], []))
        elif in_console and found:
            found[-1].expected.append(line)
    return found


def with_proof(page: Path, commands: list[Command]) -> list[Command]:
    """The commands of a scenario with `kproxy verify` before it is taken away; those of other pages as they are."""
    if page.parent.parent != ROOT / "manifests":
        return commands
    ends = [index for index, command in enumerate(commands) if "kproxy delete " in command.text]
    assert ends, "a scenario is taken away at its end"
    proof = Command(commands[ends[-1]].line, PROOF, [])
    return [*commands[: ends[-1]], proof, *commands[ends[-1] :]]


def is_run(page: Path) -> bool:
    """Whether a page's commands are run; those of a translation are the original's."""
    return bool(commands_of(page.read_text())) and ".ko." not in page.name


def matches(expected: list[str], actual: list[str]) -> bool:
    if not expected:
        return not actual
    head, *rest = expected
    if head.strip() == "...":
        return any(matches(rest, actual[start:]) for start in range(len(actual) + 1))
    return bool(actual) and _line_matches(head, actual[0]) and matches(rest, actual[1:])


def _line_matches(expected: str, actual: str) -> bool:
    words = [re.sub(r"\s+", " ", text.strip()) for text in (expected, actual)]
    pattern = "*".join(re.sub(r"([\[*?])", r"[\1]", part) for part in re.split(r"\.{3,}", words[0]))
    return fnmatch.fnmatchcase(words[1], pattern)


def run_session(commands: list[Command], environment: dict[str, str]) -> list[tuple[int, list[str]]]:
    """Each command's exit status and output, run in one shell in the project's folder."""
    script = "".join(f"{{ {command.text}\n}} 2>&1; printf '%s %s\\n' '{MARK}' $?\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    results: list[tuple[int, list[str]]] = []
    output: list[str] = []
    for line in done.stdout.splitlines():
        if line.startswith(f"{MARK} "):
            results.append((int(line.split()[1]), output))
            output = []
        else:
            output.append(line)
    return results


def wrongs(commands: list[Command], results: list[tuple[int, list[str]]]) -> Iterator[str]:
    for command, (status, output) in zip(commands, results, strict=True):
        shows_error = any(line.startswith(ERRORS) for line in command.expected)
        if not matches(command.expected, output) or bool(status) != shows_error:
            shown, seen = "\n    ".join(command.expected), "\n    ".join(output)
            where = f"line {command.line}: $ {command.text}"
            yield f"{where}\n  the page shows:\n    {shown}\n  status {status}:\n    {seen}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    # This checkout's kproxy, whatever else is installed under that name.
    command = tmp_path_factory.mktemp("bin") / "kproxy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m kproxy "$@"\n')
    command.chmod(0o755)
    sudo = command.with_name("sudo")  # a bare Debian has none, and these tests are root's
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    # After it the kubectl that `make test` fetches; what it keeps of a lab's API goes when the test does.
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "KUBECACHEDIR": str(command.parent / "cache")}


@pytest.fixture(scope="module")
def default_lab() -> Iterator[Lab]:
    # Killed, the run leaves no lab: that is what fresh_lab is for.
    with fresh_lab(names=True) as lab:
        yield lab


@contextmanager
def lab_of(page: Path, default_lab: Lab) -> Iterator[Lab]:
    """The lab that a page is about: that of the cluster file beside it, or the default one."""
    cluster_file = page.parent / "cluster.yaml"
    if not cluster_file.exists():
        yield default_lab
        return
    with fresh_lab("-f", str(cluster_file), names=True) as lab:
        yield lab


@pytest.mark.root
@pytest.mark.parametrize("page", [page for page in PAGES if is_run(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_page_shows_what_its_commands_print(page: Path, default_lab: Lab, environment: dict[str, str]) -> None:
    commands = with_proof(page, commands_of(page.read_text()))
    with lab_of(page, default_lab) as lab:
        found = list(wrongs(commands, run_session(commands, {**environment, "KPROXY_LAB": lab.name})))
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if ".ko." in page.name], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_translation_has_the_commands_of_the_original(page: Path) -> None:
    original = page.with_name(page.name.replace(".ko.", "."))
    translated = [command[1:] for command in commands_of(page.read_text())]
    assert translated == [command[1:] for command in commands_of(original.read_text())]
    assert translated


def test_every_scenario_has_a_page_with_commands() -> None:
    folders = [path.parent for path in (ROOT / "manifests").glob("*/objects.yaml")]
    assert len(folders) >= 10
    assert all(commands_of((folder / "README.md").read_text()) for folder in folders)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "manifests" / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize(
    ("expected", "actual", "is_match"),
    [
        ([], [], True),
        ([], ["surplus"], False),
        (["pod: a"], [], False),
        (["pod: hello-..."], ["pod: hello-5d4"], True),
        (["pod: hello-..."], ["pod: other"], False),
        (["address: 10.244....:80"], ["address: 10.244.1.2:80"], True),
        (["address: 10.244....:80"], ["address: 10.244.1.2:81"], False),
        (["NAME TYPE"], ["NAME    TYPE   "], True),
        (["a", "...", "z"], ["a", "b", "c", "z"], True),
        (["a", "...", "z"], ["a", "z"], True),
        (["a", "...", "z"], ["a", "b"], False),
        (["-m [x] *"], ["-m [x] *"], True),
        (["-m [x]"], ["-m x"], False),
    ],
)
def test_matcher(expected: list[str], actual: list[str], is_match: bool) -> None:
    assert matches(expected, actual) is is_match


def test_a_command_that_fails_unseen_is_a_wrong() -> None:
    commands = [Command(1, "echo seen; false", ["seen"]), Command(2, "true", []), Command(3, "echo x", ["y"])]
    results = run_session(commands, dict(os.environ))
    assert [text.partition(":")[0] for text in wrongs(commands, results)] == ["line 1", "line 3"]
