"""Bundle.save: a failure leaves the old or the new bundle, other files stay, bad bundles are refused."""

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import input_error
from toy_bundles import make_bundle

from fastdwm import Bundle, InputError
from fastdwm.config import Settings
from fastdwm.files import reserved
from fastdwm.tasks import get_task

OLD, NEW = make_bundle(), make_bundle("meanflow", seed=7)
FILES = ["bundle.json", "weights.safetensors"]


@pytest.fixture
def folder(tmp_path):
    OLD.save(tmp_path / "bundle")
    (tmp_path / "bundle" / "README.md").write_text("mine")
    return tmp_path / "bundle"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state_no_hash(folder):
    """Remove the hash of the weights from bundle.json."""
    path = folder / "bundle.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]).rstrip(",") + "\n}\n")
    assert "sha256" not in path.read_text()


def held(folder):
    """Name of the bundle in the folder, old or new."""
    return {OLD.fingerprint: "old", NEW.fingerprint: "new"}[Bundle.load(folder).fingerprint]


def test_saving_again_replaces_the_two_files_and_nothing_else(folder):
    neighbours = [folder.parent / name for name in (".bundle-ab1_cdef", ".bundle-12345678")]
    for neighbour in neighbours:
        (neighbour / "new").mkdir(parents=True)
    NEW.save(folder)
    assert held(folder) == "new" and names(folder) == ["README.md", *FILES]
    assert all((neighbour / "new").is_dir() for neighbour in neighbours)


# Faults: `fails` is raised by the nth change of the disk, with `still` also by all later ones, with `done` after the
# change was made.
class Killed(BaseException):
    """Stands for SIGKILL: nothing can be done any more."""


FAULTS = {
    "killed": {"fails": Killed(), "still": True},
    "full": {"fails": OSError(errno.ENOSPC, "No space left on device")},
    "broken": {"fails": OSError(errno.EIO, "Input/output error"), "still": True},
    "interrupted before": {"fails": KeyboardInterrupt()},
    "interrupted after": {"fails": KeyboardInterrupt(), "done": True},
}


def save_with_fault(bundle, folder, n, fails, still=False, done=False, links=True):
    """Save while the nth change of the disk fails; returns the error, and whether there were n changes."""
    count = 0

    def faulty(change):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            hit = count > n if still else count == n + 1
            if hit and not done:
                raise fails
            result = change(*args, **kwargs)
            if hit:
                raise fails
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "link", "unlink", "fsync"):
            patch.setattr(os, name, faulty(getattr(os, name)))
        patch.setattr(Path, "open", faulty(Path.open))
        if not links:
            patch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        try:
            bundle.save(folder)
        except (Killed, KeyboardInterrupt, OSError) as error:
            return error, count > n
    return None, count > n


