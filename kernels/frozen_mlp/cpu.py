"""Frozen scalar networks on a CPU: value and gradient in one pass, block of rows by block of rows.

The formulas are those of `reference.py`. The gradient is that of the value itself: an upstream gradient multiplies it
afterwards, and no activation outlives its block.
"""

from numba import types
from numpy import empty, float32, int64, isnan, sqrt

from fastdwm_kernels.cpu import (
    LAYERS,
    MATRIX,
    ROW,
    ROW_BLOCK,
    affine,
    affine_vjp,
    fill,
    helper,
    kernel,
    relu,
    rows_of,
    scale,
    summing,
    vector,
)
from fastdwm_kernels.frozen_mlp import reference

NORM_EPS = float32(reference.NORM_EPS)


@helper
def reduce(values, least, value):
    """value (n,), mean or least of values (Q, n, 1), and the share (Q, n) of each copy in its gradient."""
    n_copies, n = values.shape[:2]
    shares = empty((n_copies, n), float32)
    for i in range(n):
        owner, total = 0, float32(0)
        for q in range(n_copies):
            shares[q, i] = float32(0) if least else float32(1) / float32(n_copies)
            total += values[q, i, 0] * shares[q, i]
            # NaN is the least, as in torch, and stays it.
            if values[q, i, 0] < values[owner, i, 0] or isnan(values[q, i, 0]):
                owner = q
        if least:
            shares[owner, i], total = float32(1), values[owner, i, 0]
        value[i] = total
    return shares


@helper
def scalar_forward(layers, flat, kinds, x, act_derivs, normal, rstd, value):
    """value (n, 1) of one copy, act_derivs of its activations, and what a layer norm makes before scale and shift."""
    h, n, last = x, len(x), len(layers) - 1
    for i in range(last):
        z = empty((n, layers[i, 1]), float32)
        affine(h, flat, layers[i], z)
        relu(z, rows_of(act_derivs, layers[i], 0, n, n))
        if kinds[0]:
            gain, shift = vector(flat, layers[i], 1), vector(flat, layers[i], 2)
            normalise(z, gain, shift, rows_of(normal, layers[i], 0, n, n), rstd[i])
        h = z
    affine(h, flat, layers[last], value)


@summing
def normalise(z, gain, shift, normal, rstd):
    """Layer norm of every row of z, in place; normal: before scale and shift."""
    d = z.shape[1]
    for i in range(len(z)):
        mean = square = float32(0)
        for j in range(d):
            mean += z[i, j]
        mean /= float32(d)
        for j in range(d):
            square += (z[i, j] - mean) * (z[i, j] - mean)
        rstd[i] = float32(1) / sqrt(square / float32(d) + NORM_EPS)
        for j in range(d):
            normal[i, j] = (z[i, j] - mean) * rstd[i]
            z[i, j] = normal[i, j] * gain[j] + shift[j]


@summing
def normalise_vjp(dh, gain, normal, rstd, rows):
    """dh (m, d) becomes the gradient of what was normalised in the given rows."""
    d = dh.shape[1]
    for i, row in enumerate(rows):
        # As rows of their own: an index that may be negative keeps the compiler from using vectors.
        grad, was, mean, along = dh[i], normal[row], float32(0), float32(0)
        for j in range(d):
            mean += grad[j] * gain[j]
            along += grad[j] * gain[j] * was[j]
        mean, along = mean / float32(d), along / float32(d)
        for j in range(d):
            grad[j] = rstd[row] * (grad[j] * gain[j] - mean - was[j] * along)


@helper
def scalar_backward(layers, flat, flat_t, kinds, saved, share, dx):
    """dx (n, d_in) += share times the gradient of one copy's value, for the rows with a share (n,) alone."""
    act_derivs, normal, rstd = saved
    n, last, rows, m = len(dx), len(layers) - 1, empty(len(dx), int64), 0
    for i in range(n):
        if share[i] != 0:
            rows[m] = i
            m += 1
    rows = rows[:m]
    dz = empty((m, 1), float32)
    for i in range(m):
        dz[i, 0] = share[rows[i]]
    for i in range(last, -1, -1):
        dh = empty((m, layers[i, 0]), float32)
        affine_vjp(dz, flat_t, layers[i], dh)
        if i > 0:
            below = layers[i - 1]
            if kinds[0]:
                normalise_vjp(dh, vector(flat, below, 1), rows_of(normal, below, 0, n, n), rstd[i - 1], rows)
            scale_by_rows(dh, rows_of(act_derivs, below, 0, n, n), rows)
        dz = dh
    for i in range(m):
        for j in range(dx.shape[1]):
            dx[rows[i], j] += dz[i, j]


@helper
def scale_by_rows(dz, act_deriv, rows):
    """dz (m, d) times the given rows of act_deriv (n, d)."""
    for i, row in enumerate(rows):
        scale(dz[i : i + 1], act_deriv[row : row + 1])


KINDS = types.UniTuple(types.boolean, 2)
SCALAR = types.Tuple((LAYERS, MATRIX, MATRIX, KINDS))
"""what a kernel knows of a network: the first arguments of `scalar_gradient`"""


@kernel(LAYERS, MATRIX, MATRIX, KINDS, MATRIX, ROW, MATRIX)
def scalar_gradient(start, stop, layers, flat, flat_t, kinds, x, value, dx):
    """value (N,) of x (N, d_in), and its gradient dx (N, d_in) unless that has no rows.

    kinds: whether a layer norm follows each activation; whether the value is the least of the Q copies, not their mean.
    """
    n_copies, width = len(flat), layers[-1, 3]
    for low in range(start, stop, ROW_BLOCK):
        high = min(low + ROW_BLOCK, stop)
        n = high - low
        act_derivs, normal = empty((n_copies, n * width), float32), empty((n_copies, n * width), float32)
        rstd, values = empty((n_copies, len(layers), n), float32), empty((n_copies, n, 1), float32)
        for q in range(n_copies):
            scalar_forward(layers, flat[q], kinds, x[low:high], act_derivs[q], normal[q], rstd[q], values[q])
        shares = reduce(values, kinds[1], value[low:high])
        if len(dx):
            fill(dx[low:high], float32(0))
            for q in range(n_copies):
                saved = act_derivs[q], normal[q], rstd[q]
                scalar_backward(layers, flat[q], flat_t[q], kinds, saved, shares[q], dx[low:high])
