"""What clients of the API saw, and whether one machine that never fails could have shown it to them.

An object is a register: each write of it makes a version that is greater than all before, each read shows one version.
Operations overlap in time; what came back before another began has to be seen by that. With the versions known, a
history is linearizable exactly when the operations in the order of their versions contradict neither time nor each
other: no search is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["done", "refused", "unknown"]


@dataclass
class Operation:
    """One request of one client, for one object.

    Attributes:
        name: the object's.
        kind: what was asked; "swap" is a write that only ``expected`` may come before.
        value: what was written, or what was read; None for an object that is not there.
        expected: the version that a swap replaces.
        version: that the write made, or that was read; 0 when that is not known.
        outcome: "refused" writes have changed nothing; "unknown" ones may have, once, at any time since they began.
        began: on the client's clock.
        ended: likewise; for ever when no answer came.
    """

    name: str
    kind: Literal["write", "swap", "delete", "read"]
    value: str | None = None
    expected: int = 0
    version: int = 0
    outcome: Outcome = "unknown"
    began: float = field(default_factory=time.monotonic)
    ended: float = float("inf")

    def end(self, outcome: Outcome, version: int = 0) -> None:
        self.outcome, self.version, self.ended = outcome, version, time.monotonic()

    @property
    def writes(self) -> bool:
        return self.kind != "read"


def contradictions(operations: Iterable[Operation], changes: Mapping[int, tuple[str, str | None]]) -> Iterator[str]:
    """What no machine that never fails could have shown.

    Args:
        operations: of all clients.
        changes: each version that anybody was told of, with the object's name and value then; None when it went.
    """
    by_name: dict[str, list[Operation]] = {}
    for operation in operations:
        by_name.setdefault(operation.name, []).append(operation)
    for name, mine in by_name.items():
        versions = {version: value for version, (of, value) in changes.items() if of == name}
        yield from _of_one(name, _settled(mine, versions), versions)


def _settled(operations: Sequence[Operation], versions: Mapping[int, str | None]) -> list[Operation]:
    """Unknown writes whose unique value somebody has seen are known to have happened; the others to have not yet.

    A deletion is answered without a version; an object is deleted once at most.
    """
    by_value = {value: version for version, value in versions.items()}
    for operation in operations:
        if operation.writes and not operation.version and operation.outcome != "refused":
            operation.version = by_value.get(operation.value, 0)
    return list(operations)


def _of_one(name: str, operations: Sequence[Operation], versions: Mapping[int, str | None]) -> Iterator[str]:
    written: dict[int, Operation] = {}
    for operation in operations:
        if not operation.writes or operation.outcome == "refused" or not operation.version:
            continue
        if operation.version in written:
            yield f"{name}: two writes made version {operation.version}"
        written[operation.version] = operation
    for operation in operations:
        if operation.outcome == "done" and operation.writes:
            yield from _of_write(name, operation, versions)
        elif operation.outcome == "done":
            yield from _of_read(name, operation, versions, written)
        elif operation.outcome == "refused" and operation.kind == "swap":
            yield from _of_refusal(name, operation, written, versions)
    yield from _of_swaps(name, operations, versions)
    yield from _of_time(
        name, [operation for operation in operations if operation.version and operation.outcome != "refused"]
    )


def _of_write(name: str, operation: Operation, versions: Mapping[int, str | None]) -> Iterator[str]:
    if operation.version not in versions:
        yield f"{name}: the acknowledged {operation.kind} that made version {operation.version} is lost"
    elif versions[operation.version] != operation.value:
        has = versions[operation.version]
        yield f"{name}: version {operation.version} is {has}, not {operation.value} as acknowledged"


def _of_read(
    name: str, operation: Operation, versions: Mapping[int, str | None], written: Mapping[int, Operation]
) -> Iterator[str]:
    if operation.value is None:
        return
    if operation.version in versions and versions[operation.version] != operation.value:
        yield f"{name}: version {operation.version} was read as {operation.value}, not {versions[operation.version]}"
    maker = written.get(operation.version)
    if maker is not None and maker.began > operation.ended:
        yield f"{name}: version {operation.version} was read before it was written"


def _of_refusal(
    name: str, operation: Operation, written: Mapping[int, Operation], versions: Mapping[int, str | None]
) -> Iterator[str]:
    """A swap may be refused only when the object was another at some moment of it."""
    later = [version for version in versions if version > operation.expected]
    makers = [written.get(version) for version in later]
    if not any(maker is None or maker.began < operation.ended for maker in makers):
        yield f"{name}: a swap of version {operation.expected} was refused without a reason"


def _of_swaps(name: str, operations: Sequence[Operation], versions: Mapping[int, str | None]) -> Iterator[str]:
    for operation in operations:
        if operation.kind == "swap" and operation.version and operation.outcome != "refused":
            between = [version for version in versions if operation.expected < version < operation.version]
            if between:
                yield f"{name}: the swap of {operation.expected} for {operation.version} overwrote {between}"


def _of_time(name: str, operations: Sequence[Operation]) -> Iterator[str]:
    """In the order in which they ended, nobody may see less than what was seen before it began."""
    ended = sorted((operation for operation in operations if operation.outcome == "done"), key=lambda done: done.ended)
    newest, place = 0, 0
    for operation in sorted(operations, key=lambda one: one.began):
        while place < len(ended) and ended[place].ended < operation.began:
            newest = max(newest, ended[place].version)
            place += 1
        if operation.version < newest or (operation.writes and operation.version == newest):
            yield f"{name}: a {operation.kind} at version {operation.version} began after version {newest} was known"


@dataclass
class Watched:
    """What one watcher was told.

    Attributes:
        spans: each stretch of the watch: where it began, and the versions that it told of with what they were.
    """

    spans: list[tuple[int, list[tuple[int, str, str | None]]]] = field(default_factory=list)

    def begin(self, version: int) -> None:
        self.spans.append((version, []))

    def see(self, version: int, name: str, value: str | None) -> None:
        self.spans[-1][1].append((version, name, value))


def faults_of_watch(watched: Watched, changes: Mapping[int, tuple[str, str | None]], last: int) -> Iterator[str]:
    """What a watcher was told wrongly, twice, out of order or not at all.

    Args:
        watched: what it was told.
        changes: everything that happened, by version.
        last: the version up to which the last stretch has come.
    """
    ends = [start for start, _ in watched.spans[1:]]
    for number, (start, told) in enumerate(watched.spans):
        versions = [version for version, _, _ in told]
        if versions != sorted(set(versions)):
            yield f"versions came twice or out of order: {versions}"
        if versions and versions[0] <= start:
            yield f"version {versions[0]} came after {start} was known"
        is_last = number == len(ends)
        end = last if is_last else (versions[-1] if versions else start)
        expected = [(version, *changes[version]) for version in sorted(changes) if start < version <= end]
        if expected != told:
            missing = [entry for entry in expected if entry not in told]
            wrong = [entry for entry in told if entry not in expected]
            yield f"from {start} to {end}: not told of {missing[:5]}, wrongly told of {wrong[:5]}"