@pytest.mark.parametrize(("stated", "links"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_moment_leaves_the_old_bundle_or_the_new(tmp_path, fault, stated, links):
    start = tmp_path / "start"
    OLD.save(start)
    if not stated:
        state_no_hash(start)
    states, n, happens = [], 0, True
    while happens:
        folder = shutil.copytree(start, tmp_path / str(n))
        error, happens = save_with_fault(NEW, folder, n, **FAULTS[fault], links=links)
        states.append(held(folder))
        # After an error the old bundle is there; a kill after the last rename leaves the new one.
        if isinstance(error, OSError):
            assert states[-1] == "old" and error.filename.startswith(str(folder))
        if error is None:
            assert states[-1] == "new"
        if not FAULTS[fault].get("still"):
            # Temporary files are gone, unless the interrupt hits their removal.
            assert set(names(folder)) == set(FILES) or (happens and states[-1] == "new")
        NEW.save(folder)
        assert held(folder) == "new" and names(folder) == FILES
        n += 1
    assert n > 7 and {"old", "new"} == set(states)
    # Saving succeeds without some of the steps that fail once.
    assert fault == "full" or states == sorted(states, reverse=True)


def test_loading_while_others_save_gives_one_of_the_bundles(folder):
    saved, stop, failed = 0, threading.Event(), []

    def save():
        nonlocal saved
        try:
            while not stop.is_set():
                for bundle in (NEW, OLD):
                    bundle.save(folder)
                    saved += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        states = {held(folder) for _ in range(60)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and saved > 4 and states <= {"old", "new"} and names(folder) == ["README.md", *FILES]


def test_saving_again_repairs_damaged_weights(folder):
    (folder / "weights.safetensors").write_bytes(b"damaged")
    OLD.save(folder)
    assert held(folder) == "old" and names(folder) == ["README.md", *FILES]


@pytest.mark.parametrize("path", [".", "../bundle", "../bundle/../bundle", "sub/..", "../link"])
def test_any_path_of_the_folder_works(folder, monkeypatch, path):
    (folder / "sub").mkdir()
    (folder.parent / "link").symlink_to("bundle")
    monkeypatch.chdir(folder)
    NEW.save(path)
    assert held(folder) == "new" and (folder.parent / "link").is_symlink()
    assert names(folder) == ["README.md", *FILES[:1], "sub", *FILES[1:]]


def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    NEW.save(tmp_path / "a" / "b")
    assert held(tmp_path / "a" / "b") == "new"


def test_what_a_linked_file_points_to_stays_as_it_is(folder):
    # Bundles in a shared cache are such links.
    contents = {}
    for name in FILES:
        blob = folder.parent / f"blob-{name}"
        (folder / name).rename(blob)
        (folder / name).symlink_to(blob)
        contents[blob] = blob.read_bytes()
    tuning = {"settings": Settings().record(), "weights_sha256": OLD.fingerprint}
    replace(OLD, tuning=tuning).save(folder)
    # The weights have not changed.
    assert Bundle.load(folder).tuning == tuning and (folder / "weights.safetensors").is_symlink()
    NEW.save(folder)
    assert held(folder) == "new" and all(blob.read_bytes() == content for blob, content in contents.items())


REFUSED = {
    "weights.safetensors: policy.b0: expected finite": {"policy": OLD.policy | {"b0": torch.full((16,), torch.nan)}},
    "reward.b0: expected values up to 10000": {"reward": OLD.reward | {"b0": torch.full((16,), 2e4)}},
    r"critics.w0: expected float32 \(2, 14, 16\)": {"critics": OLD.critics | {"w0": torch.ones(2, 14, 17)}},
    "tensor policy.w9 is not part of this architecture": {"policy": OLD.policy | {"w9": torch.ones(1)}},
    "obs_std: expected values of at least 1e-06": {"statistics": OLD.statistics | {"obs_std": torch.full((11,), 1e-9)}},
    "bundle: expected values that JSON has .Out of range float values": {"report": {"loss": float("nan")}},
    "expected values that JSON has .*Tensor": {"report": {"loss": torch.ones(1)}},
    "expected printable text": {"dataset": {"id": "\x1b[2J"}},
    "report: seed: expected int": {"report": {"seed": -1}},
    "tuning: it was done on other weights": {"tuning": {"settings": Settings().record(), "weights_sha256": "0" * 64}},
    "tuning: settings: expected dict": {"tuning": {}},
    "bundle.json: expected at most 4194304 bytes": {"report": {"text": "x" * 2**22}},
    "task: obs_dim: hopper-medium has 11, got 4": {"task": replace(get_task("hopper-medium"), obs_dim=4, limits=())},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_a_bundle_that_load_would_refuse_is_not_saved(folder, message):
    before = [(folder / name).read_bytes() for name in FILES]
    for target in (folder, folder.parent / "fresh"):
        with input_error(message):
            replace(OLD, **REFUSED[message]).save(target)
    assert [(folder / name).read_bytes() for name in FILES] == before and not (folder.parent / "fresh").exists()


@pytest.mark.parametrize("name", ["weights.safetensors/x", "a" * 300, "loop", "a\0b"])
def test_a_folder_that_cannot_be_is_refused_in_one_line(folder, name):
    (folder / "loop").symlink_to("loop")
    with input_error("bundle: cannot write to"):
        OLD.save(folder / name)


@pytest.mark.parametrize("name", ["a" * 300, "x/" + "a" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused_in_one_line(name):
    with pytest.raises(InputError) as error:
        Bundle.load(name)
    assert "\n" not in str(error.value)


def test_a_folder_in_which_a_command_works_is_not_written(folder, monkeypatch):
    monkeypatch.setattr("fastdwm.files.PATIENCE_S", 0.02)
    with reserved(folder), pytest.raises(InputError, match="is in use by a command that runs"):
        NEW.save(folder)
    assert held(folder) == "old"
