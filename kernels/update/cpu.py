"""CPU kernels of the default rule's step and bound, one pass each; the formulas are those of `reference.py`."""

from math import isfinite, sqrt

import torch
from numba import types
from numpy import float32
from torch import Tensor

from fastdwm_kernels.cpu import MATRIX, ROW, SIZE, STACK, helper, kernel, run, square_of
from fastdwm_kernels.memory import recycled


@kernel(MATRIX, MATRIX, MATRIX, STACK, MATRIX, types.float64, SIZE, MATRIX, ROW, MATRIX)
def bound_step(
    start, stop, params, grads, partial_sq_norms, action_grads, memory, scale, n_action_grads, after, norm, new_memory
):
    """Write after (B, P), norm (B,) and new_memory (B, 2).   action_grads: (H + 1, B, M A), n_action_grads per episode.
    scale: action_step (H + 1) A."""
    for i in range(start, stop):
        sq_norm, total = float32(0), float32(0)
        for j in range(partial_sq_norms.shape[1]):
            sq_norm += partial_sq_norms[i, j]
        for j in range(len(action_grads)):
            total += square_of(action_grads[j, i])
        sq_rms = total / float32(n_action_grads)
        gain, mean, count = sq_norm / sq_rms, memory[i, 0], memory[i, 1]
        if isfinite(gain):
            count += float32(1)
            mean += (gain - mean) / count
        factor = float32(scale) / (sqrt(sq_rms) * mean)
        if not isfinite(factor):
            factor = float32(0)
        norm[i], new_memory[i, 0], new_memory[i, 1] = sqrt(sq_norm), mean, count
        for j in range(params.shape[1]):
            after[i, j] = params[i, j] + factor * grads[i, j]


@helper
def deviation_of(action, base_action):
    """Root mean square of action - base_action, each (A,)."""
    total = float32(0)
    for j in range(len(action)):
        change = action[j] - base_action[j]
        total += change * change
    return sqrt(total / float32(len(action)))


@helper
def pull(a, b, share, out):
    """out = b + share (a - b), or a if share >= 1; out may be a."""
    for i in range(len(a)):
        out[i] = b[i] + share * (a[i] - b[i]) if share < float32(1) else a[i]


@kernel(MATRIX, MATRIX, MATRIX, MATRIX, types.float64, MATRIX, MATRIX, ROW)
def pull_back(start, stop, params, base, action, base_action, max_deviation, pulled, clipped, deviation):
    """Write pulled (B, P), clipped (B, A) and deviation (B,).   base: (1, P) or (B, P)."""
    for i in range(start, stop):
        deviation[i] = deviation_of(action[i], base_action[i])
        share = float32(max_deviation) / deviation[i]
        pull(params[i], base[i if len(base) > 1 else 0], share, pulled[i])
        pull(action[i], base_action[i], share, clipped[i])


def bound_step_cpu(
    params: Tensor, grads: Tensor, partial_sq_norms: Tensor, action_grads: Tensor, memory: Tensor, action_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.bound_step`."""
    result = recycled(*params.shape), params.new_empty(len(params)), torch.empty_like(memory)
    n_steps, _, particles, action_dim = action_grads.shape
    sizes = action_step * n_steps * action_dim, n_steps * particles * action_dim
    args = params, grads, partial_sq_norms, action_grads.flatten(2), memory, *sizes
    run(bound_step, len(params), params.shape[1], *args, *result, smallest=1)
    return result


def pull_back_cpu(
    params: Tensor, base: Tensor, action: Tensor, base_action: Tensor, max_deviation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.pull_back`."""
    result = recycled(*params.shape), torch.empty_like(action), action.new_empty(len(action))
    # A base policy that is the same row for all is read once.
    base = base[:1] if base.stride(0) == 0 else base
    args = params, base, action, base_action, max_deviation
    run(pull_back, len(params), params.shape[1], *args, *result, smallest=1)
    return result
