"""Triton kernels of the trust's arithmetic: one program for each episode, most of it scalar.

The formulas are those of `reference.py`. Nothing is NaN after a comparison that NaN fails: hence the order of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.launch import pad_block, run
from fastdwm.kernels.trust import reference
from fastdwm.kernels.trust.reference import COLUMNS, TrustSettings, Weights

BLOCK = 256
"""slopes that a program reads at a time"""
NUM_WARPS = 1

N_COLUMNS = tl.constexpr(len(COLUMNS))
COUNT, LOG_SLOPE, SQUARE, CRITIC_ERROR, MODEL_ERROR, REWARD, VALUE, RETURNS = map(tl.constexpr, range(len(COLUMNS)))
MEMORY, SHARPNESS = tl.constexpr(reference.MEMORY), tl.constexpr(reference.SHARPNESS)
LEAST_TRUST, CLIP, TINY, CAUTION, START = (
    tl.constexpr(getattr(reference, name)) for name in ("LEAST_TRUST", "CLIP", "TINY", "CAUTION", "START")
)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def is_finite(x):
    return tl.abs(x) <= LARGEST


@triton.jit(do_not_specialize=["n_episodes", "n_steps", "n_actions", "radius", "speed", "doubt"])
def weigh_fwd_kernel(evidence_ptr, weights_ptr, n_episodes, n_steps, n_actions, radius, speed, doubt,
                     GUARDED: tl.constexpr):  # fmt: skip
    """Trust, anchor's weight, step size and norm bound of one episode.

    Grid      (B,)
    Reads     evidence (B, 8)
    Writes    weights (4, B)
    """
    episode = tl.program_id(0)
    row_ptr = evidence_ptr + episode * N_COLUMNS
    slope, square = tl.exp(tl.load(row_ptr + LOG_SLOPE)), tl.load(row_ptr + SQUARE)
    trust = tl.where(slope == slope, 1.0, 0.0)
    if GUARDED:
        critic_error, model_error = tl.load(row_ptr + CRITIC_ERROR), tl.load(row_ptr + MODEL_ERROR)
        # A sum is NaN where one of the two is; the larger of them need not be.
        error = tl.where(critic_error > model_error, critic_error, model_error) + 0 * (critic_error + model_error)
        count = tl.load(row_ptr + COUNT)
        ratio = (count * error / (slope * doubt) + CAUTION * START) / (count + CAUTION)
        doubts = ratio
        for _ in tl.static_range(SHARPNESS - 1):
            doubts *= ratio
        trust = 1 / (1 + doubts)
        trust = tl.where(trust == trust, trust, 0.0)
    known = tl.where(slope == slope, tl.where(slope > LARGEST, LARGEST, slope), 0.0)
    anchor = n_steps * known / (2 * radius * tl.where(trust < LEAST_TRUST, LEAST_TRUST, trust))
    tl.store(weights_ptr + episode, trust)
    tl.store(weights_ptr + n_episodes + episode, anchor)
    tl.store(weights_ptr + 2 * n_episodes + episode, speed * radius * trust * n_actions * slope / square)
    tl.store(weights_ptr + 3 * n_episodes + episode, tl.sqrt(square) * CLIP)


@triton.jit(do_not_specialize_on_alignment=["step_ptr", "bound_ptr"])
def clip_fwd_kernel(step_ptr, bound_ptr, norm_ptr, factor_ptr):
    """The step size of one episode, less where the gradient is too long.

    Grid      (B,)
    Reads     step, bound, norm (B,)
    Writes    factor (B,)
    """
    episode = tl.program_id(0)
    share = tl.load(bound_ptr + episode) / tl.load(norm_ptr + episode)
    factor = tl.load(step_ptr + episode) * tl.where(share > 1, 1.0, share)
    tl.store(factor_ptr + episode, tl.where(is_finite(factor), factor, 0.0))


@triton.jit(do_not_specialize=["n_actions", "leash"])
def hold_fwd_kernel(action_ptr, base_ptr, trust_ptr, evidence_ptr, held_ptr, distance_ptr, reason_ptr, n_actions,
                    leash, BLOCK: tl.constexpr):  # fmt: skip
    """The action of one episode, drawn back as far as its trust demands.

    Grid      (B,)
    Reads     action, base (B, n_actions), trust (B,), evidence (B, 8)
    Writes    held (B, n_actions), distance (B,), reason (B,) int64
    Requires  BLOCK >= n_actions
    """
    episode, column = tl.program_id(0), tl.arange(0, BLOCK)
    at, inside = episode * n_actions + column, column < n_actions
    action = tl.load(action_ptr + at, mask=inside, other=0.0)
    base = tl.load(base_ptr + at, mask=inside, other=0.0)
    change = action - base
    distance = tl.sqrt(tl.sum(change * change) / n_actions)
    trust = tl.load(trust_ptr + episode)
    share, longest = tl.where(2 * trust > 1, 1.0, 2 * trust), leash / distance
    kept = tl.where(share > longest, longest, share)
    row_ptr = evidence_ptr + episode * N_COLUMNS
    doubted = 2 + (tl.load(row_ptr + MODEL_ERROR) > tl.load(row_ptr + CRITIC_ERROR)).to(tl.int64)
    tl.store(held_ptr + at, tl.where(kept < 1, base + change * kept, action), mask=inside)
    tl.store(distance_ptr + episode, distance)
    tl.store(reason_ptr + episode, tl.where(share < 1, doubted, (longest < 1).to(tl.int64)))


@triton.jit
def blended(mean, news, rate):
    """The running mean after news, as torch.lerp computes it."""
    known = tl.where(rate < 0.5, mean + rate * (news - mean), news - (news - mean) * (1 - rate))
    return tl.where(is_finite(news), tl.where(mean == mean, known, news), mean)


@triton.jit(do_not_specialize=["n_steps", "width", "discount"], do_not_specialize_on_alignment=["earned_ptr"])
def observe_fwd_kernel(evidence_ptr, slopes_ptr, norm_ptr, reward_ptr, value_ptr, returns_ptr, earned_ptr, after_ptr,
                       n_steps, width, discount, BLOCK: tl.constexpr):  # fmt: skip
    """The evidence of one episode after its decision.

    Grid      (B,)
    Reads     evidence (B, 8), slopes (n_steps, B, width), norm, reward, value, returns (B,), earned (B,) or None
    Writes    after (B, 8)
    """
    episode, n_episodes = tl.program_id(0), tl.num_programs(0)
    n_slopes = n_steps * width
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_slopes, BLOCK):
        index = start + tl.arange(0, BLOCK)
        at = ((index // width).to(tl.int64) * n_episodes + episode) * width + index % width
        slope = tl.load(slopes_ptr + at, mask=index < n_slopes, other=0.0)
        total += slope * slope
    square = tl.sum(total) / n_slopes
    square = tl.where(square < TINY, TINY, square)
    row_ptr, new_ptr = evidence_ptr + episode * N_COLUMNS, after_ptr + episode * N_COLUMNS
    norm, reward = tl.load(norm_ptr + episode), tl.load(reward_ptr + episode)
    value, returns = tl.load(value_ptr + episode), tl.load(returns_ptr + episode)
    count, earned = tl.load(row_ptr + COUNT) + 1, tl.load(row_ptr + REWARD)
    if earned_ptr is not None:
        told = tl.load(earned_ptr + episode)
        earned = tl.where(told == told, told, earned)
    since_start = 1 / count
    rate = tl.where(since_start < 1 / MEMORY, 1 / MEMORY, since_start)
    critic_error = tl.abs(earned + discount * value - tl.load(row_ptr + VALUE))
    model_error = tl.abs(earned + discount * returns - tl.load(row_ptr + RETURNS))
    tl.store(new_ptr + COUNT, count)
    tl.store(new_ptr + LOG_SLOPE, blended(tl.load(row_ptr + LOG_SLOPE), tl.log(square) / 2, since_start))
    tl.store(new_ptr + SQUARE, blended(tl.load(row_ptr + SQUARE), norm * norm, rate))
    tl.store(new_ptr + CRITIC_ERROR, blended(tl.load(row_ptr + CRITIC_ERROR), critic_error, rate))
    tl.store(new_ptr + MODEL_ERROR, blended(tl.load(row_ptr + MODEL_ERROR), model_error, rate))
    tl.store(new_ptr + REWARD, reward)
    tl.store(new_ptr + VALUE, value)
    tl.store(new_ptr + RETURNS, returns)


def weigh_fwd(evidence: Tensor, settings: TrustSettings, n_steps: int, n_actions: int) -> Weights:
    """One launch; arguments as in `op.weigh`."""
    weights = evidence.new_empty(len(Weights._fields), len(evidence))
    scalars = len(evidence), n_steps, n_actions, settings.radius, settings.speed, settings.doubt
    grid, options = (len(evidence),), dict(GUARDED=settings.guarded, num_warps=NUM_WARPS)
    run(weigh_fwd_kernel, grid, evidence, weights, *scalars, **options)
    return Weights(*weights.unbind())


def clip_fwd(weights: Weights, norm: Tensor) -> Tensor:
    """One launch; arguments as in `op.clip`."""
    factor = torch.empty_like(norm)
    run(clip_fwd_kernel, (len(norm),), weights.step, weights.bound, norm, factor, num_warps=NUM_WARPS)
    return factor


def hold_fwd(
    action: Tensor, base_action: Tensor, trust: Tensor, evidence: Tensor, settings: TrustSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch; arguments as in `op.hold`."""
    found = torch.empty_like(action), torch.empty_like(trust), torch.empty_like(trust, dtype=torch.int64)
    given, (n_episodes, n_actions) = (action, base_action, trust, evidence, *found), action.shape
    options = dict(BLOCK=pad_block(n_actions), num_warps=NUM_WARPS)
    run(hold_fwd_kernel, (n_episodes,), *given, n_actions, settings.leash, **options)
    return found


