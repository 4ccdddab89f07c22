"""The step of the bound and its limit on a CPU, in one pass each; the formulas are those of `reference.py`."""

from math import isfinite, sqrt

import torch
from numba import types
from numpy import float32
from torch import Tensor

from fastdwm.kernels.compiled import MATRIX, ROW, STACK, helper, kernel, run, summing
from fastdwm.kernels.memory import recycled


@summing
def square_sum(values):
    total = float32(0)
    for i in range(len(values)):
        total += values[i] * values[i]
    return total


@kernel(MATRIX, MATRIX, MATRIX, STACK, types.float64, ROW, MATRIX)
def bound_step(start, stop, params, grads, partial_sq_norms, action_grads, scale, norm, after):
    """norm (B,), and after (B, P).   action_grads: (H + 1, B, M A).   scale: action_step sqrt((H + 1) A / M)."""
    for i in range(start, stop):
        sq_norm, of_actions = float32(0), float32(0)
        for j in range(partial_sq_norms.shape[1]):
            sq_norm += partial_sq_norms[i, j]
        for j in range(len(action_grads)):
            of_actions += square_sum(action_grads[j, i])
        norm[i] = sqrt(sq_norm)
        factor = float32(scale) * sqrt(of_actions) / sq_norm
        if not isfinite(factor):
            factor = float32(0)
        for j in range(params.shape[1]):
            after[i, j] = params[i, j] + factor * grads[i, j]


@helper
def pull(a, b, share, out):
    """out: b + share (a - b), or a for a share of 1 or more."""
    for i in range(len(a)):
        out[i] = b[i] + share * (a[i] - b[i]) if share < float32(1) else a[i]


@kernel(MATRIX, MATRIX, MATRIX, MATRIX, types.float64, MATRIX, MATRIX, ROW)
def pull_back(start, stop, params, base, action, base_action, max_deviation, pulled, clipped, deviation):
    """pulled (B, P), clipped (B, A) and deviation (B,).   base: (1, P) or (B, P)."""
    size = action.shape[1]
    for i in range(start, stop):
        total = float32(0)
        for j in range(size):
            change = action[i, j] - base_action[i, j]
            total += change * change
        deviation[i] = sqrt(total / float32(size))
        share = float32(max_deviation) / deviation[i]
        pull(params[i], base[i if len(base) > 1 else 0], share, pulled[i])
        pull(action[i], base_action[i], share, clipped[i])


def bound_step_compiled(
    params: Tensor, grads: Tensor, partial_sq_norms: Tensor, action_grads: Tensor, action_step: float
) -> tuple[Tensor, Tensor]:
    """Arguments as in `op.bound_step`."""
    norm, after = params.new_empty(len(params)), recycled(*params.shape)
    n_steps, _, particles, action_dim = action_grads.shape
    scale = action_step * (n_steps * action_dim / particles) ** 0.5
    given = params, grads, partial_sq_norms, action_grads.flatten(2), scale
    run(bound_step, len(params), params.shape[1], *given, norm, after, smallest=1)
    return after, norm


def pull_back_compiled(
    params: Tensor, base: Tensor, action: Tensor, base_action: Tensor, max_deviation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.pull_back`."""
    result = recycled(*params.shape), torch.empty_like(action), action.new_empty(len(action))
    # A base policy that is the same row for all is read once.
    base = base[:1] if base.stride(0) == 0 else base
    given = params, base, action, base_action, max_deviation
    run(pull_back, len(params), params.shape[1], *given, *result, smallest=1)
    return result
