"""Read D4RL files and Minari datasets as flat arrays, with terminations and timeouts kept apart.

Three traps lie at the last row of an episode: the next row of the file belongs to the next episode, so it gives neither
the next observation nor the next action; a timeout is not a termination; and D4RL files without `next_observations`
lack the observation after that row. In AntMaze both formats go on recording after the goal (`cut_at_success`). And the
recorder itself may have mistaken the order of the steps, or the ends of episodes (`mend_order`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdwm.checks import require
from fastdwm.data.hdf5 import Reader, open_hdf5, require_rows
from fastdwm.data.minari import read_metadata
from fastdwm.spaces import to_unit

Arrays = dict[str, np.ndarray]

ACTION_TOLERANCE = 1e-5
OBS_TOLERANCE = 1e-5  # absolute and relative, between two recordings of one observation

# Mistakes in the order of a recording up to these fractions of the steps inside episodes and of the ends are repaired.
FEW_BREAKS, FEW_ENDS = 0.02, 0.1

D4RL_KEYS = {"obs": "observations", "action": "actions", "reward": "rewards"}
D4RL_FLAGS = {"terminated": "terminals", "truncated": "timeouts"}

Warn = Callable[[str], None]
"""called with a line on each repair"""


@dataclass(frozen=True)
class Form:
    """How to read a recording.

    ends_at_success: cut each recorded episode at its first success, see `cut_at_success`.
    action_low, action_high: bounds of the recorded actions (A,), which become -1 and 1; none: they are -1 and 1.
    obs_parts: entries of a dict observation in the order in which they are flattened; empty: of a goal dict,
    (achieved_goal, observation).   cap: steps after which the simulator ends an episode; none: it does not.
    """

    ends_at_success: bool = False
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    obs_parts: tuple[str, ...] = ()
    cap: int | None = None


def read_d4rl(path: Path, source: str, warn: Warn, form: Form = Form()) -> Arrays:
    """Read the arrays of a D4RL file; `next_observations` is optional, and so is `timeouts` if the form has a cap.

    With `ends_at_success`, recordings end only at timeouts, not at the terminals before them.
    """
    with open_hdf5(path, source, "a D4RL .hdf5 file") as file:
        flags = D4RL_FLAGS
        if "timeouts" not in file and form.cap:
            flags = {"terminated": "terminals"}
        missing = [key for key in (*D4RL_KEYS.values(), *flags.values()) if key not in file]
        require(not missing, f"{source}: expected the D4RL keys {missing}, got only {list(file.file)[:20]}")
        keys = D4RL_KEYS | ({"next_obs": "next_observations"} if "next_observations" in file else {})
        readers = {"reward": file.column}
        columns = {name: readers.get(name, file.array)(key, np.float32) for name, key in keys.items()}
        columns |= {name: file.flags(key) for name, key in flags.items()}
    if "truncated" not in columns:
        columns["truncated"] = _at_cap(columns["terminated"], form.cap)
        warn(f"it has no timeouts: episodes are cut after {form.cap} steps, where the simulator ends them")
    return _complete(source, columns, columns["truncated"], warn, form)


def _at_cap(terminated: np.ndarray, cap: int) -> np.ndarray:
    """(N,) bool: the rows at which an episode that has not terminated reaches `cap` steps."""
    rows, starts = np.arange(len(terminated)), np.append(0, np.flatnonzero(terminated[:-1]) + 1)
    step = rows - starts[np.searchsorted(starts, rows, side="right") - 1]
    return (step % cap == cap - 1) & ~terminated


def read_minari(folder: Path, source: str, warn: Warn, form: Form = Form()) -> Arrays:
    """Read the arrays of a Minari dataset in its HDF5 format (`data` folder), one episode at a time.

    It does not use minari, which builds any simulator that the metadata name if they lack the spaces.
    """
    metadata = read_metadata(folder, source)
    count, kind = metadata.get("total_episodes"), metadata.get("data_format", "hdf5")
    require(kind == "hdf5", f"{source}: expected a Minari dataset in the format hdf5, got {kind}")
    require(type(count) is int, f"{source}: expected a number of episodes in the metadata, got {count!r}")
    require(count > 0, f"{source}: expected transitions, got none")
    pieces: dict[str, list[np.ndarray]] = {}
    with open_hdf5(folder / "main_data.hdf5", source, "a Minari dataset") as file:
        for i in range(count):
            for name, values in _episode_columns(file, f"episode_{i}", form.obs_parts).items():
                pieces.setdefault(name, []).append(values)
        columns = {name: np.concatenate(pieces.pop(name)) for name in list(pieces)}
    return _complete(source, columns, columns.pop("last"), warn, form)


def _complete(source: str, columns: Arrays, last: np.ndarray, warn: Warn, form: Form) -> Arrays:
    """Check the recorded columns, repair their order and derive the rest.   last: see `cut_at_success`."""
    columns = columns | {"action": _in_unit(source, columns["action"], form)}
    check(source, columns)
    columns = cut_at_success(columns, last) if form.ends_at_success else columns
    return derive(mend_order(source, columns, warn))


def _in_unit(source: str, action: np.ndarray, form: Form) -> np.ndarray:
    """The recorded actions (N, A), mapped to [-1, 1]; raises InputError if they leave the recorded box."""
    if form.action_low is None or action.ndim != 2:
        return action
    low, high = (np.array(bound) for bound in (form.action_low, form.action_high))
    sizes = f"{source}: expected actions of size {len(low)}, got {action.shape[1]}"
    require(len(low) in (1, action.shape[1]), sizes)
    action = to_unit(action, low, high)
    inside = np.abs(action).max(1, initial=0) <= 1 + ACTION_TOLERANCE
    box = f"{np.round(low, 4).tolist()} to {np.round(high, 4).tolist()}"
    require_rows(inside | ~np.isfinite(action).all(1), f"{source}: expected actions from {box}, got others")
    return action


def _episode_columns(file: Reader, episode: str, obs_parts: tuple[str, ...] = ()) -> Arrays:
    """Read one Minari episode of T steps and T + 1 observations; its last row is truncated unless it terminated.

    obs_parts: as in `Form`.   last: (T,) bool, true in the last row alone.
    """
    key = f"{episode}/observations"
    names = obs_parts or ("achieved_goal", "observation")
    keys = [f"{key}/{name}" for name in names] if file.is_group(key) else [key]
    parts = [file.array(part, np.float32) for part in keys]
    if obs_parts:
        parts = [part.reshape(len(part), -1) for part in parts]
    obs = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    action, reward = file.array(f"{episode}/actions", np.float32), file.column(f"{episode}/rewards", np.float32)
    ended, cut = (file.flags(f"{episode}/{name}") for name in ("terminations", "truncations"))
    lengths = [len(obs) - 1, *(len(values) for values in (action, reward, ended, cut))]
    expected = f"{file.source}: expected T + 1 observations, T of all else"
    require(len(set(lengths)) == 1, f"{expected}, got T = {lengths} in {episode}")
    cut[-1:] |= ~ended[-1:]
    last = np.arange(len(cut)) == len(cut) - 1
    columns = {"obs": obs[:-1], "next_obs": obs[1:], "action": action, "reward": reward}
    return columns | {"terminated": ended, "truncated": cut, "last": last}


def check(source: str, columns: Arrays) -> None:
    """Raise InputError unless the columns have matching shapes, finite numbers and actions in [-1, 1].

    columns: obs, action, reward, terminated, truncated and, where recorded, next_obs.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    require(len(set(lengths.values())) == 1, f"{source}: expected arrays of equal length, got {lengths}")
    require(lengths["obs"] > 0, f"{source}: expected transitions, got none")
    for name, ndim in (("obs", 2), ("next_obs", 2), ("action", 2), ("reward", 1)):
        if name in columns:
            values = columns[name]
            require(values.ndim == ndim, f"{source}: expected {name} with {ndim} axes, got shape {values.shape}")
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            require_rows(finite, f"{source}: expected finite {name}, got NaN or infinity")
    inside = np.abs(columns["action"]) <= 1 + ACTION_TOLERANCE
    require_rows(inside.all(axis=1), f"{source}: expected actions in [-1, 1], got others")
    shape, actual = columns["obs"].shape, columns.get("next_obs", columns["obs"]).shape
    require(actual == shape, f"{source}: expected next_obs shaped {shape}, got {actual}")


