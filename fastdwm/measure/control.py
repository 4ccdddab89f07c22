"""The control of an evaluation: the base policy pushed as far as ITPO may push it, in a meaningless direction."""

import numpy as np
import torch

from fastdwm.bundle import Bundle
from fastdwm.models.policy import Policy

MEMORY = 50
"""decisions over which the direction of the push is correlated"""


class Drift:
    """Acts as the base policy, plus noise of a fixed size whose direction wanders slowly; used like an `Agent`.

    A base policy that is stuck can gain from any push. What ITPO gains counts as far as it is more than this control's.
    """

    deadline = None

    def __init__(self, bundle: Bundle, size: float, seed: int = 0):
        """size: root mean square of the push over the action's numbers.   Episode i draws from seed + i."""
        self.policy, self.size, self.seed = Policy.mlp(bundle.policy), size, seed
        self.reset()

    def reset(self) -> None:
        """Begin new episodes; the next observations decide how many."""
        self.discarded, self._generators = np.zeros(0, int), []

    def keep(self, mask: np.ndarray) -> None:
        """Go on with the episodes in mask (B,) alone."""
        self.discarded, self._push = self.discarded[mask], self._push[mask]
        self._generators = [generator for generator, kept in zip(self._generators, mask, strict=True) if kept]

    def diagnose(self) -> dict[str, np.ndarray]:
        """Nothing: nothing is imagined."""
        return {}

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions (B, A) float32 in [-1, 1] for obs (B, S), or (A,) for (S,)."""
        rows = torch.as_tensor(obs, dtype=torch.float32).reshape(-1, obs.shape[-1])
        base = self.policy.act(self.policy.base.expand(len(rows), -1), rows).numpy()
        if not self._generators:
            self._generators = [np.random.default_rng(self.seed + i) for i in range(len(rows))]
            self._push, self.discarded = self._draw(base.shape[1]), np.zeros(len(rows), int)
        rho = np.exp(-1 / MEMORY)
        self._push = rho * self._push + np.sqrt(1 - rho**2) * self._draw(base.shape[1])
        scale = self.size / np.sqrt(np.square(self._push).mean(1, keepdims=True))
        return np.clip(base + scale * self._push, -1, 1).astype(np.float32).reshape(*obs.shape[:-1], -1)

    def _draw(self, action_dim: int) -> np.ndarray:
        return np.stack([generator.standard_normal(action_dim) for generator in self._generators])
