"""The imagined return by the fused operators: the objective of `rollout.py` with a hand-derived gradient."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.itpo.rollout import Score, require_plain, scored
from fastdwm.models.policy import Policy
from fastdwm.models.rebrac import Critics
from fastdwm.models.reward import RewardModel
from fastdwm.models.world import SamplerDynamics, World
from fastdwm_kernels.checks import operands
from fastdwm_kernels.frozen_mlp import pack_frozen_mlp
from fastdwm_kernels.frozen_mlp.op import layout_of
from fastdwm_kernels.policy.op import check_layout
from fastdwm_kernels.rollout import (
    Gradient,
    Return,
    RolloutModels,
    rollout_gradient,
    rollout_value,
    score_gradient,
    score_value,
)
from fastdwm_kernels.rollout.op import ops_of
from fastdwm_kernels.sampler import pack_sampler

SAMPLER = ("sampler", "sampler_noise", "obs_mean", "obs_std", "delta_mean", "delta_std")
"""attributes of a `SamplerDynamics` that other `Dynamics` may lack"""


def obstacles(policy: Policy, world: World, score: Score | None) -> list[str]:
    """List why the fused operators cannot run these parts; empty if they can."""
    reasons = ["the policy is no MLP of ReLU or tanh layers, without layer norm, and a tanh or a clip to [-1, 1]"]
    if policy.fused:
        reasons = _refusal("the policy", check_layout, policy.layout, policy.base.is_cuda)
    if missing := [name for name in SAMPLER if not hasattr(world.dynamics, name)]:
        reasons.append(f"the dynamics has no {', '.join(missing)}")
    elif score is None and not _packable(world.reward, world.dynamics):
        reasons.append("the reward is no RewardModel with the dynamics' obs_mean and obs_std")
    if score is None and not isinstance(world.critic, Critics):
        reasons.append("the critic is no Critics")
    elif score is None:
        reasons += _refusal("the critic", layout_of, world.critic.params, world.critic.activation)
    if score is None and world.terminates is not None:
        reasons.append("the world has a `terminates` of its own")
    return reasons


def _refusal(part: str, check: Callable, *args: object) -> list[str]:
    """The message of an operator's check of this part, if it refuses it."""
    try:
        check(*args)
    except ValueError as error:
        return [f"{part} has another form than the operators take: {error}"]
    return []


def _packable(reward: object, dynamics: SamplerDynamics) -> bool:
    """Whether the reward is a RewardModel that normalises observations as the dynamics does."""
    pairs = [(getattr(reward, name, None), getattr(dynamics, name)) for name in ("obs_mean", "obs_std")]
    return isinstance(reward, RewardModel) and all(torch.equal(a, b) for a, b in pairs)


class FusedObjective:
    """J of B policies and its gradient, an `objective.Objective`. Packs the frozen models once."""

    def __init__(
        self,
        policy: Policy,
        world: World,
        config: ITPOConfig,
        score: Score | None = None,
        *,
        precision: str = "auto",
    ):
        """score: as in `imagined_return`; it alone is differentiated by autograd.
        precision: of the operands of every product, "fp16" or "ieee"; sums and states are float32. "auto" is fp16 on a
        GPU and ieee on a CPU.
        Raises InputError if there are `obstacles`, a weight exceeds the range of fp16, or the CPU kernels are not
        installed."""
        require_plain(config, score)
        if reasons := obstacles(policy, world, score):
            raise InputError(f"backend: fused is not possible: {'; '.join(reasons)}")
        if precision == "auto":
            precision = "fp16" if world.dynamics.obs_mean.is_cuda else "ieee"
        self.sampler_noise = world.dynamics.sampler_noise
        self.score = None if score is None else partial(scored, score, world)
        try:
            self.models = rollout_models(policy, world.dynamics, precision)
            self.returns = default_return(world, config, precision) if score is None else None
            ops_of(self.models)
        except (ImportError, ValueError) as error:
            raise InputError(str(error)) from error

    def value(self, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        noise = self.sampler_noise(noise)
        if self.score is None:
            return rollout_value(self.models, self.returns, params, obs, noise)
        return score_value(self.models, self.score, params, obs, noise)

    def gradient(self, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
        noise = self.sampler_noise(noise)
        if self.score is None:
            return rollout_gradient(self.models, self.returns, params, obs, noise)
        return score_gradient(self.models, self.score, params, obs, noise)


def rollout_models(policy: Policy, dynamics: SamplerDynamics, precision: str) -> RolloutModels:
    """The policy's layout and the packed sampler."""
    layout = policy.layout
    operands("policy", policy.base, precision)
    return RolloutModels(
        policy=layout,
        sampler=pack_sampler(*dynamics.sampler(), layout.sizes[0], layout.sizes[-1], precision),
        obs_mean=dynamics.obs_mean,
        obs_std=dynamics.obs_std,
        delta_mean=dynamics.delta_mean,
        delta_std=dynamics.delta_std,
    )


def default_return(world: World, config: ITPOConfig, precision: str) -> Return:
    """Reward, critics and settings of the default objective, packed."""
    obs_std = world.dynamics.obs_std
    index = torch.tensor([limit.index for limit in world.limits], dtype=torch.int64, device=obs_std.device)
    return Return(
        reward=pack_frozen_mlp(world.reward.params, precision=precision),
        critics=pack_frozen_mlp(
            world.critic.params, activation=world.critic.activation, reduce=config.terminal_value, precision=precision
        ),
        discount=world.discount,
        index=index,
        low=obs_std.new_tensor([limit.low for limit in world.limits]),
        high=obs_std.new_tensor([limit.high for limit in world.limits]),
        width=config.termination_temperature * obs_std[index],
        termination=config.termination,
    )
