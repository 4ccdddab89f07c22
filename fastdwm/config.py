"""Every setting of training, imagination and evaluation, as frozen dataclasses.

The line under a field is its help text on the command line. The settings stand apart from the code that uses them so
that `--help` answers before torch is imported.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fastdwm.agent_settings import ITPOConfig
from fastdwm.checks import require, require_at_most, require_choices, require_positive, require_widths
from fastdwm.tasks import Task


@dataclass(frozen=True)
class ReBRACConfig:
    """Offline training of the policy and its twin critics; defaults as in the paper's runs."""

    updates: int = 1_000_000
    """critic updates; the policy and the targets move on every `policy_period`-th"""
    batch_size: int | None = None
    """transitions per update; none: the task's"""
    actor_bc_coef: float | None = None
    """weight of the behaviour-cloning term in the actor loss (b1); none: the task's"""
    critic_bc_coef: float | None = None
    """weight of the next-action penalty in the critic target (b2); none: the task's"""
    discount: float | None = None
    """gamma, also that of the imagined return; none: the task's"""
    actor_lr: float | None = None
    """Adam step size of the policy; none: the task's"""
    critic_lr: float | None = None
    """Adam step size of the critics; none: the task's"""
    lr_decay: bool = False
    """decay both step sizes to zero by a cosine; the paper keeps them constant (bench/results/training.md)"""
    target_rate: float = 5e-3
    """fraction by which the target networks move (tau)"""
    policy_period: int = 2
    """critic updates per policy update"""
    target_noise: float = 0.2
    """std of the smoothing noise on the target action"""
    target_noise_clip: float = 0.5
    """bound of the smoothing noise"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """hidden widths of policy and critics"""

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "updates", "batch_size", "actor_lr", "critic_lr", "policy_period")
        require_at_most(self, 1e9, "updates", "batch_size", "policy_period")
        require_at_most(self, 1e3, "actor_lr", "critic_lr", "target_noise", "target_noise_clip")
        require_at_most(self, 1e6, "actor_bc_coef", "critic_bc_coef")
        for name in ("actor_bc_coef", "critic_bc_coef", "target_noise", "target_noise_clip"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name}: expected a number >= 0, got {value}")
        require(self.discount is None or 0 < self.discount < 1, f"discount: expected in (0, 1), got {self.discount}")
        require(0 < self.target_rate <= 1, f"target_rate: expected a number in (0, 1], got {self.target_rate}")
        require_widths(self.hidden)

    def for_task(self, task: Task) -> "ReBRACConfig":
        """These settings with the task's own where none was given."""
        names = ("batch_size", "actor_bc_coef", "critic_bc_coef", "discount", "actor_lr", "critic_lr")
        return replace(self, **{name: getattr(task, name) for name in names if getattr(self, name) is None})


@dataclass(frozen=True)
class FitConfig:
    """How a network is fitted."""

    updates: int = 200_000
    """gradient steps"""
    batch_size: int = 2048
    """transitions per gradient step"""
    lr: float = 3e-4
    """Adam step size, decayed to zero by a cosine"""
    hidden: tuple[int, ...] = (512, 512, 512)
    """hidden widths"""
    grad_clip: float = 1.0
    """bound of the global gradient norm"""

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "updates", "batch_size", "lr", "grad_clip")
        require_at_most(self, 1e9, "updates", "batch_size", "grad_clip")
        require_at_most(self, 1e3, "lr")
        require_widths(self.hidden)


@dataclass(frozen=True)
class WorldConfig(FitConfig):
    """How a world model is fitted: what is kept is a moving average of the weights."""

    ema_rate: float = 0.005
    """fraction by which the averaged weights follow the trained ones"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.ema_rate <= 1, f"ema_rate: expected a number in (0, 1], got {self.ema_rate}")


@dataclass(frozen=True)
class DiffusionConfig(WorldConfig):
    """Conditional diffusion model of the next observation."""

    denoise_steps: int = 10
    """network calls per imagined transition (K)"""
    target: Literal["eps", "x0"] = "eps"
    """what the network predicts: the noise (as the paper) or the clean target"""
    time_features: int = 16
    """sinusoidal features of the diffusion step, an even number"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "denoise_steps")
        require_at_most(self, 1e3, "denoise_steps", "time_features")
        features = self.time_features
        require(features > 0 and features % 2 == 0, f"time_features: expected an even number > 0, got {features}")


