"""Settings of the models: their sizes, and how they are fitted.

The line under a field is its help text on the command line; nothing here imports torch.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fastdwm.checks import (
    require,
    require_at_most,
    require_choices,
    require_in,
    require_not_negative,
    require_positive,
    require_widths,
)
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
        require_not_negative(self, "actor_bc_coef", "critic_bc_coef", "target_noise", "target_noise_clip")
        require_in(self, "(0, 1)", "discount")
        require_in(self, "(0, 1]", "target_rate")
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
        require_in(self, "(0, 1]", "ema_rate")


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
        require_not_negative(self, "policy_tilt")
        require_in(self, "[-1e6, 1e6]", "value_tilt")
        require_in(self, "[0, 1]", "equal_share", "temperature")
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
