"""Settings of `python -m fastdwm.train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, require, within
from fastdwm.env_config import EnvConfig
from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig


@dataclass(frozen=True)
class TrainConfig(EnvConfig):
    """Settings of training a bundle on a dataset: policy and critics, world models, reward model, report."""

    dataset: str | None = None
    """Minari dataset id, or a D4RL .hdf5 file; none: the task's own Minari dataset"""
    policy: str | None = None
    """policy of another library to keep, as KIND:FILE with sb3, d3rlpy, corl, cleanrl or onnx as the kind; none: ReBRAC
    trains one"""
    critic: Literal["fqe"] | None = None
    """critics beside --policy; fqe: train new ones by fitted Q evaluation of this policy, with the settings of rebrac;
    none: the file's, or new ones if it has none"""
    out: Path | None = None
    """folder of the run and its bundle; none: runs/<task>"""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """seed of all randomness; the same seed gives the same weights on the same machine"""
    holdout: Annotated[float, within("(0, 1)")] = 0.05
    """fraction of the episodes that the models do not learn from, kept to measure their errors"""
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
    """dtype in which the bundle stores the weights, float32 with --policy; the report measures the stored ones"""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """reward model"""
    log_every: Annotated[int, POSITIVE] = 1000
    """updates between two lines of metrics"""
    save_every: Annotated[int, POSITIVE] = 5000
    """updates between two checkpoints"""
    keep_checkpoints: Annotated[int, NOT_NEGATIVE] = 0
    """number of policies, with their critics, to keep at even intervals of their training: policy-UPDATE.safetensors in
    the run's folder, for `eval --checkpoint`"""
    eval_episodes: Annotated[int, NOT_NEGATIVE] = 5
    """real episodes of the policy at each tenth of its training, for the log only; 0: none"""
    fqe_updates: Annotated[int, NOT_NEGATIVE] = 5000
    """updates of fitted Q evaluation, whose values the report compares with the critics'; 0: none"""
    tensorboard: bool = False
    """also write the metrics as TensorBoard events (needs the package tensorboard)"""
    threads: Annotated[int | None, POSITIVE] = None
    """CPU threads of torch; none: torch's default"""
    device: str = "cpu"
    """device of the training: cpu, cuda or cuda:N"""
    ref_scores: tuple[float, float] | None = None
    """returns that score 0 and 100; none: those of the named task or in the dataset's metadata, else scores are plain
    returns"""
    limits: Path | None = None
    """TOML file of the healthy region, tables [[limits]] with index (of the observation), low and high: leaving it
    terminates an episode, for --itpo.termination; none: the named task's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.ref_scores or (0, 1)
        require(low < high, f"ref_scores: expected MIN < MAX, got {low:g} {high:g}")
        require(self.worlds != (), "worlds: expected at least one world model")
        require(self.critic is None or self.policy is not None, "critic: expected --policy KIND:FILE beside it")

    def world(self, name: str, kind: type) -> Any:
        """Settings of a world model: the field of its name, or the defaults of `kind` without such a field."""
        return getattr(self, name, None) or kind()
