"""MLPs in training on a CPU: the forward pass, the backward pass and all gradients of Q copies.

flat: parameters (Q, P).   x: (Q, N, d_in), or (1, N, d_in) shared by all copies.   y, dy: (Q, N, d_out).
kinds: whether the activation is silu, else relu; whether a layer norm follows it (then the activation is relu).
pre, post: (Q, N sum of hidden widths), blocks of all hidden layers.   mean, rstd: (Q, hidden layers, N).
`post` is a layer's output. `pre` is its pre-activation with layer norm, else the derivative of its activation; the
backward pass overwrites it by the gradient dz of the pre-activation.

An item is a block of ROWS rows of one copy, or a slab of ROWS rows of one weight matrix. The order of sums over a batch
depends neither on the items nor on the threads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numba import types
from numpy import empty, float32, sqrt
from torch import Tensor

from fastdwm_kernels.cpu import (
    LAYERS,
    MATRIX,
    ROW,
    SIZE,
    STACK,
    address,
    affine,
    affine_vjp,
    affine_vjp_through,
    block,
    columns_product,
    helper,
    kernel,
    layer_table,
    noinline,
    null,
    product,
    rows_of,
    run,
    summing,
    transpose,
    transposed,
    vector,
)
from fastdwm_kernels.cpu_activations import relu, silu
from fastdwm_kernels.frozen_mlp.cpu import NORM_EPS, scalar_gradient
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.memory import recycled, recycled_together

ROWS = 64
"""rows of an item: their activations stay in the cache from one layer to the next"""

KINDS = types.UniTuple(types.boolean, 2)


@summing
def normalise(z, gain, shift, mean, rstd, y):
    """Write y, the layer norm of relu(z), row by row; NaN stays NaN."""
    noinline()
    d = z.shape[1]
    for i in range(len(z)):
        pre, post, total, square = z[i], y[i], float32(0), float32(0)
        for j in range(d):
            post[j] = float32(0) if pre[j] <= 0 else pre[j]
            total += post[j]
        center = total / float32(d)
        for j in range(d):
            square += (post[j] - center) * (post[j] - center)
        factor = float32(1) / sqrt(square / float32(d) + NORM_EPS)
        for j in range(d):
            post[j] = (post[j] - center) * factor * gain[j] + shift[j]
        mean[i], rstd[i] = center, factor


@summing
def normalise_vjp(dy, z, gain, mean, rstd, dgain, dshift):
    """Overwrite z by its gradient, from the gradient dy of `normalise`'s y, which is overwritten too; write the sums
    dgain and dshift (d,) over the rows."""
    noinline()
    d = z.shape[1]
    for j in range(d):
        dgain[j] = dshift[j] = float32(0)
    for i in range(len(z)):
        pre, grad, center, factor = z[i], dy[i], mean[i], rstd[i]
        total = projection = float32(0)
        for j in range(d):
            normal = ((float32(0) if pre[j] <= 0 else pre[j]) - center) * factor
            dgain[j] += grad[j] * normal
            dshift[j] += grad[j]
            grad[j] *= gain[j]
            total += grad[j]
            projection += grad[j] * normal
        total, projection = total / float32(d), projection / float32(d)
        for j in range(d):
            normal = (pre[j] - center) * factor
            pre[j] = float32(0) if pre[j] <= 0 else factor * (grad[j] - total - normal * projection)


@helper
def hidden_layer(h, flat, layer, kinds, pre, post, mean, rstd):
    """Write post (n, d_out) of h (n, d_in), and pre, mean and rstd."""
    if kinds[1]:
        affine(h, flat, layer, pre)
        normalise(pre, vector(flat, layer, 1), vector(flat, layer, 2), mean, rstd, post)
    else:
        affine(h, flat, layer, post)
        if kinds[0]:
            silu(post, pre)
        else:
            relu(post, pre)


@helper
def widest(layers):
    """Width of the widest hidden layer."""
    width = 0
    for i in range(len(layers) - 1):
        width = max(width, layers[i, 1])
    return width


@helper
def item_rows(item, n_rows):
    """The copy of an item, and its first and last row."""
    q, part = divmod(item, (n_rows + ROWS - 1) // ROWS)
    return q, part * ROWS, min((part + 1) * ROWS, n_rows)


@kernel(LAYERS, MATRIX, KINDS, STACK, STACK)
def evaluate(start, stop, layers, flat, kinds, x, y):
    """y, and null for a gradient."""
    last, size = len(layers) - 1, ROWS * widest(layers)
    pre, post = empty(size, float32), empty((2, size), float32)
    mean, rstd = empty(ROWS, float32), empty(ROWS, float32)
    for item in range(start, stop):
        q, low, high = item_rows(item, x.shape[1])
        h = x[q if len(x) > 1 else 0, low:high]
        for i in range(last):
            n, d_out = high - low, layers[i, 1]
            z = block(post[i % 2], 0, n, d_out)
            hidden_layer(h, flat[q], layers[i], kinds, block(pre, 0, n, d_out), z, mean, rstd)
            h = z
        affine(h, flat[q], layers[last], y[q, low:high])


@kernel(LAYERS, MATRIX, KINDS, STACK, MATRIX, MATRIX, STACK, STACK, STACK)
def forward(start, stop, layers, flat, kinds, x, pre, post, mean, rstd, y):
    """Write y, and for the gradients pre, post, mean and rstd."""
    n_rows, last = x.shape[1], len(layers) - 1
    for item in range(start, stop):
        q, low, high = item_rows(item, n_rows)
        h = x[q if len(x) > 1 else 0, low:high]
        for i in range(last):
            blocks = rows_of(pre[q], layers[i], low, high, n_rows), rows_of(post[q], layers[i], low, high, n_rows)
            hidden_layer(h, flat[q], layers[i], kinds, *blocks, mean[q, i, low:high], rstd[q, i, low:high])
            h = blocks[1]
        affine(h, flat[q], layers[last], y[q, low:high])


@kernel(LAYERS, MATRIX, MATRIX, SIZE, STACK, STACK)
def tangent(start, stop, layers, flat, pre, n_rows, dx, dy):
    """Write dy (Q, n, d_out), the derivative of y along dx (Q, n, d_in) in the last n of `n_rows` rows; no norm."""
    last, first = len(layers) - 1, n_rows - dx.shape[1]
    buffers = empty((2, ROWS * widest(layers)), float32)
    for item in range(start, stop):
        q, low, high = item_rows(item, dx.shape[1])
        h = dx[q, low:high]
        for i in range(last):
            z = block(buffers[i % 2], 0, high - low, layers[i, 1])
            act_deriv = rows_of(pre[q], layers[i], first + low, first + high, n_rows)
            product(h, address(flat[q], layers[i, 2]), layers[i, 1], z, null(), 0, address(act_deriv, 0))
            h = z
        product(h, address(flat[q], layers[last, 2]), layers[last, 1], dy[q, low:high], null(), 0, null())


@kernel(LAYERS, MATRIX, MATRIX, KINDS, STACK, MATRIX, STACK, STACK, STACK)
def backward(start, stop, layers, flat, flat_t, kinds, dy, pre, mean, rstd, sums):
    """Overwrite `pre` by dz; write sums (Q, blocks, 2 sum of hidden widths), gradients of gain and shift by block."""
    n_rows, last = dy.shape[1], len(layers) - 1
    buffer = empty(ROWS * widest(layers), float32)
    for item in range(start, stop):
        q, low, high = item_rows(item, n_rows)
        d = dy[q, low:high]
        for i in range(last, 0, -1):
            below = layers[i - 1]
            z = rows_of(pre[q], below, low, high, n_rows)
            if kinds[1]:
                dh = block(buffer, 0, high - low, below[1])
                dnorm = block(sums[q, low // ROWS], 2 * below[3], 2, below[1])
                affine_vjp(d, flat_t[q], layers[i], dh)
                moments = mean[q, i - 1, low:high], rstd[q, i - 1, low:high]
                normalise_vjp(dh, z, vector(flat[q], below, 1), *moments, dnorm[0], dnorm[1])
            else:
                affine_vjp_through(d, flat_t[q], layers[i], z, z)
            d = z


@helper
def sum_rows(d, total):
    """total (d_out,) = sum over the rows of d (n, d_out)."""
    noinline()
    for j in range(len(total)):
        total[j] = float32(0)
    for i in range(len(d)):
        row = d[i]
        for j in range(len(total)):
            total[j] += row[j]


@kernel(LAYERS, KINDS, SIZE, STACK, STACK, MATRIX, MATRIX, STACK, MATRIX)
def gradient(start, stop, layers, kinds, n_slabs, x, dy, post, dz, sums, grads):
    """Write grads (Q, P), zero in the padding."""
    n_rows, last = dy.shape[1], len(layers) - 1
    for item in range(start, stop):
        q, rest = divmod(item, len(layers) * n_slabs)
        i, slab = divmod(rest, n_slabs)
        d_in, d_out, at, before, _ = layers[i]
        h = x[q if len(x) > 1 else 0] if i == 0 else rows_of(post[q], layers[i - 1], 0, n_rows, n_rows)
        d = dy[q] if i == last else rows_of(dz[q], layers[i], 0, n_rows, n_rows)
        low, high = slab * ROWS, min((slab + 1) * ROWS, d_in)
        if low < high:
            dw, columns = address(grads[q], at + low * d_out), address(h, low)
            size = high - low, n_rows, d_out
            columns_product(columns, d_in, address(d, 0), d_out, dw, d_out, null(), 0, null(), *size)
        if slab == 0:
            sum_rows(d, vector(grads[q], layers[i], 0))
            if kinds[1] and i < last:
                dnorm = block(grads[q], at + (d_in + 1) * d_out, 1, 2 * d_out)
                sum_rows(sums[q, :, 2 * before : 2 * (before + d_out)], dnorm[0])
            if i == last:
                for j in range(at + (d_in + 1) * d_out, grads.shape[1]):
                    grads[q, j] = float32(0)


@kernel(STACK, STACK, ROW, MATRIX, MATRIX, STACK, MATRIX)
def squared_error(start, stop, y, target, weights, rates, shares, dy, losses):
    """Write dy and losses (Q, blocks), whose sum is the loss, for y and target (Q or 1, N, d_out).

    As in `op.mean_squared_error`: weights (N,) or (0,); for the last n rows derivatives `rates` (n, d_out) of y, and
    shares (2, n) of these and of y in the target.
    """
    (_, n_rows, d_out), first = y.shape, len(y[0]) - len(rates)
    factor = float32(1) / float32(n_rows * d_out)
    for item in range(start, stop):
        q, low, high = item_rows(item, n_rows)
        total, aim = float32(0), target[q if len(target) > 1 else 0]
        for i in range(low, high):
            weight = factor * weights[i] if len(weights) else factor
            for j in range(d_out):
                error = y[q, i, j] - aim[i, j]
                if i >= first:
                    error -= shares[0, i - first] * rates[i - first, j] + shares[1, i - first] * y[q, i, j]
                total += weight * error * error
                dy[q, i, j] = float32(2) * weight * error
        losses[q, low // ROWS] = total


@dataclass
class Saved:
    """Values that the forward pass saves for the tangent and backward passes; the backward pass overwrites them."""

    x: Tensor
    pre: np.ndarray
    post: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray
    sums: np.ndarray
    flat_t: np.ndarray
    spent: bool = False


def kinds_of(layout: MLPLayout, activation: str) -> tuple[bool, bool]:
    return activation == "silu", layout.layer_norm


def evaluated(layout: MLPLayout, flat: Tensor, x: Tensor, activation: str) -> Tensor:
    """y, without a gradient; arguments as in `op.prepared`."""
    y = x.new_empty(flat.shape[0], x.shape[1], layout.sizes[-1])
    _run(evaluate, layout, y, layer_table(layout), flat, kinds_of(layout, activation), x, y)
    return y


def forward_pass(layout: MLPLayout, flat: Tensor, x: Tensor, activation: str) -> tuple[Tensor, Saved]:
    """y, and the values saved for the gradients; arguments as in `op.prepared`."""
    n_copies, n_rows, widths = flat.shape[0], x.shape[1], layout.sizes[1:-1]
    blocks = (n_copies, n_rows * sum(widths))
    norms = (n_copies, len(widths), n_rows if layout.layer_norm else 0)
    sums = (n_copies, -(-n_rows // ROWS), 2 * sum(widths) if layout.layer_norm else 0)
    saved = Saved(x, *recycled_together(blocks, blocks, norms, norms, sums, tuple(flat.shape)))
    y, saved_rows = x.new_empty(n_copies, n_rows, layout.sizes[-1]), (saved.pre, saved.post, saved.mean, saved.rstd)
    _run(forward, layout, y, layer_table(layout), flat, kinds_of(layout, activation), x, *saved_rows, y)
    return y, saved


def tangent_pass(layout: MLPLayout, flat: Tensor, saved: Saved, dx: Tensor) -> Tensor:
    """dy, the derivative of y along dx; no layer norm."""
    dy = dx.new_empty(flat.shape[0], dx.shape[1], layout.sizes[-1])
    _run(tangent, layout, dy, layer_table(layout), flat, saved.pre, saved.x.shape[1], dx, dy)
    return dy


def backward_pass(layout: MLPLayout, flat: Tensor, saved: Saved, dy: Tensor, activation: str) -> Tensor:
    """The gradient of the parameters (Q, P), from the gradient dy of y."""
    if saved.spent:
        raise RuntimeError("a pass has no second gradient: the first has taken its place")
    saved.spent = True
    layers, kinds, n_slabs = layer_table(layout), kinds_of(layout, activation), -(-max(layout.sizes[:-1]) // ROWS)
    run(transpose, flat.shape[0], layout.n_params, layers, flat, saved.flat_t, smallest=1)
    saved_rows = saved.pre, saved.mean, saved.rstd, saved.sums
    _run(backward, layout, dy, layers, flat, saved.flat_t, kinds, dy, *saved_rows)
    grads, n_parts = recycled(*flat.shape), len(layers) * n_slabs
    args = saved.x, dy, saved.post, saved.pre, saved.sums, grads
    run(
        gradient,
        flat.shape[0] * n_parts,
        dy.shape[1] * layout.n_params // n_parts,
        layers,
        kinds,
        n_slabs,
        *args,
        smallest=1,
    )
    return grads


def loss_pass(y: Tensor, target: Tensor, weights: Tensor, rates: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and dy; arguments as in `squared_error`."""
    dy, losses = torch.empty_like(y), y.new_empty(y.shape[0], -(-y.shape[1] // ROWS))
    run(squared_error, losses.numel(), ROWS * y.shape[2], y, target, weights, rates, shares, dy, losses, smallest=1)
    return losses.sum(), dy


def least(layout: MLPLayout, flat: Tensor, x: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """The least value (N,) of x (N, d_in) over the copies, and if `differentiate` its gradient with respect to x."""
    value, dx = x.new_empty(x.shape[0]), x.new_empty(x.shape[0] if differentiate else 0, x.shape[1])
    flat_t = transposed(layout, flat, recycled(*flat.shape)) if differentiate else flat
    cost, kinds = flat.shape[0] * layout.n_params * (2 if differentiate else 1), (layout.layer_norm, True)
    run(scalar_gradient, x.shape[0], cost, layer_table(layout), flat, flat_t, kinds, x, value, dx)
    return value, dx


def _run(function: Callable, layout: MLPLayout, y: Tensor, *args) -> None:
    """Run a kernel whose items are blocks of the rows of y (Q, N, d_out)."""
    run(function, y.shape[0] * -(-y.shape[1] // ROWS), ROWS * layout.n_params, *args, smallest=1)
