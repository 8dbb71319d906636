"""Objects from a directory of manifests, which may be added, changed and removed at run time.

Files are YAML or JSON with any number of documents. A bad document among good ones keeps the last good version of its
object, and is named once. A file is read as soon as it has been put in place by rename, or its writer has closed
it; where the kernel does not tell so, when it has not changed between two looks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import stat
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import msgspec

from kproxy.api.field_errors import duplicate, required
from kproxy.api.types import Object
from kproxy.api.validation import prepare
from kproxy.errors import Finding, UserError
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracked
from kproxy.proxy.events import Event
from kproxy.proxy.sources import TYPES, Deliver, key_of, typed
from kproxy.proxy.sources.inotify import DirectoryWatch
from kproxy.proxy.sources.plain_json import Read, read_plain

_LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.2
RARE_POLL_SECONDS = 2.0
"""How often to look where the kernel tells what happens: only for what it cannot hear."""
LOOKING_SHARE = 0.02
"""So much of the time at most goes into such looks: with 20,000 files one takes 0.1 s."""
SUFFIXES = (".yaml", ".yml", ".json")


class Signature(msgspec.Struct, frozen=True):
    """What tells one version of a file from another without reading it."""

    inode: int
    size: int
    mtime_ns: int


class Contents(msgspec.Struct):
    """What one file holds.

    Attributes:
        objects: its good objects of the kinds that count, in order.
        bad: keys of objects that are there but cannot be used.
        findings: what is wrong with the file.
        passed_over: names of other kinds in it, each once.
        is_broken: its text ends in an error, so that objects may be missing from it.
        texts: the text of each object, where there are several and all are good: they need not be read again.
    """

    objects: dict[ObjectKey, Tracked]
    bad: Set[ObjectKey]
    findings: Sequence[Finding]
    passed_over: Set[str]
    is_broken: bool
    texts: Mapping[bytes, Read] = {}


_NO_TEXTS: Mapping[bytes, Read] = {}
"""One for all: there are tens of thousands of files."""


def read_file(path: Path, known: Mapping[bytes, Read] | None = None) -> Contents:
    """Everything that one manifest file holds.

    Args:
        path: the file.
        known: objects by their text, as an earlier version of the file had them.

    Raises:
        OSError: it cannot be read.
    """
    text = path.read_bytes()
    if (plain := read_plain(text, known or {})) is not None:
        objects = {read.key: read.value for read in plain.values()}
        if len(objects) == len(plain):
            texts = plain if len(plain) > 1 else _NO_TEXTS
            return Contents(objects, frozenset(), (), frozenset(), is_broken=False, texts=texts)
    return read_thoroughly(text, str(path))


def read_thoroughly(text: bytes, file: str) -> Contents:
    """What a manifest's text holds, and everything that is wrong with it.

    Args:
        text: YAML or JSON.
        file: its name.
    """
    # imported here because it takes PyYAML along: not every proxy comes by
    from kproxy.api.manifest import read

    with without_collections():
        documents, findings = read(text, file, max_bytes=1 << 40)
        is_broken = bool(findings)
        objects: dict[ObjectKey, Tracked] = {}
        bad: set[ObjectKey] = set()
        passed_over: set[str] = set()
        findings = list(findings)
        for document in documents:
            kind = document.obj.get("kind")
            if not kind:
                findings += document.findings([required("kind")])
                continue
            if str(kind) not in TYPES:
                passed_over.add(str(kind))
                continue
            obj, errors = prepare(document.obj, is_strict=False)
            if not errors and key_of(obj) in objects:
                errors = [duplicate("metadata.name", obj["metadata"]["name"])]
            if errors:
                findings += document.findings(errors)
                bad |= _named(document.obj)
            else:
                objects[key_of(obj)] = typed(obj)
    return Contents(objects, bad, findings, passed_over, is_broken=is_broken)


def _named(obj: Object) -> set[ObjectKey]:
    """The key of an object with errors, if it has one at all."""
    metadata = obj.get("metadata")
    names = [metadata.get(part) for part in ("name", "namespace")] if isinstance(metadata, dict) else [None]
    is_named = isinstance(names[0], str) and all(name is None or isinstance(name, str) for name in names)
    return {key_of(obj)} if is_named else set()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Keeps the garbage collector away from a heap that only grows: it would take half of the time."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def signatures(directory: Path) -> dict[str, Signature]:
    """The manifest files of a directory as they are now, by name; sub-directories and hidden files do not count.

    Raises:
        UserError: the directory cannot be read.
    """
    found: dict[str, Signature] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _is_manifest(entry.name) and (signature := _signature(entry)):
                    found[entry.name] = signature
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from error
    return dict(sorted(found.items()))


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _signature(file: os.DirEntry[str] | Path) -> Signature | None:
    """None when there is no such file: removed while we looked, a link to nowhere, or a directory."""
    try:
        status = file.stat()
    except OSError:
        return None
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


class DirectorySource:
    """A directory that is watched.

    Args:
        directory: where the manifests are.
        poll_seconds: how often to look where the kernel does not tell what happens.
    """

    is_patient = False

    def __init__(self, directory: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._seen: dict[str, Signature] = {}
        self._is_restless = False
        self._read: dict[str, Signature] = {}
        self._contents: dict[str, Contents] = {}
        self._holders: dict[ObjectKey, set[str]] = {}
        self._objects: dict[ObjectKey, Tracked] = {}
        self._generation = 0

    def start(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver what is there, then watch from a thread.

        Raises:
            UserError: the directory cannot be read.
        """
        watch = self._listen()  # before the first look, or what happens in between would go unheard
        deliver(self.look(is_first=True))
        threading.Thread(target=self._watch, args=(deliver, stop, watch), name="watch-directory", daemon=True).start()

    def tell(self, event: Event) -> None:
        """A directory has no place for events."""

    def _listen(self) -> DirectoryWatch | None:
        try:
            return DirectoryWatch(self._directory)
        except OSError as error:
            _LOG.info("%s: looked at every %g s: %s", self._directory, self._poll_seconds, error.strerror)
            return None

    def _watch(self, deliver: Deliver, stop: threading.Event, watch: DirectoryWatch | None) -> None:
        has_failed = False
        next_look = 0.0
        while not stop.is_set():
            names = self._wait(stop, watch)
            if any(name.startswith("..") for name in names):  # the link that files of a mounted ConfigMap lead through
                names, next_look = [], 0.0
            if not names and time.monotonic() < next_look:
                continue
            began = time.monotonic()
            try:
                batch = self.look_at(names) if names else self.look()
                has_failed = False
            except UserError as error:
                if not has_failed:
                    _LOG.error("%s: what was read before stays", error)
                has_failed = True
                continue
            if not names and watch is not None and not watch.is_lost and not self._is_restless:
                now = time.monotonic()
                next_look = now + max(RARE_POLL_SECONDS, (now - began) / LOOKING_SHARE)
            if batch.changes:
                deliver(batch)
        if watch is not None:
            watch.close()

    def _wait(self, stop: threading.Event, watch: DirectoryWatch | None) -> list[str]:
        if watch is not None and not watch.is_lost:
            return watch.wait(self._poll_seconds)
        stop.wait(self._poll_seconds)
        return []

    def look(self, *, is_first: bool = False) -> Batch:
        """What has changed since the last look.

        Args:
            is_first: read every file as it is, without waiting until it rests.

        Raises:
            UserError: the directory cannot be read.
        """
        now = signatures(self._directory)
        touched: dict[ObjectKey, None] = {}
        self._is_restless = False
        for name in self._contents.keys() - now.keys():
            touched.update(self._drop(name))
        for name, signature in now.items():
            if self._read.get(name) == signature:
                continue
            if is_first or self._seen.get(name) == signature:
                touched.update(self._load(name, signature))
            else:
                self._is_restless = True
        self._seen = now
        return self._compare(touched)

    def look_at(self, names: Iterable[str]) -> Batch:
        """What has changed in files that have just come to rest, or gone; the others are not looked at."""
        touched: dict[ObjectKey, None] = {}
        for name in filter(_is_manifest, names):
            signature = _signature(self._directory / name)
            if signature is None:
                touched.update(self._drop(name))
            elif self._read.get(name) != signature:
                touched.update(self._load(name, signature))
        return self._compare(touched)

    def _drop(self, name: str) -> dict[ObjectKey, None]:
        """Forget a file; returns the keys of what it held."""
        contents = self._contents.pop(name, None)
        self._read.pop(name, None)
        return self._change_holders(name, contents.objects if contents else (), ())

    def _load(self, name: str, signature: Signature) -> dict[ObjectKey, None]:
        """Read a file; returns the keys of what it held and holds."""
        path = self._directory / name
        before = self._contents.get(name)
        try:
            contents = read_file(path, before.texts if before else None)
        except OSError as error:
            _LOG.error("%s: %s", path, error.strerror)
            return {}
        self._read[name] = signature
        for found in contents.findings:
            _LOG.error("%s: the last good version stays", found)
        if contents.passed_over:
            _LOG.info("%s: passed over: %s", path, ", ".join(sorted(contents.passed_over)))
        if before is not None:
            keep_good_versions(before, contents)
        self._contents[name] = contents
        return self._change_holders(name, before.objects if before else (), contents.objects)

    def _change_holders(
        self, name: str, before: Collection[ObjectKey], after: Collection[ObjectKey]
    ) -> dict[ObjectKey, None]:
        for key in before:
            self._holders[key].discard(name)
        for key in after:
            holders = self._holders.setdefault(key, set())
            if holders and key not in before:
                _LOG.warning("%s", _is_also_in(name, key, holders))
            holders.add(name)
        return dict.fromkeys((*before, *after))

    def _compare(self, touched: Iterable[ObjectKey]) -> Batch:
        changes = []
        for key in touched:
            holders = self._holders[key]
            new = self._contents[min(holders)].objects[key] if holders else None
            old = self._objects.get(key)
            if new is None:
                del self._holders[key]
                self._objects.pop(key, None)
            else:
                self._objects[key] = new
            if new is not old and new != old:
                changes.append(Change(key, old, new))
        changes.sort(key=_comes)
        self._generation += bool(changes)
        return Batch(tuple(changes), dict.fromkeys(TYPES, self._generation))


