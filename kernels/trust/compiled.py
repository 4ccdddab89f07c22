"""The trust's arithmetic on a CPU, episode by episode; the formulas are those of `reference.py`."""

from math import exp, isfinite, isnan, log, sqrt

import torch
from numba import types
from numpy import float32
from torch import Tensor

from fastdwm.kernels.compiled import MATRIX, ROW, STACK, helper, kernel, run
from fastdwm.kernels.trust.reference import (
    COUNT,
    CRITIC_ERROR,
    LOG_SLOPE,
    MODEL_ERROR,
    RETURNS,
    REWARD,
    SQUARE,
    VALUE,
    TrustSettings,
    Weights,
)

BAKED = dict(MEMORY=50, SHARPNESS=6, LEAST_TRUST=0.1, CAUTION=20, START=2.0, CLIP=2.0, TINY=1e-12)
"""the reference's constants once more: numba's cache on disk knows a kernel by the text of its own file alone"""
LEAST_TRUST, CLIP, TINY = (float32(BAKED[name]) for name in ("LEAST_TRUST", "CLIP", "TINY"))
CAUTION, PRIOR, SHARPNESS = float32(BAKED["CAUTION"]), float32(BAKED["CAUTION"] * BAKED["START"]), BAKED["SHARPNESS"]
SLOWEST = float32(1 / BAKED["MEMORY"])
LARGEST = float32(torch.finfo(torch.float32).max)
ONE, TWO, HALF, ZERO = float32(1), float32(2), float32(0.5), float32(0)

SETTINGS = types.Tuple([types.float64] * 4 + [types.boolean])
COST = 100
"""of an episode, in multiply-adds: no thread is worth it"""


@helper
def least(x, y):
    """The smaller one; a NaN x stays."""
    return y if x > y else x


@helper
def trust_in(row, slope, doubt, guarded):
    if not guarded:
        return ZERO if isnan(slope) else ONE
    if isnan(row[CRITIC_ERROR]) or isnan(row[MODEL_ERROR]):
        return ZERO
    error, count = max(row[CRITIC_ERROR], row[MODEL_ERROR]), row[COUNT]
    doubts = (count * error / (slope * doubt) + PRIOR) / (count + CAUTION)
    power = ONE
    for _ in range(SHARPNESS):
        power *= doubts
    trust = ONE / (ONE + power)
    return ZERO if isnan(trust) else trust


@kernel(MATRIX, SETTINGS, types.float64, types.float64, MATRIX)
def weigh(start, stop, evidence, settings, n_steps, n_actions, weights):
    """weights (4, B)."""
    radius, speed, doubt = float32(settings[0]), float32(settings[0] * settings[1]), float32(settings[3])
    for i in range(start, stop):
        row = evidence[i]
        slope, square = float32(exp(row[LOG_SLOPE])), row[SQUARE]
        trust = trust_in(row, slope, doubt, settings[4])
        known = ZERO if isnan(slope) else min(slope, LARGEST)
        weights[0, i] = trust
        weights[1, i] = float32(n_steps) * known / (TWO * radius * max(trust, LEAST_TRUST))
        weights[2, i] = speed * trust * float32(n_actions) * slope / square
        weights[3, i] = CLIP * sqrt(square)


@kernel(ROW, ROW, ROW, ROW)
def clip(start, stop, step, bound, norm, factor):
    """factor (B,)."""
    for i in range(start, stop):
        found = step[i] * least(bound[i] / norm[i], ONE)
        factor[i] = found if isfinite(found) else ZERO


@kernel(MATRIX, MATRIX, ROW, MATRIX, types.float64, MATRIX, ROW, types.int64[::1])
def hold(start, stop, action, base_action, trust, evidence, leash, held, distance, reason):
    """held (B, A), distance and reason (B,)."""
    size = action.shape[1]
    for i in range(start, stop):
        total = ZERO
        for j in range(size):
            change = action[i, j] - base_action[i, j]
            total += change * change
        distance[i] = sqrt(total / float32(size))
        share, longest = least(TWO * trust[i], ONE), float32(leash) / distance[i]
        kept = least(share, longest)
        for j in range(size):
            part = (action[i, j] - base_action[i, j]) * kept
            held[i, j] = base_action[i, j] + part if kept < ONE else action[i, j]
        doubted = 3 if evidence[i, MODEL_ERROR] > evidence[i, CRITIC_ERROR] else 2
        reason[i] = doubted if share < ONE else (1 if longest < ONE else 0)


@helper
def mean_square(slopes, i):
    """Of the slopes (H + 1, B, M A) of episode i."""
    total = ZERO
    for j in range(slopes.shape[0]):
        for k in range(slopes.shape[2]):
            total += slopes[j, i, k] * slopes[j, i, k]
    return total / float32(slopes.shape[0] * slopes.shape[2])


@helper
def blend(mean, news, rate):
    """The running mean after news, as torch.lerp computes it."""
    if not isfinite(news):
        return mean
    if isnan(mean):
        return news
    return mean + rate * (news - mean) if rate < HALF else news - (news - mean) * (ONE - rate)


@kernel(MATRIX, STACK, ROW, ROW, ROW, ROW, types.float64, MATRIX)
def observe(start, stop, evidence, slopes, norm, reward, value, returns, discount, after):
    """after (B, 8)."""
    discount = float32(discount)
    for i in range(start, stop):
        row, new = evidence[i], after[i]
        new[COUNT], new[REWARD], new[VALUE], new[RETURNS] = row[COUNT] + ONE, reward[i], value[i], returns[i]
        since_start, square = ONE / new[COUNT], mean_square(slopes, i)
        rate = max(since_start, SLOWEST)
        slope = TINY if square < TINY else square
        new[LOG_SLOPE] = blend(row[LOG_SLOPE], float32(log(slope)) / TWO, since_start)
        new[SQUARE] = blend(row[SQUARE], norm[i] * norm[i], rate)
        critic_error = abs(row[REWARD] + discount * new[VALUE] - row[VALUE])
        new[CRITIC_ERROR] = blend(row[CRITIC_ERROR], critic_error, rate)
        model_error = abs(row[REWARD] + discount * new[RETURNS] - row[RETURNS])
        new[MODEL_ERROR] = blend(row[MODEL_ERROR], model_error, rate)


def weigh_compiled(evidence: Tensor, settings: TrustSettings, n_steps: int, n_actions: int) -> Weights:
    """Arguments as in `op.weigh`."""
    weights = evidence.new_empty(len(Weights._fields), len(evidence))
    run(weigh, len(evidence), COST, evidence, tuple(settings), n_steps, n_actions, weights)
    return Weights(*weights.unbind())


def clip_compiled(weights: Weights, norm: Tensor) -> Tensor:
    """Arguments as in `op.clip`."""
    factor = torch.empty_like(norm)
    run(clip, len(norm), COST, weights.step, weights.bound, norm, factor)
    return factor


def hold_compiled(
    action: Tensor, base_action: Tensor, trust: Tensor, evidence: Tensor, settings: TrustSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.hold`."""
    found = torch.empty_like(action), torch.empty_like(trust), torch.empty_like(trust, dtype=torch.int64)
    run(hold, len(trust), COST, action, base_action, trust, evidence, settings.leash, *found)
    return found


def observe_compiled(
    evidence: Tensor, slopes: Tensor, norm: Tensor, reward: Tensor, value: Tensor, returns: Tensor, discount: float
) -> Tensor:
    """Arguments as in `op.observe`."""
    after = torch.empty_like(evidence)
    run(observe, len(norm), COST, evidence, slopes.flatten(2), norm, reward, value, returns, discount, after)
    return after
