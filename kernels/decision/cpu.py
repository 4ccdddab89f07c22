"""The CPU kernel of a whole decision with all inner steps, composed of those of `rollout`, `update` and `policy`."""

from math import isfinite

from numba import carray, types
from numpy import float32

from fastdwm_kernels.cpu import LAYERS, MATRIX, ROW, SIZE, STACK, address, block, helper, kernel, transpose
from fastdwm_kernels.frozen_mlp.cpu import SCALAR
from fastdwm_kernels.policy.cpu import policy_act, policy_weight_gradient
from fastdwm_kernels.rollout.cpu import SAMPLER, SAMPLER_VJP
from fastdwm_kernels.rollout.cpu_return import ENDING, imagined_return
from fastdwm_kernels.update.cpu import bound_step, deviation_of, pull

RULE = types.UniTuple(types.float64, 2)
"""action_step and max_deviation"""
FROZEN = types.Tuple((SAMPLER, SAMPLER_VJP, SCALAR, SCALAR, MATRIX))
"""sampler and its VJP, reward, critics and scales"""
BANKS = types.float32[:, :, :, :, ::1]
POLICIES = types.UniTuple(MATRIX, 2)
"""parameters (B, P), and the running statistics `memory` (B, 2) of `bound_step`"""
TAPE = types.Tuple(
    (STACK, MATRIX, MATRIX, ROW, MATRIX, MATRIX, STACK, STACK, STACK, ROW, MATRIX, MATRIX, STACK, STACK, ROW)
)
"""scratch arrays of a decision, named in `decide_rows`"""


@helper
def shaped(array, rows, columns, depth):
    """A view (rows, columns, depth), without reshape, whose error message takes seconds to compile."""
    return carray(address(array, 0), (rows, columns, depth))


@kernel(SIZE, SIZE, RULE, LAYERS, FROZEN, ENDING, BANKS, MATRIX, MATRIX, POLICIES, POLICIES, TAPE, MATRIX)
def decide_rows(
    start, stop, particles, inner_steps, rule, layers, frozen, ending, noise, obs, base, before, after, tape, report
):
    """Write `after` and report (B, A + 4) of the episodes start..stop-1; arguments as in `op.Decider`."""
    policy_obs, outputs, act_derivs, sampler_derivs, dz, flat_t, states, actions, action_grads, values = tape[:10]
    grads, sq_norms, base_action, action, norm = tape[10:]
    sampler, sampler_vjp, reward, critics, scales = frozen
    (n, obs_dim), n_layers, (n_steps, _, action_dim) = obs.shape, len(layers), actions.shape
    n_action_grads = n_steps * particles * action_dim
    all_grads = shaped(action_grads, n_steps, n, particles * action_dim)
    policy_act(start, stop, layers, base, shaped(obs, 1, n, obs_dim), base_action)
    for b in range(start, stop):
        report[b, action_dim + 2] = float32(0)
    for e in range(inner_steps):
        flat, memory = after if e else before
        transpose(start, stop, layers, flat, flat_t)
        policy, policy_vjp = (layers, flat, policy_obs, outputs, act_derivs), (layers, flat_t, act_derivs, dz)
        models = policy, policy_vjp, sampler, sampler_vjp, reward, critics, scales
        memories = states, actions, action_grads, values
        rows = start * particles, stop * particles, particles
        imagined_return(*rows, models, ending, noise[e % len(noise)], sampler_derivs, obs, memories)
        policy_weight_gradient(start * n_layers, stop * n_layers, layers, policy_obs, outputs, dz, grads, sq_norms)
        scale = rule[0] * n_steps * action_dim
        bound_step(
            start, stop, flat, grads, sq_norms, all_grads, memory, scale, n_action_grads, after[0], norm, after[1]
        )
        for b in range(start, stop):
            objective = float32(0)
            for m in range(b * particles, (b + 1) * particles):
                objective += values[m]
            objective /= float32(particles)
            if e == 0:
                report[b, action_dim], report[b, action_dim + 1] = objective, norm[b]
            if not (isfinite(objective) and isfinite(norm[b])):
                report[b, action_dim + 2] = float32(1)
    policy_act(start, stop, layers, after[0], shaped(obs, n, 1, obs_dim), action)
    acts = block(action, 0, n, action_dim), block(base_action, 0, n, action_dim)
    for b in range(start, stop):
        commit_row(acts[0][b], acts[1][b], after[0][b], base[0], rule[1], report[b])
        if report[b, action_dim + 2] > 0:
            for i in range(len(before)):
                for j in range(before[i].shape[1]):
                    after[i][b, j] = before[i][b, j]


@helper
def commit_row(action, base_action, params, base, max_deviation, report):
    """Clip one episode's action, and its policy likewise, as `pull_back` does; report the decision, with the base
    policy's action if something is not finite."""
    size = len(action)
    deviation = deviation_of(action, base_action)
    share = float32(max_deviation) / deviation
    # Most decisions are not clipped, and then the parameters need not be read.
    if share < float32(1):
        pull(params, base, share, params)
        pull(action, base_action, share, action)
    for k in range(size):
        if not isfinite(action[k]):
            report[size + 2] = float32(1)
    for k in range(size):
        report[k] = base_action[k] if report[size + 2] > 0 else action[k]
    report[size + 3] = deviation
