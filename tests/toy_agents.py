"""Settings, observations and a policy module for tests of small agents."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_bundles import ACTION_DIM, OBS_DIM

from fastdwm.config import ITPOConfig

CONFIG = ITPOConfig(horizon=2, particles=3)
SGD = ITPOConfig(horizon=2, particles=3, optimiser="sgd", inner_lr=1e-2)
RULES = pytest.mark.parametrize("config", [CONFIG, SGD], ids=["bound", "sgd"])
BOUND = replace(CONFIG, max_deviation=0.05)
"""for a user's own parts, whose maximum deviation cannot be read from a bundle"""
OWN_RULES = pytest.mark.parametrize("config", [BOUND, SGD], ids=["bound", "sgd"])


def observations(n_decisions: int, n_episodes: int, seed: int = 0) -> np.ndarray:
    """Random observations (decisions, episodes, S) in float32."""
    return np.random.default_rng(seed).normal(size=(n_decisions, n_episodes, OBS_DIM)).astype(np.float32)


class Gated(nn.Module):
    """Policy module that cannot be fused: a gate, a layer norm, constant buffers and an unused parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.gate, self.body = nn.Linear(OBS_DIM, 16), nn.Linear(OBS_DIM, 16)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, ACTION_DIM)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.full((OBS_DIM,), 0.1))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, obs):
        obs = (obs - self.mean).clamp(-5, 5)
        return torch.tanh(self.out(self.norm(self.gate(obs).sigmoid() * self.body(obs))))
