"""Objects from a directory of manifests, which may be added, changed and removed at run time.

Files are YAML or JSON with any number of documents. A bad document among good ones keeps the last good version of its
object, and is named once. A file appears by rename; one that is written in place is read when it has not changed
between two looks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from kproxy.api.types import Object
from kproxy.errors import Finding, UserError
from kproxy.proxy.changes import Batch, Change, ObjectKey, Tracked
from kproxy.proxy.sources import TYPES, Deliver, key_of, typed

_LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.2
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
    """

    objects: dict[ObjectKey, Tracked]
    bad: set[ObjectKey]
    findings: list[Finding]
    passed_over: set[str]
    is_broken: bool


def read_file(path: Path) -> Contents:
    """Everything that one manifest file holds.

    Raises:
        OSError: it cannot be read.
    """
    text = path.read_bytes()
    # imported here because it takes PyYAML along: a proxy that watches an API never comes by
    from kproxy.api.manifest import read
    from kproxy.api.validation import prepare

    with _without_collections():
        documents, findings = read(text, str(path), max_bytes=1 << 40)
        contents = Contents({}, set(), list(findings), set(), is_broken=bool(findings))
        for document in documents:
            kind = document.obj.get("kind")
            if kind not in TYPES:
                contents.passed_over.add(str(kind))
                continue
            obj, errors = prepare(document.obj, is_strict=False)
            if errors:
                contents.findings += document.findings(errors)
                contents.bad |= _named(document.obj)
            else:
                contents.objects[key_of(obj)] = typed(obj)
    return contents


def _named(obj: Object) -> set[ObjectKey]:
    """The key of an object with errors, if it has one at all."""
    metadata = obj.get("metadata")
    names = [metadata.get(part) for part in ("name", "namespace")] if isinstance(metadata, dict) else [None]
    is_named = isinstance(names[0], str) and all(name is None or isinstance(name, str) for name in names)
    return {key_of(obj)} if is_named else set()


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Keeps the garbage collector away from a heap that only grows: it would take half of the time."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def signatures(directory: Path) -> dict[Path, Signature]:
    """The manifest files of a directory as they are now, by name; sub-directories and hidden files do not count.

    Raises:
        UserError: the directory cannot be read.
    """
    found: dict[Path, Signature] = {}
    try:
        for path in sorted(directory.iterdir()):
            if path.suffix in SUFFIXES and not path.name.startswith("."):
                found.update(_signature(path))
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from error
    return found


def _signature(path: Path) -> Iterator[tuple[Path, Signature]]:
    try:
        status = path.stat()
    except FileNotFoundError:  # removed while we looked, or a link to nowhere
        return
    if path.is_file():
        yield path, Signature(status.st_ino, status.st_size, status.st_mtime_ns)


class DirectorySource:
    """A directory that is looked at several times a second.

    Args:
        directory: where the manifests are.
        poll_seconds: how often to look.
    """

    is_patient = False

    def __init__(self, directory: Path, poll_seconds: float = POLL_SECONDS) -> None:
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._seen: dict[Path, Signature] = {}
        self._read: dict[Path, Signature] = {}
        self._contents: dict[Path, Contents] = {}
        self._objects: dict[ObjectKey, Tracked] = {}
        self._generation = 0

    def start(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver what is there, then watch from a thread.

        Raises:
            UserError: the directory cannot be read.
        """
        deliver(self.look(is_first=True))
        threading.Thread(target=self._watch, args=(deliver, stop), name="watch-directory", daemon=True).start()

    def _watch(self, deliver: Deliver, stop: threading.Event) -> None:
        has_failed = False
        while not stop.wait(self._poll_seconds):
            try:
                batch = self.look()
                has_failed = False
            except UserError as error:
                if not has_failed:
                    _LOG.error("%s: what was read before stays", error)
                has_failed = True
                continue
            if batch.changes:
                deliver(batch)

    def look(self, *, is_first: bool = False) -> Batch:
        """What has changed since the last look.

        Args:
            is_first: read every file as it is, without waiting until it rests.

        Raises:
            UserError: the directory cannot be read.
        """
        now = signatures(self._directory)
        for path in self._contents.keys() - now.keys():
            del self._contents[path], self._read[path]
        for path, signature in now.items():
            rests = is_first or self._seen.get(path) == signature
            if rests and self._read.get(path) != signature:
                self._load(path, signature)
        self._seen = now
        return self._compare()

    def _load(self, path: Path, signature: Signature) -> None:
        try:
            contents = read_file(path)
        except OSError as error:
            _LOG.error("%s: %s", path, error.strerror)
            return
        self._read[path] = signature
        for found in contents.findings:
            _LOG.error("%s: the last good version stays", found)
        if contents.passed_over:
            _LOG.info("%s: passed over: %s", path, ", ".join(sorted(contents.passed_over)))
        self._keep_good_versions(path, contents)
        self._contents[path] = contents

    def _keep_good_versions(self, path: Path, contents: Contents) -> None:
        before = self._contents.get(path)
        if before is None:
            return
        for key, value in before.objects.items():
            if key not in contents.objects and (key in contents.bad or contents.is_broken):
                contents.objects[key] = value

    def _compare(self) -> Batch:
        wanted = merged(self._contents)
        changes = [Change(key, old, None) for key, old in self._objects.items() if key not in wanted]
        changes += [
            Change(key, self._objects.get(key), new) for key, new in wanted.items() if self._objects.get(key) != new
        ]
        self._objects = wanted
        self._generation += bool(changes)
        return Batch(tuple(changes), dict.fromkeys(TYPES, self._generation))


def merged(files: Mapping[Path, Contents]) -> dict[ObjectKey, Tracked]:
    """All objects of all files; of an object that several files hold, the first file's counts."""
    found: dict[ObjectKey, Tracked] = {}
    for path in sorted(files):
        for key, value in files[path].objects.items():
            found.setdefault(key, value)
    return found


def read_directory(directory: Path) -> tuple[dict[ObjectKey, Tracked], list[Finding], set[str]]:
    """All objects of a directory at once, what is wrong with them, and which other kinds are there.

    Raises:
        UserError: the directory or a file in it cannot be read.
    """
    files = {}
    for path in signatures(directory):
        try:
            files[path] = read_file(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    findings = [finding for contents in files.values() for finding in contents.findings]
    return merged(files), findings, _union(contents.passed_over for contents in files.values())


def _union(sets: Iterable[set[str]]) -> set[str]:
    return {name for names in sets for name in names}
