"""Control groups by both of the kernel's interfaces, on folders that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns import cgroup
from netns.cgroup import Group, Hierarchies
from netns.errors import NetnsError
from netns.journal import Journal

LINE = "30 20 0:26 / {place} rw,relatime shared:4 - {kind} none rw,{options}\n"


def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: tuple[str, str, str]) -> None:
    text = "".join(LINE.format(place=tmp_path / place, kind=kind, options=options) for place, kind, options in lines)
    (tmp_path / "mountinfo").write_text(text)
    for place, _, _ in lines:
        (tmp_path / place).mkdir(exist_ok=True)
    monkeypatch.setattr(cgroup, "_MOUNTS", tmp_path / "mountinfo")


def test_version_2_needs_both_controllers_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(tmp_path, monkeypatch, ("v2", "cgroup2", "nsdelegate"), ("x", "tmpfs", "size=1"))
    control = tmp_path / "v2" / "cgroup.subtree_control"
    control.write_text("cpu memory\n")
    with pytest.raises(NetnsError, match="pids not enabled"):
        cgroup.find()
    control.write_text("cpu memory pids\n")
    assert cgroup.find() == Hierarchies(tmp_path / "v2", tmp_path / "v2")


def test_version_1_is_used_where_somebody_has_mounted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(tmp_path, monkeypatch, ("p", "cgroup", "pids"), ("m", "cgroup", "memory"), ("v2", "cgroup2", "x"))
    assert cgroup.find() == Hierarchies(tmp_path / "p", tmp_path / "m")


def test_a_host_without_any_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(tmp_path, monkeypatch)
    with pytest.raises(NetnsError, match="no control groups are mounted"):
        cgroup.find()


@pytest.mark.parametrize("is_unified", [True, False])
def test_limits_are_written_and_a_tree_is_removed(tmp_path: Path, is_unified: bool) -> None:
    places = (tmp_path / "p", tmp_path / ("p" if is_unified else "m"))
    for place in places:
        place.mkdir(exist_ok=True)
    hierarchies = Hierarchies(*places)
    journal = Journal(tmp_path / "journal")
    cgroup.make_root(hierarchies, "lab", journal)
    group = Group(hierarchies, "lab/one")
    group.limit(10, 4096)
    assert (places[0] / "lab/one/pids.max").read_text() == "10"
    name = "memory.max" if is_unified else "memory.limit_in_bytes"
    assert (places[1] / "lab/one" / name).read_text() == "4096"
    assert cgroup.members(hierarchies, "lab") == ["one"]
    events = "memory.events" if is_unified else "memory.oom_control"
    (places[1] / "lab/one" / events).write_text("low 0\noom_kill 3\n")
    assert group.killed_for_memory() == 3
    assert len(group.doors) == (1 if is_unified else 2)
    assert {entry.kind for entry in journal.entries()} == {"cgroup"}
    for file in [path for place in set(places) for path in place.rglob("*") if path.is_file()]:
        file.unlink()  # the kernel's files go with their folder
    for folder in Group(hierarchies, "lab").folders:
        cgroup.remove_tree(folder)
    assert cgroup.members(hierarchies, "lab") == []
    journal.close()


def test_a_group_that_is_not_of_this_record_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    journal = Journal(tmp_path / "journal")
    with pytest.raises(NetnsError, match="not made by us"):
        cgroup.make_root(Hierarchies(tmp_path, tmp_path), "lab", journal)
    journal.close()
