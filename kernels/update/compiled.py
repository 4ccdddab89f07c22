"""A step no longer than its bound on a CPU, in one pass; the formula is that of `reference.py`."""

from math import inf, isfinite, sqrt

import torch
from numba import types
from numpy import float32
from torch import Tensor

from fastdwm.kernels.compiled import MATRIX, ROW, kernel, run
from fastdwm.kernels.memory import recycled

ONE = float32(1)


@kernel(MATRIX, MATRIX, MATRIX, ROW, ROW, types.boolean, ROW, MATRIX)
def step_along(start, stop, params, grads, squares, step, bound, finite, norm, after):
    """norm (B,), and after (B, P); a factor that is not finite counts as 0 if only a finite one is wanted."""
    for i in range(start, stop):
        total = float32(0)
        for j in range(squares.shape[1]):
            total += squares[i, j]
        norm[i] = sqrt(total)
        share = bound[i] / norm[i]
        # NaN stays.
        factor = step[i] * (ONE if share > ONE else share)
        if finite and not isfinite(factor):
            factor = float32(0)
        for j in range(params.shape[1]):
            after[i, j] = params[i, j] + factor * grads[i, j]


def bounded_step_compiled(
    params: Tensor, grads: Tensor, squares: Tensor, step: Tensor | None, bound: Tensor | None, lr: float, clip: float
) -> tuple[Tensor, Tensor]:
    """Arguments as in `bounded_step_reference`."""
    norm, after, finite = params.new_empty(len(params)), recycled(*params.shape), step is not None
    if not finite:
        step, bound = torch.full_like(norm, lr), torch.full_like(norm, clip if clip > 0 else inf)
    run(step_along, len(params), params.shape[1], params, grads, squares, step, bound, finite, norm, after, smallest=1)
    return after, norm
