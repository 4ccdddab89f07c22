"""The policy MLP and its derivatives on a CPU; the formulas are those of `reference.py`.

flat: parameters (B, P). Items are rows, M = `particles` of each policy. states (B, R, S) and the buffers of all layers
(B, R sum of widths) hold the R rows of all steps; those of one step begin at row `first`.
"""

from numpy import empty, empty_like, float32
from torch import Tensor

from fastdwm_kernels.cpu import (
    LAYERS,
    MATRIX,
    SIZE,
    STACK,
    affine,
    affine_vjp,
    affine_vjp_through,
    block,
    copy,
    helper,
    kernel,
    layer_table,
    multiply_columns,
    rows_of,
    run,
    scale,
    square_of,
    vector,
)
from fastdwm_kernels.cpu_activations import activate, limit
from fastdwm_kernels.layout import MLPLayout


@helper
def policy_rows(b, start, stop, first, particles):
    """First and last row, in the buffers of policy b, of its items among start..stop-1; and the first such item."""
    low, high = max(start - b * particles, 0), min(stop - b * particles, particles)
    return first + low, first + high, b * particles + low


@kernel(LAYERS, MATRIX, STACK, STACK)
def policy_act(start, stop, layers, flat, states, actions):
    """Write actions (B, M, A) in the states (B, M, S), without saving anything for a gradient."""
    particles, last = states.shape[1], len(layers) - 1
    for b in range(start // particles, (stop - 1) // particles + 1):
        low, high, _ = policy_rows(b, start, stop, 0, particles)
        h = states[b, low:high]
        for i in range(last):
            z = empty((high - low, layers[i, 1]), float32)
            affine(h, flat[b], layers[i], z)
            activate(layers[i, 4], z, empty_like(z))
            h = z
        action = actions[b, low:high]
        affine(h, flat[b], layers[last], action)
        limit(layers[last, 4], action, empty_like(action))


@kernel(LAYERS, MATRIX, STACK, MATRIX, MATRIX, SIZE, SIZE)
def policy_forward(start, stop, layers, flat, states, outputs, act_derivs, first, particles):
    """Write the outputs of all layers, of which the last are the actions, and the derivatives of their activations."""
    n_rows, last = states.shape[1], len(layers) - 1
    for b in range(start // particles, (stop - 1) // particles + 1):
        low, high, _ = policy_rows(b, start, stop, first, particles)
        h = states[b, low:high]
        for i in range(last + 1):
            z = rows_of(outputs[b], layers[i], low, high, n_rows)
            act_deriv = rows_of(act_derivs[b], layers[i], low, high, n_rows)
            affine(h, flat[b], layers[i], z)
            if i < last:
                activate(layers[i, 4], z, act_deriv)
            else:
                limit(layers[i, 4], z, act_deriv)
            h = z


@kernel(LAYERS, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, SIZE, SIZE)
def policy_backward(start, stop, layers, flat_t, act_derivs, grad, dz, dx, first, particles):
    """Write dz of all layers from grad (B M, A), and dx (B M, S) unless it has no rows."""
    n_rows, last = dz.shape[1] // (layers[-1, 3] + layers[-1, 1]), len(layers) - 1
    for b in range(start // particles, (stop - 1) // particles + 1):
        low, high, row = policy_rows(b, start, stop, first, particles)
        for i in range(last, -1, -1):
            d = rows_of(dz[b], layers[i], low, high, n_rows)
            act_deriv = rows_of(act_derivs[b], layers[i], low, high, n_rows)
            if i == last:
                copy(grad[row : row + high - low], d)
                scale(d, act_deriv)
            else:
                above = rows_of(dz[b], layers[i + 1], low, high, n_rows)
                affine_vjp_through(above, flat_t[b], layers[i + 1], act_deriv, d)
        if len(dx):
            affine_vjp(rows_of(dz[b], layers[0], low, high, n_rows), flat_t[b], layers[0], dx[row : row + high - low])


def act(layout: MLPLayout, flat: Tensor, x: Tensor) -> Tensor:
    """Actions (B, M, A) of B policies (B, P), each on its own observations x (B, M, S)."""
    actions = x.new_empty(*x.shape[:2], layout.sizes[-1])
    run(policy_act, x.shape[0] * x.shape[1], layout.n_params, layer_table(layout), flat, x, actions)
    return actions


@kernel(LAYERS, STACK, MATRIX, MATRIX, MATRIX, MATRIX)
def policy_weight_gradient(start, stop, layers, states, outputs, dz, grads, partial_sq_norms):
    """Write grads (B, P) from the rows of all steps, and partial_sq_norms (B, layers); items are layers of policies."""
    n_rows = states.shape[1]
    for item in range(start, stop):
        b, i = divmod(item, len(layers))
        h = states[b] if i == 0 else rows_of(outputs[b], layers[i - 1], 0, n_rows, n_rows)
        d = rows_of(dz[b], layers[i], 0, n_rows, n_rows)
        dw, db = block(grads[b], layers[i, 2], layers[i, 0], layers[i, 1]), vector(grads[b], layers[i], 0)
        multiply_columns(h, d, dw)
        for j in range(len(db)):
            db[j] = 0
        for k in range(n_rows):
            for j in range(len(db)):
                db[j] += d[k, j]
        first = layers[i, 2]
        end = first + (layers[i, 0] + 1) * layers[i, 1]
        partial_sq_norms[b, i] = square_of(grads[b, first:end])
        if i == len(layers) - 1:
            for j in range(end, grads.shape[1]):
                grads[b, j] = 0
