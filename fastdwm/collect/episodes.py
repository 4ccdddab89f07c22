"""Record the episodes of a dataset in chunks.

The settings determine the chunks, and each chunk has its own random seed and simulator, so the data do not depend on
which process records a chunk, or when.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.collect.behaviour import Act, Behaviour, checked
from fastdwm.collect.steering import Course, Guide
from fastdwm.command import StageProgress
from fastdwm.engines.interface import Job, run_all
from fastdwm.engines.processes import Processes
from fastdwm.envs import MAX_EPISODE_STEPS, EnvSpec
from fastdwm.errors import InputError, first_line
from fastdwm.files import write_atomically

CHUNK = 20_000
"""transitions per chunk, about ten seconds of recording"""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """Episodes that one job records.   index: number of the chunk.   shares: share of the episodes for each policy.
    transitions: the least number of them."""

    index: int
    shares: tuple[float, ...]
    transitions: int

    @property
    def file(self) -> str:
        return f"{self.index:06d}.npz"


@dataclass(frozen=True)
class Portion:
    """The first episodes, in chunk order, that together hold at least `transitions` transitions."""

    chunks: tuple[Chunk, ...]
    transitions: int


@dataclass(frozen=True)
class Recorder:
    """The settings that all chunks share."""

    env: EnvSpec
    behaviours: tuple[Behaviour, ...]
    noise: float
    seed: int
    course: Course | None = None
    """where the policies are steered in a maze; none: they act by themselves"""


def plan(shares: Sequence[float], transitions: int, by_episodes: bool) -> list[Portion]:
    """One portion per policy, or one for all policies if they take turns (by_episodes)."""
    bounds = np.round(transitions * np.cumsum([0.0, *shares]) / sum(shares)).astype(int)
    quotas = [transitions] if by_episodes else np.diff(bounds).tolist()
    require(min(quotas) > 0, f"transitions: {transitions} are too few for {len(shares)} policies with these shares")
    alone = [tuple(row) for row in np.eye(len(shares)).tolist()]
    portions, index = [], 0
    for quota, turns in zip(quotas, [tuple(shares)] if by_episodes else alone, strict=True):
        n = -(-quota // CHUNK)
        sizes = [quota // n + (i < quota % n) for i in range(n)]
        portions.append(Portion(tuple(Chunk(index + i, turns, size) for i, size in enumerate(sizes)), quota))
        index += n
    return portions


def record_chunks(
    portions: Sequence[Portion], recorder: Recorder, folder: Path, workers: int, on_progress: StageProgress
) -> None:
    """Record the chunks that have no file in the folder yet; raises the first error."""
    chunks = [chunk for portion in portions for chunk in portion.chunks]
    jobs = [Job(chunk.file, _record_chunk, (chunk, recorder, folder), work=chunk.transitions) for chunk in chunks]
    run_all(Processes(workers), jobs, on_progress, finished=[path.name for path in folder.glob("*.npz")])


# Cache of a worker: the recorder of its last chunk, and its policies' functions.
_last: tuple[Recorder, list[Act]] | None = None


def _record_chunk(chunk: Chunk, recorder: Recorder, folder: Path) -> None:
    global _last
    if _last is None or _last[0] != recorder:
        _last = recorder, start(recorder)
    save(chunk, record(chunk, recorder, _last[1]), folder)


def turns(shares: Sequence[float]) -> Iterator[int]:
    """Indices of the policies in turn, without end: always the policy that is furthest behind its share."""
    counts = [0] * len(shares)
    for t in count(1):
        turn = max(range(len(shares)), key=lambda i: t * shares[i] / sum(shares) - counts[i])
        counts[turn] += 1
        yield turn


def record(chunk: Chunk, recorder: Recorder, acts: Sequence[Act]) -> Arrays:
    """Record the episodes of a chunk.

    Returns observations (transitions + episodes, S), actions (transitions, A), rewards, terminations, truncations
    (transitions,); lengths and seeds (episodes,).   acts: the function of each behaviour.
    Raises InputError for invalid actions, and for observations and rewards that are not finite.
    """
    rng = np.random.default_rng(np.random.SeedSequence(recorder.seed, spawn_key=(chunk.index,)))
    env, episodes, done = recorder.env.make(), [], 0
    guide = Guide(env, recorder.course) if recorder.course else None
    acts = [
        checked(behaviour, guide.steered(act) if guide else act, recorder.noise)
        for behaviour, act in zip(recorder.behaviours, acts, strict=True)
    ]
    # Each chunk starts at another turn; otherwise, with few episodes per chunk, the first policy would get too many.
    for turn in islice(turns(chunk.shares), chunk.index, None):
        episodes.append(_episode(env, acts[turn], rng, guide))
        done += len(episodes[-1]["rewards"])
        if done >= chunk.transitions:
            break
    env.close()
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    finite = np.isfinite(arrays["observations"]).all() and np.isfinite(arrays["rewards"]).all()
    require(bool(finite), f"{recorder.env.id}: expected finite observations and rewards, got NaN or infinity")
    return arrays


def _episode(env: Any, act: Act, rng: np.random.Generator, guide: Guide | None) -> Arrays:
    seed = int(rng.integers(2**31))
    obs, _ = env.reset(seed=seed, options=guide.start(rng) if guide else None)
    observations, actions, steps = [np.array(obs)], [], []
    ended = False
    while not ended:
        actions.append(act(obs, rng))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        truncated = truncated or guide is not None and guide.is_stuck(obs) and not terminated
        observations.append(np.array(obs))
        steps.append((reward, terminated, truncated))
        ended = terminated or truncated
        endless = len(steps) > MAX_EPISODE_STEPS
        require(not endless, f"{env.spec.id}: expected episodes of at most {MAX_EPISODE_STEPS} steps")
    rewards, terminations, truncations = zip(*steps, strict=True)
    return {
        "observations": np.array(observations),
        "actions": np.array(actions),
        "rewards": np.array(rewards, np.float64),
        "terminations": np.array(terminations, bool),
        "truncations": np.array(truncations, bool),
        "lengths": np.array([len(steps)]),
        "seeds": np.array([seed]),
    }


def start(recorder: Recorder) -> list[Act]:
    """Load the behaviours in this process."""
    return [behaviour.start() for behaviour in recorder.behaviours]


def save(chunk: Chunk, arrays: Arrays, folder: Path) -> None:
    """Write the file of a chunk atomically."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(folder / chunk.file, content.getvalue())


def episodes_of(portion: Portion, folder: Path) -> Iterator[Arrays]:
    """Read the episodes of a portion, with one chunk in memory at a time."""
    left = portion.transitions
    for chunk in portion.chunks:
        arrays = _load(folder / chunk.file)
        ends = np.cumsum(arrays["lengths"])
        for i, end in enumerate(ends):
            if left <= 0:
                return
            start = end - arrays["lengths"][i]
            left -= end - start
            steps = {name: arrays[name][start:end] for name in ("actions", "rewards", "terminations", "truncations")}
            # An episode has one more observation than it has steps.
            yield steps | {"observations": arrays["observations"][start + i : end + i + 1], "seed": arrays["seeds"][i]}


def episodes_in(path: Path) -> int:
    """Number of episodes in the file of a chunk."""
    with _opened(path) as file:
        return len(file["lengths"])


def _load(path: Path) -> Arrays:
    with _opened(path) as file:
        return dict(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path) as file:
            yield file
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); delete it and give the same command again") from None
