"""Episodes in progress: each with its own adapted policy and its own stream of noise, one decision at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted
from fastdwm.itpo.deadline import Deadline
from fastdwm.itpo.decision import Decision, decide
from fastdwm.itpo.objective import Objective
from fastdwm.models.policy import Policy


@dataclass(frozen=True)
class Adaptation:
    """What all episodes of an agent share.

    noise_steps: Gaussian vectors that one imagined transition consumes.
    """

    policy: Policy
    objective: Objective
    config: ITPOConfig
    noise_steps: int
    seed: int
    deadline: Deadline | None = None

    def start(self, base: Tensor) -> Adapted:
        """Unadapted policies, base (B, P)."""
        return Adapted.start(base, self.config)

    def begin(self, state: Adapted, base: Tensor) -> Adapted:
        """What a decision starts from."""
        return state.again(base, self.config) if self.config.reset == "decision" else state


class Episodes:
    """B episodes, decided for in plain Python.

    noise: that of the last decision, (E or 1, H, K, B, M, S), none before the first.

    Episode i draws its noise from its own generator, seeded by seed + i, on the CPU: what happens in it depends neither
    on the other episodes nor on the device.
    """

    def __init__(self, shared: Adaptation, n_episodes: int, obs_dim: int):
        self.shared, self.obs_dim = shared, obs_dim
        # A row for each episode rather than a view, so that unadapted copies act alike to the bit.
        self.base = shared.policy.base.repeat(n_episodes, 1)
        self.adapted = shared.start(self.base)
        self.generators = [torch.Generator("cpu").manual_seed(shared.seed + i) for i in range(n_episodes)]
        self.noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.generators)

    @property
    def params(self) -> Tensor:
        """Adapted parameters (B, P)."""
        return self.adapted.params

    @property
    def evidence(self) -> Tensor:
        """What the trust rests on, (B, 7)."""
        return self.adapted.evidence

    def decide(self, obs: Tensor, reward: Tensor | None = None) -> Decision:
        """Adapt and act in obs (B, S); reward: (B,) that the last action earned, NaN or none where nobody said."""
        shared, config, device = self.shared, self.shared.config, self.base.device
        obs, reward = obs.to(device), None if reward is None else reward.to(device)
        state = shared.begin(self.adapted, self.base)
        self.noise = self._noise()
        held_out = self._draw(config.inner_steps, config.horizon, config.held_out_particles)
        steps = shared.deadline and shared.deadline.steps(config.inner_steps)
        given = shared.objective, obs, self.noise, held_out, config, steps
        # All read the same row, which stays in the cache; by the product of B matrices, as their copies act.
        base = shared.policy.base.expand(len(self), -1) if shared.policy.fused else self.base
        self.adapted, decision = decide(shared.policy, state, base, *given, reward)
        return decision

    def _noise(self) -> Tensor:
        """The banks of the next decision, (E or 1, H, K, B, M, S)."""
        config = self.shared.config
        if config.noise != "time" or self.noise is None:
            return self._draw(config.noise_banks, config.horizon, config.particles)
        newest = self._draw(config.noise_banks, 1, config.particles)
        return torch.cat([self.noise[:, 1:], newest], 1)[:, : config.horizon]

    def _draw(self, banks: int, horizon: int, particles: int) -> Tensor | None:
        """Standard normal (banks, horizon, K, B, particles, S); none for no particles."""
        if particles == 0:
            return None
        shape = (banks, horizon, self.shared.noise_steps, particles, self.obs_dim)
        # Whatever the user has made torch's default type and device.
        kind = dict(dtype=torch.float32, device="cpu")
        draws = [torch.randn(shape, generator=generator, **kind) for generator in self.generators]
        noise = torch.stack(draws, 3) if len(draws) > 1 else draws[0].unsqueeze(3)
        return noise.to(self.base.device)

    def restart(self, mask: Tensor) -> None:
        """The policies of the episodes in mask (B,) are the base policy again; their noise goes on."""
        self.adapted = self.shared.start(self.base).where(mask.to(self.base.device), self.adapted)

    def keep(self, mask: Tensor) -> None:
        """Go on with the episodes in mask (B,) alone."""
        rows = mask.to(self.base.device)
        self.base, self.adapted = self.base[rows], self.adapted.keep(rows)
        self.generators = [g for g, kept in zip(self.generators, mask.tolist(), strict=True) if kept]
        self.noise = None if self.noise is None else self.noise[:, :, :, rows]
