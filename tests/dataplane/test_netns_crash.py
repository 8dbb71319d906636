"""`kill -9` after every single step that changes the system: the rest can be completed, and taken down to nothing."""

import os
import random
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns_world import World, host_network, pods_on_a_node, reaches, world

from netns import process
from netns.build import build, remove, tear_down
from netns.errors import NetnsError
from netns.journal import CRASH_AT, PROCESS, Journal
from netns.namespace import create, exists, identity
from netns.namespace import remove as remove_namespace
from netns.process import Process
from netns.topology import NamespaceSpec, Role, Topology

pytestmark = pytest.mark.root


@pytest.fixture
def here() -> Iterator[World]:
    with world("tnc") as made:
        yield made


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Process]:
    """A namespace of others with a process inside: both must outlive everything here."""
    namespace = create("tnx-theirs", tmp_path)
    before = identity(namespace.public_path)
    sleeper = process.spawn(["sleep", "600"], ns=namespace)
    try:
        yield sleeper
        assert identity(namespace.public_path) == before
        assert process.find_in(namespace) == [sleeper.pid]
    finally:
        process.kill(sleeper, 0)
        process.exit_status(sleeper)
        remove_namespace(namespace)


def sleeper(here: World) -> list[str]:
    """A program that can be told from all others by its command line, recorded or not."""
    return ["sleep", f"600.{zlib.crc32(here.prefix.encode())}"]


def up(here: World, journal: Journal) -> None:
    """What a lab does when it comes up: processes on the host, files, namespaces, processes in them."""
    process.spawn(sleeper(here), journal=journal, role="control-plane")
    for put, path, make in (
        (journal.directory, here.folder / "locks", Path.mkdir),
        (journal.file, here.folder / "locks" / "node.lock", Path.touch),
        (journal.tree, here.folder / "logs", Path.mkdir),
        (journal.file, here.folder / "logs" / "pod.log", Path.touch),
    ):
        put(path)
        if not path.exists():
            make(path)
        journal.step(f"{path.name}")
    build(pods_on_a_node(here.prefix), journal, here.private)
    for name in ("node", "pod2"):
        process.spawn(sleeper(here), ns=here.namespace(name), journal=journal, role=name)


def up_and_apply(here: World, journal: Journal) -> None:
    """As `up`, then a pod goes and another one comes."""
    up(here, journal)
    remove(Topology((NamespaceSpec(f"{here.prefix}-pod3", Role.POD),)), journal, here.private, grace=0)
    build(pods_on_a_node(here.prefix, 3), journal, here.private)


def in_child(here: World, role: str, work: Callable[[World, Journal], None], crash_at: int) -> tuple[int, int]:
    """Exit status and steps of a process of its own that does `work` and is killed at that step (0: at none)."""
    steps_read, steps_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.environ[CRASH_AT] = f"{role}:{crash_at}"
        journal = Journal(here.journal_path, role)
        try:
            work(here, journal)
        finally:
            os.write(steps_write, str(journal.steps).encode())
            os._exit(0)
    os.close(steps_write)
    with os.fdopen(steps_read) as file:
        steps = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, int(steps or 0)


def recorded_processes(here: World) -> list[Process]:
    journal = here.journal()
    found = [entry.details for entry in journal.entries() if entry.kind == PROCESS]
    journal.close()
    return [Process(details["pid"], details["start"]) for details in found]


def clean_up(here: World) -> None:
    journal = here.journal()
    tear_down(journal, grace=0)
    journal.close()


def assert_nothing_left(here: World, processes: list[Process]) -> None:
    assert here.leftovers() == []
    assert [one for one in processes if process.is_alive(one)] == []
    everybody = [pid for pids in process.by_namespace().values() for pid in pids]
    assert [pid for pid in everybody if _command_line(pid) == "\0".join([*sleeper(here), ""])] == []


