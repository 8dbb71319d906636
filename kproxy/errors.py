"""Every error kproxy raises on purpose, split by whose fault it is.

The tree::

    KproxyError
      UserError            the person can mend it: one line each, exit status 1
        InvalidInput       several findings of one request, each with file, line, object, field, reason
      HostError            the machine refused: command, its words, the state that is left
        TransactionError   an iptables-restore or nft transaction was refused
        Unreachable        no Kubernetes API answers at that address
      ApiError             a Kubernetes API answered with a Status
        NotFound, AlreadyExists, Conflict, Gone, Invalid

Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class KproxyError(Exception):
    """Base of all errors that are raised on purpose."""


class UserError(KproxyError):
    """What was asked cannot be done as asked; the message says what to change."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong with an input.

    Attributes:
        file: path as the user gave it; ``-`` for standard input; empty when no file is involved.
        line: 1-based line of the offending field; 0 when unknown.
        subject: ``Service "default/web"`` style name of the object; empty when it has none yet.
        field: Kubernetes field path (``spec.ports[0].port``); empty when the document as a whole is meant.
        reason: what is wrong, in the words of the Kubernetes API (``Invalid value: 0: must be between ...``).
    """

    file: str
    line: int
    subject: str
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.subject, self.field, self.reason) if part)


class InvalidInput(UserError):
    """All findings of one request; nothing of it has taken effect."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(sorted(findings))
        super().__init__("\n".join(str(finding) for finding in self.findings))


class HostError(KproxyError):
    """The machine did not do what it was told.

    Args:
        reason: one sentence.
        command: what was run or called; empty when nothing was.
        stderr: what it said.
        left: what state is left behind, and what to do about it.
    """

    def __init__(self, reason: str, *, command: Sequence[str] = (), stderr: str = "", left: str = "") -> None:
        self.reason = reason
        self.command = tuple(command)
        self.stderr = stderr.strip()
        self.left = left
        parts = [reason]
        if self.command:
            parts.append(f"command: {' '.join(self.command)}")
        if self.stderr:
            parts.append(f"it said: {self.stderr}")
        if left:
            parts.append(left)
        super().__init__("\n  ".join(parts))


class TransactionError(HostError):
    """A rule set was refused as a whole or in part; the next sync has to be a full one.

    Attributes:
        line: 1-based line of the input that the tool complained of; 0 when it named none.
        text: that line.
    """

    def __init__(
        self, reason: str, *, line: int = 0, text: str = "", command: Sequence[str] = (), stderr: str = ""
    ) -> None:
        self.line = line
        self.text = text
        super().__init__(reason, command=command, stderr=stderr, left=f"line {line}: {text}" if line else "")


class Unreachable(HostError):
    """No Kubernetes API answers at that address, or it hung up in the middle of an answer."""


class ApiError(KproxyError):
    """A Kubernetes API answered with a failure.

    Attributes:
        status: the Status object as the server sent it.
        code: HTTP status code.
        reason: Kubernetes' reason (``NotFound``, ``Invalid``, ...).
    """

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.status = dict(status)
        self.code = int(self.status.get("code", 500))
        self.reason = str(self.status.get("reason", "InternalError"))
        super().__init__(str(self.status.get("message", self.reason)))


class NotFound(ApiError):
    """404: no such object."""


class AlreadyExists(ApiError):
    """409 AlreadyExists: an object of that name is there."""


class Conflict(ApiError):
    """409 Conflict: the object changed since it was read."""


class Gone(ApiError):
    """410: that resourceVersion is no longer in the log; list again."""


class Invalid(ApiError):
    """422: the object was refused; ``status["details"]["causes"]`` lists why."""
