"""Settings of `python -m fastdwm.train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked, require, within
from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig


@dataclass(frozen=True)
class TrainConfig(Checked):
    """From a dataset to a bundle: policy and critics, world model, reward model, world-model report."""

    dataset: str | None = None
    """Minari dataset id, or a D4RL .hdf5 file; none: the task's own Minari dataset"""
    out: Path | None = None
    """folder of the run and its bundle; none: runs/<task>"""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """seed of every random draw; the same seed gives the same weights on the same machine"""
    holdout: Annotated[float, within("(0, 1)")] = 0.05
    """share of the episodes kept from the models for their report"""
    rebrac: ReBRACConfig = field(default_factory=ReBRACConfig)
    """policy and critics"""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """world model by diffusion"""
    meanflow: MeanFlowConfig = field(default_factory=MeanFlowConfig)
    """one-step world model"""
    mlp: MLPConfig = field(default_factory=MLPConfig)
    """plain regression as a world model, the baseline"""
    worlds: tuple[str, ...] | None = None
    """world models to train, of diffusion, meanflow and mlp; none: all but the baseline mlp"""
    weights: Literal["float16", "float32"] = "float16"
    """how the bundle holds them; the report is on what it holds"""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """reward model"""
    log_every: Annotated[int, POSITIVE] = 1000
    """updates between two lines of metrics"""
    save_every: Annotated[int, POSITIVE] = 5000
    """updates between two checkpoints"""
    keep_checkpoints: Annotated[int, NOT_NEGATIVE] = 0
    """policies to keep, with their critics, evenly spaced over their training: policy-UPDATE.safetensors in the run's
    folder, for `eval --checkpoint`"""
    eval_episodes: Annotated[int, NOT_NEGATIVE] = 5
    """real episodes of the policy at each tenth of its training, only to be logged; 0: none"""
    fqe_updates: Annotated[int, NOT_NEGATIVE] = 5000
    """updates of fitted Q evaluation, which tells in the report what the critics should have said; 0: none"""
    tensorboard: bool = False
    """write the metrics as TensorBoard events too (needs the package tensorboard)"""
    threads: Annotated[int | None, POSITIVE] = None
    """CPU threads of torch; none: its own choice"""
    device: str = "cpu"
    """where the training runs: cpu, cuda or cuda:N"""
    trust_env: bool = False
    """build whatever simulator the dataset names, with any settings: this may run code that came with it; and take data
    that the simulator does not repeat"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.worlds != (), "worlds: expected at least one world model")

    def world(self, name: str, kind: type) -> Any:
        """Settings of a world model: the field of its name, or `kind`'s defaults where there is none."""
        return getattr(self, name, None) or kind()
