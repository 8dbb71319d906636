"""The manifests a command line names: files, folders and standard input, read into documents that know their lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kproxy.api import manifest
from kproxy.api.kinds import BY_API
from kproxy.api.manifest import Document
from kproxy.cluster import clusterfile
from kproxy.cluster.clusterfile import ClusterConfig, Overrides
from kproxy.cluster.layout import Layout
from kproxy.errors import Finding, InvalidInput

SUFFIXES = (".yaml", ".yml", ".json")
"""What counts in a folder; a file that is named counts whatever it is called."""


@dataclass
class Manifests:
    """What was read: documents in their order, and everything that is wrong with their text."""

    documents: list[Document] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def without(self, is_dropped: Callable[[Document], bool]) -> Manifests:
        """The same but for the documents that ``is_dropped`` picks."""
        return Manifests([document for document in self.documents if not is_dropped(document)], self.findings)


def read_paths(paths: Sequence[str]) -> Manifests:
    """Read every file named, every manifest in a folder named, and standard input for ``-``.

    Never raises for what it reads: a missing file is a finding like any other.
    """
    found = Manifests()
    for path in _files(paths, found.findings):
        text = _content(path, found.findings)
        if text is not None:
            documents, findings = manifest.read(text, path)
            found.documents += documents
            found.findings += findings
    return found


def _files(paths: Iterable[str], findings: list[Finding]) -> Iterable[str]:
    for path in paths:
        if path == "-" or not Path(path).is_dir():
            yield path
            continue
        inside = sorted(str(entry) for entry in Path(path).iterdir() if entry.suffix in SUFFIXES and entry.is_file())
        if not inside:
            findings.append(Finding(path, 0, "", "", f"no {', '.join(SUFFIXES)} files in this folder{_nearby(path)}"))
        yield from inside


def _nearby(path: str) -> str:
    """Where in a folder without manifests some are: folders in it are not looked into by themselves."""
    folders = {str(found.parent) for suffix in SUFFIXES for found in Path(path).glob(f"*/*{suffix}")}
    return f"; there are some in {', '.join(sorted(folders))}" if folders else ""


def _content(path: str, findings: list[Finding]) -> bytes | None:
    """At most a byte more than may be read, so that the reader can tell that it is too much."""
    limit = manifest.MAX_FILE_BYTES
    if path.startswith(("http://", "https://")):
        reason = f"addresses are not fetched: curl -sSfL {path} | kproxy apply -f -"
        findings.append(Finding(path, 0, "", "", reason))
        return None
    try:
        if path == "-":
            return sys.stdin.buffer.read(limit + 1)
        size = Path(path).stat().st_size
        if size > limit:
            reason = f"the file is too large: {size} bytes, at most {limit} are read"
            findings.append(Finding(path, 0, "", "", reason))
            return None
        with Path(path).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        findings.append(Finding(path, 0, "", "", (error.strerror or str(error)).lower()))
        return None


def is_cluster(document: Document) -> bool:
    """Whether the document describes a lab, not an object in it."""
    return document.obj.get("kind") == clusterfile.KIND and document.obj.get("apiVersion") == clusterfile.API_VERSION


def pass_over_cluster_files(manifests: Manifests, layout: Layout) -> Manifests:
    """The documents without the running lab's own cluster file; another lab's becomes a finding.

    What ``lab up`` may override on its command line is taken from the running lab, so that a cluster file brought up
    with ``--network vxlan`` is still recognised.
    """
    for document in filter(is_cluster, manifests.documents):
        if not _is_running(document, layout):
            reason = (
                f'the running lab "{layout.lab}" is another cluster; '
                f"`kproxy lab down` and `kproxy lab up -f {document.origin.file}` change that"
            )
            manifests.findings.append(manifest.finding(document.origin, document.obj, "", reason))
    return manifests.without(is_cluster)


def _is_running(document: Document, layout: Layout) -> bool:
    running = msgspec.json.decode(layout.cluster_file.read_bytes(), type=ClusterConfig)
    same = Overrides(
        lab=layout.lab,
        nodes=len(running.nodes),
        network=running.pod_network,
        ip_families=running.ip_families,
        service_node_port_range=running.node_port_range,
        proxy_mode=running.proxy.mode,
        iptables_variant=running.proxy.variant,
    )
    try:
        return clusterfile.read([document], same) == running
    except InvalidInput:
        return False


def put_in_namespace(manifests: Manifests, namespace: str, *, is_explicit: bool) -> None:
    """Give every namespaced object without a namespace this one.

    Args:
        manifests: changed in place; an object of another namespace than an explicit one becomes a finding.
        namespace: what ``-n`` said, or its default.
        is_explicit: somebody typed ``-n``.
    """
    for document in manifests.documents:
        kind = BY_API.get((str(document.obj.get("apiVersion")), str(document.obj.get("kind"))))
        metadata = document.obj.get("metadata")
        if kind is None or not kind.namespaced or not isinstance(metadata, dict):
            continue
        own = metadata.get("namespace") or namespace
        if is_explicit and own != namespace:
            reason = f'the namespace of the object does not match the namespace "{namespace}" of the command line'
            finding = manifest.finding(document.origin, document.obj, "metadata.namespace", reason)
            manifests.findings.append(finding)
        metadata["namespace"] = own
