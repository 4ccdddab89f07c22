"""Damaged and hostile HDF5 files: a quick InputError, without following a link out of the file."""

import os
import random
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

from fastdwm.data import hdf5
from fastdwm.data.dataset import load
from fastdwm.errors import InputError
from fastdwm.tasks import get_task

pytestmark = pytest.mark.usefixtures("private_folders")

HOPPER = get_task("hopper-medium")
GOOD = {
    "observations": np.ones((5, 11), np.float32),
    "actions": np.zeros((5, 3), np.float32),
    "rewards": np.zeros(5, np.float32),
    "terminals": np.zeros(5, bool),
    "timeouts": np.arange(5) == 4,
}


@pytest.fixture
def path(tmp_path):
    """Path of a good D4RL file."""
    with h5py.File(tmp_path / "toy.hdf5", "w") as file:
        for key, values in GOOD.items():
            file[key] = values
    return tmp_path / "toy.hdf5"


@pytest.fixture
def pipe(tmp_path):
    """Pipe without a writer: opening it for reading never ends."""
    os.mkfifo(tmp_path / "pipe.hdf5")
    return tmp_path / "pipe.hdf5"


def refused(source):
    """Message with which a dataset is refused."""
    with pytest.raises(InputError) as caught:
        load(HOPPER, str(source))
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    return str(caught.value)


LINKS = {
    "external to a pipe": lambda tmp_path: h5py.ExternalLink(str(tmp_path / "pipe.hdf5"), "rewards"),
    "external to itself": lambda tmp_path: h5py.ExternalLink(str(tmp_path / "toy.hdf5"), "rewards"),
    "soft": lambda tmp_path: h5py.SoftLink("/observations"),
    "soft to itself": lambda tmp_path: h5py.SoftLink("/rewards"),
}


@pytest.mark.parametrize("key", ["rewards", "next_observations"])
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_links_are_not_followed(path, pipe, tmp_path, link, key):
    with h5py.File(path, "a") as file:
        file.pop(key, None)
        file[key] = link(tmp_path)
    assert "got a link; links are not followed" in refused(path)


def replace(path, key, **declared):
    with h5py.File(path, "a") as file:
        del file[key]
        return file.create_dataset(key, **declared)


