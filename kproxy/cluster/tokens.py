"""The bearer tokens of a lab: who has which, kept in a file of root's.

Law: a token is 256 random bits, and is compared in a time that says nothing of how much of it was right.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from kproxy.cluster.rights import ADMIN, DNS, Identity, node_identity
from kproxy.errors import UserError


class Tokens:
    """Who is who.

    Args:
        by_user: the token of each.
    """

    def __init__(self, by_user: Mapping[Identity, str]) -> None:
        self._by_user = dict(by_user)

    def of(self, who: Identity) -> str:
        """The token of somebody.

        Raises:
            KeyError: there is none.
        """
        return self._by_user[who]

    def identify(self, token: str) -> Identity | None:
        """Whose token this is; None when it is nobody's."""
        presented = token.encode(errors="replace")
        found = None
        for who, known in self._by_user.items():
            if hmac.compare_digest(known.encode(), presented):
                found = who
        return found


def read(path: Path, nodes: Iterable[str]) -> Tokens:
    """The tokens in the file.

    Args:
        path: written by ``ensure``.
        nodes: names of the cluster's nodes.

    Raises:
        UserError: there is no such file, or somebody's token is not in it.
    """
    try:
        known = _decode(path)
        return Tokens({who: known[who.user] for who in _everybody(nodes)})
    except (FileNotFoundError, KeyError) as error:
        raise UserError(f"{path} does not hold the tokens of this lab; `kproxy lab up` makes them") from error


def ensure(path: Path, nodes: Iterable[str]) -> Tokens:
    """The tokens in the file, those that are missing made first; only the owner can read it."""
    try:
        known = _decode(path)
    except FileNotFoundError:
        known = {}
    everybody = _everybody(nodes)
    if missing := [who.user for who in everybody if who.user not in known]:
        known |= {user: secrets.token_urlsafe(32) for user in missing}
        write_private(path, msgspec.json.encode(known))
    return Tokens({who: known[who.user] for who in everybody})


def write_private(path: Path, content: bytes) -> None:
    """Puts a file there whole that its owner alone can read."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
    fresh.rename(path)


def _decode(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and `kproxy lab up` makes new tokens") from error


def _everybody(nodes: Iterable[str]) -> list[Identity]:
    return [ADMIN, DNS, *map(node_identity, nodes)]
