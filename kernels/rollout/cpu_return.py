"""The imagined return of some rows and all the way back to the policies' layers, one call on a CPU.

Rows are N = B M. The formulas, and the names of what is computed, are those of `imagine.py`; the serial part is
`cpu.py`.
"""

from math import exp

from numba import types
from numpy import empty, empty_like, float32

from fastdwm_kernels.cpu import MATRIX, ROW, ROW_BLOCK, SIZE, STACK, helper, kernel
from fastdwm_kernels.frozen_mlp.cpu import SCALAR, scalar_gradient
from fastdwm_kernels.rollout.cpu import (
    POLICY,
    POLICY_VJP,
    SAMPLER,
    SAMPLER_VJP,
    STACKS,
    condition,
    rollout_backward,
    rollout_forward,
)

NONE, MASK, SOFT = range(3)
"""how an imagined episode ends"""
ENDING = types.Tuple((types.float64, SIZE, types.int64[::1], MATRIX))
"""discount, one of these, and the coordinates (L,) that are bounded with their low, high and width (3, L)"""
ONE = float32(1)


@helper
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@helper
def survival(state, ending):
    """c of one state (S,)."""
    _, kind, index, bounds = ending
    alive = ONE
    for i in range(len(index)):
        x, low, high, width = state[index[i]], bounds[0, i], bounds[1, i], bounds[2, i]
        if kind == SOFT:
            alive *= sigmoid((x - low) / width) * sigmoid((high - x) / width)
        elif kind == MASK and not (x > low and x < high):
            alive = float32(0)
    return alive


@helper
def add_log_survival_gradient(state, ending, factor, grad):
    """grad (S,) += factor c'/c of one state (S,), with the soft termination."""
    _, _, index, bounds = ending
    for i in range(len(index)):
        x, low, high, width = state[index[i]], bounds[0, i], bounds[1, i], bounds[2, i]
        grad[index[i]] += factor * (sigmoid((low - x) / width) - sigmoid((x - high) / width)) / width


@helper
def evaluate(reward, critics, scales, states, actions, found):
    """r (H n,) and Q (n,) of n rows of a rollout, and their gradients (.., S + A) unless those have no rows."""
    (rewards, of_rewards), (terminal, of_terminal), (horizon, n, obs_dim) = found[0], found[1], states.shape
    horizon, width = horizon - 1, obs_dim + actions.shape[2]
    seen, last = empty((horizon * n, width), float32), empty((n, width), float32)
    for j in range(horizon):
        condition(scales, states[j], actions[j], seen[j * n : (j + 1) * n])
    for i in range(n):
        for k in range(width):
            last[i, k] = states[horizon, i, k] if k < obs_dim else actions[horizon, i, k - obs_dim]
    scalar_gradient(0, horizon * n, *reward, seen, rewards, of_rewards)
    scalar_gradient(0, n, *critics, last, terminal, of_terminal)


@helper
def add_up(i, ending, states, rewards, terminal, weights):
    """J of row i of n, and its W (H + 1,)."""
    horizon, n = len(states) - 1, states.shape[1]
    weights[0], total = ONE, float32(0)
    for j in range(horizon):
        total += weights[j] * rewards[j * n + i]
        weights[j + 1] = weights[j] * (float32(ending[0]) * survival(states[j + 1, i], ending))
    return total + weights[horizon] * terminal[i]


@helper
def take_terms(i, share, ending, scales, states, weights, found, direct):
    """direct (H + 1, n, S + A): the share (of J's mean) of row i's own terms."""
    (rewards, of_rewards), (terminal, of_terminal), (horizon, n, obs_dim) = found[0], found[1], states.shape
    horizon -= 1
    to_come = share * weights[horizon] * terminal[i]
    for j in range(horizon, -1, -1):
        weight, own = share * weights[j], of_terminal[i] if j == horizon else of_rewards[j * n + i]
        for k in range(len(own)):
            direct[j, i, k] = own[k] * weight
            if j < horizon and k < obs_dim:
                direct[j, i, k] /= scales[1, k]
        if j < horizon:
            to_come += weight * rewards[j * n + i]
        if j > 0 and ending[1] == SOFT:
            add_log_survival_gradient(states[j, i], ending, to_come, direct[j, i, :obs_dim])


@helper
def found_in(n, horizon, width):
    """Memory for the values and the gradients of `evaluate`, width 0: for the values alone."""
    back = 1 if width else 0
    of_rewards, of_terminal = empty((back * horizon * n, width), float32), empty((back * n, width), float32)
    return (empty(horizon * n, float32), of_rewards), (empty(n, float32), of_terminal)


MODELS = types.Tuple((POLICY, POLICY_VJP, SAMPLER, SAMPLER_VJP, SCALAR, SCALAR, MATRIX))
"""what is rolled out and back, reward, critics and scales"""
FOUND = types.Tuple((STACK, STACK, STACK, ROW))
"""states (H + 1, N, S), actions and their gradients (H + 1, N, A), and values (N,)"""


@kernel(SIZE, MODELS, ENDING, STACKS, ROW, MATRIX, FOUND)
def imagined_return(start, stop, particles, models, ending, noise, sampler_derivs, obs, found):
    """values, each particle's own J from obs (B, S); and unless action_grads has no rows the gradient: dz of all
    layers and steps, and the gradient of each particle's own J with respect to its actions.

    Others: as in `rollout_forward` and `rollout_backward`.
    """
    policy, policy_vjp, sampler, sampler_vjp, reward, critics, scales = models
    states, actions, action_grads, values = found
    (n_steps, n_rows, obs_dim), action_dim = states.shape, actions.shape[2]
    width, share, back = obs_dim + action_dim, ONE / float32(particles), action_grads.shape[1] > 0
    x, y, weights = empty((n_rows, width), float32), empty((n_rows, obs_dim), float32), empty(n_steps, float32)
    lam, ds, direct = empty_like(y), empty_like(y), empty((n_steps, n_rows if back else 0, width), float32)
    # The weights of one policy, of the sampler and their activations just fit the cache, those of two policies do not.
    together = particles if ROW_BLOCK // 2 <= particles < ROW_BLOCK else ROW_BLOCK
    for low in range(start, stop, together):
        high = min(low + together, stop)
        for row in range(low, high):
            for k in range(obs_dim):
                states[0, row, k] = obs[row // particles, k]
        # All blocks save their derivatives in the same place, which stays in the cache.
        saved = sampler_derivs, low - start
        rollout_forward(low, high, particles, policy, sampler, scales, noise, *saved, (x, y), states, actions)
        n, seen = high - low, states[:, low:high]
        terms = found_in(n, n_steps - 1, width if back else 0)
        evaluate(reward, critics, scales, seen, actions[:, low:high], terms)
        for i in range(n):
            values[low + i] = add_up(i, ending, seen, terms[0][0], terms[1][0], weights)
            if back:
                take_terms(i, share, ending, scales, seen, weights, terms, direct[:, low:high])
        if back:
            given = policy_vjp, sampler_vjp, scales, *saved, direct
            rollout_backward(low, high, particles, *given, action_grads, (lam, ds, x))
            for j in range(n_steps):
                for row in range(low, high):
                    for k in range(action_dim):
                        action_grads[j, row, k] *= float32(particles)
