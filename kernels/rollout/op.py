"""The imagined return and its gradient as operators: checks, then the execution by torch or by kernels."""

from types import ModuleType

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_precision, check_tensor
from fastdwm_kernels.rollout import imagine, score
from fastdwm_kernels.rollout.gradient import Gradient
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.rollout.score import Score
from fastdwm_kernels.sampler.op import has_cpu_kernels


@torch.no_grad()
def rollout_value(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) of B policies, each from its own state: the mean over M rollouts of H rewards and a terminal value.

    params: flat policy parameters (B, P).   obs: (B, S), raw units.
    noise: (H, K, B, M, S), standard normal.   All contiguous, of the models' dtype and device.
    Raises ValueError on a wrong shape, stride, device or precision, TypeError on a wrong dtype.
    """
    check(models, obs, noise, params)
    return ops_of(models).value(models, returns, params, obs, noise)


@torch.no_grad()
def rollout_gradient(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
    """J and its gradient with respect to the policy parameters; arguments as in `rollout_value`.

    The gradient is derived by hand, without an autograd tape, so the results carry no gradients.
    """
    check(models, obs, noise, params)
    return ops_of(models).gradient(models, returns, params, obs, noise)


@torch.no_grad()
def score_value(models: RolloutModels, scored: Score, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """A score (B,) of the same rollouts; arguments as in `rollout_value`.

    scored: maps states (H + 1, B, M, S) and actions (H + 1, B, M, A) to (B,); the last action changes no state.
    """
    check(models, obs, noise, params)
    return score.value(ops_of(models), models, scored, params, obs, noise)


@torch.no_grad()
def score_gradient(models: RolloutModels, scored: Score, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
    """A score and its gradient as in `rollout_gradient`; autograd differentiates only `scored` itself, plain torch."""
    check(models, obs, noise, params)
    return score.gradient(ops_of(models), models, scored, params, obs, noise)


def ops_of(models: RolloutModels) -> ModuleType:
    """The module with `value`, `gradient` and `Rollout`: on a GPU by Triton, in float32 on a CPU by numba, otherwise by
    the references."""
    if models.obs_mean.is_cuda:
        from fastdwm_kernels.rollout import triton_ops

        return triton_ops
    if has_cpu_kernels(models.sampler):
        from fastdwm_kernels.rollout import cpu_ops

        return cpu_ops
    return imagine


def check(models: RolloutModels, obs: Tensor, noise: Tensor, params: Tensor) -> None:
    sampler = models.sampler
    check_precision(sampler.precision, obs.is_cuda)
    check_tensor("obs", obs, (None, sampler.obs_dim), sampler.dtype, sampler.device)
    check_tensor("params", params, (len(obs), models.policy.width), sampler.dtype, sampler.device)
    shape = (None, sampler.steps, len(obs), None, sampler.obs_dim)
    check_tensor("noise", noise, shape, sampler.dtype, sampler.device)
