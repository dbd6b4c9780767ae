"""Writing aside, holding a folder, finding a folder by name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from hsae import files
from hsae.errors import UserError
from hsae.files import alone, lasting_folder, named_folder, replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with contextlib.suppress(FileNotFoundError), replacing(path) as aside:
        aside.write_text("half of the n")
        (tmp_path / "absent").read_text()
    assert path.read_text() == "old"
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_held_by_one(tmp_path: Path):
    with (
        alone(tmp_path / "run", "hsae train"),
        pytest.raises(UserError, match="another hsae train is writing it"),
        alone(tmp_path / "run", "hsae train"),
    ):
        pytest.fail("held twice")
    with alone(tmp_path / "run", "hsae train"):
        assert (tmp_path / "run").is_dir()


def test_a_name_a_path_or_the_newest(cache: Path):
    for age, name in ((3, "old"), (1, "new"), (2, "older")):
        folder = cache / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        os.utime(folder / "run.json", (1e9 - age, 1e9 - age))
    (cache / "runs" / "unfinished").mkdir()
    assert named_folder("", "runs", "run.json").name == "new"
    assert named_folder("old", "runs", "run.json").name == "old"
    assert named_folder(str(cache / "runs" / "older"), "runs", "run.json").name == "older"
    with pytest.raises(UserError, match=r"no run 'odl' in .*; there is new, old, older"):
        named_folder("odl", "runs", "run.json")


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output") as told, replacing(tmp_path / "file") as aside:
        aside.write_text("new")
    assert told.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError, match="Input/output") as told:
        lasting_folder(tmp_path / "folder")
    assert told.value.filename == str(tmp_path / "folder")


def test_a_new_folder_and_those_above_it_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed = []
    monkeypatch.setattr(files, "flush", flushed.append)
    lasting_folder(tmp_path / "above" / "below")
    assert flushed == [tmp_path / "above", tmp_path]
    lasting_folder(tmp_path / "above" / "below")
    assert len(flushed) == 2
