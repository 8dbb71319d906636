"""Which lab a command means, and what its files are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.cluster import layout
from kproxy.cluster.layout import Layout, current_lab, file_name, labs
from kproxy.errors import UserError


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(layout, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(layout, "STATE_ROOT", tmp_path / "state")
    return tmp_path


def test_no_lab_is_nobody() -> None:
    assert labs() == []
    with pytest.raises(UserError, match="no lab is up"):
        current_lab(None, {})


def test_the_only_lab_is_meant_without_being_named() -> None:
    Layout("one").make()
    assert current_lab(None, {}) == current_lab("one", {}) == Layout("one")


def test_one_of_several_must_be_named() -> None:
    Layout("one").make()
    Layout("two").make()
    with pytest.raises(UserError, match="one, two; choose"):
        current_lab(None, {})
    assert current_lab(None, {"KPROXY_LAB": "two"}) == Layout("two")
    assert current_lab("one", {"KPROXY_LAB": "two"}) == Layout("one")


@pytest.mark.parametrize("name", ["../etc", "UP", "a-b", "a/b", "abcdefghijk"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    Layout("one").make()
    with pytest.raises(UserError, match="no name for a lab"):
        current_lab(name, {})


def test_a_lab_that_is_not_there_is_not_made_up() -> None:
    Layout("one").make()
    with pytest.raises(UserError, match='no lab "two"; labs that are up: one'):
        current_lab("two", {})


def test_folders_are_open_to_root_alone(roots: Path) -> None:
    Layout("one").make()
    for folder in (roots / "run" / "one", roots / "state" / "one", roots / "run" / "one" / "logs"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_long_name_is_cut_and_stays_unique() -> None:
    assert file_name("a" * 200) == "a" * 200
    assert len(file_name("a" * 201)) == 200
    assert file_name("a" * 300 + "x") != file_name("a" * 300 + "y")
