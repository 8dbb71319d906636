"""Processes: where they run, what they inherit, how they are found, and that nobody else is ever hit."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns_world import World, world

from netns import process
from netns.errors import NetnsError
from netns.journal import PROCESS
from netns.namespace import Namespace, create, enter, identity, run_in
from netns.namespace import remove as remove_namespace
from netns.process import Process

pytestmark = pytest.mark.root


@pytest.fixture
def here() -> Iterator[World]:
    with world("tnp") as made:
        yield made


@pytest.fixture
def namespace(here: World) -> Iterator[Namespace]:
    made = create(f"{here.prefix}-one", here.private)
    yield made
    process.kill_all_in(made, 0)
    remove_namespace(made)


def finish(started: Process) -> int:
    """Its exit status, once it has ended."""
    while (status := process.exit_status(started)) is None:
        time.sleep(0.001)
    return status


def children() -> set[int]:
    """Our children, zombies too."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def output(argv: list[str], **options: object) -> str:
    read, write = os.pipe()
    started = process.spawn(argv, stdout=write, stderr=write, **options)  # type: ignore[arg-type]
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    finish(started)
    return text


def test_a_program_runs_in_its_namespace_and_session_with_its_own_environment(namespace: Namespace) -> None:
    script = 'readlink /proc/self/ns/net; pwd; echo "$A"; id -u; id -g; id -G; cut -d" " -f6 /proc/$$/stat; echo $$'
    environment = {"PATH": os.environ["PATH"], "A": "b"}
    lines = output(["sh", "-c", script], ns=namespace, env=environment, cwd=Path("/usr"), uid=65534, gid=65534).split(
        "\n"
    )
    assert lines[:6] == [f"net:[{identity(namespace.path)[1]}]", "/usr", "b", "65534", "65534", "65534"]
    assert lines[6] == lines[7]  # leader of its session


def test_only_the_standard_streams_and_what_was_passed_stay_open() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        assert set(output(["sh", "-c", "ls /proc/$$/fd"]).split()) == {"0", "1", "2"}
        assert set(output(["sh", "-c", "ls /proc/$$/fd"], pass_fds=[write]).split()) == {"0", "1", "2", str(write)}
    finally:
        os.close(read)
        os.close(write)


def test_signals_are_as_a_program_expects_them() -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below nohup
    try:
        masks = signal_masks()
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert masks == {"SigBlk": 0, "SigIgn": 0}


def signal_masks() -> dict[str, int]:
    lines = output(["cat", "/proc/self/status"]).splitlines()
    # Signals 32 and 33 are the C library's own: nobody can set them, and they come as our caller's caller had them.
    own = ~(0b11 << 31)
    return {
        line.split(":")[0]: int(line.split()[1], 16) & own for line in lines if line.startswith(("SigBlk", "SigIgn"))
    }


def test_setup_is_called_in_the_namespace_before_the_program(namespace: Namespace) -> None:

    def setup() -> None:
        os.environ["SEEN"] = str(Path("/proc/self/ns/net").readlink())

    seen = output(["sh", "-c", "echo $SEEN"], ns=namespace, setup=setup).split()
    assert seen == [f"net:[{identity(namespace.path)[1]}]"]


