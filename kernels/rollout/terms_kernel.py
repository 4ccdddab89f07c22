"""Triton kernel of the imagined return: discounted sum of the rewards and terminal value, and their weights in it."""

import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import pad_block, run
from fastdwm_kernels.rollout.imagine import Return

BLOCK = 64
"""particles that a program processes at a time"""
NUM_WARPS = 4


@triton.jit
def terminal_value(values_ptr, at, inside, n_values, N_COPIES: tl.constexpr, REDUCE: tl.constexpr):
    """Values of the shape of `at`, reduced over the copies (N_COPIES, n_values)."""
    value = tl.load(values_ptr + at, mask=inside, other=0.0)
    for q in tl.static_range(1, N_COPIES):
        other = tl.load(values_ptr + tl.cast(n_values, tl.int64) * q + at, mask=inside, other=0.0)
        if REDUCE == "min":
            # NaN counts as the least, as in torch.
            value = tl.where((other < value) | (other != other), other, value)
        elif REDUCE == "mean":
            value += other
    return value / N_COPIES if REDUCE == "mean" else value


@triton.jit
def survival(state_ptr, rows, inside, index_ptr, limits_ptr, S: tl.constexpr, N_LIMITS: tl.constexpr,
             SOFT: tl.constexpr):  # fmt: skip
    """c (BLOCK,) of states (rows, S); limits (3, N_LIMITS): low, high, width."""
    alive = tl.full(rows.shape, 1.0, tl.float32)
    for i in tl.static_range(N_LIMITS):
        x = tl.load(state_ptr + rows * S + tl.load(index_ptr + i), mask=inside, other=0.0)
        low, high = tl.load(limits_ptr + i), tl.load(limits_ptr + N_LIMITS + i)
        if SOFT:
            width = tl.load(limits_ptr + 2 * N_LIMITS + i)
            alive *= tl.sigmoid((x - low) / width) * tl.sigmoid((high - x) / width)
        else:
            alive = tl.where((x > low) & (x < high), alive, 0.0)
    return alive


@triton.jit
def log_survival_gradient(state_ptr, rows, inside, index_ptr, limits_ptr, S: tl.constexpr, N_LIMITS: tl.constexpr,
                          BLOCK_S: tl.constexpr):  # fmt: skip
    """d log c / ds (BLOCK, BLOCK_S)."""
    column = tl.arange(0, BLOCK_S)[None, :]
    total = tl.zeros((rows.shape[0], BLOCK_S), tl.float32)
    for i in tl.static_range(N_LIMITS):
        index = tl.load(index_ptr + i)
        x = tl.load(state_ptr + rows * S + index, mask=inside, other=0.0)
        low, high = tl.load(limits_ptr + i), tl.load(limits_ptr + N_LIMITS + i)
        width = tl.load(limits_ptr + 2 * N_LIMITS + i)
        grads = (tl.sigmoid((low - x) / width) - tl.sigmoid((x - high) / width)) / width
        total += tl.where(column == index, grads[:, None], 0.0)
    return total


