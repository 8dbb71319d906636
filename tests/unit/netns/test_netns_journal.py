"""The record: what it holds after crashes, torn lines, many writers and compaction."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from netns import journal as record
from netns.errors import NetnsError
from netns.journal import CRASH_AT, Journal
from netns.namespace import Namespace


@pytest.fixture
def journal(tmp_path: Path):
    opened = Journal(tmp_path / "journal", "builder")
    yield opened
    opened.close()


def keys(journal: Journal) -> list[tuple[str, str]]:
    return [(entry.kind, entry.key) for entry in journal.entries()]


def test_what_is_made_and_not_gone_is_listed_oldest_first(journal: Journal, tmp_path: Path) -> None:
    journal.namespace(Namespace("a", tmp_path / "a"))
    journal.file(tmp_path / "file")
    journal.process(12, 34, "echo")
    journal.gone(record.FILE, str(tmp_path / "file"))
    assert keys(journal) == [("namespace", str(tmp_path / "a")), ("process", "12:34")]
    assert journal.entries()[1].details["role"] == "echo"


def test_later_knowledge_is_added_to_the_same_entry(journal: Journal, tmp_path: Path) -> None:
    namespace = Namespace("a", tmp_path / "a")
    journal.namespace(namespace)
    journal.file(tmp_path / "file")
    journal.namespace(namespace, 77)
    assert [entry.kind for entry in journal.entries()] == ["namespace", "file"]
    assert journal.entries()[0].details["cookie"] == 77


def test_a_line_cut_short_is_passed_over_and_does_not_swallow_the_next(journal: Journal, tmp_path: Path) -> None:
    journal.mount(tmp_path / "one")
    with journal.path.open("a") as file:
        file.write('{"make": "file", "key": "/et')
    again = Journal(journal.path)
    again.mount(tmp_path / "two")
    again.close()
    assert keys(again) == [("mount", str(tmp_path / "one")), ("mount", str(tmp_path / "two"))]


def test_something_of_others_is_not_put_on_record(journal: Journal, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch()
    for put in (journal.file, journal.directory, journal.tree):
        with pytest.raises(NetnsError, match="not made by us"):
            put(theirs)
    assert keys(journal) == []


def test_something_of_ours_is_recorded_once(journal: Journal, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    journal.file(ours)
    ours.touch()
    journal.file(ours)
    assert keys(journal) == [("file", str(ours))]


def test_a_large_record_is_rewritten_without_what_is_gone(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.mount(tmp_path / "stays")
    for number in range(50):
        journal.mount(tmp_path / str(number))
        journal.gone(record.MOUNT, str(tmp_path / str(number)))
    before = journal.path.stat().st_size
    monkeypatch.setattr(record, "_COMPACT_ABOVE", 100)
    other = Journal(journal.path)
    assert journal.path.stat().st_size < before / 10
    journal.mount(tmp_path / "later")  # through a descriptor of the file that was replaced
    assert keys(other) == [("mount", str(tmp_path / "stays")), ("mount", str(tmp_path / "later"))]
    other.close()


def test_many_writers_do_not_mix_their_lines(journal: Journal, tmp_path: Path) -> None:
    def write(journal: Journal, name: str) -> None:
        for number in range(100):
            journal.mount(tmp_path / f"{name}-{number}")

    other = Journal(journal.path)
    threads = [
        threading.Thread(target=write, args=(one, f"{who}")) for who, one in enumerate((journal, journal, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len(keys(journal)) == 300
    assert all(json.loads(line) for line in journal.path.read_text().splitlines())


def test_steps_are_counted_always_and_written_down_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Journal(tmp_path / "quiet", "builder")
    quiet.step("one")
    monkeypatch.setenv(CRASH_AT, "builder:0")
    loud = Journal(tmp_path / "loud", "builder")
    loud.step("one")
    loud.step("two")
    assert (quiet.steps, loud.steps) == (1, 2)
    assert quiet.recorded_steps("builder") == ()
    assert loud.recorded_steps("builder") == ("one", "two")
    assert loud.recorded_steps("other") == ()
    quiet.close()
    loud.close()


@pytest.mark.parametrize(("crash_at", "status"), [("builder:2", -signal.SIGKILL), ("builder:3", 0), ("other:2", 0)])
def test_the_process_kills_itself_at_the_named_step_of_its_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str, status: int
) -> None:
    monkeypatch.setenv(CRASH_AT, crash_at)
    pid = os.fork()
    if pid == 0:
        journal = Journal(tmp_path / "journal", "builder")
        journal.step("one")
        journal.step("two")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status


def test_a_deleted_record_leaves_nothing(journal: Journal, tmp_path: Path) -> None:
    journal.mount(tmp_path / "x")
    journal.delete()
    assert list(tmp_path.iterdir()) == []
    assert journal.entries() == ()
