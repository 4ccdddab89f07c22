"""Offline datasets as flat arrays: Minari datasets and D4RL .hdf5 files, with episode ends told apart correctly.

Three traps, all at the last row of an episode: the row that follows in the file belongs to the next episode, so it
gives neither the next observation nor the next action; a timeout is not a termination; and D4RL files without
`next_observations` do not say what came after. minari, h5py and gymnasium are imported where they are used.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from fastdwm.config import require
from fastdwm.envs import EnvSpec, read_spec
from fastdwm.errors import InputError
from fastdwm.tasks import TASKS, Task

Arrays = dict[str, np.ndarray]

CACHE_FORMAT = 1  # raise it whenever the meaning of a cached array changes
ACTION_TOLERANCE = 1e-5
STD_FLOOR = 1e-3  # relative to the largest coordinate's std, see `statistics`


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions, episode after episode; at most one of `terminated` and `truncated` holds in a row.

    Every episode ends with a row that is terminated or truncated; a row that was both counts as terminated, and an
    episode that merely stops (the end of the file) as truncated. Units are the simulator's: nothing is scaled.
    """

    obs: np.ndarray  # (N, S) float32
    action: np.ndarray  # (N, A) float32 in [-1, 1]
    reward: np.ndarray  # (N,) float32
    next_obs: np.ndarray  # (N, S) float32: what the simulator returned, never the next episode's reset
    next_action: np.ndarray  # (N, A) float32: the next row's action, zeros at an episode's last row
    terminated: np.ndarray  # (N,) bool: the task ended, no value follows
    truncated: np.ndarray  # (N,) bool: only the recording ended, a value would follow
    next_obs_known: np.ndarray  # (N,) bool: where false, next_obs repeats obs (D4RL files without `next_observations`)
    source: str  # dataset id or file name
    env: EnvSpec  # the simulator that the data were recorded in

    @property
    def n(self) -> int:
        """Number of transitions (N)."""
        return len(self.obs)

    @property
    def episode_ends(self) -> np.ndarray:
        """(E,) int64, increasing: the last row of each episode."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def n_episodes(self) -> int:
        """Number of episodes (E)."""
        return len(self.episode_ends)

    @property
    def critic_rows(self) -> np.ndarray:
        """(N,) bool: rows ReBRAC may learn from. A truncated row has a value to follow but no next action (as D4RL)."""
        return ~self.truncated

    @property
    def model_rows(self) -> np.ndarray:
        """(N,) bool: rows the world model may learn from, those whose next observation is known."""
        return self.next_obs_known

    def episode_returns(self) -> np.ndarray:
        """(E,) float64: undiscounted sum of rewards per episode."""
        starts = np.append(0, self.episode_ends[:-1] + 1)
        return np.add.reduceat(self.reward.astype(np.float64), starts)

    def split_episodes(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Two complementary (N,) bool masks of whole episodes: for training, and a random `share` held out.

        At least one episode goes to each side; raises InputError if there is only one.
        """
        count = self.n_episodes
        require(count > 1, f"{self.source}: expected at least 2 episodes to hold one out, got {count}")
        n_held_out = min(max(1, round(share * count)), count - 1)
        held_out = np.zeros(count, bool)
        held_out[np.random.default_rng(seed).permutation(count)[:n_held_out]] = True
        rows = np.repeat(held_out, np.diff(self.episode_ends, prepend=-1))
        return ~rows, rows


def statistics(transitions: Transitions, rows: np.ndarray) -> Arrays:
    """Mean and std of observations and of their change, each (S,) float32: obs_mean, obs_std, delta_mean, delta_std.

    rows: (N,) bool. The change next_obs - obs is taken over those of them whose next observation is known. A std is
    at least STD_FLOOR times the largest coordinate's (1 if nothing varies), so that no constant coordinate blows up.
    Raises InputError if no row is left.
    """
    known = rows & transitions.model_rows
    require(bool(known.any()), f"{transitions.source}: expected rows with a known next observation, got none")
    delta = transitions.next_obs[known] - transitions.obs[known]
    result = {}
    for name, values in (("obs", transitions.obs[rows]), ("delta", delta)):
        std = values.std(axis=0, dtype=np.float64)
        floor = STD_FLOOR * std.max() or 1.0
        result[f"{name}_mean"] = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        result[f"{name}_std"] = np.maximum(std, floor).astype(np.float32)
    return result


