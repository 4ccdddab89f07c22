"""Settings of the models: their sizes and their training.

The line under a field is its help text on the command line; nothing here imports torch.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, WIDTHS, Checked, at_most, multiple_of, within
from fastdwm.tasks import Task


@dataclass(frozen=True)
class MLPSpec(Checked):
    """Architecture of an MLP from another library: hidden layers, all with the same activation."""

    hidden: Annotated[tuple[int, ...], WIDTHS]
    """hidden widths"""
    activation: Literal["relu", "tanh"] = "relu"
    """function of the hidden layers"""
    layer_norm: bool = False
    """whether a layer norm follows every activation"""


@dataclass(frozen=True)
class PolicySpec(MLPSpec):
    """Architecture of a policy."""

    output: Literal["tanh", "clip"] = "tanh"
    """function from the last layer to the action: tanh, or clipping at -1 and 1"""


@dataclass(frozen=True)
class CriticSpec(MLPSpec):
    """Architecture of an ensemble of critics, each with one output."""

    copies: Annotated[int, POSITIVE, at_most(1000)] = 2
    """number of critics"""


@dataclass(frozen=True)
class ReBRACConfig(Checked):
    """Offline training of the policy and its twin critics; defaults as in the paper's runs."""

    updates: Annotated[int, POSITIVE, at_most(1e9)] = 1_000_000
    """critic updates; the policy and the target networks are updated on every `policy_period`-th"""
    batch_size: Annotated[int | None, POSITIVE, at_most(1e9)] = None
    """transitions per update; none: the task's"""
    actor_bc_coef: Annotated[float | None, NOT_NEGATIVE, at_most(1e6)] = None
    """weight of the behaviour-cloning term in the actor loss (b1); none: the task's"""
    critic_bc_coef: Annotated[float | None, NOT_NEGATIVE, at_most(1e6)] = None
    """weight of the next-action penalty in the critic target (b2); none: the task's"""
    discount: Annotated[float | None, within("(0, 1)")] = None
    """gamma, also that of the imagined return; none: the task's"""
    actor_lr: Annotated[float | None, POSITIVE, at_most(1e3)] = None
    """Adam learning rate of the policy; none: the task's"""
    critic_lr: Annotated[float | None, POSITIVE, at_most(1e3)] = None
    """Adam learning rate of the critics; none: the task's"""
    lr_decay: bool = False
    """decay both learning rates to zero along a cosine; the paper keeps them constant (bench/results/training.md)"""
    target_rate: Annotated[float, within("(0, 1]")] = 5e-3
    """rate of the target networks' moving average (tau)"""
    policy_period: Annotated[int, POSITIVE, at_most(1e9)] = 2
    """critic updates per policy update"""
    target_noise: Annotated[float, NOT_NEGATIVE, at_most(1e3)] = 0.2
    """standard deviation of the smoothing noise on the target action"""
    target_noise_clip: Annotated[float, NOT_NEGATIVE, at_most(1e3)] = 0.5
    """absolute value at which the smoothing noise is clipped"""
    hidden: Annotated[tuple[int, ...], WIDTHS] = (256, 256, 256)
    """hidden widths of policy and critics"""
    n_step: Annotated[int, POSITIVE, at_most(1000)] = 1
    """recorded steps in the critics' target; 10 to 30 carry a sparse reward far in few updates"""
    return_bound: bool = False
    """raise the critics' target to the recorded return where that is larger; for sparse rewards >= 0 that depend little
    on luck"""
    advantage_power: Annotated[float, NOT_NEGATIVE, at_most(100)] = 0.0
    """weight behaviour cloning by (critics' target / value of the policy) to this power, at most 3, so that it follows
    the better of the recorded actions; for rewards >= 0. 0: all alike"""

    @property
    def policy(self) -> PolicySpec:
        """Architecture of its policy."""
        return PolicySpec(self.hidden)

    @property
    def critics(self) -> CriticSpec:
        """Architecture of its critics."""
        return CriticSpec(self.hidden, layer_norm=True)

    def for_task(self, task: Task) -> "ReBRACConfig":
        """Replace the settings that are None by the task's own."""
        names = ("batch_size", "actor_bc_coef", "critic_bc_coef", "discount", "actor_lr", "critic_lr")
        return replace(self, **{name: getattr(task, name) for name in names if getattr(self, name) is None})


