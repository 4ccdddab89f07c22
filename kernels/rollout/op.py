"""The imagined return and its gradient as operators: checks, then the torch composition or the kernels' one."""

from torch import Tensor

from fastdwm.kernels.contract import check_tensor
from fastdwm.kernels.layout import Params
from fastdwm.kernels.rollout.reference import RolloutModels, rollout_gradient_reference, rollout_value_reference


def rollout_value(models: RolloutModels, params: Params, base: Params, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) of B policies, each in its own state: mean over M imagined rollouts of H steps and a terminal value.

    params, base: policy parameters (B, ...); base is read with an anchor penalty only.   obs: (B, S), raw units.
    noise: (H, K, B, M, S), standard normal.   All contiguous, of the models' dtype and device.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    check(models, obs, noise)
    return rollout_value_reference(models, params, base, obs, noise)


def rollout_gradient(
    models: RolloutModels, params: Params, base: Params, obs: Tensor, noise: Tensor
) -> tuple[Tensor, Params]:
    """J (B,) and its gradient (B, ...) with respect to every policy parameter; arguments as in `rollout_value`.

    Derived by hand, without an autograd tape: the results carry no gradients.
    """
    check(models, obs, noise)
    return rollout_gradient_reference(models, params, base, obs, noise)


def check(models: RolloutModels, obs: Tensor, noise: Tensor) -> None:
    chain = models.chain
    check_tensor("obs", obs, (None, chain.obs_dim), chain.dtype, chain.device)
    shape = (None, chain.steps, len(obs), None, chain.obs_dim)
    check_tensor("noise", noise, shape, chain.dtype, chain.device)
