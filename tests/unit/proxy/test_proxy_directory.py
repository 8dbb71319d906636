"""A directory of manifests that changes while it is watched."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from kproxy.api.types import Service
from kproxy.errors import UserError
from kproxy.proxy.changes import Batch, ObjectKey
from kproxy.proxy.sources.directory import DirectorySource, read_directory

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: %s, ports: [{port: 80}]}\n"
PORT = {"port": 80}
WEB = ObjectKey("Service", "default", "web")


def put(folder: Path, name: str, text: str) -> None:
    """Add a file as a careful writer does: whole, by rename."""
    (folder / ".new").write_text(text)
    (folder / ".new").rename(folder / name)


def settled(source: DirectorySource) -> Batch:
    source.look()
    return source.look()


def cluster_ip(batch: Batch, key: ObjectKey = WEB) -> str | None:
    change = next(change for change in batch.changes if change.key == key)
    return change.new.spec.cluster_ip if isinstance(change.new, Service) else None


def test_everything_that_is_there_is_told_at_once(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1") + "---\n" + SERVICE % ("db", "10.96.0.2"))
    put(
        tmp_path,
        "b.json",
        '{"kind":"Service","apiVersion":"v1","metadata":{"name":"j"},"spec":{"ports":[{"port":80}]}}',
    )
    put(tmp_path, "README.md", "no manifest")

    batch = DirectorySource(tmp_path).look(is_first=True)

    assert {change.key.name for change in batch.changes} == {"web", "db", "j"}
    assert {"Service", "EndpointSlice", "Node"} <= batch.reached.keys()


def test_addresses_in_the_spelling_of_older_kubernetes_are_taken(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", SERVICE % ("web", "10.096.000.001"))
    put(tmp_path, "b.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: A}\n")

    batch = DirectorySource(tmp_path).look(is_first=True)

    assert {change.key.name for change in batch.changes} == {"web", "A"}


@pytest.mark.parametrize("metadata", ["x", "[]", "{name: 3}", "{name: web, namespace: []}", "{}"])
def test_an_object_without_a_proper_name_is_only_named(
    tmp_path: Path, metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a.yaml", f"apiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec: {{ports: [{{port: 80}}]}}\n")
    put(tmp_path, "b.yaml", SERVICE % ("good", "10.96.0.1"))

    source = DirectorySource(tmp_path)

    assert {change.key.name for change in source.look(is_first=True).changes} == {"good"}
    source.look()
    assert len([record for record in caplog.records if "a.yaml:" in record.getMessage()]) == 1


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_of_two_documents_of_one_name_the_first_counts_and_the_other_is_named(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    documents = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": ip, "ports": [PORT]}}
        for ip in ("10.96.0.1", "10.96.0.2")
    ]
    as_list = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    text = "\n---\n".join(map(json.dumps, documents)) if suffix == "yaml" else as_list
    put(tmp_path, f"a.{suffix}", text)
    source = DirectorySource(tmp_path)
    assert cluster_ip(source.look(is_first=True)) == "10.96.0.1"
    assert 'metadata.name: Duplicate value: "web"' in caplog.text


def test_an_object_of_two_files_is_named_once_and_the_first_file_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "b.yaml", SERVICE % ("web", "10.96.0.1"))
    source = DirectorySource(tmp_path)
    source.look(is_first=True)
    put(tmp_path, "c.yaml", SERVICE % ("web", "10.96.0.2"))
    batches = [source.look(), source.look(), source.look()]
    assert [batch.changes for batch in batches] == [(), (), ()]
    said = [record.getMessage() for record in caplog.records]
    assert said == ['c.yaml: Service "default/web" is also in b.yaml: the first file counts']
    (tmp_path / "b.yaml").unlink()
    assert cluster_ip(source.look()) == "10.96.0.2"


def test_reading_once_names_an_object_of_several_files_too(tmp_path: Path) -> None:
    for name, address in (("b", "10.96.0.1"), ("c", "10.96.0.2"), ("d", "10.96.0.3")):
        put(tmp_path, f"{name}.yaml", SERVICE % ("web", address))
    reading = read_directory(tmp_path)
    assert reading.repeated == [
        'c.yaml: Service "default/web" is also in b.yaml: the first file counts',
        'd.yaml: Service "default/web" is also in b.yaml, c.yaml: the first file counts',
    ]
    found = reading.objects[WEB]
    assert isinstance(found, Service)
    assert found.spec.cluster_ip == "10.96.0.1"


def test_a_document_without_a_kind_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.yaml", "metadata: {name: web}\n")
    assert DirectorySource(tmp_path).look(is_first=True).changes == ()
    assert "kind: Required value" in caplog.text


def test_files_may_come_change_and_go(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    assert source.look(is_first=True).changes == ()

    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1"))
    added = source.look(), source.look()
    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.9"))
    changed = settled(source)
    (tmp_path / "a.yaml").unlink()
    removed = source.look()

    assert added[0].changes == ()
    assert cluster_ip(added[1]) == "10.96.0.1"
    assert cluster_ip(changed) == "10.96.0.9"
    assert cluster_ip(removed) is None
    assert changed.reached["Service"] > added[1].reached["Service"]


@pytest.mark.parametrize(
    "broken",
    [
        SERVICE % ("web", "{a: 1}"),
        "kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec: {ports: 3}\n",
        "kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec: {ports: [{port: 70000, targetPort: 80}]}\n",
        SERVICE % ("web", "10.96.0.1") + "  prots: []\n",
        "a: [",
    ],
)
def test_bad_version_of_an_object_keeps_the_good_one_and_is_named_once(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1"))
    source = DirectorySource(tmp_path)
    source.look(is_first=True)

    put(tmp_path, "a.yaml", broken + ("---\n" + SERVICE % ("db", "10.96.0.2") if "[" not in broken[:5] else ""))
    batch = settled(source)
    source.look()

    assert WEB not in {change.key for change in batch.changes}
    assert sum("the last good version stays" in record.message for record in caplog.records) == 1


def test_object_taken_out_of_a_file_with_another_bad_object_is_gone(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1") + "---\n" + SERVICE % ("db", "10.96.0.2"))
    source = DirectorySource(tmp_path)
    source.look(is_first=True)

    put(tmp_path, "a.yaml", SERVICE % ("db", "[]"))

    assert [change.key.name for change in settled(source).changes] == ["web"]


def test_other_kinds_are_passed_over_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put(tmp_path, "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: b}\n")

    source = DirectorySource(tmp_path)
    source.look(is_first=True)
    source.look()

    assert [record.message for record in caplog.records] == [f"{tmp_path / 'a.yaml'}: passed over: Pod"]


def test_missing_directory_is_refused_at_start_and_waited_out_later(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        DirectorySource(tmp_path / "nowhere").look(is_first=True)

    folder = tmp_path / "manifests"
    folder.mkdir()
    put(folder, "a.yaml", SERVICE % ("web", "10.96.0.1"))
    told: SimpleQueue[Batch] = SimpleQueue()
    stop = threading.Event()
    try:
        DirectorySource(folder, poll_seconds=0.01).start(told.put, stop)
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.1"
        folder.rename(tmp_path / "away")
        (tmp_path / "away").rename(folder)
        put(folder, "a.yaml", SERVICE % ("web", "10.96.0.2"))
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.2"
    finally:
        stop.set()


def test_a_file_is_told_as_soon_as_it_is_in_place_or_its_writer_closes_it(tmp_path: Path) -> None:
    told: SimpleQueue[Batch] = SimpleQueue()
    stop = threading.Event()
    source = DirectorySource(tmp_path)
    try:
        source.start(told.put, stop)
        assert told.get(timeout=5).changes == ()
        put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1"))
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.1"
        with (tmp_path / "a.yaml").open("w") as file:
            file.write(SERVICE % ("web", "10.96.0.2"))
            file.flush()
            assert told.empty()
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.2"
        (tmp_path / "a.yaml").unlink()
        assert cluster_ip(told.get(timeout=5)) is None
    finally:
        stop.set()


def test_of_an_object_in_two_files_the_first_files_counts(tmp_path: Path) -> None:
    put(tmp_path, "b.yaml", SERVICE % ("web", "10.96.0.2"))
    source = DirectorySource(tmp_path)
    assert cluster_ip(source.look(is_first=True)) == "10.96.0.2"

    put(tmp_path, "a.yaml", SERVICE % ("web", "10.96.0.1"))
    assert cluster_ip(source.look_at(["a.yaml"])) == "10.96.0.1"
    put(tmp_path, "b.yaml", SERVICE % ("web", "10.96.0.3"))
    assert source.look_at(["b.yaml"]).changes == ()
    (tmp_path / "a.yaml").unlink()
    assert cluster_ip(source.look_at(["a.yaml"])) == "10.96.0.3"


def test_kind_that_is_no_text_is_only_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.json", '{"apiVersion": "v1", "kind": ["Service"]}')

    assert DirectorySource(tmp_path).look(is_first=True).changes == ()


def test_files_of_a_mounted_config_map_change_by_the_link_that_they_lead_through(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"..version{number}").mkdir()
        put(tmp_path / f"..version{number}", "a.yaml", SERVICE % ("web", f"10.96.0.{number}"))
    (tmp_path / "..data").symlink_to("..version1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    told: SimpleQueue[Batch] = SimpleQueue()
    stop = threading.Event()
    source = DirectorySource(tmp_path, poll_seconds=0.05)
    try:
        source.start(told.put, stop)
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.1"
        (tmp_path / "..new").symlink_to("..version2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        assert cluster_ip(told.get(timeout=5)) == "10.96.0.2"
    finally:
        stop.set()