def cut_at_success(columns: Arrays, last: np.ndarray) -> Arrays:
    """Cut each recording after its first success, whose row then terminates.

    last: (N,) bool, last rows of recordings; row N - 1 may be False.   A success is a positive reward or a terminal.
    Evaluation ends at success, while D4RL goes on to the timeout and Minari (`continuing_task`) rewards every step at
    the goal: uncut, values would tend to 1 / (1 - discount) rewards, and one recording would become many episodes.
    """
    success = columns["terminated"] | (columns["reward"] > 0)
    starts = np.append(0, np.flatnonzero(last[:-1]) + 1)
    earlier = np.cumsum(success) - success
    kept = earlier == np.repeat(earlier[starts], np.diff(starts, append=len(last)))
    columns = columns | {"terminated": success, "truncated": last & ~success}
    return {name: values[kept] for name, values in columns.items()}


def mend_order(source: str, columns: Arrays, warn: Warn) -> Arrays:
    """Compare each recorded next observation with the next row, and repair a few mistakes in the order of the steps.

    Inside an episode next_obs[i] must be obs[i + 1]; if it is not in a few rows, episodes are truncated there. At an
    end it must not be, for the next row begins with a reset; if it is at a few ends, next_obs is marked as unknown.
    Raises InputError if either occurs often: the rows are in disorder, or the ends are marked in the wrong rows.
    """
    if "next_obs" not in columns:
        return columns
    obs, next_obs, ends = columns["obs"], columns["next_obs"], (columns["terminated"] | columns["truncated"])[:-1]
    followed = (next_obs[:-1] == obs[1:]).all(axis=1)
    rest = np.flatnonzero(~followed)
    followed[rest] = np.isclose(next_obs[rest], obs[rest + 1], OBS_TOLERANCE, OBS_TOLERANCE).all(axis=1)
    breaks, no_ends = np.flatnonzero(~ends & ~followed), np.flatnonzero(ends & followed)

    def refuse_many(rows: np.ndarray, total: int, share: float, expected: str, causes: str) -> None:
        actual = f"got otherwise in {len(rows)} of {total}, first in row {next(iter(rows), 0)}"
        require(len(rows) <= max(1, share * total), f"{source}: expected {expected}, {actual}; {causes}")

    expected = "the next observation of a step to be the next row's observation"
    causes = "the rows are no consecutive steps, or ends of episodes are not marked"
    refuse_many(breaks, int((~ends).sum()), FEW_BREAKS, f"{expected} inside episodes", causes)
    causes = "ends are marked in the wrong rows, or the recorder stored resets as steps"
    refuse_many(no_ends, int(ends.sum()), FEW_ENDS, f"{expected} nowhere at ends of episodes", causes)
    if len(breaks):
        warn(f"{len(breaks)} steps do not lead to the next row's observation: episodes are truncated there")
    if len(no_ends):
        warn(f"{len(no_ends)} ends of episodes lead to the next row's observation: what followed is taken as unknown")
    columns = columns | {"truncated": columns["truncated"].copy(), "next_obs_known": np.ones(len(obs), bool)}
    columns["truncated"][breaks] = True
    if len(no_ends):
        columns["next_obs"], columns["next_obs_known"][no_ends] = next_obs.copy(), False
        columns["next_obs"][no_ends] = obs[no_ends]
    return columns


def derive(columns: Arrays) -> Arrays:
    """Add next_action, next_obs_known and, where it is not recorded, next_obs to checked columns.

    A row with both flags counts as truncated: recorders mark time limits so, also in tasks that never terminate.
    """
    obs, action, truncated = columns["obs"], columns["action"].clip(-1, 1), columns["truncated"].copy()
    terminated = columns["terminated"] & ~truncated
    truncated[-1] = not terminated[-1]
    last = terminated | truncated
    inner = np.flatnonzero(~last)
    next_action = np.zeros_like(action)
    next_action[inner] = action[inner + 1]
    next_obs, next_obs_known = columns.get("next_obs"), columns.get("next_obs_known")
    if next_obs is None:
        next_obs, next_obs_known = obs.copy(), ~last
        next_obs[inner] = obs[inner + 1]
    columns = columns | {"terminated": terminated, "truncated": truncated, "action": action}
    return columns | {"next_action": next_action, "next_obs": next_obs, "next_obs_known": next_obs_known}