@triton.jit(do_not_specialize=["n_rows", "horizon", "discount"])
def terms_kernel(rewards_ptr, values_ptr, states_ptr, index_ptr, limits_ptr, returns_ptr, weights_ptr, extra_ptr,
                 n_rows, horizon, discount, S: tl.constexpr, N_COPIES: tl.constexpr, REDUCE: tl.constexpr,
                 TERMINATION: tl.constexpr, N_LIMITS: tl.constexpr, BLOCK: tl.constexpr,
                 BLOCK_S: tl.constexpr):  # fmt: skip
    """The return of one policy, and its gradient with respect to every reward and terminal value.

    Grid      (B,)
    Reads     rewards (horizon, B, n_rows), values (N_COPIES, B n_rows) of the last states, states
              (B, horizon + 1, n_rows, S) in the tape, index (N_LIMITS,) int64, limits (3, N_LIMITS): low, high, width
    Writes    returns (B,); weights (horizon + 1, B, n_rows), with the factor 1 / n_rows of the mean; with TERMINATION
              "soft" extra (horizon + 1, B, n_rows, S), the gradient through the states' survival, except for the first
              states: every element once
    """
    episode, n_all = tl.program_id(0).to(tl.int64), tl.num_programs(0) * n_rows
    states_ptr += episode * (horizon + 1) * n_rows * S
    share = 1.0 / n_rows
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_rows, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = rows < n_rows
        at = episode * n_rows + rows
        weight = tl.full((BLOCK,), 1.0, tl.float32)
        for j in range(horizon):
            step = tl.cast(j, tl.int64) * n_all
            tl.store(weights_ptr + step + at, weight * share, mask=inside)
            sums += weight * tl.load(rewards_ptr + step + at, mask=inside, other=0.0)
            weight *= discount
            if TERMINATION != "none":
                state_ptr = states_ptr + (j + 1) * n_rows * S
                weight *= survival(state_ptr, rows, inside, index_ptr, limits_ptr, S, N_LIMITS, TERMINATION == "soft")
        return_to_go = weight * terminal_value(values_ptr, at, inside, n_all, N_COPIES, REDUCE)
        tl.store(weights_ptr + tl.cast(horizon, tl.int64) * n_all + at, weight * share, mask=inside)
        sums += return_to_go
        if TERMINATION == "soft":
            tl.debug_barrier()
            return_to_go *= share
            column = tl.arange(0, BLOCK_S)[None, :]
            for i in range(horizon):
                j = horizon - i
                state_ptr = states_ptr + j * n_rows * S
                grads = log_survival_gradient(state_ptr, rows, inside, index_ptr, limits_ptr, S, N_LIMITS, BLOCK_S)
                place = (tl.cast(j, tl.int64) * n_all + at)[:, None] * S + column
                tl.store(extra_ptr + place, return_to_go[:, None] * grads, mask=inside[:, None] & (column < S))
                before = tl.cast(j - 1, tl.int64) * n_all + at
                reward = tl.load(rewards_ptr + before, mask=inside, other=0.0)
                return_to_go += tl.load(weights_ptr + before, mask=inside, other=0.0) * reward
    tl.store(returns_ptr + episode, tl.sum(sums) * share)


def terms(
    returns: Return, rewards: Tensor | None, values: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """J (B,), the weights ((H + 1) N,) of rewards and terminal value, and for the soft termination the gradient
    (H + 1, N, S) through the states' survival, undefined for the first states; one launch.

    rewards: (1, H N); None for H = 0.   values: (Q, N) of the critics.   states: (B, H + 1, M, S).
    """
    n_policies, n_steps, n_rows, obs_dim = states.shape
    soft, rule = returns.termination == "soft", returns.critics
    objective, weights = values.new_empty(n_policies), values.new_empty(n_steps * n_policies * n_rows)
    extra = values.new_empty(n_steps, n_policies * n_rows, obs_dim) if soft else None
    run(
        terms_kernel, (n_policies,),
        values if rewards is None else rewards, values, states, returns.index, returns.bounds, objective, weights,
        extra, n_rows, n_steps - 1, returns.discount,
        S=obs_dim, N_COPIES=1 if rule.reduce == "first" else len(values), REDUCE=rule.reduce,
        TERMINATION=returns.termination if len(returns.index) else "none", N_LIMITS=len(returns.index), BLOCK=BLOCK,
        BLOCK_S=pad_block(obs_dim), num_warps=NUM_WARPS,
    )  # fmt: skip
    return objective, weights, extra


def aot_cases(obs_dim: int) -> list[AotCase]:
    """Each kind of termination, with the smaller of two critics."""
    sizes = dict(S=obs_dim, N_COPIES=2, REDUCE="min", BLOCK=BLOCK, BLOCK_S=pad_block(obs_dim))
    pointers = {p: "fp32" for p in terms_kernel.arg_names if p.endswith("_ptr")} | {"index_ptr": "i64"}
    return [
        AotCase(
            name=f"terms_kernel S{obs_dim} {termination}",
            kernel=terms_kernel,
            pointers={p: kind for p, kind in pointers.items() if p not in unused},
            constexprs=sizes
            | dict(TERMINATION=termination, N_LIMITS=0 if termination == "none" else 3)
            | dict.fromkeys(unused),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
            scalars={"discount": "fp32"},
        )
        for termination, unused in (("none", ("extra_ptr",)), ("mask", ("extra_ptr",)), ("soft", ()))
    ]
