"""The imagined return by the fused operators: the same objective as `rollout.py`, with its gradient derived by hand."""

from dataclasses import replace

from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.itpo.decision import Adapted
from fastdwm.itpo.rollout import World
from fastdwm.kernels.frozen_mlp import pack_frozen_mlp
from fastdwm.kernels.layout import Layout
from fastdwm.kernels.reverse_step import pack_chain
from fastdwm.kernels.rollout import RolloutModels, rollout_gradient, rollout_value
from fastdwm.kernels.rollout.op import ops_of
from fastdwm.kernels.update import adam_ascent, copy_of, sgd_ascent


class FusedObjective:
    """J of B policies and its gradient, an `itpo.Objective`. Packs the frozen models once."""

    def __init__(self, world: World, layout: Layout, config: ITPOConfig, precision: str | None = None):
        """precision: operands of every product, "ieee", "tf32" or "bf16", with float32 sums and states; none: bf16 on a
        GPU, ieee elsewhere."""
        dynamics, limits = world.dynamics, world.limits
        precision = precision or ("bf16" if dynamics.obs_mean.is_cuda else "ieee")
        chain = pack_chain(*dynamics.chain(), layout.sizes[0], layout.sizes[-1], precision)
        self.chain_noise = dynamics.chain_noise
        self.models = RolloutModels(
            policy=layout,
            chain=chain,
            reward=pack_frozen_mlp(world.reward.params, precision=precision),
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
        try:
            ops_of(self.models)
        except ImportError as error:
            raise InputError(str(error)) from error

    def value(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        return rollout_value(self.models, params, base, obs, self.chain_noise(noise))

    def gradient(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return rollout_gradient(self.models, params, base, obs, self.chain_noise(noise))

    def ascend(self, state: Adapted, grads: Tensor, factor: Tensor | None, config: ITPOConfig) -> Adapted:
        # The operators work in place, but the step may yet be undone.
        params = copy_of(state.params)
        if config.optimiser == "sgd":
            sgd_ascent(params, grads, config.inner_lr, factor=factor)
            return replace(state, params=params)
        moments = [copy_of(moment) for moment in (state.first, state.second, state.count)]
        adam_ascent(params, grads, *moments, config.inner_lr, factor=factor)
        return Adapted(state.layout, params, *moments)
