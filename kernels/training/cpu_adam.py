"""Adam on a flat buffer: the norm of the gradient, and the step with the clipped gradient, in one pass each."""

import math

import numpy as np
from numpy import sqrt
from torch import Tensor

from fastdwm_kernels.cpu import ROW, kernel, noinline, run, square_of

CHUNK = 4096
"""elements of an item"""


@kernel(ROW, ROW)
def sums_of_squares(start, stop, grads, sums):
    """Write sums (chunks,) of the squared gradient."""
    for item in range(start, stop):
        sums[item] = square_of(grads[item * CHUNK : (item + 1) * CHUNK])


@kernel(ROW, ROW, ROW, ROW, ROW)
def step(start, stop, values, grads, mean, square, scalars):
    """One Adam step of flat parameters and the moments of their gradient, in place.

    scalars: factor on the gradient, 1 - beta1, beta2, 1 - beta2, step size / bias of the mean, 1 / sqrt(bias of the
    square), epsilon.
    """
    noinline()
    factor, follow, keep, take = scalars[0], scalars[1], scalars[2], scalars[3]
    rate, unbias, epsilon = scalars[4], scalars[5], scalars[6]
    for item in range(start, stop):
        low, high = item * CHUNK, min((item + 1) * CHUNK, len(values))
        x, g, m, v = values[low:high], grads[low:high], mean[low:high], square[low:high]
        for i in range(len(x)):
            grad = factor * g[i]
            m[i] += follow * (grad - m[i])
            v[i] = keep * v[i] + take * grad * grad
            x[i] -= rate * m[i] / (sqrt(v[i]) * unbias + epsilon)


def gradient_norm(grads: Tensor) -> float:
    """Norm of a gradient."""
    sums = np.empty(-(-grads.numel() // CHUNK), np.float32)
    run(sums_of_squares, len(sums), CHUNK, grads.numpy().reshape(-1), sums, smallest=1)
    return math.sqrt(sums.sum(dtype=np.float64))


def adam_step(values: Tensor, grads: Tensor, mean: Tensor, square: Tensor, scalars: list[float]) -> None:
    """`step` on tensors of the same shape."""
    flat = [tensor.numpy().reshape(-1) for tensor in (values, grads, mean, square)]
    run(step, -(-values.numel() // CHUNK), CHUNK, *flat, np.array(scalars, np.float32), smallest=1)
