"""Reward model: regress the dataset's reward on observation and action."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.models.config import RewardConfig
from fastdwm.models.nets import Loss, Params, mlp, mlp_shapes


@dataclass(frozen=True)
class RewardModel:
    """ReLU MLP on (normalised obs, action); obs_mean, obs_std (S,)."""

    params: Params
    obs_mean: Tensor
    obs_std: Tensor

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """Expected reward (...) for obs (..., S) in raw units and action (..., A) in [-1, 1]."""
        x = torch.cat([(obs - self.obs_mean) / self.obs_std, action], -1)
        return mlp(self.params, x).squeeze(-1)


def reward_shapes(obs_dim: int, action_dim: int, config: RewardConfig) -> dict[str, tuple]:
    """Parameter shapes of the reward network."""
    return mlp_shapes((obs_dim + action_dim, *config.hidden, 1))


def reward_loss(model: RewardModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error on the batch's obs (N, S), action (N, A), reward (N,)."""
    return F.mse_loss(model(batch["obs"], batch["action"]), batch["reward"])


def reward_objective(statistics: dict[str, Tensor]) -> Loss:
    """`reward_loss` as a function of parameters and batch; uses no randomness."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return reward_loss(RewardModel(params, statistics["obs_mean"], statistics["obs_std"]), batch)

    return loss
