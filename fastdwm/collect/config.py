"""Settings of `python -m fastdwm.collect`: the simulator, the policies with their shares, and the amount of data."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked, at_most, require
from fastdwm.data.minari import datasets_root
from fastdwm.env_config import read_kwargs
from fastdwm.envs import EnvSpec
from fastdwm.errors import InputError
from fastdwm.shipped import is_bundle
from fastdwm.tasks import find_task, get_task

ROBOTS = ("halfcheetah", "hopper", "walker2d")
MAX_TRANSITIONS = 10**9


@dataclass(frozen=True)
class CollectConfig(Checked):
    """How a dataset is made. Raises InputError for invalid values."""

    policy: tuple[str, ...]
    """a policy to record, POLICY or POLICY:SHARE; repeat the flag for several. POLICY is an .onnx file (inputs:
    observations and, for a policy that draws its actions, standard normal `noise`; output: `action`), the folder of a
    bundle or the name of a shipped one (its base policy), or `random`. SHARE is 1 by default; shares need not add up
    to 1"""
    out: str
    """Minari id of the new dataset, such as mine/hopper/medium-v0; it is saved in $MINARI_DATASETS_PATH, by default
    ~/.minari/datasets"""
    transitions: Annotated[int, POSITIVE, at_most(MAX_TRANSITIONS)] = 1_000_000
    """transitions to record. Episodes are recorded as a whole, which may add up to one episode per policy"""
    shares: Literal["transitions", "episodes"] = "transitions"
    """transitions: each policy records its share of the transitions, one policy after the other; episodes: the policies
    take turns, and each records its share of the episodes, whatever their lengths"""
    noise: Annotated[float, NOT_NEGATIVE] = 0.0
    """standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1]; policies that draw their
    actions themselves get none. Increase it to make the data of a deterministic policy more diverse"""
    steer: bool = False
    """steer an ant's policy through the maze of ENV, one of the antmaze tasks. POLICY is then an .onnx file that walks
    along +x (observations: 27 numbers, 84 contact forces). It takes its likeliest actions; noise 0.2 is usual"""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """seed of all random draws; the same seed gives the same dataset with any number of workers"""
    workers: Annotated[int, POSITIVE] = 2
    """processes that record at once, with one thread each; at most the number of CPUs is useful"""
    env: str | None = None
    """id of the simulator; the first argument is then a name of your own, as for the other commands"""
    env_kwargs: str = "{}"
    """arguments of the simulator's constructor as JSON, such as '{"xml_file": "walker2d.xml"}'"""
    ref_scores: tuple[float, float] | None = None
    """returns that score 0 and 100, for the dataset's metadata; none: D4RL's for its robots, else none"""
    trust_env: bool = False
    """accept any simulator that a bundle or a dataset names; what you type is trusted without this flag"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.policy), "policy: expected at least one")
        low, high = self.ref_scores or (0, 1)
        finite = math.isfinite(low) and math.isfinite(high)
        require(finite and low < high, f"ref_scores: expected MIN < MAX, got {low:g} {high:g}")
        require(math.isfinite(self.noise), f"noise: expected a finite number, got {self.noise}")
        for text in self.policy:
            split_share(text)
        check_id(self.out)


def split_share(text: str) -> tuple[str, float]:
    """Policy and share of `POLICY[:SHARE]`; InputError for a share that is not a positive number."""
    policy, _, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        # A colon may be part of a file's name.
        return text, 1.0
    if not policy:
        return text, 1.0
    require(math.isfinite(value) and value > 0, f"policy: expected a positive share, got {share} in {text}")
    return policy, value


def check_id(out: str) -> None:
    """Raise InputError unless `out` is a valid id of a Minari dataset."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(out)
    # Minari raises TypeError for an id without a version.
    except (ValueError, TypeError):
        form = "[NAMESPACE/]NAME-vNUMBER with a namespace of two letters or more"
        raise InputError(f"out: expected a Minari id, {form}, got {out!r}") from None


def read_env(typed: str, config: CollectConfig) -> EnvSpec:
    """The simulator that the user calls `typed`: one of ROBOTS, an id of Gymnasium, or that of a task as in `train`.

    With config.env, `typed` may be any name. An id is trusted, for the user typed it. Raises InputError for a dataset
    or a bundle that names a simulator which must be typed.
    """
    from fastdwm.data.task import recorded_task_env, task_of_bundle

    kwargs = read_kwargs(config.env_kwargs)
    own = None if config.env is None else EnvSpec(config.env, kwargs)
    trust = config.trust_env or own or False
    if is_bundle(typed):
        env = task_of_bundle(Path(typed), trust).env
    elif (datasets_root() / typed / "data").is_dir() and (recorded := recorded_task_env(typed, trust)):
        env = recorded
    elif own is None and (typed in ROBOTS or find_task(typed)):
        env = (find_task(typed) or get_task(f"{typed}-medium")).env
    else:
        return own or EnvSpec(typed, kwargs)
    return replace(env, kwargs={**env.kwargs, **kwargs})


def check_maze(name: str, mazes: Collection[str], kwargs: str) -> None:
    """Raise InputError unless policies can be steered in the simulator `name`: one of `mazes`, unchanged."""
    require(name in mazes, f"steer: expected one of {', '.join(mazes)}, got {name}")
    require(kwargs == "{}", f"steer: expected the maze of {name} without env_kwargs, got {kwargs}")
