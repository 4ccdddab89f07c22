"""The task that a user names: one of the 24, a Minari dataset, a bundle's folder, or a name with a simulator.

The user's own task gets its sizes from the simulator, its scores from the dataset, and of a robot that a named task
also has, that task's healthy region. gymnasium is imported where it is used.
"""

import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

from fastdwm import spaces
from fastdwm.checks import from_json, prefixed, require
from fastdwm.data.dataset import is_file
from fastdwm.data.minari import datasets_root, local_folder, read_metadata, read_spec_of
from fastdwm.env_config import EnvConfig
from fastdwm.envs import SHIPPED, EnvSpec, Trust, read_spec
from fastdwm.errors import InputError, one_line_errors
from fastdwm.files import parse_json, read_bytes
from fastdwm.recorded import without_wrappers
from fastdwm.shipped import is_bundle
from fastdwm.tasks import TASKS, Limit, Task, find_task, name_of, unknown
from fastdwm.tasks import vet as vet_task

MINARI_ID = re.compile(r"(?:[\w-]+/)*[\w.-]+-v\d+")
MAX_BYTES = 4 * 2**20
OWN = ("limits", "discount", "reward_scale", "ends_at_success", "actor_lr", "critic_lr", "batch_size")
"""settings that a task without a name has from the first named one with the same robot"""


def resolve(
    typed: str,
    config: EnvConfig,
    dataset: str | None = None,
    ref_scores: tuple[float, float] | None = None,
    limits: Path | None = None,
) -> Task:
    """The task that the user calls `typed`; its `minari_id` is the dataset to train on if none is given.

    typed: the name of a task, the id of a Minari dataset, the folder of a bundle, or any name beside a simulator
    (config.env) or a Minari dataset.   dataset: Minari id or D4RL file.
    ref_scores: returns that score 0 and 100; none: those of the named task, else those in the dataset's metadata, else
    returns are scores.   limits: TOML file of the healthy region, see `read_limits`.
    Raises InputError, before anything is trained, for a text that is none of these, for a simulator that a file names
    and that the user must type, and for scores and limits that do not fit.
    """
    named = find_task(typed)
    if named:
        task = named if config.typed is None else _with_env(named, config.typed)
    elif is_bundle(typed):
        task = task_of_bundle(Path(typed), config.trust)
    else:
        task = _own_task(typed, config, dataset)
    if ref_scores is not None:
        task = replace(task, ref_min_score=float(ref_scores[0]), ref_max_score=float(ref_scores[1]))
    return task if limits is None else replace(task, limits=read_limits(limits))


def task_of_bundle(folder: Path, trust: Trust = False) -> Task:
    """The task in the description of a bundle, with the dataset that it was trained on; raises InputError."""
    path = folder / "bundle.json"
    values = parse_json(read_bytes(path, MAX_BYTES), path)
    values = values if isinstance(values, dict) else {}
    with prefixed(f"{path}: task: "):
        task = vet_task(from_json(Task, values.get("task"), ""), trust)
    dataset = values.get("dataset")
    source = dataset.get("id") if isinstance(dataset, dict) else None
    return replace(task, minari_id=source if isinstance(source, str) else task.minari_id)


def read_limits(path: Path) -> tuple[Limit, ...]:
    """Read the healthy region from a TOML file: tables [[limits]], each with index and low, high or both."""
    with one_line_errors(str(path), "TOML"):
        values = tomllib.loads(read_bytes(path, MAX_BYTES).decode())
    tables = values.get("limits")
    valid = values.keys() == {"limits"} and isinstance(tables, list) and all(isinstance(x, dict) for x in tables)
    require(valid, f"{path}: expected tables [[limits]] with index, low and high, got {sorted(values)}")
    defaults = {"low": -math.inf, "high": math.inf}
    return tuple(from_json(Limit, defaults | table, f"{path}: limits") for table in tables)


