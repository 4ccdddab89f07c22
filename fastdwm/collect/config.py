"""What a collection is asked for: the simulator, the policies with their shares, and how much."""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked, at_most, require
from fastdwm.envs import EnvSpec, read_spec
from fastdwm.errors import InputError
from fastdwm.tasks import get_task

ROBOTS = ("halfcheetah", "hopper", "walker2d")
MAX_TRANSITIONS = 10**9


@dataclass(frozen=True)
class CollectConfig(Checked):
    """How a dataset is made. Raises InputError for values that cannot be."""

    policy: tuple[str, ...]
    """what acts, WHAT or WHAT:SHARE, once for each policy: an .onnx file (inputs: observations and, if it is to draw
    its actions, standard normal `noise`; output: `action`), the folder of a bundle or the name of a shipped one (its
    base policy), or `random`; the share is 1 where none is given, and shares need not add up to 1"""
    out: str
    """Minari id of the new dataset, such as mine/hopper/medium-v0, in $MINARI_DATASETS_PATH (~/.minari/datasets)"""
    transitions: Annotated[int, POSITIVE, at_most(MAX_TRANSITIONS)] = 1_000_000
    """to record, in whole episodes: up to one episode more for every policy"""
    shares: Literal["transitions", "episodes"] = "transitions"
    """transitions: each policy records its share of the transitions, one policy after the other; episodes: the policies
    take turns, and each has its share of the episodes, however long they are"""
    noise: Annotated[float, NOT_NEGATIVE] = 0.0
    """standard deviation of Gaussian noise on the actions of policies that draw nothing themselves, cut to [-1, 1]"""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """of everything that is drawn: the same seed gives the same dataset, whatever the number of workers"""
    workers: Annotated[int, POSITIVE] = 2
    """processes, of one thread each"""
    env_kwargs: str = "{}"
    """arguments of the simulator as JSON, such as '{"xml_file": "walker2d.xml"}'"""
    trust_env: bool = False
    """take any simulator of Gymnasium and any argument; otherwise only those that are known"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.policy), "policy: expected at least one")
        require(math.isfinite(self.noise), f"noise: expected a finite number, got {self.noise}")
        for text in self.policy:
            split_share(text)
        check_id(self.out)


def split_share(text: str) -> tuple[str, float]:
    """Policy and share of `WHAT[:SHARE]`; InputError for a share that is no positive number."""
    what, _, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        # A colon may be part of a file's name.
        return text, 1.0
    if not what:
        return text, 1.0
    require(math.isfinite(value) and value > 0, f"policy: expected a positive share, got {share} in {text}")
    return what, value


def check_id(out: str) -> None:
    """Raise InputError unless Minari takes it as the id of a dataset."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(out)
    # It raises TypeError for an id without version.
    except (ValueError, TypeError):
        raise InputError(f"out: expected a Minari id, [NAMESPACE/]NAME-vNUMBER, got {out!r}") from None


def read_env(name: str, kwargs: str, trust_env: bool = False) -> EnvSpec:
    """The simulator of one of ROBOTS, or with an id of Gymnasium; kwargs: JSON of its constructor's arguments.

    Raises InputError for what `envs` does not know, unless it is trusted.
    """
    try:
        values = json.loads(kwargs)
    except (ValueError, RecursionError) as error:
        raise InputError(f"env_kwargs: expected JSON ({error})") from None
    require(isinstance(values, dict), f"env_kwargs: expected a JSON object, got {kwargs}")
    own = get_task(f"{name}-medium").env if name in ROBOTS else None
    spec = {"id": own.id if own else name, "kwargs": values, "max_episode_steps": own and own.max_episode_steps}
    return read_spec(spec, trust_env, own)
