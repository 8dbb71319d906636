"""The one error of this package: the kernel refused, or what is there is not ours."""

from __future__ import annotations


class NetnsError(Exception):
    """The machine did not do what it was told.

    Attributes:
        reason: one sentence.
        call: the system call, request or command that failed; empty when nothing was called.
        left: what state is left behind, and what to do about it; empty when nothing is.
    """

    def __init__(self, reason: str, *, call: str = "", left: str = "") -> None:
        self.reason = reason
        self.call = call
        self.left = left
        super().__init__("\n  ".join(part for part in (reason, f"call: {call}" if call else "", left) if part))
