"""The guard of a decision: what it may execute for the trust that it has, and what it learns for the next one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.itpo.objective import Objective
from fastdwm.itpo.steps import Step
from fastdwm.kernels import trust as arithmetic
from fastdwm.kernels.trust import REWARD, TrustSettings

REASONS = ("none", "distance", "critic", "world")
"""why an action was drawn back toward the base policy's: it was too far from it, or the trust was low for the error of
the critic, or of the world model"""


@dataclass(frozen=True)
class Guarded:
    """What the guard did, per episode (B,): the trust, the root mean square distance of the action from the base
    policy's before it was drawn back, both NaN without a guard, and why it was, an index into REASONS."""

    trust: Tensor
    distance: Tensor
    reason: Tensor

    @classmethod
    def not_at_all(cls, like: Tensor) -> "Guarded":
        """Of another rule; like: (B,)."""
        unknown = torch.full_like(like, torch.nan)
        return cls(unknown, unknown, torch.zeros_like(like, dtype=torch.int64))


def hold(
    action: Tensor, base_action: Tensor, trust: Tensor, evidence: Tensor, settings: TrustSettings
) -> tuple[Tensor, Guarded]:
    """The action (B, A) to execute, no further from the base policy's than the trust allows, and what was done."""
    action, distance, reason = arithmetic.hold(action, base_action, trust, evidence, settings)
    return action, Guarded(trust, distance, reason)


def learn(
    evidence: Tensor,
    first: Step | None,
    objective: Objective,
    obs: Tensor,
    action: Tensor,
    base_action: Tensor,
    settings: TrustSettings,
    earned: Tensor | None,
) -> Tensor:
    """The evidence (B, 8) after the decision.

    first: its first inner step; without one the next comparison is off.   earned: (B,) by the action before, NaN or
    none where nobody said.
    """
    if settings.guarded:
        reward, value = objective.outcome(obs, action, base_action, None if first is None else first.found.anchored)
    else:
        reward = value = torch.full_like(obs[:, 0], torch.nan)
    if first is None:
        unknown = torch.full_like(reward, torch.nan)
        return torch.cat([evidence[:, :REWARD], torch.stack([reward, value, unknown], 1)], 1)
    seen = first.found.slopes, first.norm, reward, value, first.found.returns
    return arithmetic.observe(evidence, *seen, objective.discount, earned)
