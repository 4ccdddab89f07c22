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

from fastdwm.checks import require
from fastdwm.collect.episodes import Portion, episodes_in, episodes_of
from fastdwm.command import DISK_FULL, StageProgress, unwatched
from fastdwm.data.minari import datasets_root
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError, first_line
from fastdwm.files import read_json, write_atomically

EPISODE_BYTES = 16_384
"""overhead of an episode in minari's format beside its arrays; 13 to 14 thousand were measured"""
MAX_METADATA_BYTES = 2**20


def write_dataset(
    out: str,
    env: Any,
    env_id: str,
    portions: Sequence[Portion],
    folder: Path,
    about: dict[str, Any],
    on_progress: StageProgress = unwatched,
) -> np.ndarray:
    """Make the dataset from the chunks in the folder; returns (length, return) of each episode, (episodes, 2).

    env: the simulator.   env_id: its id as the user typed it, with the module that registers it.
    about: further arguments of minari's `create_dataset_from_buffers`.
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
        minari.create_dataset_from_buffers(out, episodes, env=_spec(env, env_id), **spaces, **about)
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


def check_spec(spec: EnvSpec, env: Any) -> None:
    """Raise InputError, before anything is recorded, for a simulator that a dataset cannot name in text."""
    entry = env.spec.entry_point
    text = f"entry_point='MODULE:{getattr(entry, '__name__', 'CLASS')}'"
    advice = f"register it with {text} in a module, and give MODULE:{spec.id.rpartition(':')[2]}"
    require(isinstance(entry, str), f"env: {spec.id} is registered with a class, which no file can name: {advice}")
    try:
        _spec(env, spec.id).to_json()
    except (TypeError, ValueError) as error:
        raise InputError(f"env: {spec.id} cannot be described in a dataset: {first_line(error)}") from None


def _spec(env: Any, env_id: str) -> Any:
    """The simulator's Gymnasium spec, with the module that registers it.

    It names the wrappers that flatten observations and scale actions, so that Minari rebuilds what was recorded; but
    not those of the mazes, whose goal dict is filtered.
    """
    mazes = env_id.startswith("AntMaze")
    return replace(env.spec, id=env_id, **({"additional_wrappers": ()} if mazes else {}))


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
