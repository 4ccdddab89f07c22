"""The settings of the reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked, within

BUNDLE = "BUNDLE", "folder of a bundle, or the name of a shipped one, for example hopper-medium"
"""the word of two reports, in --help"""


@dataclass(frozen=True)
class ReportConfig(Checked):
    """Held-out data and sample sizes."""

    dataset: str | None = None
    """Minari id or D4RL .hdf5 file whose held-out episodes are used; none: fresh episodes of the base policy"""
    holdout: Annotated[float | None, within("(0, 1)")] = None
    """share of the dataset's episodes that the training held out; none: what the bundle says, or else 0.05"""
    episodes: Annotated[int, POSITIVE] = 10
    """fresh episodes"""
    max_steps: Annotated[int, POSITIVE] = 300
    """fresh episodes are cut after this many steps"""
    action_noise: Annotated[float, NOT_NEGATIVE] = 0.1
    """std of the Gaussian noise on the actions of fresh episodes"""
    seed: Annotated[int | None, NOT_NEGATIVE] = None
    """seed of all draws, and environment seed of the first fresh episode; none: 40000, or the training's"""
    gradients: bool = True
    """compare the models' gradients with the simulator's, which must be able to start from any observation"""
    jacobian_states: Annotated[int, POSITIVE] = 200
    """held-out transitions at which the Jacobians of one step are compared"""
    return_states: Annotated[int, POSITIVE] = 100
    """held-out states from which the gradients of the return are compared"""
    particles: Annotated[int, POSITIVE] = 16
    """noise draws that a model's gradient is averaged over (M)"""
    out: Path = Path("results")
    """folder of the JSON and the picture"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch"""
    trust_env: bool = False
    """build whatever simulator the bundle or dataset names, with any settings: this may run code that came with it; and
    take data that the simulator does not repeat"""


@dataclass(frozen=True)
class DeviationConfig:
    """Which data, and whether the bundle is to hold the result."""

    dataset: str | None = None
    """Minari id or D4RL .hdf5 file; none: the one that the bundle was trained on"""
    write: bool = True
    """write it into the bundle, where agents find it; without, it is only shown"""
    trust_env: bool = False
    """take whatever simulator the bundle or dataset names: this may run code that came with it"""


@dataclass(frozen=True)
class PaperConfig:
    """Where the report goes."""

    out: Path = Path("results/paper")
    """folder of paper.md, paper.csv, paper.json and paper.html"""