def load(task: Task, dataset: str | None = None, trust_env: bool = False) -> Transitions:
    """The transitions of a Minari id (local first, then downloaded) or of a D4RL .hdf5 file; none: the task's own id.

    trust_env: take the simulator that a Minari dataset names, whatever it is; without, only those that `envs` knows.
    A second load of the same files comes from a flat copy in $FASTDWM_CACHE (default ~/.cache/fastdwm). Raises
    InputError, in one line, if the dataset cannot be had or read, holds bad values, or belongs to another task.
    """
    source = dataset or task.minari_id
    require(source is not None, f"no public dataset for {task.name}: give a Minari id or a D4RL .hdf5 with --dataset")
    if source.endswith((".hdf5", ".h5")) or Path(source).is_file():
        path, read = Path(source), _read_d4rl
        require(path.is_file(), f"{source}: no such file")
        env = _d4rl_env(path, task)
    else:
        path, read = _minari_folder(source), _read_minari
        with _one_line_errors(source, "a Minari dataset"):
            env = _minari_env(path, task, trust_env)
    arrays = _through_cache(path, lambda: read(path, source))
    for name, size in (("obs", task.env.obs_dim), ("action", task.env.action_dim)):
        got = arrays[name].shape[1]
        require(got == size, f"{source}: expected {name} of size {size} for {task.name}, got {got}")
    return Transitions(**arrays, source=source, env=env)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _one_line_errors(source: str, expected: str) -> Iterator[None]:
    """Whatever the libraries raise for a broken file becomes one InputError; their warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except (OSError, ImportError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise InputError(f"{source}: cannot be read as {expected}: {_first_line(error)}") from error


def _require_rows(good: np.ndarray, message: str) -> None:
    require(bool(good.all()), f"{message}, first in row {np.argmin(good)}")


def _assemble(source: str, columns: Arrays) -> Arrays:
    """Check the recorded columns and derive the others.

    columns: obs, action, reward, terminated, truncated and, where recorded, next_obs. Raises InputError.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    require(len(set(lengths.values())) == 1, f"{source}: expected arrays of equal length, got {lengths}")
    require(lengths["obs"] > 0, f"{source}: expected transitions, got none")
    for name, ndim in (("obs", 2), ("next_obs", 2), ("action", 2), ("reward", 1)):
        if name in columns:
            values = columns[name]
            require(values.ndim == ndim, f"{source}: expected {name} with {ndim} axes, got shape {values.shape}")
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            _require_rows(finite, f"{source}: expected finite {name}, got NaN or infinity")
    inside = np.abs(columns["action"]) <= 1 + ACTION_TOLERANCE
    _require_rows(inside.all(axis=1), f"{source}: expected actions in [-1, 1], got others")

    obs, action, terminated = columns["obs"], columns["action"].clip(-1, 1), columns["terminated"]
    truncated = columns["truncated"] & ~terminated
    truncated[-1] = not terminated[-1]
    last = terminated | truncated
    inner = np.flatnonzero(~last)
    next_action = np.zeros_like(action)
    next_action[inner] = action[inner + 1]
    next_obs, known = columns.get("next_obs"), np.ones_like(last)
    if next_obs is None:
        next_obs, known = obs.copy(), ~last
        next_obs[inner] = obs[inner + 1]
    require(next_obs.shape == obs.shape, f"{source}: expected next_obs shaped {obs.shape}, got {next_obs.shape}")
    derived = {"action": action, "truncated": truncated, "next_action": next_action, "next_obs": next_obs}
    return {**columns, **derived, "next_obs_known": known}


def _read_d4rl(path: Path, source: str) -> Arrays:
    """The arrays of a D4RL file; `next_observations` is optional."""
    keys = {"obs": "observations", "action": "actions", "reward": "rewards"}
    flags = {"terminated": "terminals", "truncated": "timeouts"}
    with _one_line_errors(source, "a D4RL .hdf5 file"):
        import h5py

        with h5py.File(path, "r") as file:
            missing = [key for key in (*keys.values(), *flags.values()) if key not in file]
            require(not missing, f"{source}: expected the D4RL keys {missing}, got only {list(file)}")
            keys |= {"next_obs": "next_observations"} if "next_observations" in file else {}
            columns = {name: file[key].astype(np.float32)[:] for name, key in keys.items()}
            columns |= {name: file[key].astype(bool)[:] for name, key in flags.items()}
    return _assemble(source, columns)


def _read_minari(folder: Path, source: str) -> Arrays:
    """The arrays of a Minari dataset, one episode in memory at a time beside the result."""
    pieces: dict[str, list[np.ndarray]] = {}
    with _one_line_errors(source, "a Minari dataset"):
        import minari

        for episode in minari.MinariDataset(folder).iterate_episodes():
            for name, values in _episode_columns(episode, source).items():
                pieces.setdefault(name, []).append(values)
        require(bool(pieces), f"{source}: expected transitions, got none")
        columns = {name: np.concatenate(pieces.pop(name)) for name in list(pieces)}
    return _assemble(source, columns)


