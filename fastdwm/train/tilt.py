"""Tilted training of the world model: weights of the transitions move its capacity to where it is used.

[ITPO] v2 names "a suitable tilted version of one-step MeanFlow sampler" in its abstract. Its text is not public to us:
both tilts are our reading of that abstract and of secondary sources, and may differ from the authors'.

policy  weights exp(kappa q) / mean, q(s, a) = -|a - pi_0(s)|^2: the density of a narrow Gaussian around the frozen
        policy. It depends on (s, a) alone, so a large enough model has the same optimum; a small one gets better
        near the policy's actions and worse elsewhere.
value   weights exp(beta A / std A) / mean, A = V(s') - b(s, a), V(s') = min_i Q_i(s', pi_0(s')): good
        (beta > 0) or bad next states of an (s, a) get larger weights. b regresses V(s') on (s, a); without it the
        weights would favour inputs, not next states. Where transitions are deterministic A is the error of b.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.models.rebrac import Critics

MAX_WEIGHT = 20.0
"""bound on a weight before the mean is restored, so that no transition dominates a batch"""
MIN_ESS_SHARE = 0.5
"""smallest effective sample size, as a fraction of the data, of an automatic tilt"""
STRENGTHS = tuple(digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5))
"""candidates for the automatic strength"""
CHUNK_ROWS = 65_536
"""rows scored at once, to limit the memory of the activations"""


@dataclass(frozen=True)
class Tilt:
    """Weights (N,) of the transitions, float32 with mean 1, their strength and statistics."""

    weights: Tensor
    strength: float
    ess_share: float
    clipped_share: float

    def metrics(self) -> dict[str, float]:
        """Scalars to log."""
        return {
            "tilt_strength": self.strength,
            "tilt_ess_share": self.ess_share,
            "tilt_clipped_share": self.clipped_share,
            "tilt_min_weight": float(self.weights.min()),
            "tilt_max_weight": float(self.weights.max()),
        }


def tilt(score: Tensor, strength: float | None) -> Tilt:
    """Weights proportional to exp(strength score), capped at MAX_WEIGHT; all exactly 1 for strength 0.

    score: (N,), finite, of the whole training set.   strength: none: `largest_strength`.
    """
    score = score.double()
    if strength is None:
        strength = largest_strength(score)
    weights, clipped_share = tilt_weights(strength * score)
    return Tilt(weights.float(), strength, ess_share(weights), clipped_share)


def tilt_weights(exponent: Tensor) -> tuple[Tensor, float]:
    """Weights exp(exponent) / mean (N,), capped and with mean 1 again, and the fraction that the cap changed."""
    # Subtracting the largest exponent keeps exp from overflowing, or underflowing everywhere.
    weights = (exponent - exponent.max()).exp()
    weights = weights / weights.mean()
    capped = weights.clamp(max=MAX_WEIGHT)
    return capped / capped.mean(), float((weights > MAX_WEIGHT).double().mean())


def ess_share(weights: Tensor) -> float:
    """Effective sample size (sum w)^2 / sum w^2 as a fraction of N."""
    return float(weights.mean().square() / weights.square().mean())


def largest_strength(score: Tensor) -> float:
    """The largest of STRENGTHS with an effective sample size of at least MIN_ESS_SHARE; 0 if there is none."""
    kept = [s for s in STRENGTHS if ess_share(tilt_weights(s * score)[0]) >= MIN_ESS_SHARE]
    return max(kept, default=0.0)


@torch.no_grad()
def policy_score(actor: Callable[[Tensor], Tensor], obs: Tensor, action: Tensor) -> Tensor:
    """q (N,) = -|a - pi_0(s)|^2, summed over the action's coordinates.

    actor(obs): the policy's actions.   obs: (N, S) raw units.   action: (N, A) in [-1, 1].
    """
    rows = zip(obs.split(CHUNK_ROWS), action.split(CHUNK_ROWS), strict=True)
    return torch.cat([-(a - actor(s)).square().sum(-1) for s, a in rows])


@torch.no_grad()
def outcome_value(actor: Callable[[Tensor], Tensor], critics: Critics, next_obs: Tensor, terminated: Tensor) -> Tensor:
    """V(s') (N,): the smaller critic's value of the policy's action, 0 where the episode terminated.

    actor(obs): the policy's actions.   next_obs: (N, S) raw units.   terminated: (N,) bool.
    """
    rows = next_obs.split(CHUNK_ROWS)
    value = torch.cat([critics(s, actor(s)).amin(0) for s in rows])
    # No critic was trained on states after a termination.
    return value.masked_fill(terminated, 0.0)


@torch.no_grad()
def value_score(baseline: Callable[[Tensor, Tensor], Tensor], obs: Tensor, action: Tensor, value: Tensor) -> Tensor:
    """A / std A (N,), A = V(s') - b(s, a): how much better the next state is than expected.

    baseline(obs, action): b (N,), such as a `reward.RewardModel` fitted to `value` (N,), see `outcome_value`.
    """
    rows = zip(obs.split(CHUNK_ROWS), action.split(CHUNK_ROWS), strict=True)
    advantage = value - torch.cat([baseline(s, a) for s, a in rows])
    return advantage / advantage.std().clamp(min=torch.finfo(advantage.dtype).tiny)
