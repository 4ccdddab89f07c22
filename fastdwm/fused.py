"""The imagined return by the fused operators: the same objective as `rollout.py`, with its gradient derived by hand."""

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.kernels.frozen_mlp import pack_frozen_mlp
from fastdwm.kernels.reverse_step import pack_chain
from fastdwm.kernels.rollout import RolloutModels, rollout_gradient, rollout_value
from fastdwm.nets import Params
from fastdwm.rollout import World


class FusedObjective:
    """J of B policies and its gradient, an `itpo.Objective`. Packs the frozen models once."""

    def __init__(self, world: World, config: ITPOConfig, precision: str = "ieee"):
        """precision: operands of every product, "ieee", "tf32" or "bf16"; sums and states stay float32."""
        dynamics, limits = world.dynamics, world.limits
        obs_dim, action_dim = len(dynamics.obs_mean), world.critics["w0"].shape[1] - len(dynamics.obs_mean)
        chain = pack_chain(dynamics.params, dynamics.embedding, dynamics.coefficients, obs_dim, action_dim, precision)
        self.models = RolloutModels(
            chain=chain,
            reward=pack_frozen_mlp(single(world.reward.params), precision=precision),
            critics=pack_frozen_mlp(world.critics, reduce=config.terminal_value, precision=precision),
            obs_mean=dynamics.obs_mean,
            obs_std=dynamics.obs_std,
            delta_mean=dynamics.delta_mean,
            delta_std=dynamics.delta_std,
            discount=world.discount,
            limits=tuple((limit.index, limit.low, limit.high) for limit in limits),
            termination=config.termination,
            width=tuple(config.termination_temperature * float(dynamics.obs_std[limit.index]) for limit in limits),
            anchor_coef=config.anchor_coef,
        )

    @torch.no_grad()
    def value(self, params: Params, base: Params, obs: Tensor, noise: Tensor) -> Tensor:
        return rollout_value(self.models, params, base, obs, noise)

    @torch.no_grad()
    def gradient(self, params: Params, base: Params, obs: Tensor, noise: Tensor) -> tuple[Tensor, Params]:
        return rollout_gradient(self.models, params, base, obs, noise)


def single(params: Params) -> Params:
    """One network as a stack of one."""
    return {name: value.unsqueeze(0) for name, value in params.items()}