@pytest.mark.parametrize(
    ("argv", "options", "reason"),
    [
        (["no-such-program-here"], {}, "No such file"),
        (["true"], {"cwd": Path("/no/such/folder")}, "No such file"),
        (["true"], {"ns": Namespace("nobody", Path("/run/nobody"))}, "does not exist"),
        (["true"], {"setup": lambda: 1 // 0}, "by zero"),
    ],
)
def test_a_program_that_cannot_run_is_an_error_and_leaves_nothing(
    here: World, argv: list[str], options: dict[str, object], reason: str
) -> None:
    journal = here.journal()
    before = children()
    with pytest.raises(NetnsError, match=reason):
        process.spawn(argv, journal=journal, **options)  # type: ignore[arg-type]
    assert journal.entries() == ()
    assert children() == before
    journal.delete()


def test_a_running_program_is_on_record_until_it_is_forgotten(here: World) -> None:
    journal = here.journal()
    started = process.spawn(["sleep", "60"], journal=journal, role="sleeper")
    (entry,) = journal.entries()
    assert (entry.kind, entry.details["pid"], entry.details["role"]) == (PROCESS, started.pid, "sleeper")
    process.kill(started, 1)
    assert process.exit_status(started) == -signal.SIGTERM
    process.forget(started, journal)
    assert journal.entries() == ()
    journal.delete()


def test_a_process_is_alive_until_it_ends_and_its_number_is_not_it() -> None:
    started = process.spawn(["sleep", "60"])
    assert process.find(started.pid) == started
    assert process.exit_status(started) is None
    os.kill(started.pid, signal.SIGKILL)
    while process.is_alive(started):
        time.sleep(0.001)
    assert process.find(started.pid) is None  # a zombie
    assert process.exit_status(started) == -signal.SIGKILL
    with pytest.raises(ChildProcessError):
        process.exit_status(started)


def test_a_later_process_with_the_same_number_is_spared() -> None:
    later = process.spawn(["sleep", "60"])
    earlier = Process(later.pid, later.start_time - 1)
    assert not process.is_alive(earlier)
    process.kill(earlier, 0)
    with pytest.raises(ProcessLookupError):
        process.open_pidfd(earlier)
    assert process.is_alive(later)
    process.kill(later, 0)
    process.exit_status(later)


def test_who_does_not_listen_is_killed_after_the_grace_and_all_at_once() -> None:
    deaf = ["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"]
    read, write = os.pipe()
    started = [process.spawn(deaf, stdout=write) for _ in range(3)]
    os.close(write)
    with os.fdopen(read) as file:
        for _ in started:
            file.readline()
        begin = time.monotonic()
        process.kill_all(started, 2.0)
        assert 2.0 <= time.monotonic() - begin < 6.0, "one after the other"
    assert [process.exit_status(one) for one in started] == [-signal.SIGKILL] * 3


def test_everybody_in_a_namespace_is_found_and_ended_whoever_started_them(namespace: Namespace) -> None:
    bystander = process.spawn(["sleep", "60"])
    ours = process.spawn(["sleep", "60"], ns=namespace)
    by_hand = subprocess.Popen(["ip", "netns", "exec", namespace.name, "sleep", "60"])
    breeder = process.spawn(["sh", "-c", "while :; do sleep 0.01 & sleep 0.005; done"], ns=namespace)
    while not {ours.pid, by_hand.pid, breeder.pid} <= set(process.find_in(namespace)):
        time.sleep(0.005)
    process.kill_all_in(namespace, 0.2)
    assert process.find_in(namespace) == []
    assert process.is_alive(bystander)
    assert by_hand.wait(5) == -signal.SIGTERM
    for one in (ours, breeder):
        process.exit_status(one)
    process.kill(bystander, 0)
    process.exit_status(bystander)


def test_a_thread_of_ours_inside_does_not_make_us_a_victim(namespace: Namespace) -> None:
    stop = threading.Event()
    inside = threading.Event()

    def stay() -> None:
        inside.set()
        stop.wait(10)

    thread = threading.Thread(target=run_in, args=(namespace, stay))
    thread.start()
    inside.wait(10)
    assert process.find_in(namespace) == []
    process.kill_all_in(namespace, 0)
    stop.set()
    thread.join()


def test_we_and_our_ancestors_are_spared(namespace: Namespace) -> None:
    """As for `lab down` typed in a shell inside a node."""
    pid = os.fork()
    if pid == 0:
        enter(namespace)
        child = os.fork()
        if child == 0:
            process.kill_all_in(namespace, 0)
            os._exit(7)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_exec_shows_the_namespace_and_its_sys(namespace: Namespace) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        process.exec_in(namespace, ["sh", "-c", "ls /sys/class/net; exit 3"], {"PATH": os.environ["PATH"]})
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read().split() == ["lo"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    with pytest.raises(NetnsError, match="does not exist"):
        process.exec_in(Namespace("nobody", Path("/run/nobody")), ["true"], {})
