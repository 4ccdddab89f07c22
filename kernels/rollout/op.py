"""The imagined return and its gradient as operators: checks, then the one derivation on torch or on kernels."""

from types import ModuleType

import torch
from torch import Tensor

from fastdwm.kernels.contract import check_tensor
from fastdwm.kernels.reverse_chain.op import on_compiled
from fastdwm.kernels.rollout import imagine
from fastdwm.kernels.rollout.imagine import RolloutModels


@torch.no_grad()
def rollout_value(models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) of B policies, each in its own state: mean over M imagined rollouts of H steps and a terminal value.

    params, base: flat policy parameters (B, P); base is read with an anchor penalty only.   obs: (B, S), raw units.
    noise: (H, K, B, M, S), standard normal.   All contiguous, of the models' dtype and device.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    check(models, params, base, obs, noise)
    return imagine.value(ops_of(models), models, params, base, obs, noise)


@torch.no_grad()
def rollout_gradient(
    models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """J (B,) and its gradient (B, P) with respect to every policy parameter; arguments as in `rollout_value`.

    Derived by hand, without an autograd tape: the results carry no gradients.
    """
    check(models, params, base, obs, noise)
    return imagine.gradient(ops_of(models), models, params, base, obs, noise)


def ops_of(models: RolloutModels) -> ModuleType:
    """Triton's kernels on a GPU, numba's for float32 on a CPU, and the references for all else."""
    if models.chain.device.type == "cuda":
        from fastdwm.kernels.rollout import triton_ops

        return triton_ops
    if on_compiled(models.chain):
        from fastdwm.kernels.rollout import compiled_ops

        return compiled_ops
    from fastdwm.kernels.rollout import torch_ops

    return torch_ops


def check(models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> None:
    chain = models.chain
    check_tensor("obs", obs, (None, chain.obs_dim), chain.dtype, chain.device)
    for name, flat in (("params", params), ("base", base)):
        check_tensor(name, flat, (len(obs), models.policy.width), chain.dtype, chain.device)
    shape = (None, chain.steps, len(obs), None, chain.obs_dim)
    check_tensor("noise", noise, shape, chain.dtype, chain.device)
