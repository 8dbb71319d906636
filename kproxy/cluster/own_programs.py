"""Programs of this package's own that run in pods: what they are started with, and what they must see for that.

Law: a pod's user cannot reach where this package is installed, and need not: what the program imports is shown to it,
read-only, below one folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

import kproxy

ROOT: Final = "/opt/kproxy"


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
    libraries, package = Path(msgspec.__file__).parent.parent, Path(kproxy.__file__).parent
    folders = {f"{ROOT}/libraries": libraries, f"{ROOT}/package/{package.name}": package}
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/usr"):
        folders[str(prefix)] = prefix
    python = str(Path(sys.executable).resolve())
    env = {"PYTHONPATH": f"{ROOT}/package:{ROOT}/libraries", "PYTHONDONTWRITEBYTECODE": "1"}
    return Program((python, "-s", "-m", name), env, folders)