def recorded_task_env(source: str, trust: Trust) -> EnvSpec | None:
    """The simulator in the metadata of a Minari dataset, vetted; none if they have none. Raises InputError."""
    with one_line_errors(source, "a dataset"):
        spec = read_spec_of(local_folder(source), source)
        if spec is None:
            return None
        values = {name: spec.get(name) for name in ("id", "kwargs", "max_episode_steps")}
        module, _, entry = str(spec.get("entry_point")).partition(":")
        if trust is False and entry and not module.startswith(SHIPPED) and ":" not in spec["id"]:
            # It is refused, and the message then names the module of the class, which most often registers the id.
            values["id"] = f"{module}:{spec['id']}"
        with prefixed(f"{source}: "):
            env = read_spec(values, trust)
        return without_wrappers(env, spec.get("additional_wrappers"), source)[0]


def _own_task(typed: str, config: EnvConfig, dataset: str | None) -> Task:
    """A task that is none of the 24."""
    source = dataset if dataset is not None else typed if _is_dataset(typed) else None
    recorded = source is not None and not is_file(source)
    env = (recorded_task_env(source, config.trust) if recorded else None) or config.typed
    if env is None and recorded:
        raise InputError(f"{source}: its metadata name no simulator; give --env ID")
    if env is None:
        ways = "expected one of the names, a Minari id (NAMESPACE/NAME-vN), the folder of a bundle, or any name"
        raise unknown(typed, f"{ways} with --env ID and --dataset FILE")
    env, form = measured(env)
    own = next((task for task in TASKS.values() if task.env.family == env.family), None)
    settings = {name: getattr(own, name) for name in OWN} if own and own.obs_dim == form.obs_dim else {}
    if settings.get("ends_at_success"):
        # The return of such an episode is 0 or 1.
        settings |= {"ref_min_score": own.ref_min_score, "ref_max_score": own.ref_max_score}
    scores = _ref_scores(source) if recorded else {}
    settings |= {"minari_id": source, "obs_parts": form.obs_parts}
    settings |= {"action_low": form.action_low, "action_high": form.action_high}
    return Task(name_of(typed), env, form.obs_dim, form.action_dim, **settings | scores)


def measured(env: EnvSpec) -> tuple[EnvSpec, spaces.Form]:
    """The simulator with the limit on its steps, and its sizes; raises InputError if it cannot be built."""
    with env.build() as simulator:
        form = spaces.form_of(simulator)
        steps = env.max_episode_steps or (simulator.spec.max_episode_steps if simulator.spec else None)
    return replace(env, max_episode_steps=steps), form


def _is_dataset(typed: str) -> bool:
    """Whether a text that is no task means a Minari dataset: a local one, or an id with a namespace."""
    return bool(MINARI_ID.fullmatch(typed)) and ("/" in typed or (datasets_root() / typed / "data").is_dir())


def _with_env(task: Task, typed: EnvSpec) -> Task:
    """A named task in a simulator that the user typed; InputError for one of other sizes."""
    env, form = measured(replace(typed, kwargs={**task.env.kwargs, **typed.kwargs}))
    sizes, actual = (task.obs_dim, task.action_dim), (form.obs_dim, form.action_dim)
    require(sizes == actual, f"env: {task.name} has sizes {sizes} of observation and action, {env.id} has {actual}")
    return replace(task, env=env, d4rl_env=None)


def _ref_scores(source: str) -> dict[str, float]:
    """The reference scores in the metadata of a Minari dataset; empty if they have none. Raises InputError."""
    metadata = read_metadata(local_folder(source), source)
    scores = {name: metadata.get(name) for name in ("ref_min_score", "ref_max_score")}
    if None in scores.values():
        return {}
    valid = all(type(x) in (int, float) and math.isfinite(x) for x in scores.values())
    valid = valid and scores["ref_min_score"] < scores["ref_max_score"]
    require(valid, f"{source}: expected ref_min_score < ref_max_score in the metadata, got {json.dumps(scores)}")
    return {name: float(value) for name, value in scores.items()}
