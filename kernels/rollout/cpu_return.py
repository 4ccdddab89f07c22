"""The imagined return and its gradient down to the policies' layers, in one call on a CPU.

There are N = B M rows. The formulas and their names are those of `imagine.py`; the serial part is `cpu.py`.
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
"""kinds of termination"""
ENDING = types.Tuple((types.float64, SIZE, types.int64[::1], MATRIX))
"""discount, kind of termination, index (L,) of the bounded coordinates, and their low, high and width (3, L)"""
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
    """grad (S,) += factor c'/c of one state (S,), for the soft termination."""
    _, _, index, bounds = ending
    for i in range(len(index)):
        x, low, high, width = state[index[i]], bounds[0, i], bounds[1, i], bounds[2, i]
        grad[index[i]] += factor * (sigmoid((low - x) / width) - sigmoid((x - high) / width)) / width


@helper
def evaluate(reward, critics, scales, states, actions, terms):
    """Write rewards (H n,) and terminal values (n,) of n rows, and their gradients (.., S + A) unless empty."""
    (rewards, reward_grads), (terminal, terminal_grads), (horizon, n, obs_dim) = terms[0], terms[1], states.shape
    horizon, width = horizon - 1, obs_dim + actions.shape[2]
    reward_inputs, critic_inputs = empty((horizon * n, width), float32), empty((n, width), float32)
    for j in range(horizon):
        condition(scales, states[j], actions[j], reward_inputs[j * n : (j + 1) * n])
    for i in range(n):
        for k in range(width):
            critic_inputs[i, k] = states[horizon, i, k] if k < obs_dim else actions[horizon, i, k - obs_dim]
    scalar_gradient(0, horizon * n, *reward, reward_inputs, rewards, reward_grads)
    scalar_gradient(0, n, *critics, critic_inputs, terminal, terminal_grads)


@helper
def particle_return(i, ending, states, rewards, terminal, weights):
    """J of row i; writes its W (H + 1,) to `weights`."""
    horizon, n = len(states) - 1, states.shape[1]
    weights[0], total = ONE, float32(0)
    for j in range(horizon):
        total += weights[j] * rewards[j * n + i]
        weights[j + 1] = weights[j] * (float32(ending[0]) * survival(states[j + 1, i], ending))
    return total + weights[horizon] * terminal[i]


@helper
def write_direct(i, share, ending, scales, states, weights, terms, direct):
    """Write row i of direct (H + 1, n, S + A), the gradient of each step's own terms; share: 1 / M, for the mean."""
    (rewards, reward_grads), (terminal, terminal_grads), (horizon, n, obs_dim) = terms[0], terms[1], states.shape
    horizon -= 1
    return_to_go = share * weights[horizon] * terminal[i]
    for j in range(horizon, -1, -1):
        weight, term_grad = share * weights[j], terminal_grads[i] if j == horizon else reward_grads[j * n + i]
        for k in range(len(term_grad)):
            direct[j, i, k] = term_grad[k] * weight
            if j < horizon and k < obs_dim:
                direct[j, i, k] /= scales[1, k]
        if j < horizon:
            return_to_go += weight * rewards[j * n + i]
        if j > 0 and ending[1] == SOFT:
            add_log_survival_gradient(states[j, i], ending, return_to_go, direct[j, i, :obs_dim])


@helper
def empty_terms(n, horizon, width):
    """Arrays for the rewards, the terminal values and their gradients, which are empty if width is 0."""
    back = 1 if width else 0
    reward_grads, terminal_grads = empty((back * horizon * n, width), float32), empty((back * n, width), float32)
    return (empty(horizon * n, float32), reward_grads), (empty(n, float32), terminal_grads)


MODELS = types.Tuple((POLICY, POLICY_VJP, SAMPLER, SAMPLER_VJP, SCALAR, SCALAR, MATRIX))
"""policy, sampler and their VJPs, reward, critics and scales"""
RESULTS = types.Tuple((STACK, STACK, STACK, ROW))
"""states (H + 1, N, S), actions and their gradients (H + 1, N, A), and values (N,)"""


@kernel(SIZE, MODELS, ENDING, STACKS, ROW, MATRIX, RESULTS)
def imagined_return(start, stop, particles, models, ending, noise, sampler_derivs, obs, results):
    """Write values, each particle's own J from obs (B, S); and unless action_grads has no rows, dz of all layers and
    steps, and action_grads, the gradient of each particle's own J with respect to its actions.

    Other arguments are as in `rollout_forward` and `rollout_backward`.
    """
    policy, policy_vjp, sampler, sampler_vjp, reward, critics, scales = models
    states, actions, action_grads, values = results
    (n_steps, n_rows, obs_dim), action_dim = states.shape, actions.shape[2]
    width, share, back = obs_dim + action_dim, ONE / float32(particles), action_grads.shape[1] > 0
    x, y, weights = empty((n_rows, width), float32), empty((n_rows, obs_dim), float32), empty(n_steps, float32)
    lam, ds, direct = empty_like(y), empty_like(y), empty((n_steps, n_rows if back else 0, width), float32)
    # The cache holds the weights of the sampler and of one policy with their activations, but not of two policies.
    together = particles if ROW_BLOCK // 2 <= particles < ROW_BLOCK else ROW_BLOCK
    for low in range(start, stop, together):
        high = min(low + together, stop)
        for row in range(low, high):
            for k in range(obs_dim):
                states[0, row, k] = obs[row // particles, k]
        # All blocks save their derivatives in the same place, so it stays in the cache.
        saved = sampler_derivs, low - start
        rollout_forward(low, high, particles, policy, sampler, scales, noise, *saved, (x, y), states, actions)
        n, block_states = high - low, states[:, low:high]
        terms = empty_terms(n, n_steps - 1, width if back else 0)
        evaluate(reward, critics, scales, block_states, actions[:, low:high], terms)
        for i in range(n):
            values[low + i] = particle_return(i, ending, block_states, terms[0][0], terms[1][0], weights)
            if back:
                write_direct(i, share, ending, scales, block_states, weights, terms, direct[:, low:high])
        if back:
            args = policy_vjp, sampler_vjp, scales, *saved, direct
            rollout_backward(low, high, particles, *args, action_grads, (lam, ds, x))
            for j in range(n_steps):
                for row in range(low, high):
                    for k in range(action_dim):
                        action_grads[j, row, k] *= float32(particles)
