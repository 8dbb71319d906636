"""Programs of this package's own that run in pods: what they are started with, and what they must see for that.

Law: a pod's user cannot reach where this package is installed, and need not: what the program imports is shown to it,
read-only, below one folder: this package, and the two libraries that such a program may use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = "/opt/kproxy"
PACKAGES: Final = ("kproxy", "msgspec", "dnslib")
"""What such a program may import beside Python's own library."""


class Program(NamedTuple):
    """A command with all it needs.

    Attributes:
        argv: program and arguments.
        env: variables.
        folders: of the host's, by the path at which the program sees them.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folders: Mapping[str, Path]


def module(name: str) -> Program:
    """The program that a module of this package is.

    Args:
        name: as `python -m` takes it.
    """
    folders = {f"{ROOT}/{package}": _folder(package) for package in PACKAGES}
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/usr"):
        folders[str(prefix)] = prefix
    python = str(Path(sys.executable).resolve())
    env = {"PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1"}
    return Program((python, "-s", "-m", name), env, folders)


def _folder(package: str) -> Path:
    """Where a package is installed, without importing it.

    Raises:
        ModuleNotFoundError: it is not.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(package)
    return Path(spec.submodule_search_locations[0]).resolve()
