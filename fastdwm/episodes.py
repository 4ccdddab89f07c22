"""Episodes in progress: each with its own adapted policy and its own stream of noise, one decision at a time."""

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.deadline import Deadline
from fastdwm.itpo import Adapted, Decision, Objective, decide
from fastdwm.kernels.layout import Layout


class Episodes:
    """B episodes, decided for in plain Python.

    Episode i draws its noise from its own generator, seeded by seed + i, on the CPU: what happens in it depends neither
    on the other episodes nor on the device.
    """

    def __init__(
        self,
        layout: Layout,
        base_policy: Tensor,
        objective: Objective,
        config: ITPOConfig,
        noise_shape: tuple[int, int],
        n_episodes: int,
        seed: int,
        deadline: Deadline | None = None,
    ):
        """base_policy: (1, P).   noise_shape: (K, S), what one imagined transition consumes."""
        self.deadline = deadline
        self.layout, self.objective, self.config, self.noise_shape = layout, objective, config, noise_shape
        # A row for each episode rather than a view, so that unadapted copies act alike to the bit.
        self.base = base_policy.repeat(n_episodes, 1)
        self.adapted = Adapted.start(layout, self.base, config)
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(n_episodes)]
        self.noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.generators)

    @property
    def params(self) -> Tensor:
        """Adapted parameters (B, P)."""
        return self.adapted.params

    def decide(self, obs: Tensor) -> Decision:
        """Adapt and act in obs (B, S)."""
        config, state = self.config, self.adapted
        if config.reset == "decision":
            state = Adapted.start(self.layout, self.base, config)
        self.noise = self._draw(config.noise_banks, config.particles)
        held_out = self._draw(1, config.held_out_particles)[0]
        steps = self.deadline and self.deadline.steps(config.inner_steps)
        self.adapted, decision = decide(state, self.base, self.objective, obs, self.noise, held_out, config, steps)
        return decision

    def _draw(self, banks: int, particles: int) -> Tensor:
        """Standard normal (banks, H, K, B, M, S)."""
        steps, obs_dim = self.noise_shape
        shape = (banks, self.config.horizon, steps, particles, obs_dim)
        draws = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(draws, 3).to(self.base.device)

    def restart(self, mask: Tensor) -> None:
        """The policies of the episodes in mask (B,) are the base policy again; their noise goes on."""
        start = Adapted.start(self.layout, self.base, self.config)
        self.adapted = start.where(mask.to(self.base.device), self.adapted)

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        rows = mask.to(self.base.device)
        self.base, self.adapted = self.base[rows], self.adapted.keep(rows)
        self.generators = [g for g, kept in zip(self.generators, mask.tolist(), strict=True) if kept]