@dataclass(frozen=True)
class MeanFlowConfig(WorldConfig):
    """Conditional one-step MeanFlow model of the next observation."""

    target: Literal["x", "u"] = "x"
    """what the network predicts: the clean target, or the average velocity (as the MeanFlow paper)"""
    objective: Literal["imf", "mf"] = "imf"
    """direction of the derivative in the loss: the predicted velocity (improved MeanFlow) or that of the noise drawn"""
    time_law: Literal["uniform", "logit_normal"] = "uniform"
    """law of the two flow times in training; logit_normal, the MeanFlow paper's, is sigmoid(-0.4 + N(0, 1))"""
    equal_share: float = 0.5
    """share of the batch with two equal times, which is plain flow matching"""
    tilt: Literal["none", "policy", "value"] = "policy"
    """weights of the transitions: equal, large near the policy's actions, or by the outcome's value against the mean"""
    policy_tilt: float | None = None
    """strength of the policy tilt (kappa); none: the largest with an effective sample size of half the data"""
    value_tilt: float = -0.5
    """strength of the value tilt (beta), negative is pessimistic"""
    time_features: int = 16
    """sinusoidal features of the two flow times, a multiple of four"""
    steps: Literal[1, 2, 4] = 1
    """network calls per imagined transition"""
    temperature: float = 1.0
    """scale of the noise that a sample starts from (tau); 0: deterministic"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_most(self, 1e3, "time_features")
        require_at_most(self, 1e6, "policy_tilt")
        require(-1e6 <= self.value_tilt <= 1e6, f"value_tilt: expected in [-1e6, 1e6], got {self.value_tilt}")
        for name in ("equal_share", "temperature"):
            require(0 <= getattr(self, name) <= 1, f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        kappa = self.policy_tilt
        require(kappa is None or kappa >= 0, f"policy_tilt: expected a number >= 0, got {kappa}")
        features = self.time_features
        require(features > 0 and features % 4 == 0, f"time_features: expected a multiple of 4, got {features}")

    def equal_rows(self, batch_size: int) -> int:
        """Rows of a batch, its first ones, whose two times are equal: a fixed number, so that the split is static."""
        return round(self.equal_share * batch_size)


@dataclass(frozen=True)
class MLPConfig(WorldConfig):
    """Regression of the next observation: the plain baseline of the world models."""


@dataclass(frozen=True)
class RewardConfig(FitConfig):
    """Regression of the reward on observation and action."""


BACKENDS = ("auto", "reference", "fused")
PRECISIONS = ("auto", "fp16", "ieee")


@dataclass(frozen=True)
class EpisodesConfig:
    """What evaluations and studies share: how episodes of a bundle's agent are run."""

    bundle: Path | None = None
    """folder of trained weights; none: the one shipped for the task"""
    seed: int = 10_000
    """environment seed of the first episode; episode i uses seed + i"""
    max_steps: int | None = None
    """cut episodes after this many steps; none: the environment's own limit"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision"""
    workers: int = 1
    """processes that share the episodes; results do not depend on it but for rounding"""
    threads: int = 1
    """CPU threads of torch in each process; more pay off from some thousand imagined rows on, and cost dearly on a busy
    machine"""
    device: str = "cpu"
    """where the imagination runs: cpu, cuda or cuda:N"""
    backend: Literal["auto", "reference", "fused"] = "auto"
    """how: plain torch and autograd, or the fused operators with their hand-derived gradients; auto is fused"""
    trust_env: bool = False
    """build whatever simulator the bundle names, with any settings: this may run code that came with it"""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.seed >= 0, f"seed: expected a number >= 0, got {self.seed}")
        require_positive(self, "max_steps", "workers", "threads")


