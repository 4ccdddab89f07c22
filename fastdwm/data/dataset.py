"""Load offline datasets as flat arrays, from a Minari id or a D4RL .hdf5 file: download, check and cache them.

gymnasium is imported where it is used.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from fastdwm.checks import require
from fastdwm.data.minari import local_folder, recorded_env
from fastdwm.data.recordings import Arrays, Form, Warn, read_d4rl, read_minari
from fastdwm.envs import EnvSpec, Trust
from fastdwm.errors import first_line, one_line_errors
from fastdwm.files import replacing, require_file
from fastdwm.tasks import TASKS, Task

CACHE_FORMAT = 3  # increase it whenever the meaning of a cached array changes
STD_FLOOR = 1e-3  # relative to the largest coordinate's std, see `statistics`


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions, episode after episode, in the simulator's units; no row is both terminated and truncated.

    Every episode ends with a row that is terminated or truncated. A row that was recorded as both counts as truncated,
    and so does one after which the recording stops (at the end of the file, or before a missing row).
    """

    obs: np.ndarray  # (N, S) float32
    action: np.ndarray  # (N, A) float32 in [-1, 1]
    reward: np.ndarray  # (N,) float32
    next_obs: np.ndarray  # (N, S) float32: as the simulator returned it, never the next episode's reset
    next_action: np.ndarray  # (N, A) float32: the next row's action, zeros at an episode's last row
    terminated: np.ndarray  # (N,) bool: the task ended, no value follows
    truncated: np.ndarray  # (N,) bool: only the recording ended, a value would follow
    next_obs_known: np.ndarray  # (N,) bool: where false, next_obs repeats obs (ends without `next_observations`)
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
    def episode_lengths(self) -> np.ndarray:
        """(E,) int64: transitions of each episode."""
        return np.diff(self.episode_ends, prepend=-1)

    @property
    def episode_starts(self) -> np.ndarray:
        """(E,) int64: the first row of each episode."""
        return self.episode_ends + 1 - self.episode_lengths

    @property
    def n_episodes(self) -> int:
        """Number of episodes (E)."""
        return len(self.episode_ends)

    @property
    def critic_rows(self) -> np.ndarray:
        """(N,) bool: rows that ReBRAC may learn from. Truncated rows lack the next action that their target needs."""
        return ~self.truncated

    @property
    def model_rows(self) -> np.ndarray:
        """(N,) bool: rows that the world model may learn from, whose next observation is known."""
        return self.next_obs_known

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all columns: equal for equal recordings in any file."""
        return self._digest(*(item.name for item in fields(self) if item.name not in ("source", "env")))

    @cached_property
    def short_fingerprint(self) -> str:
        """SHA-256 of observations, actions and rewards alone, as older bundles state it."""
        return self._digest("obs", "action", "reward")

    def _digest(self, *names: str) -> str:
        digest = hashlib.sha256()
        for values in (getattr(self, name) for name in names):
            digest.update(repr((values.shape, values.dtype.str)).encode())
            digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()

    def episode_returns(self) -> np.ndarray:
        """(E,) float64: undiscounted sum of rewards per episode."""
        return np.add.reduceat(self.reward.astype(np.float64), self.episode_starts)

    def discounted_returns(self, discount: float) -> np.ndarray:
        """(E,) float64: sum of discount^t rewards per episode, unscaled and without a terminal value."""
        step = np.arange(self.n) - np.repeat(self.episode_starts, self.episode_lengths)
        return np.add.reduceat(self.reward * discount**step, self.episode_starts)

    def split_episodes(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Two complementary (N,) bool masks of whole episodes: for training, and a random fraction `share` held out.

        Each has at least one episode; raises InputError if there is only one.
        """
        count = self.n_episodes
        require(count > 1, f"{self.source}: expected at least 2 episodes to hold one out, got {count}")
        n_held_out = min(max(1, round(share * count)), count - 1)
        held_out = np.zeros(count, bool)
        held_out[np.random.default_rng(seed).permutation(count)[:n_held_out]] = True
        rows = np.repeat(held_out, self.episode_lengths)
        return ~rows, rows


def statistics(transitions: Transitions, rows: np.ndarray) -> Arrays:
    """Mean and std of observations and of their change, each (S,) float32: obs_mean, obs_std, delta_mean, delta_std.

    rows: (N,) bool. The change next_obs - obs uses those of them whose next observation is known. A std is at least
    STD_FLOOR times the largest coordinate's (1 if nothing varies), so that constant coordinates stay small.
    Raises InputError if no row is left.
    """
    usable = rows & transitions.model_rows
    require(bool(usable.any()), f"{transitions.source}: expected rows with a known next observation, got none")
    delta = transitions.next_obs[usable] - transitions.obs[usable]
    result = {}
    for name, values in (("obs", transitions.obs[rows]), ("delta", delta)):
        std = values.std(axis=0, dtype=np.float64)
        floor = STD_FLOOR * std.max() or 1.0
        result[f"{name}_mean"] = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        result[f"{name}_std"] = np.maximum(std, floor).astype(np.float32)
    return result


