"""The settings of the reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, within
from fastdwm.env_config import EnvConfig

BUNDLE = "BUNDLE", "folder of a bundle, or a task: a name such as hopper-medium, or the Minari id that train got"
"""name and help text of the argument of two reports"""


@dataclass(frozen=True)
class ReportConfig(EnvConfig):
    """The held-out data and the sample sizes."""

    dataset: str | None = None
    """Minari id or D4RL .hdf5 file whose held-out episodes are used; none: fresh episodes of the base policy"""
    holdout: Annotated[float | None, within("(0, 1)")] = None
    """share of the dataset's episodes to use, at most what the training held out; none: the share in the bundle, or
    0.05"""
    episodes: Annotated[int, POSITIVE] = 10
    """number of fresh episodes, without --dataset"""
    max_steps: Annotated[int, POSITIVE] = 300
    """limit on the environment steps of a fresh episode"""
    action_noise: Annotated[float, NOT_NEGATIVE] = 0.1
    """standard deviation of the Gaussian noise on the actions of fresh episodes; more noise measures the models further
    from the base policy"""
    seed: Annotated[int | None, NOT_NEGATIVE] = None
    """seed of all random draws, and environment seed of the first fresh episode; none: 40000, or with --dataset the
    training's seed"""
    gradients: bool = True
    """also compare the models' gradients with the simulator's, which must be able to start from any observation; use
    --no-gradients for other simulators"""
    jacobian_states: Annotated[int, POSITIVE] = 200
    """number of held-out transitions at which the Jacobians of one step are compared"""
    return_states: Annotated[int, POSITIVE] = 100
    """number of held-out states from which the gradients of the return are compared"""
    particles: Annotated[int, POSITIVE] = 16
    """imagined rollouts over which a model's gradient is averaged (M)"""
    out: Path = Path("results")
    """folder for the JSON and the picture"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch"""


@dataclass(frozen=True)
class DeviationConfig(EnvConfig):
    """The data, and whether the result is saved in the bundle."""

    dataset: str | None = None
    """Minari id or D4RL .hdf5 file; none: the dataset that the bundle was trained on"""
    write: bool = True
    """write the maximum deviation into the bundle, where agents read it; with --no-write it is only printed"""


@dataclass(frozen=True)
class PaperConfig:
    """The folder of the report."""

    out: Path = Path("results/paper")
    """folder for paper.md, paper.csv, paper.json and paper.html"""
