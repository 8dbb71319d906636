"""The wheel, built from the sources alone, installed where nothing else is, and used from there.

No network: the build uses this environment's setuptools, and the new environment gets links to just those
distributions that the wheel's own metadata asks for. A dependency that is not declared is therefore missing here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import kproxy

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("kproxy", "netns", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, checkout / name)
    output = tmp_path_factory.mktemp("dist")
    run("pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(output), str(checkout))
    (found,) = output.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it asks for."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    run("venv", "--without-pip", str(place))
    run("pip", "--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = place.glob("lib/python*/site-packages")
    (installed,) = packages.glob("kproxy-*.dist-info")
    for needed in closure(Distribution.at(installed)):
        link(needed, packages)
    return place / "bin"


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, timeout=120)


def closure(top: Distribution) -> Iterator[Distribution]:
    """All distributions that one asks for, directly or not, extras aside."""
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        for text in waiting.pop().requires or ():
            wanted = Requirement(text)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if not applies or wanted.name in seen:
                continue
            seen.add(wanted.name)
            found = distribution(wanted.name)
            waiting.append(found)
            yield found


def link(needed: Distribution, packages: Path) -> None:
    """Links what a distribution has installed, by its list: a wheel's, or the one of an old-style installation."""
    old_style = needed.read_text("installed-files.txt")
    names = [str(file) for file in needed.files or ()] if old_style is None else old_style.replace("../", "").split()
    for top in {name.split("/")[0] for name in names} - {"..", "__pycache__"}:
        source = Path(str(needed.locate_file(top)))
        if source.exists() and not (packages / top).exists():
            (packages / top).symlink_to(source)


def outside(binaries: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed kproxy outside the checkout, with nothing of this environment on its path."""
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", **environment}
    return subprocess.run(
        [str(binaries / "kproxy"), *arguments],
        cwd="/",
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"kproxy", "netns"}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for package in ("kproxy", "netns")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tracked <= set(names)


def test_the_version_comes_from_one_place(wheel: Path, binaries: Path) -> None:
    assert wheel.name.split("-")[1] == kproxy.__version__
    assert outside(binaries, "--version").stdout == f"kproxy {kproxy.__version__}\n"
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "README.md")]
    assert not any(f'version = "{kproxy.__version__}"' in text for text in texts)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_words(binaries: Path, shell: str) -> None:
    script = outside(binaries, "completion", shell)
    assert script.returncode == 0, script.stderr
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script.stdout, text=True, check=True, capture_output=True)
    for line, expected in (("kproxy la", "lab"), ("kproxy lab ch", "check"), ("kproxy get --out", "--output")):
        words = line.split()
        number = words[-1] if shell == "fish" else str(len(words) - 1)
        answer = outside(binaries, _KPROXY_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=number)
        assert expected in re.split(r"[,\s]", answer.stdout), answer


@pytest.mark.root
def test_a_lab_comes_up_and_is_verified_from_the_wheel(binaries: Path, tmp_path: Path) -> None:
    lab = {"KPROXY_LAB": f"wh{os.getpid() % 10000}"}
    manifest = tmp_path / "objects.yaml"
    shutil.copy(ROOT / "manifests" / "nodeport" / "objects.yaml", manifest)
    try:
        for command in (("lab", "up"), ("verify",), ("apply", "-f", str(manifest)), ("verify",)):
            done = outside(binaries, *command, **lab)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "front" in done.stdout
    finally:
        down = outside(binaries, "lab", "down", **lab)
    assert down.returncode == 0, down.stderr


def test_a_dependency_that_is_not_declared_would_be_missed(binaries: Path) -> None:
    script = "import kproxy, sys; print(kproxy.__file__); import pytest"
    done = subprocess.run(
        [str(binaries / "python"), "-c", script], cwd="/", env={}, capture_output=True, text=True, check=False
    )
    assert Path(done.stdout.strip()).is_relative_to(binaries.parent)
    assert "No module named 'pytest'" in done.stderr


def test_closure_names_what_is_not_installed() -> None:
    with pytest.raises(PackageNotFoundError):
        distribution("kproxy-has-no-such-dependency")
