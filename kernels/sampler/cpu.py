"""The K-step sampler and its VJP on a CPU, in one call each; the formulas are those of `reference.py`."""

import torch
from numpy import empty, float32
from torch import Tensor

from fastdwm_kernels.cpu import (
    LAYERS,
    MATRIX,
    ROW,
    ROW_BLOCK,
    STACK,
    add_to,
    affine,
    affine_vjp,
    affine_vjp_through,
    block,
    combine,
    copy,
    fill,
    helper,
    kernel,
    multiply,
    rows_of,
    run,
)
from fastdwm_kernels.cpu_activations import silu
from fastdwm_kernels.memory import recycled
from fastdwm_kernels.sampler.weights import SamplerWeights


def sampler_cpu(
    weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """y_0 (N, S), and silu' of all pre-activations (K, N sum of widths), valid only if `save`."""
    packed, y = weights.for_cpu, torch.empty_like(obs)
    act_derivs = recycled(weights.steps if save else 1, len(obs) * packed.hidden)
    x = torch.cat([obs.detach(), action.detach()], 1)
    run(sampler_forward, len(obs), packed.cost, *packed.forward, x, noise.detach(), act_derivs, y)
    return y, act_derivs


def sampler_backward_cpu(weights: SamplerWeights, dy: Tensor, act_derivs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of obs (N, S), action (N, A) and the start y_K (N, S)."""
    packed, dx = weights.for_cpu, dy.new_empty(len(dy), weights.obs_dim + weights.action_dim)
    dstart = torch.empty_like(dy)
    run(sampler_backward, len(dy), packed.cost, *packed.backward, act_derivs, dy, dx, dstart)
    return dx[:, : weights.obs_dim], dx[:, weights.obs_dim :], dstart


@helper
def add_row(x, row, z):
    """z = x + row."""
    for i in range(len(z)):
        for j in range(len(row)):
            z[i, j] = x[i, j] + row[j]


@helper
def advance(state, out, coefficients, noise):
    """state = c_y state + c_out out + sigma noise; noise is not read if sigma is 0."""
    c_y, c_out, sigma = coefficients
    for i in range(len(state)):
        for j in range(state.shape[1]):
            state[i, j] = c_y * state[i, j] + c_out * out[i, j]
            if sigma != 0:
                state[i, j] += sigma * noise[i, j]


@kernel(LAYERS, ROW, MATRIX, MATRIX, MATRIX, MATRIX, STACK, MATRIX, MATRIX)
def sampler_forward(start, stop, layers, flat, w_cond, table, coefficients, x, noise, act_derivs, y):
    """Write y (N, S) from x = (obs, action) (N, S + A) and noise (K, N, S).

    table: (K, D), the bias of the first layer in step k, in place of its b.   coefficients: (K, 3).
    act_derivs: silu' of all layers (K, N sum of widths); or (1, .), overwritten at every step.
    """
    n_rows, last = len(y), len(layers) - 1
    for low in range(start, stop, ROW_BLOCK):
        high = min(low + ROW_BLOCK, stop)
        cond, state = empty((high - low, w_cond.shape[1]), float32), y[low:high]
        fill(cond, float32(0))
        multiply(x[low:high], w_cond, cond)
        copy(noise[0, low:high], state)
        for k in range(len(table) - 1, -1, -1):
            h = state
            for i in range(last + 1):
                z = empty((high - low, layers[i, 1]), float32)
                if i == 0:
                    add_row(cond, table[k], z)
                    multiply(h, block(flat, layers[0, 2], layers[0, 0], layers[0, 1]), z)
                else:
                    affine(h, flat, layers[i], z)
                if i < last:
                    silu(z, rows_of(act_derivs[min(k, len(act_derivs) - 1)], layers[i], low, high, n_rows))
                h = z
            advance(state, h, coefficients[k], noise[len(table) - k if k else 0, low:high])


@kernel(LAYERS, ROW, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX)
def sampler_backward(start, stop, layers, flat_t, w_cond_t, coefficients, act_derivs, dy, dx, dstart):
    """Write dx (N, S + A), and dstart (N, S) unless it has no rows, from dy (N, S)."""
    last = len(layers) - 1
    for low in range(start, stop, ROW_BLOCK):
        high = min(low + ROW_BLOCK, stop)
        grad, total = empty((high - low, dy.shape[1]), float32), empty((high - low, len(w_cond_t)), float32)
        copy(dy[low:high], grad)
        fill(total, float32(0))
        for k in range(len(coefficients)):
            dz = empty(grad.shape, float32)
            combine(coefficients[k, 1], grad, float32(0), grad, dz)
            for i in range(last, 0, -1):
                dh = empty((high - low, layers[i, 0]), float32)
                affine_vjp_through(dz, flat_t, layers[i], rows_of(act_derivs[k], layers[i - 1], low, high, len(dy)), dh)
                dz = dh
            add_to(dz, total)
            if k < len(coefficients) - 1 or len(dstart):
                dstate = empty(grad.shape, float32)
                affine_vjp(dz, flat_t, layers[0], dstate)
                combine(coefficients[k, 0], grad, float32(1), dstate, grad)
        if len(dstart):
            copy(grad, dstart[low:high])
        fill(dx[low:high], float32(0))
        multiply(total, w_cond_t, dx[low:high])