@pytest.mark.parametrize("rows", [10**4, 10**9, 2**62], ids=["rows1e4", "rows1e9", "rows2^62"])
@pytest.mark.parametrize("layout", [{}, {"chunks": (64, 11)}, {"chunks": (64, 11), "compression": "gzip"}], ids=str)
def test_more_rows_than_the_file_holds_are_refused(path, rows, layout):
    size = 4 if layout else 1  # HDF5 itself limits what is stored in one piece
    if not layout and rows == 2**62:
        layout = {"maxshape": (None, 11), "chunks": (1, 11)}
    replace(path, "observations", shape=(rows // size, 11), dtype=np.float32, **layout)
    assert "got a file too small for it" in refused(path)


def test_an_array_under_many_names_is_not_read_many_times(path):
    with h5py.File(path, "a") as file:
        del file["actions"], file["observations"]
        file["observations"] = np.zeros((200, 1000), np.float32)
        file["actions"] = file["observations"]
    assert "got a file too small for it" in refused(path)


def test_arrays_beyond_the_limit_of_memory_are_refused(path, monkeypatch):
    monkeypatch.setattr(hdf5, "LIMIT_BYTES", 200)
    assert "expected at most 200 bytes of arrays in a file of its size, got observations shaped (5, 11)" in refused(
        path
    )


def test_a_bomb_is_refused_before_it_is_held(path):
    # The array is below the limit of memory, but a thousand times as large as the file.
    n = 7_000_000
    replace(path, "observations", shape=(n, 11), dtype=np.float32, chunks=(n // 10, 11), compression="gzip")
    with h5py.File(path, "a") as file:
        chunk = zlib.compress(bytes(4 * 11 * (n // 10)))
        for start in range(0, n, n // 10):
            file["observations"].id.write_direct_chunk((start, 0), chunk)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    message = refused(path)
    assert "in a file of its size, got observations shaped (7000000, 11) of float32" in message
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_compressed_arrays_of_nothing_but_zeros_are_read(path):
    n = 100_000
    arrays = {key: np.zeros((n, *values.shape[1:]), values.dtype) for key, values in GOOD.items()}
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip", compression_opts=9)
    assert load(HOPPER, str(path)).n == n


def test_data_in_other_files_are_refused(path, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(20))
    replace(path, "rewards", shape=(5,), dtype=np.float32, external=[(str(tmp_path / "raw"), 0, 20)])
    assert "got a reference to other files" in refused(path)


def test_virtual_arrays_are_refused(path, pipe):
    layout = h5py.VirtualLayout(shape=(5,), dtype=np.float32)
    layout[:] = h5py.VirtualSource(str(pipe), "rewards", shape=(5,))
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_virtual_dataset("rewards", layout)
    assert "got a reference to other files" in refused(path)


def minari_toy(root, arrays=None, metadata='{"total_episodes": 1}'):
    """Write a Minari dataset of one hopper episode without minari; returns its folder."""
    flags = {"terminations": np.zeros(5, bool), "truncations": np.arange(5) == 4}
    good = {"observations": np.ones((6, 11)), "actions": GOOD["actions"], "rewards": GOOD["rewards"], **flags}
    folder = root / "minari" / "toy" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(metadata)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for key, values in (good | (arrays or {})).items():
            file[f"episode_0/{key}"] = values
    return folder


def test_minari_flags_are_zeros_and_ones(tmp_path):
    minari_toy(tmp_path, {"truncations": np.float32([0, 0, 0, 0, 3])})
    assert "expected episode_0/truncations of zeros and ones" in refused("toy")


def test_minari_links_are_not_followed(tmp_path, pipe):
    minari_toy(tmp_path, {"infos": h5py.ExternalLink(str(pipe), "/"), "rewards": h5py.ExternalLink(str(pipe), "/")})
    assert "expected data in episode_0/rewards, got a link" in refused("toy")


def test_what_is_not_read_is_not_followed_either(tmp_path, pipe):
    minari_toy(tmp_path, {"infos": h5py.ExternalLink(str(pipe), "/")})
    assert load(HOPPER, "toy").n == 5


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_minari_files_that_are_no_files_are_refused(tmp_path, name):
    folder = minari_toy(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: expected a regular file" in refused("toy")


METADATA = {
    "deep": ("[" * 100_000, "cannot be read as JSON in metadata.json: RecursionError"),
    "text": ("never", "cannot be read as JSON in metadata.json: JSONDecodeError"),
    "list": ("[]", "expected a JSON object"),
    "no count": ("{}", "expected a number of episodes in the metadata, got None"),
    "text count": ('{"total_episodes": "1"}', "expected a number of episodes in the metadata, got '1'"),
    "large count": ('{"total_episodes": 1000000000000}', "expected an array episode_1/observations, got nothing"),
    "format": ('{"total_episodes": 1, "data_format": "arrow"}', "expected a Minari dataset in the format hdf5, got"),
    "simulator": ('{"total_episodes": 1, "env_spec": "{}"}', "expected an env_spec with id and kwargs in the"),
    "simulator's type": ('{"total_episodes": 1, "env_spec": "[3]"}', "expected an env_spec with id and kwargs in the"),
    "size": (" " * (2**24 + 1), "expected at most 16777216 bytes, got"),
}


@pytest.mark.parametrize(("text", "message"), METADATA.values(), ids=METADATA)
def test_bad_minari_metadata_are_refused_in_one_line(tmp_path, text, message):
    minari_toy(tmp_path, metadata=text)
    assert message in refused("toy")


def test_a_pipe_for_a_dataset_is_refused(pipe):
    assert "expected a regular file" in refused(pipe)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + ".hdf5"], ids=["long", "nul", "long file"])
def test_impossible_names_are_refused(name, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing answers
    refused(name)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_input_errors_or_data_in_range(path, seed):
    good, draw = path.read_bytes(), random.Random(seed)
    refusals = 0
    for _ in range(50):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 8, 64])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            data = load(HOPPER, str(path))
        except InputError as error:
            assert "\n" not in str(error)
            refusals += 1
        else:
            assert data.n <= 5 and np.isfinite(data.obs).all() and np.abs(data.action).max() <= 1
    assert refusals > 0
