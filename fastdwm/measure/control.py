"""The control of an evaluation: the base policy plus a random push as large as ITPO's maximum deviation."""

import numpy as np
import torch

from fastdwm.bundle import Bundle

MEMORY = 50
"""decisions after which the correlation of the push has fallen to 1/e"""


class Drift:
    """The base policy plus noise of a fixed size whose direction changes slowly; used like an `Agent`.

    A base policy that is stuck can gain from any push, so only the part of ITPO's gain above this control's counts.
    """

    deadline = None

    def __init__(self, bundle: Bundle, size: float, seed: int = 0):
        """size: root mean square of the push over the action's coordinates.   Episode i draws from seed + i."""
        self.policy, self.size, self.seed = bundle.base_policy, size, seed
        self.reset()

    def reset(self) -> None:
        """Start new episodes, one for each row of the next observations."""
        self.discarded, self._generators = np.zeros(0, int), []

    def keep(self, mask: np.ndarray) -> None:
        """Keep the episodes in mask (B,) and drop the others."""
        self.discarded, self._push = self.discarded[mask], self._push[mask]
        self._generators = [generator for generator, kept in zip(self._generators, mask, strict=True) if kept]

    def diagnose(self) -> dict[str, np.ndarray]:
        """Empty, because nothing is imagined."""
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