def test_going_up_is_killed_at_every_step_and_then_taken_down(here: World, theirs: Process) -> None:
    host = host_network()
    status, steps = in_child(here, "builder", up_and_apply, 0)
    assert (status, steps > 40) == (0, True)
    assert len(here.leftovers()) > 10
    clean_up(here)
    for step in range(1, steps + 1):
        status, _ = in_child(here, "builder", up_and_apply, step)
        assert status == -signal.SIGKILL, f"step {step} of {steps}"
        processes = recorded_processes(here)
        clean_up(here)
        assert_nothing_left(here, processes)
    assert host_network() == host
    assert process.is_alive(theirs)


def test_going_up_and_down_is_killed_between_steps_too(here: World, theirs: Process) -> None:
    host = host_network()
    seed = random.randrange(1 << 32)
    print("seed", seed)  # noqa: T201 - shown when it fails
    moments = random.Random(seed)
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            journal = here.journal("builder")
            while True:
                up_and_apply(here, journal)
                tear_down(journal, grace=0)
                journal.close()
                journal = here.journal("builder")
        time.sleep(moments.uniform(0.005, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        processes = recorded_processes(here)
        clean_up(here)
        assert_nothing_left(here, processes)
    assert host_network() == host


def test_going_up_is_killed_at_every_step_and_then_completed(here: World, theirs: Process) -> None:
    _, steps = in_child(here, "builder", up, 0)
    clean_up(here)
    for step in range(1, steps + 1):
        assert in_child(here, "builder", up, step)[0] == -signal.SIGKILL, f"step {step} of {steps}"
        assert in_child(here, "again", up, 0)[0] == 0
        assert reaches(here.namespace("pod2"), here.namespace("pod3"), "10.77.0.3"), f"step {step} of {steps}"
        assert reaches(here.namespace("pod3"), here.namespace("pod2"), "fd77::2"), f"step {step} of {steps}"
        processes = recorded_processes(here)
        clean_up(here)
        assert_nothing_left(here, processes)


def test_taking_down_is_killed_at_every_step_and_then_completed(here: World, theirs: Process) -> None:
    host = host_network()

    def down(here: World, journal: Journal) -> None:
        tear_down(journal, grace=0)

    in_child(here, "builder", up, 0)
    status, steps = in_child(here, "down", down, 0)
    assert (status, steps > 8) == (0, True)
    for step in range(1, steps + 1):
        in_child(here, "builder", up, 0)
        processes = recorded_processes(here)
        assert in_child(here, "down", down, step)[0] == -signal.SIGKILL, f"step {step} of {steps}"
        clean_up(here)
        assert_nothing_left(here, processes)
    assert host_network() == host


def test_a_program_never_runs_when_its_starter_dies_before_the_record(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child waits at its gate while the starter is killed in the middle of writing the record."""
    mark = here.folder / "it-ran"

    class Dying(Journal):
        def process(self, pid: int, start_time: int, role: str) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        process.spawn(["touch", str(mark)], journal=Dying(here.journal_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    everybody = [pid for pids in process.by_namespace().values() for pid in pids]
    assert not mark.exists()
    assert recorded_processes(here) == []
    assert not [pid for pid in everybody if str(mark) in _command_line(pid)]
    # The same, and the starter lives.
    journal = here.journal()
    journal.file(mark)
    process.spawn(["touch", str(mark)], journal=journal)
    while not mark.exists():
        time.sleep(0.001)


def test_something_left_behind_is_named_and_the_rest_is_taken_down(here: World) -> None:
    journal = here.journal()
    up(here, journal)
    stranger = here.folder / "locks" / "of-somebody-else"
    stranger.touch()
    with pytest.raises(NetnsError, match=r"not everything could be taken down\n  left: directory .*/locks: "):
        tear_down(journal, grace=0)
    assert not exists(here.namespace("node"))
    assert [entry.key for entry in journal.entries()] == [str(here.folder / "locks")]
    stranger.unlink()
    tear_down(journal)
    assert here.leftovers() == []


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