def _is_also_in(name: str, key: ObjectKey, holders: Iterable[str]) -> str:
    title = f"{key.namespace}/{key.name}" if key.namespace else key.name
    return f'{name}: {key.kind} "{title}" is also in {", ".join(sorted(holders))}: the first file counts'


def _comes(change: Change) -> bool:
    """What goes is told before what comes: it may make room."""
    return change.new is not None


def keep_good_versions(before: Contents, now: Contents) -> None:
    """Let objects stay whose new versions are bad, or that may be in the part of the file that cannot be read."""
    for key, value in before.objects.items():
        if key not in now.objects and (key in now.bad or now.is_broken):
            now.objects[key] = value


class Reading(NamedTuple):
    """What a directory holds.

    Attributes:
        objects: of an object that several files hold, the first file's.
        findings: what is wrong with the files.
        passed_over: names of the other kinds that are there.
        repeated: a sentence for each object in each further file that holds it.
    """

    objects: dict[ObjectKey, Tracked]
    findings: list[Finding]
    passed_over: set[str]
    repeated: list[str]


def read_directory(directory: Path) -> Reading:
    """All objects of a directory at once, and what is to be said of its files.

    Raises:
        UserError: the directory or a file in it cannot be read.
    """
    files = {}
    for name in signatures(directory):
        try:
            files[name] = read_file(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name}: {error.strerror}") from error
    reading = Reading({}, [], set(), [])
    holders: dict[ObjectKey, list[str]] = {}
    for name, contents in files.items():
        for key, value in contents.objects.items():
            if key in reading.objects:
                reading.repeated.append(_is_also_in(name, key, holders[key]))
            reading.objects.setdefault(key, value)
            holders.setdefault(key, []).append(name)
        reading.findings.extend(contents.findings)
        reading.passed_over.update(contents.passed_over)
    return reading
