"""The imagined return of some rows and all the way back to the policies' layers, one call on a CPU.

Rows are N = B M. The formulas, and the names of what is computed, are those of `imagine.py`; the serial part is
`compiled.py`.
"""

from math import exp

from numba import types
from numpy import empty, empty_like, float32

from fastdwm.kernels.compiled import MATRIX, ROW, ROW_BLOCK, SIZE, STACK, helper, kernel
from fastdwm.kernels.frozen_mlp.compiled import SCALAR, scalar_gradient
from fastdwm.kernels.rollout.compiled import (
    CHAIN,
    CHAIN_VJP,
    POLICY,
    POLICY_VJP,
    STACKS,
    condition,
    rollout_backward,
    rollout_forward,
)

NONE, MASK, SOFT = range(3)
"""how an imagined episode ends"""
ENDING = types.Tuple((types.float64, SIZE, types.int64[::1], MATRIX))
"""discount, one of these, and the coordinates (L,) that are bounded with their low, high and width (3, L)"""
ANCHOR = types.Tuple((MATRIX, ROW))
"""action (B, A) and weight (B,)"""
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
def evaluate(reward, critics, scales, states, actions, obs, base, found):
    """r (H n,) and Q (n + b,), and their gradients (H n, S + A) and (n + b, S + A) unless those have no rows.

    Of n rows of a rollout, and of b real states obs with the actions base in them, which are to have a value alone: so
    the critics' weights are read once.
    """
    (rewards, of_rewards), (terminal, of_terminal), (horizon, n, obs_dim) = found[0], found[1], states.shape
    horizon, width, n_last = horizon - 1, obs_dim + actions.shape[2], n + len(base)
    seen, last = empty((horizon * n, width), float32), empty((n_last, width), float32)
    for j in range(horizon):
        condition(scales, states[j], actions[j], seen[j * n : (j + 1) * n])
    for i in range(n):
        for k in range(width):
            last[i, k] = states[horizon, i, k] if k < obs_dim else actions[horizon, i, k - obs_dim]
    for i in range(len(base)):
        for k in range(width):
            last[n + i, k] = obs[i, k] if k < obs_dim else base[i, k - obs_dim]
    scalar_gradient(0, horizon * n, *reward, seen, rewards, of_rewards)
    scalar_gradient(0, n_last, *critics, last, terminal, of_terminal)


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
def pull(anchor, particles, row, action, k):
    """Gradient of the anchor's penalty with respect to a row's first action, as the mean over particles."""
    target, weight = anchor
    b = row // particles
    return float32(2) / float32(particles) * weight[b] * (action[row, k] - target[b, k])


@helper
def found_in(n, n_last, horizon, width):
    """Memory for the values and the gradients of `evaluate`, width 0: for the values alone."""
    back = 1 if width else 0
    of_rewards, of_terminal = empty((back * horizon * n, width), float32), empty((back * n_last, width), float32)
    return (empty(horizon * n, float32), of_rewards), (empty(n_last, float32), of_terminal)


MODELS = types.Tuple((POLICY, POLICY_VJP, CHAIN, CHAIN_VJP, SCALAR, SCALAR, MATRIX))
"""what is rolled out and back, reward, critics and scales"""
FOUND = types.Tuple((STACK, STACK, STACK, ROW, ROW))
"""states (H + 1, N, S), actions and slopes (H + 1, N, A), values (N,) and anchored (B,)"""


@kernel(SIZE, MODELS, ENDING, ANCHOR, STACKS, ROW, MATRIX, FOUND)
def imagined_return(start, stop, particles, models, ending, anchor, noise, chain_slopes, obs, found):
    """values, each particle's own J from obs (B, S); and unless `slopes` has no rows the gradient: dz of all layers and
    steps, and slopes of each particle's own J, without the anchor.
    anchored: V of obs and the anchor's action, or empty.

    Others: as in `rollout_forward` and `rollout_backward`.
    """
    policy, policy_vjp, chain, chain_vjp, reward, critics, scales = models
    states, actions, slopes, values, anchored = found
    (n_steps, n_rows, obs_dim), action_dim = states.shape, actions.shape[2]
    width, share, back = obs_dim + action_dim, ONE / float32(particles), slopes.shape[1] > 0
    x, y, weights = empty((n_rows, width), float32), empty((n_rows, obs_dim), float32), empty(n_steps, float32)
    lam, ds, direct = empty_like(y), empty_like(y), empty((n_steps, n_rows if back else 0, width), float32)
    # The weights of one policy, of the chain and their activations just fit the cache, those of two policies do not.
    together = particles if ROW_BLOCK // 2 <= particles < ROW_BLOCK else ROW_BLOCK
    for low in range(start, stop, together):
        high = min(low + together, stop)
        for row in range(low, high):
            for k in range(obs_dim):
                states[0, row, k] = obs[row // particles, k]
        # All blocks save their slopes in the same place, which stays in the cache.
        saved = chain_slopes, low - start
        rollout_forward(low, high, particles, policy, chain, scales, noise, *saved, (x, y), states, actions)
        # Of the policies whose first row is in the block.
        b, n_base = -(-low // particles), -(-high // particles) - -(-low // particles) if len(anchored) else 0
        n, seen = high - low, states[:, low:high]
        terms = found_in(n, n + n_base, n_steps - 1, width if back else 0)
        base = obs[b : b + n_base], anchor[0][b : b + n_base]
        evaluate(reward, critics, scales, seen, actions[:, low:high], *base, terms)
        for i in range(n_base):
            anchored[b + i] = terms[1][0][n + i]
        for i in range(high - low):
            values[low + i] = add_up(i, ending, seen, terms[0][0], terms[1][0], weights)
            if back:
                take_terms(i, share, ending, scales, seen, weights, terms, direct[:, low:high])
        if back:
            back_to = policy_vjp, chain_vjp, scales, anchor, saved
            climb(low, high, particles, *back_to, actions[0], direct, slopes, (lam, ds, x))


@helper
def climb(low, high, particles, policy, chain, scales, anchor, saved, action, direct, slopes, scratch):
    """`rollout_backward` of J less the anchor's penalty, and the slopes of each particle's own J."""
    obs_dim, (n_steps, _, action_dim) = direct.shape[2] - slopes.shape[2], slopes.shape
    for row in range(low, high):
        for k in range(action_dim):
            direct[0, row, obs_dim + k] -= pull(anchor, particles, row, action, k)
    rollout_backward(low, high, particles, policy, chain, scales, *saved, direct, slopes, scratch)
    for j in range(n_steps):
        for row in range(low, high):
            for k in range(action_dim):
                own = slopes[j, row, k] + pull(anchor, particles, row, action, k) if j == 0 else slopes[j, row, k]
                slopes[j, row, k] = float32(particles) * own


@kernel(SCALAR, SCALAR, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX)
def outcome_of_rows(start, stop, reward, critics, scales, obs, action, last_action, found):
    """found (2, B): r of obs and action, and Q of obs and last_action; or (1, B): r alone."""
    (n, obs_dim), width = (stop - start, obs.shape[1]), obs.shape[1] + action.shape[1]
    seen, last, none = empty((n, width), float32), empty((n, width), float32), empty((0, width), float32)
    condition(scales, obs[start:stop], action[start:stop], seen)
    for i in range(n):
        for k in range(width):
            last[i, k] = obs[start + i, k] if k < obs_dim else last_action[start + i, k - obs_dim]
    scalar_gradient(0, n, *reward, seen, found[0, start:stop], none)
    if len(found) > 1:
        scalar_gradient(0, n, *critics, last, found[1, start:stop], none)