def observe_fwd(
    evidence: Tensor,
    slopes: Tensor,
    norm: Tensor,
    reward: Tensor,
    value: Tensor,
    returns: Tensor,
    discount: float,
    earned: Tensor | None = None,
) -> Tensor:
    """One launch; arguments as in `op.observe`."""
    after = torch.empty_like(evidence)
    n_steps, n_episodes, particles, n_actions = slopes.shape
    given = evidence, slopes, norm, reward, value, returns, earned, after
    sizes = n_steps, particles * n_actions, discount
    run(observe_fwd_kernel, (n_episodes,), *given, *sizes, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return after


def aot_cases() -> list[AotCase]:
    """All four; that of the trust with a guard."""
    kernels = {
        weigh_fwd_kernel: {"GUARDED": True},
        clip_fwd_kernel: {},
        hold_fwd_kernel: {"BLOCK": pad_block(1)},
        observe_fwd_kernel: {"BLOCK": BLOCK},
    }
    return [
        AotCase(
            name=kernel.__name__,
            kernel=kernel,
            pointers={p: "i64" if p == "reason_ptr" else "fp32" for p in kernel.arg_names if p.endswith("_ptr")},
            constexprs=constants,
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
            scalars=dict.fromkeys({"radius", "speed", "doubt", "leash", "discount"} & {*kernel.arg_names}, "fp32"),
        )
        for kernel, constants in kernels.items()
    ]