@dataclass(frozen=True)
class EvalConfig(EpisodesConfig):
    """Base policy and ITPO side by side on the same environment seeds."""

    checkpoint: Path | None = None
    """policy and critics of another moment of the training, kept by `train --keep-checkpoints`; none: the bundle's"""
    episodes: int = 10
    """episodes per policy, all adapted in parallel"""
    world: str | None = None
    """world model of the imagination, of those that the bundle holds: diffusion, meanflow, or mlp, plain regression;
    none: as the bundle was tuned, or the first of these"""
    world_steps: int | None = None
    """network calls per imagined transition, of diffusion at most its K, of meanflow 1, 2 or 4; none: the bundle's"""
    temperature: float | None = None
    """scale of meanflow's noise (tau), 0: deterministic; none: the bundle's"""
    precision: Literal["auto", "fp16", "ieee"] = "auto"
    """operands of the products: fp16, on a GPU alone, or float32; auto: fp16 on a GPU, ieee on a CPU"""
    deadline_ms: float | None = None
    """time limit of a decision, for all episodes that decide at once: inner steps that would not fit are left out"""
    control: bool = False
    """run the control in the place of ITPO: the base policy, pushed by max_deviation in a direction that wanders at
    random. What ITPO gains counts as far as it is more than what this gains"""
    diagnose_every: int = 10
    """diagnose (untimed) every this many decisions: imagined return before and after, prediction against outcome"""
    out: Path = Path("results")
    """folder of the JSON, the picture and the video"""
    plot: bool = False
    """save a picture: returns per episode, and the reward collected over time"""
    video: bool = False
    """save the first episode of both policies side by side (needs a headless renderer: MUJOCO_GL=egl)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "episodes", "world_steps", "deadline_ms", "diagnose_every")
        require(0 <= (self.temperature or 0) <= 1, f"temperature: expected in [0, 1], got {self.temperature}")

    @property
    def drifts(self) -> bool:
        """Whether the control runs: where ITPO cannot leave the base policy, neither does its control."""
        return self.control and self.itpo.adapts


@dataclass(frozen=True)
class TrainConfig:
    """From a dataset to a bundle: policy and critics, world model, reward model, world-model report."""

    dataset: str | None = None
    """Minari dataset id, or a D4RL .hdf5 file; none: the task's own Minari dataset"""
    out: Path | None = None
    """folder of the run and its bundle; none: runs/<task>"""
    seed: int = 0
    """seed of every random draw; the same seed gives the same weights on the same machine"""
    holdout: float = 0.05
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
    log_every: int = 1000
    """updates between two lines of metrics"""
    save_every: int = 5000
    """updates between two checkpoints"""
    keep_checkpoints: int = 0
    """policies to keep, with their critics, evenly spaced over their training: policy-UPDATE.safetensors in the run's
    folder, for `eval --checkpoint`"""
    eval_episodes: int = 5
    """real episodes of the policy at each tenth of its training, only to be logged; 0: none"""
    fqe_updates: int = 5000
    """updates of fitted Q evaluation, which tells in the report what the critics should have said; 0: none"""
    tensorboard: bool = False
    """write the metrics as TensorBoard events too (needs the package tensorboard)"""
    threads: int | None = None
    """CPU threads of torch; none: its own choice"""
    device: str = "cpu"
    """where the training runs: cpu, cuda or cuda:N"""
    trust_env: bool = False
    """build whatever simulator the dataset names, with any settings: this may run code that came with it; and take data
    that the simulator does not repeat"""

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.seed >= 0, f"seed: expected a number >= 0, got {self.seed}")
        require(0 < self.holdout < 1, f"holdout: expected a share in (0, 1), got {self.holdout}")
        require(self.worlds != (), "worlds: expected at least one world model")
        require_positive(self, "log_every", "save_every", "threads")
        for name in ("eval_episodes", "fqe_updates", "keep_checkpoints"):
            require(getattr(self, name) >= 0, f"{name}: expected a number >= 0, got {getattr(self, name)}")

    def world(self, name: str, kind: type) -> Any:
        """Settings of a world model: the field of its name, or `kind`'s defaults where there is none."""
        return getattr(self, name, None) or kind()
