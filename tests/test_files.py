"""Atomic files, and folders that one command at a time may use."""

import json
import os

import pytest

from fastdwm.errors import InputError
from fastdwm.files import prepare_folder, reserved, write_json
from fastdwm.measure.record import prepare_output


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.0, float("nan"), float("inf")], "folder": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.0, None, None], "folder": str(tmp_path)}


def test_json_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"x": 1})
    assert path.read_text() == "old"


def test_a_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"x": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_reserved_until_its_command_ends(tmp_path):
    with reserved(tmp_path):
        with pytest.raises(InputError, match="is in use by a command that runs"), reserved(tmp_path):
            pass
    with reserved(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    # below a regular file, because root may write to any folder
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out: cannot write to .*: Not a directory"):
        prepare_folder(tmp_path / "file" / "out")


def test_a_command_removes_what_a_killed_one_left_while_it_wrote(tmp_path):
    old, new, other = (tmp_path / f".{name}.json.tmp" for name in ("hopper-tune-1", "hopper-tune-2", "walker-tune-1"))
    for path in (old, new, other):
        path.write_text("{")
    for path in (old, other):
        os.utime(path, (0, 0))
    prepare_output(tmp_path, "hopper-tune")
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
