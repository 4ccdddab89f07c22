"""Frozen scalar networks on a CPU: value and input gradient in one pass, a block of rows at a time.

The formulas are those of `reference.py`. The gradient is that of the value itself, which the caller multiplies by its
upstream gradient, so that no activation outlives its block.
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
    rows_of,
    scale,
    summing,
    vector,
)
from fastdwm_kernels.cpu_activations import activate
from fastdwm_kernels.frozen_mlp import reference

NORM_EPS = float32(reference.NORM_EPS)


@helper
def reduce(values, least, value):
    """Write value (n,), the mean or least of values (Q, n, 1); return each copy's share (Q, n) of the gradient."""
    n_copies, n = values.shape[:2]
    shares = empty((n_copies, n), float32)
    for i in range(n):
        smallest, total = 0, float32(0)
        for q in range(n_copies):
            shares[q, i] = float32(0) if least else float32(1) / float32(n_copies)
            total += values[q, i, 0] * shares[q, i]
            # NaN counts as the least, as in torch.
            if values[q, i, 0] < values[smallest, i, 0] or isnan(values[q, i, 0]):
                smallest = q
        if least:
            shares[smallest, i], total = float32(1), values[smallest, i, 0]
        value[i] = total
    return shares


@helper
def scalar_forward(layers, flat, kinds, x, act_derivs, normal, rstd, value):
    """Write value (n, 1) of one copy, act_derivs, and `normal` and rstd of the layer norms."""
    h, n, last = x, len(x), len(layers) - 1
    for i in range(last):
        z = empty((n, layers[i, 1]), float32)
        affine(h, flat, layers[i], z)
        activate(layers[i, 4], z, rows_of(act_derivs, layers[i], 0, n, n))
        if kinds[0]:
            gain, shift = vector(flat, layers[i], 1), vector(flat, layers[i], 2)
            normalise(z, gain, shift, rows_of(normal, layers[i], 0, n, n), rstd[i])
        h = z
    affine(h, flat, layers[last], value)


@summing
def normalise(z, gain, shift, normal, rstd):
    """Layer norm of every row of z, in place; normal: the same before scale and shift."""
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
    """Turn dh (m, d), the gradient of the layer norm's result in these rows, into that of its input, in place."""
    d = dh.shape[1]
    for i, row in enumerate(rows):
        # Row views, since an index that may be negative keeps the compiler from using vectors.
        grad, normal_row, mean, projection = dh[i], normal[row], float32(0), float32(0)
        for j in range(d):
            mean += grad[j] * gain[j]
            projection += grad[j] * gain[j] * normal_row[j]
        mean, projection = mean / float32(d), projection / float32(d)
        for j in range(d):
            grad[j] = rstd[row] * (grad[j] * gain[j] - mean - normal_row[j] * projection)


@helper
def scalar_backward(layers, flat, flat_t, kinds, saved, share, dx):
    """dx (n, d_in) += share times the gradient of one copy's value, only for the rows whose share (n,) is not 0."""
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
    """Multiply dz (m, d) by these rows of act_deriv (n, d)."""
    for i, row in enumerate(rows):
        scale(dz[i : i + 1], act_deriv[row : row + 1])


KINDS = types.UniTuple(types.boolean, 2)
SCALAR = types.Tuple((LAYERS, MATRIX, MATRIX, KINDS))
"""a network, as the first arguments of `scalar_gradient`"""


@kernel(LAYERS, MATRIX, MATRIX, KINDS, MATRIX, ROW, MATRIX)
def scalar_gradient(start, stop, layers, flat, flat_t, kinds, x, value, dx):
    """Write value (N,) of x (N, d_in), and its gradient dx (N, d_in) unless dx has no rows.

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