@dataclass(frozen=True)
class FitConfig(Checked):
    """Settings of a supervised fit."""

    updates: Annotated[int, POSITIVE, at_most(1e9)] = 200_000
    """gradient steps"""
    batch_size: Annotated[int, POSITIVE, at_most(1e9)] = 2048
    """transitions per gradient step"""
    lr: Annotated[float, POSITIVE, at_most(1e3)] = 3e-4
    """Adam learning rate, decayed to zero along a cosine"""
    hidden: Annotated[tuple[int, ...], WIDTHS] = (512, 512, 512)
    """hidden widths"""
    grad_clip: Annotated[float, POSITIVE, at_most(1e9)] = 1.0
    """norm to which the gradient of all parameters together is clipped"""


@dataclass(frozen=True)
class WorldConfig(FitConfig):
    """Settings of the fit of a world model, which keeps a moving average of the weights."""

    ema_rate: Annotated[float, within("(0, 1]")] = 0.005
    """rate of the moving average of the weights"""


@dataclass(frozen=True)
class DiffusionConfig(WorldConfig):
    """Conditional diffusion model of the next observation."""

    denoise_steps: Annotated[int, POSITIVE, at_most(1e3)] = 10
    """network calls per imagined transition (K)"""
    target: Literal["eps", "x0"] = "eps"
    """output of the network: the noise (as in the paper) or the clean target"""
    time_features: Annotated[int, multiple_of(2), at_most(1e3)] = 16
    """sinusoidal features of the diffusion step, an even number"""


@dataclass(frozen=True)
class MeanFlowConfig(WorldConfig):
    """Conditional one-step MeanFlow model of the next observation."""

    target: Literal["x", "u"] = "x"
    """output of the network: the clean target, or the average velocity (as in the MeanFlow paper)"""
    objective: Literal["imf", "mf"] = "imf"
    """direction of the derivative in the loss: the predicted velocity (improved MeanFlow) or the sampled one"""
    time_law: Literal["uniform", "logit_normal"] = "uniform"
    """distribution of the two flow times in training; logit_normal, the MeanFlow paper's, is sigmoid(-0.4 + N(0, 1))"""
    equal_share: Annotated[float, within("[0, 1]")] = 0.5
    """fraction of the batch with two equal times, which is plain flow matching"""
    tilt: Literal["none", "policy", "value"] = "policy"
    """weights of the transitions: equal, large near the policy's actions, or by the value of the next state relative to
    its mean"""
    policy_tilt: Annotated[float | None, NOT_NEGATIVE, at_most(1e6)] = None
    """strength of the policy tilt (kappa); none: the largest with an effective sample size of half the data"""
    value_tilt: Annotated[float, within("[-1e6, 1e6]")] = -0.5
    """strength of the value tilt (beta), negative is pessimistic"""
    time_features: Annotated[int, multiple_of(4), at_most(1e3)] = 16
    """sinusoidal features of the two flow times, a multiple of four"""
    steps: Literal[1, 2, 4] = 1
    """network calls per imagined transition"""
    temperature: Annotated[float, within("[0, 1]")] = 1.0
    """scale of the noise that a sample starts from (tau); 0: deterministic"""

    def equal_rows(self, batch_size: int) -> int:
        """Number of rows with equal times, the first of a batch; it is fixed, so that the split is static."""
        return round(self.equal_share * batch_size)


@dataclass(frozen=True)
class MLPConfig(WorldConfig):
    """Regression of the next observation: the plain baseline of the world models."""


@dataclass(frozen=True)
class RewardConfig(FitConfig):
    """Regression of the reward on observation and action."""