def load(task: Task, dataset: str | None = None, trust_env: Trust = False) -> Transitions:
    """Load the transitions of a Minari id (local, else downloaded) or of a D4RL .hdf5 file; none: the task's own id.

    trust_env: accept any simulator that a Minari dataset names, or this one; otherwise only those that `envs` knows.
    Actions are mapped to [-1, 1], and dict observations are flattened, as the task says.
    The arrays are cached in $FASTDWM_CACHE (default ~/.cache/fastdwm). Repairs of the order of the steps are reported
    on stderr. Raises InputError, in one line, if the dataset cannot be downloaded or read, has bad values or steps in
    disorder, or belongs to another task.
    """
    source = dataset or task.minari_id
    require(source is not None, f"no public dataset for {task.name}: give a Minari id or a D4RL .hdf5 with --dataset")
    form = Form(task.ends_at_success, task.action_low, task.action_high, task.obs_parts)
    with one_line_errors(source, "a dataset"):
        path = Path(source)
        if is_file(source):
            files, env = [path], _d4rl_env(path, task)
            form = replace(form, cap=env.max_episode_steps)
            read = partial(read_d4rl, path, source, form=form)
        else:
            folder = local_folder(source)
            files = [folder / "metadata.json", folder / "main_data.hdf5"]
            env, box = recorded_env(folder, source, task, trust_env)
            if box is not None:
                form = replace(form, action_low=None, action_high=None)
                form = form if box == (-1, 1) else replace(form, action_low=box[:1], action_high=box[1:])
            read = partial(read_minari, folder, source, form=form)
        for file in files:
            require_file(file)
        arrays, remarks = _through_cache(files, form, lambda warn: read(warn=warn))
    for name, size in (("obs", task.obs_dim), ("action", task.action_dim)):
        got = arrays[name].shape[1]
        require(got == size, f"{source}: expected {name} of size {size} for {task.name}, got {got}")
    transitions = Transitions(**arrays, source=source, env=env)
    longest = int(transitions.episode_lengths.max())
    cap = env.max_episode_steps or (task.env.max_episode_steps if env.family == task.env.family else None)
    if cap and longest > cap:
        remarks.append(f"an episode has {longest} steps, the simulator ends it after {cap}")
    for remark in remarks:
        print(f"fastdwm: {source}: {remark}", file=sys.stderr)
    return transitions


def is_file(source: str) -> bool:
    """Whether a dataset is a D4RL file rather than a Minari id."""
    return source.endswith((".hdf5", ".h5")) or Path(source).is_file()


def _d4rl_env(path: Path, task: Task) -> EnvSpec:
    """The simulator of a D4RL file; checked by the file's name, for halfcheetah and walker2d have equal sizes."""
    own = task.name.split("-")[0]
    others = {other.split("-")[0] for other in TASKS} - {own}
    named = path.stem.lower() if task.name in TASKS else ""
    wrong = [name for name in others if name in named and own not in named]
    require(not wrong, f"{path}: expected data of {own} for {task.name}, got a file named after {wrong}")
    other = (
        "it has another ant (steps of 0.1 s, torque 30) and frame (origin at the start, y mirrored in medium and large)"
    )
    require(not task.ends_at_success, f"{path}: a D4RL AntMaze file cannot be used: {other}; give a Minari id")
    return task.d4rl_env or task.env


def _through_cache(files: list[Path], form: Form, read: Callable[[Warn], Arrays]) -> tuple[Arrays, list[str]]:
    """The arrays of the files and the remarks on them, from the cache or by `read`, whose result is then cached.

    form: how the files are read, a part of the cache's key.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    state = [(str(file.resolve()), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files]
    # A form with defaults leaves the keys of earlier versions.
    other = [] if form == Form(form.ends_at_success) else [asdict(form)]
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, form.ends_at_success, *state, *other]).encode()).hexdigest()[:32]
    root = Path(os.environ.get("FASTDWM_CACHE") or Path.home() / ".cache" / "fastdwm")
    cache, names = root / f"{key}.safetensors", {field.name for field in fields(Transitions)} - {"source", "env"}
    try:
        with safe_open(cache, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            remarks = json.loads((file.metadata() or {}).get("remarks", ""))
        if arrays.keys() == names and len({len(values) for values in arrays.values()}) == 1:
            return arrays, remarks
    except (OSError, SafetensorError, ValueError):
        pass  # absent or damaged: read the source again
    remarks: list[str] = []
    arrays = read(remarks.append)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # The process id separates processes that read the same data at once.
        with replacing(cache, cache.with_suffix(f".{os.getpid()}")) as draft:
            save_file(arrays, draft, {"remarks": json.dumps(remarks)})
    except (OSError, SafetensorError) as error:
        print(f"fastdwm: next load will be slow, no cache in {root}: {first_line(error)}", file=sys.stderr)
    return arrays, remarks
