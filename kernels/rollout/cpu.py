"""The serial part of a rollout on a CPU, policy and sampler H times, for a block of rows at a time.

There are N = B M rows. The formulas are those of `stepwise.py`, the buffers those of the operators' own `cpu.py`.
scales: obs_mean, obs_std, delta_mean and delta_std, (4, S).   policy_obs: the states as (B, R, S), policy by policy.
"""

from numba import types

from fastdwm_kernels.cpu import LAYERS, MATRIX, ROW, ROW_BLOCK, SIZE, STACK, block, helper, kernel, rows_of
from fastdwm_kernels.policy.cpu import policy_backward, policy_forward
from fastdwm_kernels.sampler.cpu import sampler_backward, sampler_forward

STACKS = types.float32[:, :, :, ::1]


@helper
def take_actions(low, high, first, particles, layer, outputs, n_rows, actions):
    """Copy actions (N, A) of rows low..high-1 from the policies' buffers, in which the step begins at row `first`."""
    for row in range(low, high):
        at = first + row % particles
        source = rows_of(outputs[row // particles], layer, at, at + 1, n_rows)
        for k in range(actions.shape[1]):
            actions[row, k] = source[0, k]


@helper
def condition(scales, state, action, x):
    """Write x = ((state - obs_mean) / obs_std, action)."""
    obs_dim = state.shape[1]
    for row in range(len(x)):
        for k in range(obs_dim):
            x[row, k] = (state[row, k] - scales[0, k]) / scales[1, k]
        for k in range(action.shape[1]):
            x[row, obs_dim + k] = action[row, k]


@helper
def copy_states(low, high, first, particles, state, policy_obs):
    """Copy rows of state (N, S) to policy_obs (B, R, S), in which the step begins at row `first`."""
    for row in range(low, high):
        for k in range(state.shape[1]):
            policy_obs[row // particles, first + row % particles, k] = state[row, k]


POLICY = types.Tuple((LAYERS, MATRIX, STACK, MATRIX, MATRIX))
SAMPLER = types.Tuple((LAYERS, ROW, MATRIX, MATRIX, MATRIX))
POLICY_VJP = types.Tuple((LAYERS, MATRIX, MATRIX, MATRIX))
SAMPLER_VJP = types.Tuple((LAYERS, ROW, MATRIX, MATRIX))
PAIR = types.UniTuple(MATRIX, 2)


@helper
def derivs_of(sampler_derivs, first, low, high, n_rows, hidden):
    """The sampler's derivatives (H K, .) for a block of rows; or (1, .), overwritten by each call, if none is needed.

    sampler_derivs: for all N rows, block after block, (N H K hidden,) or (N hidden,); row `first` is at its start.
    """
    kept = len(sampler_derivs) // (n_rows * hidden)
    return block(sampler_derivs, (low - first) * kept * hidden, kept, (high - low) * hidden)


@kernel(SIZE, POLICY, SAMPLER, MATRIX, STACKS, ROW, SIZE, PAIR, STACK, STACK)
def rollout_forward(
    start, stop, particles, policy, sampler, scales, noise, sampler_derivs, first_saved, scratch, states, actions
):
    """Write states (H + 1, N, S) after the first, which the caller sets, and actions (H + 1, N, A).

    policy, sampler: arguments of their own kernels.   noise: (H, K, N, S).   sampler_derivs, first_saved: as in
    `derivs_of`.   scratch: (N, S + A), (N, S).
    """
    (layers, flat, policy_obs, outputs, act_derivs), (x, y), horizon = policy, scratch, len(noise)
    for low in range(start, stop, ROW_BLOCK):
        high = min(low + ROW_BLOCK, stop)
        saved = derivs_of(sampler_derivs, first_saved, low, high, states.shape[1], sampler[0][-1, 3])
        for j in range(horizon + 1):
            state, action, first = states[j], actions[j], j * particles
            copy_states(low, high, first, particles, state, policy_obs)
            policy_forward(low, high, layers, flat, policy_obs, outputs, act_derivs, first, particles)
            take_actions(low, high, first, particles, layers[-1], outputs, policy_obs.shape[1], action)
            if j < horizon:
                condition(scales, state[low:high], action[low:high], x[low:high])
                at = j * noise.shape[1] if len(saved) > 1 else 0
                own = saved[at : at + noise.shape[1]]
                sampler_forward(0, high - low, *sampler, x[low:high], noise[j, :, low:high], own, y[low:high])
                for row in range(low, high):
                    for k in range(state.shape[1]):
                        states[j + 1, row, k] = state[row, k] + (scales[2, k] + scales[3, k] * y[row, k])


@kernel(SIZE, POLICY_VJP, SAMPLER_VJP, MATRIX, ROW, SIZE, STACK, STACK, types.UniTuple(MATRIX, 3))
def rollout_backward(
    start, stop, particles, policy, sampler, scales, sampler_derivs, first_saved, direct, action_grads, scratch
):
    """Write dz of all layers and steps, for the policies' weight gradients, and action_grads (H + 1, N, A).

    direct: (H + 1, N, S + A), gradient of each step's own terms, without what later steps add.
    policy, sampler: arguments of their own kernels.   scratch: (N, S), (N, S), (N, S + A).
    """
    (layers, flat_t, act_derivs, dz), (lam, ds, dx) = policy, scratch
    horizon, obs_dim = len(direct) - 1, lam.shape[1]
    for low in range(start, stop, ROW_BLOCK):
        high = min(low + ROW_BLOCK, stop)
        saved = derivs_of(sampler_derivs, first_saved, low, high, direct.shape[1], sampler[0][-1, 3])
        n_calls = len(saved) // max(horizon, 1)
        # Loops rather than slices, whose error message takes seconds to compile.
        for row in range(low, high):
            for k in range(direct.shape[2]):
                if k < obs_dim:
                    lam[row, k] = direct[horizon, row, k]
                else:
                    action_grads[horizon, row, k - obs_dim] = direct[horizon, row, k]
        for j in range(horizon, -1, -1):
            p = action_grads[j]
            if j < horizon:
                for row in range(low, high):
                    for k in range(obs_dim):
                        ds[row, k] = lam[row, k] * scales[3, k]
                own = saved[j * n_calls : (j + 1) * n_calls]
                sampler_backward(0, high - low, *sampler, own, ds[low:high], dx[low:high], ds[:0])
                for row in range(low, high):
                    for k in range(obs_dim):
                        lam[row, k] += dx[row, k] / scales[1, k] + direct[j, row, k]
                    for k in range(p.shape[1]):
                        p[row, k] = dx[row, obs_dim + k] + direct[j, row, obs_dim + k]
            rows = len(ds) if j else 0
            policy_backward(low, high, layers, flat_t, act_derivs, p, dz, ds[:rows], j * particles, particles)
            if j:
                for row in range(low, high):
                    for k in range(obs_dim):
                        lam[row, k] += ds[row, k]
