"""`lab up`, `down`, `status`, `resync`: what commands do with a lab as a whole.

Law: `down` needs nobody alive. It goes by the record of what was made, takes away that and nothing else, and may be
killed and called again at any moment; the record is the last thing to go.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from kproxy.client import Client
from kproxy.cluster import clusterfile, host_check, host_probes
from kproxy.cluster.clusterfile import ClusterConfig, Overrides
from kproxy.cluster.control_plane import PATIENCE, ROLE
from kproxy.cluster.controllers.node_proxy import POLL, programmed
from kproxy.cluster.layout import RUN_ROOT, STATE_ROOT, Layout, python, python_environment
from kproxy.cluster.pod_processes import recorded, send_signal
from kproxy.cluster.status import LabStatus, ProcessStatus
from kproxy.errors import HostError, Unreachable, UserError
from netns import process
from netns.build import tear_down
from netns.errors import NetnsError
from netns.journal import Journal
from netns.namespace import check_name_is_free, named
from netns.process import Process

START_LIMIT: Final = 90.0
"""Seconds until a control plane that says nothing counts as stuck."""
LOCK_LIMIT: Final = 10.0
"""Seconds that another `lab up` or `lab down` may take to end."""


@dataclass(frozen=True)
class Up:
    """What came of `up`.

    Attributes:
        status: the lab as it is now.
        was_up: it was up before; nothing was done.
        timings: what took how many seconds, in the order in which it ended.
        limits: what will not work in it on this host, and why.
    """

    status: LabStatus
    was_up: bool
    timings: tuple[tuple[str, float], ...]
    limits: tuple[str, ...] = ()


def up(config: ClusterConfig, progress: Callable[[str], None] = lambda what: None, *, is_stated: bool = False) -> Up:
    """Ensures that the lab is up: makes it, or completes what a crash or a reboot has left of it.

    A lab that is there already keeps its own configuration if `config` is the default one, unless that was asked for.

    Args:
        config: what it is to look like.
        progress: told what is being done, in a few words.
        is_stated: somebody said so, and would be misled by a lab that looks different.

    Raises:
        UserError: a lab of that name is there with another configuration; or somebody else has a network namespace of a
            name that this lab needs. Nothing was done.
        HostError: the host lacks something that this lab needs (nothing was done); or the machine refused something, or
            the control plane died: what was made until then is on record, `up` goes on from there, `down` removes it.
    """
    layout = Layout(config.name)
    stored = _stored(layout)
    if stored is not None:
        is_open = not is_stated and config == clusterfile.read([], Overrides(lab=config.name))
        if config != stored and not is_open:
            raise UserError(
                f'lab "{config.name}" exists with another configuration; '
                f"`kproxy lab down --lab {config.name}` removes it with all its objects"
            )
        config = stored
    if _control_plane_answers(layout):
        return Up(status(layout.lab), True, ())
    _check_names(layout, config)
    began = time.monotonic()
    limits = _check_host(config)
    checked = ("host check", time.monotonic() - began)
    with _locked(layout, makes=True) as lock:
        timings = _start(layout, config, lock, progress)
        return Up(status(layout.lab), False, (checked, *timings, ("all", time.monotonic() - began)), limits)


def down(lab: str) -> bool:
    """Ensures that nothing of the lab is left; false when there was nothing.

    Raises:
        UserError: another `lab up` or `lab down` is at work on it.
        HostError: something could not be removed; the record still names it.
    """
    layout = Layout(lab)
    if not layout.run.exists() and not layout.state.exists():
        return False
    if layout.run.exists():
        _kill_control_plane(layout)
    with _locked(layout, makes=False) as lock:
        _remove(layout, lock)
    return True


def status(lab: str) -> LabStatus:
    """The lab as its control plane sees it.

    Raises:
        UserError: its control plane does not run.
    """
    layout = Layout(lab)
    try:
        found = msgspec.convert(Client(layout.api_url).lab_status(), LabStatus)
        return msgspec.structs.replace(found, processes=(*found.processes, *_relays(layout)))
    except Unreachable as error:
        raise UserError(
            f'the control plane of lab "{lab}" does not run; `kproxy lab up --lab {lab}` starts it again'
        ) from error


def configuration(layout: Layout) -> ClusterConfig:
    """What the lab was brought up with.

    Raises:
        UserError: nobody has brought it up, or another version of kproxy.
    """
    stored = _stored(layout)
    if stored is None:
        raise UserError(f'lab "{layout.lab}" has no configuration; `kproxy lab up --lab {layout.lab}` completes it')
    return stored


def _relays(layout: Layout) -> Iterator[ProcessStatus]:
    """The relays of `lab up --expose`, which the control plane knows nothing of."""
    journal = Journal(layout.journal, "lab")
    try:
        for role, running in recorded(journal, "relay:").items():
            yield from (ProcessStatus("relay", one.pid, f"host, {role.partition(':')[2]}") for one in running)
    finally:
        journal.close()


def resync(lab: str) -> None:
    """Has every node's proxy write all of its rules anew, and waits until they have.

    Raises:
        UserError: the control plane does not run.
        HostError: a proxy has not done so in time.
    """
    layout = Layout(lab)
    found = status(lab)
    nodes = [node.name for node in found.nodes if node.proxy == "kproxy"]
    before = {node: _full_syncs(layout, node) for node in nodes}
    proxies = [process.find(entry.pid) for entry in found.processes if entry.role == "proxy"]
    send_signal([one for one in proxies if one is not None], signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE
    for node in nodes:
        while _full_syncs(layout, node) <= before[node]:
            if time.monotonic() > deadline:
                raise HostError(
                    f"the proxy of {node} has not done a full sync", left=f"see {layout.log(f'proxy.{node}')}"
                )
            time.sleep(POLL)


def _full_syncs(layout: Layout, node: str) -> int:
    try:
        return int(programmed(layout, node).get("fullSyncs", 0))
    except (OSError, NetnsError):
        return -1


def _stored(layout: Layout) -> ClusterConfig | None:
    try:
        return msgspec.json.decode(layout.cluster_file.read_bytes(), type=ClusterConfig)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UserError(
            f"{layout.cluster_file} was written by another version of kproxy ({error}); "
            f"`kproxy lab down --lab {layout.lab}` removes the lab"
        ) from error


def _control_plane_answers(layout: Layout) -> bool:
    if not layout.api_socket.exists():
        return False
    try:
        Client(layout.api_url).lab_status()
    except Unreachable:
        return False
    return True


def _check_names(layout: Layout, config: ClusterConfig) -> None:
    """Ensures that no namespace of a name that the lab needs belongs to somebody else."""
    members = ["router", "fabric", *(node.name for node in config.nodes), *(client.name for client in config.clients)]
    try:
        for member in members:
            check_name_is_free(named(layout.netns(member), layout.namespaces))
    except NetnsError as error:
        raise UserError(str(error)) from error


def _check_host(config: ClusterConfig) -> tuple[str, ...]:
    """What will not work in this lab on this host.

    Raises:
        HostError: the lab cannot come up here; nothing was done.
    """
    needs = host_check.needs(config)
    report = host_check.judge(host_probes.look_quickly(needs.variants, needs.families, needs.links), needs)
    if not report.ok:
        missing = [one for one in report.conditions if one.state is host_check.State.MISSING]
        said = "\n  ".join(host_check.in_one_line(one) for one in missing)
        raise HostError("this host lacks what the lab needs", stderr=said, left="`kproxy lab check` shows everything")
    return tuple(host_check.in_one_line(one) for one in report.conditions if one.state is not host_check.State.OK)


# ----- bringing up


def _start(
    layout: Layout, config: ClusterConfig, lock: int, progress: Callable[[str], None]
) -> tuple[tuple[str, float], ...]:
    """Starts the control plane and waits until it says that all is up; returns what took how long."""
    journal = Journal(layout.journal, "lab")
    try:
        fresh = layout.cluster_file.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(config))
        fresh.rename(layout.cluster_file)
        journal.step("cluster file")
        progress("starting the control plane")
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as report:
            try:
                with layout.log(ROLE).open("ab") as log:
                    started = process.spawn(
                        python("kproxy.cluster.control_plane", layout.lab, "--report", str(writing)),
                        env=python_environment(),
                        stdout=log.fileno(),
                        stderr=log.fileno(),
                        # It holds the lock for as long as it lives.
                        pass_fds=[writing, lock],
                        journal=journal,
                        role=ROLE,
                    )
            finally:
                os.close(writing)
            return tuple(_follow(report.fileno(), started, layout, progress))
    finally:
        journal.close()


def _follow(
    report: int, started: Process, layout: Layout, progress: Callable[[str], None]
) -> Iterator[tuple[str, float]]:
    """The timings that the control plane reports, until it says that it is ready."""
    for line in _lines(report):
        if "progress" in line:
            progress(line["progress"])
        elif "timing" in line:
            what, seconds = line["timing"]
            yield what, seconds
        elif "error" in line:
            raise HostError("the lab cannot be brought up", stderr=line["error"], left=_left(layout))
        elif "ready" in line:
            return
    reason = f"the control plane (process {started.pid}) ended before the lab was up"
    raise HostError(reason, stderr=_tail(layout.log(ROLE)), left=_left(layout))


def _left(layout: Layout) -> str:
    return f"what was made until then is still there; `kproxy lab down --lab {layout.lab}` removes it"


def _lines(report: int) -> Iterator[dict[str, Any]]:
    data = b""
    deadline = time.monotonic() + START_LIMIT
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([report], [], [], left)[0]:
            break
        chunk = os.read(report, 65536)
        if not chunk:
            return
        *whole, data = (data + chunk).split(b"\n")
        for line in whole:
            yield json.loads(line)


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    except FileNotFoundError:
        return ""


# ----- taking down


def _kill_control_plane(layout: Layout) -> None:
    """Ends it at once: it is made for that, and it holds the lock."""
    journal = Journal(layout.journal, "down")
    process.kill_all(recorded(journal, ROLE).get(ROLE, []), grace=0)
    journal.close()


def _remove(layout: Layout, lock: int) -> None:
    """Takes everything down, the record last; the lock is held, and its file goes with the rest."""
    journal = Journal(layout.journal, "down")
    process.kill_all(recorded(journal, ROLE).get(ROLE, []), grace=0)
    shutil.rmtree(layout.state, ignore_errors=True)
    journal.step(f"remove {layout.state}")
    try:
        tear_down(journal, grace=0)
    except NetnsError as error:
        raise HostError("not everything of the lab could be removed", stderr=str(error)) from error
    finally:
        journal.close()
    # Nothing but our own files is left here, and no mount.
    shutil.rmtree(layout.run, ignore_errors=True)
    for root in (RUN_ROOT, STATE_ROOT):
        with contextlib.suppress(OSError):
            root.rmdir()  # only if no other lab is there


@contextlib.contextmanager
def _locked(layout: Layout, *, makes: bool) -> Iterator[int]:
    """The lab's lock, held; whoever comes meanwhile waits a little and is then sent away.

    Args:
        layout: the lab.
        makes: whether the lab's folders are to be made.
    """
    deadline = time.monotonic() + LOCK_LIMIT
    while True:
        if makes:
            layout.make()
        layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _try_lock(fd, layout.lock):
            break
        os.close(fd)
        if time.monotonic() > deadline:
            raise UserError(f'another `kproxy lab up` or `down` is at work on lab "{layout.lab}"')
        time.sleep(0.05)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, named_now = os.fstat(fd), path.stat()
    except (BlockingIOError, FileNotFoundError):
        return False
    # Somebody who took the lab down may have removed the file that we had opened.
    return (held.st_dev, held.st_ino) == (named_now.st_dev, named_now.st_ino)
