"""Write the recorded episodes as a Minari dataset, atomically."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.collect.episodes import Portion, episodes_in, episodes_of
from fastdwm.command import DISK_FULL, StageProgress, unwatched
from fastdwm.data.minari import datasets_root
from fastdwm.errors import InputError
from fastdwm.files import read_json, write_atomically

EPISODE_BYTES = 16_384
"""overhead of an episode in minari's format beside its arrays; 13 to 14 thousand were measured"""
MAX_METADATA_BYTES = 2**20


def write_dataset(
    out: str,
    env: Any,
    portions: Sequence[Portion],
    folder: Path,
    about: dict[str, Any],
    on_progress: StageProgress = unwatched,
) -> np.ndarray:
    """Make the dataset from the chunks in the folder; returns (length, return) of each episode, (episodes, 2).

    env: the simulator.   about: further arguments of minari's `create_dataset_from_buffers`.
    on_progress(transitions written, all transitions).
    """
    import minari

    scratch = folder / "datasets"
    # Remove what a run that was killed while it wrote has left.
    shutil.rmtree(scratch, ignore_errors=True)
    _require_room(portions, folder)
    summary: list[tuple[int, float]] = []
    episodes = _watched(_buffers(portions, folder, summary), sum(p.transitions for p in portions), on_progress)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    with _minari_root(scratch), warnings.catch_warnings():
        # minari warns that authors and links are missing.
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(out, episodes, env=_spec(env), **spaces, **about)
    _publish(out, scratch)
    return np.array(summary)


def _require_room(portions: Sequence[Portion], folder: Path) -> None:
    """Raise OSError if the disk has no room for the dataset: HDF5 crashes the process when the disk gets full."""
    files = [folder / chunk.file for portion in portions for chunk in portion.chunks]
    size = sum(path.stat().st_size for path in files) + EPISODE_BYTES * sum(map(episodes_in, files))
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            # Other errors mean that the file system cannot answer.
            if error.errno in DISK_FULL:
                raise OSError(error.errno, error.strerror, str(folder)) from None


def _buffers(portions: Sequence[Portion], folder: Path, summary: list[tuple[int, float]]) -> Iterator[Any]:
    """Yield minari's episodes one at a time, to save memory, and append their lengths and returns to `summary`."""
    from minari.data_collector import EpisodeBuffer

    for portion in portions:
        for episode in episodes_of(portion, folder):
            seed = int(episode.pop("seed"))
            yield EpisodeBuffer(id=len(summary), seed=seed, **episode)
            summary.append((len(episode["rewards"]), float(episode["rewards"].sum())))


def _watched(episodes: Iterator[Any], total: int, on_progress: StageProgress) -> Iterator[Any]:
    done = 0
    for episode in episodes:
        yield episode
        done = min(done + len(episode), total)
        on_progress(done, total)


def _spec(env: Any) -> Any:
    """The simulator's Gymnasium spec, without our wrappers that flatten a goal dict."""
    return replace(env.spec, additional_wrappers=())


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Let minari write below this folder; it reads its root from the environment alone."""
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = str(root)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _publish(out: str, scratch: Path) -> None:
    """Move the finished dataset into minari's root."""
    from minari.namespace import NAMESPACE_METADATA_FILENAME

    # Not minari's create_namespace: if it is killed, an empty file stays for good.
    for namespace in Path(out).parents[:-1]:
        metadata = datasets_root() / namespace / NAMESPACE_METADATA_FILENAME
        if not metadata.exists():
            write_atomically(metadata, b"{}")
    os.rename(scratch / out, datasets_root() / out)


def is_made(path: Path, about: dict[str, Any]) -> bool:
    """Whether the dataset was made by the same command, policies and package versions (`about`)."""
    try:
        metadata = read_json(path / "data" / "metadata.json", MAX_METADATA_BYTES)
    except InputError:
        return False
    names = ("description", "requirements")
    return isinstance(metadata, dict) and all(metadata.get(name) == about[name] for name in names)