def _episode_columns(episode: Any, source: str) -> Arrays:
    """One Minari episode of T steps and T + 1 observations; its last row is truncated unless it terminated."""
    obs = episode.observations
    if isinstance(obs, dict):
        obs = np.concatenate([obs["achieved_goal"], obs["observation"]], axis=1)
    obs = np.asarray(obs, np.float32)
    action, reward = (np.asarray(values, np.float32) for values in (episode.actions, episode.rewards))
    ended, cut = (np.array(values, bool) for values in (episode.terminations, episode.truncations))
    lengths = [len(values) for values in (obs[1:], action, reward, ended, cut)]
    require(len(set(lengths)) == 1, f"{source}: expected T + 1 observations, T of all else, got T = {lengths}")
    cut[-1:] |= ~ended[-1:]
    return dict(obs=obs[:-1], next_obs=obs[1:], action=action, reward=reward, terminated=ended, truncated=cut)


def _d4rl_env(path: Path, task: Task) -> EnvSpec:
    """The simulator of a D4RL file, which only its name can contradict: halfcheetah and walker2d have equal sizes."""
    others = {other.env.name for other in TASKS.values()} - {task.env.name}
    wrong = [name for name in others if name in path.stem.lower() and task.env.name not in path.stem.lower()]
    require(not wrong, f"{path}: expected data of {task.env.name} for {task.name}, got a file named after {wrong}")
    return EnvSpec(task.env.d4rl_env_id, dict(task.env.kwargs), task.max_episode_steps)


def _minari_env(folder: Path, task: Task, trust_env: bool) -> EnvSpec:
    """The simulator a Minari dataset was recorded in, or the task's own where it does not say; raises InputError."""
    own = {"id": task.env.env_id, "kwargs": {}, "max_episode_steps": task.max_episode_steps}
    recorded = json.loads((folder / "metadata.json").read_text()).get("env_spec")
    spec, family = json.loads(recorded) if recorded else own, task.env.env_id.rsplit("-", 1)[0]
    known = trust_env or spec["id"].startswith(family)
    require(known, f"expected data of {family} for {task.name}, got {spec['id']} in {folder}")
    values = {name: spec[name] for name in own} | {"kwargs": {**spec["kwargs"], **task.env.kwargs}}
    return read_spec(values, task, trust_env)


def _minari_folder(dataset_id: str) -> Path:
    """Where the data of a Minari id lie, downloaded if need be; raises InputError if they cannot be had."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    folder = root / dataset_id / "data"
    if folder.is_dir():
        return folder
    ways = f"run `minari download {dataset_id}` where there is a network, copy the dataset into {root}, "
    ways += "or give a D4RL .hdf5 file or another id with --dataset"
    gcp = os.environ.get("MINARI_REMOTE", "").startswith("gcp:")
    server = "https://storage.googleapis.com" if gcp else os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    require(_answers(server), f"dataset {dataset_id} is not in {root} and {server} does not answer: {ways}")
    try:
        import minari

        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.download_dataset(dataset_id)
    except Exception as error:  # the download libraries raise dozens of types, none of them minari's own
        raise InputError(f"cannot download {dataset_id} ({_first_line(error)}): {ways}") from error
    return folder


def _answers(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a web server answers at all, asked in a thread because the name lookup knows no time limit."""
    answers = []

    def ask() -> None:
        with suppress(OSError, HTTPException, ValueError):
            with suppress(HTTPError):  # an error page is an answer
                urlopen(Request(url, method="HEAD"), timeout=timeout_s).close()
            answers.append(True)

    (thread := Thread(target=ask, daemon=True)).start()
    thread.join(timeout_s)
    return bool(answers)


def _through_cache(path: Path, read: Callable[[], Arrays]) -> Arrays:
    """The arrays of `path` (a file or folder) from the cache, else by `read`, which also fills the cache."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    state = [(str(file.resolve()), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files]
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, *state]).encode()).hexdigest()[:32]
    root = Path(os.environ.get("FASTDWM_CACHE") or Path.home() / ".cache" / "fastdwm")
    cache, names = root / f"{key}.safetensors", {field.name for field in fields(Transitions)} - {"source", "env"}
    try:
        arrays = load_file(cache)
        if arrays.keys() == names and len({len(values) for values in arrays.values()}) == 1:
            return arrays
    except (OSError, SafetensorError):
        pass  # absent or damaged: read the source again
    arrays = read()
    draft = cache.with_suffix(f".{os.getpid()}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        save_file(arrays, draft)
        os.replace(draft, cache)
    except (OSError, SafetensorError) as error:
        print(f"fastdwm: next load will be slow, no cache in {root}: {_first_line(error)}", file=sys.stderr)
        with suppress(OSError):
            draft.unlink()
    return arrays
