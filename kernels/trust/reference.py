"""The trust's arithmetic in torch: any dtype and device. What the formulas are for: `fastdwm/itpo/trust.py`."""

from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 50
"""decisions over which the running means forget, but for the slope's, which is of the whole episode"""
SHARPNESS = 6
"""of the fall of the trust around `doubt`"""
LEAST_TRUST = 0.1
"""in the anchor's weight: a stronger pull would be all that the usual gradient knows of for hundreds of decisions"""
CAUTION, START = 20, 2.0
"""an episode begins in doubt: as if so many decisions had been made, with errors so many times what halves the trust"""
CLIP = 2.0
"""bound of the gradient's norm, as a multiple of the usual one"""
TINY = 1e-12
"""least mean square of the slopes that counts"""

COLUMNS = ("count", "log_slope", "square", "critic_error", "model_error", "reward", "value", "returns")
COUNT, LOG_SLOPE, SQUARE, CRITIC_ERROR, MODEL_ERROR, REWARD, VALUE, RETURNS = range(len(COLUMNS))
"""of the evidence (B, 8): decisions observed; running means of log P, of G2 and of the two errors; and of the last
decision the reward, V(s) and J. NaN where nothing is known yet."""


class TrustSettings(NamedTuple):
    """radius, speed, leash, doubt: as in `ITPOConfig`.   guarded: whether the trust has to be earned."""

    radius: float
    speed: float
    leash: float
    doubt: float
    guarded: bool


class Weights(NamedTuple):
    """What the evidence makes of a decision, per episode (B,): the trust, in [0, 1]; the weight of the anchor's squared
    distance; the step size, NaN while the gradient's usual norm is unknown; and the bound of that norm."""

    trust: Tensor
    anchor: Tensor
    step: Tensor
    bound: Tensor


@torch.no_grad()
def weigh_reference(evidence: Tensor, settings: TrustSettings, n_steps: int, n_actions: int) -> Weights:
    """Arguments as in `op.weigh`."""
    slope, square = evidence[:, LOG_SLOPE].exp(), evidence[:, SQUARE]
    trust = trust_in(evidence, slope, settings)
    anchor = n_steps * slope.nan_to_num(0) / (2 * settings.radius * trust.clamp(min=LEAST_TRUST))
    step = settings.speed * settings.radius * trust * n_actions * slope / square
    return Weights(trust, anchor, step, CLIP * square.sqrt())


def trust_in(evidence: Tensor, slope: Tensor, settings: TrustSettings) -> Tensor:
    """tau (B,); 0 until something is known.   Without a guard 1 as soon as a slope (B,) is."""
    if not settings.guarded:
        return (~slope.isnan()).to(evidence.dtype)
    error = evidence[:, CRITIC_ERROR : MODEL_ERROR + 1].amax(1)
    count = evidence[:, COUNT]
    doubts = (count * error / (slope * settings.doubt) + CAUTION * START) / (count + CAUTION)
    return (1 / (1 + doubts**SHARPNESS)).nan_to_num(0)


@torch.no_grad()
def clip_reference(weights: Weights, norm: Tensor) -> Tensor:
    """Arguments as in `op.clip`."""
    return (weights.step * (weights.bound / norm).clamp(max=1)).nan_to_num(0, posinf=0, neginf=0)


@torch.no_grad()
def hold_reference(
    action: Tensor, base_action: Tensor, trust: Tensor, evidence: Tensor, settings: TrustSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.hold`."""
    change = action - base_action
    distance = change.square().mean(1).sqrt()
    share, longest = (2 * trust).clamp(max=1), settings.leash / distance
    kept = torch.where(share > longest, longest, share)
    held = torch.where((kept < 1).unsqueeze(1), base_action + change * kept.unsqueeze(1), action)
    doubted = 2 + (evidence[:, MODEL_ERROR] > evidence[:, CRITIC_ERROR]).long()
    return held, distance, torch.where(share < 1, doubted, (longest < 1).long())


@torch.no_grad()
def observe_reference(
    evidence: Tensor, slopes: Tensor, norm: Tensor, reward: Tensor, value: Tensor, returns: Tensor, discount: float
) -> Tensor:
    """Arguments as in `op.observe`."""
    count, means, before = evidence.split([1, 4, 3], 1)
    now, slope = torch.stack([reward, value, returns], 1), slopes.square().mean((0, 2, 3)).clamp(min=TINY)
    errors = (before[:, :1] + discount * now[:, 1:] - before[:, 1:]).abs()
    news = torch.cat([torch.stack([slope.log() / 2, norm.square()], 1), errors], 1)
    count = count + 1
    rate = 1 / count
    rates = torch.cat([rate, rate.clamp(min=1 / MEMORY).expand(-1, 3)], 1)
    known = torch.where(means.isnan(), news, means.lerp(news, rates))
    return torch.cat([count, torch.where(news.isfinite(), known, means), now], 1)


def told(evidence: Tensor, reward: Tensor) -> Tensor:
    """The evidence with the real reward (B,) of the last action in place of the model's, where it is not NaN."""
    reward = torch.where(reward.isnan(), evidence[:, REWARD], reward)
    return torch.cat([evidence[:, :REWARD], reward.unsqueeze(1), evidence[:, VALUE:]], 1)
